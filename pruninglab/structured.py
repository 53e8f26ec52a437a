"""`prune` for what can be cut out: from a criterion and a budget to masks that empty channels, heads or blocks."""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pruninglab import allocation as allocations
from pruninglab import criteria
from pruninglab.allocation import Allocation, BudgetError
from pruninglab.batches import Inputs, batches, call, length, to_device
from pruninglab.blocks import block_masks, bypass, removable, see, without_weights
from pruninglab.channels import by_name, channel_scores, choose, masks_of, nearest, rank, search
from pruninglab.criteria.base import OF_BLOCKS
from pruninglab.families import Family, head_families
from pruninglab.graph import Graph, GraphError, trace
from pruninglab.ladders import channel_ladders
from pruninglab.layers import PRUNABLE, Exclude, matches, prunable
from pruninglab.masks import Masks
from pruninglab.naming import few, label
from pruninglab.progress import quietly
from pruninglab.scoring import generator_of
from pruninglab.statistics import collect
from pruninglab.surgery import NothingEmptied, check_fit, emptied, rehearse
from pruninglab.tasks.training import evaluating
from pruninglab.units import Structure

CLOSE = 0.02  # budgets in FLOPs and time are met to within this fraction, if need be with widths that are not rounded


@dataclass(frozen=True)
class Question:
    """What a criterion is asked with: the arguments of `prune` of these names."""

    criterion: criteria.Criterion
    data: Any
    loss: Any
    initial: Any
    seed: int | torch.Generator
    exclude: tuple[Exclude, ...]


def prune_structures(
    model: nn.Module,
    unit: Structure,
    budget: tuple[str, float],
    allocation: str | Allocation,
    within: Masks | None,
    example_inputs: Inputs | Graph | None,
    question: Question,
) -> Masks:
    """What `prune` does for a unit that can be cut out; see there."""
    kind, amount = budget
    traced: Any = example_inputs if example_inputs is not None else first_sample(question.data, model)
    inputs = traced.inputs if isinstance(traced, Graph) else traced
    if question.exclude:
        prunable(model, question.exclude)  # an entry that matches nothing is an error
    if unit.name == "layer":
        return prune_blocks(model, kind, amount, inputs, question, within)
    graph, scores, families = scored_channels(model, unit, traced, question)
    gone = torch.zeros(graph.n, dtype=torch.bool)
    if within is not None:
        check_fit(model, within)
        with suppress(NothingEmptied):
            gone = emptied(model, within, graph)
        scores[gone] = -torch.inf
    price = None if kind == "sparsity" else _cost(kind, model, graph)  # it does not change with what must stay
    while True:
        removed = _chosen(model, unit, amount, price, allocation, graph, families, scores, gone, question.data)
        try:
            if removed.any():  # what cannot be cut out is refused before any zero is written
                rehearse(model, graph, removed, inputs)
            break
        except GraphError as error:  # some of it may do without the channels that meet there
            graph, families = _around(model, graph, unit, gone, question.exclude, error)
    masks = _also(masks_of(model, graph, removed), within)
    masks.apply(model)
    return masks


def _also(masks: Masks, within: Masks | None) -> Masks:
    """Masks that remove what others removed, too: single weights, say."""
    if within is None:
        return masks
    both = {name: mask & within[name].to(mask.device) for name, mask in masks.items() if name in within}
    return Masks({**within, **masks, **both})


def _around(
    model: nn.Module, graph: Graph, unit: Structure, gone: Tensor, exclude: tuple[Exclude, ...], error: GraphError
) -> tuple[Graph, list[Family]]:
    """The graph and its families without the channels that cannot be cut out, which is said; or the error again."""
    if unit.name == "head" or not len(error.channels) or bool(gone[error.channels].any()):
        raise error
    again = graph.keeping(model, error.channels, "a number in the forward does not follow", exclude)
    if not again.families:
        raise error
    stay = torch.zeros(graph.n, dtype=torch.bool)
    stay[list(again.kept.keys() - graph.kept.keys())] = True
    names = [name for (name, _), born in graph.births.items() if bool(stay[born[born >= 0]].any())]
    warnings.warn(f"the channels of {few(names)} stay: {error}", stacklevel=4)
    return again, again.families


