"""Keeping exactly the k highest scores of many layers, without sorting or joining them.

A float's bits, read as a whole number, are in the float's own order (negative floats run backwards). So the k-th
highest score is found digit by digit, where a digit is 16 bits: count how often each leading digit occurs, see in which
of the 65536 the k-th highest lies, and go on with the next digit of the scores that begin like this (a radix select).
Each digit takes one reading of the scores, and no score is ever stored; of equal scores at the edge the ones that come
first are kept.
"""

from collections.abc import Iterator, Mapping
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from pruninglab.criteria import Scores

_INTS = {16: torch.int16, 32: torch.int32, 64: torch.int64}
_DIGITS = 1 << 16
_UP, _DOWN = np.arange(_DIGITS), np.arange(_DIGITS)[::-1]
# Leading digits from the highest float to the lowest: those of negative floats (the sign bit set) come last, upwards.
_LEADING = np.concatenate([_DOWN[_DIGITS // 2 :], _UP[_DIGITS // 2 :]])


def count_above(scores: Mapping[str, Scores], threshold: float) -> dict[str, int]:
    """How many scores of each layer are strictly above a threshold."""
    counts = dict.fromkeys(scores, 0)
    for name, _, numbers in _numbers(scores):
        counts[name] += int(np.count_nonzero(numbers > threshold))
    return counts


@torch.no_grad()
def top_masks(scores: Mapping[str, Scores], keep: int) -> dict[str, Tensor]:
    """Keep the `keep` highest scores of all layers together; ties go to the earlier layer, then the lower index.

    Returns:
        Layer → bool tensor of the shape of its scores, with exactly `keep` True in all.

    Raises:
        ValueError: `keep` is negative or more than there are scores.
    """
    total = sum(layer.numel() for layer in scores.values())
    if not 0 <= keep <= total:
        raise ValueError(f"cannot keep {keep} of {total}")
    masks = {name: np.full(layer.numel(), keep > 0) for name, layer in scores.items()}
    if 0 < keep < total:
        threshold, room = _edge(scores, keep)
        for name, place, numbers in _numbers(scores):
            np.greater(numbers, threshold, out=masks[name][place])
            if room:
                tied = np.flatnonzero(numbers == threshold)[:room]
                masks[name][place][tied] = True
                room -= len(tied)
    return {
        name: torch.from_numpy(masks[name]).view(layer.shape).to(next(layer.pieces()).device)
        for name, layer in scores.items()
    }


def top_counts(scores: Mapping[str, Scores], keep: int) -> dict[str, int]:
    """How many of each layer are among the `keep` highest scores, as `top_masks` chooses them."""
    return {name: int(torch.count_nonzero(mask)) for name, mask in top_masks(scores, keep).items()}


def _edge(scores: Mapping[str, Scores], k: int) -> tuple[float, int]:
    """The k-th highest score, and how many of those equal to it are among the k highest."""
    dtype = _shared_type(scores)
    width = 8 * dtype.itemsize
    known, left = 0, k  # the score sought is the left-th highest of those whose bits begin with `known`
    for shift in range(width - 16, -1, -16):
        counts = np.zeros(_DIGITS, dtype=np.int64)
        for _, _, piece in _read(scores, dtype):
            bits = piece.view(_INTS[width]).numpy().view(f"u{dtype.itemsize}")
            if shift == width - 16:
                found = np.bincount(_digit(bits, shift))
                counts[: len(found)] += found
            else:
                np.add.at(counts, _digit(bits[bits >> shift + 16 == known], shift), 1)
        # The first bit known is the sign.
        order = _LEADING if shift == width - 16 else _UP if known >> (width - shift - 17) else _DOWN
        through = counts[order].cumsum()
        at = int(np.searchsorted(through, left))
        left -= int(through[at] - counts[order[at]])
        known = known << 16 | int(order[at])
    threshold = torch.from_numpy(np.array([known], dtype=f"u{dtype.itemsize}")).view(dtype).item()
    if threshold == 0:  # 0 and −0 are equal, but not their bits
        left = k - sum(count_above(scores, 0.0).values())
    return threshold, left


def _digit(bits: np.ndarray, shift: int) -> np.ndarray:
    """The 16 bits that begin at bit `shift`."""
    return bits.view(np.uint16)[shift // 16 :: bits.itemsize // 2]


def _shared_type(scores: Mapping[str, Scores]) -> torch.dtype:
    """The smallest type that holds the scores of every layer exactly."""
    return reduce(torch.promote_types, [next(layer.pieces()).dtype for layer in scores.values()])


def _read(scores: Mapping[str, Scores], dtype: torch.dtype) -> Iterator[tuple[str, slice, Tensor]]:
    """The scores piece by piece, as one type: layer, place in the layer, and the scores there."""
    for name, layer in scores.items():
        start = 0
        for piece in layer.pieces():
            yield name, slice(start, start + len(piece)), piece.to("cpu", dtype)
            start += len(piece)


def _numbers(scores: Mapping[str, Scores]) -> Iterator[tuple[str, slice, np.ndarray]]:
    """The same as NumPy arrays: NumPy compares and counts several times faster than torch does."""
    dtype = torch.promote_types(_shared_type(scores), torch.float32)  # NumPy is slow with smaller floats
    for name, place, piece in _read(scores, dtype):
        yield name, place, piece.numpy()
