"""Choosing whole channels, heads or blocks: `prune` for the units that can be cut out.

A criterion scores weights or filters, as always. Here the scores of all that goes together are added up, families of
channels compete by the allocation, and the masks that come out empty whole channels, so that `surgery.slim` can make
the network really smaller.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from pruninglab import allocation as allocations
from pruninglab.allocation import Allocation, BudgetError
from pruninglab.criteria import Scores
from pruninglab.criteria.base import PIECE
from pruninglab.families import HEADS, Family
from pruninglab.graph import Graph, GraphError
from pruninglab.masks import Masks
from pruninglab.units import Structure

SHARE = 1e-2  # in an uneven family: the weight of the layers' shares against the number of channels in all


def masks_of(model: nn.Module, graph: Graph, removed: Tensor) -> Masks:
    """Masks that empty the removed channels, of every parameter in which there are channels."""
    alive = graph.alive(removed)
    found = {}
    for name, parameter in model.named_parameters():
        if name in graph.cuts:
            mask = alive.get(name, torch.ones(1, dtype=torch.bool))
            found[name] = mask.to(parameter.device).expand(parameter.shape).contiguous()
    if not found:
        raise GraphError("no parameter of this model has channels that could be followed")
    return Masks(found)


def channel_scores(graph: Graph, scores: Mapping[str, Scores], unit: Structure) -> Tensor:
    """The score of each channel, (channels,) float64; NaN where no scored layer has a part in it.

    A layer's weight scores are summed over what belongs to a channel, as an output and as an input. A criterion that
    returns one number for each output of a layer (shape (outputs,)) speaks of the outputs alone.
    """
    total = torch.zeros(graph.n + 1, dtype=torch.float64)  # the last entry stands for "no channel"
    parts = torch.zeros(graph.n + 1, dtype=torch.float64)
    for name, layer in scores.items():
        cuts = [graph.outputs(name)] if len(layer.shape) == 1 else graph.cuts.get(name, [])
        for channels, sums in zip(cuts, _sums(layer, cuts), strict=True):
            values = _normalized(sums.reshape(-1), unit.normalize)
            channels = channels.reshape(-1) % (graph.n + 1)  # −1 is the last
            total.index_add_(0, channels, values.square() if unit.combine == "l2" else values)
            parts.index_add_(0, channels, torch.ones_like(values))
    if unit.combine == "l2":
        total = total.sqrt()
    if unit.combine == "mean":
        total = total / parts
    return torch.where(parts > 0, total, torch.nan)[:-1]


def _sums(layer: Scores, cuts: Sequence[Tensor]) -> list[Tensor]:
    """A layer's scores, summed over where a cut names no channels, for each of the cuts: float64, shaped like it.

    Some rows at a time, so that scores that are made when they are asked for stay in the processor's cache.
    """
    wide = [[d for d, size in enumerate(layer.shape) if channels.shape[d] == 1 < size] for channels in cuts]
    sums = [torch.zeros(channels.shape, dtype=torch.float64) for channels in cuts]
    width = layer.shape[1:].numel()
    rows, first = max(1, PIECE // width), 0
    for piece in layer.pieces(rows * width):
        part = piece.view(-1, *layer.shape[1:]).cpu()
        part = part.to(torch.promote_types(part.dtype, torch.float32))
        for over, total in zip(wide, sums, strict=True):
            place = total if 0 in over else total[first : first + len(part)]
            place += part.sum(over, keepdim=True) if over else part
        first += len(part)
    return sums


def _normalized(values: Tensor, how: str | None) -> Tensor:
    """Scores of one part of one layer, divided by their own mean, ℓ2 norm or largest."""
    if how is None:
        return values
    by = {"mean": values.mean(), "l2": values.norm(), "max": values.max()}[how]
    return values / by if by > 0 else values


@dataclass(frozen=True)
class Ranking:
    """The steps in which a family can shrink: sets of channels, the best first, with the mean score of each."""

    family: Family
    steps: tuple[Tensor, ...]
    values: Tensor
    floor: int

    @cached_property
    def sizes(self) -> list[int]:
        return [len(step) for step in self.steps]

    def channels(self, steps: int) -> int:
        """How many channels the first steps hold."""
        return sum(self.sizes[:steps])

    @property
    def least(self) -> int:
        """How many channels stay in any case."""
        return self.channels(self.floor)


def rank(family: Family, scores: Tensor, unit: Structure) -> Ranking:
    """Best slots first. A slot takes the next best channels of every cell; `multiple_of` joins slots."""
    known = torch.where(torch.isnan(scores), -torch.inf, scores)
    if family.kind == HEADS:
        values = torch.stack([scores[head].nanmean() for head in family.cells]).nan_to_num(nan=0.0)
        order = values.argsort(descending=True, stable=True)
        return Ranking(family, tuple(family.cells[i] for i in order.tolist()), values[order], 1)

    def best_first(channels: Tensor) -> Tensor:
        return channels[known[channels].argsort(descending=True, stable=True)]

    if family.uneven:  # no common step: each channel for itself, and `fit` sees to the ties
        channels = best_first(torch.cat(family.cells))
        return Ranking(family, tuple(channels.split(1)), scores[channels].nan_to_num(nan=0.0), max(1, unit.floor))
    joined = max(1, unit.multiple_of // math.gcd(unit.multiple_of, family.multiple))
    while joined > 1 and family.slots < 4 * joined:  # leave a narrow layer at least four widths to choose from
        joined //= 2
    slots = torch.cat([best_first(cell).view(family.slots, -1) for cell in family.cells], 1)
    groups = slots.split(joined)
    steps = tuple(group.reshape(-1) for group in groups)
    which = torch.arange(len(slots)) // joined  # the step of each slot
    found, counts = scores[slots], torch.zeros(len(steps), dtype=torch.float64)
    counts.index_add_(0, which, (~found.isnan()).sum(1).double())
    values = torch.zeros_like(counts).index_add_(0, which, found.nansum(1)) / counts.clamp(min=1)
    floor, width = 1, family.multiple * len(groups[0])
    while width < unit.floor and floor < len(steps):
        width += family.multiple * len(groups[floor])
        floor += 1
    return Ranking(family, steps, values, floor)


def by_name(rankings: Sequence[Ranking]) -> dict[str, Ranking]:
    """Rankings under names that say which layer leads the family; no two are alike."""
    return {f"{i}|{ranking.family.layers[0]}": ranking for i, ranking in enumerate(rankings)}


def choose(
    graph: Graph, rankings: Sequence[Ranking], scores: Tensor, keep: int, allocation: str | Allocation
) -> Tensor:
    """Which channels go, so that `keep` of those that could go stay (to within half a step): (channels,) bool.

    Raises:
        BudgetError: the floors of the families alone need more.
    """
    needed = sum(ranking.least for ranking in rankings)
    if needed > keep:
        raise BudgetError(f"{keep} channels were to stay, but at least {needed} must, so that no layer is empty")
    named = by_name(rankings)
    pseudo = {name: _spread(ranking, name) for name, ranking in named.items()}
    removed, carried, fixed = torch.zeros(graph.n, dtype=torch.bool), 0, 0
    left: dict[str, int] = {}
    places = allocations.allocate(allocation, pseudo, keep)
    uneven_first = sorted(places.items(), key=lambda item: not any(named[rival].family.uneven for rival in item[0]))
    for rivals, n in uneven_first:
        step = max(max(named[name].sizes) for name in rivals)  # a narrow family does not make up for a wide one
        goal = n + min(max(carried, -step), step)
        staying = dict(zip(rivals, compete([named[name] for name in rivals], goal), strict=True))
        kept = 0
        for name in [name for name in rivals if named[name].family.uneven]:
            kept += _settle(graph, named[name], scores, staying.pop(name), removed)
        fixed += kept
        if len(staying) < len(rivals) and staying:  # the others make up for what ties did not allow
            even = compete([named[name] for name in staying], goal - kept)
            staying = dict(zip(staying, even, strict=True))
        left |= staying
        carried += n - kept - sum(named[name].channels(steps) for name, steps in staying.items())
    _level(named, left, keep - fixed)
    for name, steps in left.items():
        for going in named[name].steps[steps:]:
            removed[going] = True
    return removed


def _level(named: Mapping[str, Ranking], left: dict[str, int], keep: int) -> None:
    """Take single steps from the families that kept most (or give to those that kept least) up to the number asked."""
    gap = keep - sum(named[name].channels(steps) for name, steps in left.items())
    while gap:
        change = 1 if gap > 0 else -1
        found = []
        for name, steps in left.items():
            ranking, new = named[name], steps + change
            if ranking.floor <= new <= len(ranking.steps):
                size = ranking.sizes[min(steps, new)]
                if abs(gap - change * size) < abs(gap):
                    found.append((change * ranking.channels(steps) / sum(ranking.sizes), name, size))
        if not found:
            return
        _, name, size = min(found)
        left[name] += change
        gap -= change * size


def _settle(graph: Graph, ranking: Ranking, scores: Tensor, wanted: int, removed: Tensor) -> int:
    """Mark what goes of an uneven family; returns how many of its channels stay."""
    staying = fit(graph, ranking.family, scores, wanted)
    if wanted < len(staying) == ranking.family.channels:
        warnings.warn(
            f"the channels of {ranking.family.layers[0]} stay: they are shuffled so often that no smaller choice of "
            "them divides evenly everywhere",
            stacklevel=6,
        )
    removed[torch.cat(ranking.family.cells)] = True
    removed[staying] = False
    return len(staying)


def _spread(ranking: Ranking, name: str) -> Scores:
    """The scores of a family as an allocation wants them: one for each channel."""
    values = torch.cat([value.expand(size) for value, size in zip(ranking.values, ranking.sizes, strict=True)])
    return Scores.of(name, values, kind=ranking.family.kind)


def compete(rankings: Sequence[Ranking], keep: int) -> list[int]:
    """How many steps of each family stay: the best first, as near to `keep` channels as steps allow."""
    left = [ranking.floor for ranking in rankings]
    total = sum(ranking.least for ranking in rankings)
    rest = [
        (-value, i, size)
        for i, ranking in enumerate(rankings)
        for value, size in list(zip(ranking.values.tolist(), ranking.sizes, strict=True))[ranking.floor :]
    ]
    for _, i, size in sorted(rest, key=lambda entry: entry[:2]):
        if abs(total + size - keep) > abs(total - keep):
            break
        total += size
        left[i] += 1
    return left


def fit(graph: Graph, family: Family, scores: Tensor, keep: int) -> Tensor:
    """The best channels of an uneven family, as many of `keep` as its ties allow: a small integer program.

    Each tie asks that its blocks lose equally many, which no fixed order of channels does. First comes the number that
    stays, then that each layer loses its share, then the scores.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import lil_matrix

    channels = torch.cat(family.cells).tolist()
    place = {channel: i for i, channel in enumerate(channels)}
    n = len(channels)
    layers = [[place[c] for c in born.tolist() if c in place] for born in graph.births.values()]
    layers = [layer for layer in layers if layer]
    pairs = [pair for tie in family.ties for pair in pairwise(tie)]
    m, total = len(pairs), n + 2 + 2 * len(layers)  # the channels; too few, too many in all; and in each layer
    rows = lil_matrix((m + 2 + len(layers), total))
    for r, (one, other) in enumerate(pairs):
        for block, factor in ((one, len(other)), (other, -len(one))):  # the same fraction of blocks of unlike size
            for channel in block:
                rows[r, place[channel]] += factor
    rows[m, :n] = rows[m + 1, :n] = 1
    low, high = np.zeros(m + 2 + len(layers)), np.zeros(m + 2 + len(layers))
    low[m] = high[m] = keep
    low[m + 1], high[m + 1] = 1, n  # never none at all
    rows[m, n], rows[m, n + 1] = 1, -1
    for i, layer in enumerate(layers):
        for channel in layer:
            rows[m + 2 + i, channel] += 1
        rows[m + 2 + i, n + 2 + 2 * i], rows[m + 2 + i, n + 3 + 2 * i] = 1, -1
        low[m + 2 + i] = high[m + 2 + i] = round(len(layer) * keep / n)
    values = scores[channels].nan_to_num(nan=0.0).numpy()
    span = np.ptp(values) or 1.0
    cost = np.full(total, SHARE)
    cost[:n] = -(SHARE**2) * (values - values.min()) / span
    cost[n : n + 2] = 1.0
    upper = np.full(total, np.inf)  # a layer may hold a channel several times, so slacks have no bound of their own
    upper[:n] = 1
    found = milp(
        cost,
        integrality=np.ones(total),
        bounds=Bounds(np.zeros(total), upper),
        constraints=LinearConstraint(rows.tocsr(), low, high),
        options={"time_limit": 20.0, "mip_rel_gap": 1e-3},
    )
    if found.x is None:
        raise GraphError(f"no choice of channels of {family.layers[0]} fits its ties: {found.message}")
    return torch.tensor([channel for channel, stays in zip(channels, found.x[:n], strict=True) if stays > 0.5])


