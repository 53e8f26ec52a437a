"""Cutting out what masks have emptied: `slim` makes a really smaller module of the same class.

A smaller tensor is what the mask leaves of the larger one. Beside tensors, a module holds numbers that must follow:
those of the standard layers are known (`in_channels`, `num_features`, …); those that a forward of the model's own reads
(`hidden_dim`, `num_heads`, the size in a `view`) are found by running the smaller model beside the steps of the larger
one, whose colours tell what shape every step must have.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pruninglab.colours import narrow
from pruninglab.graph import Graph, GraphError, Inputs, call, trace, watched
from pruninglab.masks import Masks

TRIES = 200  # how many numbers of a model are tried before it is said that they cannot be mended


def slim(model: nn.Module, masks: Masks, example_inputs: Inputs, *, graph: Graph | None = None) -> nn.Module:
    """A smaller copy of a model without the channels that masks have emptied.

    Its outputs are those of the masked model. Where a norm takes its mean over channels (layer norm, RMS norm), the
    mean is over those that are left.

    Args:
        model: the network that was masked; unchanged.
        masks: what `prune(unit="channel")` returned. Channels that are only partly masked stay.
        example_inputs: one batch of what the model is called with.
        graph: what `trace` found in this model, if it is at hand; it is traced if not.

    Returns:
        An ordinary module of the same class, with the same names in its state dict.

    Raises:
        GraphError: the masks leave channels that do not fit each other, or a number that the model's forward reads
            cannot be found.
        ValueError: masks of another model.
    """
    graph = trace(model, example_inputs) if graph is None else graph
    return cut(model, graph, emptied(model, masks, graph), example_inputs)


def emptied(model: nn.Module, masks: Masks, graph: Graph) -> Tensor:
    """Which channels a mask leaves nothing of: (channels,) bool.

    Raises:
        ValueError: the masks are of another model, or empty no channel.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            there = tuple(parameters[name].shape) if name in parameters else "missing"
            raise ValueError(f"these masks are not of this model: {name} is {tuple(mask.shape)}, in the model {there}")
    left = torch.zeros(graph.n + 1, dtype=torch.bool)
    for name, tensors in graph.cuts.items():
        if name not in parameters:
            continue
        for channels in tensors:
            if name not in masks:
                left[channels.reshape(-1)] = True
                continue
            mask = masks[name].cpu()
            wide = [d for d in range(mask.ndim) if channels.shape[d] == 1 < mask.shape[d]]
            alive = mask.amax(wide, keepdim=True) if wide else mask
            left[channels.expand(alive.shape)[alive]] = True
    removed = ~left[:-1]
    if not removed.any():
        raise ValueError("these masks empty no whole channel: prune with unit='channel', 'head' or 'layer'")
    return removed


def cut(model: nn.Module, graph: Graph, removed: Tensor, example_inputs: Inputs) -> nn.Module:
    """A copy of the model without some of its channels, its numbers mended and its shapes checked at every step."""
    alive = graph.alive(removed)
    memo: dict[int, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in alive:
            smaller = _remaining(tensor.detach(), alive[name].to(tensor.device), name)
            whole = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(smaller, tensor.requires_grad) if whole else smaller
    before = {name: {n: p.shape for n, p in module.named_parameters(recurse=False)} for name, module in model.named_modules()}
    grads = {name: p.grad for name, p in model.named_parameters()}
    try:
        for p in model.parameters():
            p.grad = None
        small = copy.deepcopy(model, memo)
    finally:
        for name, p in model.named_parameters():
            p.grad = grads[name]
    for name, module in small.named_modules():
        if any(f"{name}.{own}".lstrip(".") in alive for own, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))):
            _renumber(module, before[name])
    _mend(small, graph, removed, example_inputs)
    return small


def _remaining(tensor: Tensor, alive: Tensor, name: str) -> Tensor:
    """What a mask leaves of a tensor, as a smaller tensor."""
    small = alive
    for dim in range(alive.ndim):
        others = [d for d in range(alive.ndim) if d != dim]
        line = small.clone()
        for other in others:
            line = line.any(other, keepdim=True)
        tensor = tensor if line.shape[dim] == 1 else tensor.index_select(dim, line.reshape(-1).nonzero().reshape(-1))
        small = small if line.shape[dim] == 1 else small.index_select(dim, line.reshape(-1).nonzero().reshape(-1))
    if small.all():
        return tensor.clone(memory_format=torch.contiguous_format)
    shape = [left if size > 1 else whole for left, size, whole in zip(_left(small, name), small.shape, tensor.shape, strict=True)]
    return tensor[small.expand(tensor.shape)].view(shape)


