"""Shadows: tensors of colours, 0 for none, stored once along dimensions in which they do not change."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors among arguments, in lists and dictionaries too."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value if item is not None for tensor in tensors_in(item)]


def results_in(outputs: Any) -> list[Tensor]:
    """The tensors that a model returns, in an object of its own too; of one with logits only those."""
    outputs = getattr(outputs, "logits", outputs)
    found = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if not found and hasattr(outputs, "__dict__"):
        found = [leaf for leaf in tree_leaves(list(vars(outputs).values())) if isinstance(leaf, Tensor)]
    return found


FILLS = frozenset("full full_like new_full fill_ scalar_tensor".split())


def numbers_of(name: str, function: Any, args: Any, kwargs: Any) -> tuple[float, ...]:
    """The numbers that an operation reckons with, which may have been computed from a width; not its sizes."""
    if torch.Tag.pointwise in function.tags or name in FILLS:
        return numbers_in((*args, *kwargs.values()))
    if name == "native_group_norm":
        return (float(args[6]),)  # groups
    return numbers_in(kwargs[key] for key in ("alpha", "beta") if key in kwargs)  # of products


def numbers_in(args: Iterable[Any]) -> tuple[float, ...]:
    """The numbers among arguments."""
    return tuple(float(arg) for arg in args if isinstance(arg, (int, float)) and not isinstance(arg, bool))


def constants_in(args: Iterable[Any]) -> dict[int, float]:
    """The numbers in tensors of one element, by their place among the arguments, where there are any."""
    held = {i: arg for i, arg in enumerate(args) if isinstance(arg, Tensor) and arg.numel() == 1 and not arg.is_meta}
    return {i: float(arg) for i, arg in held.items() if not arg.is_complex()}


def along(colours: Tensor, dim: int, ndim: int) -> Tensor:
    """A vector as a tensor of `ndim` dimensions, all of size 1 but `dim`."""
    return colours.view([-1 if d == dim else 1 for d in range(ndim)])


def narrow(shadow: Tensor) -> Tensor:
    """Without the repetitions of an expanded tensor: those dimensions become 1."""
    for dim, (size, stride) in enumerate(zip(shadow.shape, shadow.stride(), strict=True)):
        if size > 1 and stride == 0:
            shadow = shadow.narrow(dim, 0, 1)
    return shadow


def tight(shadow: Tensor) -> Tensor:
    """The same colours, stored once along dimensions in which they do not change."""
    small = narrow(shadow)
    for dim, size in enumerate(small.shape):
        if size > 1:
            first = small.narrow(dim, 0, 1)
            if bool((small == first).all()):
                small = first
    return small.contiguous().expand(shadow.shape)


def joined_dimensions(before: torch.Size, after: torch.Size) -> Iterator[list[int]]:
    """Which dimensions a view makes one."""
    i = j = 0
    while i < len(before) and j < len(after):
        dims, left, right = [i], before[i], after[j]
        while left != right:
            if left < right:
                i += 1
                dims.append(i)
                left *= before[i]
            else:
                j += 1
                right *= after[j]
        if len(dims) > 1:
            yield dims
        i, j = i + 1, j + 1


def colours_of(shadow: Tensor | None) -> Tensor:
    """The distinct colours of a shadow, without 0."""
    if shadow is None:
        return torch.zeros(0, dtype=torch.int64)
    distinct = torch.unique(narrow(shadow))
    return distinct[distinct != 0]


def cat(shadows: list[Tensor], dim: int) -> Tensor:
    """`torch.cat` that repeats nothing which no operand varies in."""
    shadows = [shadow for shadow in shadows if shadow.shape != (0,)] or shadows  # as torch does: an empty cache
    ndim, dim = shadows[0].ndim, dim % shadows[0].ndim
    shape = list(shadows[0].shape)
    shape[dim] = sum(shadow.shape[dim] for shadow in shadows)
    for d in range(ndim):
        if d != dim and all(shadow.stride(d) == 0 for shadow in shadows):
            shadows = [shadow.narrow(d, 0, 1) for shadow in shadows]
    return torch.cat(shadows, dim).expand(shape)
