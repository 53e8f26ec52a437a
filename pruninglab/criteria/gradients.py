"""Criteria that ask how the loss changes, to first order, when a weight goes."""

from torch import Tensor

from pruninglab.criteria.base import criterion


@criterion
def taylor(weight: Tensor, grad: Tensor) -> Tensor:
    """|w · ∂L/∂w|: the first-order change of the loss when w becomes 0 (Molchanov et al. 2019, unsquared).

    At the end of training gradients nearly vanish, and this says little.
    """
    return (weight * grad).abs()


@criterion
def snip(weight: Tensor, grad: Tensor) -> Tensor:
    """|∂L/∂c| for a switch c = 1 on each weight (Lee et al. 2019, without the sum that all weights share).

    By the chain rule ∂L/∂c = w · ∂L/∂w, so the number is `taylor`'s. What differs is when: SNIP asks before training.
    """
    return (weight * grad).abs()
