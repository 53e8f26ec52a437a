"""Criteria that look at what flows into a weight."""

from torch import Tensor

from pruninglab.criteria.base import criterion


@criterion
def wanda(weight: Tensor, input_norm: Tensor) -> Tensor:
    """|w| · ‖x‖₂: how much the layer's output moves when w goes (Sun et al. 2023, eq. 1).

    Published with each output row compared on its own; here the allocation decides who competes with whom.
    """
    return weight.abs() * input_norm
