"""Optimal brain surgeon: which weight costs least to lose if all others make up for it, and how they do.

Around a minimum the loss grows by E(δ) = ½ δᵀHδ. If weight q has to become 0, the best the others can do is

    δ = −w_q / [H⁻¹]_qq · H⁻¹ e_q,   and it costs   L_q = w_q² / (2 [H⁻¹]_qq)      (Hassibi & Stork 1993)

A layer's squared error ‖X W'ᵀ − X Wᵀ‖² *is* quadratic, with H = XᵀX for each row of W, so there the answers are exact.
"""

import heapq
from typing import NamedTuple

import torch
from torch import Tensor

PIECE = 1 << 20  # numbers in the inverses of the rows that are traced at a time: they stay in the processor's cache


class Removal(NamedTuple):
    """What was removed, in which order, and what each step cost.

    Attributes:
        weights: what is left, (n,); zeros where a weight went.
        order: (removed,) places, the first to go first.
        losses: (removed,) L_q of each step; their sum is ½ δᵀHδ of all that changed.
    """

    weights: Tensor
    order: Tensor
    losses: Tensor


def damped(moments: Tensor, inputs: int, damping: float) -> Tensor:
    """H + λ I with λ = damping · mean(x²), (g, d, d). A bias's constant input is not damped: it is known.

    Args:
        moments: H, (g, d, d), of which the diagonal is x² summed or averaged.
        inputs: how many of the d are inputs; a constant one may follow them.
        damping: λ as a fraction of the inputs' mean square.
    """
    diagonal = moments.diagonal(dim1=-2, dim2=-1)[:, :inputs]
    size = diagonal.mean()
    ridge = torch.zeros_like(moments[0].diagonal())
    ridge[:inputs] = damping * (size if size > 0 else 1.0)  # inputs that are always 0 may have any weight
    return moments + torch.diag(ridge)


def inverse_of(hessian: Tensor) -> Tensor:
    """H⁻¹ of a symmetric positive definite matrix, (n, n), in float64.

    Raises:
        ValueError: not a square matrix of finite numbers, or singular, or not positive definite.
    """
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1] or not hessian.numel():
        raise ValueError(f"a Hessian is a square matrix, not {tuple(hessian.shape)}")
    if not torch.isfinite(hessian).all():
        raise ValueError("the Hessian has entries that are not finite")
    factor, failed = torch.linalg.cholesky_ex(hessian.double())
    pivots = factor.diagonal().square()
    if failed or pivots.min() <= len(hessian) * torch.finfo(torch.float64).eps * pivots.max():
        raise ValueError(
            f"the Hessian of {len(hessian)} weights is singular or not positive definite, so that the surgeon has no "
            "inverse to work with: add damping"
        )
    return torch.cholesky_inverse(factor)


def obs_step(weights: Tensor, inverse: Tensor, q: int) -> tuple[Tensor, float]:
    """Remove one weight: the change of all weights, and what it costs.

    Args:
        weights: w, (n,).
        inverse: H⁻¹, (n, n).
        q: which one goes.

    Returns:
        δ, (n,), with w + δ zero at q; and L_q.
    """
    return -weights[q] / inverse[q, q] * inverse[:, q], float(weights[q] ** 2 / (2 * inverse[q, q]))


def eliminate(weight: Tensor, inverse: Tensor, gone: Tensor) -> None:
    """Remove some columns of W for good, in place, with H⁻¹ brought up to date by one elimination step.

    What is left of H⁻¹ is the inverse of H without these rows and columns, so nothing is inverted anew.

    Args:
        weight: W, (outputs, d).
        inverse: H⁻¹ of what is there, (d, d).
        gone: (columns,) whole numbers.
    """
    rows = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])  # [H⁻¹]_SS⁻¹ H⁻¹_S:
    weight -= weight[:, gone] @ rows
    inverse -= inverse[:, gone] @ rows
    weight[:, gone] = inverse[:, gone] = inverse[gone] = 0  # not only nearly


def obs_prune(weights: Tensor, hessian: Tensor, n: int) -> Removal:
    """Remove n weights one by one, always the cheapest, while the others make up for it.

    Each step is optimal, all of them together need not be: which n go best is a question for `cbs_select`.

    Args:
        weights: w, (d,).
        hessian: H, (d, d), positive definite.
        n: how many go, 0 to d.

    Returns:
        `Removal`, in float64.

    Raises:
        ValueError: shapes that do not fit, n out of range, or H singular or not positive definite.
    """
    if weights.shape != hessian.shape[:1] or weights.ndim != 1:
        raise ValueError(f"weights {tuple(weights.shape)} do not fit a Hessian of shape {tuple(hessian.shape)}")
    if not 0 <= n <= len(weights):
        raise ValueError(f"n must be 0 to {len(weights)} weights, not {n}")
    left, order, losses = _trace(weights.detach().double()[None], inverse_of(hessian), n)
    return Removal(left[0], order[0], losses[0])


