"""Running a network on colours: the pass that finds which channels are tied together.

Every output channel of every layer gets a colour, a number. While the network computes, a *shadow* of each activation
(a tensor of the same shape that holds colours, 0 for none) takes the same way:

    what only moves numbers (view, permute, cat, roll, …)   is done to the shadow as well, so it needs no rule;
    what works element by element (add, mul, relu, …)       makes the colours that meet one colour;
    a contraction (linear, convolution, matmul)             ends the colours it sums over, and starts new ones;
    a norm, or a reduction over positions                   lets colours pass.

Channels of one colour must go together. What a parameter holds for each channel is found on the way: its colours.
This file only watches; what is done with the colours stands in `graph` and `surgery`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

MOVES = frozenset(
    "view _unsafe_view reshape permute transpose t expand slice select split split_with_sizes chunk unbind squeeze "
    "unsqueeze cat stack roll flip index index_select clone alias detach contiguous repeat constant_pad_nd unfold "
    "as_strided diagonal movedim pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col lift_fresh "
    "_to_copy view_as _reshape_alias rot90 tril triu swapaxes narrow copy lift_fresh_copy positive gather".split()
)
PRODUCTS = frozenset("mm bmm addmm baddbmm linear dot mv matmul".split())
SPLITS = frozenset("view _unsafe_view reshape _reshape_alias".split())
POINTWISE = frozenset("hardswish hardswish_ native_dropout hardsigmoid mish where masked_fill masked_fill_".split())
PASSES = frozenset("_softmax _log_softmax _safe_softmax cumsum cumprod logcumsumexp".split())
REDUCTIONS = frozenset("mean sum amax amin max min var std linalg_vector_norm prod logsumexp any all argmax".split())
ORDINARY_SUMS = frozenset("mean sum var std linalg_vector_norm".split())  # may run over channels, as in a norm
SPATIAL = frozenset(
    "max_pool1d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d "
    "upsample_nearest1d upsample_bicubic2d _upsample_bilinear2d_aa reflection_pad1d reflection_pad2d replication_pad1d "
    "replication_pad2d".split()
)


CREATIONS = frozenset(
    "new_zeros new_ones new_full new_empty new_empty_strided zeros_like ones_like empty_like full_like rand_like "
    "randn_like zero_ fill_ normal_ uniform_ bernoulli_ _local_scalar_dense is_same_size".split()
)
LARGEST = 1 << 22  # a larger parameter that acts element by element is not given colours of its own


@dataclass
class Step:
    """One operation of the watched run: its name, the module it ran in, the shadows and the numbers that it used."""

    name: str
    module: str
    shadows: list[Tensor | None]
    numbers: tuple[float, ...]
    operands: list[Tensor | None] = field(default_factory=list)
    work: "Work | None" = None


@dataclass
class Work:
    """The multiplications of a step: (entries of a weight) × positions, or those of a product of two activations."""

    positions: int
    weight: str | None = None
    share: float = 1.0  # of the weight that takes part
    summed: Tensor | None = None  # of a product: the shadow of what is summed over
    summed_size: int = 0
    result: tuple[int, ...] = ()


class Colouring(TorchDispatchMode):
    """Watches one run of a model and colours it.

    Attributes:
        cuts: parameter or buffer name → tensors of colours that broadcast to its shape, one for each of its dimensions
            along which channels lie.
        born: colour → where it began: (parameter, dimension, index).
        ties: sets of colours of which each must lose the same fraction.
        frozen: (colours, why they cannot be removed).
        heads: a colour for each attention head → the colours of its channels.
        steps: all operations, in order.
    """

    def __init__(self, model: nn.Module, *, whole_heads: bool = False) -> None:
        super().__init__()
        self.whole_heads = whole_heads
        self.cuts: dict[str, list[Tensor]] = {}
        self.births: dict[tuple[str, int], Tensor] = {}
        self.reads: dict[str, Tensor] = {}
        self.ties: list[list[Tensor]] = []
        self.views: list[Tensor] = []
        self.frozen: list[tuple[Tensor, str]] = []
        self.members_of_head: list[tuple[int, Tensor]] = []
        self.steps: list[Step] = []
        self.where: list[str] = [""]
        self.touched: set[str] = set()
        self.ran: set[str] = set()
        self._work: Work | None = None
        self._parent = np.zeros(1, dtype=np.int64)
        self._virtual = np.zeros(1, dtype=bool)
        self._shadows: Any = WeakIdKeyDictionary()
        self._elements: dict[str, Tensor] = {}
        self._leaves: dict[int, list[tuple[str, Tensor]]] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.numel():
                self._leaves.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, tensor))

    # ── colours ───────────────────────────────────────────────────────────────────────────────────────────────────

    def new(self, n: int, *, virtual: bool = False) -> Tensor:
        """n new colours."""
        first = len(self._parent)
        self._parent = np.concatenate([self._parent, np.arange(first, first + n)])
        self._virtual = np.concatenate([self._virtual, np.full(n, virtual)])
        return torch.arange(first, first + n)

    def root(self, colours: Tensor) -> Tensor:
        """What each colour has become after all that has met so far."""
        now = self._parent[colours.numpy()]
        while True:
            further = self._parent[now]
            if np.array_equal(further, now):
                return torch.from_numpy(now)
            now = further

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Make colours that stand in the same place one; 0 (none) joins nothing. A head is not a channel."""
        a, b = torch.broadcast_tensors(a, b)
        a, b = a.reshape(-1), b.reshape(-1)
        both = (a != 0) & (b != 0) & (a != b)
        if not both.any():
            return
        coded = torch.unique(a[both] * len(self._parent) + b[both])  # a pair as one number
        pairs = torch.stack([coded // len(self._parent), coded % len(self._parent)], 1)
        left, right = self._virtual[pairs[:, 0].numpy()], self._virtual[pairs[:, 1].numpy()]
        mixed = torch.from_numpy(left != right)
        for x, y in pairs[mixed].tolist():
            head, member = (x, y) if self._virtual[x] else (y, x)
            self.members_of_head.append((head, torch.tensor([member])))
        parent = self._parent
        for x, y in pairs[~mixed].tolist():
            while parent[x] != x:
                parent[x] = x = parent[parent[x]]
            while parent[y] != y:
                parent[y] = y = parent[parent[y]]
            if x != y:
                parent[max(x, y)] = min(x, y)

    def is_head(self, colours: Tensor) -> Tensor:
        return torch.from_numpy(self._virtual[colours.numpy()])

    def varies(self, shadow: Tensor, dim: int) -> bool:
        """Whether colours differ along a dimension."""
        if shadow.shape[dim] == 1 or shadow.stride(dim) == 0:
            return False
        shadow = self.root(narrow(shadow))
        return bool((shadow != shadow.narrow(dim, 0, 1)).any())

    def fold(self, shadow: Tensor, dims: Sequence[int], *, unite: bool = False) -> Tensor:
        """Colours with `dims` made 1: the common colour, or 0 where there is none; with `unite` they become one."""
        dims = [dim % shadow.ndim for dim in dims]
        small = narrow(shadow)
        if all(small.shape[dim] == 1 for dim in dims):
            folded = small
        elif unite:
            folded = small.amax(dims, keepdim=True)
            self.unite(small, folded)
        else:
            roots = self.root(small)
            highest = roots.amax(dims, keepdim=True)
            alike = ((roots == highest) | (roots == 0)).all(dims[0], keepdim=True)
            for dim in dims[1:]:
                alike = alike.all(dim, keepdim=True)
            folded = torch.where(alike, small.amax(dims, keepdim=True), 0)
        return folded.expand([1 if dim in dims else size for dim, size in enumerate(shadow.shape)])

    def freeze(self, colours: Tensor | None, why: str) -> None:
        if colours is not None:
            distinct = torch.unique(colours)
            if len(distinct := distinct[distinct != 0]):
                self.frozen.append((distinct, f"{why} in {self.where[-1] or 'the model'}"))

    # ── tensors and their shadows ─────────────────────────────────────────────────────────────────────────────────

    def leaf(self, tensor: Any) -> tuple[str, Tensor] | None:
        """The parameter or buffer that a tensor is, or is a view of."""
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            return None
        for name, whole in self._leaves.get(tensor.untyped_storage().data_ptr(), ()):
            offset = tensor.storage_offset() - whole.storage_offset()
            if 0 <= offset < max(whole.numel(), 1) and tensor.dtype == whole.dtype:
                return name, whole
        return None

    def shadow(self, tensor: Any) -> Tensor | None:
        """The colours of a tensor, or None if it has none. A parameter used as an activation gets some of its own."""
        if not isinstance(tensor, Tensor):
            return None
        known = self._shadows.get(tensor)
        if known is not None:
            return known
        found = self.leaf(tensor)
        if found is None:
            return None
        name, whole = found
        if name not in self._elements:
            return None
        elements = self._elements[name]
        if tensor.shape == whole.shape and tensor.stride() == whole.stride():
            return elements
        offset = tensor.storage_offset() - whole.storage_offset()
        laid_out = torch.empty_strided(whole.shape, whole.stride(), dtype=elements.dtype).copy_(elements)
        return laid_out.as_strided(tensor.shape, tensor.stride(), offset)

    def as_activation(self, tensor: Any) -> Tensor | None:
        """Like `shadow`, but a parameter that has no colours yet gets a new one for each element."""
        found = self.leaf(tensor)
        if found and found[0] not in self._elements and tensor not in self._shadows:
            name, whole = found
            self._elements[name] = self.new(whole.numel()).view(whole.shape)
            self.cut(name, self._elements[name])
        return self.shadow(tensor)

    def put(self, tensor: Tensor, shadow: Tensor | None) -> None:
        if shadow is not None and narrow(shadow).any():
            self._shadows[tensor] = tight(shadow.expand(tensor.shape))

    def cut(self, name: str, colours: Tensor) -> None:
        """Remember (or unite with what is known) where the channels of a parameter lie."""
        known = self.cuts.setdefault(name, [])
        for i, old in enumerate(known):
            if old.shape == colours.shape:
                self.unite(old, colours)
                known[i] = torch.where(old == 0, colours, old)
                return
        known.append(colours.clone())

    def born(self, name: str, dim: int, size: int, ndim: int) -> Tensor:
        """The colours of a layer's outputs; the same ones each time the layer is used."""
        if (name, dim) not in self.births:
            self.births[name, dim] = self.new(size)
            self.cut(name, along(self.births[name, dim], dim, ndim))
        return self.births[name, dim]

    # ── what happens at an operation ──────────────────────────────────────────────────────────────────────────────

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        operands = [self.shadow(tensor) for tensor in tensors]
        self.ran.add(self.where[-1])
        out = function(*args, **kwargs)
        leaves = [found[0] for tensor in tensors if (found := self.leaf(tensor))]
        self.touched.update(leaves)
        name = function._schema.name.removeprefix("aten::")
        self._work = None
        if leaves or any(shadow is not None for shadow in operands) or name in PRODUCTS:
            self._rule(name, function)(name, out, args, kwargs)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        numbers = tuple(float(arg) for arg in args if isinstance(arg, (int, float)) and not isinstance(arg, bool))
        self.steps.append(Step(name, self.where[-1], [self.shadow(r) for r in results], numbers, operands, self._work))
        return out

    def _rule(self, name: str, function: Any) -> Callable[..., None]:
        plain = name.rstrip("_") if not name.startswith("_") else name
        if name in ("convolution", "_convolution"):
            return self._convolution
        if name in PRODUCTS:
            return self._product
        if name == "embedding":
            return self._embedding
        if "layer_norm" in name or "group_norm" in name or "batch_norm" in name or "rms_norm" in name:
            return self._norm
        if name == "copy_":
            return self._copied
        if name in CREATIONS or name == "as_strided_":  # the latter only ever tells a result how it lies in memory
            return self._ignored
        if name in MOVES:
            return self._moved
        if plain in REDUCTIONS:
            return self._reduced
        if name in PASSES:
            return self._passed
        if plain in SPATIAL:
            return self._spatial
        if torch.Tag.pointwise in function.tags or name in POINTWISE:
            return self._pointwise
        return self._unknown

    def _ignored(self, name: str, out: Any, args: Any, kwargs: Any) -> None:
        """What makes a new tensor of a given shape, or changes numbers but no channel."""

    def _unknown(self, name: str, out: Any, args: Any, kwargs: Any) -> None:
        """What is not known keeps its channels: nothing that enters or parametrises it may be cut."""
        for tensor in tree_leaves((args, kwargs)):
            self.freeze(self.shadow(tensor), f"{name} cannot be followed")

    def _moved(self, name: str, out: Any, args: Any, kwargs: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in ("index", "index_select", "gather"):
            moving = tensors[:1]
        else:
            moving = tensors
        if not any(t in self._shadows for t in moving) and all(
            self.leaf(result) for result in tree_leaves(out) if isinstance(result, Tensor)
        ):
            return  # a view of a parameter is found again by its storage
        shadows = {id(t): self.as_activation(t) for t in moving}
        if all(shadow is None for shadow in shadows.values()):
            return
        if name in ("_to_copy", "clone", "alias", "detach", "contiguous", "lift_fresh", "positive", "tril", "triu"):
            self.put(out, shadows[id(moving[0])])
            return

        def swap(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or id(leaf) not in shadows:
                return leaf
            shadow = shadows[id(leaf)]
            return torch.zeros(leaf.shape, dtype=torch.int64) if shadow is None else shadow

        if name in SPLITS:
            moved: Any = self._merged(shadows[id(moving[0])], out.shape).reshape(out.shape)  # type: ignore[arg-type]
        elif name in ("roll", "flip") and not any(
            self.varies(shadows[id(moving[0])], d) for d in args[-1]  # type: ignore[arg-type]
        ):
            moved = shadows[id(moving[0])]
        elif name == "cat":
            moved = _cat([swap(t) for t in args[0]], args[1] if len(args) > 1 else kwargs.get("dim", 0))
        elif name == "constant_pad_nd":
            moved = self._padded(swap(args[0]), args[1])
        else:
            options = {key: tree_map(swap, value) for key, value in kwargs.items() if key in ("dim", "index", "dims")}
            moved = getattr(torch.ops.aten, name)(*tree_map(swap, args), **options)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for result, shadow in zip(results, tree_leaves(moved), strict=True):
            self.put(result, shadow)
        if name in SPLITS and moved.ndim > 1:
            self.views.append(self.shadow(out))  # type: ignore[arg-type]
        if name in ("split", "split_with_sizes", "chunk"):
            dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
            if self.varies(shadows[id(moving[0])], dim):  # type: ignore[arg-type]
                self.ties.append([row for r in results if (s := self.shadow(r)) is not None for row in self._rows(s, dim)])
        if name == "slice" and out.shape != args[0].shape:
            whole, part = colours_of(shadows[id(args[0])]), colours_of(self.shadow(out))
            rest = whole[~torch.isin(whole, part)]
            if len(rest) and len(part):
                self.ties.append([part, rest])

    def _padded(self, shadow: Tensor, padding: Sequence[int]) -> Tensor:
        """Zeros beside a position belong to its channel; zeros beside channels are channels that have yet to be met."""
        for i in range(len(padding) // 2):
            dim, low, high = shadow.ndim - 1 - i, padding[2 * i], padding[2 * i + 1]
            if not self.varies(shadow, dim):
                size = shadow.shape[dim] + low + high
                shadow = shadow.narrow(dim, 0, 1).expand([*shadow.shape[:dim], size, *shadow.shape[dim + 1 :]])
                continue
            if low < 0 or high < 0:
                shadow = shadow.narrow(dim, max(-low, 0), shadow.shape[dim] + min(low, 0) + min(high, 0))
            sides = [self.new(size) for size in (max(low, 0), max(high, 0))]
            beside = [list(shadow.shape[:dim]) + [len(side)] + list(shadow.shape[dim + 1 :]) for side in sides]
            wide = [along(side, dim, shadow.ndim).expand(s) for side, s in zip(sides, beside, strict=True)]
            shadow = _cat([wide[0], shadow, wide[1]], dim)
            if low == high:
                self.ties.append(sides)
        return shadow

    def _merged(self, shadow: Tensor, shape: torch.Size) -> Tensor:
        """Before dimensions become one: where the inner one is not what shrinks (a shuffle), it must go as a whole."""
        for dims in _joined_dimensions(shadow.shape, shape):
            varying = [d for d in dims if self.varies(shadow, d)]
            if len(varying) > 1:
                rows = self._rows(shadow, varying[-1])
                split = {tuple(row) for block in self._split_dimensions() for row in torch.stack(block).tolist()}
                if not all(tuple(row) in split for row in rows.tolist()):
                    self.fold(shadow, varying[1:], unite=True)
        return shadow

    def _copied(self, name: str, out: Tensor, args: Any, kwargs: Any) -> None:
        shadow = self.as_activation(args[1])
        if shadow is None:
            return
        if args[0]._is_view():
            self.freeze(shadow, "a write into a part of a tensor cannot be followed")
        else:
            self.put(out, shadow)

    def _pointwise(self, name: str, out: Any, args: Any, kwargs: Any) -> None:
        result = tree_leaves(out)[0]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        leaves = [t for t in tensors if self.leaf(t) and t not in self._shadows]
        total: Tensor | None = None
        for tensor in [t for t in tensors if not any(t is leaf for leaf in leaves)] + leaves:
            shape = (1,) * (result.ndim - tensor.ndim) + tuple(tensor.shape)
            if any(tensor is leaf for leaf in leaves):
                self._adopt(tensor, shape, total)
            shadow = self.shadow(tensor)
            if shadow is not None:
                total = self._met(total, shadow.reshape(shape) if shadow.ndim < result.ndim else shadow, result)
        self.put(result, total)

    def _met(self, a: Tensor | None, b: Tensor, result: Tensor) -> Tensor:
        """The colours of two operands that were joined element by element."""
        if a is None:
            return b
        if a is b:
            return a
        shape = torch.broadcast_shapes(a.shape, b.shape)
        for one, other in ((a, b), (b, a)):
            spread = [d for d in range(len(shape)) if one.shape[d] == 1 < shape[d] and self.varies(other, d)]
            if spread and (self.whole_heads or not any(self.varies(one, d) for d in range(one.ndim))):
                if not self.whole_heads:
                    self.freeze(one, "one channel acts on many")
                return other.expand(shape)
        small_a, small_b = narrow(a.expand(shape)), narrow(b.expand(shape))
        self.unite(small_a, small_b)
        # A head's colour wins over a channel's; else the first that there is, so that colours keep their birth.
        first = torch.where((small_a == 0) | (self.is_head(small_b) & ~self.is_head(small_a)), small_b, small_a)
        return first.expand(shape)

    def _adopt(self, tensor: Tensor, shape: tuple[int, ...], total: Tensor | None) -> None:
        """A parameter that acts element by element has the colours of what it acts on."""
        name, whole = self.leaf(tensor)  # type: ignore[misc]
        if name in self._elements or whole.numel() == 1:
            return
        if total is None or tensor.shape != whole.shape or tensor.stride() != whole.stride():
            if whole.numel() <= LARGEST:
                self.as_activation(tensor)
            return
        wide = total.expand(torch.broadcast_shapes(total.shape, shape))
        if not any(size > 1 and self.varies(wide, d) for d, size in enumerate(shape)):
            return  # a number for all channels
        spread = [d for d, size in enumerate(shape) if size == 1 < wide.shape[d]]
        colours = self.fold(wide, spread, unite=not self.whole_heads) if spread else wide
        self._elements[name] = colours.reshape(whole.shape).clone()
        self.cut(name, self._elements[name])

    def _passed(self, name: str, out: Tensor, args: Any, kwargs: Any) -> None:
        shadow = self.shadow(args[0])
        if shadow is not None:
            if self.varies(shadow, args[1]):
                self.freeze(shadow, f"{name} runs over channels")
            self.put(out, shadow)

    def _reduced(self, name: str, out: Any, args: Any, kwargs: Any) -> None:
        shadow = self.shadow(args[0])
        if shadow is None:
            return
        lists = [arg for arg in (*args[1:], kwargs.get("dim")) if isinstance(arg, (list, tuple))]
        numbers = [arg for arg in args[1:] if isinstance(arg, int) and not isinstance(arg, bool)]
        dims = list(lists[0]) if lists else numbers[:1] if name in ("max", "min", "amax", "argmax", "prod") else []
        dims = dims or list(range(shadow.ndim))
        plain = name.rstrip("_")
        if plain not in ORDINARY_SUMS:
            for dim in dims:
                if self.varies(shadow, dim):
                    self.freeze(shadow, f"{name} runs over channels")
        folded = self.fold(shadow, dims)
        for result in tree_leaves(out):
            if isinstance(result, Tensor):
                kept = folded if result.ndim == folded.ndim else folded.reshape(
                    [size for d, size in enumerate(folded.shape) if d not in {dim % shadow.ndim for dim in dims}]
                )
                self.put(result, kept)

    def _spatial(self, name: str, out: Any, args: Any, kwargs: Any) -> None:
        shadow = self.shadow(args[0])
        if shadow is not None:
            result = tree_leaves(out)[0]
            changed = [d for d in range(shadow.ndim) if shadow.shape[d] != result.shape[d]] or [shadow.ndim - 1]
            folded = self.fold(shadow, changed, unite=True)
            for leaf in tree_leaves(out):
                self.put(leaf, folded)

    def _norm(self, name: str, out: Any, args: Any, kwargs: Any) -> None:
        shadow, result = self.shadow(args[0]), tree_leaves(out)[0]
        if shadow is None:
            return
        if "layer_norm" in name or "rms_norm" in name:
            own = list(range(shadow.ndim - len(args[1]), shadow.ndim))
        else:
            own = [1]
        colours = self.fold(shadow, [d for d in range(shadow.ndim) if d not in own], unite=True)
        for arg in tree_leaves(args[1:]):
            if isinstance(arg, Tensor) and (found := self.leaf(arg)):
                self.cut(found[0], colours.reshape(found[1].shape))
                self._elements[found[0]] = self.cuts[found[0]][0]
        if "group_norm" in name and args[6] > 1:
            self.ties.append(list(colours.reshape(args[6], -1)))
        self.put(result, shadow)

    def _embedding(self, name: str, out: Tensor, args: Any, kwargs: Any) -> None:
        found = self.leaf(args[0])
        if found is None:
            self._unknown(name, out, args, kwargs)
            return
        self.put(out, self.born(found[0], 1, found[1].shape[1], 2))

    def _convolution(self, name: str, out: Tensor, args: Any, kwargs: Any) -> None:
        x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
        found = self.leaf(weight)
        shadow = self.shadow(x)
        if found is None or found[1].shape != weight.shape:
            self._unknown(name, out, args, kwargs)
            return
        parameter, ndim = found[0], weight.ndim
        self._work = Work(x.numel() // x.shape[1] if transposed else out.numel() // out.shape[1], parameter)
        inputs = x.shape[1]
        outputs = weight.shape[1] * groups if transposed else weight.shape[0]
        colours = torch.zeros(inputs, dtype=torch.int64)
        if shadow is not None:
            colours = self.fold(shadow, [d for d in range(shadow.ndim) if d != 1], unite=True).reshape(-1)
        self.reads[parameter] = colours
        if groups == inputs > 1 and not (transposed and outputs != inputs):  # each channel goes its own way
            mine = colours.repeat_interleave(outputs // inputs)
            if not mine.all():
                mine = torch.where(mine == 0, self.born(parameter, 0, outputs, ndim), mine)
            self.cut(parameter, along(mine, 0, ndim))
        elif groups == 1:
            own, other = (1, 0) if transposed else (0, 1)
            self.cut(parameter, along(colours, other, ndim))
            mine = self.born(parameter, own, outputs, ndim)
        else:
            if (parameter, -1) not in self.births:
                self.births[parameter, -1] = self.new(outputs)
            mine = self.births[parameter, -1]
            rows, columns = (colours, mine) if transposed else (mine, colours)
            self.cut(parameter, along(rows, 0, ndim))
            wide = columns.view(groups, 1, -1).expand(-1, len(rows) // groups, -1)
            self.cut(parameter, wide.reshape(len(rows), -1, *[1] * (ndim - 2)))
            self.ties += [list(colours.view(groups, -1)), list(mine.view(groups, -1))]
        self._bias(bias, mine)
        batched = along(mine, 1, out.ndim)
        self.put(out, batched)

    def _bias(self, bias: Any, colours: Tensor) -> None:
        if found := self.leaf(bias):
            self.cut(found[0], colours)
            self._elements[found[0]] = self.cuts[found[0]][0]

    def _product(self, name: str, out: Tensor, args: Any, kwargs: Any) -> None:
        bias = None
        if name in ("addmm", "baddbmm"):
            bias, a, b = args[:3]
        elif name == "linear":
            a, b = args[0], args[1].mT
            bias = args[2] if len(args) > 2 else None
        else:
            a, b = args[:2]
        if a.ndim < 2 or b.ndim < 2:
            self._unknown(name, out, args, kwargs)
            return
        shadow = self._contracted(a, b, out)
        added = self.shadow(bias)
        if shadow is not None and added is not None:
            self.unite(added.expand(out.shape), shadow)
        elif shadow is not None and bias is not None and bias.ndim == 1:
            self._bias(bias, self.fold(shadow, list(range(out.ndim - 1)), unite=True).reshape(-1))
        self.put(out, shadow)

    def _contracted(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor | None:
        """The shadow of a @ b."""
        left, right = self._weight(a), self._weight(b)
        self._work = Work(1, summed=None, summed_size=a.shape[-1], result=tuple(out.shape))
        if right and not left:
            share = b.shape[-1] * b.shape[-2] / right.whole.numel()
            self._work = Work(out.numel() // out.shape[-1], right.name, share)
            return self._linear(a, right, out, a.shape[-1])
        if left and not right:
            mirrored = self._linear(b.mT, left.flipped(), out.mT, a.shape[-1])
            return None if mirrored is None else mirrored.mT
        return self._both_activations(a, b, out)

    def _weight(self, tensor: Tensor) -> "_Weight | None":
        """How a matrix lies in a parameter, if it is one (or a part, or its transpose) and not used as an activation."""
        found = self.leaf(tensor)
        if found is None or tensor in self._shadows or found[0] in self._elements and found[1].ndim == 1:
            return None
        name, whole = found
        offset = tensor.storage_offset() - whole.storage_offset()
        lying = []
        for dim in (-2, -1):
            steps = offset + np.arange(tensor.shape[dim]) * tensor.stride(dim)
            if not whole.is_contiguous():
                return None
            places = np.unravel_index(steps, whole.shape)
            moving = [d for d, place in enumerate(places) if len(place) > 1 and (place != place[0]).any()]
            d = moving[0] if moving else None
            lying.append((d, torch.from_numpy(places[d].astype(np.int64)) if d is not None else None))
        return _Weight(name, whole, *lying[0], *lying[1])

    def _linear(self, x: Tensor, weight: "_Weight", out: Tensor, width: int) -> Tensor | None:
        shadow, ndim = self.shadow(x), weight.whole.ndim
        if weight.inner is not None:
            colours = torch.zeros(weight.whole.shape[weight.inner], dtype=torch.int64)
            if shadow is not None:
                read = self.fold(shadow, list(range(shadow.ndim - 1)), unite=True).reshape(-1)
                colours[weight.inner_places] = read
                self.cut(weight.name, along(colours, weight.inner, ndim))
            self.reads[weight.name] = colours[colours != 0]
        elif shadow is not None and width > 1:
            self.freeze(shadow, "a product cannot be followed")
        if weight.outer is None:
            return None
        mine = self.born(weight.name, weight.outer, weight.whole.shape[weight.outer], ndim)[weight.outer_places]
        if shadow is not None and width > 1:
            rows = self.fold(shadow, [-1])
            if any(self.varies(rows, d) for d in range(rows.ndim - 1)):  # channels lie along the rows
                self.freeze(mine, "a layer mixes positions while channels lie across")
                return rows.expand(out.shape)
        return along(mine, out.ndim - 1, out.ndim)

    def _both_activations(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor | None:
        """A product of two activations, such as attention's: what is summed over is united."""
        left, right = self.as_activation(a), self.as_activation(b)
        self._work = Work(1, summed=left, summed_size=a.shape[-1], result=tuple(out.shape))
        if left is None and right is None:
            return None
        none = torch.zeros(1, dtype=torch.int64)
        left = none.expand(a.shape) if left is None else left
        right = none.expand(b.shape) if right is None else right
        rows, columns = self.fold(left, [-1]), self.fold(right, [-2])  # (…, M, 1) and (…, 1, N)
        summed_left = torch.where((rows != 0).any(-2, keepdim=True), 0, self.fold(left, [-2]))  # (…, 1, K)
        summed_right = torch.where((columns != 0).any(-1, keepdim=True), 0, self.fold(right, [-1]))  # (…, K, 1)
        if a.shape[-1] == 1:
            summed_left, summed_right = torch.zeros_like(summed_left), torch.zeros_like(summed_right)
        one, other = summed_left.squeeze(-2), summed_right.squeeze(-1)
        for mine, theirs in ((one, other), (other, one)):
            self.freeze(torch.where(theirs == 0, mine, 0), "a product with something that is no channel")
        self.unite(one, other)
        shape = out.shape
        if one.any() and other.any():  # queries and keys: each row of colours is a head
            heads, which = torch.unique(one.reshape(-1, one.shape[-1]), dim=0, return_inverse=True)
            self._tie_to_stream(heads)
            names = self.new(len(heads), virtual=True)
            self.members_of_head += list(zip(names.tolist(), heads, strict=True))
            keys = other.reshape(-1, other.shape[-1])
            self.members_of_head += [(int(names[h]), keys[i]) for i, h in enumerate(which.reshape(-1).tolist())]
            return names[which.reshape(-1)].view(*shape[:-2], 1, 1).expand(shape)
        if rows.any() and columns.any():
            head = self.is_head(rows)
            if not head.any():
                self.freeze(rows, "two channels meet in one number")
                self.freeze(columns, "two channels meet in one number")
                return None
            values = columns.squeeze(-2).reshape(-1, columns.shape[-1])
            names = rows.amax(-2).reshape(-1)
            seen: set[int] = set()
            for i, name in enumerate(names.tolist()):
                if name and name not in seen:
                    seen.add(name)
                    self.members_of_head.append((name, values[i]))
            self._tie_to_stream(torch.unique(values, dim=0))
            return columns.expand(shape)
        if rows.any() and not self.is_head(rows).all():
            return rows.expand(shape)
        return columns.expand(shape) if columns.any() else rows.expand(shape) if rows.any() else None

    def _tie_to_stream(self, heads: Tensor) -> None:
        """Attention's width and that of the stream it reads shrink by one fraction: code computes one from the other."""
        blocks = list(heads)
        for (name, _), colours in self.births.items():
            if name in self.reads and torch.isin(heads, colours).any() and len(read := colours_of(self.reads[name])):
                blocks.append(read)
        self.ties.append(blocks)

    def finish(self, outputs: Any) -> None:
        """Freeze what the caller gets to see: of a dictionary with logits (as transformers return) only those."""
        outputs = getattr(outputs, "logits", outputs)
        for leaf in tree_leaves(outputs):
            self.freeze(self.shadow(leaf), "the output")
        self.ties += list(self._split_dimensions())

    def _split_dimensions(self) -> Iterator[list[Tensor]]:
        """Where a dimension of channels was split by a view, the last part shrinks, by the same number everywhere."""
        for shadow in self.views:
            small = self.root(narrow(shadow))
            dims = [d for d in range(small.ndim) if self.varies(small, d)]
            if len(dims) > 1:
                rows = self._rows(shadow, dims[-1])
                if len(rows) > 1:
                    yield list(rows)

    def _rows(self, shadow: Tensor, dim: int) -> Tensor:
        """The distinct lines of colours along a dimension, (lines, size); a colour may come more than once in a line."""
        small, dim = narrow(shadow), dim % shadow.ndim
        lines = self.root(small.expand([*small.shape[:dim], shadow.shape[dim], *small.shape[dim + 1 :]])).movedim(dim, -1)
        return torch.unique(lines.reshape(-1, lines.shape[-1]), dim=0)


@dataclass(frozen=True)
class _Weight:
    """How a (K, N) matrix lies in a parameter: which of its dimensions is summed over, and which is new."""

    name: str
    whole: Tensor
    inner: int | None
    inner_places: Tensor | None
    outer: int | None
    outer_places: Tensor | None

    def flipped(self) -> "_Weight":
        return _Weight(self.name, self.whole, self.outer, self.outer_places, self.inner, self.inner_places)


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


def _joined_dimensions(before: torch.Size, after: torch.Size) -> Iterator[list[int]]:
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


def _cat(shadows: list[Tensor], dim: int) -> Tensor:
    """`torch.cat` that repeats nothing which no operand varies in."""
    ndim, dim = shadows[0].ndim, dim % shadows[0].ndim
    shape = list(shadows[0].shape)
    shape[dim] = sum(shadow.shape[dim] for shadow in shadows)
    for d in range(ndim):
        if d != dim and all(shadow.stride(d) == 0 for shadow in shadows):
            shadows = [shadow.narrow(d, 0, 1) for shadow in shadows]
    return torch.cat(shadows, dim).expand(shape)


__all__ = ["Colouring", "Step", "along", "colours_of", "narrow", "tight"]
