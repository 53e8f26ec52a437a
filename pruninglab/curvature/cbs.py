"""Combinatorial brain surgeon (Yu et al. 2022): choose weights that go together best, then let the others make up.

Where optimal brain surgeon removes one weight after another, each time the cheapest, this asks for all of them at once.
"""

import torch
from torch import Tensor

from pruninglab.curvature.obs import obs_update
from pruninglab.curvature.quadratic import quadratic
from pruninglab.curvature.solvers import swap_search


def cbs_select(weights: Tensor, hessian: Tensor, n: int, *, restarts: int = 0, seed: int = 0) -> Tensor:
    """Which n weights to remove together: a low ½ w_Pᵀ H_PP w_P by swapping pairs (CBS-S, Yu et al. 2022).

    From the n smallest magnitudes, and from `restarts` random choices, the best pair of a removed and a kept weight
    changes places until no pair is worth it.

    Args:
        weights: w, (d,), at a minimum of the loss.
        hessian: H, (d, d).
        n: how many go, 0 to d.
        restarts: how many random starts beside the magnitudes.
        seed: of those.

    Returns:
        (d,) bool, True for those that go.

    Raises:
        ValueError: shapes that do not fit, or n out of range.
    """
    if not 0 <= n <= len(weights):
        raise ValueError(f"n must be 0 to {len(weights)} weights, not {n}")
    nothing = torch.zeros_like(weights)
    problem = quadratic(weights, nothing, hessian, nothing, gamma=0.0, ridge=0.0)
    start = torch.zeros(len(weights), dtype=torch.bool, device=weights.device)
    start[weights.abs().argsort(stable=True)[:n]] = True
    return swap_search(problem, start, restarts=restarts, seed=seed)


def cbs_update(weights: Tensor, hessian: Tensor, gone: Tensor) -> Tensor:
    """The weights that are best without those that go: δ_F = H_FF⁻¹ H_FP w_P for the kept F (CBS-U, Yu et al. 2022).

    ½ δᵀHδ with δ_P = −w_P is smallest where its slope in δ_F is 0. It is `obs_update` of one row.

    Args:
        weights: w, (d,).
        hessian: H, (d, d), positive definite.
        gone: P, (d,) bool.

    Returns:
        (d,) the new weights, zero where they go.

    Raises:
        ValueError: shapes that do not fit.
    """
    if not weights.shape == gone.shape == hessian.shape[:1] or gone.dtype != torch.bool:
        raise ValueError(
            f"weights {tuple(weights.shape)}, gone {gone.dtype} {tuple(gone.shape)} and hessian "
            f"{tuple(hessian.shape)} do not fit"
        )
    return obs_update(weights[None], hessian, gone)[0]
