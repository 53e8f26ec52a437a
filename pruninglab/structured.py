"""`prune` for what can be cut out: from a criterion and a budget to masks that empty channels, heads or blocks."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pruninglab import criteria
from pruninglab.allocation import Allocation, BudgetError
from pruninglab.batches import Inputs, batches, call
from pruninglab.blocks import block_masks, bypass, removable, see
from pruninglab.channels import channel_scores, choose, masks_of, nearest, rank, search
from pruninglab.criteria.base import OF_BLOCKS
from pruninglab.families import head_families
from pruninglab.graph import Graph, GraphError, trace
from pruninglab.layers import PRUNABLE, Exclude, entries, matches, prunable
from pruninglab.masks import Masks
from pruninglab.pruning import check_sparsity
from pruninglab.statistics import collect
from pruninglab.surgery import emptied
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
    example_inputs: Inputs | Graph | None,
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
    traced: Any = example_inputs if example_inputs is not None else first_sample(asking[1])
    inputs = traced.inputs if isinstance(traced, Graph) else traced
    exclude = entries(asking[5])
    if exclude:
        prunable(model, exclude)  # an entry that matches nothing is an error
    if unit.name == "layer":
        return prune_blocks(model, kind, amount, inputs, exclude, asking)
    graph = trace(model, traced, exclude, whole_heads=unit.name == "head")
    families = head_families(graph) if unit.name == "head" else graph.families
    if not families:
        raise GraphError(f"no {unit.name} of this {type(model).__name__} can be removed: {reasons(graph)}")
    if asking[0] is criteria.random:  # one draw for each channel: a sum of draws would tell how many weights it has
        scores = torch.rand(graph.n, generator=_generator(asking[4]), dtype=torch.float64)
    else:
        scores = channel_scores(graph, _layer_scores(model, graph, inputs, asking), unit)
    if within is not None:
        scores[emptied(model, within, graph)] = -torch.inf
    rankings = [rank(family, scores, unit) for family in families]
    total = sum(family.channels for family in families)

    def pick(keep: int) -> Tensor:
        return choose(graph, rankings, scores, keep, allocation)

    if kind == "sparsity":
        keep = int(total * (1 - amount) + 0.5)
        step = max(max(ranking.sizes) for ranking in rankings)
        try:
            removed = pick(keep)
        except BudgetError:
            removed = None
        if removed is None or abs(total - int(removed.sum()) - keep) > step:  # rounded widths are too coarse for this
            rankings = [rank(family, scores, replace(unit, multiple_of=1)) for family in families]
            removed = pick(keep)
    else:
        cost = _cost(kind, model, graph)

        def meet(wanted: float) -> Tensor:
            least = sum(sum(ranking.sizes[: ranking.floor]) for ranking in rankings)
            found = search(cost, pick, least, total, wanted)
            return found if abs(cost(found) - wanted) <= CLOSE * wanted else nearest(cost, rankings, found, wanted)

        removed = meet(amount)
        if abs(cost(removed) - amount) > CLOSE * amount and unit.multiple_of > 1:  # not with rounded widths
            rankings = [rank(family, scores, replace(unit, multiple_of=1)) for family in families]
            removed = meet(amount)
    masks = masks_of(model, graph, removed)
    masks.apply(model)
    return masks


def prune_blocks(
    model: nn.Module, kind: str, amount: float, inputs: Inputs, exclude: tuple[Exclude, ...], asking: Asking
) -> Masks:
    """Empty the residual blocks with the lowest scores: a fraction of them, or as many as a budget asks for.

    A criterion may ask for `block_input` and `block_output`, (samples, …) tensors; any other one speaks for a block
    with the mean of its weights' scores.
    """
    blocks = [
        name
        for name in removable(model, inputs)
        if not any(matches(e, name, model.get_submodule(name)) for e in exclude)
    ]
    if not blocks:
        raise GraphError(f"{type(model).__name__} has no block that returns its input when its weights are zero")
    scores = _block_scores(model, blocks, inputs, asking)
    order = sorted(blocks, key=scores.__getitem__)
    if kind == "sparsity":
        removed = order[: len(blocks) - int(len(blocks) * (1 - amount) + 0.5)]
    else:
        cost = _blocks_cost(kind, model, inputs)
        enough = [n for n in range(len(order) + 1) if cost(order[:n]) <= amount]
        if not enough:
            raise BudgetError(f"{kind}={amount:g} is not possible: without any block it still is {cost(order):g}")
        removed = order[: enough[0]]
    masks = block_masks(model, blocks, removed)
    masks.apply(model)
    return masks


def _blocks_cost(kind: str, model: nn.Module, inputs: Inputs) -> Any:
    from pruninglab import measure

    def cost(removed: list[str]) -> float:
        small = bypass(model, removed)
        if kind == "params":
            return sum(parameter.numel() for parameter in small.parameters())
        if kind == "flops":
            return measure.flops(small, inputs)
        with evaluating(small):
            return measure.latency(lambda: call(small, inputs)).low

    return cost


def _block_scores(model: nn.Module, blocks: list[str], inputs: Inputs, asking: Asking) -> dict[str, float]:
    function, data = asking[:2]
    if set(criteria.needs(function)) & set(OF_BLOCKS):
        x = inputs if data is None else next(iter(batches(data)))[0]
        found = {}
        for name, (args, _, result) in see(model, blocks, x).items():
            known = {"block_input": args[0], "block_output": result}
            found[name] = float(function(**{need: known[need] for need in criteria.needs(function)}))
        return found
    layers = _layer_scores(model, None, inputs, asking)
    means = {}
    for block in blocks:
        own = [layer for name, layer in layers.items() if name.startswith(f"{block}.")]
        means[block] = sum(float(s.tensor().double().sum()) for s in own) / max(1, sum(s.numel() for s in own))
    return means


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


def _generator(seed: int | torch.Generator) -> torch.Generator:
    return seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(int(seed))


def _layer_scores(model: nn.Module, graph: Graph | None, inputs: Inputs, asking: Asking) -> dict[str, criteria.Scores]:
    """Ask the criterion about every layer that it can speak of."""
    function, data, loss, initial, seed, _ = asking
    generator = _generator(seed)
    wanted = [name for name in criteria.needs(function) if name != "generator"]
    found: dict[str, dict[str, Tensor]] = {}
    turned: set[str] = set()
    if set(wanted) <= {"weight"}:  # any matrix of any module will do, such as those of attention
        parameters = dict(model.named_parameters())
        turned = set() if graph is None else {name for name, dim in graph.births if dim == 1}
        for name in parameters if graph is None else graph.cuts:
            if name in parameters and parameters[name].ndim > 1:
                weight = parameters[name].detach()
                found[name] = {"weight": weight.transpose(0, 1) if name in turned else weight}  # outputs come first
    else:
        layers = {name: module for name, module in model.named_modules() if isinstance(module, PRUNABLE)}
        ran = layers.keys() if graph is None else graph.colouring.ran
        # Attention reads the weights of its output projection itself, which therefore never runs as a module.
        unseen = [module for name, module in layers.items() if name not in ran]
        found = collect(model, dict.fromkeys(["weight", *wanted]), data, loss=loss, initial=initial, exclude=unseen)
    scores = {
        name: criteria.score(function, name, statistics, generator, of_filters=True)
        for name, statistics in found.items()
    }
    for name in turned & scores.keys():
        if len(scores[name].shape) > 1:
            scores[name] = criteria.Scores.of(name, scores[name].tensor().transpose(0, 1))
    return scores


def _cost(kind: str, model: nn.Module, graph: Graph) -> Callable[[Tensor], float]:
    """What a choice of channels to remove leaves: parameters, FLOPs, or milliseconds by a table measured now."""
    if kind == "flops":
        return graph.flops
    if kind == "latency_ms":
        from pruninglab.latency import LatencyTable

        return LatencyTable(model, graph).predict
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    everything = sum(sizes.values())

    def params(removed: Tensor) -> float:
        left = graph.alive_sizes(removed)
        return everything - sum(round(sizes[name] * (1 - left[name])) for name in left if name in sizes)

    return params
