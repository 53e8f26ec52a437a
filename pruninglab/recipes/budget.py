"""What the structured recipes share: what a network costs without some of its channels, and how to meet a budget."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from pruninglab.batches import Inputs, call
from pruninglab.channels import search
from pruninglab.graph import Family, Graph
from pruninglab.layers import PRUNABLE, Layer, prunable
from pruninglab.measure import flops as measured_flops
from pruninglab.pruning import check_budget
from pruninglab.recipes.inner import at
from pruninglab.tasks.training import evaluating

Cost = Callable[[Tensor], Tensor]

CLOSE = 0.02  # a budget is met to within this fraction, where widths allow it
REACH = 4  # by how many channels a layer may differ from what the scores alone say, if the budget needs it


def layer_flops(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Layer → floating-point operations that one of its weights does in one forward pass of these inputs.

    Raises:
        ValueError: other operations than those of `Linear` and `Conv` layers cost something too.
    """
    layers = prunable(model)
    names = {id(layer.weight): name for name, layer in layers.items()}
    found = dict.fromkeys(layers, 0)

    def after(module: Layer, _: object, output: Tensor) -> None:
        found[names[id(module.weight)]] += 2 * output.numel() // len(module.weight)

    handles = [m.register_forward_hook(after) for m in model.modules() if isinstance(m, PRUNABLE)]
    try:
        with evaluating(model), torch.no_grad():
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    total, counted = measured_flops(model, inputs), sum(n * layers[name].weight.numel() for name, n in found.items())
    if total != counted:
        raise ValueError(f"{total - counted} of {total} FLOPs are not in Linear or Conv layers; give params= instead")
    return found


def cost(model: nn.Module, graph: Graph, price: Mapping[str, int]) -> Cost:
    """What the network costs, as a function of how open each channel is.

    Args:
        model: the network.
        graph: its channels.
        price: parameter → what each of its numbers costs.

    Returns:
        A differentiable function of gates, (channels,) from 0 to 1. A weight costs its price times the gates of the
        channels that it lies in, so that with gates of 0 and 1 the cost is that of the network that `slim` cuts out.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def of(gates: Tensor) -> Tensor:
        total = gates.new_zeros(())
        for name, each in price.items():
            share = gates.new_ones(())
            for channels in graph.cuts.get(name, ()):
                share = share * at(gates, channels)
            total = total + each * shapes[name].numel() * share.mean()
        return total

    return of


def target(sparsity: float | None, whole: float, **amounts: float | None) -> tuple[str, float]:
    """Which budget was given, and the amount that may stay. `whole` is what `sparsity` is a fraction of.

    Raises:
        ValueError: none or several, or one that is not possible.
    """
    kind, amount = check_budget(sparsity=sparsity, **amounts)
    return kind, (1 - amount) * whole if kind == "sparsity" else amount


def nearest(scores: Tensor, families: Sequence[Family], total: Cost, budget: float) -> Tensor:
    """The channels to remove, (channels,) bool, so that the cost comes nearest to the budget; no layer is left empty.

    Those of the lowest scores, (channels,), whatever their layer; then as `refined`.

    Raises:
        BudgetError: the budget is below what the fewest channels cost, or above what all cost.
    """
    ranked = [f.cells[0][scores[f.cells[0]].argsort(descending=True, stable=True)] for f in families]
    later = torch.cat([channels[1:] for channels in ranked])
    later = later[scores[later].argsort(descending=True, stable=True)]

    def lowest(keep: int) -> Tensor:
        removed = torch.zeros(len(scores), dtype=torch.bool)
        removed[later[keep:]] = True
        return removed

    removed = search(lambda gone: float(total((~gone).double())), lowest, 0, len(later), budget)
    return refined(removed, ranked, total, budget)


def refined(removed: Tensor, ranked: Sequence[Tensor], total: Cost, budget: float) -> Tensor:
    """The same choice if its cost is within 2 % of the budget, else one that is nearer.

    Where one channel costs more than 2 %, a few channels of at most two layers are taken back or given up, as few as
    will do.

    Args:
        removed: (channels,) bool.
        ranked: the channels of each layer, the best first; `removed` has the last of each.
        total: the cost.
        budget: what it should be.
    """

    def off(gone: Tensor) -> float:
        return abs(float(total((~gone).double())) / budget - 1)

    counts = [int((~removed[channels]).sum()) for channels in ranked]
    changes = [(layer, by) for layer in range(len(ranked)) for by in range(-REACH, REACH + 1)]
    best = off(removed)
    pairs = product(changes, changes) if best > CLOSE else ()
    for (f, a), (g, b) in sorted(pairs, key=lambda pair: abs(pair[0][1]) + abs(pair[1][1])):
        tried = list(counts)
        tried[f] += a
        tried[g] += b
        if not all(1 <= count <= len(channels) for count, channels in zip(tried, ranked, strict=True)):
            continue
        other = torch.zeros_like(removed)
        for channels, count in zip(ranked, tried, strict=True):
            other[channels[count:]] = True
        if (distance := off(other)) < best:
            removed, best = other, distance
        if best <= CLOSE:
            break
    return removed
