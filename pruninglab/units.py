"""What is removed? Single weights, N of every M, blocks, or rows.

There are four kinds of answer. A `Pattern` decides by itself inside each layer (N of every M: the sparsity follows); a
`Mixture` does so with an N for each layer that the allocation chooses.
A `Grouping` only says which weights go together; whole groups then compete, each with the mean of its weights' scores.
A `Structure` can be cut out of the network afterwards. Single weights are none of these: they compete as they are.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruninglab.naming import unknown

STRUCTURES = ("channel", "head", "layer")
REMAINDERS = ("error", "dense", "partial")


@dataclass(frozen=True)
class Pattern:
    """A unit that fixes the sparsity of each layer. `choose(scores, layer_name)` gives the layer's mask."""

    name: str
    density: float
    choose: Callable[[Tensor, str], Tensor]


@dataclass(frozen=True)
class Grouping:
    """A unit of several weights. `labels(shape)` numbers the unit of each weight, from 0 without a gap."""

    name: str
    labels: Callable[[torch.Size], Tensor]


@dataclass(frozen=True)
class Structure:
    """A unit that can be cut out of the network, so that what is left is really smaller (see `channels`, `surgery`).

    Attributes:
        name: "channel", "head" or "layer".
        multiple_of: widths are rounded to multiples of this, which processors like; less where a layer is narrow.
        combine: how the scores of all that goes together become one: "sum", "mean" or "l2".
        normalize: what each layer's scores are divided by before: None, or their "mean", "l2" norm or "max".
        floor: how many channels every layer keeps at least.
    """

    name: str = "channel"
    multiple_of: int = 16
    combine: str = "sum"
    normalize: str | None = None
    floor: int = 1


@dataclass(frozen=True)
class Mixture:
    """N of every M with an N for each layer, which the allocation chooses ("n:4")."""

    m: int

    @property
    def name(self) -> str:
        return f"n:{self.m}"


Unit = Pattern | Grouping | Structure | Mixture | None
Answer = str | Pattern | Grouping | Structure | Mixture  # what `find` takes


def find(answer: Answer) -> Unit:
    """The unit of this name; None stands for single weights.

    Names: "weight", "row", "block" (4×4), "RxC" (a block of R rows and C columns), "N:M" (N kept of every M), "n:M" (N
    of every M with an N for each layer that the allocation chooses), and what can be cut out: "channel", "head" and
    "layer".

    Raises:
        ValueError: no unit has this name.
    """
    if isinstance(answer, (Pattern, Grouping, Structure, Mixture)):
        return answer
    if answer in STRUCTURES:
        return structure(answer)
    if match := re.fullmatch(r"(\d+):(\d+)", str(answer)):
        return nm(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"n:(\d+)", str(answer)):
        return mixture(int(match[1]))
    if match := re.fullmatch(r"(\d+)x(\d+)", str(answer)):
        return block(int(match[1]), int(match[2]))
    if answer == "weight":
        return None
    if answer == "row":
        return row()
    if answer == "block":
        return block()
    raise unknown("unit", answer, ("weight", "row", "block", "4x4", "2:4", "1:4", "4:8", "n:4", *STRUCTURES))


def structure(
    name: str = "channel",
    *,
    multiple_of: int = 16,
    combine: str = "sum",
    normalize: str | None = None,
    floor: int = 1,
) -> Structure:
    """Channels, attention heads or residual blocks, with other settings than the usual ones; see `Structure`.

    Raises:
        ValueError: a setting that is not allowed.
    """
    if name not in STRUCTURES:
        raise unknown("structure", name, STRUCTURES)
    if combine not in ("sum", "mean", "l2"):
        raise unknown("combine", combine, ("sum", "mean", "l2"))
    if normalize not in (None, "mean", "l2", "max"):
        raise unknown("normalize", normalize, ("mean", "l2", "max"))
    if multiple_of < 1 or floor < 1:
        raise ValueError(f"multiple_of and floor are at least 1, not {multiple_of} and {floor}")
    return Structure(name, multiple_of, combine, normalize, floor)


def row() -> Grouping:
    """All weights of one output: a row of a linear layer, a filter of a convolution (still there, but zero)."""
    return Grouping("row", lambda shape: torch.arange(shape[0]).repeat_interleave(shape[1:].numel()).view(shape))


