"""The allocation that minimises distortion: how much each layer loses is chosen for all layers together.

If the distortions that layers cause add up (Xu et al. 2023, ICCV, §3), the best allocation is the choice of one level
for each layer with the least sum of distortions within a budget. `solve` makes that choice, for any costs.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pruninglab.allocation import knapsack
from pruninglab.allocation.simple import BudgetError
from pruninglab.criteria import Scores
from pruninglab.naming import at_least_one, lookup, whole
from pruninglab.progress import say

ADDITIVE = 1.5  # predicted and true distortion may differ by this factor; beyond, the curves no longer add up
SOLVERS = {"exact": knapsack.exact, "lagrangian": knapsack.lagrangian}


@dataclass(frozen=True)
class Solution:
    """One level for each layer.

    Attributes:
        levels: for each layer the place of its option in the lists that were given.
        cost: of all together, never above the budget.
        distortion: the sum over layers.
        lower_bound: no allocation within the budget has less distortion than this.
        slope: λ, the distortion that one more unit of budget saves, at the bound.
        proved: whether `distortion` is known to be the least there is.
    """

    levels: tuple[int, ...]
    cost: int
    distortion: float
    lower_bound: float
    slope: float
    proved: bool

    @property
    def gap(self) -> float:
        """What `distortion` is above the lower bound at most, as a fraction of it (0 if proved)."""
        if self.proved or self.distortion == self.lower_bound:
            return 0.0
        return (self.distortion - self.lower_bound) / abs(self.lower_bound) if self.lower_bound else float("inf")


def solve(
    costs: Sequence[Any], distortions: Sequence[Any], budget: int, solver: str = "exact", limit: int = knapsack.LIMIT
) -> Solution:
    """Choose one option for each layer so that costs stay within a budget and distortions add up to the least.

    Args:
        costs: for each layer the cost of each of its options: whole numbers of 0 or more in any unit (weights,
            multiply-adds, bytes, microseconds). Layers may have unlike numbers of options.
        distortions: likewise; any finite numbers, which need neither rise nor be convex.
        budget: what the costs may add up to.
        solver: "exact" finds the optimum and proves it; "lagrangian" charges one price for each unit of cost and spends
            what is left over, which is off by `gap` at most.
        limit: how many partial allocations the exact solver may hold; beyond, it returns the best it has, unproved.

    Raises:
        ValueError: no layers, lists that do not match, NaN or infinite distortions, negative costs, an unknown solver.
        BudgetError: not even the cheapest options fit the budget.
        TypeError: costs or a budget that are not whole numbers.
    """
    find = lookup("solver", solver, SOLVERS)
    price, pain = _tables(costs, distortions)
    budget = whole("budget", budget)
    least, most = int(price.min(1).sum()), int(price.max(1).sum())
    if budget < least:
        raise BudgetError(f"no allocation costs {budget} or less: from {least} (least) to {most} is possible")
    options = (limit,) if solver == "exact" else ()
    picks, bound, slope = find(price, pain, budget, *options)
    rows = np.arange(len(price))
    value = float(pain[rows, picks].sum())
    proved = value - bound <= knapsack.EPS * max(abs(value), abs(bound))
    return Solution(tuple(picks.tolist()), int(price[rows, picks].sum()), value, bound, float(slope), proved)


def _tables(costs: Iterable[Any], distortions: Iterable[Any]) -> tuple[knapsack.Ints, knapsack.Floats]:
    """Both as one array (layers, options); shorter lists repeat their last option. Raises as `solve` says."""
    prices, pains = [np.asarray(row) for row in costs], [np.asarray(row, dtype=np.float64) for row in distortions]
    if not prices or len(prices) != len(pains):
        raise ValueError(f"costs and distortions need one list for each layer; got {len(prices)} and {len(pains)}")
    for place, (price, pain) in enumerate(zip(prices, pains, strict=True)):
        if price.ndim != 1 or price.shape != pain.shape or not len(price):
            raise ValueError(f"layer {place} has costs of shape {price.shape} and distortions of shape {pain.shape}")
        if price.dtype.kind not in "iu":
            raise TypeError(f"costs must be whole numbers; layer {place} has {price.dtype}: round them, or scale them")
    lengths = [len(row) for row in prices]
    owner = np.repeat(np.arange(len(prices)), lengths)
    price, pain = np.concatenate(prices).astype(np.int64), np.concatenate(pains)
    for wrong, what in ((price < 0, "a negative cost"), (~np.isfinite(pain), "a distortion that is not finite")):
        if wrong.any():
            first = int(wrong.argmax())
            raise ValueError(f"layer {owner[first]} has {what}: cost {price[first]}, distortion {pain[first]}")
    places = np.minimum(np.arange(max(lengths)), np.array(lengths)[:, None] - 1)
    places += np.cumsum([0, *lengths[:-1]])[:, None]
    return price[places], pain[places]


class Ladder(Protocol):
    """What this room knows of a ladder (see `pruninglab.ladders`): whose it is, and what each level keeps."""

    @property
    def name(self) -> str: ...

    @property
    def kept(self) -> knapsack.Ints: ...


class Probe(Protocol):
    """What measures: see `pruninglab.distortion.Probe`."""

    def curves(
        self, ladders: Sequence[Any], at: Sequence[int], aggregate: str, method: str
    ) -> list[knapsack.Floats]: ...

    def distortion(self, ladders: Sequence[Any], at: Sequence[int], aggregate: str) -> float: ...


def rate_distortion(
    scores: Mapping[str, Scores],
    keep: int,
    *,
    probe: Probe,
    ladders: Callable[[Any], Sequence[Ladder]],
    rounds: int = 1,
    levels: int | Iterable[float] = 101,
    aggregate: str = "mean",
    method: str = "measured",
    solver: str = "exact",
) -> dict[str, int]:
    """The counts that together distort the network's outputs least (Xu et al. 2023), measured on calibration data.

    Afterwards it says how the sum of the curves compares with the true distortion, and warns where they are far apart:
    then the distortions of layers do not add up, and fewer weights at a time (more `rounds`) should go.

    Args:
        scores: of each layer; which of its weights go first.
        keep: how many weights stay in all.
        probe: measures distortion; `prune` makes it from the model and the data.
        ladders: the ladders for so many levels; `prune` makes them from the scores.
        rounds: 1 measures once, on the whole network. With more, the network is pruned in so many rounds (the density
            after round r of R is that of the last to the power r/R) and curves are measured anew on what is left,
            against the outputs of the whole network. Nothing is trained in between.
        levels: as in `distortion_curves`.
        aggregate: likewise.
        method: likewise; "gauss_newton" is several times as fast.
        solver: "exact" or "lagrangian".

    Raises:
        ValueError: fewer than one round, or as `solve` says.
    """
    at_least_one("rounds", rounds)
    rungs = ladders(levels)
    total, least = (sum(int(ladder.kept[end]) for ladder in rungs) for end in (0, -1))
    at, predicted = [0] * len(rungs), 0.0
    for r in range(1, rounds + 1):
        budget = max(keep, round(total * (keep / total) ** (r / rounds))) if keep else 0
        if r == rounds:
            budget = keep
        if budget < least:
            raise BudgetError(f"{budget} of {total} can not be kept with these levels: the last ones keep {least}")
        curves = probe.curves(rungs, at, aggregate, method)
        now = curves[0][at[0]]  # what is distorted already, which is on each curve
        costs = [ladder.kept[level:] for ladder, level in zip(rungs, at, strict=True)]
        found = solve(costs, [curve[level:] - now for curve, level in zip(curves, at, strict=True)], budget, solver)
        at = [level + more for level, more in zip(at, found.levels, strict=True)]
        predicted = now + found.distortion
    _compare(predicted, probe.distortion(rungs, at, aggregate), rounds)
    return _spent(rungs, at, curves, keep)


def _compare(predicted: float, true: float, rounds: int = 1) -> None:
    """Say how far the sum of the curves is from the truth, and warn if that is far."""
    ratio = predicted / true if true else 1.0
    line = f"rate–distortion: the curves predict {predicted:.3g}, the true distortion is {true:.3g} (ratio {ratio:.2f})"
    if say(line) and not 1 / ADDITIVE <= ratio <= ADDITIVE:
        warnings.warn(
            f"the predicted distortion is {ratio:.2f} times the true one: at this sparsity the distortions of layers "
            "do not add up, so another allocation may well be better; compare. Measuring anew often helps: "
            f"partial(rate_distortion, rounds={max(5, 2 * rounds)})",
            stacklevel=5,
        )


def _spent(
    ladders: Sequence[Ladder], at: Sequence[int], curves: Sequence[knapsack.Floats], keep: int
) -> dict[str, int]:
    """What each layer keeps; what lies between levels goes where the next level up would gain most for each weight."""
    places = {ladder.name: int(ladder.kept[level]) for ladder, level in zip(ladders, at, strict=True)}
    gains = {}
    for ladder, level, curve in zip(ladders, at, curves, strict=True):
        if level and (room := int(ladder.kept[level - 1] - ladder.kept[level])):
            gains[ladder.name] = ((curve[level] - curve[level - 1]) / room, int(ladder.kept[0] - ladder.kept[level]))
    for name in sorted(gains, key=lambda name: -gains[name][0]):
        more = min(gains[name][1], keep - sum(places.values()))
        places[name] += more
    return places
