"""`prune`: the five answers tied together. Read this file first.

    statistics ──criterion──▶ scores ──unit──▶ scores of units ──allocation──▶ places ──▶ Masks ──▶ zeros in the model

*When* and *how it is repaired* stand outside, in `schedules` and `recovery`: they call `prune` and train.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pruninglab import allocation as allocations
from pruninglab import criteria, units
from pruninglab.allocation.threshold import top_counts, top_masks
from pruninglab.criteria import Scores
from pruninglab.layers import Exclude, Layer, entries, prunable, warn_of_unprunable
from pruninglab.masks import Masks
from pruninglab.naming import label
from pruninglab.scoring import layer_scores
from pruninglab.statistics import Data, Loss

if TYPE_CHECKING:
    from pruninglab.graph import Graph, Inputs
    from pruninglab.ladders import Ladder


def prune(
    model: nn.Module,
    *,
    sparsity: float | None = None,
    params: int | None = None,
    flops: float | None = None,
    latency_ms: float | None = None,
    criterion: str | criteria.Criterion = "magnitude",
    unit: units.Answer = "weight",
    allocation: str | allocations.Allocation = "global",
    data: Data | None = None,
    loss: Loss | None = None,
    initial: nn.Module | Mapping[str, Tensor] | None = None,
    within: Masks | None = None,
    seed: int | torch.Generator = 0,
    exclude: Exclude | Iterable[Exclude] = (),
    example_inputs: "Inputs | Graph | None" = None,
) -> Masks:
    """Choose which weights go, write zeros in their place, and return the masks.

    Sparsity is absolute: asking twice for 0.5 gives 0.5. The count is exact for single weights (the rounded target),
    and within one unit for groups. "n:M" rounds each layer to a whole N below its share, so up to 1/M more goes.

    Args:
        model: any module with `Linear` or `Conv` layers; changed in place.
        sparsity: the fraction of prunable weights to remove, in [0, 1). Left out for an N:M unit, which fixes it.
            For channels the fraction of channels, and so on for other units that can be cut out.
        params: instead of `sparsity`, how many parameters of the whole model (unprunable ones too) may stay non-zero.
        flops: instead, how many floating-point operations a forward pass of `example_inputs` may take (channels).
        latency_ms: instead, how many milliseconds it may take on this machine, on one thread, by a table of its
            layers' times that is measured for this (`latency.LatencyTable`; channels).
        criterion: a name in `CRITERIA`, or a function of statistics; higher scores stay.
        unit: "weight", "row", "block", "RxC", "N:M" (N kept of M) or "n:M" (with an N for each layer), or what a
            function of `units` returns; "channel", "head" or "layer" for what `slim` can cut out afterwards. Channels
            that a number written in the model's forward holds (`view(-1, 256)`) stay, with a warning.
        allocation: "global", "uniform", "isomorphic", "erk", "lamp" or "rate_distortion" (which needs `data`), or a
            function (`partial(global_, min_keep=20)`). Has nothing to decide for an N:M unit.
        data: calibration data, `(x, y)` or batches of them; needed if the criterion asks for more than the weights, or
            the allocation measures.
        loss: `loss(model(x), y)`, the batch's mean; cross-entropy if not given.
        initial: the untrained model or its state dict, for criteria that ask for `initial_weight`.
        within: masks of an earlier pruning; what they removed stays removed.
        seed: for criteria that draw at random.
        exclude: names, globs, module types or modules to leave alone.
        example_inputs: one batch of what the model is called with, to follow its channels; needed for the units
            "channel", "head" and "layer" (the first sample of `data`, if that is given). What `graph.trace` found with
            it will do as well.

    Raises:
        ValueError: none or several budgets, a budget out of range or not to be met, an unknown name, data that are
            missing or empty, NaN in weights or scores. The model is unchanged then.
        BudgetError: the kind of ValueError that tells of a budget that leaves no weight, or no whole unit.
        TypeError: an argument of the wrong kind.
    """
    function, shape = criteria.find(criterion), units.find(unit)
    data = list(data) if isinstance(data, Iterator) else data  # they are read more than once
    if isinstance(shape, units.Structure):
        from pruninglab.structured import Question, prune_structures

        budget = check_budget(sparsity=sparsity, params=params, flops=flops, latency_ms=latency_ms)
        question = Question(function, data, loss, initial, seed, entries(exclude))
        return prune_structures(model, shape, budget, allocation, within, example_inputs, question)
    if flops is not None or latency_ms is not None:
        raise ValueError("zeros make nothing faster: a budget in flops= or latency_ms= needs unit='channel'")
    exclude = entries(exclude)  # it is read more than once
    allocations.find(allocation)
    layers = prunable(model, exclude)
    warn_of_unprunable(model, exclude)
    keep = _budget(model, layers, sparsity, params, shape)
    scores = layer_scores(model, layers, function, data, loss=loss, initial=initial, seed=seed, exclude=exclude)
    left = {name: layer.numel() for name, layer in scores.items()}
    if within is not None:
        left = {name: _left(layer, within) for name, layer in scores.items()}
        scores = {name: _without_removed(layer, within) for name, layer in scores.items()}

    if isinstance(shape, units.Pattern):
        chosen = {name: shape.choose(layer.tensor(), name) for name, layer in scores.items()}
        if within is not None:
            chosen = {name: mask & within[name].to(mask.device) for name, mask in chosen.items()}
        return _applied(chosen, model)
    if keep > sum(left.values()):
        raise ValueError(f"{keep} weights were to be kept, but `within` has only {sum(left.values())} left")
    chosen, carried = {}, 0
    allocation = allocations.with_means(allocation, model, data, partial(_ladders, scores, shape))
    if isinstance(shape, units.Mixture):
        return _applied(_mixed(allocations.allocate(allocation, scores, keep), scores, shape, within), model)
    for rivals, places in _fitted(allocations.allocate(allocation, scores, keep), left).items():
        competing = {name: scores[name] for name in rivals}
        if shape is None:
            chosen |= top_masks(competing, places)
        else:  # what a whole unit overshoots here is taken back from the layers that follow
            masks = _top_units(competing, places + carried, shape, within)
            carried += places - sum(int(mask.sum()) for mask in masks.values())
            chosen |= masks
    if not any(mask.any() for mask in chosen.values()):
        raise allocations.BudgetError(f"{keep} of {sum(left.values())} weights is less than one {label(unit)}")
    return _applied({name: chosen[name] for name in layers}, model)


def _ladders(scores: Mapping[str, Scores], unit: units.Unit, levels: Any) -> "list[Ladder]":
    """The levels of each layer for an allocation that measures."""
    from pruninglab.ladders import pattern_ladders, weight_ladders

    return pattern_ladders(scores, unit.m) if isinstance(unit, units.Mixture) else weight_ladders(scores, levels)


def _mixed(
    places: Mapping[tuple[str, ...], int], scores: Mapping[str, Scores], unit: units.Mixture, within: Masks | None
) -> dict[str, Tensor]:
    """The N best of every M, N being the largest whole number for which a layer's places are enough."""
    chosen = {}
    for rivals, count in places.items():
        shares = top_counts({name: scores[name] for name in rivals}, count) if len(rivals) > 1 else {rivals[0]: count}
        for name, share in shares.items():
            n = share * unit.m // scores[name].numel()
            if not n:
                raise allocations.BudgetError(f"{share} weights of layer {name!r} are less than 1:{unit.m}")
            tensor = scores[name].tensor()
            mask = (
                torch.ones_like(tensor, dtype=torch.bool) if n == unit.m else units.nm(n, unit.m).choose(tensor, name)
            )
            chosen[name] = mask if within is None else mask & within[name].to(mask.device)
    return chosen


