"""The exercises of chapter 6: a layer's curve, the price that meets a budget, and the exact table.

As in `answers`: the library's answer, and the properties that every right one has, from the plain to the subtle.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruninglab.allocation.rate_distortion import solve
from pruninglab.notebook.exercises import exercise

Function = Callable[..., Any]
Lists = Sequence[Sequence[float]]


# ── distortion_curve ──────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def _distortion_curve(model: nn.Module, x: Tensor, weight: nn.Parameter, levels: Sequence[float]) -> list[float]:
    whole, before = model(x), weight.detach().clone()
    order, curve = before.abs().flatten().argsort(), []
    try:
        for level in levels:
            pruned = before.flatten().clone()
            pruned[order[: int(level * len(order))]] = 0
            weight.copy_(pruned.view_as(before))
            curve.append(float((model(x) - whole).square().mean()))
    finally:
        weight.copy_(before)
    return curve


distortion_curve = exercise("distortion_curve", _distortion_curve)


def _small_net() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(20, 6)


@distortion_curve.holds("it gives one number for each level, none where nothing is removed")
def _(f: Function) -> None:
    net, x = _small_net()
    got = f(net, x, net[0].weight, [0.0, 0.5, 1.0])
    assert isinstance(got, list), f"it gave {type(got).__name__}, not a list"
    assert len(got) == 3, f"three levels went in, {len(got)} numbers came out"
    assert all(isinstance(d, float) for d in got), f"it gave {[type(d).__name__ for d in got]}: numbers, not tensors"
    assert abs(got[0]) < 1e-12, f"at level 0 the outputs change by {got[0]:.3g}: compare with the unpruned outputs"


@distortion_curve.holds("it is the mean squared change of the outputs, without the smallest weights")
def _(f: Function) -> None:
    net = nn.Sequential(nn.Linear(3, 1, bias=False))
    net[0].weight = nn.Parameter(torch.tensor([[2.0, -1.0, -3.0]]))
    got = f(net, torch.eye(3), net[0].weight, [0.34, 0.67])
    want = [1 / 3, 5 / 3]
    assert all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(got, want, strict=True)), (
        f"with weights 2, −1, −3 and each input alone, losing one and two weights gave {got}, not {want}"
    )


@distortion_curve.holds("every level begins with the whole weight")
def _(f: Function) -> None:
    net, x = _small_net()
    rising, falling = f(net, x, net[2].weight, [0.25, 0.75]), f(net, x, net[2].weight, [0.75, 0.25])
    assert np.allclose(rising, falling[::-1], rtol=1e-4), f"levels up gave {rising}, the same levels down {falling}"


@distortion_curve.holds("it rounds down: ⌊level × n⌋ weights go")
def _(f: Function) -> None:
    net = nn.Sequential(nn.Linear(3, 1, bias=False))
    net[0].weight = nn.Parameter(torch.tensor([[2.0, -1.0, -3.0]]))
    (got,) = f(net, torch.eye(3), net[0].weight, [0.6])
    assert math.isclose(got, 1 / 3, rel_tol=1e-5), f"0.6 of three weights is one weight; it gave {got:.3g}, not 0.333"


@distortion_curve.holds("the model is afterwards what it was")
def _(f: Function) -> None:
    net, x = _small_net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    f(net, x, net[0].weight, [0.5, 0.9])
    left = [name for name, p in net.named_parameters() if not torch.equal(p, before[name])]
    assert not left, f"{', '.join(left)} has other values than before"


# ── price_for ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _price_for(costs: Lists, distortions: Lists, budget: float) -> list[int]:
    def choice(price: float) -> list[int]:
        charged = (
            [d + price * c for c, d in zip(*layer, strict=True)] for layer in zip(costs, distortions, strict=True)
        )
        return [values.index(min(values)) for values in charged]

    def fits(picks: list[int]) -> bool:
        return sum(c[k] for c, k in zip(costs, picks, strict=True)) <= budget

    if fits(choice(0.0)):
        return choice(0.0)
    if sum(min(c) for c in costs) > budget:
        raise ValueError(f"not even the cheapest options fit a budget of {budget}")
    low, high = 0.0, 1.0
    while not fits(choice(high)):
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(choice(middle)) else (middle, high)
    return choice(high)


price_for = exercise("price_for", _price_for)


def _three(seed: int = 0, width: int = 5) -> tuple[list[list[int]], list[list[float]]]:
    rng = np.random.default_rng(seed)
    costs = [sorted(rng.choice(np.arange(1, 60), width, replace=False).tolist(), reverse=True) for _ in range(3)]
    distortions = [[0.0, *np.sort(rng.random(width - 1) * 10.0 ** rng.integers(-2, 2)).tolist()] for _ in range(3)]
    return costs, distortions


def _half(costs: Lists) -> float:
    """A budget half way from the cheapest to the dearest choice."""
    return (sum(map(min, costs)) + sum(map(max, costs))) // 2


def _sums(costs: Lists, distortions: Lists, picks: Sequence[int]) -> tuple[float, float]:
    cost = sum(c[k] for c, k in zip(costs, picks, strict=True))
    return cost, sum(d[k] for d, k in zip(distortions, picks, strict=True))


@price_for.holds("it gives one option for each layer")
def _(f: Function) -> None:
    got = f(*_three(), _half(_three()[0]))
    assert isinstance(got, list), f"it gave {type(got).__name__}, not a list"
    assert len(got) == 3, f"three layers went in, {len(got)} options came out"
    assert all(isinstance(k, (int, np.integer)) for k in got), f"options are numbers of places in the lists, not {got}"


@price_for.holds("a budget that everything fits into gives the least distortion of each layer")
def _(f: Function) -> None:
    got = f([[5, 3, 1], [4, 2, 0]], [[0.0, 1.0, 2.0], [1.0, 0.5, 3.0]], 100)
    assert list(got) == [0, 1], f"the least distortions are options 0 and 1; it chose {got}"


@price_for.holds("the choice never costs more than the budget")
def _(f: Function) -> None:
    for seed in range(20):
        costs, distortions = _three(seed)
        least = sum(min(c) for c in costs)
        cost, _ = _sums(costs, distortions, f(costs, distortions, least + 10))
        assert cost <= least + 10, f"budget {least + 10}, but the choice costs {cost}"


@price_for.holds("one price for all: no other choice at its cost or less has less distortion")
def _(f: Function) -> None:
    for seed in range(20):
        costs, distortions = _three(seed)
        picks = f(costs, distortions, _half(costs))
        cost, distortion = _sums(costs, distortions, picks)
        best = min(
            value
            for other in itertools.product(range(5), repeat=3)
            for spent, value in [_sums(costs, distortions, other)]
            if spent <= cost
        )
        assert distortion <= best + 1e-9, (
            f"for a cost of {cost} distortion {best:.3g} is possible, your choice has {distortion:.3g}: charge every "
            "layer the same price for a unit of cost"
        )


@price_for.holds("it is the lowest such price: the budget is used as far as one price can")
def _(f: Function) -> None:
    for seed in range(20):
        costs, distortions = _three(seed)
        got, want = (_sums(costs, distortions, g(costs, distortions, _half(costs)))[1] for g in (f, _price_for))
        assert got <= want + 1e-9, f"a lower price still meets the budget: distortion {want:.3g} instead of {got:.3g}"


# ── best_within ───────────────────────────────────────────────────────────────────────────────────────────────────


def _best_within(costs: Lists, distortions: Lists, budget: int) -> tuple[float, list[int]]:
    found = solve([np.asarray(c, dtype=np.int64) for c in costs], distortions, budget)
    return found.distortion, list(found.levels)


best_within = exercise("best_within", _best_within)


@best_within.holds("it gives a distortion and one option for each layer that belong together")
def _(f: Function) -> None:
    costs, distortions = _three()
    value, picks = f(costs, distortions, _half(costs))
    assert len(picks) == 3, f"three layers went in, {len(picks)} options came out"
    _, distortion = _sums(costs, distortions, picks)
    assert math.isclose(value, distortion, rel_tol=1e-9), (
        f"it said {value:.4g}, but its options sum to {distortion:.4g}"
    )


@best_within.holds("the choice never costs more than the budget")
def _(f: Function) -> None:
    for seed in range(20):
        costs, distortions = _three(seed)
        budget = sum(min(c) for c in costs) + 7
        cost, _ = _sums(costs, distortions, f(costs, distortions, budget)[1])
        assert cost <= budget, f"budget {budget}, but the choice costs {cost}"


@best_within.holds("nothing may be left over: a choice that costs exactly the budget counts")
def _(f: Function) -> None:
    value, picks = f([[3, 1], [2, 1]], [[0.0, 5.0], [0.0, 1.0]], 5)
    assert list(picks) == [0, 0], f"everything costs exactly the budget of 5; it chose {list(picks)} with {value}"


@best_within.holds("it is the optimum, as trying everything shows")
def _(f: Function) -> None:
    for seed in range(20):
        costs, distortions = _three(seed)
        for budget in (40, 70, 110):
            tried = [_sums(costs, distortions, picks) for picks in itertools.product(range(5), repeat=3)]
            feasible = [value for cost, value in tried if cost <= budget]
            if feasible:
                value, _ = f(costs, distortions, budget)
                assert math.isclose(value, min(feasible), rel_tol=1e-9), (
                    f"budget {budget}: the best of all {len(tried)} choices has {min(feasible):.4g}, yours {value:.4g}"
                )


@best_within.holds("curves may fall where they should rise")
def _(f: Function) -> None:
    value, picks = f([[9, 6, 3], [9, 6, 3]], [[0.0, 4.0, 1.0], [0.0, 1.0, 5.0]], 12)
    assert list(picks) == [2, 0], f"options 2 and 0 cost 12 and sum to 1; it chose {list(picks)} with {value:.3g}"