def _chosen(
    model: nn.Module,
    unit: Structure,
    amount: float,
    price: Callable[[Tensor], float] | None,
    allocation: str | Allocation,
    graph: Graph,
    families: list[Family],
    scores: Tensor,
    gone: Tensor,
    data: Any,
) -> Tensor:
    """Which channels go, (channels,) bool, beside those that are gone: those with the lowest scores, to the budget.

    `amount` is the fraction of channels to remove, or, with a `price` of what stays, how much that may be.
    """
    total = sum(family.channels for family in families)

    def left(removed: Tensor) -> float:
        """How many channels stay, or what they cost."""
        return total - int(removed.sum()) if price is None else price(removed | gone)

    def attempt(multiple_of: int) -> tuple[Tensor, bool]:
        """The channels to remove with widths rounded like this, and whether that is near enough to the budget."""
        rankings = [rank(family, scores, replace(unit, multiple_of=multiple_of)) for family in families]
        if amount and all(len(ranking.steps) <= ranking.floor for ranking in rankings):
            why = "they only go all together" if unit.floor == 1 else f"none goes without the floor of {unit.floor}"
            raise GraphError(f"no {unit.name} of this {type(model).__name__} can be removed: {why}")
        ladders = cache(lambda: channel_ladders(model, graph, by_name(rankings)))  # a probe knows the same ones again
        share = allocations.with_means(allocation, model, data, lambda _levels: ladders())

        def pick(n: int) -> Tensor:
            return choose(graph, rankings, scores, n, share) | gone

        if price is None:
            step = max(max(ranking.sizes) for ranking in rankings)
            keep = n = int(total * (1 - amount) + 0.5)
            if keep > left(gone) + step:
                raise BudgetError(f"{keep} channels were to be kept, but `within` has only {left(gone)} left")
            removed = pick(keep)
            while (lacking := keep - int(left(removed))) > step and n < total:  # gone where they would stay by now
                n = min(n + lacking, total)
                removed = pick(n)
            return removed, abs(left(removed) - keep) <= step
        with quietly():
            removed = search(left, pick, sum(ranking.least for ranking in rankings), total, amount)
        if abs(left(removed) - amount) > CLOSE * amount:
            removed = nearest(left, rankings, removed, amount) | gone
        return removed, abs(left(removed) - amount) <= CLOSE * amount

    try:
        removed, near = attempt(unit.multiple_of)
    except BudgetError:
        if unit.multiple_of == 1:
            raise
        near = False
    if not near and unit.multiple_of > 1:  # rounded widths are too coarse for this
        removed, _ = attempt(1)
    return removed


def scored_channels(
    model: nn.Module, unit: Structure, example_inputs: Inputs | Graph, question: Question
) -> tuple[Graph, Tensor, list[Family]]:
    """The channels of a model, their scores, (channels,), and the families that can be removed.

    Raises:
        GraphError: nothing can.
    """
    graph = trace(model, example_inputs, question.exclude, whole_heads=unit.name == "head")
    families = head_families(graph) if unit.name == "head" else graph.families
    if not families:
        raise GraphError(f"no {unit.name} of this {type(model).__name__} can be removed: {reasons(graph)}")
    if inspect.unwrap(question.criterion) is criteria.random:
        # One draw for each channel: a sum of draws would tell how many weights it has.
        scores = torch.rand(graph.n, generator=generator_of(question.seed), dtype=torch.float64)
    else:
        scores = channel_scores(graph, _layer_scores(model, graph, question), unit)
    return graph, scores, families


