"""Criteria of whole filters: one score for each output of a layer, (outputs,), for units that are cut out.

Such a score alone speaks for the channels born at its layer's output. Where layers share channels (around a residual,
say) their scores are summed. `group_l2` is the other way to score channels: of single weights, so that everything that
goes with a channel speaks, what reads it too.
"""

import torch
from torch import Tensor

import pruninglab.filtering  # noqa: F401  registers the statistics that are asked for here
from pruninglab.criteria.base import criterion


@criterion
def l1_filter(weight: Tensor) -> Tensor:
    """‖W_c‖₁ of each filter (Li et al. 2017, §3.1); (outputs,). Published with each layer compared on its own."""
    return weight.flatten(1).abs().sum(1)


@criterion
def l2_filter(weight: Tensor) -> Tensor:
    """‖W_c‖₂ of each filter (named beside ℓ1 in Li et al. 2017; soft filter pruning, He et al. 2018); (outputs,)."""
    return weight.flatten(1).norm(dim=1)


@criterion
def fpgm(weight: Tensor) -> Tensor:
    """Σ over the layer's filters of ‖W_c − W_c′‖₂ (He et al. 2019, §3.3); (outputs,).

    Low for a filter near the geometric median of its layer, which the others can stand in for, however large it is.
    Published with each layer compared on its own.
    """
    filters = weight.flatten(1).double()  # distances of near twins are differences of large numbers
    return torch.cdist(filters, filters).sum(1).to(weight.dtype)


@criterion
def slimming(norm_scale: Tensor) -> Tensor:
    """|γ_c| of the norm behind the layer (network slimming, Liu et al. 2017, §3); (outputs,).

    Means most after training with an ℓ1 penalty on γ. A layer with no norm behind it has a scale of 1.
    """
    return norm_scale


@criterion
def taylor_filter(map_taylor: Tensor) -> Tensor:
    """|Σ_m z_m · ∂ℓ/∂z_m| over a feature map z, the mean over samples (Molchanov et al. 2017, eq. 8); (outputs,).

    The first-order change of a sample's loss when the channel goes. z is taken behind norm and activation, where a
    channel that was cut out is zero: before a norm the number would be another, before a ReLU the same. The paper
    divides by the size of the map and by the layer's ℓ2 norm; `structure("channel", normalize="l2")` is both at once.
    """
    return map_taylor


@criterion
def hrank(map_rank: Tensor) -> Tensor:
    """Mean rank of the feature map, behind norm and activation (HRank, Lin et al. 2020); (outputs,).

    A map of h×w has at most min(h, w) ranks, so that small pictures give many ties. Published per layer.
    """
    return map_rank


@criterion
def beta_rank(weight: Tensor, spread: Tensor) -> Tensor:
    """Mean |w| of the filter × how much it spreads its data, scaled to [0, 1] in each layer (β-Rank, 2023); (outputs,).

    The spread is Σ over positions of std(output) / std(patch). The patches are those that the convolution meets; the
    authors' code cuts them along the wrong dimensions. A layer whose filters are all alike gets zeros.
    """
    score = weight.flatten(1).abs().mean(1) * spread
    low, high = score.aminmax()
    return (score - low) / (high - low) if high > low else torch.zeros_like(score)


@criterion
def relevance_filter(relevance: Tensor) -> Tensor:
    """Relevance of the filter for the right answer, z⁺ rule (pruning by explaining, Yeom et al. 2019); (outputs,).

    Relevance is conserved from layer to layer, so layers compare as they are. That of a wrong, negative logit counts
    against a filter.
    """
    return relevance


@criterion
def relevance_filter_epsilon(relevance_epsilon: Tensor) -> Tensor:
    """The same by the ε rule; in a ReLU network without biases, Σ over the map of gradient × activation; (outputs,)."""
    return relevance_epsilon


@criterion
def relevance_filter_alphabeta(relevance_alphabeta: Tensor) -> Tensor:
    """The same by the αβ rule with α = 2, β = −1; (outputs,)."""
    return relevance_alphabeta


@criterion
def group_l2(weight: Tensor) -> Tensor:
    """w², shaped like the weight: summed over all that goes with a channel, the group's ‖·‖₂² (DepGraph, Fang 2023).

    Divided by the mean of each layer and averaged over layers, as in SPA (Wang et al. 2024), it is
    `structure("channel", combine="mean", normalize="mean")`. The scales of norms, which both papers count too, are no
    layer's weight and do not speak here.
    """
    return weight.square()


group_l2.elementwise = True  # type: ignore[attr-defined]
