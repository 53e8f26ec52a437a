"""Criteria that use the second derivative of the loss."""

import torch
from torch import Tensor

import pruninglab.curvature.fisher  # noqa: F401  registers the statistic that is asked for here
from pruninglab.criteria.base import CRITERIA, criterion
from pruninglab.curvature.obs import damped, inverse_of


@criterion
def obd(weight: Tensor, fisher: Tensor) -> Tensor:
    """½ H w² with the diagonal H taken from the empirical Fisher (optimal brain damage, LeCun et al. 1989, §2.3).

    The second-order change of the loss when w becomes 0 at a minimum, other weights held fixed. Also named "fisher".
    """
    return 0.5 * fisher * weight.square()


CRITERIA["fisher"] = obd


@criterion
def obs(weight: Tensor, hessian: Tensor, damping: float = 1e-2) -> Tensor:
    """w² / [H⁻¹]_jj with H = XᵀX: what the layer's squared error grows by when w goes and its row makes up for it.

    Optimal brain surgeon (Hassibi & Stork 1993) on one layer, where the error is quadratic and this is exact. It is the
    score of one weight alone, and nothing is updated: `curvature.obs_layer` removes many and updates. Errors of
    different layers are in different units: compare within a layer (allocation "uniform"). `damping` is λ as a fraction
    of the mean of H's diagonal.

    Raises:
        ValueError: H is singular and not damped.
    """
    moments = damped((hessian if hessian.ndim == 3 else hessian[None]).double(), hessian.shape[-1], damping)
    inverses = torch.stack([inverse_of(group).diagonal() for group in moments])  # (groups, inputs)
    rows = inverses.repeat_interleave(len(weight) // len(inverses), 0).reshape(weight.shape)
    return weight.square() / rows.to(weight.dtype)


@criterion
def woodfisher(weight: Tensor, fisher_inverse_diagonal: Tensor) -> Tensor:
    """w² / (2 [F⁻¹]_ii) with blocks of the empirical Fisher (WoodFisher, Singh & Alistarh 2020).

    What the loss grows by when w goes and the others of its block make up for it. Without an update here, as `obd`,
    which is what it becomes if F is diagonal.
    """
    return weight.square() / (2 * fisher_inverse_diagonal)
