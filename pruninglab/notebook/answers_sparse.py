"""The exercises of chapter 5: the flow through every weight, ERK's densities, and one exchange of a sparse training.

As in `answers`: the library's answer, and the properties that every right one has, from the plain to the subtle.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pruninglab.notebook.exercises import exercise

Function = Callable[..., Any]
Shapes = dict[str, tuple[int, int]]


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ── synflow_scores ────────────────────────────────────────────────────────────────────────────────────────────────


def _synflow_scores(weights: list[Tensor]) -> list[Tensor]:
    sizes = [weight.detach().abs() for weight in weights]
    arrives = [sizes[0].new_ones(sizes[0].shape[1])]  # at the inputs of each layer
    for size in sizes:
        arrives.append(size @ arrives[-1])
    leaves = [torch.ones_like(arrives[-1])]  # from the outputs of each layer, built from the last
    for size in reversed(sizes[1:]):
        leaves.insert(0, leaves[0] @ size)
    total = arrives[-1].sum()
    return [out[:, None] * size * into / total for out, size, into in zip(leaves, sizes, arrives, strict=False)]


synflow_scores = exercise("synflow_scores", _synflow_scores)


def _chain() -> list[Tensor]:
    return [_draw(4, 3), _draw(5, 4, seed=1), _draw(2, 5, seed=2)]


@synflow_scores.holds("it gives one tensor for each layer, of the layer's shape, with no negative entry")
def _(f: Function) -> None:
    got = f(_chain())
    assert isinstance(got, list), f"it gave {type(got).__name__}, not a list"
    assert len(got) == 3, f"three layers went in, {len(got)} came out"
    for i, (score, weight) in enumerate(zip(got, _chain(), strict=True)):
        assert isinstance(score, Tensor), f"layer {i} is a {type(score).__name__}, not a tensor"
        assert score.shape == weight.shape, f"layer {i} is {tuple(score.shape)}, its weights are {tuple(weight.shape)}"
        assert bool((score >= 0).all()), f"layer {i} has a negative share. Magnitudes flow, not signed weights"


@synflow_scores.holds("a single layer shares the flow by magnitude")
def _(f: Function) -> None:
    (got,) = f([torch.tensor([[1.0, -2.0], [0.0, 5.0]])])
    want = torch.tensor([[0.125, 0.25], [0.0, 0.625]])
    assert torch.allclose(got, want, atol=1e-6), f"of magnitudes 1, 2, 0 and 5 it gave {got.tolist()}"


@synflow_scores.holds("in a chain of single weights everything passes through each of them")
def _(f: Function) -> None:
    got = [float(score.sum()) for score in f([torch.tensor([[w]]) for w in (2.0, -3.0, 0.5)])]
    assert all(math.isclose(share, 1, rel_tol=1e-5) for share in got), f"the shares are {got}, each should be 1"


@synflow_scores.holds("the shares of every layer sum to 1")
def _(f: Function) -> None:
    got = [float(score.sum()) for score in f(_chain())]
    told = ", ".join(f"{total:.3f}" for total in got)
    assert all(math.isclose(total, 1, rel_tol=1e-4) for total in got), f"the layers' sums are {told}. Divide by R"


@synflow_scores.holds("what flows into a hidden unit flows out of it")
def _(f: Function) -> None:
    first, second, _third = f(_chain())
    gap = float((first.sum(1) - second.sum(0)).abs().max())
    assert gap < 1e-4, f"at some hidden unit they differ by {gap:.4f}: rows of a layer meet columns of the next"


@synflow_scores.holds("a weight's share is that of the paths through it")
def _(f: Function) -> None:
    a, b = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([[2.0, 1.0]])
    got = f([a, b])  # paths: 1·2, 2·2, 3·1, 1·1, so R = 10
    want = [torch.tensor([[0.2, 0.4], [0.3, 0.1]]), torch.tensor([[0.6, 0.4]])]
    assert torch.allclose(got[0], want[0], atol=1e-5), f"the first layer's shares are {got[0].tolist()}"
    assert torch.allclose(got[1], want[1], atol=1e-5), f"the second layer's shares are {got[1].tolist()}"


@synflow_scores.holds("the weights that it is given are unchanged, and may carry gradients")
def _(f: Function) -> None:
    weights = _chain()
    f(weights)
    same = all(torch.equal(a, b) for a, b in zip(weights, _chain(), strict=True))
    assert same, "the weights were changed: .abs_() and *= write into what they are given"
    got = f([torch.nn.Parameter(weight) for weight in _chain()])
    assert not any(score.requires_grad for score in got), "scores still carry gradients: detach them"


# ── erk_densities ─────────────────────────────────────────────────────────────────────────────────────────────────


def _erk_densities(shapes: Shapes, density: float) -> dict[str, float]:
    sizes = {name: rows * columns for name, (rows, columns) in shapes.items()}
    wishes = {name: float(sum(shape)) for name, shape in shapes.items()}  # places, up to a factor
    keep, whole = density * sum(sizes.values()), set[str]()
    while True:
        rest = keep - sum(sizes[name] for name in whole)
        scale = rest / sum(wishes[name] for name in shapes if name not in whole) if len(whole) < len(shapes) else 0.0
        over = {name for name in shapes if name not in whole and scale * wishes[name] > sizes[name]}
        if not over:
            break
        whole |= over
    return {name: 1.0 if name in whole else scale * wishes[name] / sizes[name] for name in shapes}


erk_densities = exercise("erk_densities", _erk_densities)
NET = {"fc1": (300, 196), "fc2": (100, 300), "fc3": (10, 100)}


def _places(shapes: Shapes, densities: dict[str, float]) -> float:
    return sum(rows * columns * densities[name] for name, (rows, columns) in shapes.items())


@erk_densities.holds("it gives a density for every layer, as plain numbers")
def _(f: Function) -> None:
    got = f(NET, 0.01)
    assert isinstance(got, dict), f"it gave {type(got).__name__}, not a dict"
    assert set(got) == set(NET), f"its names are {sorted(got)}, not {sorted(NET)}"
    assert all(isinstance(d, float) for d in got.values()), "a density is not a float"


@erk_densities.holds("layers of one shape get one density")
def _(f: Function) -> None:
    got = f({"a": (8, 20), "b": (8, 20)}, 0.25)
    assert all(math.isclose(d, 0.25) for d in got.values()), f"two alike at 25 %: it gave {got}"


@erk_densities.holds("the places add up to the asked density of the whole")
def _(f: Function) -> None:
    got, total = f(NET, 0.01), 300 * 196 + 100 * 300 + 10 * 100
    places = _places(NET, got)
    assert math.isclose(places, 0.01 * total, rel_tol=1e-6), f"{places:.1f} places, not {0.01 * total:.1f}"


@erk_densities.holds("densities are in proportion to (rows + columns) / (rows · columns)")
def _(f: Function) -> None:
    got = f(NET, 0.01)
    want = (400 / 30000) / (496 / 58800)
    ratio = got["fc2"] / got["fc1"]
    assert math.isclose(ratio, want, rel_tol=1e-6), f"fc2 is {ratio:.3f} times as dense as fc1, not {want:.3f} times"


@erk_densities.holds("no layer is denser than whole, and what is too much goes to the others")
def _(f: Function) -> None:
    got = f(NET, 0.2)
    assert max(got.values()) <= 1 + 1e-9, f"at 20 % it gave {got}: a density above 1"
    places, want = _places(NET, got), 0.2 * 89800
    assert math.isclose(places, want, rel_tol=1e-6), f"at 20 % there are {places:.0f} places, not {want:.0f}"
    ratio = got["fc2"] / got["fc1"]
    assert math.isclose(ratio, 1.5806451612903225, rel_tol=1e-6), "layers that are not whole keep their proportion"


@erk_densities.holds("when one layer is whole, another may come out above 1: look again")
def _(f: Function) -> None:
    shapes = {"big": (40, 50), "middle": (4, 50), "small": (2, 50)}
    got = f(shapes, 0.3)  # "middle" fits at first, but not with what "small" leaves over
    assert max(got.values()) <= 1 + 1e-9, f"it gave {got}: a density above 1 after the first correction"
    places, want = _places(shapes, got), 0.3 * 2300
    assert math.isclose(places, want, rel_tol=1e-6), f"there are {places:.0f} places, not {want:.0f}"


@erk_densities.holds("a density of 1 keeps every layer whole")
def _(f: Function) -> None:
    got = f(NET, 1.0)
    assert all(math.isclose(d, 1, rel_tol=1e-9) for d in got.values()), f"it gave {got}"


# ── exchange_step ─────────────────────────────────────────────────────────────────────────────────────────────────


def _exchange_step(weight: Tensor, mask: Tensor, grad: Tensor, count: int) -> Tensor:
    size = weight.detach().abs().masked_fill(~mask, torch.inf).flatten()
    kept = mask.flatten().index_fill(0, size.argsort(stable=True)[:count], False)
    wish = grad.abs().flatten().masked_fill(kept, -torch.inf)
    return kept.index_fill(0, wish.argsort(descending=True, stable=True)[:count], True).view(mask.shape)


exchange_step = exercise("exchange_step", _exchange_step)


def _layer() -> tuple[Tensor, Tensor, Tensor]:
    """Weights that are zero where the mask is False, as in a sparse training; the mask; a gradient everywhere."""
    mask = _draw(6, 8, seed=1) > 0.3
    return _draw(6, 8) * mask, mask, _draw(6, 8, seed=2)


@exchange_step.holds("it gives a bool mask of the same shape")
def _(f: Function) -> None:
    got = f(*_layer(), 3)
    assert isinstance(got, Tensor), f"it gave {type(got).__name__}, not a tensor"
    assert got.dtype == torch.bool, f"its entries are {got.dtype}, not torch.bool"
    assert got.shape == (6, 8), f"it is {tuple(got.shape)}, not (6, 8)"


@exchange_step.holds("as many are kept as before")
def _(f: Function) -> None:
    before = int(_layer()[1].sum())
    for count in (0, 1, 5, 10):
        got = int(f(*_layer(), count).sum())
        assert got == before, f"{before} were kept; after exchanging {count} it is {got}"


@exchange_step.holds("of the kept weights, the smallest go")
def _(f: Function) -> None:
    weight, mask, _ = _layer()
    grad = torch.zeros_like(weight).masked_fill(~mask, 1.0)  # nothing that goes is wanted back
    gone = mask & ~f(weight, mask, grad, 4)
    told = f"{int(gone.sum())} of the kept weights went, not 4"
    assert int(gone.sum()) == 4, f"{told}. Zeros outside the mask are not the smallest"
    stays = weight.abs()[mask & ~gone].min()
    assert weight.abs()[gone].max() <= stays, "a weight went while a smaller one stayed. Small is small in magnitude"


@exchange_step.holds("they grow where the gradient is largest in magnitude")
def _(f: Function) -> None:
    weight, mask, grad = _layer()
    grad = grad.masked_fill(mask, 0.0)
    grown = f(weight, mask, grad, 4) & ~mask
    assert int(grown.sum()) == 4, f"{int(grown.sum())} grew, not 4"
    left = grad.abs()[~mask & ~grown].max()
    assert grad.abs()[grown].min() >= left, "one grew while another had a larger gradient. Large is large in magnitude"


@exchange_step.holds("a large gradient at a weight that stays does not use up a place")
def _(f: Function) -> None:
    weight, mask, grad = _layer()
    got = f(weight, mask, grad.masked_fill(mask, 100.0), 2)
    assert int(got.sum()) == int(mask.sum()), "kept weights have to be taken out before you look for the largest"


@exchange_step.holds("a weight that has just gone may come back, if its gradient is among the largest")
def _(f: Function) -> None:
    weight, mask, grad = _layer()
    smallest = int(weight.abs().masked_fill(~mask, torch.inf).argmin())
    grad.view(-1)[smallest] = 100.0
    back = bool(f(weight, mask, grad, 3).view(-1)[smallest])
    assert back, "the smallest weight went although its place has by far the largest gradient"


@exchange_step.holds("nothing that it is given is changed")
def _(f: Function) -> None:
    given = _layer()
    f(*given, 3)
    same = all(torch.equal(a, b) for a, b in zip(given, _layer(), strict=True))
    assert same, "weight, mask or gradient was changed"