def _left(alive: Tensor, what: str) -> list[int]:
    """The shape of what a mask leaves: whole slices, or the same number from each part of one dimension."""
    dims = [dim for dim in range(alive.ndim) if alive.shape[dim] > 1]
    sizes = list(alive.shape)
    for dim in dims:
        line = alive
        for other in dims:
            if other != dim:
                line = line.any(other, keepdim=True)
        sizes[dim] = int(line.sum())
    total = int(alive.sum())
    for dim in [None, *reversed(dims)]:
        tried = list(sizes)
        if dim is not None:
            counts = alive.sum(dim)
            counts = torch.unique(counts[counts > 0])
            if len(counts) != 1:
                continue
            tried[dim] = int(counts)
        if math.prod(tried) == total:
            return tried
    raise GraphError(f"{what}: its parts lose different numbers of channels")


def _renumber(module: nn.Module, before: Mapping[str, torch.Size]) -> None:
    """Let the numbers of a standard layer say what its tensors are."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd):
        old, new = before["weight"], weight.shape  # type: ignore[union-attr]
        if module.transposed:
            if old[1] == 1 and module.groups == old[0]:
                module.groups = new[0]
            module.in_channels, module.out_channels = new[0], new[1] * module.groups
        else:
            if old[1] == 1 and module.groups > 1:
                module.groups = module.groups * new[0] // old[0]
            module.in_channels, module.out_channels = new[1] * module.groups, new[0]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape  # type: ignore[union-attr]
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        tensor = weight if weight is not None else module.running_mean
        module.num_features = len(tensor)  # type: ignore[arg-type]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(weight.shape)  # type: ignore[union-attr, assignment]
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(weight)  # type: ignore[arg-type]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape  # type: ignore[union-attr]
    elif isinstance(module, nn.MultiheadAttention):
        inner, outer = (module.in_proj_weight if module.in_proj_weight is not None else module.q_proj_weight).shape
        module.head_dim = (inner // 3 if module.in_proj_weight is not None else inner) // module.num_heads
        module.embed_dim = outer
        if module.in_proj_weight is not None:
            module.kdim = module.vdim = outer
        else:
            module.kdim, module.vdim = module.k_proj_weight.shape[1], module.v_proj_weight.shape[1]
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # of transformers
        module.nx, module.nf = weight.shape  # type: ignore[union-attr]


# ── the numbers that a forward reads ──────────────────────────────────────────────────────────────────────────────


class _Differs(Exception):
    """The smaller model does not do what the larger one did: at which step, and what would be right."""

    def __init__(self, step: int, where: str, what: str, sizes: list[tuple[int, int, int | None]]) -> None:
        super().__init__(what)
        self.step, self.where, self.what, self.sizes = step, where, what, sizes


class _Beside(TorchDispatchMode):
    """Runs a smaller model and compares the shapes of each step with those that are left of the larger model's."""

    def __init__(self, graph: Graph, removed: Tensor) -> None:
        super().__init__()
        self.graph, self.steps = graph, graph.colouring.steps
        self.gone = torch.cat([removed, torch.zeros(1, dtype=torch.bool)])
        self.where: list[str] = [""]
        self.at = 0
        self.rescale: list[tuple[Tensor, float]] = []
        self._sizes: dict[int, list[int]] = {}

    def left(self, shadow: Tensor) -> list[int]:
        """The shape that remains of a step's result."""
        key = id(shadow)
        if key not in self._sizes:
            alive = ~self.gone[self.graph.number[narrow(shadow)]]
            sizes = list(shadow.shape)
            left = _left(alive, f"a step in {self.where[-1]}")
            self._sizes[key] = [n if alive.shape[dim] > 1 else sizes[dim] for dim, n in enumerate(left)]
        return self._sizes[key]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        step = self.steps[self.at] if self.at < len(self.steps) else None
        if step is None or step.name != name:
            raise _Differs(self.at, self.where[-1], f"does {name} instead of {step.name if step else 'ending'}", [])
        wanted = [(shadow, self.left(shadow)) for shadow in step.shadows if shadow is not None]
        changed = [(old, new, None) for s, left in wanted for old, new in zip(s.shape, left, strict=True) if old != new]
        try:
            out = function(*args, **(kwargs or {}))
        except Exception as error:
            raise _Differs(self.at, self.where[-1], f"{name} fails: {error}", changed) from error
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for result, shadow in zip(results, step.shadows, strict=False):
            if shadow is not None and list(result.shape) != self.left(shadow):
                left = self.left(shadow)
                sizes = [(old, new, got) for old, new, got in zip(shadow.shape, left, result.shape, strict=False) if new != got]
                raise _Differs(self.at, self.where[-1], f"{name} gives {tuple(result.shape)} instead of {tuple(left)}", sizes)
        if name in ("mul", "div", "mul_", "div_") and step.operands and step.operands[0] is not None:
            numbers = [float(a) for a in args if isinstance(a, (int, float)) and not isinstance(a, bool)]
            if len(numbers) == len(step.numbers) == 1 and numbers[0] != step.numbers[0] and numbers[0]:
                ratio = step.numbers[0] / numbers[0]
                self.rescale.append((step.operands[0], 1 / ratio if name.startswith("div") else ratio))
        self.at += 1
        return out


