"""Polarised consensus: gates that start out by asking each input, and are trained to agree (Zhi et al. 2023).

A small network at each layer opens or closes its channels for each input. A polarising term rewards gates on which all
inputs agree; when they do, the gates say the same whatever comes in, and what they close can be cut out. All within one
training. The loss is a reconstruction: the paper's text was not at hand.
"""

import math

import torch
from torch import Tensor, nn

from pruninglab.graph import trace
from pruninglab.masks import Masks
from pruninglab.naming import at_least_one
from pruninglab.pruning import check_sparsity
from pruninglab.recipes.gates import Gates
from pruninglab.surgery import rehearse
from pruninglab.tasks import Task

SPEED = 0.01  # learning rate of the gates (Adam)


def polarize(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    seed: int = 0,
    polarization: float = 10.0,
    activity: float = 10.0,
    settled: float = 0.8,
    steps: int | None = None,
    lr: float | None = None,
) -> Masks:
    """Train a network from scratch together with gates that come to agree, and cut it down to what they leave open.

    The budget is a term of the loss, which meets it to a few per cent. So that it is met exactly, the gates that were
    open most often are settled on before training ends; what is left of it is ordinary.

    Args:
        model: an untrained network; trained in place.
        task: what to train it on.
        sparsity: the fraction of gated channels to close, in [0, 1): those inside blocks and chains.
        seed: of the gates and of the order of the data.
        polarization: as in `train_gates`.
        activity: as in `train_gates`.
        settled: the fraction of the steps at which gates give way to masks, in (0, 1].
        steps: how many; the task's own if not given.
        lr: the first learning rate; the task's own if not given.

    Returns:
        The masks, applied. Each layer keeps at least one channel.

    Raises:
        ValueError: a sparsity or `settled` out of range, or a negative weight.
        GraphError: nothing can be removed.
    """
    if not 0 < settled <= 1:
        raise ValueError(f"settled is a fraction of the steps, in (0, 1], not {settled}")
    steps = task.training.steps if steps is None else at_least_one("steps", steps)
    stop = round(settled * steps)
    options = {"polarization": polarization, "activity": activity, "steps": steps, "stop": stop, "lr": lr}
    gates = train_gates(model, task, sparsity=sparsity, seed=seed, **options)  # type: ignore[arg-type]
    means = gates.means(model, task.data["train"][0].to(next(model.parameters()).device)).cpu()
    best = torch.tensor([int(part.argmax()) for part in means.split(gates.sizes)])
    means[best + torch.tensor([0, *gates.sizes[:-1]]).cumsum(0)] += 1  # no layer is empty
    is_open = torch.zeros(len(means), dtype=torch.bool)
    is_open[means.argsort(descending=True, stable=True)[: max(len(best), round((1 - sparsity) * len(means)))]] = True
    masks = gates.masks(model, is_open)
    masks.apply(model)
    task.train(model, masks=masks, seed=seed, steps=steps, start=stop, lr=lr, label="after polarising")
    return masks


def train_gates(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    seed: int = 0,
    polarization: float = 10.0,
    activity: float = 10.0,
    steps: int | None = None,
    stop: int | None = None,
    lr: float | None = None,
) -> Gates:
    """Train a network and its gates together; what `polarize` does before it cuts.

    The loss is cross-entropy + λₚ · mean ḡ(1 − ḡ) + λₐ · (mean ḡ − ρ)², where ḡ is a gate's mean over the batch and ρ
    the fraction that stays. λₚ rises from 0 during the first half.

    Args:
        model: an untrained network; trained in place.
        task: what to train it on.
        sparsity: 1 − ρ, in [0, 1).
        seed: of the gates and of the order of the data.
        polarization: λₚ in the end; with 0 nothing makes inputs agree.
        activity: λₐ.
        steps: how many; the task's own if not given.
        stop: the step before which to stop; all `steps` if not given.
        lr: the first learning rate; the task's own if not given.

    Raises:
        ValueError: a sparsity out of range, or a negative weight.
        GraphError: nothing can be removed.
    """
    open_share = 1 - check_sparsity(sparsity)
    if not (0 <= polarization < math.inf and 0 <= activity < math.inf):
        raise ValueError(f"polarization and activity are weights ≥ 0, not {polarization} and {activity}")
    x = task.data["train"][0][:1].to(next(model.parameters()).device)
    gates = Gates(model, trace(model, x), seed)
    fewest = torch.cat([torch.arange(n) == 0 for n in gates.sizes])
    rehearse(model, gates.graph, gates.closed(fewest), x)  # before anything is trained
    learner = torch.optim.Adam(gates.parameters(), lr=SPEED)
    steps = task.training.steps if steps is None else at_least_one("steps", steps)
    done = 0

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with gates.on(model):
            loss = task.loss(model(x), y)
            means = torch.cat([values.mean(0) for values in gates.values.values()])
        polar = (means * (1 - means)).mean()
        rising = min(1.0, 2 * done / steps)
        return loss + polarization * rising * polar + activity * (means.mean() - open_share).square()

    def on_step(step: int, _optimizer: torch.optim.Optimizer) -> None:
        nonlocal done
        done = step
        learner.step()
        learner.zero_grad()

    options = {"seed": seed, "steps": steps, "stop": stop, "lr": lr, "label": "polarising"}
    task.train(model, objective=objective, on_step=on_step, **options)  # type: ignore[arg-type]
    return gates
