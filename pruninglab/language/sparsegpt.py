"""SparseGPT: prune a layer column by column, and let the columns that follow make up for it (Frantar & Alistarh 2023).

For each row w of a layer with inputs X the loss is ‖X (w − q)‖² = (w − q) H (w − q)ᵀ with H = XᵀX. The optimal brain
surgeon removes weight j and moves those after it by −(w_j / U_jj) U_j,: where H⁻¹ = UᵀU and U is upper triangular. All
rows share H, which is what makes it fast.

No matrix is inverted here. H = M Mᵀ for an upper triangular M, and U = M⁻¹. All updates of the columns of block b by
those before it add up to (W − Q) M M_bb⁻¹ (rows of M before b, its columns b), so that only blocks of M on the diagonal
are ever solved with.
"""

import re
import warnings

import numpy as np
import torch
from torch import Tensor

from pruninglab import units

BLOCK, STRIP = 128, 16  # columns among which weights are compared; columns that are updated one by one
DEAD = 1e-9  # the diagonal of an input that is always zero, as a fraction of the mean: so its weights go first


def factor(hessian: Tensor, damping: float = 0.01, name: str = "layer") -> Tensor:
    """M, upper triangular, with M Mᵀ = H + damping · mean(diag H) · 1.

    The mean is that of the inputs that are not always zero. Those that are get next to nothing instead of the damping,
    so that it costs next to nothing to lose their weights.

    Args:
        hessian: H = XᵀX, (inputs, inputs), of any scale.
        damping: as a fraction; where it is not enough it is raised tenfold, with a warning.
        name: of the layer, for errors.

    Returns:
        M, in float64 if H is, else in float32.

    Raises:
        ValueError: H is not a square matrix of finite numbers, it is too far from positive definite to be damped, or
            the damping is negative.
    """
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1] or not hessian.numel():
        raise ValueError(f"the Hessian of {name} must be a square matrix, not {tuple(hessian.shape)}")
    if not damping >= 0:
        raise ValueError(f"damping is a fraction of the Hessian's diagonal, 0 or more, not {damping}")
    if not bool(hessian.isfinite().all()):
        raise ValueError(f"the inputs of {name} are NaN or infinite, so nothing can be fitted to them")
    diagonal = hessian.diagonal()
    alive = diagonal > 0
    mean = float(diagonal[alive].mean()) if bool(alive.any()) else 1.0
    while damping <= 1e4:
        m = hessian.detach().to(torch.promote_types(hessian.dtype, torch.float32), copy=True)
        m.diagonal().add_(torch.full_like(m[0], DEAD * mean).masked_fill_(alive, damping * mean))
        if _factored(m):
            return m
        damping = max(10 * damping, 1e-6)
        warnings.warn(f"the Hessian of {name} is singular; it is damped by {damping:g}", stacklevel=2)
    raise ValueError(f"the Hessian of {name} is not positive definite: is it XᵀX?")


def _factored(m: Tensor) -> bool:
    """Turn H into M in place, from the last block to the first. False where H is not positive definite."""
    for end in range(len(m), 0, -BLOCK):  # more than twice as fast as one call of LAPACK for a matrix of thousands
        start = max(end - BLOCK, 0)
        here = slice(start, end)
        m[:end, here].addmm_(m[:end, end:], m[here, end:].T, alpha=-1)
        lower, failed = torch.linalg.cholesky_ex(m[here, here].flip(0, 1))
        if failed:
            return False
        m[here, here] = lower.flip(0, 1)
        m[:start, here] = torch.linalg.solve_triangular(m[here, here], m[:start, here].T, upper=True).T
        m[here, :start] = 0
    return True


