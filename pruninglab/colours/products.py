"""Contractions: linear layers, convolutions, attention. They end the colours they sum over, and start new ones."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruninglab.colours.palette import Palette, Work
from pruninglab.colours.shadows import along, colours_of, tensors_in


@dataclass(frozen=True)
class Weight:
    """How a (K, N) matrix lies in a parameter: which of its dimensions is summed over, and which is new."""

    name: str
    whole: Tensor
    inner: int | None
    inner_places: Tensor | None
    outer: int | None
    outer_places: Tensor | None

    def flipped(self) -> "Weight":
        return Weight(self.name, self.whole, self.outer, self.outer_places, self.inner, self.inner_places)


def cannot_follow(c: Palette, name: str, args: Any, kwargs: Any) -> None:
    """A contraction with something else than a parameter as it lies: what enters it may not be cut."""
    for tensor in tensors_in((args, kwargs)):
        c.freeze(c.shadow(tensor), f"{name} of a computed weight cannot be followed")


def embedding(c: Palette, name: str, out: Tensor, args: Any, kwargs: Any) -> None:
    """The columns of a table are channels; its rows are not."""
    found = c.leaf(args[0])
    if found is None:
        cannot_follow(c, name, args, kwargs)
        return
    c.put(out, c.born(found[0], 1, found[1].shape[1], 2))


def convolution(c: Palette, name: str, out: Tensor, args: Any, kwargs: Any) -> None:
    """Ends the colours of the input channels and starts those of the outputs; depthwise, each passes through."""
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    found = c.leaf(weight)
    shadow = c.shadow(x)
    if found is None or found[1].shape != weight.shape:
        cannot_follow(c, name, args, kwargs)
        return
    parameter, ndim = found[0], weight.ndim
    c.work = Work(x.numel() // x.shape[1] if transposed else out.numel() // out.shape[1], parameter)
    inputs = x.shape[1]
    outputs = weight.shape[1] * groups if transposed else weight.shape[0]
    colours = torch.zeros(inputs, dtype=torch.int64)
    if shadow is not None:
        colours = c.fold(shadow, [d for d in range(shadow.ndim) if d != 1], unite=True).reshape(-1)
    c.reads[parameter] = colours
    if groups == inputs > 1 and not (transposed and outputs != inputs):  # each channel goes its own way
        mine = colours.repeat_interleave(outputs // inputs)
        if not mine.all():
            mine = torch.where(mine == 0, c.born(parameter, 0, outputs, ndim), mine)
        c.cut(parameter, along(mine, 0, ndim))
    elif groups == 1:
        own, other = (1, 0) if transposed else (0, 1)
        c.cut(parameter, along(colours, other, ndim))
        mine = c.born(parameter, own, outputs, ndim)
    else:
        if (parameter, -1) not in c.births:
            c.births[parameter, -1] = c.new(outputs)
        mine = c.births[parameter, -1]
        rows, columns = (colours, mine) if transposed else (mine, colours)
        c.cut(parameter, along(rows, 0, ndim))
        wide = columns.view(groups, 1, -1).expand(-1, len(rows) // groups, -1)
        c.cut(parameter, wide.reshape(len(rows), -1, *[1] * (ndim - 2)))
        c.ties += [list(colours.view(groups, -1)), list(mine.view(groups, -1))]
    add_bias(c, bias, mine)
    c.put(out, along(mine, 1, out.ndim))


def add_bias(c: Palette, bias: Any, colours: Tensor) -> None:
    """A bias has the colours of the outputs it is added to."""
    if found := c.leaf(bias):
        name, whole = found
        if bias.shape != whole.shape:  # a part of a bias, as attention's
            places = bias.storage_offset() - whole.storage_offset() + torch.arange(len(bias)) * bias.stride(0)
            colours = torch.zeros(whole.numel(), dtype=torch.int64).index_copy(0, places, colours.clone())
        c.cut(name, colours)
        c.elements[name] = c.cuts[name][0]


def product(c: Palette, name: str, out: Tensor, args: Any, kwargs: Any) -> None:
    """A matrix product of whatever kind, with its bias."""
    bias = None
    if name in ("addmm", "baddbmm"):
        bias, a, b = args[:3]
    elif name == "linear":
        a, b = args[0], args[1].mT
        bias = args[2] if len(args) > 2 else None
    else:
        a, b = args[:2]
    if a.ndim < 2 or b.ndim < 2:
        cannot_follow(c, name, args, kwargs)
        return
    shadow = contracted(c, a, b, out)
    added = c.shadow(bias)
    if shadow is not None and added is not None:
        c.unite(added.expand(out.shape), shadow)
    elif shadow is not None and bias is not None and bias.ndim == 1 and c.varying(shadow)[-1:] != [out.ndim - 1]:
        c.not_zero[out] = True  # each number is one position's, whatever the channel
    elif shadow is not None and bias is not None and bias.ndim == 1:
        add_bias(c, bias, c.fold(shadow, list(range(out.ndim - 1)), unite=True).reshape(-1))
    c.put(out, shadow)


def contracted(c: Palette, a: Tensor, b: Tensor, out: Tensor) -> Tensor | None:
    """The shadow of a @ b."""
    left, right = weight_of(c, a), weight_of(c, b)
    if left and right:  # a table of constants that goes through a layer is no weight
        left = left if isinstance(left.whole, nn.Parameter) else None
        right = right if left is None or isinstance(right.whole, nn.Parameter) else None
    c.work = Work(1, summed=None, summed_size=a.shape[-1], result=tuple(out.shape))
    if right and not left:
        share = b.shape[-1] * b.shape[-2] / right.whole.numel()
        c.work = Work(out.numel() // out.shape[-1], right.name, share)
        return linear(c, a, right, out, a.shape[-1])
    if left and not right:
        turned = b.mT
        c.put(turned, None if (shadow := c.shadow(b)) is None else shadow.mT)
        mirrored = linear(c, turned, left.flipped(), out.mT, a.shape[-1])
        return None if mirrored is None else mirrored.mT
    return both_activations(c, a, b, out)


def weight_of(c: Palette, tensor: Tensor) -> "Weight | None":
    """How a matrix lies in a parameter, if it is one (or a part, or its transpose) and not used as an activation."""
    found = c.leaf(tensor)
    if found is None or tensor in c.shadows or (found[0] in c.elements and found[1].ndim == 1):
        return None
    name, whole = found
    offset = tensor.storage_offset() - whole.storage_offset()
    lying = []
    for dim in (-2, -1):
        steps = np.arange(tensor.shape[dim]) * int(tensor.stride(dim)) + int(offset)
        places = _places(steps, whole)
        if places is None:
            return None
        moving = [d for d, place in places.items() if len(place) > 1 and (place != place[0]).any()]
        d = min(moving, default=None)
        lying.append((d, torch.from_numpy(places[d].astype(np.int64)) if d is not None else None))
    return Weight(name, whole, *lying[0], *lying[1])


def _places(steps: NDArray[np.int64], whole: Tensor) -> dict[int, NDArray[np.int64]] | None:
    """Dimension → the index there of the numbers that lie so many steps behind a tensor's first; transposed ones too.

    None if a tensor has gaps, or several places of it are one number.
    """
    places, before = {}, 1
    for d in sorted((d for d in range(whole.ndim) if whole.shape[d] > 1), key=whole.stride):
        if whole.stride(d) != before:
            return None
        places[d] = steps // before % whole.shape[d]
        before *= whole.shape[d]
    return places


def linear(c: Palette, x: Tensor, weight: "Weight", out: Tensor, width: int) -> Tensor | None:
    """A product with a parameter: its inner dimension takes the colours that come in, its outer one starts new ones."""
    shadow, ndim = c.shadow(x), weight.whole.ndim
    across = None if shadow is None or width == 1 else c.fold(shadow, [-1])
    if across is not None and not c.varying(across):
        across = None
    if weight.inner is not None:
        colours = torch.zeros(weight.whole.shape[weight.inner], dtype=torch.int64)
        if shadow is not None and across is None:
            read = c.fold(shadow, list(range(shadow.ndim - 1)), unite=True).reshape(-1)
            colours[weight.inner_places] = read
            c.cut(weight.name, along(colours, weight.inner, ndim))
        c.reads[weight.name] = colours[colours != 0]
    elif shadow is not None and width > 1:
        c.freeze(shadow, "a product cannot be followed")
    if weight.outer is None:
        return None
    mine = c.born(weight.name, weight.outer, weight.whole.shape[weight.outer], ndim)[weight.outer_places]
    if across is not None:
        c.freeze(mine, "a layer mixes positions while channels lie across")
        return across.expand(out.shape)
    return along(mine, out.ndim - 1, out.ndim)


def both_activations(c: Palette, a: Tensor, b: Tensor, out: Tensor) -> Tensor | None:
    """A product of two activations, such as attention's: what is summed over is united."""
    left, right = c.as_activation(a), c.as_activation(b)
    c.work = Work(1, summed=left, summed_size=a.shape[-1], result=tuple(out.shape))
    if left is None and right is None:
        return None
    none = torch.zeros(1, dtype=torch.int64)
    left = none.expand(a.shape) if left is None else left
    right = none.expand(b.shape) if right is None else right
    rows, columns = c.fold(left, [-1]), c.fold(right, [-2])  # (…, M, 1) and (…, 1, N)
    summed_left = torch.where((rows != 0).any(-2, keepdim=True), 0, c.fold(left, [-2]))  # (…, 1, K)
    summed_right = torch.where((columns != 0).any(-1, keepdim=True), 0, c.fold(right, [-1]))  # (…, K, 1)
    if a.shape[-1] == 1:
        summed_left, summed_right = torch.zeros_like(summed_left), torch.zeros_like(summed_right)
    one, other = summed_left.squeeze(-2), summed_right.squeeze(-1)
    for mine, theirs in ((one, other), (other, one)):
        c.freeze(torch.where(theirs == 0, mine, 0), "a product with something that is no channel")
    c.unite(one, other)
    if c.spoilt(a) and c.spoilt(b):
        c.freeze(one, "a product of what is not zero for a removed channel")
    shape = out.shape
    if one.any() and other.any():  # queries and keys: each row of colours is a head
        heads, which = torch.unique(one.reshape(-1, one.shape[-1]), dim=0, return_inverse=True)
        tie_to_stream(c, heads)
        names = c.new(len(heads), virtual=True)
        c.members_of_head += list(zip(names.tolist(), heads, strict=True))
        keys = other.reshape(-1, other.shape[-1])
        c.members_of_head += [(int(names[h]), keys[i]) for i, h in enumerate(which.reshape(-1).tolist())]
        return names[which.reshape(-1)].view(*shape[:-2], 1, 1).expand(shape)
    if rows.any() and columns.any():
        head = c.is_head(rows)
        if not head.any():
            c.freeze(rows, "two channels meet in one number")
            c.freeze(columns, "two channels meet in one number")
            return None
        values = columns.squeeze(-2).reshape(-1, columns.shape[-1])
        names = rows.amax(-2).reshape(-1)
        first = {name: i for i, name in reversed(list(enumerate(names.tolist()))) if name}
        queries = [members for name, members in c.members_of_head if name in first and len(members) > 1]
        c.ties.append([*queries, *values])  # values are as wide as queries
        c.members_of_head += [(name, values[i]) for name, i in sorted(first.items(), key=lambda item: item[1])]
        tie_to_stream(c, torch.unique(values, dim=0))
        return columns.expand(shape)
    if rows.any() and not c.is_head(rows).all():
        return rows.expand(shape)
    return columns.expand(shape) if columns.any() else rows.expand(shape) if rows.any() else None


def tie_to_stream(c: Palette, heads: Tensor) -> None:
    """Attention's width and that of the stream it reads shrink by one fraction: code computes one from the other."""
    blocks = list(heads)
    for (name, _), colours in c.births.items():
        made_here = bool(((heads >= colours[0]) & (heads <= colours[-1])).any())  # a layer's colours follow each other
        if made_here and name in c.reads:
            read = colours_of(c.reads[name])
            blocks += [read] if len(read) else []
            if not len(read) and not c.whole_heads:
                c.freeze(heads, "attention is as wide as the stream that it reads, which stays,")
    c.ties.append(blocks)
