"""Calibration data of every accepted form, cut into batches of inputs and labels.

Knows nothing of models: what is done with a batch is the business of `pruninglab.statistics`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
BATCH = 128  # samples at a time when the data come as whole tensors or as a dataset


def batches(data: Any) -> Iterator[tuple[Any, Any]]:
    """Cut calibration data of any accepted form into `(x, y)` batches; y is None where there are no labels.

    Whole tensors are cut into parts of nearly equal length, so that no norm ever sees a batch of one alone.
    """
    if isinstance(data, Tensor):
        data = _cut(data)
    elif isinstance(data, Dataset):
        data = DataLoader(data, BATCH)
    elif isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        _same_length(*data)
        data = zip(*map(_cut, data), strict=True)
    for batch in data:
        parts = batch if isinstance(batch, (tuple, list)) else (batch,)
        if len(parts) not in (1, 2):
            raise ValueError(f"a batch of data is (x, y) or x alone, not {len(parts)} things")
        x, y = (*parts, None)[:2]
        x = dict(x) if isinstance(x, Mapping) else x
        if y is not None:
            _same_length(x, y)
        if length(x, "inputs"):
            yield x, y


def tensors_of(data: Any) -> list[Tensor]:
    """All tensors in calibration data of any accepted form, to tell them from other data by."""
    return [leaf for leaf in tree_leaves(list(batches(data))) if isinstance(leaf, Tensor)]


def _cut(whole: Tensor) -> Sequence[Tensor]:
    return whole.tensor_split(max(1, math.ceil(len(whole) / BATCH)))


def _same_length(x: Any, y: Any) -> None:
    if length(x, "inputs") != length(y, "labels"):
        raise ValueError(f"a batch of data holds {length(x, 'inputs')} inputs but {length(y, 'labels')} labels")


def length(part: Any, what: str) -> int:
    """How many samples inputs or labels hold: the length of the first tensor in them."""
    first = next((leaf for leaf in tree_leaves(part) if isinstance(leaf, Tensor)), None)
    if first is None or not first.ndim:
        raise ValueError(f"{what} of a batch must be a tensor with the samples first, or hold one, not {part!r:.60}")
    return len(first)


def to_device(part: Any, device: torch.device) -> Any:
    """Inputs or labels with all their tensors on a device."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, part)


def call(model: nn.Module, inputs: Inputs) -> Any:
    """The model's outputs for a tensor, a tuple of arguments, or a dict of named ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)