@torch.no_grad()
def sparsegpt(
    weight: Tensor,
    m: Tensor,
    sparsity: float = 0.5,
    unit: units.Pattern | None = None,
    name: str = "layer",
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """The pruned and repaired weight, and its mask.

    Exactly round(sparsity · weights) go, as evenly from all blocks of columns as whole weights allow. Of equally
    important ones the first goes first.

    Args:
        weight: (outputs, inputs).
        m: what `factor` found for its inputs.
        sparsity: the fraction to remove from each block of columns, in [0, 1].
        unit: N of every M consecutive inputs instead; the sparsity has nothing to say then.
        name: of the layer, for errors.
        block: how many columns compete, all rows together.

    Raises:
        ValueError: a weight that is not finite or does not fit M, a sparsity out of range, or inputs that N:M does not
            divide.
    """
    if weight.ndim != 2 or m.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(f"{name} of shape {tuple(weight.shape)} does not fit a factor of shape {tuple(m.shape)}")
    if not bool(weight.isfinite().all()):
        raise ValueError(f"the weights of {name} are NaN or infinite; nothing was pruned")
    if unit is None and not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is the fraction removed, in [0, 1], not {sparsity}")
    outputs, width = weight.shape
    n, of = (0, 1) if unit is None else _pattern(unit, width, name)
    block = max(block // of, 1) * of
    columns = weight.detach().to(m.dtype).T.contiguous()  # a column of W lies together
    owed = torch.zeros_like(columns)  # (W − Q) M of all columns that are done
    result, keep = torch.empty_like(weight), torch.empty_like(weight, dtype=torch.bool)
    spent = 0
    for start in range(0, width, block):
        end = min(start + block, width)
        here = slice(start, end)
        u = torch.linalg.solve_triangular(m[here, here], torch.eye(end - start).to(m), upper=True)
        now = torch.addmm(columns[here], u.T, owed[here])
        if unit is None:
            number = round(outputs * end * sparsity + 1e-6) - spent
            spent += number
            gone = _lowest(now.abs() / u.diagonal()[:, None], number)
        else:
            gone = torch.zeros_like(now, dtype=torch.bool)
        _sweep(now, gone, u, n, of)
        result[:, here], keep[:, here] = now.T, ~gone.T
        owed[end:].addmm_(m[here, end:].T, columns[here] - now)
    return result, keep


def _sweep(w: Tensor, gone: Tensor, u: Tensor, n: int, of: int) -> None:
    """Remove what goes from each column of a block in turn and update those after it.

    Args:
        w: (columns, outputs); changed in place.
        gone: which of them go, of the same shape; found here for N:M, in place.
        u: U of the block.
        n: how many of each M stay; 0 for single weights.
        of: that M.
    """
    scale = 1 / u.diagonal()[:, None]
    lost, errors = gone * scale, torch.empty_like(w)
    rows = list(zip(w, lost, errors, u, strict=True))
    strip = max(STRIP // of, 1) * of
    for start in range(0, len(w), strip):
        end = min(start + strip, len(w))
        for j in range(start, end):
            if n and j % of == 0:
                group = slice(j, j + of)
                gone[group] = _least(w[group].abs() * scale[group], of - n)
                lost[group] = gone[group] * scale[group]
            column, share, error, follow = rows[j]
            torch.mul(column, share, out=error)
            w[j + 1 : end].addr_(follow[j + 1 : end], error, alpha=-1)
        w[end:].addmm_(u[start:end, end:].T, errors[start:end], alpha=-1)
    w.mul_(~gone)


# NumPy is several times as fast as torch in what follows.


def _lowest(values: Tensor, number: int) -> Tensor:
    """Bool: the `number` lowest of all; of equal ones the first."""
    flat = values.cpu().numpy().reshape(-1)
    gone = np.zeros(len(flat), dtype=bool)
    if number:
        edge = np.partition(flat, number - 1)[number - 1]
        gone = flat <= edge
        over = np.count_nonzero(gone) - number
        gone[np.flatnonzero(flat == edge)[-over:] if over else []] = False
    return torch.from_numpy(gone).view(values.shape).to(values.device)


def _least(values: Tensor, number: int) -> Tensor:
    """Bool: the `number` lowest of each column; of equal ones the first."""
    v = values.cpu().numpy()
    # A value's rank is how many go before it: all earlier ones, until a comparison says otherwise.
    rank = np.arange(len(v), dtype=np.int16)[:, None].repeat(v.shape[1], axis=1)
    for d in range(1, len(v)):
        later = v[d:] < v[:-d]
        rank[:-d] += later
        rank[d:] -= later
    return torch.from_numpy(rank < number).to(values.device)


def _pattern(unit: units.Pattern, width: int, name: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", unit.name)
    if found is None:
        raise ValueError(f"SparseGPT knows N:M without a remainder, not {unit.name!r}")
    n, of = int(found[1]), int(found[2])
    if width % of:
        raise ValueError(f"the {width} inputs of {name} cannot be cut into groups of {of} for {unit.name}")
    return n, of