def block(rows: int = 4, columns: int = 4) -> Grouping:
    """Rectangles of the weight seen as a matrix (outputs × everything else); smaller ones at the edges.

    Raises:
        ValueError: a side is less than 1.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"a block has at least one row and one column, not {rows}x{columns}")

    def labels(shape: torch.Size) -> Tensor:
        width = shape[1:].numel()
        across = -(-width // columns)
        i, j = torch.arange(shape[0]) // rows, torch.arange(width) // columns
        return (i.view(-1, 1) * across + j).view(shape)

    return Grouping(f"{rows}x{columns}", labels)


def nm(n: int, m: int, remainder: str = "error") -> Pattern:
    """N *kept* of every M consecutive weights along the input dimension (so 1:4 is 75 % sparse).

    For a convolution the input dimension is the channels, for each kernel position on its own.
    Of equal scores the first is kept.

    Args:
        n: how many of a group stay.
        m: the group's size.
        remainder: what happens to the last r < M inputs where M does not divide the width: "error" raises,
            "dense" keeps them all, "partial" keeps ⌈n·r/m⌉ of them.

    Raises:
        ValueError: not 1 ≤ n < m, or an unknown `remainder`; from `choose`, a width that M does not divide.
    """
    if not 1 <= n < m:
        raise ValueError(f"N:M keeps N of M, so 1 ≤ N < M; not {n}:{m}")
    if remainder not in REMAINDERS:
        raise unknown("remainder", remainder, REMAINDERS)

    def choose(scores: Tensor, layer: str) -> Tensor:
        width = scores.shape[1]
        over = width % m
        if over and remainder == "error":
            raise ValueError(
                f"{n}:{m} does not fit layer {layer!r}: {m} does not divide its {width} inputs. Leave it out with "
                f"exclude={layer!r}, or choose unit=nm({n}, {m}, remainder='dense') or remainder='partial'"
            )
        last = scores.movedim(1, -1)
        mask = torch.ones(last.shape, dtype=torch.bool, device=scores.device)
        whole = width - over
        if whole:
            mask[..., :whole] = _best_of_each(last[..., :whole].reshape(-1, m), n).view(*last.shape[:-1], whole)
        if over and remainder == "partial":
            tail = last[..., whole:].reshape(-1, over)
            mask[..., whole:] = _best_of_each(tail, -(-n * over // m)).view(*last.shape[:-1], over)
        return mask.movedim(-1, 1).contiguous()

    return Pattern(f"{n}:{m}" if remainder == "error" else f"{n}:{m} ({remainder})", n / m, choose)


def mixture(m: int) -> Mixture:
    """N kept of every M consecutive weights, with an N from 1 to M for each layer.

    Raises:
        ValueError: M is less than 2.
    """
    if m < 2:
        raise ValueError(f"N:M needs an M of at least 2, not {m}")
    return Mixture(m)


def _best_of_each(groups: Tensor, n: int) -> Tensor:
    """The mask of the n highest of each row of (number of groups, size)."""
    # NumPy, in pieces that stay in the cache: on such short steps it is several times as fast as torch.
    size = groups.shape[1]
    scores = groups.to("cpu", torch.promote_types(groups.dtype, torch.float32)).numpy().reshape(-1)
    mask = np.empty(scores.shape, dtype=bool)
    piece = size * max(1, (1 << 16) // size)  # whole groups
    place: Any = np.tile(np.arange(size, dtype=np.uint8 if size < 256 else np.int32), piece // size)
    for start in range(0, len(scores), piece):
        part, out = scores[start : start + piece], mask[start : start + piece]
        # A member's rank is how many others beat it: all earlier ones, until a comparison says otherwise.
        rank = place[: len(part)].copy()
        for d in range(1, size):  # each member against the d-th after it, if that is of the same group
            later_wins = ((part[d:] > part[:-d]) & (place[: len(part) - d] < size - d)).view(np.uint8)
            rank[:-d] += later_wins
            rank[d:] -= later_wins
        np.less(rank, n, out=out)
    return torch.from_numpy(mask).view(groups.shape).to(groups.device)
