"""The exercises of chapter 4: a round of the lottery, its control, and the barrier between two networks.

As in `answers`: the library's answer, and the properties that every right one has, from the plain to the subtle.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pruninglab.notebook.exercises import exercise

Function = Callable[..., Any]
Layers = dict[str, Tensor]


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ── prune_round ───────────────────────────────────────────────────────────────────────────────────────────────────


def _prune_round(weights: Layers, masks: Layers, rate: float) -> Layers:
    kept = torch.cat([masks[name].flatten() for name in weights])
    sizes = torch.cat([weight.detach().abs().flatten() for weight in weights.values()]).masked_fill(~kept, torch.inf)
    gone = sizes.argsort(stable=True)[: int(rate * int(kept.sum()) + 0.5)]
    parts = kept.index_fill(0, gone, False).split([weight.numel() for weight in weights.values()])
    return {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


prune_round = exercise("prune_round", _prune_round)


def _two_layers() -> tuple[Layers, Layers]:
    weights = {"a": _draw(6, 5), "b": 3 * _draw(4, 6, seed=1)}
    return weights, {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}


def _kept(masks: Layers) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


@prune_round.holds("it gives a bool mask of the right shape for every layer")
def _(f: Function) -> None:
    weights, masks = _two_layers()
    got = f(weights, masks, 0.2)
    assert isinstance(got, dict), f"it gave {type(got).__name__}, not a dict"
    assert set(got) == {"a", "b"}, f"its names are {sorted(got)}, not ['a', 'b']"
    for name, weight in weights.items():
        mask = got[name]
        assert isinstance(mask, Tensor), f"the mask of {name!r} is no tensor"
        assert mask.dtype == torch.bool, f"the mask of {name!r} is {mask.dtype}, not bool"
        assert mask.shape == weight.shape, f"the mask of {name!r} is {tuple(mask.shape)}, not {tuple(weight.shape)}"


@prune_round.holds("a first round at rate 0.2 removes exactly 11 of 54 weights")
def _(f: Function) -> None:
    left = _kept(f(*_two_layers(), 0.2))
    assert left == 43, f"54 weights were there, {left} are left, 43 should be: int(0.2 · 54 + 0.5) = 11 go"


@prune_round.holds("the smallest go, over all layers together")
def _(f: Function) -> None:
    weights, masks = _two_layers()
    got = f(weights, masks, 0.5)
    kept = torch.cat([weights[name].abs()[got[name]] for name in weights])
    gone = torch.cat([weights[name].abs()[~got[name]] for name in weights])
    assert len(gone), "it removed nothing"
    assert len(kept), "it removed everything"
    told = f"one of size {float(kept.min()):.3f} stayed while one of {float(gone.max()):.3f} went"
    assert kept.min() >= gone.max(), f"{told}. Layers compete with one another"


@prune_round.holds("a second round counts and removes only among what is left")
def _(f: Function) -> None:
    weights, masks = _two_layers()
    first = _prune_round(weights, masks, 0.5)
    changed = {name: weight.flip(0) for name, weight in weights.items()}  # trained again: other weights are small now
    second = f(changed, {name: mask.clone() for name, mask in first.items()}, 0.5)
    back = sum(int((second[name] & ~first[name]).sum()) for name in first)
    assert not back, f"{back} weights that were gone came back"
    want = _kept(first) - int(0.5 * _kept(first) + 0.5)
    assert _kept(second) == want, f"of {_kept(first)} weights left, {_kept(second)} stayed; {want} should"
    expected = _prune_round(changed, first, 0.5)
    assert all(torch.equal(second[name], expected[name]) for name in first), "other weights went than the smallest left"


@prune_round.holds("weights and masks that it is given are unchanged")
def _(f: Function) -> None:
    weights, masks = _two_layers()
    f(weights, masks, 0.5)
    fresh = _two_layers()
    assert all(torch.equal(weights[name], fresh[0][name]) for name in weights), "the weights were changed"
    assert all(bool(mask.all()) for mask in masks.values()), "the masks that were given were changed"


@prune_round.holds("parameters that carry gradients are fine")
def _(f: Function) -> None:
    weights, masks = _two_layers()
    parameters = {name: torch.nn.Parameter(weight) for name, weight in weights.items()}
    assert _kept(f(parameters, masks, 0.2)) == 43


# ── shuffle_mask ──────────────────────────────────────────────────────────────────────────────────────────────────


def _shuffle_mask(mask: Tensor, seed: int) -> Tensor:
    order = torch.randperm(mask.numel(), generator=torch.Generator().manual_seed(seed))
    return mask.flatten()[order].view(mask.shape)


shuffle_mask = exercise("shuffle_mask", _shuffle_mask)


@shuffle_mask.holds("it gives a bool tensor of the same shape")
def _(f: Function) -> None:
    got = f(_draw(7, 9) > 0, 0)
    assert isinstance(got, Tensor), f"it gave {type(got).__name__}, not a tensor"
    assert got.dtype == torch.bool, f"it gave {got.dtype}, not bool"
    assert got.shape == (7, 9), f"it is {tuple(got.shape)}, not (7, 9)"


@shuffle_mask.holds("exactly as many are kept, whatever the seed")
def _(f: Function) -> None:
    mask = _draw(7, 9) > 0.5
    for seed in range(20):
        got = int(f(mask, seed).sum())
        assert got == int(mask.sum()), f"{int(mask.sum())} were kept, with seed {seed} it keeps {got}"


@shuffle_mask.holds("the same seed gives the same mask, another seed another")
def _(f: Function) -> None:
    mask = _draw(20, 20) > 0
    assert torch.equal(f(mask, 3), f(mask, 3)), "twice the same seed, two masks"
    assert not torch.equal(f(mask, 3), f(mask, 4)), "seeds 3 and 4 give the same mask"


@shuffle_mask.holds("every place is equally likely")
def _(f: Function) -> None:
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[0, 0] = True
    often = torch.stack([f(mask, seed) for seed in range(400)]).sum(0)
    told = f"of 400 shuffles of a single entry, the places got {often.flatten().tolist()}"
    assert abs(often - 50).max() < 28, told  # four standard deviations of 6.6, and a little


@shuffle_mask.holds("neither the mask nor the global random state is changed")
def _(f: Function) -> None:
    mask = _draw(7, 9) > 0
    state = torch.random.get_rng_state()
    f(mask, 0)
    assert torch.equal(mask, _draw(7, 9) > 0), "the mask that it was given was changed"
    assert torch.equal(state, torch.random.get_rng_state()), "the global random state was changed: use a Generator"


# ── barrier_height ────────────────────────────────────────────────────────────────────────────────────────────────


def _barrier_height(errors: list[float]) -> float:
    return max(errors) - (errors[0] + errors[-1]) / 2


barrier_height = exercise("barrier_height", _barrier_height)


@barrier_height.holds("it gives one plain number")
def _(f: Function) -> None:
    got = f([0.02, 0.05, 0.02])
    assert isinstance(got, float), f"it gave {got!r}, of type {type(got).__name__}, not a float"


@barrier_height.holds("a hill of 0.05 between two ends of 0.02 is 0.03 high")
def _(f: Function) -> None:
    got = f([0.02, 0.03, 0.05, 0.03, 0.02])
    assert abs(got - 0.03) < 1e-9, f"it gave {got}"


@barrier_height.holds("a level path has no barrier")
def _(f: Function) -> None:
    assert abs(f([0.1, 0.1, 0.1])) < 1e-9, f"it gave {f([0.1, 0.1, 0.1])}"


@barrier_height.holds("unequal ends count with their mean")
def _(f: Function) -> None:
    got = f([0.02, 0.08, 0.04])
    assert abs(got - 0.05) < 1e-9, f"ends of 0.02 and 0.04, a top of 0.08: it gave {got}, not 0.05"


@barrier_height.holds("a valley on the way is no barrier of its own")
def _(f: Function) -> None:
    got = f([0.06, 0.01, 0.06])
    assert abs(got) < 1e-9, f"it gave {got}: the highest points are the ends"
