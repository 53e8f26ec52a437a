"""Which weights of one matrix stay: the best of each row, the best of the layer, or N of every M."""

import numpy as np
import torch
from torch import Tensor

from pruninglab import units
from pruninglab.naming import unknown

GROUPS = ("row", "layer")


def select(scores: Tensor, sparsity: float, group: str = "row", unit: units.Pattern | None = None) -> Tensor:
    """The mask of one layer, True = keep; exactly round(sparsity · weights) go.

    In rows, a number that does not divide evenly is spread: some rows, evenly placed, lose one weight more than others.
    Of equal scores the first goes first.

    Args:
        scores: (outputs, inputs), higher means keep.
        sparsity: the fraction to remove, in [0, 1].
        group: "row" compares the weights of each output among themselves (Wanda), "layer" all of the layer.
        unit: N of every M; the sparsity and the group have nothing to say then.

    Raises:
        ValueError: scores that are NaN, a sparsity out of range, an unknown group.
    """
    if bool(scores.isnan().any()):
        raise ValueError("scores are NaN: are there NaN or infinite numbers among the weights or activations?")
    if unit is not None:
        return unit.choose(scores, "layer")
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is the fraction removed, in [0, 1], not {sparsity}")
    if group not in GROUPS:
        raise unknown("group", group, GROUPS)
    values = scores.detach().float().cpu().numpy()
    table = values.reshape(1, -1) if group == "layer" else values.reshape(len(values), -1)
    goes = np.diff(np.round(np.arange(len(table) + 1) * table.shape[1] * sparsity + 1e-6).astype(int))
    return torch.from_numpy(_above(table, goes)).view(scores.shape).to(scores.device)


def _above(table: np.ndarray, goes: np.ndarray) -> np.ndarray:
    """Bool (rows, columns): all but the goes[r] lowest of each row; of equal ones the first are out."""
    width = table.shape[1]
    ranks = sorted({min(int(n), width - 1) for n in goes})
    ordered = np.partition(table, ranks, axis=1)  # faster than sorting by a factor of ten
    edge = ordered[np.arange(len(table)), np.minimum(goes, width - 1)]
    keep = table >= edge[:, None]
    keep[goes >= width] = False
    for row in np.flatnonzero(keep.sum(1) > width - goes):  # ties at the edge
        keep[row] = True
        keep[row, np.argsort(table[row], kind="stable")[: goes[row]]] = False
    return keep
