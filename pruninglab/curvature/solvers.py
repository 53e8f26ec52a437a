"""Minima of a quadratic over zeros and ones with a fixed number of ones: three ways to look for them.

A swap search stops where no exchange of one pair helps, which at the size of a block is as good as anything; simulated
annealing, as the authors of iCBS use it, and trying everything are here to compare it with.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from pruninglab.curvature.quadratic import Quadratic

LARGEST = 16  # weights that `exhaustive` will try all choices of


def swap_search(problem: Quadratic, start: Tensor, *, restarts: int = 0, seed: int = 0) -> Tensor:
    """Exchange the pair of a one and a zero that lowers E most, until no pair lowers it.

    An exchange of i (1 → 0) and j (0 → 1) changes E by −2h_i + Q_ii + 2h_j + Q_jj − 2Q_ij, with h = Q x.

    Args:
        problem: what to minimise.
        start: (n,) zeros and ones, or bool; the number of ones is kept.
        restarts: how many random starts to try as well; the best end is returned.
        seed: of those.

    Returns:
        (n,) bool, with an E not above the start's.

    Raises:
        ValueError: a start of another size.
    """
    x = _checked(problem, start)
    q = problem.matrix.cpu().numpy()
    ends = [_descend(q, begin) for begin in (x, *_others(x, restarts, seed))]
    best = min(ends, key=lambda end: float(end @ q @ end))
    return torch.from_numpy(best.astype(bool)).to(start.device)


def _descend(q: np.ndarray, start: np.ndarray) -> np.ndarray:
    """One search, from numbers 0.0 and 1.0."""
    x = start.copy()
    ones, zeros = np.flatnonzero(x), np.flatnonzero(x == 0)
    if not len(ones) or not len(zeros):
        return x
    diagonal, field = q.diagonal(), q @ x
    pairs = -2 * q[np.ix_(ones, zeros)]
    change = np.empty_like(pairs)
    tolerance = 1e-10 * np.abs(q).max()  # what rounding may make of nothing
    while True:
        np.add(pairs, (diagonal[ones] - 2 * field[ones])[:, None], out=change)
        change += diagonal[zeros] + 2 * field[zeros]
        a, b = divmod(int(change.argmin()), len(zeros))
        if change[a, b] >= -tolerance:
            return x
        i, j = ones[a], zeros[b]
        x[i], x[j] = 0.0, 1.0
        field += q[j] - q[i]
        ones[a], zeros[b] = j, i
        pairs[a] = -2 * q[j, zeros]
        pairs[:, b] = -2 * q[ones, i]


def anneal(
    problem: Quadratic,
    start: Tensor,
    *,
    temperatures: int = 121,
    hot: float = 1e3,
    cold: float = 1e-2,
    restarts: int = 0,
    seed: int = 0,
) -> Tensor:
    """Simulated annealing: at each temperature every one proposes an exchange with a zero drawn at random.

    An exchange that changes E by Δ is made with probability min(1, exp(−Δ / T)). Temperatures fall by the same factor
    each time and are in units of the mean |Q_ij| (121 of them from 1,000 to 0.01 are those of the authors' code).

    Args:
        problem: what to minimise.
        start: (n,) zeros and ones, or bool; the number of ones is kept.
        temperatures: how many, at least 1.
        hot: the first, positive.
        cold: the last, positive.
        restarts: how many random starts to try as well.
        seed: of those and of the proposals.

    Returns:
        (n,) bool: the best of all that were visited.

    Raises:
        ValueError: a start of another size, or temperatures that are not positive.
    """
    if temperatures < 1 or not hot > 0 or not cold > 0:
        raise ValueError(f"anneal needs positive temperatures, not {temperatures} from {hot} to {cold}")
    x = _checked(problem, start)
    q = problem.matrix.cpu().numpy()
    entries = np.abs(q[q != 0])
    q = q / (entries.mean() if len(entries) else 1.0)
    generator = np.random.default_rng(seed)
    steps = np.geomspace(hot, cold, temperatures)
    ends = [_cool(q, begin, steps, generator) for begin in (x, *_others(x, restarts, seed))]
    best = min(ends, key=lambda end: float(end @ q @ end))
    return torch.from_numpy(best.astype(bool)).to(start.device)


def _cool(q: np.ndarray, start: np.ndarray, temperatures: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One annealing, from numbers 0.0 and 1.0."""
    x = start.copy()
    ones, zeros = np.flatnonzero(x), np.flatnonzero(x == 0)
    if not len(ones) or not len(zeros):
        return x
    diagonal, field = q.diagonal(), q @ x
    energy = lowest = 0.0
    best = x.copy()
    for temperature in temperatures:
        partners = generator.integers(len(zeros), size=len(ones))
        limits = -temperature * np.log(generator.random(len(ones)) + 1e-300)  # Δ may be as large as this
        for a, b, limit in zip(range(len(ones)), partners, limits, strict=True):
            i, j = ones[a], zeros[b]
            change = diagonal[i] + diagonal[j] + 2 * (field[j] - field[i] - q[i, j])
            if change > limit:
                continue
            x[i], x[j] = 0.0, 1.0
            field += q[j] - q[i]
            ones[a], zeros[b] = j, i
            energy += change
            if energy < lowest:
                lowest = energy
                best[:] = x
    return best


def exhaustive(problem: Quadratic, ones: int) -> Tensor:
    """The best of all choices of so many ones, by trying each: for teaching and for tests.

    Returns:
        (n,) bool; of equally good ones the first in lexicographic order of the places.

    Raises:
        ValueError: more than 16 weights, or a number of ones that is not 0 to n.
    """
    n = len(problem)
    if n > LARGEST:
        raise ValueError(
            f"{math.comb(n, n // 2):.0e} choices are too many: exhaustive search takes {LARGEST} weights at most, "
            f"not {n}"
        )
    if not 0 <= ones <= n:
        raise ValueError(f"ones must be 0 to {n}, not {ones}")
    choices = list(itertools.combinations(range(n), ones))
    places = torch.tensor(choices, dtype=torch.int64).reshape(len(choices), ones)
    states = torch.zeros(len(places), n, dtype=torch.bool).scatter_(1, places, True).to(problem.matrix.device)
    return states[problem.energy(states).argmin()]


def _checked(problem: Quadratic, start: Tensor) -> np.ndarray:
    """A start as numbers 0.0 and 1.0."""
    if start.ndim != 1:
        raise ValueError(f"a start is a vector of zeros and ones, not of shape {tuple(start.shape)}")
    x = problem.ones(start)
    if not ((x == 0) | (x == 1)).all():
        raise ValueError("a start is a vector of zeros and ones; this one has other numbers")
    return x.cpu().numpy()


def _others(x: np.ndarray, restarts: int, seed: int) -> list[np.ndarray]:
    """Random starts with as many ones."""
    if restarts < 0:
        raise ValueError(f"restarts must be 0 or more, not {restarts}")
    generator = np.random.default_rng(seed)
    return [generator.permutation(x) for _ in range(restarts)]
