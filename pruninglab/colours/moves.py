"""What only moves numbers: the same is done to the shadow."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pruninglab.colours.palette import Palette
from pruninglab.colours.shadows import along, cat, colours_of, joined_dimensions, narrow, tensors_in

PLACING = frozenset({"slice", "select", "index", "index_select", "roll", "flip", "split_with_sizes", "gather"})
SPLITS = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias"})


def moved(c: Palette, name: str, out: Any, args: Any, kwargs: Any) -> None:
    """Do to the shadow what is done to the tensor, and note which parts must shrink alike."""
    tensors = tensors_in((args, kwargs))
    moving = tensors
    if name in ("index", "index_select", "gather"):
        moving, places = tensors[:1], tensors[1:]
        if any(c.shadow(place) is not None for place in places):  # what is picked depends on what the channels hold
            for tensor in tensors:
                c.freeze(c.shadow(tensor), f"{name} depends on the data")
            return
    if not any(t in c.shadows for t in moving) and all(c.leaf(part) for part in tensors_in(out)):
        return  # a view of a parameter is found again by its storage
    shadows = {id(t): c.as_activation(t) for t in moving}
    if all(shadow is None for shadow in shadows.values()):
        return
    if name in ("_to_copy", "clone", "alias", "detach", "contiguous", "lift_fresh", "positive", "tril", "triu"):
        c.put(out, shadows[id(moving[0])])
        return

    def swap(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or id(leaf) not in shadows:
            return leaf
        shadow = shadows[id(leaf)]
        return torch.zeros(leaf.shape, dtype=torch.int64) if shadow is None else shadow

    first: Any = shadows[id(moving[0])]
    if name in SPLITS:
        result: Any = merged(c, first, out.shape).reshape(out.shape)
    elif name in ("roll", "flip") and not any(c.varies(first, d) for d in args[-1]):
        result = first
    elif name == "cat":
        result = cat([swap(t) for t in args[0]], args[1] if len(args) > 1 else kwargs.get("dim", 0))
    elif name == "constant_pad_nd":
        result = padded(c, swap(args[0]), args[1])
    else:
        options = {key: tree_map(swap, value) for key, value in kwargs.items() if key in ("dim", "index", "dims")}
        plain = name if name.startswith("_") else name.rstrip("_")
        result = getattr(torch.ops.aten, plain)(*tree_map(swap, args), **options)
    for tensor, shadow in zip(tensors_in(out), tensors_in(result), strict=True):
        c.put(tensor, shadow)
    if name in PLACING and not c.by_place:
        c.by_place = picks_channels(c, name, args, first, result)
    if name in SPLITS and result.ndim > 1 and (seen := c.shadow(out)) is not None:
        c.views.append(seen)
    if name in ("split", "unsafe_split", "split_with_sizes", "chunk"):
        dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
        if c.varies(first, dim):
            parts = [c.shadow(tensor) for tensor in tensors_in(out)]
            c.ties.append([row for part in parts if part is not None for row in lines(c, part, dim)])
    if name == "slice" and out.shape != args[0].shape:
        whole, part = colours_of(first), colours_of(c.shadow(out))
        rest = whole[~torch.isin(whole, part)]
        if len(rest) and len(part):
            c.ties.append([part, rest])


def picks_channels(c: Palette, name: str, args: Any, before: Tensor, after: Any) -> bool:
    """Whether an operation picks or moves channels by their places, which may be other ones in a smaller network."""
    if name in ("roll", "flip"):
        return after is not before
    if name in ("slice", "select"):
        dims, dim = c.varying(before), args[1] if len(args) > 1 else 0
        if dim % before.ndim != (dims[-1] if dims else 0):  # among blocks, of which none ever goes
            return False
    colours = colours_of(c.root(narrow(before)))
    return any(not torch.equal(colours, colours_of(c.root(narrow(shadow)))) for shadow in tensors_in(after))


def padded(c: Palette, shadow: Tensor, padding: Sequence[int]) -> Tensor:
    """Zeros beside a position belong to its channel; zeros beside channels are channels that have yet to be met."""
    for i in range(len(padding) // 2):
        dim, low, high = shadow.ndim - 1 - i, padding[2 * i], padding[2 * i + 1]
        if not c.varies(shadow, dim):
            size = shadow.shape[dim] + low + high
            shadow = shadow.narrow(dim, 0, 1).expand([*shadow.shape[:dim], size, *shadow.shape[dim + 1 :]])
            continue
        if low < 0 or high < 0:
            shadow = shadow.narrow(dim, max(-low, 0), shadow.shape[dim] + min(low, 0) + min(high, 0))
        sides = [c.new(size) for size in (max(low, 0), max(high, 0))]
        before, after = shadow.shape[:dim], shadow.shape[dim + 1 :]
        wide = [along(side, dim, shadow.ndim).expand(*before, len(side), *after) for side in sides]
        shadow = cat([wide[0], shadow, wide[1]], dim)
        if low == high:
            c.ties.append(sides)
    return shadow


def unfolded(c: Palette, name: str, out: Tensor, args: Any, kwargs: Any) -> None:
    """Windows of a picture laid out as columns, (n, channels × places in a window, windows), or back again."""
    shadow = c.shadow(args[0])
    if shadow is None:
        return
    places = math.prod(args[1] if name == "im2col" else args[2])
    if name == "im2col":
        channels = c.fold(shadow, [-2, -1], unite=True)
        c.put(out, channels.squeeze(-1).repeat_interleave(places, -2).expand(out.shape))
    else:
        c.put(out, c.fold(shadow.unflatten(-2, (-1, places)), [-2, -1], unite=True).expand(out.shape))


def merged(c: Palette, shadow: Tensor, shape: torch.Size) -> Tensor:
    """Before dimensions become one: where the inner one is not what shrinks (a shuffle), it must go as a whole."""
    for dims in joined_dimensions(shadow.shape, shape):
        varying = [d for d in dims if c.varies(shadow, d)]
        if len(varying) > 1:
            rows = {tuple(row) for row in lines(c, shadow, varying[-1]).tolist()}
            if not any(rows <= {tuple(row) for row in torch.stack(block).tolist()} for block in _splits(c, rows)):
                c.fold(shadow, varying[1:], unite=True)
    return shadow


def _splits(c: Palette, rows: set[tuple[int, ...]]) -> Iterator[list[Tensor]]:
    """The last views that split a dimension into parts as long as these rows."""
    length = len(next(iter(rows)))
    for shadow in reversed(c.views):
        if length in shadow.shape:
            yield from split_dimensions(c, [shadow])


def split_dimensions(c: Palette, views: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Where a dimension of channels was split by a view, the last part shrinks, by the same number everywhere."""
    for shadow in views:
        small = c.root(narrow(shadow))
        if len(dims := c.varying(small)) > 1:
            rows = lines(c, shadow, dims[-1])
            if len(rows) > 1:
                yield list(rows)


def lines(c: Palette, shadow: Tensor, dim: int) -> Tensor:
    """The distinct lines of colours along a dimension, (lines, size); a colour may come more than once in a line."""
    small, dim = narrow(shadow), dim % shadow.ndim
    wide = c.root(small.expand([*small.shape[:dim], shadow.shape[dim], *small.shape[dim + 1 :]])).movedim(dim, -1)
    return torch.unique(wide.reshape(-1, wide.shape[-1]), dim=0)


def copied(c: Palette, name: str, out: Tensor, args: Any, kwargs: Any) -> None:
    """What is written into a tensor brings its colours along; into a part of a tensor, that cannot be followed."""
    shadow = c.as_activation(args[1])
    if shadow is None:
        return
    if args[0]._is_view():
        c.freeze(shadow, "a write into a part of a tensor cannot be followed")
    else:
        c.put(out, shadow)
