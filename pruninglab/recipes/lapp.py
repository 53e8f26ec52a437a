"""LAPP: a threshold for each layer, learned under a FLOPs constraint while the network trains from scratch.

Inspired by Zhai et al. (2023), whose text and code were not at hand; only its idea is theirs: learnable thresholds, a
FLOPs constraint, gradual pruning in the first part of training. The formulas here are a reconstruction, and the paper's
light bypass around each pruned layer is left out, since it would add modules to the network.
"""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pruninglab.channels import masks_of
from pruninglab.graph import Family, Graph, trace
from pruninglab.masks import Masks
from pruninglab.naming import at_least_one
from pruninglab.recipes.budget import cost, layer_flops, nearest, target
from pruninglab.recipes.inner import at, inner, readers
from pruninglab.surgery import rehearse
from pruninglab.tasks import Task

TEMPERATURE = 0.25  # of the soft gate whose gradient stands in for that of the hard one
SPEED = 0.1  # learning rate of the thresholds
RAMP = 0.8  # of the time for pruning, in which the constraint tightens from everything to the budget


def lapp(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float | None = None,
    flops: float | None = None,
    seed: int = 0,
    steps: int | None = None,
    lr: float | None = None,
    strength: float = 10.0,
    pruning: float = 0.5,
) -> Masks:
    """Train a network from scratch while each layer learns how many of its channels it needs.

    The loss is cross-entropy + strength · max(0, F / F₀ − ρ)²: FLOPs F of what is open, F₀ of everything. ρ falls from
    1 to the budget, since at once it would close whole layers before they have learned anything. When the time for
    pruning is over, channels stay in the order of how far they are above their layer's threshold, as many as the
    budget allows, and the rest of training is ordinary.

    Args:
        model: an untrained network; trained in place.
        task: what to train it on.
        sparsity: the fraction of the forward pass's FLOPs to remove, in [0, 1).
        flops: instead, how many floating-point operations one sample may take.
        seed: of the order of the data.
        steps: how many; the task's own if not given.
        lr: the first learning rate; the task's own if not given.
        strength: λ, of the constraint.
        pruning: the fraction of the steps at which pruning ends, in (0, 1].

    Returns:
        The masks, applied.

    Raises:
        ValueError: none or both budgets, one that is not possible, less than one step, or `strength` or `pruning`
            out of range. The model is unchanged then.
        GraphError: nothing can be removed.
    """
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength is a weight of 0 or more, not {strength}")
    if not 0 < pruning <= 1:
        raise ValueError(f"pruning is a fraction of the steps, in (0, 1], not {pruning}")
    x = task.data["train"][0][:1].to(next(model.parameters()).device)
    graph = trace(model, x)
    total = cost(model, graph, layer_flops(model, x))
    whole = float(total(torch.ones(graph.n, dtype=torch.float64)))
    _, budget = target(sparsity, whole, flops=flops)
    families, columns = inner(graph), readers(graph, model)
    first = next(model.parameters())
    fine = torch.promote_types(first.dtype, torch.float32)
    thresholds = torch.zeros(len(families), device=first.device, dtype=fine, requires_grad=True)
    learner = torch.optim.SGD([thresholds], lr=SPEED)
    steps = task.training.steps if steps is None else at_least_one("steps", steps)
    order = list(families.values())
    trial = nearest(margins(model, graph, families, thresholds).detach().cpu(), order, total, budget)
    if trial.any():  # what cannot be met, or not be cut out, is told before anything is trained
        rehearse(model, graph, trial, x)
    end, done = round(pruning * steps), 0

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        gates = open_gates(margins(model, graph, families, thresholds))
        allowed = 1 - (1 - budget / whole) * min(1.0, done / (RAMP * end))
        over = (total(gates) / whole - allowed).clamp(min=0)
        return task.loss(gated(model, gates, columns, x), y) + strength * over.square()

    def on_step(step: int, _optimizer: torch.optim.Optimizer) -> None:
        nonlocal done
        done = step
        learner.step()
        learner.zero_grad()
        with torch.no_grad():  # a threshold never passes its layer's best channel
            above = margins(model, graph, families, thresholds)
            best = torch.stack([above[family.cells[0]].max() for family in families.values()])
            thresholds.add_((best - 1e-3).clamp(max=0))

    task.train(model, seed=seed, steps=steps, lr=lr, stop=end, objective=objective, on_step=on_step, label="LAPP")
    with torch.no_grad():
        above = margins(model, graph, families, thresholds).cpu()
    masks = masks_of(model, graph, nearest(above, order, total, budget))
    masks.apply(model)
    task.train(model, masks=masks, seed=seed, steps=steps, lr=lr, start=end, label="LAPP, after pruning")
    return masks


def margins(model: nn.Module, graph: Graph, families: dict[str, Family], thresholds: Tensor) -> Tensor:
    """How far each channel's importance lies above its layer's threshold, (channels,); +∞ for those that must stay.

    Importance is the ℓ1 norm of the channel's filter divided by the layer's mean, so that 1 is average everywhere.
    """
    result = thresholds.new_full((graph.n,), torch.inf)
    for layer, threshold in zip(families, thresholds, strict=True):
        norms = model.get_parameter(layer).detach().to(thresholds.dtype).flatten(1).abs().sum(1)
        importance = norms / norms.mean()
        result[graph.births[layer, 0]] = importance - threshold
    return result


def open_gates(margins: Tensor) -> Tensor:
    """1 where the margin is not negative, 0 elsewhere; backwards as if it were σ(margin / temperature)."""
    soft = torch.sigmoid(margins / TEMPERATURE)
    return (margins >= 0).to(soft) + (soft - soft.detach())


def gated(model: nn.Module, gates: Tensor, columns: dict[str, Tensor], x: Tensor) -> Tensor:
    """The outputs when each layer reads its input channels times their gates."""
    weights = {}
    for name, channels in columns.items():
        weight = model.get_parameter(name)
        factors = at(gates, channels).repeat_interleave(len(weight) // len(channels), 0)
        weights[name] = weight * factors.view(*factors.shape, *[1] * (weight.ndim - 2))
    return functional_call(model, weights, (x,))
