"""PreCrop: how wide each layer should be, told before training from the sizes of the layers alone (Cai et al. 2022).

What is left of the signal after random pruning is in expectation proportional to the product of the layers' densities.
To maximise that product under a budget is to fill water into vessels: see `water_filling`. How densities become widths
is a reconstruction: the paper's text was not at hand.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruninglab.channels import masks_of, search
from pruninglab.graph import Graph, trace
from pruninglab.layers import prunable
from pruninglab.masks import Masks
from pruninglab.recipes.budget import cost, layer_flops, refined, target
from pruninglab.recipes.inner import inner, readers
from pruninglab.surgery import rehearse
from pruninglab.tasks import Task

LEVELS = 20_000  # densities that are tried: as many as a budget can tell apart


def water_filling(costs: Sequence[float] | Tensor, budget: float) -> Tensor:
    """The densities p that maximise ∏ pₗ under Σ nₗ pₗ ≤ budget and pₗ ≤ 1.

    By the KKT conditions nₗ pₗ is the same, τ, for all layers that are not full: pₗ = min(1, τ / nₗ). A layer that
    costs less than its equal share is full, and leaves the rest to the others.

    Args:
        costs: what each layer costs when it is full, nₗ > 0, shape (layers,).
        budget: what all may cost together.

    Returns:
        (layers,), float64.

    Raises:
        ValueError: a cost or the budget is not positive.
    """
    n = torch.as_tensor(costs, dtype=torch.float64)
    if not len(n) or not (n > 0).all() or not budget > 0:
        raise ValueError(f"costs and budget must be positive, not {n.tolist()} and {budget}")
    left, level = float(budget), math.inf
    for done, size in enumerate(n.sort().values.tolist()):
        level = left / (len(n) - done)
        if size > level:
            break
        left, level = left - size, math.inf
    return (level / n).clamp(max=1)


def precrop(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float | None = None,
    params: int | None = None,
    flops: float | None = None,
    seed: int = 0,
) -> Masks:
    """Narrow an untrained network: the dense network of these widths is what is trained afterwards.

    A layer of density p keeps √p of its outputs, since the next layer loses inputs too. Inside a residual block, whose
    inputs and outputs stay, only the inner width shrinks, to the lesser density of the two layers around it. The water
    level is then chosen so that the budget is met by the network that comes out.

    Args:
        model: an untrained network; changed in place.
        task: for the shape of its inputs; no data are looked at.
        sparsity: the fraction of the model's parameters to remove, in [0, 1).
        params: instead, how many parameters may stay.
        flops: instead, how many floating-point operations one sample may take; layers are then filled by FLOPs.
        seed: decides which channels stay; before training all are alike.

    Returns:
        The masks, applied.

    Raises:
        ValueError: none or several budgets, or one that is not possible.
        GraphError: nothing can be removed.
    """
    x = task.data["train"][0][:1].to(next(model.parameters()).device)
    graph = trace(model, x)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    _, budget = target(sparsity, sum(sizes.values()), params=params, flops=flops)
    price = dict.fromkeys(sizes, 1) if flops is None else layer_flops(model, x)
    costs = {name: price[name] * sizes[name] for name in prunable(model)}
    generator = torch.Generator().manual_seed(seed)
    order = {name: torch.randperm(family.channels, generator=generator) for name, family in inner(graph).items()}

    def pick(level: int) -> Tensor:
        p = water_filling(list(costs.values()), sum(costs.values()) * level / LEVELS)
        return crop(model, graph, dict(zip(costs, p.tolist(), strict=True)), order)

    total = cost(model, graph, price)
    removed = search(lambda gone: float(total((~gone).double())), pick, 1, LEVELS, budget)
    ranked = [family.cells[0][order[name]] for name, family in inner(graph).items()]
    removed = refined(removed, ranked, total, budget)
    rehearse(model, graph, removed, x)
    masks = masks_of(model, graph, removed)
    masks.apply(model)
    return masks


def crop(model: nn.Module, graph: Graph, density: dict[str, float], order: dict[str, Tensor]) -> Tensor:
    """Which channels go for the densities of layers: (channels,) bool. Of each layer the first in its `order` stay."""
    families, columns = inner(graph), readers(graph, model)
    lines = {int(c) for f in graph.families if f not in families.values() for cell in f.cells for c in cell}
    removed = torch.zeros(graph.n, dtype=torch.bool)
    for layer, family in families.items():
        after = [name for name, channels in columns.items() if torch.isin(channels, family.cells[0]).any()]
        into_stream = [name for name in after if lines & set(graph.births.get((name, 0), torch.zeros(0)).tolist())]
        share = min(density[name] for name in [layer, *into_stream]) if into_stream else math.sqrt(density[layer])
        keep = max(1, round(family.channels * share))
        removed[family.cells[0][order[layer][keep:]]] = True
    return removed
