"""The optimal brain surgeon for inputs of a layer: what it costs to lose them, and how the others make up.

The outputs Y = X Wᵀ are to stay. With H = XᵀX, ‖X W'ᵀ − X Wᵀ‖² = tr((W' − W) H (W' − W)ᵀ) is quadratic, so that the
answer of Hassibi & Stork (1993) is exact. A convolution's input channel has a column for each position of the kernel.
What removes single weights is in `pruninglab.curvature.obs`; here whole columns go, for all outputs at once.
"""

import torch
from torch import Tensor

from pruninglab.curvature.obs import damped, eliminate, obs_update

__all__ = ["damped", "obs_update", "removal_costs", "removal_order"]


def removal_costs(weight: Tensor, inverse: Tensor, channels: int) -> Tensor:
    """What ‖X W'ᵀ − X Wᵀ‖² grows by at least if one input channel goes and all other inputs make up for it.

    For one column that is Σᵢ wᵢₖ² / [H⁻¹]ₖₖ; for the columns S of a channel (a kernel's positions) it is
    tr(W_S [H⁻¹]_SS⁻¹ W_Sᵀ).

    Args:
        weight: W, (outputs, d).
        inverse: H⁻¹, (d, d).
        channels: how many; the first columns belong to them, equally many to each and in order.

    Returns:
        (channels,); a channel that is gone (zeros in W and in H⁻¹) costs nothing.
    """
    places = _places(weight, channels)
    blocks = inverse[places[:, :, None], places[:, None, :]]
    columns = weight[:, places].movedim(1, 0)  # (channels, outputs, columns of a channel)
    gone = (blocks.diagonal(dim1=1, dim2=2) == 0).all(1)
    blocks = blocks + torch.eye(places.shape[1], dtype=blocks.dtype, device=blocks.device) * gone[:, None, None]
    return (torch.linalg.solve(blocks, columns.mT).mT * columns).sum((1, 2))


def removal_order(weight: Tensor, hessian: Tensor, channels: int) -> Tensor:
    """When the surgeon removes each input channel, (channels,): 1 for the one that goes first, always the cheapest.

    The others are updated after each removal, so that two channels that say the same do not both look worthless.
    """
    weight, inverse = weight.clone(), torch.linalg.inv(hessian)
    places, order = _places(weight, channels), torch.zeros(channels, dtype=weight.dtype, device=weight.device)
    for step in range(1, channels + 1):
        costs = removal_costs(weight, inverse, channels)
        channel = costs.masked_fill(order > 0, torch.inf).argmin()
        order[channel] = step
        eliminate(weight, inverse, places[channel])
    return order


def _places(weight: Tensor, channels: int) -> Tensor:
    """The columns of each channel; a constant input may follow them."""
    width = weight.shape[1] // channels
    return torch.arange(channels * width, device=weight.device).view(channels, width)
