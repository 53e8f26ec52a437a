"""Cutting out what masks have emptied: `slim` makes a really smaller module of the same class.

A smaller tensor is what the mask leaves of the larger one. Beside tensors, a module holds numbers that must follow:
those of the standard layers are known (`in_channels`, `num_features`, …), those of the model's own `mending` finds.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn

from pruninglab.batches import Inputs, call
from pruninglab.blocks import bypass, emptied_blocks
from pruninglab.graph import Graph, GraphError, trace
from pruninglab.layers import named_tensors
from pruninglab.masks import Masks
from pruninglab.mending import Factors, mend, rescale, surely
from pruninglab.slimmed import changed_numbers, remaining, set_numbers
from pruninglab.slimmed import recalibrate as recalibrate_norms
from pruninglab.tasks.training import evaluating


class NothingEmptied(ValueError):
    """Masks that leave something of every channel, so that nothing can be cut out."""


@dataclass(frozen=True)
class Rehearsed:
    """What it took to make a model run without some channels, so that `cut` need not find it twice.

    Attributes:
        model: a weak reference to the model.
        removed: (channels,) bool.
        numbers: place → number, of modules (see `slimmed.changed_numbers`).
        factors: numbers that weights have to make up for.
        known: whether it was seen that weights can make up for these.
    """

    model: Callable[[], nn.Module | None]
    removed: Tensor
    numbers: dict[str, Any]
    factors: Factors
    known: bool


def slim(model: nn.Module, masks: Masks, example_inputs: Inputs | Graph, *, recalibrate: Any = None) -> nn.Module:
    """A smaller copy of a model without the channels, heads or blocks that masks have emptied.

    Its outputs are those of the masked model. Where a norm takes its mean over channels (layer norm, RMS norm, group
    norm), or the network itself does, the mean is over those that are left.

    Args:
        model: the network that was masked; unchanged.
        masks: what `prune` returned for the unit "channel", "head" or "layer". What is only partly masked stays.
        example_inputs: one batch of what the model is called with; or what `graph.trace` found with it.
        recalibrate: data with which the batch norms' running statistics are measured anew; they stay if not given.

    Returns:
        An ordinary module of the same class, with the same names in its state dict. An emptied block is replaced by
        one that returns its input.

    Raises:
        GraphError: the masks leave channels that do not fit each other, or a number that the model's forward reads
            cannot be found.
        ValueError: masks of another model, or masks that empty nothing.
    """
    check_fit(model, masks)
    small = _without(model, masks, example_inputs)
    return small if recalibrate is None else recalibrate_norms(small, recalibrate)


def _without(model: nn.Module, masks: Masks, example_inputs: Inputs | Graph) -> nn.Module:
    """A copy without what is emptied: first whole blocks, then channels or heads of what is left."""
    if masks.kept() == masks.total():
        return copy.deepcopy(model)
    inputs = example_inputs.inputs if isinstance(example_inputs, Graph) else example_inputs
    blocks = emptied_blocks(model, masks, inputs)
    if not blocks:
        graph, removed = _followed(model, masks, example_inputs)
        return cut(model, graph, removed, inputs)
    small = bypass(model, blocks)
    try:
        with evaluating(small), torch.no_grad():
            call(small, inputs)
    except Exception as error:
        what = f"{', '.join(blocks[:3])}: other code reads inside, {type(error).__name__}: {error}"
        raise GraphError(f"{type(model).__name__} does not run without {what}") from error
    gone = tuple(f"{block}." for block in blocks)
    rest = {name: mask for name, mask in masks.items() if not name.startswith(gone)}
    try:
        return _without(small, Masks(rest), inputs) if rest else small
    except NothingEmptied:  # what is left is masked weight by weight
        return small


def _followed(model: nn.Module, masks: Masks, inputs: Inputs | Graph) -> tuple[Graph, Tensor]:
    """The graph in which the masks empty whole channels (the usual one, or that of whole heads), and those channels."""
    graph = trace(model, inputs)
    try:
        removed = emptied(model, masks, graph)
    except NothingEmptied:
        removed = None
    # Positions that turn all queries alike tie their channels over all heads, but not those of the values.
    parts = [graph.number[members] for _, members in graph.colouring.members_of_head if len(members) > 1]
    if removed is None or any(bool(removed[part].all()) for part in parts):
        graph = trace(model, inputs, whole_heads=True)
        removed = emptied(model, masks, graph)
    return graph, removed


def _heads(graph: Graph) -> Iterator[tuple[int, Tensor]]:
    """Attention heads: the number of each (−1 if the graph has none), and the channels that it is made of."""
    parts: dict[int, list[Tensor]] = {}
    for head, members in graph.colouring.members_of_head:
        if len(members) > 1:
            parts.setdefault(head, []).append(graph.number[members])
    for head, found in parts.items():
        members = torch.cat(found)
        if len(members := members[members >= 0]):
            yield int(graph.number[head]), members


def check_fit(model: nn.Module, masks: Masks) -> None:
    """Raise a ValueError unless masks are of this model."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            there = tuple(parameters[name].shape) if name in parameters else "missing"
            raise ValueError(f"these masks are not of this model: {name} is {tuple(mask.shape)}, in the model {there}")


