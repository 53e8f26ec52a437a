"""Families of channels: which stand for each other, and which must shrink by the same fraction.

A family goes in *slots*, each the least that can be removed without breaking what a view, a grouped convolution or
attention divides evenly.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pruninglab.graph import Graph

HEADS = "heads"  # the kind of a family of attention heads


@dataclass(frozen=True)
class Family:
    """Channels that shrink together.

    Attributes:
        layers: the parameters at whose outputs these channels begin.
        cells: channels that stand for each other; each cell loses the same fraction.
        slots: into how many steps that fraction is divided.
        multiple: the width of a layer changes by this many channels with each slot.
        ties: sets of blocks of channels that must lose equally many; used where there is no common slot.
        kind: families of one kind have the same places in the same kinds of modules.
    """

    layers: tuple[str, ...]
    cells: tuple[Tensor, ...]
    slots: int
    multiple: int
    ties: tuple[tuple[tuple[int, ...], ...], ...] = ()
    kind: str = ""

    @property
    def uneven(self) -> bool:
        """Whether its cells have no common divisor, so that it cannot shrink by one fraction."""
        return self.slots == 1 and len(self.cells) > 1

    @property
    def channels(self) -> int:
        return sum(len(cell) for cell in self.cells)


def head_families(graph: "Graph") -> list[Family]:
    """Attention's heads, layer by layer; one cell for each head, or for the heads that share keys and values.

    Args:
        graph: traced with `whole_heads=True`.
    """
    number = graph.number
    pairs = graph.colouring.members_of_head
    sets = [torch.cat([number[head].view(1), number[members]]).numpy() for head, members in pairs]
    component = torch.from_numpy(_components(graph.n, sets).astype(np.int64))
    layers: dict[tuple[str, ...], list[Tensor]] = {}
    for c in torch.unique(component[[int(s[0]) for s in sets]]).tolist():
        channels = (component == c).nonzero().reshape(-1)
        if not any(channel in graph.kept for channel in channels.tolist()):
            inside = torch.isin(torch.arange(graph.n + 1), channels)
            names = tuple(name for (name, _), born in graph.births.items() if bool(inside[born].any()))
            layers.setdefault(names, []).append(channels)
    return [Family(names, tuple(heads), len(heads), 1, kind=HEADS) for names, heads in layers.items()]


def with_kinds(families: list[Family], n: int, cuts: dict[str, list[Tensor]], model: nn.Module) -> list[Family]:
    """Name the kind of each family: in which places of which kinds of modules its channels lie."""
    modules = dict(model.named_modules())
    family = torch.full((n + 1,), -1, dtype=torch.int64)
    for f, found in enumerate(families):
        family[torch.cat(found.cells)] = f
    places: list[set[str]] = [set() for _ in families]
    for name, tensors in cuts.items():
        path, _, own = name.rpartition(".")
        for channels in tensors:
            dim = max((d for d, size in enumerate(channels.shape) if size > 1), default=0)
            for f in torch.unique(family[channels]).tolist():
                if f >= 0:
                    places[f].add(f"{type(modules[path]).__name__}.{own}[{dim}]")
    return [replace(found, kind=" ".join(sorted(where))) for found, where in zip(families, places, strict=True)]


def families(
    n: int, kept: dict[int, str], births: dict[tuple[str, int], Tensor], ties: list[list[np.ndarray]]
) -> list[Family]:
    """Cells of interchangeable channels, and which cells must shrink by the same fraction."""
    if not n:
        return []
    distinct = list({tuple(block.tobytes() for block in tie): tie for tie in ties if tie}.values())
    # Channels of one layer that are in the same blocks form a cell. A number is drawn for each layer and each block;
    # their sum tells cells apart (that two sums of 64 bits meet by chance is not to be expected in any lifetime).
    axis, draw = _components(n, (channels.numpy() for channels in births.values())), np.random.default_rng(0)
    signature = draw.integers(2**64, size=n, dtype=np.uint64)[axis]
    for block in (block for tie in distinct for block in tie):
        signature[block] += draw.integers(2**64, dtype=np.uint64)  # a channel that comes twice counts once
    _, first, which = np.unique(signature, return_index=True, return_inverse=True)
    cell, keys = np.argsort(np.argsort(first))[which], len(first)  # numbered as they come
    joined = _components(keys, (np.unique(cell[np.concatenate(tie)]) for tie in distinct))
    order = np.argsort(cell, kind="stable")
    members_of = np.split(order, np.cumsum(np.bincount(cell, minlength=keys))[:-1])
    cells: dict[int, list[Tensor]] = {}
    for k in range(keys):
        cells.setdefault(int(joined[k]), []).append(torch.from_numpy(members_of[k]))
    frozen = torch.zeros(n, dtype=torch.bool)
    frozen[list(kept)] = True
    family = torch.from_numpy(joined[cell])
    counted: dict[int, dict[str, int]] = {}
    for (name, _), channels in births.items():
        which, counts = torch.unique(family[channels[channels >= 0]], return_counts=True)
        for f, count in zip(which.tolist(), counts.tolist(), strict=True):
            counted.setdefault(f, {})[name] = count
    found = []
    for f, group in cells.items():
        if any(bool(frozen[members].any()) for members in group):
            for members in group:  # a cell shrinks as a whole family does, so one that must stay holds the others
                for c in members.tolist():
                    kept.setdefault(c, "tied to what stays")
            continue
        slots = math.gcd(*(len(members) for members in group))
        layers = counted.get(f, {})
        if not layers:  # attention's heads, which stand in families of their own
            continue
        mine = set(torch.cat(group).tolist()) if slots == 1 and len(group) > 1 else set()
        own = tuple(
            tuple(tuple(b.tolist()) for b in tie) for tie in distinct if mine and mine.issuperset(tie[0].tolist())
        )
        found.append(Family(tuple(layers), tuple(group), slots, max(1, min(layers.values()) // slots), own))
    return found


def _components(n: int, sets: Iterable[np.ndarray]) -> np.ndarray:
    """The connected component of each of n things, where the members of each set are connected."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    left, right = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for members in sets:
        members = members[members >= 0]
        if len(members) > 1:
            left.append(np.broadcast_to(members[:1], len(members) - 1))
            right.append(members[1:])
    rows, columns = np.concatenate(left), np.concatenate(right)
    matrix = coo_matrix((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(n, n))
    return connected_components(matrix, directed=False)[1]
