"""How is it repaired? By training on, by going back and training again, or by imitating the dense network.

A recovery is a function `(model, masks, task, *, seed, …)` that trains the model in place with the masks held, and
returns how many gradient steps that took. In `finetune` and `distill` the learning rate starts anew from the task's and
falls to zero along a cosine; pass a tenth of it for the classical fine-tuning at a small rate. The others train by the
task's own schedule, from an early point of it: from the weights of then, or with one thing about them changed, as the
lottery ticket hypothesis is tested.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruninglab.masks import Masks
from pruninglab.perp import perp
from pruninglab.tasks import Task
from pruninglab.tasks.training import OnStep, rows

Recovery = Callable[..., int]


def finetune(
    model: nn.Module,
    masks: Masks,
    task: Task,
    *,
    seed: int = 0,
    steps: int | None = None,
    lr: float | None = None,
    on_step: OnStep | None = None,
) -> int:
    """Train on from the weights that are left (Han et al. 2015). Without `steps`: half of the task's own."""
    masks.apply(model)
    steps = task.training.steps // 2 if steps is None else steps
    how: dict[str, Any] = {"steps": steps, "lr": lr, "on_step": on_step}
    return len(task.train(model, masks=masks, seed=seed + 1, label="fine-tuning", **how))


def rewind(
    model: nn.Module, masks: Masks, task: Task, *, seed: int = 0, to: float = 0.0, on_step: OnStep | None = None
) -> int:
    """Set what is left back to an early point of training, and train again from there (Frankle et al. 2019).

    Momentum starts anew there, so with `to` > 0 an unpruned network would not repeat its first training to the bit.

    Args:
        model: the pruned network, of the task's own kind.
        masks: its masks.
        task: the task it was trained on.
        seed: that of the network's training, so that its own earlier weights are found.
        to: the fraction of training to go back to; 0 is the initial weights (the lottery ticket).
        on_step: called after each step, as in `training.train`.

    Raises:
        ValueError: `to` is not in [0, 1).
    """
    return _train_from(task.trained(seed, until=_early(to)), model, masks, task, seed, to, on_step)


def rewind_lr(
    model: nn.Module, masks: Masks, task: Task, *, seed: int = 0, to: float = 0.0, on_step: OnStep | None = None
) -> int:
    """Set only the learning rate back, and train again from the weights as they are (Renda et al. 2020).

    Arguments are those of `rewind`.
    """
    return _train_from(model, model, masks, task, seed, _early(to), on_step)


def reinitialise(model: nn.Module, masks: Masks, task: Task, *, seed: int = 0, on_step: OnStep | None = None) -> int:
    """Keep the masks, draw new initial weights, and train: a ticket's control (Frankle & Carbin 2019)."""
    return _train_from(task.model(FRESH + seed), model, masks, task, seed, 0.0, on_step)


def keep_signs(model: nn.Module, masks: Masks, task: Task, *, seed: int = 0, on_step: OnStep | None = None) -> int:
    """Keep of each initial weight the sign only, with one size for a layer, and train (Zhou et al. 2019).

    The size is the standard deviation of the layer's initial weights (a single weight stays as it is). Biases, and the
    scales of norms, which channels' masks name too, are no draws, and begin as they always do.
    """
    start = task.model(seed)
    with torch.no_grad():
        for name in masks:
            weight = start.get_parameter(name)
            if weight.ndim < 2:
                continue
            size = weight.std() if weight.numel() > 1 else weight.abs()
            weight.copy_(weight.sign() * size)
    return _train_from(start, model, masks, task, seed, 0.0, on_step)


FRESH = 1_000_000  # added to a seed for initial weights that no experiment of that seed has seen


def _early(to: float) -> float:
    if not 0 <= to < 1:
        raise ValueError(f"rewind(to=) is a fraction of training, in [0, 1), not {to}")
    return to


def _train_from(
    start: nn.Module, model: nn.Module, masks: Masks, task: Task, seed: int, to: float, on_step: OnStep | None
) -> int:
    """Train a model from the weights of another one, with the masks held, from a fraction `to` of training on."""
    if start is not model:
        model.load_state_dict(start.state_dict())
    masks.apply(model)
    first = round(to * task.training.steps)
    return len(task.train(model, masks=masks, seed=seed, start=first, on_step=on_step, label="training again"))


def distill(
    model: nn.Module,
    masks: Masks,
    task: Task,
    *,
    seed: int = 0,
    teacher: nn.Module | None = None,
    temperature: float = 4.0,
    alpha: float = 0.9,
    steps: int | None = None,
    lr: float | None = None,
    on_step: OnStep | None = None,
) -> int:
    """Train on with the dense network's outputs as a second target (Hinton et al. 2015).

    Args:
        model: the pruned network.
        masks: its masks.
        task: the task it was trained on.
        seed: of the order of the data, and of the teacher if none is given.
        steps: how many; half of the task's own if not given.
        lr: the first learning rate; the task's own if not given.
        on_step: called after each step, as in `training.train`.
        teacher: the network to imitate, on the model's device; it is put into evaluation mode. The task's trained
            network of this seed if not given.
        temperature: T, by which both networks' logits are divided.
        alpha: weight of the imitation; 1 − alpha is left for the labels.

    Raises:
        ValueError: `temperature` is not positive, or `alpha` not in [0, 1].
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is a weight in [0, 1], not {alpha}")
    guide = (task.trained(seed).to(next(model.parameters()).device) if teacher is None else teacher).eval()
    precision = next(guide.parameters()).dtype  # its own, while a student of half precision trains in single

    def objective(student: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        outputs = student(x)
        with torch.no_grad():
            wanted = guide(x.to(precision) if x.is_floating_point() else x)
        return (1 - alpha) * task.loss(outputs, y) + alpha * soft_loss(rows(outputs), rows(wanted), temperature)

    masks.apply(model)
    steps = task.training.steps // 2 if steps is None else steps
    how: dict[str, Any] = {"steps": steps, "lr": lr, "on_step": on_step, "objective": objective}
    return len(task.train(model, masks=masks, seed=seed + 1, label="distillation", **how))


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over samples (Hinton et al. 2015, §2).

    The factor T² keeps the gradients' size about the same at every temperature. Arguments are logits (n, classes).
    """
    t = temperature
    return (
        t
        * t
        * F.kl_div(F.log_softmax(student / t, 1), F.log_softmax(teacher / t, 1), reduction="batchmean", log_target=True)
    )


RECOVERIES: dict[str, Recovery] = {
    "finetune": finetune,
    "rewind": rewind,
    "rewind_lr": rewind_lr,
    "reinitialise": reinitialise,
    "keep_signs": keep_signs,
    "distill": distill,
    "perp": perp,
}
