"""The quadratic of a block against its definition, and its solvers against all choices."""

import itertools

import pytest
import torch
from helpers import close, normal
from hypothesis import given, settings
from hypothesis import strategies as st

from pruninglab.curvature import Quadratic, anneal, exhaustive, fisher_of, quadratic, swap_search

SEEDS = st.integers(0, 10_000)


def block(n=9, seed=0, samples=5):
    """Old weights, their change, a Fisher of low rank and a gradient; some weights are gone."""
    old, gone = normal(n, seed=seed), normal(n, seed=seed + 1) > 0
    g = normal(samples, n, seed=seed + 2)
    return old, torch.where(gone, -old, 0.0), fisher_of(g), g.mean(0)


# ── the quadratic of a block ──────────────────────────────────────────────────────────────────────────────────────────


@given(SEEDS, st.floats(0, 2), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_the_quadratic_is_the_change_of_the_loss(seed, gamma, ridge):
    old, change, hessian, g = block(seed=seed)
    problem = quadratic(old, change, hessian, g, gamma=gamma, ridge=ridge)
    states = normal(6, 9, seed=seed + 3) > 0
    for x, energy in zip(states, problem.energy(states), strict=True):
        current, new = old + change, torch.where(x, 0.0, old)
        delta = new - current
        expected = gamma * g @ delta + 0.5 * delta @ hessian @ delta + ridge * delta @ delta
        assert float(energy) == pytest.approx(float(expected), rel=1e-9, abs=1e-10)
    stay = old + change == 0
    assert float(problem.energy(stay)) == pytest.approx(0, abs=1e-10)  # as it is now, nothing changes


def test_field_and_clipping_are_what_they_say():
    problem = quadratic(*block())
    x = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 0], dtype=torch.bool)
    close(problem.field(x), problem.matrix @ x.double())
    clipped = problem.clipped()
    assert (problem.matrix < 0).any()
    for found, entry in zip(clipped.matrix.flatten(), problem.matrix.flatten(), strict=True):
        assert float(found) == max(float(entry), 0.0)
    close(problem.matrix, problem.matrix.T)
    assert len(problem) == 9


def test_a_quadratic_that_does_not_fit():
    old, change, hessian, g = block()
    with pytest.raises(ValueError, match=r"must be \(n,\), \(n,\), \(n,\), \(n, n\)"):
        quadratic(old, change[:3], hessian, g)
    with pytest.raises(ValueError, match="not finite"):
        quadratic(old, change, hessian, g * torch.nan)
    with pytest.raises(ValueError, match=r"x has shape \(4,\), the quadratic is of 9 weights"):
        quadratic(old, change, hessian, g).energy(torch.ones(4))
    with pytest.raises(ValueError, match=r"square matrix, not \(2, 3\)"):
        Quadratic(torch.ones(2, 3))


# ── solvers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def brute(problem, ones):
    """The lowest energy of all choices, one by one, from the definition."""
    matrix = problem.matrix.tolist()
    return problem.constant + min(
        sum(matrix[i][j] for i in some for j in some) for some in itertools.combinations(range(len(matrix)), ones)
    )


@pytest.mark.parametrize("ones", [0, 1, 4, 9])
def test_exhaustive_search_finds_the_best_of_all(ones):
    problem = quadratic(*block())
    x = exhaustive(problem, ones)
    assert int(x.sum()) == ones
    assert float(problem.energy(x)) == pytest.approx(brute(problem, ones))


@pytest.mark.parametrize("seed", range(6))
def test_swaps_with_restarts_reach_the_optimum_of_14_weights(seed):
    problem = quadratic(*block(n=14, seed=seed))
    best = float(problem.energy(exhaustive(problem, 7)))
    start = torch.arange(14) < 7
    assert float(problem.energy(swap_search(problem, start, restarts=10))) == pytest.approx(best)
    assert float(problem.energy(anneal(problem, start, seed=seed, restarts=2))) == pytest.approx(best)


@given(SEEDS, st.integers(0, 40))
@settings(max_examples=20, deadline=None)
def test_a_swap_search_ends_where_no_exchange_helps(seed, ones):
    problem = quadratic(*block(n=40, seed=seed, samples=12))
    start = torch.zeros(40, dtype=torch.bool)
    start[torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:ones]] = True
    given_ = start.clone()
    end = swap_search(problem, start)
    assert torch.equal(start, given_)
    assert int(end.sum()) == ones
    energy = float(problem.energy(end))
    assert energy <= float(problem.energy(start)) + 1e-12
    for i, j in itertools.product(end.nonzero().flatten(), (~end).nonzero().flatten()):
        other = end.clone()
        other[i], other[j] = False, True
        assert float(problem.energy(other)) >= energy - 1e-8


def test_the_first_exchange_is_the_best_of_all():
    """A start from which one exchange leads to the optimum, so that the search has to find just that one."""
    problem = quadratic(*block(n=10, seed=5))
    end = exhaustive(problem, 5)
    starts = [end.clone() for _ in range(25)]
    for start, (i, j) in zip(starts, itertools.product(end.nonzero(), (~end).nonzero()), strict=True):
        start[i], start[j] = False, True
        assert torch.equal(swap_search(problem, start), end)


def test_annealing_keeps_the_number_of_ones_and_depends_on_the_seed_alone():
    problem = quadratic(*block(n=60, samples=20))
    start = torch.arange(60) < 20
    one, again, other = (anneal(problem, start, seed=seed, temperatures=10, cold=10.0) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert int(one.sum()) == int(other.sum()) == 20
    before = float(problem.energy(start))
    swapped, annealed = (
        before - float(problem.energy(end)) for end in (swap_search(problem, start), anneal(problem, start))
    )
    assert swapped > 0
    assert annealed == pytest.approx(swapped, rel=0.1)


def test_what_solvers_refuse():
    problem = quadratic(*block(n=17))
    with pytest.raises(ValueError, match="16 weights at most, not 17"):
        exhaustive(problem, 3)
    with pytest.raises(ValueError, match="ones must be 0 to 9, not 10"):
        exhaustive(quadratic(*block()), 10)
    start = torch.arange(17) < 4
    for solve in (swap_search, anneal):
        with pytest.raises(ValueError, match="17 weights"):
            solve(problem, start[:5])
        with pytest.raises(ValueError, match="has other numbers"):
            solve(problem, 0.5 * start)
        with pytest.raises(ValueError, match="a vector of zeros and ones"):
            solve(problem, start[None])
        with pytest.raises(ValueError, match="restarts must be 0 or more"):
            solve(problem, start, restarts=-1)
    for options in ({"temperatures": 0}, {"hot": 0.0}, {"cold": -1.0}):
        with pytest.raises(ValueError, match="positive temperatures"):
            anneal(problem, start, **options)
