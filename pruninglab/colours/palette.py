"""The colours of a run, which of them have met, and the shadows of its tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from pruninglab.colours.shadows import along, narrow, tight
from pruninglab.layers import named_tensors


@dataclass
class Step:
    """One operation of the watched run: its name, the shadows of its results, the numbers and shadows that it used.

    `constants` are numbers too, but in tensors of one element: by their place among the arguments.
    """

    name: str
    shadows: list[Tensor | None]
    numbers: tuple[float, ...]
    constants: dict[int, float]
    operands: list[Tensor | None]
    work: "Work | None"


@dataclass
class Work:
    """The multiplications of a step: (entries of a weight) × positions, or those of a product of two activations."""

    positions: int
    weight: str | None = None
    share: float = 1.0  # of the weight that takes part
    summed: Tensor | None = None  # of a product: the shadow of what is summed over
    summed_size: int = 0
    result: tuple[int, ...] = ()


class Palette:
    """What is known of the colours of a run.

    Attributes:
        cuts: parameter or buffer name → tensors of colours that broadcast to its shape, one for each of its dimensions
            along which channels lie.
        births: (parameter, dimension) → the colours that begin there, in order.
        reads: parameter → the colours that it sums over.
        ties: sets of lines of colours, of which each must lose the same fraction.
        views: the shadows of what views have split.
        frozen: (colours, why they cannot be removed).
        members_of_head: (the colour of an attention head, colours that belong to it), in the order they were found.
        steps: all operations, in order.
        where: the modules that run, outermost first.
        touched, ran: the parameters that were used, and the modules that ran.
        by_place: whether channels were picked or moved by a place that the code may name by a number.
        shadows: tensor → its colours.
        not_zero: the tensors that are not zero where a removed channel would be.
        elements: parameter that acts element by element → the colours of its elements.
        work: of the operation at hand.
    """

    def __init__(self, model: nn.Module, *, whole_heads: bool = False) -> None:
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
        self.by_place = False
        self.not_zero: Any = WeakIdKeyDictionary()
        self.written: dict[int, Tensor] = {}  # memory that was written so; tensors are held, so that it stays theirs
        self.ran: set[str] = set()
        self.work: Work | None = None
        self._lonely: dict[int, int] = {}  # head → the first colour that met it by itself
        self._parent = np.zeros(1, dtype=np.int64)
        self._virtual = np.zeros(1, dtype=bool)
        self.shadows: Any = WeakIdKeyDictionary()
        self.elements: dict[str, Tensor] = {}
        self._leaves: dict[int, list[tuple[str, Tensor]]] = {}
        for name, tensor in named_tensors(model):
            if tensor.is_floating_point() and tensor.numel():
                self._leaves.setdefault(memory_of(tensor), []).append((name, tensor))

    def new(self, n: int, *, virtual: bool = False) -> Tensor:
        """N new colours."""
        first = len(self._parent)
        self._parent = np.concatenate([self._parent, np.arange(first, first + n)])
        self._virtual = np.concatenate([self._virtual, np.full(n, virtual)])
        return torch.arange(first, first + n)

    def spoilt(self, tensor: Tensor) -> bool:
        """Whether a tensor need not be zero where a removed channel would be."""
        return tensor in self.not_zero or memory_of(tensor) in self.written

    def known(self) -> int:
        """How many colours there are, 0 counted."""
        return len(self._parent)

    def root(self, colours: Tensor) -> Tensor:
        """What each colour has become after all that has met so far."""
        return torch.from_numpy(self._roots(colours.numpy()))

    def _roots(self, colours: np.ndarray) -> np.ndarray:
        now = self._parent[colours]
        while True:
            further = self._parent[now]
            if np.array_equal(further, now):
                return now
            now = further

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Make colours that stand in the same place one; 0 (none) joins nothing. A head is not a channel."""
        a, b = torch.broadcast_tensors(a, b)
        x, y = a.reshape(-1).numpy(), b.reshape(-1).numpy()
        both = (x != 0) & (y != 0) & (x != y)
        x, y = x[both], y[both]
        mixed = self._virtual[x] != self._virtual[y]
        if mixed.any():
            met: list[tuple[int, int]] = []  # all that is one for each head goes with it
            for one, other in np.unique(np.stack([x[mixed], y[mixed]], 1), axis=0).tolist():
                head, member = (one, other) if self._virtual[one] else (other, one)
                self.members_of_head.append((head, torch.tensor([member])))
                met.append((member, self._lonely.setdefault(head, member)))
            x, y = np.append(np.stack([x[~mixed], y[~mixed]]), np.array(met).T, 1)
        while len(x):  # the higher root of each pair goes under the lower one, until all pairs have one root
            x, y = self._roots(x), self._roots(y)
            differ = x != y
            x, y = x[differ], y[differ]
            np.minimum.at(self._parent, np.maximum(x, y), np.minimum(x, y))

    def is_head(self, colours: Tensor) -> Tensor:
        return torch.from_numpy(self._virtual[colours.numpy()])

    def in_heads(self) -> Tensor:
        """The colours of queries, keys and values, and of the heads themselves."""
        heads = torch.tensor([head for head, _ in self.members_of_head], dtype=torch.int64)
        return torch.unique(torch.cat([heads, *(members for _, members in self.members_of_head)]))

    def unread(self) -> Tensor:
        """Which colours, (colours,) bool, are of elements that met nothing: of a table that the run read in part."""
        roots = self.root(torch.arange(self.known()))
        found = torch.zeros(len(roots), dtype=torch.bool)
        for elements in self.elements.values():
            found[elements.reshape(-1)] = True
        found &= torch.bincount(roots, minlength=len(roots))[roots] == 1
        met = [*self.births.values(), *(frozen for frozen, _ in self.frozen), *(own for _, own in self.members_of_head)]
        for colours in met:
            found[colours.reshape(-1)] = False
        return found

    def varies(self, shadow: Tensor, dim: int) -> bool:
        """Whether colours differ along a dimension."""
        if shadow.shape[dim] == 1 or shadow.stride(dim) == 0:
            return False
        shadow = self.root(narrow(shadow))
        return bool((shadow != shadow.narrow(dim, 0, 1)).any())

    def varying(self, shadow: Tensor) -> list[int]:
        """The dimensions along which colours differ; the last of them is the one that shrinks."""
        return [dim for dim in range(shadow.ndim) if self.varies(shadow, dim)]

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
                self.frozen.append((distinct, f"{why} in {self.where[-1]}" if self.where[-1] else why))

    def leaf(self, tensor: Any) -> tuple[str, Tensor] | None:
        """The parameter or buffer that a tensor is, or is a view of."""
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            return None
        for name, whole in self._leaves.get(memory_of(tensor), ()):
            offset = tensor.storage_offset() - whole.storage_offset()
            if 0 <= offset < max(whole.numel(), 1) and tensor.dtype == whole.dtype:
                return name, whole
        return None

    def shadow(self, tensor: Any) -> Tensor | None:
        """The colours of a tensor, or None if it has none. A parameter used as an activation gets some of its own."""
        if not isinstance(tensor, Tensor):
            return None
        known = self.shadows.get(tensor)
        if known is not None:
            return known
        found = self.leaf(tensor)
        if found is None:
            return None
        name, whole = found
        if name not in self.elements:
            return None
        elements = self.elements[name]
        if tensor.shape == whole.shape and tensor.stride() == whole.stride():
            return elements
        offset = tensor.storage_offset() - whole.storage_offset()
        laid_out = torch.empty_strided(whole.shape, whole.stride(), dtype=elements.dtype).copy_(elements)
        return laid_out.as_strided(tensor.shape, tensor.stride(), offset)

    def as_activation(self, tensor: Any) -> Tensor | None:
        """Like `shadow`, but a parameter that has no colours yet gets a new one for each element."""
        found = self.leaf(tensor)
        if found and found[0] not in self.elements and tensor not in self.shadows:
            name, whole = found
            self.elements[name] = self.new(whole.numel()).view(whole.shape)
            self.cut(name, self.elements[name])
        return self.shadow(tensor)

    def put(self, tensor: Tensor, shadow: Tensor | None) -> None:
        if shadow is not None and narrow(shadow).any():
            self.shadows[tensor] = tight(shadow.expand(tensor.shape))

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


def memory_of(tensor: Tensor) -> int:
    """Which memory a tensor looks at, also where that has no address, for want of numbers."""
    return int(tensor.untyped_storage()._cdata)
