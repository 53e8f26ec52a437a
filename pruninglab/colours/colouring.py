"""The run itself: which rule follows which operation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruninglab.colours import elementwise, moves, products
from pruninglab.colours.palette import Palette, Step, memory_of
from pruninglab.colours.shadows import colours_of, constants_in, narrow, numbers_of, results_in, tensors_in
from pruninglab.colours.shapes import PRODUCTS, home_of, shapes_only

MOVES = frozenset(
    "view _unsafe_view reshape permute transpose t expand slice select split unsafe_split split_with_sizes chunk "
    "unbind squeeze unsqueeze cat stack roll flip index index_select clone alias detach contiguous repeat "
    "constant_pad_nd unfold as_strided diagonal movedim pixel_shuffle pixel_unshuffle "
    "lift_fresh _to_copy view_as _reshape_alias rot90 tril triu swapaxes narrow copy "
    "lift_fresh_copy positive gather".split()
)
POINTWISE = frozenset(
    "hardswish hardswish_ native_dropout hardsigmoid mish where masked_fill masked_fill_ _prelu_kernel".split()
)
PASSES = frozenset("_softmax _log_softmax _safe_softmax cumsum cumprod logcumsumexp".split())
REDUCTIONS = frozenset("mean sum amax amin max min var std linalg_vector_norm prod logsumexp any all argmax".split())
SPATIAL = frozenset(
    "max_pool1d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d".split()
)
SHUFFLE = ("aten::channel_shuffle", "aten::native_channel_shuffle")
LIKE = frozenset("zeros_like ones_like empty_like full_like rand_like randn_like".split())
CREATIONS = frozenset(
    "new_zeros new_ones new_full new_empty new_empty_strided normal_ uniform_ bernoulli_ "
    "_local_scalar_dense is_same_size".split()
)


class Colouring(Palette, TorchDispatchMode):
    """Watches one run of a model and colours it; `finish(outputs)` ends the run.

    Args:
        model: what will run.
        whole_heads: whether heads of attention go as a whole, rather than channels inside them.
        light: whether the run is for shapes alone (see `shapes`).
    """

    def __init__(self, model: nn.Module, *, whole_heads: bool = False, light: bool = False) -> None:
        super().__init__(model, whole_heads=whole_heads)
        self.light, self.home = light, home_of(model)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function._schema.name in SHUFFLE:
            with self:
                return shuffled(*args)
        tensors = tensors_in((args, kwargs))
        operands = [self.shadow(tensor) for tensor in tensors]
        self.ran.add(self.where[-1])
        name = function._schema.name.removeprefix("aten::")
        out = shapes_only(function, name, args, kwargs, self.home) if self.light else function(*args, **kwargs)
        leaves = [found[0] for tensor in tensors if (found := self.leaf(tensor))]
        self.touched.update(leaves)
        self.work = None
        if leaves or any(shadow is not None for shadow in operands) or name in PRODUCTS:
            rule_for(name, function)(self, name, out, args, kwargs)
            if elementwise.loses_zeros(self, name, function, args, kwargs, tensors):
                self.not_zero.update(dict.fromkeys(tensors_in(out), True))
                if name.endswith("_"):  # whoever else looks at this memory sees it too
                    self.written.update((memory_of(result), result) for result in tensors_in(out))
        shadows = [self.shadow(result) for result in tensors_in(out)]
        # A run with numbers cannot tell what was computed from a size from what was computed from activations.
        constants = constants_in(args) if self.light and torch.Tag.pointwise in function.tags else {}
        self.steps.append(Step(name, shadows, numbers_of(name, function, args, kwargs), constants, operands, self.work))
        return out

    def finish(self, outputs: Any) -> None:
        """Freeze what the caller gets to see: of a dictionary with logits (as transformers return) only those."""
        for leaf in results_in(outputs):
            self.freeze(self.shadow(leaf), "the model's output")
        self.ties += list(moves.split_dimensions(self, self.views))


def shuffled(x: torch.Tensor, groups: int) -> torch.Tensor:
    """What torch does as one operation, step by step, so that it can be followed."""
    apart = x.view(len(x), groups, x.shape[1] // groups, *x.shape[2:])
    return apart.transpose(1, 2).reshape(x.shape)


Rule = Callable[[Palette, str, Any, Any, Any], None]


def rule_for(name: str, function: Any) -> Rule:
    """The rule of an operation: a function of (palette, name, its result, its arguments, its named arguments)."""
    plain = name if name.startswith("_") else name.rstrip("_")
    if name in RULES:
        return RULES[name]
    if plain in RULES:
        return RULES[plain]
    if any(norm in name for norm in elementwise.NORMS):
        return elementwise.norm
    return elementwise.pointwise if torch.Tag.pointwise in function.tags else unknown


def ignored(c: Palette, name: str, out: Any, args: Any, kwargs: Any) -> None:
    """What makes a new tensor of a given shape, or changes numbers but no channel."""


def written(c: Palette, name: str, out: Any, args: Any, kwargs: Any) -> None:
    """A number that is written into some channels, which the code may name by their places."""
    whole, shadow = args[0]._base, c.shadow(args[0])
    if whole is None or shadow is None:
        return
    if not torch.isin(colours_of(c.shadow(whole)), colours_of(shadow)).all():
        c.by_place = True
        c.reads[f"{name} (the {len(c.reads)}th place)"] = narrow(shadow)[narrow(shadow) != 0]


def like(c: Palette, name: str, out: Any, args: Any, kwargs: Any) -> None:
    """A new tensor of the shape of another one lies along its channels."""
    c.put(out, c.shadow(args[0]))
    if name != "zeros_like":
        c.not_zero[out] = True


def unknown(c: Palette, name: str, out: Any, args: Any, kwargs: Any) -> None:
    """What is not known keeps its channels: nothing that enters it may be cut."""
    for tensor in tensors_in((args, kwargs)):
        c.freeze(c.shadow(tensor), f"{name} cannot be followed")


RULES: dict[str, Rule] = {
    **dict.fromkeys(CREATIONS, ignored),
    **dict.fromkeys(LIKE, like),
    **dict.fromkeys(("zero_", "fill_"), written),
    "as_strided_": ignored,  # only ever tells a result how it lies in memory
    **dict.fromkeys(SPATIAL, elementwise.spatial),
    **dict.fromkeys(PASSES, elementwise.passed),
    **dict.fromkeys(REDUCTIONS, elementwise.reduced),
    **dict.fromkeys(POINTWISE, elementwise.pointwise),
    **dict.fromkeys(MOVES, moves.moved),
    **dict.fromkeys(PRODUCTS, products.product),
    "copy_": moves.copied,
    "im2col": moves.unfolded,
    "col2im": moves.unfolded,
    "glu": elementwise.glu,
    "embedding": products.embedding,
    "convolution": products.convolution,
    "_convolution": products.convolution,
}
