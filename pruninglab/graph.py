"""Which channels are tied together: `channel_groups`, and the graph that it reads them from.

A *channel* here is one colour of `colours.Colouring`: all the places (rows of one layer, columns of the next, entries
of norms) that hold the same thing and must go together. Channels lie in *families*: those of one layer's output, with
whatever must shrink by the same fraction (the groups of a grouped convolution, attention's heads and the stream that
they read). A family goes in *slots*, each the least that can be removed without breaking it.
"""

import copy
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from pruninglab.batches import Inputs, call
from pruninglab.colours import Colouring, colours_of, narrow
from pruninglab.families import Family, families, with_kinds
from pruninglab.layers import PRUNABLE, Exclude, entries, matches, named_tensors, not_plain
from pruninglab.naming import few
from pruninglab.watching import watched

STAYING = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)  # in evaluation mode, always


class GraphError(ValueError):
    """A network, or an operation in it, that cannot be followed.

    Attributes:
        channels: those whose removal leads to it, where that is known.
    """

    def __init__(self, what: str, channels: Tensor | None = None) -> None:
        super().__init__(what)
        self.channels = torch.zeros(0, dtype=torch.int64) if channels is None else channels


@dataclass(frozen=True)
class Member:
    """A part of a parameter that belongs to a channel: `parameter.index_select(dimension, indices)`.

    For a grouped convolution's inputs, only in the rows `within` (elsewhere the indices mean another channel).
    """

    parameter: str
    dimension: int
    indices: tuple[int, ...]
    within: tuple[int, ...] | None = None

    def __str__(self) -> str:
        places = ", ".join(map(str, self.indices[:3])) + (", …" if len(self.indices) > 3 else "")
        return f"{self.parameter}[{':, ' * self.dimension}{places}]"


@dataclass(frozen=True)
class Group:
    """Channels that must go together: all that is left of one colour.

    Attributes:
        family: which family of interchangeable channels it is in.
        members: where in the parameters (and buffers) it lies.
        kept_because: why it cannot be removed; empty if it can.
    """

    family: int
    members: tuple[Member, ...]
    kept_because: str = ""

    def __str__(self) -> str:
        return " + ".join(map(str, self.members))