def _applied(chosen: dict[str, Tensor], model: nn.Module) -> Masks:
    masks = Masks(chosen)
    masks.apply(model)
    return masks


def _budget(
    model: nn.Module,
    layers: Mapping[str, Layer],
    sparsity: float | None,
    params: int | None,
    unit: units.Unit,
) -> int:
    """How many of the prunable weights stay. Raises as `prune` says."""
    given = {name: value for name, value in (("sparsity", sparsity), ("params", params)) if value is not None}
    total = sum(layer.weight.numel() for layer in layers.values())
    if isinstance(unit, units.Pattern):
        if given and not (sparsity is not None and params is None and math.isclose(sparsity, 1 - unit.density)):
            raise ValueError(f"unit {unit.name} fixes sparsity={1 - unit.density:g}; leave the budget out, not {given}")
        return round(total * unit.density)
    one_budget(sparsity=sparsity, params=params)
    if sparsity is not None:
        keep = math.floor(total * (1 - check_sparsity(sparsity)) + 0.5)
        if not keep:
            raise allocations.BudgetError(f"sparsity={sparsity} would leave none of {total} weights")
        return keep
    fixed = sum(parameter.numel() for parameter in model.parameters()) - total
    if not isinstance(params, Integral) or not fixed < params <= fixed + total:
        raise ValueError(
            f"params={params!r} is not possible: {fixed} parameters are not prunable, {total} are, "
            f"so {fixed + 1} to {fixed + total} can stay"
        )
    return int(params) - fixed


