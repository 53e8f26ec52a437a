"""The levels at which a layer can be pruned, from whole to nothing, each a part of the one before.

A `Ladder` is what `distortion` climbs down: single weights, N of every M for N = M … 1, or channels, all in the same
form, namely at which level each entry of a parameter becomes zero.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruninglab.channels import Ranking
from pruninglab.criteria import Scores
from pruninglab.graph import Graph
from pruninglab.units import nm


@dataclass(frozen=True)
class Ladder:
    """The levels of one layer, or of one family of channels.

    Attributes:
        name: of the layer.
        kept: how many weights (or channels) each level leaves, falling, (levels,).
        removed_at: parameter name → the first level at which each entry is zero, shaped like the parameter; entries
            that no level removes have the number of levels.
    """

    name: str
    kept: NDArray[np.int64]
    removed_at: dict[str, Tensor]

    def mask(self, parameter: str, level: int) -> Tensor:
        """What a level leaves of a parameter: bool, True = keep."""
        return self.removed_at[parameter] > level


def check_levels(levels: int | Iterable[float]) -> NDArray[np.float64]:
    """The fractions removed at each level: so many equal steps from 0 to 1, or those that are given.

    Raises:
        ValueError: fewer than two, not rising, not within [0, 1], or not beginning with 0.
    """
    if isinstance(levels, int):
        if levels < 2:
            raise ValueError(f"levels must be at least 2, from nothing removed to everything; not {levels}")
        return np.linspace(0.0, 1.0, levels)
    fractions = np.asarray(list(levels), dtype=np.float64)
    if len(fractions) < 2 or fractions[0] != 0 or not (np.diff(fractions) > 0).all() or fractions[-1] > 1:
        raise ValueError(f"levels must rise from 0 to at most 1, like [0, 0.5, 0.9]; not {fractions.tolist()}")
    return fractions


def weight_ladders(scores: Mapping[str, Scores], levels: int | Iterable[float] = 101) -> list[Ladder]:
    """Single weights: level φ removes the ⌊φ n⌋ weights of a layer that score lowest (of equal ones the last)."""
    fractions = check_levels(levels)
    ladders = []
    for name, layer in scores.items():
        gone = np.floor(fractions * layer.numel() + 1e-9).astype(np.int64)
        order = layer.tensor().reshape(-1).argsort(descending=True, stable=True).flip(0).cpu()
        at = torch.empty(layer.numel(), dtype=torch.int16 if len(gone) < 1 << 15 else torch.int32)
        at[order] = torch.from_numpy(np.searchsorted(gone, np.arange(len(order)), side="right")).to(at.dtype)
        ladders.append(Ladder(name, layer.numel() - gone, {name: at.view(layer.shape)}))
    return ladders


def pattern_ladders(scores: Mapping[str, Scores], m: int) -> list[Ladder]:
    """N of every M: level k keeps N = M − k of every M consecutive inputs, down to one.

    Raises:
        ValueError: M does not divide a layer's inputs.
    """
    ladders = []
    for name, layer in scores.items():
        first = torch.full(layer.shape, m, dtype=torch.int16)
        for n in range(1, m):  # what even the best N + 1 leave out was gone before: later, smaller levels win
            first[~nm(n, m).choose(layer.tensor(), name).cpu()] = m - n
        kept = np.array([layer.numel() // m * n for n in range(m, 0, -1)])
        ladders.append(Ladder(name, kept, {name: first}))
    return ladders


def channel_ladders(model: nn.Module, graph: Graph, rankings: Mapping[str, Ranking]) -> list[Ladder]:
    """Channels: each level takes one step of a family, the worst channels first, down to the family's floor."""
    parameters, ladders = dict(model.named_parameters()), []
    for name, ranking in rankings.items():
        sizes, last = ranking.sizes, len(ranking.steps) - ranking.floor
        kept = np.array([sum(sizes[:left]) for left in range(len(sizes), ranking.floor - 1, -1)])
        level_of = torch.full((graph.n + 1,), last + 1, dtype=torch.int32)  # the last entry stands for "no channel"
        for level in range(1, last + 1):
            level_of[ranking.steps[len(sizes) - level]] = level
        removed_at = {}
        for parameter in graph.cuts.keys() & parameters.keys():
            parts = [level_of[channels] for channels in graph.cuts[parameter]]
            first = parts[0]
            for part in parts[1:]:
                first = torch.minimum(first, part)
            if bool((first <= last).any()):
                removed_at[parameter] = first.expand(parameters[parameter].shape)
        ladders.append(Ladder(name, kept, dict(sorted(removed_at.items()))))
    return ladders


def at_levels(ladders: Sequence[Ladder], levels: Sequence[int]) -> dict[str, Tensor]:
    """Parameter name → what stays of it when each ladder is at its level."""
    masks: dict[str, Tensor] = {}
    for ladder, level in zip(ladders, levels, strict=True):
        for parameter in ladder.removed_at:
            mask = ladder.mask(parameter, level)
            masks[parameter] = masks[parameter] & mask if parameter in masks else mask
    return masks