def prune_blocks(
    model: nn.Module, kind: str, amount: float, inputs: Inputs, question: Question, within: Masks | None
) -> Masks:
    """Empty the residual blocks with the lowest scores: a fraction of them, or as many as a budget asks for.

    A criterion may ask for `block_input` and `block_output`, (samples, …) tensors, and for `generator`; its scores are
    averaged over the samples of all batches. Any other criterion speaks for a block with the mean of its weights'
    scores. What `within` removed goes first.

    Raises:
        GraphError: there is no such block. BudgetError: the budget cannot be met.
        ValueError: a score is NaN, or the criterion asks for both the block's and a weight's statistics.
    """
    blocks = [
        name
        for name in removable(model, inputs)
        if not any(matches(e, name, model.get_submodule(name)) for e in question.exclude)
    ]
    if not blocks:
        raise GraphError(f"{type(model).__name__} has no block that returns its input when its weights are zero")
    scores = _block_scores(model, blocks, inputs, question)
    if within is not None:
        check_fit(model, within)
    gone = set() if within is None else set(without_weights(model, within)) & set(blocks)
    order = sorted(blocks, key=lambda block: (block not in gone, scores[block]))
    if kind == "sparsity":
        stay = int(len(blocks) * (1 - amount) + 0.5)
        if stay > len(blocks) - len(gone):
            raise BudgetError(f"{stay} blocks were to be kept, but `within` has only {len(blocks) - len(gone)} left")
        removed = order[: len(blocks) - stay]
    else:
        cost = _blocks_cost(kind, model, inputs)
        enough = [n for n in range(len(gone), len(order) + 1) if cost(order[:n]) <= amount]
        if not enough:
            raise BudgetError(f"{kind}={amount:g} is not possible: without any block it still is {cost(order):g}")
        removed = order[: enough[0]]
    masks = _also(block_masks(model, blocks, removed), within)
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


def _block_scores(model: nn.Module, blocks: list[str], inputs: Inputs, question: Question) -> dict[str, float]:
    function, data, wanted = question.criterion, question.data, criteria.needs(question.criterion)
    if set(wanted) & set(OF_BLOCKS):
        known, found, samples = {"generator": generator_of(question.seed)}, dict[str, float](), 0
        if others := set(wanted) - set(OF_BLOCKS) - set(known):
            raise ValueError(
                f"criterion {label(function)!r} asks for {', '.join(sorted(others))}, which is of weights: beside "
                f"{' and '.join(OF_BLOCKS)} a criterion of blocks can ask for generator alone"
            )
        for x in [inputs] if data is None else (x for x, _ in batches(data)):
            n = length(x, "data")
            samples += n
            for name, (args, _, result) in see(model, blocks, x).items():
                known |= {"block_input": args[0], "block_output": result}
                score = float(function(**{need: known[need] for need in wanted}))
                if math.isnan(score):
                    raise ValueError(f"criterion {label(function)!r} gave NaN for block {name!r}")
                found[name] = found.get(name, 0.0) + n * score
        return {name: total / samples for name, total in found.items()}
    layers = _layer_scores(model, None, question)
    means = {}
    for block in blocks:
        own = [layer for name, layer in layers.items() if name.startswith(f"{block}.")]
        means[block] = sum(float(s.tensor().double().sum()) for s in own) / max(1, sum(s.numel() for s in own))
    return means


def first_sample(data: Any, model: nn.Module) -> Inputs:
    """One sample of calibration data, where the model is, to follow channels with.

    Raises:
        GraphError: there are no data either. ValueError: they are empty.
    """
    if data is None:
        raise GraphError("example_inputs= is needed to follow channels: one batch of what the model is called with")
    x = next((x for x, _ in batches(data)), None)
    if x is None:
        raise ValueError("the calibration data are empty: not one sample to follow channels with")
    x = to_device(x, next(model.parameters()).device)
    if isinstance(x, Mapping):
        return {key: value[:1] if isinstance(value, Tensor) else value for key, value in x.items()}
    return x[:1]


def reasons(graph: Graph) -> str:
    """Why channels are kept, the most frequent reasons first."""
    from collections import Counter

    return "; ".join(f"{why} ({n} channels)" for why, n in Counter(graph.kept.values()).most_common(3)) or "it has none"


def _layer_scores(model: nn.Module, graph: Graph | None, question: Question) -> dict[str, criteria.Scores]:
    """Ask the criterion about every layer that it can speak of."""
    function, generator = question.criterion, generator_of(question.seed)
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
        names, given = dict.fromkeys(["weight", *wanted]), {"loss": question.loss, "initial": question.initial}
        found = collect(model, names, question.data, exclude=unseen, **given)
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