def emptied(model: nn.Module, masks: Masks, graph: Graph) -> Tensor:
    """Which channels a mask leaves nothing of: (channels,) bool.

    Raises:
        ValueError: the masks are of another model. NothingEmptied: they empty no channel.
    """
    check_fit(model, masks)
    parameters = dict(model.named_parameters(remove_duplicate=False))
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
            alive = torch.from_numpy(np.bitwise_or.reduce(mask.numpy(), tuple(wide), keepdims=True)) if wide else mask
            left[channels.expand(alive.shape)[alive]] = True
    removed = ~left[:-1]
    lying = torch.zeros(graph.n + 1, dtype=torch.bool)
    for tensors in graph.cuts.values():
        for channels in tensors:
            lying[channels.reshape(-1)] = True
    removed &= lying[:-1]
    for head, members in _heads(graph):  # a head lies nowhere itself: it is gone when all of it is
        if head >= 0:
            removed[head] = bool(removed[members].all())
    if not removed.any():
        raise NothingEmptied("these masks empty no whole channel: prune with unit='channel', 'head' or 'layer'")
    return removed


def rehearse(model: nn.Module, graph: Graph, removed: Tensor, example_inputs: Inputs) -> None:
    """See whether channels can be cut out, before anything is changed, with as little work as will tell.

    Raises:
        GraphError: they cannot.
    """
    cut(model, graph, removed, example_inputs, bare=graph.colouring.light)
    if not graph.rehearsed.known:  # shapes do not tell whether weights can make up for a number
        cut(model, graph, removed, example_inputs)


def cut(model: nn.Module, graph: Graph, removed: Tensor, example_inputs: Inputs, *, bare: bool = False) -> nn.Module:
    """A copy of the model without some of its channels, its numbers mended and its shapes checked at every step.

    With `bare`, its parameters have shapes alone (they are on the meta device): enough to see whether it can be done.
    What was found then serves again when the same channels of the same model are cut.
    """
    known = graph.rehearsed
    small = _smaller(model, graph, removed, bare)
    if known is not None and known.model() is model and torch.equal(known.removed, removed):
        set_numbers(small, known.numbers)
    else:
        factors = mend(small, graph, removed, example_inputs)
        sure = surely(small, factors)
        known = Rehearsed(ref(model), removed, changed_numbers(model, small), factors, sure)
    if not bare and known.factors:
        rescale(small, graph, removed, example_inputs, known.factors, known=known.known)
        known = replace(known, known=True)
    graph.rehearsed = known
    return small


def _smaller(model: nn.Module, graph: Graph, removed: Tensor, bare: bool) -> nn.Module:
    """A copy of a model with smaller tensors; the numbers of its standard layers fit them."""
    alive = graph.kept_parts(removed)
    memo: dict[int, Any] = {}
    for name, tensor in named_tensors(model):
        whole = isinstance(tensor, nn.Parameter)
        there = tensor.detach().to("meta") if bare and whole else tensor.detach()
        if name in alive or bare:
            smaller = remaining(there, alive.get(name, ()), name)
            memo[id(tensor)] = nn.Parameter(smaller, tensor.requires_grad) if whole else smaller
    before = {
        name: {own: tensor.shape for own, tensor in module.named_parameters(recurse=False)}
        for name, module in model.named_modules()
    }
    small = copy.deepcopy(model, memo)  # a copy of a parameter has no gradient
    touched = {name.rpartition(".")[0] for name in alive}
    for name, module in small.named_modules():
        if name in touched:
            _renumber(module, before[name])
    return small


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
        module.normalized_shape = tuple(weight.shape)  # type: ignore[union-attr]
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
