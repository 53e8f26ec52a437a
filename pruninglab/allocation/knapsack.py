"""One option for each row, the least distortion in all, within one budget: the multiple-choice knapsack problem.

Three steps, each of which works on whole arrays (rows, options):

    dual   charge λ for each unit of cost; then every row can choose for itself, and the λ that meets the budget best
           gives a lower bound that no allocation can beat (Everett 1963; Shoham & Gersho 1988)
    fill   spend what is left of the budget, the largest gain first: a feasible allocation, an upper bound
    core   an option's *reduced cost* is what it loses against its row's best at that λ. An allocation better than the
           upper bound can lose no more in all, unused budget included, than the gap between the bounds, so that hardly
           any options matter; a list of all that is not dominated goes through these (Pisinger 1995 has the idea of
           such a core)

How large the costs are makes no difference: nothing here has a place for each unit of the budget.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

EPS = 1e-12  # of the value compared: smaller differences are rounding
FEW = 60  # options that a core begins with, beside the best of each row: so many take no time
LIMIT = 2_000_000  # partial allocations held at a time; beyond, the search gives up its proof


@dataclass(frozen=True)
class Dual:
    """What the price `slope` says: the best feasible choice at it, and the bound that nothing can beat."""

    slope: float
    bound: float
    picks: Ints


def dual(costs: Ints, distortions: Floats, budget: int) -> Dual:
    """The best price, found by secants: each new price is the slope between the last choice below and above budget.

    The budget must allow the cheapest option of each row.
    """
    rows = np.arange(len(costs))

    def total(picks: Ints) -> tuple[int, float]:
        return int(costs[rows, picks].sum()), float(distortions[rows, picks].sum())

    best = _first(distortions, costs)
    over, least = total(best)
    if over <= budget:
        return Dual(0.0, least, best)
    within = _first(costs, distortions)
    under, most = total(within)
    while True:
        slope = (most - least) / (over - under)
        picks = (distortions + slope * costs).argmin(1)
        cost, distortion = total(picks)
        value = most + slope * under
        if distortion + slope * cost >= value - EPS * abs(value):
            return Dual(slope, value - slope * budget, within)
        if cost <= budget:
            under, most, within = cost, distortion, picks
        else:
            over, least = cost, distortion


def _first(values: NDArray[Any], then: NDArray[Any]) -> Ints:
    """The option of each row with the least value; of equal ones the one with the least of `then`."""
    return np.where(values == values.min(1, keepdims=True), then, np.inf).argmin(1)


def fill(costs: Ints, distortions: Floats, budget: int, picks: Ints) -> Ints:
    """Spend what a choice leaves of the budget: again and again the one change that gains most."""
    picks, rows = picks.copy(), np.arange(len(costs))
    room = budget - int(costs[rows, picks].sum())
    while True:
        more = costs - costs[rows, picks][:, None]
        gain = np.where(more <= room, distortions[rows, picks][:, None] - distortions, 0.0)
        row, option = divmod(int(gain.argmax()), gain.shape[1])
        if gain[row, option] <= 0:
            return picks
        room -= int(more[row, option])
        picks[row] = option


def core(
    costs: Ints, distortions: Floats, budget: int, reduced: Floats, slope: float, radius: float, limit: int
) -> tuple[Ints | None, bool]:
    """The best allocation that is at most `radius` above the dual's bound, if there is one, and whether that is sure.

    An allocation is above the bound by the sum of its reduced costs, and by `slope` for each unit of the budget that it
    leaves. Row after row, a list of partial allocations (cost, distortion, sum of reduced costs) is extended by each
    option that is near enough. Those that another one beats in cost and distortion are dropped, and so are those that
    must end up above the budget, or too far above the bound whatever follows: a change of cost by the rows to come is
    not had for less than the least reduced cost per unit among them. Rows that change it for the least come first, for
    then few ways to end up are left soon.
    """
    alive = reduced <= radius
    picks, count = alive.argmax(1), alive.sum(1)
    if not count.all():
        return None, True
    settled = np.flatnonzero(count == 1)  # nothing to choose there
    open_rows = np.flatnonzero(count > 1)
    if not len(open_rows):
        return (picks if costs[settled, picks].sum() <= budget else None), True
    usual = costs[open_rows, reduced[open_rows].argmin(1)]
    change = np.where(alive[open_rows], costs[open_rows] - usual[:, None], 0)
    each = reduced[open_rows] / np.maximum(np.abs(change), 1)  # for one unit of cost more, or less
    less, more = np.where(change < 0, each, np.inf).min(1), np.where(change > 0, each, np.inf).min(1)
    order = np.minimum(less, more).argsort(kind="stable")
    open_rows, usual, less, more = open_rows[order], usual[order], less[order], more[order]
    later = usual.sum() - usual.cumsum()  # what the rows after each one cost if each does as it likes best
    less, more = (np.append(np.minimum.accumulate(ends[:0:-1])[::-1], np.inf) for ends in (less, more))
    less, more = np.minimum(less, 2 * radius + 1.0), np.minimum(more, slope)
    cost = costs[settled, picks[settled]].sum(keepdims=True)
    distortion = distortions[settled, picks[settled]].sum(keepdims=True)
    lost = reduced[settled, picks[settled]].sum(keepdims=True)
    steps: list[tuple[int, Ints, Ints, int]] = []
    rest = zip(open_rows.tolist(), (budget - later).tolist(), more.tolist(), (-less).tolist(), strict=True)
    for row, goal, up, down in rest:
        options, n = np.flatnonzero(alive[row]), len(cost)
        new_cost = np.add.outer(costs[row, options], cost).ravel()
        new_lost = np.add.outer(reduced[row, options], lost).ravel()
        spare = goal - new_cost
        left = np.flatnonzero(new_lost + spare * np.where(spare > 0, up, down) <= radius)
        if not len(left):
            return None, True
        left = left[new_cost[left].argsort(kind="stable")]  # which is quick on what is sorted in parts
        values = np.add.outer(distortions[row, options], distortion).ravel()[left]
        best = values < np.minimum.accumulate(np.append(np.inf, values[:-1]))
        left, distortion = left[best], values[best]
        if len(left) > limit:
            return None, False
        cost, lost = new_cost[left], new_lost[left]
        steps.append((row, options, left, n))
    best_end = int(distortion.argmin())
    for row, options, left, n in reversed(steps):
        option, best_end = divmod(int(left[best_end]), n)
        picks[row] = options[option]
    return picks, True


def lagrangian(costs: Ints, distortions: Floats, budget: int) -> tuple[Ints, float, float]:
    """The dual's choice, filled up: (option of each row, lower bound, slope)."""
    found = dual(costs, distortions, budget)
    return fill(costs, distortions, budget, found.picks), found.bound, found.slope


def exact(costs: Ints, distortions: Floats, budget: int, limit: int = LIMIT) -> tuple[Ints, float, float]:
    """The optimum: (option of each row, lower bound, slope); the bound is the optimum itself if that was proved.

    The core begins with few options, those that lose least, and takes in half as many again until its radius has
    reached the gap, or what is left of it.
    """
    rows = np.arange(len(costs))
    picks, bound, slope = lagrangian(costs, distortions, budget)
    charged = distortions + slope * costs
    reduced = charged - charged.min(1, keepdims=True)
    value = float(distortions[rows, picks].sum())
    rounding = EPS * max(abs(value), abs(bound))
    near, n = np.sort(reduced[reduced <= value - bound])[len(costs) :], FEW
    while value - bound > rounding:
        radius = min(value - bound, near[n] if n < len(near) else np.inf)
        better, sure = core(costs, distortions, budget, reduced, slope, radius + rounding, limit)
        if not sure:
            return picks, bound, slope
        if better is not None and (found := float(distortions[rows, better].sum())) < value:
            picks, value = better, found
        if value - bound <= radius + rounding:
            break
        n += n // 2
    return picks, value, slope