@dataclass
class Graph:
    """What colouring found, with channels numbered from 0.

    Attributes:
        cuts: parameter or buffer → tensors of channels that broadcast to its shape; −1 where there is none.
        n: how many channels there are.
        kept: channel → why it cannot be removed.
        families: the channels that can be.
        births: (parameter, dimension) → the channels that begin there.
        inputs: what the model was run on.
        rehearsed: what `surgery.cut` keeps of the last choice of channels.
        colouring: the run itself.
        whole_heads: as in `trace`.
        sizes: parameter or buffer → how many numbers it holds.
        number: colour → channel, −1 for none.
    """

    cuts: dict[str, list[Tensor]]
    n: int
    kept: dict[int, str]
    families: list[Family]
    births: dict[tuple[str, int], Tensor]
    colouring: Colouring
    inputs: Any = None
    whole_heads: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    number: Tensor = field(default_factory=lambda: torch.zeros(0))
    rehearsed: Any = None

    def outputs(self, name: str) -> Tensor:
        """The channels at a layer's outputs, in order; −1 where there is none.

        Raises:
            GraphError: the parameter is of no layer that was followed.
        """
        for (layer, _), channels in self.births.items():
            if layer == name:
                return channels
        lines = [c for c in self.cuts.get(name, ()) if c.shape[0] == c.numel()]  # a depthwise layer passes channels on
        if not lines:
            raise GraphError(f"{name} was not followed: nothing is known of its outputs")
        return lines[0].reshape(-1)

    def channels_at(self, step: int) -> Tensor:
        """The channels that a step of the run works on or gives."""
        steps = self.colouring.steps[step : step + 1]
        met = [self.number[narrow(s)].reshape(-1) for at in steps for s in (*at.operands, *at.shadows) if s is not None]
        channels = torch.unique(torch.cat([torch.zeros(0, dtype=torch.int64), *met]))
        return channels[channels >= 0]

    def keeping(self, model: nn.Module, channels: Tensor, why: str, exclude: tuple[Exclude, ...] = ()) -> "Graph":
        """The same graph with some channels that stay, and with them what can only go together with them."""
        colouring = copy.copy(self.colouring)
        colouring.frozen = [*colouring.frozen, (torch.isin(self.number, channels).nonzero().reshape(-1), why)]
        return _numbered(colouring, model, exclude, self.whole_heads, self.inputs)

    def kept_parts(self, removed: Tensor) -> dict[str, list[Tensor]]:
        """Parameter or buffer → bool tensors that broadcast to its shape, each False where removed channels lie.

        What is left is where all are True. Only what loses something is named.
        """
        stays = ~or_none(removed)
        found = {}
        for name, tensors in self.cuts.items():
            masks = [mask for channels in tensors if not bool((mask := stays[channels]).all())]
            if masks:
                found[name] = masks
        return found

    def alive(self, removed: Tensor) -> dict[str, Tensor]:
        """The same as one tensor each, that broadcasts to the shape."""
        return {name: reduce(both, masks) for name, masks in self.kept_parts(removed).items()}

    def alive_sizes(self, removed: Tensor) -> dict[str, float]:
        """Parameter or buffer → which fraction of its entries is left."""
        found = {}
        for name, masks in self.kept_parts(removed).items():
            apart = masks if all(map(is_line, masks)) else [reduce(both, masks)]
            found[name] = math.prod(float(mask.sum()) / mask.numel() for mask in apart)
        return found

    def left(self, shadow: Tensor, gone: Tensor, what: str) -> list[int]:
        """The shape that remains of a tensor with this shadow; `gone` is `or_none` of the removed channels."""
        small = narrow(shadow)
        alive = ~gone[self.number[small]]
        if small.numel() == max(small.shape, default=1):  # channels lie along one dimension, or none
            return [int(alive.sum()) if n > 1 else shadow.shape[dim] for dim, n in enumerate(small.shape)]
        return [n if alive.shape[dim] > 1 else shadow.shape[dim] for dim, n in enumerate(left_shape(alive, what))]

    def flops(self, removed: Tensor) -> int:
        """Floating-point operations of the traced run without some channels; 2 for a multiplication and addition."""
        gone, left, total = or_none(removed), self.alive_sizes(removed), 0.0
        for step in self.colouring.steps:
            work = step.work
            if work is None:
                continue
            if work.weight is not None:
                total += 2 * work.positions * work.share * self.sizes[work.weight] * left.get(work.weight, 1.0)
            else:
                shape = step.shadows[0]
                result = work.result if shape is None else self.left(shape, gone, step.name)
                inner = work.summed_size if work.summed is None else self.left(work.summed, gone, step.name)[-1]
                total += 2 * math.prod(result) * inner
        return round(total)


def or_none(removed: Tensor) -> Tensor:
    """Which channels are removed, with a place more at the end: −1, no channel, never is."""
    return torch.cat([removed, torch.zeros(1, dtype=torch.bool)])


def both(a: Tensor, b: Tensor) -> Tensor:
    """`a & b` of masks that broadcast; as bytes, which takes torch a twentieth of the time."""
    return (a.view(torch.uint8) & b.view(torch.uint8)).view(torch.bool)


def is_line(mask: Tensor) -> bool:
    """Whether a mask speaks of one dimension only."""
    return sum(size > 1 for size in mask.shape) <= 1


def left_shape(alive: Tensor, what: str) -> list[int]:
    """The shape of what a mask leaves: whole slices, or the same number from each part of one dimension.

    Raises:
        GraphError: neither fits.
    """
    dims = [dim for dim in range(alive.ndim) if alive.shape[dim] > 1]
    sizes = list(alive.shape)
    for dim in dims:
        line = alive
        for other in dims:
            if other != dim:
                line = line.any(other, keepdim=True)
        sizes[dim] = int(line.sum())
    total = int(alive.sum())
    for part in [None, *reversed(dims)]:
        tried = list(sizes)
        if part is not None:
            counts = alive.sum(part)
            counts = torch.unique(counts[counts > 0])
            if len(counts) != 1:
                continue
            tried[part] = int(counts)
        if math.prod(tried) == total:
            return tried
    raise GraphError(f"{what}: its parts lose different numbers of channels")


