"""The exercises of chapter 7: one step of the surgeon, an inverse made of samples, and the best exchange of a pair.

As in `answers`: the library's answer, and the properties that every right one has, from the plain to the subtle.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pruninglab.curvature import fisher_of, inverse_of, obs_step
from pruninglab.notebook.exercises import exercise

Function = Callable[..., Any]


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _bowl(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights and a Hessian in which they have much to do with each other."""
    a = _normal(n, n, seed=seed)
    return _normal(n, seed=seed + 1), a @ a.T / n + 0.05 * torch.eye(n, dtype=torch.float64)


def _unchanged(given: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    for name, tensor in given.items():
        assert torch.equal(tensor, before[name]), f"your function wrote into {name}, which it was given"


# ── surgeon_step ──────────────────────────────────────────────────────────────────────────────────────────────────


def _surgeon_step(weights: Tensor, hessian: Tensor) -> tuple[int, Tensor, float]:
    inverse = inverse_of(hessian).to(weights)
    q = int((weights.square() / inverse.diagonal()).argmin())
    change, cost = obs_step(weights, inverse, q)
    left = weights + change
    left[q] = 0.0  # not only nearly
    return q, left, cost


surgeon_step = exercise("surgeon_step", _surgeon_step)


def _cheapest(weights: Tensor, hessian: Tensor, q: int) -> tuple[float, Tensor]:
    """The least ½ δᵀHδ without weight q, and the weights there: the others' slope is 0, by solving for them."""
    stay = [i for i in range(len(weights)) if i != q]
    left = torch.zeros_like(weights)
    left[stay] = weights[stay] + weights[q] * torch.linalg.solve(hessian[stay][:, stay], hessian[stay, q])
    change = left - weights
    return 0.5 * float(change @ hessian @ change), left


@surgeon_step.holds("it gives a place, the weights that are left, and the cost")
def _(f: Function) -> None:
    weights, hessian = _bowl(4)
    got = f(weights, hessian)
    assert isinstance(got, tuple), f"it gave {type(got).__name__}; a place, the weights and the cost are asked for"
    assert len(got) == 3, f"it gave {len(got)} things; a place, the weights and the cost are asked for"
    q, left, cost = got
    assert isinstance(q, int), f"the place is of type {type(q).__name__}, not an int"
    assert isinstance(left, Tensor), f"the weights are of type {type(left).__name__}, not a tensor"
    assert left.shape == weights.shape, f"of {len(weights)} weights it gave {tuple(left.shape)}: put 0 where one goes"
    assert isinstance(cost, float), f"the cost is of type {type(cost).__name__}, not a float"


@surgeon_step.holds("what it is given stays as it is")
def _(f: Function) -> None:
    weights, hessian = _bowl(4)
    before = {"weights": weights.clone(), "hessian": hessian.clone()}
    f(weights, hessian)
    _unchanged({"weights": weights, "hessian": hessian}, before)


@surgeon_step.holds("where nothing is coupled, it is OBD: the least ½ H w² goes, and the others stay")
def _(f: Function) -> None:
    weights, hessian = torch.tensor([3.0, -2.0, 1.0]), torch.diag(torch.tensor([0.1, 0.5, 4.0]))
    q, left, cost = f(weights, hessian)
    assert q == 0, f"the costs are 0.45, 1 and 2, but weight {q} went"
    assert torch.allclose(left, torch.tensor([0.0, -2.0, 1.0])), f"the others had nothing to make up for: {left}"
    assert math.isclose(cost, 0.45, rel_tol=1e-5), f"½ · 0.1 · 3² is 0.45, not {cost:.4g}"


@surgeon_step.holds("the one that goes is the one whose loss the others make up for best")
def _(f: Function) -> None:
    twins = torch.tensor([[1.0, 0.95, 0.0], [0.95, 1.0, 0.0], [0.0, 0.0, 0.3]])
    q, _, _ = f(torch.tensor([1.0, 0.9, 0.8]), twins)
    assert q == 1, (
        f"weights 0 and 1 do nearly the same, so 0 makes up for 1 at a loss of 0.04; weight {q} costs more. The "
        "diagonal of H says what a weight costs alone, that of its *inverse* what it costs if the others help"
    )
    for seed in range(20):
        weights, hessian = _bowl(5, seed)
        q, _, _ = f(weights, hessian)
        costs = [_cheapest(weights, hessian, i)[0] for i in range(5)]
        best = min(range(5), key=costs.__getitem__)
        assert q == best, (
            f"without weight {q} the least loss is {costs[q]:.3g}, without weight {best} only {costs[best]:.3g}"
        )


@surgeon_step.holds("the others move to where the loss is least")
def _(f: Function) -> None:
    for seed in range(20):
        weights, hessian = _bowl(5, seed)
        q, left, _ = f(weights, hessian)
        assert abs(float(left[q])) < 1e-9, f"weight {q} should be 0, it is {float(left[q]):.3g}"
        cost, best = _cheapest(weights, hessian, q)
        change = left - weights
        mine = 0.5 * float(change @ hessian @ change)
        assert torch.allclose(left, best, rtol=1e-4, atol=1e-6), (
            f"without weight {q} a loss of {cost:.3g} is possible, where you put the others it is {mine:.3g}"
        )


@surgeon_step.holds("the cost is the loss at the new weights, ½ δᵀHδ")
def _(f: Function) -> None:
    weights, hessian = _bowl(6, 3)
    _, left, cost = f(weights, hessian)
    change = left - weights
    want = 0.5 * float(change @ hessian @ change)
    assert math.isclose(cost, want, rel_tol=1e-4), f"½ δᵀHδ is {want:.4g}, you said {cost:.4g}"


# ── woodfisher_inverse ────────────────────────────────────────────────────────────────────────────────────────────


def _woodfisher_inverse(grads: Tensor, damp: float) -> Tensor:
    samples, n = grads.shape
    inverse = torch.eye(n, dtype=grads.dtype) / damp
    for g in grads:
        turned = inverse @ g
        inverse = inverse - torch.outer(turned, turned) / (samples + g @ turned)
    return inverse


woodfisher_inverse = exercise("woodfisher_inverse", _woodfisher_inverse)

INVERTING = (
    *("linalg.inv", "linalg.pinv", "linalg.inv_ex", "linalg.solve", "linalg.solve_ex", "linalg.lstsq"),
    *("inverse", "pinverse", "cholesky_inverse"),
)


@contextmanager
def _without_inverting() -> Iterator[None]:
    """While this is on, whoever inverts a matrix is told that the exercise is to do without."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ArithmeticError("the exercise is to build the inverse sample by sample, without inverting a matrix")

    with ExitStack() as undo:
        for name in INVERTING:
            undo.enter_context(mock.patch(f"torch.{name}", refuse))
        yield


def _true_inverse(grads: Tensor, damp: float) -> Tensor:
    return torch.linalg.inv(fisher_of(grads) + damp * torch.eye(grads.shape[1], dtype=grads.dtype))


@woodfisher_inverse.holds("it gives a matrix with a row and a column for each weight")
def _(f: Function) -> None:
    got = f(_normal(7, 3), 0.5)
    assert isinstance(got, Tensor), f"it gave {type(got).__name__}, not a tensor"
    assert got.shape == (3, 3), f"gradients of 7 samples and 3 weights gave {tuple(got.shape)}, not (3, 3)"


@woodfisher_inverse.holds("one sample and one weight: 1 / (g² + λ)")
def _(f: Function) -> None:
    got = float(f(torch.tensor([[2.0]], dtype=torch.float64), 0.5))
    assert math.isclose(got, 1 / 4.5, rel_tol=1e-6), f"g = 2 and λ = 0.5: 1 / 4.5 = 0.222, not {got:.4g}"


@woodfisher_inverse.holds("without a gradient it is I / λ")
def _(f: Function) -> None:
    got = f(torch.zeros(3, 2, dtype=torch.float64), 0.25)
    want = 4 * torch.eye(2, dtype=torch.float64)
    assert torch.allclose(got, want), f"F = 0 and λ = 0.25 leave 4 on the diagonal, not {got.tolist()}"


@woodfisher_inverse.holds("it is the inverse of F + λI, with F the *mean* over samples")
def _(f: Function) -> None:
    for samples, n in ((1, 4), (5, 3), (30, 6)):
        g = _normal(samples, n, seed=samples)
        got, want = f(g, 0.3), _true_inverse(g, 0.3)
        twice = got @ (fisher_of(g) + 0.3 * torch.eye(n, dtype=g.dtype))
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-8), (
            f"{samples} samples of {n} weights: the product with F + λI has {float(twice.diagonal().mean()):.3g} on "
            f"its diagonal on average, and up to {float((twice - twice.diagonal().diag()).abs().max()):.2g} off it; it "
            "should be 1 and 0"
        )


@woodfisher_inverse.holds("the gradients that it is given stay as they are")
def _(f: Function) -> None:
    g = _normal(6, 4)
    before = g.clone()
    f(g, 0.1)
    _unchanged({"grads": g}, {"grads": before})


@woodfisher_inverse.holds("it does so without inverting a matrix")
def _(f: Function) -> None:
    with _without_inverting():
        f(_normal(6, 4), 0.1)


# ── best_swap ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _best_swap(matrix: Tensor, x: Tensor) -> tuple[int, int, float]:
    x = x.to(matrix)
    field, diagonal = matrix @ x, matrix.diagonal()
    ones, zeros = (x == 1).nonzero().flatten(), (x == 0).nonzero().flatten()
    back, gone = (diagonal - 2 * field)[ones], (diagonal + 2 * field)[zeros]
    change = back[:, None] + gone - 2 * matrix[ones][:, zeros]
    a, b = divmod(int(change.argmin()), len(zeros))
    return int(ones[a]), int(zeros[b]), float(change[a, b])


best_swap = exercise("best_swap", _best_swap)


def _problem(n: int, ones: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    a = _normal(n, n, seed=seed)
    return (a + a.T) / 2, (torch.arange(n) < ones)[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]


def _swapped(x: Tensor, i: int, j: int) -> Tensor:
    other = x.double()
    other[i], other[j] = 0.0, 1.0
    return other


def _change(matrix: Tensor, x: Tensor, i: int, j: int) -> float:
    """What an exchange changes xᵀQx by, from the definition."""
    after, before = _swapped(x, i, j), x.double()
    return float(after @ matrix @ after - before @ matrix @ before)


@best_swap.holds("it gives two places and a number")
def _(f: Function) -> None:
    got = f(*_problem(6, 3))
    assert isinstance(got, tuple), f"it gave {type(got).__name__}; i, j and the change are asked for"
    assert len(got) == 3, f"it gave {len(got)} things; i, j and the change are asked for"
    assert isinstance(got[0], int), f"i is of type {type(got[0]).__name__}, not an int"
    assert isinstance(got[1], int), f"j is of type {type(got[1]).__name__}, not an int"
    assert isinstance(got[2], float), f"the change is of type {type(got[2]).__name__}, not a float"


@best_swap.holds("i is a weight that is gone and comes back, j one that is there and goes")
def _(f: Function) -> None:
    for seed in range(10):
        matrix, x = _problem(7, 3, seed)
        i, j, _ = f(matrix, x)
        assert bool(x[i]), f"x[{i}] is 0: weight {i} is there already, so that it cannot come back"
        assert not bool(x[j]), f"x[{j}] is 1: weight {j} is gone already"


@best_swap.holds("nothing that it is given changes")
def _(f: Function) -> None:
    matrix, x = _problem(6, 3)
    before = {"matrix": matrix.clone(), "x": x.clone()}
    f(matrix, x)
    _unchanged({"matrix": matrix, "x": x}, before)


@best_swap.holds("the change is what xᵀQx changes by")
def _(f: Function) -> None:
    for seed in range(10):
        matrix, x = _problem(7, 3, seed)
        i, j, change = f(matrix, x)
        want = _change(matrix, x, i, j)
        assert math.isclose(change, want, rel_tol=1e-4, abs_tol=1e-9), (
            f"exchanging {i} and {j} changes E by {want:.4g}, you said {change:.4g}. Is Q_ij counted, and twice?"
        )


@best_swap.holds("of all pairs it is the one that lowers E most")
def _(f: Function) -> None:
    for seed in range(20):
        matrix, x = _problem(8, 3, seed)
        i, j, _ = f(matrix, x)
        pairs = {(a, b): _change(matrix, x, a, b) for a in range(8) for b in range(8) if x[a] and not x[b]}
        a, b = min(pairs, key=pairs.__getitem__)
        assert pairs[i, j] <= pairs[a, b] + 1e-9, (
            f"exchanging {i} and {j} changes E by {pairs[i, j]:.3g}, {a} and {b} by {pairs[a, b]:.3g}. The best to "
            "come back and the best to go need not be the best pair"
        )


@best_swap.holds("where no exchange helps, it still gives the best one, with a change above 0")
def _(f: Function) -> None:
    matrix = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
    got = f(matrix, torch.tensor([True, False, False]))
    assert tuple(got[:2]) == (0, 1), f"the least harm is to exchange 0 and 1; it chose {got[:2]}"
    assert math.isclose(got[2], 1.0, rel_tol=1e-6), f"that changes E by 2 − 1 = 1, not by {got[2]:.3g}"