def one_budget(**amounts: Any) -> tuple[str, Any]:
    """Which budget was given, and how much. Raises a ValueError unless exactly one was."""
    given = {name: value for name, value in amounts.items() if value is not None}
    if len(given) != 1:
        known = ", ".join(f"{name}=" for name in amounts)
        raise ValueError(f"give exactly one budget of {known}; got {', '.join(given) or 'none'}")
    return next(iter(given.items()))


def check_budget(**amounts: Any) -> tuple[str, float]:
    """The same, after a look at the amount: a sparsity as in `check_sparsity`, anything else a positive number."""
    kind, amount = one_budget(**amounts)
    if kind == "sparsity":
        return kind, check_sparsity(amount)
    if isinstance(amount, bool) or not isinstance(amount, Real) or not float(amount) > 0:
        raise ValueError(f"{kind}={amount!r} is no budget: it must be a positive number")
    return kind, float(amount)


def check_sparsity(sparsity: object) -> float:
    """`sparsity` as a float. Raises unless it is a number in [0, 1)."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise TypeError(f"sparsity must be a number in [0, 1), not {sparsity!r}")
    number = float(sparsity)
    if not 0 <= number < 1:
        percent = f" For {number:g} %, write {number / 100:g}." if 1 < number < 100 else ""
        raise ValueError(f"sparsity is the fraction removed, in [0, 1); {sparsity} is not.{percent}")
    return number


def _left(layer: Scores, within: Masks) -> int:
    """How many weights of a layer `within` left."""
    if layer.name not in within or within[layer.name].shape != layer.shape:
        has = ", ".join(f"{name} {tuple(mask.shape)}" for name, mask in within.items())
        raise ValueError(f"`within` has no mask for layer {layer.name!r} of shape {tuple(layer.shape)}; it has {has}")
    return int(torch.count_nonzero(within[layer.name]))


def _without_removed(layer: Scores, within: Masks) -> Scores:
    """Scores in which what `within` removed ranks below everything."""
    tensor = layer.tensor()
    tensor = tensor.clamp(min=torch.finfo(tensor.dtype).min)
    return Scores.of(layer.name, tensor.masked_fill(~within[layer.name].to(tensor.device), -torch.inf))


def _fitted(places: dict[tuple[str, ...], int], left: Mapping[str, int]) -> dict[tuple[str, ...], int]:
    """Places of which none asks for more than is left; what one cannot use goes where there is most room."""
    room = {who: sum(left[name] for name in who) - n for who, n in places.items()}
    spare = sum(-space for space in room.values() if space < 0)
    fitted = {who: n + min(room[who], 0) for who, n in places.items()}
    for who in sorted(places, key=lambda who: -room[who]):
        more = min(spare, max(room[who], 0))
        fitted[who] += more
        spare -= more
    return fitted


def _top_units(
    scores: Mapping[str, Scores], keep: int, unit: units.Grouping, within: Masks | None
) -> dict[str, Tensor]:
    """Whole units (what `within` left of them), best mean score first, as near to `keep` weights as units allow."""
    labels = {name: unit.labels(layer.shape) for name, layer in scores.items()}
    alive = {name: torch.ones_like(labels[name]) if within is None else within[name].cpu().long() for name in scores}
    sizes = {name: torch.zeros(int(ids.max()) + 1, dtype=torch.int64) for name, ids in labels.items()}
    means = []
    for name, layer in scores.items():
        ids, present = labels[name].flatten(), alive[name].flatten()
        sizes[name].index_add_(0, ids, present)
        values = torch.where(present > 0, layer.tensor().double().cpu().flatten(), 0)
        sums = torch.zeros(len(sizes[name]), dtype=torch.float64).index_add_(0, ids, values)
        if torch.isnan(sums).any():
            raise ValueError(f"a {unit.name} of layer {name!r} has scores of +∞ and of −∞, so its mean is no number")
        means.append(torch.where(sizes[name] > 0, sums / sizes[name], -torch.inf))
    order = torch.cat(means).argsort(descending=True, stable=True)
    cumulated = torch.cat(list(sizes.values()))[order].cumsum(0)
    reached = torch.cat([torch.zeros(1, dtype=torch.int64), cumulated])
    best = int((reached - keep).abs().argmin())
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order[:best]] = True
    parts = kept.split([len(size) for size in sizes.values()])
    return {
        name: (part[labels[name]] & alive[name].bool()).to(next(layer.pieces()).device)
        for part, (name, layer) in zip(parts, scores.items(), strict=True)
    }
