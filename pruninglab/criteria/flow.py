"""Criteria that ask, before training, what removal does to the flow through a network: of gradients, or of signals."""

from torch import Tensor

import pruninglab.flowing  # noqa: F401  registers the statistics that are asked for here
from pruninglab.criteria.base import criterion


@criterion
def grasp(weight: Tensor, hessian_grad: Tensor) -> Tensor:
    """(H g)_w · w: how much gradient flow ‖g‖² is lost when w becomes 0 (Wang et al. 2020, §4.1, sign turned).

    To first order ‖g‖² changes by −2 w · (H g)_w. Signed: first go the weights whose removal makes the gradient larger,
    be they large, then those that do nothing, so that it costs most where little is removed. Published for pruning at
    once, globally, before training.
    """
    return weight * hessian_grad


@criterion
def synflow(weight: Tensor, flow_grad: Tensor) -> Tensor:
    """|w · ∂ ln R/∂|w||: the share of the flow R through the network that passes through w (Tanaka et al. 2020, §6).

    The paper's |w · ∂R/∂|w|| divided by R, which ranks the same and does not overflow. Needs no data but the shape of
    an input. In a chain the shares of each layer sum to 1, so that a layer with few weights left scores high and none
    is emptied, if one prunes little by little and scores anew: in round r of 100 to the density d^(r/100), `within` the
    masks of the round before. At once, it empties layers like the others.
    """
    return (weight * flow_grad).abs()
