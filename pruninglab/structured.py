"""`prune` for what can be cut out: from a criterion and a budget to masks that empty whole channels, heads or blocks."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pruninglab import criteria
from pruninglab.allocation import Allocation, BudgetError
from pruninglab.batches import batches
from pruninglab.channels import channel_scores, choose, masks_of, rank, search
from pruninglab.graph import Graph, GraphError, Inputs, call, trace
from pruninglab.layers import PRUNABLE, Exclude, entries
from pruninglab.masks import Masks
from pruninglab.pruning import check_sparsity
from pruninglab.statistics import collect
from pruninglab.surgery import cut, emptied
from pruninglab.tasks.training import evaluating
from pruninglab.units import Structure

Asking = tuple[criteria.Criterion, Any, Any, Any, "int | torch.Generator", "Exclude | Iterable[Exclude]"]
CLOSE = 0.02  # budgets in FLOPs and time are met to within this fraction, if need be with widths that are not rounded


def prune_structures(
    model: nn.Module,
    unit: Structure,
    budget: Mapping[str, Any],
    allocation: str | Allocation,
    within: Masks | None,
    example_inputs: Inputs | None,
    asking: Asking,
) -> Masks:
    """What `prune` does for a unit that can be cut out; see there."""
    given = {name: value for name, value in budget.items() if value is not None}
    if len(given) != 1:
        what = f"got {', '.join(given)}" if given else "got none"
        raise ValueError(f"give exactly one budget, sparsity=, params=, flops= or latency_ms=; {what}")
    (kind, amount), *_ = given.items()
    if kind == "sparsity":
        check_sparsity(amount)
    elif isinstance(amount, bool) or not amount > 0:
        raise ValueError(f"{kind}={amount!r} is no budget: it must be a positive number")
    inputs = example_inputs if example_inputs is not None else first_sample(asking[1])
    exclude = entries(asking[5])
    graph = trace(model, inputs, exclude)
    if not graph.families:
        raise GraphError(f"no channel of this {type(model).__name__} can be removed: {reasons(graph)}")
    scores = channel_scores(graph, _layer_scores(model, graph, inputs, asking), unit)
    if within is not None:
        scores[emptied(model, within, graph)] = -torch.inf
    rankings = [rank(family, scores, unit) for family in graph.families]
    total = sum(family.channels for family in graph.families)

    def pick(keep: int) -> Tensor:
        return choose(graph, rankings, scores, keep, allocation)

    if kind == "sparsity":
        removed = pick(int(total * (1 - amount) + 0.5))
    else:
        cost = _cost(kind, model, graph, inputs)
        least = sum(sum(ranking.sizes[: ranking.floor]) for ranking in rankings)
        removed = search(cost, pick, least, total, amount)
        if abs(cost(removed) - amount) > CLOSE * amount and unit.multiple_of > 1:
            from dataclasses import replace

            rankings = [rank(family, scores, replace(unit, multiple_of=1)) for family in graph.families]
            least = sum(sum(ranking.sizes[: ranking.floor]) for ranking in rankings)
            removed = search(cost, pick, least, total, amount)
    masks = masks_of(model, graph, removed)
    masks.apply(model)
    return masks


def first_sample(data: Any) -> Inputs:
    """One sample of calibration data, to follow channels with.

    Raises:
        GraphError: there are no data either.
    """
    if data is None:
        raise GraphError("example_inputs= is needed to follow channels: one batch of what the model is called with")
    x = next(iter(batches(data)))[0]
    if isinstance(x, Mapping):
        return {key: value[:1] if isinstance(value, Tensor) else value for key, value in x.items()}
    return x[:1]


def reasons(graph: Graph) -> str:
    """Why channels are kept, the most frequent reasons first."""
    from collections import Counter

    return "; ".join(f"{why} ({n} channels)" for why, n in Counter(graph.kept.values()).most_common(3)) or "it has none"


def _layer_scores(model: nn.Module, graph: Graph, inputs: Inputs, asking: Asking) -> dict[str, criteria.Scores]:
    """Ask the criterion about every layer that it can speak of."""
    function, data, loss, initial, seed, _ = asking
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(int(seed))
    wanted = [name for name in criteria.needs(function) if name != "generator"]
    found: dict[str, dict[str, Tensor]] = {}
    if set(wanted) <= {"weight"}:  # any matrix of any module will do, such as those of attention
        parameters = dict(model.named_parameters())
        for name, tensors in graph.cuts.items():
            if name in parameters and parameters[name].ndim > 1 and tensors:
                found[name] = {"weight": parameters[name].detach()}
    else:
        if data is None and not torch.is_grad_enabled():
            raise ValueError("gradients are disabled here; a criterion that asks for them needs them")
        unseen = [module for name, module in model.named_modules() if isinstance(module, PRUNABLE) and _unseen(name, graph)]
        found = collect(model, dict.fromkeys(["weight", *wanted]), data, loss=loss, initial=initial, exclude=unseen)
    return {
        name: criteria.score(function, name, statistics, generator, of_filters=True)
        for name, statistics in found.items()
    }


def _unseen(name: str, graph: Graph) -> bool:
    """Whether a layer never ran as a module: attention reads the weights of its output projection itself."""
    return name not in graph.colouring.ran


def _cost(kind: str, model: nn.Module, graph: Graph, inputs: Inputs) -> Any:
    """What a choice of channels to remove costs: parameters, FLOPs, or milliseconds."""
    from pruninglab import measure

    everything = sum(parameter.numel() for parameter in model.parameters())
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}

    def params(removed: Tensor) -> float:
        alive = graph.alive(removed)
        gone = sum(sizes[name] - int(mask.sum()) * (sizes[name] // mask.numel()) for name, mask in alive.items() if name in sizes)
        return everything - gone

    if kind == "params":
        return params

    def measured(removed: Tensor) -> float:
        small = cut(model, graph, removed, inputs) if removed.any() else model
        if kind == "flops":
            return measure.flops(small, inputs)
        with evaluating(small):
            return measure.latency(lambda: call(small, inputs)).low

    return measured


__all__ = ["BudgetError", "first_sample", "prune_structures", "reasons"]
