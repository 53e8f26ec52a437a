"""How is it repaired? By training on, by going back and training again, or by imitating the dense network.

A recovery is a function `(model, masks, task, *, seed, steps, lr, …)` that trains the model in place with the masks
held, and returns how many gradient steps that took. Its learning rate starts anew from the task's and falls to zero
along a cosine; pass a tenth of it for the classical fine-tuning at a small rate.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruninglab.masks import Masks
from pruninglab.tasks import Task

Recovery = Callable[..., int]


def finetune(
    model: nn.Module, masks: Masks, task: Task, *, seed: int = 0, steps: int | None = None, lr: float | None = None
) -> int:
    """Train on from the weights that are left (Han et al. 2015). Without `steps`: half of the task's own."""
    masks.apply(model)
    steps = task.training.steps // 2 if steps is None else steps
    return len(task.train(model, masks=masks, seed=seed + 1, steps=steps, lr=lr, label="fine-tuning"))


def rewind(model: nn.Module, masks: Masks, task: Task, *, seed: int = 0, to: float = 0.0) -> int:
    """Set what is left back to an early point of training, and train again from there (Frankle et al. 2019).

    Momentum starts anew there, so with `to` > 0 an unpruned network would not repeat its first training to the bit.

    Args:
        model: the pruned network, of the task's own kind.
        masks: its masks.
        task: the task it was trained on.
        seed: that of the network's training, so that its own earlier weights are found.
        to: the fraction of training to go back to; 0 is the initial weights (the lottery ticket).

    Raises:
        ValueError: `to` is not in [0, 1).
    """
    if not 0 <= to < 1:
        raise ValueError(f"rewind(to=) is a fraction of training, in [0, 1), not {to}")
    model.load_state_dict(task.trained(seed, until=to).state_dict())
    masks.apply(model)
    start = round(to * task.training.steps)
    return len(task.train(model, masks=masks, seed=seed, start=start, label="rewound training"))


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
) -> int:
    """Train on with the dense network's outputs as a second target (Hinton et al. 2015).

    Args:
        model: the pruned network.
        masks: its masks.
        task: the task it was trained on.
        seed: of the order of the data, and of the teacher if none is given.
        steps: how many; half of the task's own if not given.
        lr: the first learning rate; the task's own if not given.
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

    def objective(student: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        outputs = student(x)
        with torch.no_grad():
            wanted = guide(x)
        return (1 - alpha) * F.cross_entropy(outputs, y) + alpha * soft_loss(outputs, wanted, temperature)

    masks.apply(model)
    steps = task.training.steps // 2 if steps is None else steps
    return len(
        task.train(model, masks=masks, seed=seed + 1, steps=steps, lr=lr, objective=objective, label="distillation")
    )


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


RECOVERIES: dict[str, Recovery] = {"finetune": finetune, "rewind": rewind, "distill": distill}