def trace(
    model: nn.Module,
    example_inputs: "Inputs | Graph",
    exclude: Exclude | Iterable[Exclude] = (),
    *,
    whole_heads: bool = False,
) -> Graph:
    """Run the model once on colours. What only runs in training (auxiliary heads) is followed in a second run.

    The graph can be given to `prune` and `slim` in place of example inputs, so that they need not run the model again.

    Raises:
        GraphError: there are no example inputs, or the model fails on them.
    """
    if isinstance(example_inputs, Graph):
        if example_inputs.whole_heads == whole_heads:
            return example_inputs
        example_inputs = example_inputs.inputs
    inputs: Any = example_inputs
    if inputs is None:
        raise GraphError("example_inputs= is needed to follow channels: one batch of what the model is called with")
    for name, module in model.named_modules():
        if isinstance(module, PRUNABLE) and module._parameters.get("weight") is None:
            raise GraphError(not_plain(name))
    try:
        colouring = _coloured(model, inputs, whole_heads, light=True)
    except GraphError:  # it asks for numbers; or it really fails
        colouring = _coloured(model, inputs, whole_heads, light=False)
    graph = _numbered(colouring, model, entries(exclude), whole_heads, inputs)
    untouched = [name for name, _ in model.named_parameters() if name not in colouring.touched]
    if untouched:
        layers = dict.fromkeys(name.rpartition(".")[0] or name for name in untouched)
        warnings.warn(
            f"example_inputs never reach {few(layers, 5)}: nothing is known of what they read, so they stay as they "
            "are, and may not fit what is cut around them",
            stacklevel=3,
        )
    return graph


def _coloured(model: nn.Module, inputs: Inputs, whole_heads: bool, light: bool) -> Colouring:
    """One run of a model on colours, and a second one in training mode if the first leaves parameters untouched."""
    colouring = Colouring(model, whole_heads=whole_heads, light=light)
    with watched(model, colouring.where):
        _run(model, inputs, colouring)
        if all(name in colouring.touched for name, _ in model.named_parameters()):
            return colouring
        with torch.random.fork_rng(devices=[]):
            steps, colouring.steps = colouring.steps, []
            for module in model.modules():
                module.training = not isinstance(module, STAYING)
            try:
                _run(model, inputs, colouring)
            except GraphError:  # an auxiliary head may need larger inputs; its channels are then not found
                if light:
                    raise
            colouring.steps = steps
    return colouring


def _run(model: nn.Module, inputs: Inputs, colouring: Colouring) -> None:
    depth = len(colouring.where)
    try:
        with colouring:
            outputs = call(model, inputs)
    except Exception as error:
        where = colouring.where[-1] or type(model).__name__
        raise GraphError(
            f"{type(model).__name__} fails on example_inputs, in {where}: {type(error).__name__}: {error}"
        ) from error
    finally:
        del colouring.where[depth:]
    colouring.finish(outputs)


def channel_groups(model: nn.Module, example_inputs: Inputs, exclude: Exclude | Iterable[Exclude] = ()) -> list[Group]:
    """All channels of a model, each with every place in its parameters and buffers that it takes up.

    Args:
        model: any module; it is run once, in evaluation mode, and left as it was.
        example_inputs: one batch of what the model is called with: a tensor, a tuple, or a dict of named arguments.
        exclude: layers (names, globs, types, modules) whose outputs are to stay.

    Raises:
        GraphError: the model fails on the inputs, or none are given.
    """
    graph = trace(model, example_inputs, exclude)
    family = {int(c): i for i, family in enumerate(graph.families) for cell in family.cells for c in cell}
    members: list[list[Member]] = [[] for _ in range(graph.n)]
    for name, tensors in graph.cuts.items():
        for channels in tensors:
            for channel, member in _members(name, channels):
                members[channel].append(member)
    return [Group(family.get(c, -1), tuple(found), graph.kept.get(c, "")) for c, found in enumerate(members) if found]


