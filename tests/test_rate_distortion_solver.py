"""The solver of rate–distortion against brute force and against an independent one.

Where a test names a fault, it is one of the method's first release: ours must not have it.
"""

import numpy as np
import pytest
from helpers import brute_force
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

from pruninglab.allocation.rate_distortion import solve
from pruninglab.allocation.simple import BudgetError

RELATIVE = 1e-9


def small_instance(seed):
    """Ragged, with ties, zeros and distortions that neither fall nor are convex, at any scale."""
    rng = np.random.default_rng(seed)
    layers = rng.integers(1, 6)
    top = int(rng.choice([3, 12, 1000, 10**9]))
    costs = [rng.integers(0, top, rng.integers(1, 7)) for _ in range(layers)]
    distortions = [rng.random(len(cost)) for cost in costs]
    if rng.random() < 0.4:  # ties
        distortions = [np.round(row, 1) for row in distortions]
    if rng.random() < 0.5:  # mostly falling, as curves are
        distortions = [np.sort(row)[::-1][np.argsort(np.argsort(c))] for row, c in zip(distortions, costs, strict=True)]
    if rng.random() < 0.2:  # what is measured anew may also be less than nothing
        distortions = [row - 0.3 for row in distortions]
    scale = 10.0 ** rng.integers(-9, 10)
    least, most = (sum(int(pick(cost)) for cost in costs) for pick in (np.min, np.max))
    return costs, [row * scale for row in distortions], int(rng.integers(least, most + 1))


def picked(solution, values):
    return sum(row[level] for level, row in zip(solution.levels, values, strict=True))


def test_exact_is_what_brute_force_finds_a_thousand_times():
    for seed in range(1000):
        costs, distortions, budget = small_instance(seed)
        best = brute_force(costs, distortions, budget)
        slack = RELATIVE * max(np.abs(row).max() for row in distortions)
        exact, quick = (solve(costs, distortions, budget, solver) for solver in ("exact", "lagrangian"))
        for found in (exact, quick):
            assert found.cost == picked(found, costs) <= budget
            assert found.distortion == pytest.approx(picked(found, distortions), abs=slack)
            assert found.lower_bound <= best + slack
            assert best <= found.distortion + slack
        assert exact.proved
        assert exact.gap == 0
        assert abs(exact.distortion - best) <= slack, seed


def test_the_gap_of_the_lagrangian_is_a_true_bound():
    gaps = []
    for seed in range(300):
        costs, distortions, budget = small_instance(seed)
        best = brute_force(costs, distortions, budget)
        found = solve(costs, distortions, budget, "lagrangian")
        slack = RELATIVE * max(np.abs(row).max() for row in distortions)
        assert found.distortion - best <= found.gap * abs(found.lower_bound) + slack
        if found.proved:
            assert found.distortion - best <= slack
        gaps.append(found.gap)
    assert min(gaps) == 0 < max(gaps)  # sometimes it knows that it is right, sometimes it does not


