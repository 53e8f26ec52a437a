"""What works element by element, and what passes colours on: norms, reductions, pooling."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pruninglab.colours.palette import Palette
from pruninglab.colours.shadows import narrow, tensors_in

ORDINARY_SUMS = frozenset(["mean", "sum", "var", "std", "linalg_vector_norm"])  # may run over channels, as in a norm
LARGEST = 1 << 22  # a larger parameter that acts element by element is not given colours of its own
SUMMING = frozenset("mm bmm addmm baddbmm linear matmul convolution embedding".split())
EXPONENTIALS = frozenset("_softmax _log_softmax _safe_softmax logsumexp logcumsumexp".split())
NORMS = ("layer_norm", "group_norm", "batch_norm", "rms_norm")  # with weights, which are masked as well
KEEPING_ZERO = frozenset("mul div native_dropout".split())  # with another tensor too, if the first is zero
ADDING = frozenset("add sub rsub where maximum minimum masked_fill lerp addcmul addcdiv clamp clamp_min".split())


def loses_zeros(c: Palette, name: str, function: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> bool:
    """Whether a result need not be zero where a channel is masked: exp(0) is 1, and x + 1 is not zero either.

    That does not matter for a layer that reads it, whose weights for this channel are masked as well; it does where
    channels are summed up as they are.
    """
    plain = name.rstrip("_")
    coloured = [t for t in tensors if c.shadow(t) is not None]
    spoilt = [t for t in coloured if c.spoilt(t)]
    if plain == "mul":
        return len(spoilt) == len(coloured) > 0
    if plain == "div" and len(tensors) == 2 and c.shadow(tensors[1]) is not None and not c.spoilt(tensors[1]):
        c.freeze(c.shadow(tensors[1]), "div by what a removed channel leaves, 0, is not finite")
    if torch.Tag.pointwise in function.tags and plain not in ("clone", "_to_copy") and coloured:
        if spoilt:
            return True
        if len(tensors) == 1:
            zero = coloured[0].new_zeros((), device="cpu")
            result = tree_leaves(function(*(zero if arg is coloured[0] else arg for arg in args), **kwargs))[0]
            if not result.isfinite():
                c.freeze(c.shadow(coloured[0]), f"{plain} of what a removed channel leaves, 0, is not finite")
            return bool(result != 0)
        if plain in ADDING:
            return len(coloured) < len(tensors)
        return plain not in KEEPING_ZERO or tensors[0] is not coloured[0]
    if "batch_norm" in plain and coloured and args[1] is None:  # nothing of its own that could be masked
        return not (isinstance(args[5], bool) and args[5])  # an instance norm's own statistics leave a zero
    if plain == "constant_pad_nd" and coloured and len(args) > 2 and args[2]:
        return True
    if plain in EXPONENTIALS and coloured:  # over positions: e⁰ is 1
        return True
    return bool(spoilt) and plain not in SUMMING and not any(norm in plain for norm in NORMS)


def pointwise(c: Palette, name: str, out: Any, args: Any, kwargs: Any) -> None:
    """Colours that meet become one. A parameter takes the colours of what it acts on."""
    result = tree_leaves(out)[0]
    tensors = list(tensors_in((args, kwargs)))
    total: Tensor | None = None
    for is_leaf in (False, True):  # a parameter follows what it acts on
        for tensor in [t for t in tensors if is_leaf == (c.leaf(t) is not None and t not in c.shadows)]:
            shape = (1,) * (result.ndim - tensor.ndim) + tuple(tensor.shape)
            if is_leaf:
                adopt(c, tensor, shape, total)
            shadow = c.shadow(tensor)
            if shadow is not None:
                total = met(c, total, shadow.reshape(shape) if shadow.ndim < result.ndim else shadow)
    if total is not None and (dims := c.varying(total)):
        for tensor in tensors:
            own = dims[-1] - (result.ndim - tensor.ndim)
            constant = c.shadow(tensor) is None and c.leaf(tensor) is None
            if constant and own >= 0 and tensor.shape[own] > 1 and tensor.stride(own):  # 0: one number, repeated
                c.freeze(total, f"{name} with what has no channels")
    c.put(result, total)


def met(c: Palette, a: Tensor | None, b: Tensor) -> Tensor:
    """The colours of two operands that were joined element by element."""
    if a is None:
        return b
    if a is b:
        return a
    shape = torch.broadcast_shapes(a.shape, b.shape)
    for one, other in ((a, b), (b, a)):
        spread = [d for d in range(len(shape)) if one.shape[d] == 1 < shape[d] and c.varies(other, d)]
        if spread and (c.whole_heads or not c.varying(one)):
            if not c.whole_heads:
                c.freeze(one, "one channel acts on many")
            return other.expand(shape)
    small_a, small_b = narrow(a.expand(shape)), narrow(b.expand(shape))
    c.unite(small_a, small_b)
    # A head's colour wins over a channel's; else the first that there is, so that colours keep their birth.
    first = torch.where((small_a == 0) | (c.is_head(small_b) & ~c.is_head(small_a)), small_b, small_a)
    return first.expand(shape)


def adopt(c: Palette, tensor: Tensor, shape: tuple[int, ...], total: Tensor | None) -> None:
    """A parameter that acts element by element has the colours of what it acts on."""
    name, whole = c.leaf(tensor)  # type: ignore[misc]
    if name in c.elements or whole.numel() == 1:
        return
    before = len(shape) - tensor.ndim
    lacking = [d for d in range(whole.ndim) if tensor.ndim == whole.ndim and tensor.shape[d] != whole.shape[d]]
    if total is None or tensor.ndim != whole.ndim or tensor.stride() != whole.stride() or (lacking and before):
        wide = None
    else:
        wide = total.expand(torch.broadcast_shapes(total.shape, shape))
    if wide is None or any(c.varies(wide, d) for d in lacking):
        if whole.numel() <= LARGEST:
            c.as_activation(tensor)
        return
    if not lacking and not any(size > 1 and c.varies(wide, d) for d, size in enumerate(shape)):
        return  # a number for all channels
    colours = c.fold(wide, lacking, unite=True) if lacking else wide  # positions that are not used are like the others
    spread = [d for d, size in enumerate(shape) if size == 1 < wide.shape[d]]
    colours = c.fold(colours, spread, unite=not c.whole_heads) if spread else colours
    colours = colours.expand(whole.shape) if lacking else colours.reshape(whole.shape)
    c.elements[name] = colours.clone()
    c.cut(name, c.elements[name])


def passed(c: Palette, name: str, out: Tensor, args: Any, kwargs: Any) -> None:
    """A softmax keeps the colours; one that runs over channels holds them all."""
    shadow = c.shadow(args[0])
    if shadow is not None:
        if c.varies(shadow, args[1]):
            c.freeze(shadow, f"{name} runs over channels")
        c.put(out, shadow)


def reduced(c: Palette, name: str, out: Any, args: Any, kwargs: Any) -> None:
    """A mean over positions keeps the colour, a sum over channels ends it; a maximum over channels holds them all."""
    shadow = c.shadow(args[0])
    if shadow is None:
        return
    lists = [arg for arg in (*args[1:], kwargs.get("dim")) if isinstance(arg, (list, tuple))]
    numbers = [arg for arg in args[1:] if isinstance(arg, int) and not isinstance(arg, bool)]
    dims = list(lists[0]) if lists else numbers[:1] if name in ("max", "min", "amax", "argmax", "prod") else []
    dims = dims or list(range(shadow.ndim))
    plain = name.rstrip("_")
    if plain not in ORDINARY_SUMS or c.spoilt(args[0]):
        for dim in dims:
            if c.varies(shadow, dim):
                c.freeze(shadow, f"{name} runs over channels")
    folded = c.fold(shadow, dims)
    gone = {dim % shadow.ndim for dim in dims}
    without = folded.reshape([size for d, size in enumerate(folded.shape) if d not in gone])
    for result in tensors_in(out):
        c.put(result, folded if result.ndim == folded.ndim else without)


def glu(c: Palette, name: str, out: Any, args: Any, kwargs: Any) -> None:
    """One half gates the other: what stands in the same place of both goes together."""
    shadow = c.shadow(args[0])
    if shadow is not None:
        half, gate = shadow.chunk(2, args[1] if len(args) > 1 else -1)
        c.put(out, met(c, half, gate))


def spatial(c: Palette, name: str, out: Any, args: Any, kwargs: Any) -> None:
    """Pooling and resizing: colours along the positions become one."""
    shadow = c.shadow(args[0])
    if shadow is not None:
        result = tree_leaves(out)[0]
        changed = [d for d in range(shadow.ndim) if shadow.shape[d] != result.shape[d]] or [shadow.ndim - 1]
        folded = c.fold(shadow, changed, unite=True)
        for leaf in tree_leaves(out):
            c.put(leaf, folded)


def norm(c: Palette, name: str, out: Any, args: Any, kwargs: Any) -> None:
    """The parameters and statistics of a norm lie along with the channels."""
    shadow, result = c.shadow(args[0]), tree_leaves(out)[0]
    if shadow is None:
        return
    over_channels = "layer_norm" in name or "rms_norm" in name
    normed = list(range(shadow.ndim - len(args[1]), shadow.ndim)) if over_channels else [1]
    colours = c.fold(shadow, [d for d in range(shadow.ndim) if d not in normed], unite=True)
    for arg in tensors_in(args[1:]):
        if found := c.leaf(arg):
            c.cut(found[0], colours.reshape(found[1].shape))
            c.elements[found[0]] = c.cuts[found[0]][0]
        elif (own := c.shadow(arg)) is not None and own.numel() == colours.numel():  # an instance norm's, repeated
            c.unite(own.reshape(-1), colours.reshape(-1))
    if "group_norm" in name and args[6] > 1:
        c.ties.append(list(colours.reshape(args[6], -1)))
    c.put(result, shadow)