def _members(name: str, channels: Tensor) -> Iterator[tuple[int, Member]]:
    dims = [d for d, size in enumerate(channels.shape) if size > 1]
    if len(dims) <= 1:
        dim = dims[0] if dims else 0
        flat = channels.reshape(-1)
        for channel in colours_of(flat + 1).tolist():
            yield channel - 1, Member(name, dim, tuple((flat == channel - 1).nonzero().reshape(-1).tolist()))
        return
    for channel in colours_of(channels + 1).tolist():
        places = (channels == channel - 1).nonzero()
        rows, columns = (tuple(torch.unique(places[:, d]).tolist()) for d in (dims[0], dims[-1]))
        yield channel - 1, Member(name, dims[-1], columns, rows)


def _numbered(
    colouring: Colouring, model: nn.Module, exclude: tuple[Exclude, ...], whole_heads: bool, inputs: Inputs
) -> Graph:
    """The graph of a finished run: roots numbered from 0, ties turned into families."""
    owners = _owners(model)
    made = [colouring.root(colours) for (name, _), colours in colouring.births.items() if name in owners]
    if whole_heads:
        made += [colouring.root(members) for _, members in colouring.members_of_head]
    every = torch.unique(torch.cat([torch.zeros(1, dtype=torch.int64), *made]))[1:]
    if whole_heads:
        heads = torch.tensor(sorted({head for head, _ in colouring.members_of_head}), dtype=torch.int64)
        every = torch.unique(torch.cat([every, colouring.root(heads)]))
    else:
        every = every[~colouring.is_head(every)]
    number = torch.full((colouring.known(),), -1, dtype=torch.int64)
    number[every] = torch.arange(len(every))
    number = number[colouring.root(torch.arange(len(number)))]
    number[0] = -1
    unread = colouring.unread()
    cuts = {name: [_simplest(number[c], unread[c]) for c in tensors] for name, tensors in colouring.cuts.items()}
    births = {key: number[colours] for key, colours in colouring.births.items()}
    n = len(every)

    kept: dict[int, str] = {}
    for colours, why in colouring.frozen:
        kept.update(dict.fromkeys(number[colours].tolist(), why))
    for _, members in () if whole_heads else colouring.members_of_head:
        if len(members) == 1:  # a number for each head, such as a bias, which only goes with the head
            kept.update(dict.fromkeys(number[members].tolist(), "one for each attention head"))
    for (name, _), channels in births.items():
        if any(matches(entry, name, owners[name]) for entry in exclude if name in owners):
            kept.update(dict.fromkeys(channels.tolist(), "excluded"))
    kept.pop(-1, None)
    numbers = number.numpy()
    tied = [[channels[channels >= 0] for channels in (numbers[b.numpy()] for b in tie)] for tie in colouring.ties]
    ties = [[block for block in tie if len(block)] for tie in tied]
    found = with_kinds(families(n, kept, births, ties), n, cuts, model)
    sizes = {name: tensor.numel() for name, tensor in named_tensors(model)}
    return Graph(cuts, n, kept, found, births, colouring, inputs, whole_heads, sizes, number)


def _owners(model: nn.Module) -> dict[str, nn.Module]:
    """Parameter → the module that holds it."""
    return {
        f"{name}.{own}".removeprefix("."): module
        for name, module in model.named_modules()
        for own, _ in module.named_parameters(recurse=False)
    }


def _simplest(channels: Tensor, unread: Tensor) -> Tensor:
    """Channels along one dimension, where a tensor of them does not change along the others, unread parts aside."""
    dims = [d for d, size in enumerate(channels.shape) if size > 1]
    for dim in reversed(dims) if len(dims) > 1 else ():
        line = channels.masked_fill(unread, -1).amax([other for other in dims if other != dim], keepdim=True)
        if bool(((channels == line) | unread).all()):
            return line
    return channels
