"""The optimal brain surgeon for inputs of a layer: what it costs to lose them, and how the others make up.

The outputs Y = X Wᵀ are to stay. With H = XᵀX, ‖X W'ᵀ − X Wᵀ‖² = tr((W' − W) H (W' − W)ᵀ) is quadratic, so that the
answer of Hassibi & Stork (1993) is exact. A convolution's input channel has a column for each position of the kernel.
"""

import torch
from torch import Tensor


def damped(moments: Tensor, inputs: int, damping: float) -> Tensor:
    """H + λ I with λ = damping · mean(x²), (g, d, d). A bias's constant input is not damped: it is known."""
    diagonal = moments.diagonal(dim1=-2, dim2=-1)[:, :inputs]
    size = diagonal.mean()
    ridge = torch.zeros_like(moments[0].diagonal())
    ridge[:inputs] = damping * (size if size > 0 else 1.0)  # inputs that are always 0 may have any weight
    return moments + torch.diag(ridge)


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
        gone = places[channel]
        rows = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])  # [H⁻¹]_SS⁻¹ H⁻¹_S:
        weight -= weight[:, gone] @ rows
        inverse -= inverse[:, gone] @ rows
        weight[:, gone] = inverse[:, gone] = inverse[gone] = 0  # not only nearly
    return order


def _places(weight: Tensor, channels: int) -> Tensor:
    """The columns of each channel; a constant input may follow them."""
    width = weight.shape[1] // channels
    return torch.arange(channels * width, device=weight.device).view(channels, width)


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
