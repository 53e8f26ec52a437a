"""Allocations that need no more than scores and shapes."""

from collections.abc import Mapping

import torch

from pruninglab.allocation.threshold import top_counts
from pruninglab.criteria import Scores


class BudgetError(ValueError):
    """A budget that leaves too little: for any weight at all, or for the floors that were asked for."""


def global_(scores: Mapping[str, Scores], keep: int, *, min_keep: int = 0) -> dict[tuple[str, ...], int]:
    """All layers compete for all places; no layer falls below `min_keep` weights (or its size, if it is smaller).

    The floor is the "minimum threshold" of global magnitude pruning (Gupta et al. 2022), which keeps a layer from being
    emptied. The result is what ranking each layer's `min_keep` best weights first of all would give.

    Raises:
        ValueError: `min_keep` is negative.
        BudgetError: the floors alone need more than `keep` places.
    """
    if min_keep < 0:
        raise ValueError(f"min_keep must be 0 or more weights, not {min_keep}")
    floors = {name: min(min_keep, layer.numel()) for name, layer in scores.items()}
    if sum(floors.values()) > keep:
        raise BudgetError(f"min_keep={min_keep} in {len(scores)} layers needs more than the {keep} places there are")
    free = dict(scores)
    places: dict[tuple[str, ...], int] = {}
    while min_keep:
        # Who falls below the floor takes it and leaves; that raises the threshold for the others, so look again.
        counts = top_counts(free, keep)
        low = [name for name, count in counts.items() if count < floors[name]]
        if not low:
            break
        for name in low:
            places[(name,)] = floors[name]
            keep -= floors[name]
            del free[name]
        if not free or not keep:
            break
    if free:
        places[tuple(free)] = keep
    return places


def uniform(scores: Mapping[str, Scores], keep: int) -> dict[str, int]:
    """The same fraction of every layer."""
    sizes = {name: layer.numel() for name, layer in scores.items()}
    total = sum(sizes.values())
    return _rounded({name: keep * size / total for name, size in sizes.items()}, sizes, keep)


def isomorphic(scores: Mapping[str, Scores], keep: int) -> dict[tuple[str, ...], int]:
    """The same fraction of every kind of layer; layers of one kind compete for it (Fang et al. 2024).

    Scores of unlike structures have unlike sizes, so only like is compared with like. What makes two layers alike is
    `Scores.kind`; layers without one are of one kind.
    """
    kinds: dict[str, list[str]] = {}
    for name, layer in scores.items():
        kinds.setdefault(layer.kind, []).append(name)
    total = sum(layer.numel() for layer in scores.values())
    sizes = {kind: sum(scores[name].numel() for name in names) for kind, names in kinds.items()}
    shares = _rounded({kind: keep * size / total for kind, size in sizes.items()}, sizes, keep)
    return {tuple(names): shares[kind] for kind, names in kinds.items()}


def erk(scores: Mapping[str, Scores], keep: int) -> dict[str, int]:
    """Erdős–Rényi-kernel: density in proportion to (o + d + Σ kernel) / (o · d · Π kernel), at most 1.

    Small layers stay denser than large ones (Mocanu et al. 2018; Evci et al. 2020, §3). Layers that would come out
    above 1 are kept whole and the others are scaled again, until none does.
    """
    ratio = {name: sum(layer.shape) / layer.numel() for name, layer in scores.items()}
    whole: set[str] = set()
    while True:
        rest = keep - sum(scores[name].numel() for name in whole)
        weight = sum(ratio[name] * layer.numel() for name, layer in scores.items() if name not in whole)
        scale = rest / weight if weight else 0.0
        over = {name for name in scores if name not in whole and scale * ratio[name] > 1}
        if not over:
            break
        whole |= over
    shares = {
        name: float(layer.numel()) if name in whole else scale * ratio[name] * layer.numel()
        for name, layer in scores.items()
    }
    return _rounded(shares, {name: layer.numel() for name, layer in scores.items()}, keep)


def lamp(scores: Mapping[str, Scores], keep: int) -> dict[str, int]:
    """Global competition on s² / Σ (s² of the layer's scores that are at least s) (Lee et al. 2021).

    Decides only how many stay in each layer; which ones is left to the scores. The highest of each layer gets 1, so no
    layer is emptied as long as there is a place for each.

    Raises:
        ValueError: some scores are negative, so that squaring them would turn their order round.
    """
    ranked = {}
    for name, layer in scores.items():
        s = layer.tensor().view(-1)
        s = torch.where(s == -torch.inf, 0, s).double()  # −∞ marks what is already gone
        if (s < 0).any():
            raise ValueError(f"lamp needs scores of 0 or more; layer {name!r} has negative ones")
        squares = s.square().sort().values
        at_least = squares.where(squares < torch.inf, 0).flip(0).cumsum(0).flip(0)
        shares = torch.where(at_least > 0, squares / at_least, 0)
        ranked[name] = Scores.of(name, shares.where(squares < torch.inf, torch.inf))  # +∞ has to stay
    return top_counts(ranked, keep)


def _rounded(shares: Mapping[str, float], sizes: Mapping[str, int], keep: int) -> dict[str, int]:
    """Whole numbers near the shares that add up to `keep`: round down, then give the rest by largest remainder."""
    places = {name: min(int(share), sizes[name]) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: places[name] - shares[name])
    left = keep - sum(places.values())
    while left:
        step = 1 if left > 0 else -1
        for name in by_remainder if left > 0 else reversed(by_remainder):
            if left and 0 <= places[name] + step <= sizes[name]:
                places[name] += step
                left -= step
    return places
