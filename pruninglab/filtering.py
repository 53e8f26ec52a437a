"""Statistics of whole filters: one number for each output of a layer, (outputs,). See `pruninglab.statistics`."""

from typing import Any

import torch
from torch import Tensor, nn

from pruninglab.batches import batches
from pruninglab.layers import Exclude, Layer, prunable
from pruninglab.recording import Following, observed, recording
from pruninglab.relevance import relevance as explain
from pruninglab.statistics import cross_entropy, mean_over_samples, reject_silent, run, statistic

Values = dict[str, Tensor]
CONSTANT = 1e-12  # of its mean square: a variance below this is rounding


@statistic(finish=mean_over_samples)
def map_taylor(maps: list[Tensor], map_grads: list[Tensor]) -> Tensor:
    """|Σ over positions of map × gradient|: how much a sample's loss changes, to first order, when the map is zero.

    The mean over samples of the absolute value; several calls of one layer count as positions.
    """
    changes = [(a * g).flatten(1).unflatten(1, (a.shape[1], -1)).sum(2) for a, g in zip(maps, map_grads, strict=True)]
    return torch.stack(changes).sum(0).abs().sum(0)


@statistic(finish=mean_over_samples)
def map_rank(maps: list[Tensor]) -> Tensor:
    """Mean rank of the feature map, seen as a matrix of its last two dimensions.

    A linear layer's map is one row of positions, or a single number, so that its rank tells how often it is not zero.
    """
    means = []
    for a in maps:
        pictures = a if a.ndim > 3 else a.reshape(*a.shape[:2], 1, -1)
        ranks = torch.linalg.matrix_rank(pictures).double()
        means.append(ranks.reshape(*a.shape[:2], -1).mean(2))
    return torch.stack(means).mean(0).sum(0)


def _spread(total: Tensor, samples: int) -> Tensor:
    mean, mean_square = total / samples
    variance = mean_square - mean.square()
    deviation = torch.where(variance > CONSTANT * mean_square, variance, 0).sqrt()
    outputs, patches = deviation[..., :-1], deviation[..., -1:]
    return torch.where(patches > 0, outputs / patches, 0).sum(1).reshape(-1)


@statistic(finish=_spread)
def spread(inputs: Tensor, weight: Tensor) -> Tensor:
    """Σ over positions of (standard deviation of the output over samples) / (that of the patch it was computed from).

    The patch's is taken over samples and all numbers in it; a position where it is constant counts nothing. Deviations
    divide by the count. The bias moves no deviation, so the output is taken without it.
    """
    x = inputs.double()
    y = x @ weight.double().reshape(len(x), -1, x.shape[-1]).mT.unsqueeze(1)
    first = torch.cat([y.sum(1), x.mean(3).sum(1).unsqueeze(2)], 2)
    second = torch.cat([y.square().sum(1), x.square().mean(3).sum(1).unsqueeze(2)], 2)
    return torch.stack([first, second])


@statistic
def norm_scale(model: nn.Module, data: Any, exclude: tuple[Exclude, ...]) -> Values:
    """|γ| of the norm that alone takes the layer's output (an activation may stand between), from one batch.

    1 where there is no such norm, or one without scales: what nothing scales has a scale of 1. It competes with the
    others as such; leave those layers out with `exclude` if only scaled channels are meant to go.

    Raises:
        ValueError: no layer at all has a norm behind it.
    """
    layers = prunable(model, exclude)
    x = next((x for x, _ in batches(data)), None)
    if x is None:
        raise ValueError("the calibration data are empty: not one sample to find the norms with")
    following = Following()
    with observed(model), recording(model, layers, following) as recorders, following:
        run(model, x, None, [layer.weight for layer in layers.values()], cross_entropy, want_grad=False)
    reject_silent(recorders)
    scales = {name: [_scale(call["trail"], layers[name]) for call in recorders[name].calls] for name in layers}
    if not any(scale is not None for found in scales.values() for scale in found):
        raise ValueError(
            f"norm_scale: no layer of this {type(model).__name__} is directly followed by a norm with a scale for each "
            f"output (looked at {', '.join(layers)}); choose a criterion that needs none, such as 'l2_filter'"
        )
    values = {}
    for name, found in scales.items():
        one = layers[name].weight.new_ones(len(layers[name].weight))
        values[name] = torch.stack([one if scale is None else scale for scale in found]).mean(0)
    return values


def _scale(trail: dict[str, Any], layer: Layer) -> Tensor | None:
    """|γ| of the norm on a trail, if it has one for each output."""
    gamma = None if trail["norm"] is None else trail["norm"][1]
    return None if gamma is None or gamma.shape != layer.weight.shape[:1] else gamma.detach().abs()


@statistic
def relevance(model: nn.Module, data: Any, exclude: tuple[Exclude, ...]) -> Values:
    """Relevance of each output for the right answer, by the z⁺ rule; see `pruninglab.relevance`."""
    return explain(model, data, exclude=exclude)


@statistic
def relevance_epsilon(model: nn.Module, data: Any, exclude: tuple[Exclude, ...]) -> Values:
    """The same by the ε rule."""
    return explain(model, data, rule="epsilon", exclude=exclude)


@statistic
def relevance_alphabeta(model: nn.Module, data: Any, exclude: tuple[Exclude, ...]) -> Values:
    """The same by the αβ rule with α = 2, β = −1."""
    return explain(model, data, rule="alphabeta", exclude=exclude)
