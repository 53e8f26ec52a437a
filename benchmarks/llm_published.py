"""The loops of Wanda and SparseGPT as published, written from their description: what `llm.py` measures beside.

They are kept as they are: the Hessian sequence by sequence, two Cholesky factorisations with an inverse between them, a
full sort for each threshold (which takes one weight too many), and a step of Python for each column.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 128
Pattern = tuple[int, int] | None  # how many of each so many go


def published_hessian(sequences: Sequence[Tensor]) -> Tensor:
    """2/N XᵀX, where N counts sequences, as a running mean."""
    total, seen = torch.zeros(sequences[0].shape[-1], sequences[0].shape[-1]), 0
    for x in sequences:
        columns = x.flatten(0, -2).T
        total *= seen / (seen + len(x))
        seen += len(x)
        columns = (2 / seen) ** 0.5 * columns
        total += columns @ columns.T
    return total


def published_sparsegpt(weight: Tensor, hessian: Tensor, pattern: Pattern = None) -> tuple[Tensor, Tensor]:
    """The weight at 50 %, or with a pattern, and which of it is kept (Frantar & Alistarh 2023, algorithm 1)."""
    weight, hessian = weight.clone(), hessian.clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    weight[:, dead] = 0
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True)
    kept = torch.ones_like(weight, dtype=torch.bool)
    for start in range(0, weight.shape[1], BLOCK):
        end = min(start + BLOCK, weight.shape[1])
        here, u = weight[:, start:end].clone(), upper[start:end, start:end]
        left, errors, losses = (torch.zeros_like(here) for _ in range(3))
        gone = torch.zeros_like(here, dtype=torch.bool)
        if pattern is None:
            scores = here**2 / u.diagonal() ** 2
            gone = scores <= scores.flatten().sort().values[scores.numel() // 2]
        for j in range(end - start):
            column, d = here[:, j], u[j, j]
            if pattern is not None and j % pattern[1] == 0:
                group = slice(j, j + pattern[1])
                scores = here[:, group] ** 2 / u.diagonal()[group] ** 2
                gone.scatter_(1, j + scores.topk(pattern[0], dim=1, largest=False).indices, True)
            stays = column.clone()
            stays[gone[:, j]] = 0
            left[:, j] = stays
            losses[:, j] = (column - stays) ** 2 / d**2
            wrong = (column - stays) / d
            here[:, j:] -= wrong[:, None].matmul(u[j : j + 1, j:])
            errors[:, j] = wrong
        weight[:, start:end], kept[:, start:end] = left, ~gone
        weight[:, end:] -= errors.matmul(upper[start:end, end:])
    return weight, kept


def published_wanda_statistic(sequences: Sequence[Tensor]) -> Tensor:
    """‖X‖² of each input over the number of sequences, as a running mean."""
    total, seen = torch.zeros(sequences[0].shape[-1]), 0
    for x in sequences:
        columns = x.flatten(0, -2).T
        total *= seen / (seen + len(x))
        seen += len(x)
        total += torch.norm(columns, p=2, dim=1) ** 2 / seen
    return total


def published_wanda(weight: Tensor, statistic: Tensor, pattern: Pattern = None) -> Tensor:
    """Which weights are kept: half of each row, or a pattern (Sun et al. 2024)."""
    scores = weight.abs() * statistic.reshape(1, -1).sqrt()
    gone = torch.zeros_like(scores, dtype=torch.bool)
    if pattern is None:
        order = scores.sort(dim=-1, stable=True).indices
        gone.scatter_(1, order[:, : scores.shape[1] // 2], True)
    else:
        for j in range(0, scores.shape[1], pattern[1]):
            group = scores[:, j : j + pattern[1]]
            gone.scatter_(1, j + group.topk(pattern[0], dim=1, largest=False).indices, True)
    return ~gone
