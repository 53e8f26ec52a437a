"""Storing a pruned network in few bytes, and getting it back to the bit.

Zeros cost nothing only if the file says where they are. A tensor is written in the shortest of three ways: whole; as a
bitmap (one bit for each entry) and the values that are not zero; or as those values and their positions.
"""

import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pruninglab.files import load_tensors, save_tensors

WAYS = {frozenset(parts) for parts in (["dense"], ["bitmap", "values", "shape"], ["index", "values", "shape"])}


def pack(tensor: Tensor) -> dict[str, Tensor]:
    """What is stored for one tensor: "dense" alone, or "values" and "shape" with either "bitmap" or "index"."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    there = flat.view(torch.uint8).view(len(flat), tensor.element_size()).any(1)  # by bits: −0 is not nothing
    index = there.nonzero().view(-1)
    values = flat[index]
    narrow = torch.uint16 if flat.numel() <= 1 << 16 else torch.int32 if flat.numel() < 1 << 31 else torch.int64
    ways: dict[str, dict[str, Tensor]] = {
        "dense": {"dense": tensor.detach().cpu().contiguous()},
        "bitmap": {"bitmap": torch.from_numpy(np.packbits(there.numpy())), "values": values},
        "index": {"index": index.to(narrow), "values": values},
    }
    for name in ("bitmap", "index"):
        ways[name]["shape"] = torch.tensor(tensor.shape, dtype=torch.int64)
    return min(ways.values(), key=lambda parts: sum(part.nbytes for part in parts.values()))


def unpack(parts: Mapping[str, Tensor]) -> Tensor:
    """The tensor that `pack` took apart."""
    if "dense" in parts:
        return parts["dense"]
    shape = torch.Size(parts["shape"].tolist())
    flat = torch.zeros(shape.numel(), dtype=parts["values"].dtype)
    if "bitmap" in parts:
        where = torch.from_numpy(np.unpackbits(parts["bitmap"].numpy(), count=len(flat)).astype(bool))
    else:
        where = parts["index"].to(torch.int64)
    flat[where] = parts["values"]
    return flat.view(shape)


def save_sparse(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a state dict as one safetensors file in which zeros cost little.

    Raises:
        TypeError: something in it is no tensor.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"a state dict holds tensors only, but {name!r} is {type(value).__name__}")
    save_tensors(path, {f"{name}/{part}": value for name, t in state.items() for part, value in pack(t).items()})


def load_sparse(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read what `save_sparse` wrote, as a state dict.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is not whole, or `save_sparse` did not write it.
    """
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, value in load_tensors(path)[0].items():
        owner, _, part = name.rpartition("/")
        grouped.setdefault(owner, {})[part] = value
    if not all(frozenset(parts) in WAYS for parts in grouped.values()):
        raise ValueError(f"{os.fspath(path)!r} is a safetensors file, but not one that save_sparse wrote")
    return {name: unpack(parts) for name, parts in grouped.items()}