def _trace(rows: Tensor, inverse: Tensor, n: int) -> Removal:
    """`obs_prune` for several rows at once, (rows, d), each with a copy of the same inverse of its own.

    All rows lose a weight at each step; whenever a fifth has gone, the inverses are cut down to what is left.
    """
    d, result = rows.shape[1], torch.zeros_like(rows)
    left, inverse = rows.clone(), inverse.expand(len(rows), -1, -1).clone()
    place = torch.arange(d, device=rows.device).expand(len(rows), -1)  # of what is left, in the whole row
    order = torch.zeros(len(rows), n, dtype=torch.int64, device=rows.device)
    losses = rows.new_zeros(len(rows), n)
    gone = torch.zeros_like(rows, dtype=torch.bool)
    all_ = torch.arange(len(rows), device=rows.device)
    for step in range(n):
        costs = (left.square() / (2 * inverse.diagonal(dim1=1, dim2=2))).masked_fill_(gone, torch.inf)
        losses[:, step], q = costs.min(1)
        order[:, step] = place[all_, q]
        column = inverse[all_, :, q] / inverse[all_, q, q][:, None]
        left -= left[all_, q][:, None] * column  # `obs_step`
        inverse.baddbmm_(column[:, :, None], inverse[all_, q][:, None], alpha=-1)  # `eliminate`, one in each row
        left[all_, q] = inverse[all_, :, q] = inverse[all_, q] = 0
        gone[all_, q] = True
        width, stay = left.shape[1], d - step - 1
        if 0 < stay <= 0.8 * width:
            at = (~gone).nonzero()[:, 1].view(-1, stay)
            inverse = inverse.gather(1, at[:, :, None].expand(-1, -1, width))
            inverse = inverse.gather(2, at[:, None].expand(-1, stay, -1))
            left, place, gone = left.gather(1, at), place.gather(1, at), gone.gather(1, at)
    return Removal(result.scatter_(1, place, left), order, losses)


def obs_update(weight: Tensor, hessian: Tensor, gone: Tensor) -> Tensor:
    """The weights that keep Y = X Wᵀ best without some of the inputs: those columns zero, the others updated.

    The minimum of tr((W' − W) H (W' − W)ᵀ), W'_R = W_R + W_S H_SR H_RR⁻¹ for the columns S that go and R that stay:
    what optimal brain surgeon comes to if it removes the columns one by one.

    Args:
        weight: W, (outputs, d).
        hessian: H, (d, d), positive definite.
        gone: which inputs go, (d,) bool.
    """
    stay = ~gone
    result = torch.zeros_like(weight)
    share = torch.linalg.solve(hessian[stay][:, stay], hessian[stay][:, gone])  # H_RR⁻¹ H_RS
    result[:, stay] = weight[:, stay] + weight[:, gone] @ share.mT
    return result


def obs_layer(weight: Tensor, hessian: Tensor, sparsity: float, *, damp: float = 1e-2) -> tuple[Tensor, Tensor]:
    """Prune a layer so that its outputs stay: always the weight whose loss its row can best make up for goes.

    Each row of W has an error of its own and the same H = XᵀX, so a row's order of removal does not depend on the other
    rows: the rows are traced one by one, and then the cheapest next step of all rows is taken until enough are gone
    (optimal brain compression, Frantar & Alistarh 2022). One step is d² work, all of them o·d³ at
    most: minutes for a layer of thousands of inputs. SparseGPT is what one does then.

    Args:
        weight: W, (o, d), as in `patches @ W.T`.
        hessian: XᵀX, (d, d): the statistic `hessian`.
        sparsity: the fraction of the layer's weights to remove, in [0, 1); rounded to whole weights.
        damp: λ as a fraction of the mean of H's diagonal.

    Returns:
        The new weight, of the old one's type, and its mask (True = keep), both (o, d).

    Raises:
        ValueError: shapes that do not fit, a sparsity out of range, damp negative, or H singular and not damped.
    """
    if weight.ndim != 2 or hessian.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(f"a weight of shape {tuple(weight.shape)} does not fit a Hessian of {tuple(hessian.shape)}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is the fraction removed, in [0, 1), not {sparsity}")
    if not damp >= 0:
        raise ValueError(f"damp must be 0 or more, not {damp}")
    outputs, d = weight.shape
    whole = damped(hessian.double()[None], d, damp)[0]
    inverse = inverse_of(whole)
    rows = weight.detach().double()
    remove = round(sparsity * outputs * d)
    traces = [_trace(part, inverse, min(d, remove)) for part in rows.split(max(1, PIECE // d**2))]
    order = torch.cat([trace.order for trace in traces])
    counts = _cheapest_steps(torch.cat([trace.losses for trace in traces]).tolist(), remove)
    keep = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    result = rows.clone()
    for row, count in enumerate(counts):
        keep[row, order[row, :count]] = False
        result[row] = obs_update(rows[row : row + 1], whole, ~keep[row])[0]
    return result.to(weight.dtype), keep


def _cheapest_steps(losses: list[list[float]], n: int) -> list[int]:
    """How many steps of each sequence are taken if always the cheapest next one is, until there are n."""
    counts = [0] * len(losses)
    heads = [(row[0], i) for i, row in enumerate(losses) if row]
    heapq.heapify(heads)
    for _ in range(n):
        _, i = heapq.heappop(heads)
        counts[i] += 1
        if counts[i] < len(losses[i]):
            heapq.heappush(heads, (losses[i][counts[i]], i))
    return counts
