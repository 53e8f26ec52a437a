"""SparseGPT: prune a layer column by column, and let the columns that follow make up for it (Frantar & Alistarh 2023).

For each row w of a layer with inputs X the loss is ‖X (w − q)‖² = (w − q) H (w − q)ᵀ with H = XᵀX. The optimal brain
surgeon removes weight j and moves those after it by −(w_j / U_jj) U_j,: where H⁻¹ = UᵀU and U is upper triangular. All
rows share H, which is what makes it fast.

No matrix is inverted here. With the order reversed, H = M Mᵀ for an upper triangular M, and U = M⁻¹. All updates of the
columns before block b add up to (W − Q) M M_bb⁻¹ (rows of M before b, its columns b), so only blocks of M on the
diagonal are ever solved with.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from pruninglab import units

BLOCK, STRIP = 128, 16  # columns among which weights are compared; columns that are updated one by one


def factor(hessian: Tensor, damping: float = 0.01, name: str = "layer") -> Tensor:
    """M, upper triangular, with M Mᵀ = H + damping · mean(diag H) · 1.

    An input that is always zero gets a 1 on the diagonal.

    Args:
        hessian: H = XᵀX, (inputs, inputs), of any scale.
        damping: as a fraction; where it is not enough it is raised tenfold, with a warning.
        name: of the layer, for errors.

    Raises:
        ValueError: H is not finite.
    """
    if not bool(hessian.isfinite().all()):
        raise ValueError(f"the inputs of {name} are NaN or infinite, so nothing can be fitted to them")
    diagonal = hessian.diagonal()
    dead = diagonal <= 0
    mean = float(diagonal[~dead].mean()) if not bool(dead.all()) else 1.0
    while damping <= 1e4:
        damped = hessian.float().clone()
        damped.diagonal()[dead] = mean
        damped.diagonal().add_(damping * mean)
        found, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not info:
            return found.flip(0, 1).contiguous()
        damping *= 10
        warnings.warn(f"the Hessian of {name} is singular; it is damped by {damping:g}", stacklevel=2)
    raise ValueError(f"the Hessian of {name} has no positive diagonal to damp it with")


@torch.no_grad()
def sparsegpt(
    weight: Tensor, m: Tensor, sparsity: float = 0.5, unit: units.Pattern | None = None, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """The pruned and repaired weight, and its mask.

    Args:
        weight: (outputs, inputs).
        m: what `factor` found for its inputs.
        sparsity: the fraction to remove from each block of columns, in [0, 1].
        unit: N of every M consecutive inputs instead.
        block: how many columns compete, all rows together.

    Raises:
        ValueError: a sparsity out of range, or inputs that N:M does not divide.
    """
    if unit is None and not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is the fraction removed, in [0, 1], not {sparsity}")
    n, of = (0, 1) if unit is None else _pattern(unit, weight.shape[1])
    block = max(block // of * of, of)
    columns = weight.detach().float().T.contiguous()  # (inputs, outputs): a column of the weight lies together
    moved, gone = torch.zeros_like(columns), torch.zeros_like(columns, dtype=torch.bool)
    width, spent = len(columns), 0
    for start in range(0, width, block):
        end = min(start + block, width)
        here = slice(start, end)
        u = torch.linalg.solve_triangular(m[here, here], torch.eye(end - start, device=m.device), upper=True)
        before = columns[here].clone()
        if start:
            columns[here] += u.T @ (m[:start, here].T @ moved[:start])
        if unit is None:
            number = round(columns.shape[1] * end * sparsity + 1e-6) - spent
            spent += number
            gone[here] = _lowest((columns[here] / u.diagonal()[:, None]).square(), number)
        _sweep(columns[here], gone[here], u, n, of)
        columns[here].masked_fill_(gone[here], 0)
        moved[here] = before - columns[here]
    return columns.T.contiguous().to(weight.dtype), ~gone.T.contiguous()


def _sweep(w: Tensor, gone: Tensor, u: Tensor, n: int, of: int) -> None:
    """Remove what goes from each column of a block in turn and update those after it; in place."""
    diagonal, errors = u.diagonal(), torch.zeros_like(w)
    strip = max(STRIP // of * of, of)
    for start in range(0, len(w), strip):
        end = min(start + strip, len(w))
        for j in range(start, end):
            if n and j % of == 0:
                ratio = (w[j : j + of] / diagonal[j : j + of, None]).square()
                gone[j : j + of].scatter_(0, ratio.topk(of - n, 0, largest=False).indices, True)
            errors[j] = torch.where(gone[j], w[j] / diagonal[j], 0)
            w[j + 1 : end].addr_(u[j, j + 1 : end], errors[j], alpha=-1)
        w[end:] -= u[start:end, end:].T @ errors[start:end]


def _lowest(values: Tensor, number: int) -> Tensor:
    """Bool: the `number` lowest of all."""
    gone = torch.zeros(values.numel(), dtype=torch.bool)
    if number:
        order = np.argpartition(values.flatten().cpu().numpy(), number - 1)
        gone[torch.from_numpy(order[:number])] = True
    return gone.view(values.shape).to(values.device)


def _pattern(unit: units.Pattern, width: int) -> tuple[int, int]:
    n, of = (int(part) for part in unit.name.split(":"))
    if width % of:
        raise ValueError(f"{width} inputs cannot be cut into groups of {of} for {unit.name}")
    return n, of