def _mend(small: nn.Module, graph: Graph, removed: Tensor, inputs: Inputs) -> None:
    """Find the numbers that the forward of a smaller model reads, until each step has the shape that it must have."""
    tried = 0
    trouble = _compare(small, graph, removed, inputs)
    while isinstance(trouble, _Differs):
        for holder, key, old, value in _candidates(small, trouble):
            tried += 1
            _set(holder, key, value)
            after = _compare(small, graph, removed, inputs)
            if not isinstance(after, _Differs) or after.step > trouble.step:
                trouble = after
                break
            _set(holder, key, old)
        else:
            tried = TRIES
        if tried >= TRIES:
            where = trouble.where or type(small).__name__
            raise GraphError(f"the smaller {type(small).__name__} does not run: in {where}, {trouble.what}")
    for shadow, ratio in trouble:
        _rescale(small, graph, removed, shadow, ratio)


def _compare(small: nn.Module, graph: Graph, removed: Tensor, inputs: Inputs) -> "_Differs | list[tuple[Tensor, float]]":
    beside = _Beside(graph, removed)
    with watched(small, beside.where):
        try:
            with beside:
                call(small, inputs)
        except _Differs as trouble:
            return trouble
        except GraphError:
            raise
        except Exception as error:
            where = beside.where[-1]
            step = beside.steps[min(beside.at, len(beside.steps) - 1)]
            sizes = [(old, new, None) for s in step.shadows if s is not None for old, new in zip(s.shape, beside.left(s), strict=True) if old != new]
            return _Differs(beside.at, where, f"{type(error).__name__}: {error}", sizes)
    return beside.rescale


def _candidates(small: nn.Module, trouble: _Differs) -> Iterator[tuple[Any, Any, int, int]]:
    """Numbers near the trouble, innermost module first, that hold an old size, and what they might have to be."""
    names = trouble.where.split(".") if trouble.where else []
    holders = [small.get_submodule(".".join(names[:end])) for end in range(len(names), -1, -1)]
    for exact in (True, False):
        for module in holders:
            yield from _numbers(vars(module), trouble, exact)
            config = vars(module).get("config")
            if config is not None and hasattr(config, "__dict__"):
                yield from _numbers(vars(config), trouble, exact)


def _numbers(values: dict[str, Any], trouble: _Differs, exact: bool) -> Iterator[tuple[Any, Any, int, int]]:
    for key, value in list(values.items()):
        if key.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, int):
            yield from ((values, key, value, new) for new in _values(value, trouble, exact))
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, int) and not isinstance(item, bool):
                    yield from ((value, i, item, new) for new in _values(item, trouble, exact))


def _values(value: int, trouble: _Differs, exact: bool) -> Iterator[int]:
    found = set()
    for old, new, got in trouble.sizes:
        if exact:
            guesses = [new] if value == old else []
        else:
            guesses = [value - (got - new)] if got is not None else []
            guesses += [value * new // old] if value % old == 0 or (value * new) % old == 0 else []
        for guess in guesses:
            if guess > 0 and guess != value and guess not in found:
                found.add(guess)
                yield guess


def _set(holder: Any, key: Any, value: int) -> None:
    holder[key] = value


def _rescale(small: nn.Module, graph: Graph, removed: Tensor, shadow: Tensor, ratio: float) -> None:
    """A factor that the forward computes from a size (attention's 1/√d) goes into the layer that made its operand."""
    colouring = graph.colouring
    colours = torch.unique(narrow(shadow))
    if bool(colouring.is_head(colours).all()):
        colours = torch.unique(torch.cat([members for head, members in colouring.members_of_head if head in set(colours.tolist()) and len(members) > 1][:1]))
    parameters = dict(small.named_parameters())
    for (name, dim), born in colouring.births.items():
        if dim < 0 or name not in parameters or born[0] > colours[-1] or born[-1] < colours[0]:
            continue
        rows = torch.isin(born, colours)
        if rows.any():
            kept = rows[~removed[graph.births[name, dim]]]
            for target in (name, name.removesuffix("weight") + "bias"):
                if target in parameters:
                    tensor, own = parameters[target], dim if target == name else 0
                    factor = torch.where(kept, ratio, 1.0).to(tensor)
                    with torch.no_grad():
                        tensor.mul_(factor.view([-1 if d == own else 1 for d in range(tensor.ndim)]))


__all__ = ["Iterable", "cut", "emptied", "slim"]
