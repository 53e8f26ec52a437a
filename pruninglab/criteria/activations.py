"""Criteria that look at what flows into a weight."""

from torch import Tensor

from pruninglab.criteria.base import criterion


@criterion
def wanda(weight: Tensor, input_norm: Tensor) -> Tensor:
    """|w| · ‖x‖₂: how much the layer's output moves when w goes (Sun et al. 2024, eq. 1).

    Published with each output row compared on its own; here the allocation decides who competes with whom.
    """
    return (weight * input_norm).abs_()  # in place, as room for one more large tensor costs more than the sum