def search(
    cost: Callable[[Tensor], float], pick: Callable[[int], Tensor], low: int, high: int, budget: float
) -> Tensor:
    """The channels to remove so that `cost` comes nearest to a budget, by bisection on how many stay.

    Raises:
        BudgetError: the budget is below what the fewest channels cost, or above what all cost.
    """
    cheapest, dearest = cost(pick(low)), cost(pick(high))
    if not cheapest <= budget <= dearest:
        raise BudgetError(f"a budget of {budget:g} is not possible: this network can cost {cheapest:g} to {dearest:g}")
    tried = {low: cheapest, high: dearest}
    while high - low > 1:
        middle = (low + high) // 2
        tried[middle] = cost(pick(middle))
        if tried[middle] <= budget:
            low = middle
        else:
            high = middle
    return pick(min(tried, key=lambda keep: (abs(tried[keep] - budget), keep)))


def nearest(cost: Callable[[Tensor], float], rankings: Sequence[Ranking], removed: Tensor, budget: float) -> Tensor:
    """From a choice near a budget, the nearest that single steps of single families lead to."""
    best, gap = removed, abs(cost(removed) - budget)
    while True:
        found = None
        for ranking in rankings:
            if ranking.family.uneven:
                continue
            kept = sum(not bool(best[step[0]]) for step in ranking.steps)
            for left in (kept - 1, kept + 1):
                if ranking.floor <= left <= len(ranking.steps):
                    tried = best.clone()
                    for i, step in enumerate(ranking.steps):
                        tried[step] = i >= left
                    if (now := abs(cost(tried) - budget)) < gap:
                        found, gap = tried, now
        if found is None:
            return best
        best = found