def curves_of(layers, levels, seed, noise=0.15):
    """What a network of such layers may look like: kept weights, multiply–adds, and curves with some noise."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(400, 40_000, layers)
    share = np.linspace(0, 1, levels)
    kept = [size - np.floor(share * size).astype(np.int64) for size in sizes]
    positions = rng.choice([1, 49, 196, 1024], layers)
    rise = share ** rng.uniform(1.5, 4, (layers, 1)) * rng.lognormal(0, 1.5, (layers, 1))
    return kept, [k * p for k, p in zip(kept, positions, strict=True)], rise * rng.lognormal(0, noise, rise.shape)


def by_milp(costs, distortions, budget):
    """The same problem for HiGHS: a yes or no for each option, one yes in each layer."""
    rows = np.repeat(np.arange(len(costs)), [len(cost) for cost in costs])
    price, pain = np.concatenate(costs).astype(float), np.concatenate(list(distortions))
    one_each = coo_matrix((np.ones(len(rows)), (rows, np.arange(len(rows)))))
    found = milp(
        pain * 1e5 / pain.max(),  # HiGHS stops at an absolute gap of 1e-6
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(price, -np.inf, budget)],
        integrality=np.ones(len(rows)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    assert found.status == 0
    return found.fun * pain.max() / 1e5


@pytest.mark.parametrize(("seed", "density", "unit"), [(0, 0.5, 0), (1, 0.2, 0), (2, 0.5, 1), (3, 0.1, 1)])
def test_exact_is_what_an_integer_programme_finds(seed, density, unit):
    kept, macs, distortions = curves_of(20, 101, seed)
    costs = (kept, macs)[unit]
    budget = int(density * sum(int(cost[0]) for cost in costs))
    found = solve(costs, distortions, budget)
    assert found.proved
    assert found.distortion == pytest.approx(by_milp(costs, distortions, budget), rel=1e-6)


def test_with_a_small_limit_it_says_that_nothing_is_proved():
    unproved = 0
    for seed in range(20):
        kept, _, distortions = curves_of(20, 101, seed, noise=0.3)
        budget = int(0.3 * sum(int(cost[0]) for cost in kept))
        best = solve(kept, distortions, budget)
        found = solve(kept, distortions, budget, limit=2)
        assert best.proved
        assert found.cost <= budget
        assert found.lower_bound <= best.distortion * (1 + RELATIVE)
        assert best.distortion <= found.distortion * (1 + RELATIVE)
        assert found.proved or found.gap > 0
        unproved += not found.proved
    assert unproved >= 10


@pytest.mark.parametrize("scale", [1e-12, 1e-5, 1e7])
def test_what_distortions_are_counted_in_makes_no_difference(scale):
    kept, _, distortions = curves_of(30, 41, 5)
    budget = int(0.4 * sum(int(cost[0]) for cost in kept))
    one, other = solve(kept, distortions, budget), solve(kept, distortions * scale, budget)
    assert one.levels == other.levels
    assert other.distortion == pytest.approx(one.distortion * scale, rel=1e-9)


def test_what_costs_are_counted_in_makes_no_difference_either():
    kept, _, distortions = curves_of(30, 41, 6)
    budget = int(0.4 * sum(int(cost[0]) for cost in kept))
    in_bytes = [cost * 10**9 for cost in kept]
    assert solve(kept, distortions, budget).levels == solve(in_bytes, distortions, budget * 10**9 + 7).levels


def test_one_layer_gets_its_best_level():
    found = solve([[9, 6, 3, 0]], [[0.0, 5.0, 1.0, 7.0]], 8)
    assert (found.levels, found.cost, found.distortion, found.proved) == ((2,), 3, 1.0, True)


def test_slope_is_what_one_more_unit_saves():
    """On convex curves of one common step: λ is the steepest step that is not taken, or the flattest that is."""
    share = np.arange(11)
    costs, distortions = [10 - share] * 3, [weight * share**2.0 for weight in (1, 2, 5)]
    steps = sorted(weight * (2 * k + 1) for weight in (1, 2, 5) for k in range(10))  # the loss of each unit removed
    for budget in range(30):
        found = solve(costs, distortions, budget)
        removed = 30 - budget
        assert found.distortion == sum(steps[:removed])
        assert steps[removed - 1] <= found.slope <= (steps[removed] if removed < 30 else np.inf)


@pytest.mark.parametrize(
    ("costs", "distortions", "budget", "error", "text"),
    [
        ([], [], 3, ValueError, "one list for each layer; got 0 and 0"),
        ([[1, 0]], [[0, 1], [0, 1]], 3, ValueError, "got 1 and 2"),
        ([[1, 0], [2]], [[0, 1], [0, 1]], 3, ValueError, r"layer 1 has costs of shape \(1,\)"),
        ([[1, 0], []], [[0, 1], []], 3, ValueError, "layer 1"),
        ([[[1, 0]]], [[[0, 1]]], 3, ValueError, "layer 0"),
        ([[1.5, 0.0]], [[0, 1]], 3, TypeError, "whole numbers; layer 0 has float64"),
        ([[1, -1]], [[0, 1]], 3, ValueError, "layer 0 has a negative cost: cost -1"),
        ([[1, 0], [1, 0]], [[0, 1], [0, np.nan]], 3, ValueError, "layer 1 has a distortion that is not finite: .* nan"),
        ([[1, 0]], [[0, np.inf]], 3, ValueError, "not finite: .* inf"),
        ([[1, 0]], [[0, 1]], 0.5, TypeError, "budget must be a whole number"),
        ([[5, 3], [4, 2]], [[0, 1], [0, 1]], 4, BudgetError, r"from 5 \(least\) to 9"),
    ],
)
def test_bad_input_is_told(costs, distortions, budget, error, text):
    with pytest.raises(error, match=text):
        solve(costs, distortions, budget)


def test_an_unknown_solver_is_told():
    with pytest.raises(ValueError, match=r"unknown solver 'lagrange'. Did you mean 'lagrangian'\?"):
        solve([[1, 0]], [[0, 1]], 1, "lagrange")


# ── faults of the release ─────────────────────────────────────────────────────────────────────────────────────────────


def test_fault_1_a_budget_below_the_largest_layer():
    sizes = [16 * 9 * 3, 16 * 16 * 9, 64 * 64 * 9]
    kept = [size - np.floor(np.linspace(0, 1, 101) * size).astype(np.int64) for size in sizes]
    distortions = [np.linspace(0, 1, 101) ** 2 * scale for scale in (3, 2, 1)]
    budget = int(0.045 * sum(sizes))
    assert budget < sizes[-1]
    found = solve(kept, distortions, budget)
    assert found.cost <= budget
    assert found.proved


@pytest.mark.parametrize("budget", [4097, 8193, 12289])
def test_fault_2_budgets_just_above_a_multiple_of_4096(budget):
    sizes = [3000, 9000, 12000]  # 24,000 weights
    kept = [size - np.floor(np.linspace(0, 1, 101) * size).astype(np.int64) for size in sizes]
    distortions = [np.linspace(0, 1, 101) ** power for power in (2, 3, 2.5)]
    found = solve(kept, distortions, budget)
    assert budget - 120 < found.cost <= budget  # all of it is used, but for less than one step
    assert found.distortion == pytest.approx(brute_force(kept, distortions, budget), rel=1e-12)


def test_fault_3_the_first_layer_is_within_the_budget_too():
    """Its release takes the level that is nearest, above the budget or not."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        layers = rng.integers(1, 4)
        kept = [size - np.floor(np.linspace(0, 1, 21) * size).astype(np.int64) for size in rng.integers(7, 99, layers)]
        distortions = np.linspace(0, 1, 21) ** 2 * rng.random((layers, 1))
        budget = int(rng.integers(0, sum(int(cost[0]) for cost in kept)))
        found = solve(kept, distortions, budget)
        assert found.cost <= budget
        assert found.distortion == pytest.approx(brute_force(kept, distortions, budget), rel=1e-9)


def test_fault_4_pruning_everything_counts_every_layer_and_leftovers_may_be_nothing():
    costs, distortions = [[3, 0], [2, 0], [1, 0]], [[0, 5.0], [0, 7.0], [0, 11.0]]
    nothing = solve(costs, distortions, 0)
    assert (nothing.levels, nothing.distortion) == ((1, 1, 1), 23.0)
    exactly = solve(costs, distortions, 3)  # 2 + 1 leaves nothing over
    assert (exactly.levels, exactly.cost, exactly.distortion) == ((1, 0, 0), 3, 5.0)
