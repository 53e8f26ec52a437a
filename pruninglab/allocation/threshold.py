"""Keeping exactly the k highest scores of many layers, without sorting or joining them.

A float's bits, read as an integer, are in the float's own order. So a histogram of the leading 16 bits, made in one
reading, tells in which narrow bin the k-th highest score lies; only that bin's few scores are then ranked exactly.
No score is ever copied but those, and of equal scores at the edge the ones that come first are kept.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pruninglab.criteria import Scores

_INTS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_BINS = 1 << 16


def _bins(scores: Tensor) -> Tensor:
    """The leading 16 bits of each float, as a number in [0, 65536): sign first, so negative floats lie above 32767."""
    bits = scores.view(_INTS[scores.element_size()])
    leading = bits.to(torch.int32) if scores.element_size() == 2 else bits >> (8 * scores.element_size() - 16)
    return leading.bitwise_and_(_BINS - 1)


# Bins from the lowest float to the highest: negative ones run backwards.
_ORDER = torch.cat([torch.arange(_BINS - 1, _BINS // 2 - 1, -1), torch.arange(_BINS // 2)])


def kth_highest(scores: Mapping[str, Scores], k: int) -> float:
    """The k-th highest of all scores together (k from 1 to their number)."""
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for layer in scores.values():
        for piece in layer.pieces():
            counts += torch.bincount(_bins(piece), minlength=_BINS).cpu()
    ordered = counts[_ORDER]
    above = ordered.flip(0).cumsum(0).flip(0)  # how many scores lie in this bin or a higher one
    position = int((above >= k).nonzero().max())
    rank = k - int(above[position] - ordered[position])
    edge = int(_ORDER[position])
    edge -= _BINS * (edge >= _BINS // 2)  # as the signed number that the leading bits spell
    inside = [_in_bin(piece, edge) for layer in scores.values() for piece in layer.pieces()]
    together = np.concatenate(inside)
    at = len(together) - rank
    return float(np.partition(together, at)[at])


def _in_bin(scores: Tensor, edge: int) -> np.ndarray:
    """The scores whose leading 16 bits are `edge`. NumPy picks few out of many twice as fast as torch does."""
    size = scores.element_size()
    bits = scores.cpu().view(_INTS[size]).numpy()
    found = bits[bits >> (8 * size - 16) == edge]
    return torch.from_numpy(found).view(scores.dtype).double().numpy()


def count_above(scores: Mapping[str, Scores], threshold: float) -> dict[str, int]:
    """How many scores of each layer are strictly above a threshold."""
    return {
        name: sum(int(torch.count_nonzero(piece > threshold)) for piece in layer.pieces())
        for name, layer in scores.items()
    }


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
    if keep in (0, total):
        return {
            name: torch.full(layer.shape, keep > 0, device=next(layer.pieces()).device)
            for name, layer in scores.items()
        }
    threshold = kth_highest(scores, keep)
    masks, excess = {}, -keep
    for name, layer in scores.items():
        mask = torch.empty(layer.numel(), dtype=torch.bool, device=next(layer.pieces()).device)
        start = 0
        for piece in layer.pieces():
            torch.ge(piece, threshold, out=mask[start : start + len(piece)])
            start += len(piece)
        excess += int(np.count_nonzero(mask.cpu().numpy()))
        masks[name] = mask.view(layer.shape)
    for name in reversed(list(scores)):  # more scores equal the threshold than there are places: the last ones go
        if excess:
            tied = (scores[name].tensor().view(-1) == threshold).nonzero().view(-1)[-excess:]
            masks[name].view(-1)[tied] = False
            excess -= len(tied)
    return masks
