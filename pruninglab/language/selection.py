"""Which weights of one matrix stay: the best of each row, the best of the layer, or N of every M."""

import numpy as np
import torch
from torch import Tensor

from pruninglab import units
from pruninglab.naming import unknown

GROUPS = ("row", "layer")
PIECE = 1 << 16  # scores compared at a time, in whole rows: they stay in the processor's cache


def select(
    scores: Tensor, sparsity: float, group: str = "row", unit: units.Pattern | None = None, name: str = "layer"
) -> Tensor:
    """The mask of one layer, True = keep; exactly round(sparsity · weights) go.

    In rows, a number that does not divide evenly is spread: some rows, evenly placed, lose one weight more than others.
    Of equal scores the first goes first.

    Args:
        scores: (outputs, inputs), higher means keep.
        sparsity: the fraction to remove, in [0, 1].
        group: "row" compares the weights of each output among themselves (Wanda), "layer" all of the layer.
        unit: N of every M; the sparsity and the group have nothing to say then, and of equal scores the first stays.
        name: of the layer, for errors.

    Raises:
        ValueError: scores that are NaN, a sparsity out of range, an unknown group, or inputs that N:M does not divide.
    """
    if group not in GROUPS:
        raise unknown("group", group, GROUPS)
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is the fraction removed, in [0, 1], not {sparsity}")
    exact = torch.promote_types(scores.dtype, torch.float32)
    values = scores.detach().to("cpu", exact).contiguous().numpy()
    if np.isnan(values.min()):
        raise ValueError(f"scores of {name} are NaN: are there NaN or infinite numbers among its weights or inputs?")
    if unit is not None:
        return unit.choose(scores, name)
    table = values.reshape(1, -1) if group == "layer" else values.reshape(len(values), -1)
    goes = np.diff(np.round(np.arange(len(table) + 1) * table.shape[1] * sparsity + 1e-6).astype(int))
    pieces = min(len(table), 1 + table.size // PIECE)
    keep = np.concatenate(list(map(_best, np.array_split(table, pieces), np.array_split(goes, pieces))))
    return torch.from_numpy(keep).view(scores.shape).to(scores.device)


def _best(table: np.ndarray, goes: np.ndarray) -> np.ndarray:
    """Bool (rows, columns): all but the `goes` lowest of each row; of equal ones the first are out."""
    width = table.shape[1]
    places = np.minimum(goes, width - 1)
    ordered = np.partition(table, np.unique(places), axis=1)  # faster than sorting by a factor of ten
    edge = np.take_along_axis(ordered, places[:, None], axis=1)
    keep = table >= edge
    over = np.count_nonzero(keep, axis=1) - (width - goes)
    for row in np.flatnonzero(over):  # so many of those at the edge go too
        keep[row, np.flatnonzero(table[row] == edge[row])[: over[row]]] = False
    return keep
