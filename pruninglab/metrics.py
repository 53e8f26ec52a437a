"""What the accuracy on clean test data does not show: corrupted and attacked inputs, misplaced trust, hurt classes.

    robustness(model, task("digits-mlp"))       # accuracy at five levels of each corruption and attack
    METRICS["worst_class"](model, task("digits-mlp"))

Pruned networks are said to lose these before they lose accuracy (Hooker et al. 2019; Liebenwein et al. 2021).
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pruninglab import attacks, corruptions
from pruninglab.attacks import ATTACKS
from pruninglab.corruptions import CORRUPTIONS, Limits, corrupt
from pruninglab.naming import at_least_one, lookup, whole
from pruninglab.progress import progress
from pruninglab.tasks import Task, find
from pruninglab.tasks.training import evaluating, rows

if TYPE_CHECKING:
    import pandas as pd

LEVELS = (1, 2, 3, 4, 5)
STRENGTHS = corruptions.STRENGTHS | dict.fromkeys(ATTACKS, attacks.STRENGTHS)
BATCH = 1024  # inputs that go through the network at once


def robustness(
    model: nn.Module,
    task: str | Task,
    *,
    split: str = "test",
    kinds: str | Iterable[str] = tuple(STRENGTHS),
    levels: int | Iterable[int] = LEVELS,
    seed: int = 0,
) -> "pd.DataFrame":
    """The accuracy on inputs that were made worse.

    Args:
        model: a classifier; left as it was.
        task: whose data, or its name.
        split: of the data.
        kinds: of `STRENGTHS`: corruptions ("noise", "blur", "contrast", "shift", "rotation") and attacks ("fgsm",
            "pgd"). Corruptions need pictures, attacks any inputs of floats.
        levels: which of 1, 2, 3, 4, 5.
        seed: of what is drawn. It does not depend on the model, so networks can be compared in pairs.

    Returns:
        Columns `kind`, `level`, `strength` (see `corruptions.corrupt`; ε of an attack as a fraction of the range of the
        training data) and `accuracy`. The first row is the unchanged data: kind "clean", level 0.

    Raises:
        ValueError: unknown kinds or levels, or a task whose data cannot be corrupted or attacked.
    """
    import pandas as pd

    home = find(task)
    chosen = [kinds] if isinstance(kinds, str) else list(kinds)
    for kind in chosen:
        lookup("corruption or attack", kind, STRENGTHS)
    steps = [whole("a level", level) for level in (levels if isinstance(levels, Iterable) else [levels])]
    if wrong := set(steps) - set(LEVELS):
        raise ValueError(f"levels are 1 (least) to 5 (most), not {', '.join(map(str, sorted(wrong)))}")
    plan = [(kind, level, STRENGTHS[kind][level - 1]) for kind in chosen for level in steps]
    x, y = _classified(home, split, "robustness")
    found = [("clean", 0, 0.0, _accuracy(model, x, y))]
    with progress(plan, desc="measuring robustness", unit="level") as bar:
        for kind, level, strength in bar:
            found.append((kind, level, strength, accuracy_under(model, home, kind, strength, split=split, seed=seed)))
    return pd.DataFrame(found, columns=["kind", "level", "strength", "accuracy"])


def accuracy_under(
    model: nn.Module, task: str | Task, kind: str, strength: float, *, split: str = "test", seed: int = 0
) -> float:
    """The accuracy under one corruption or attack of any strength; arguments and errors as in `robustness`."""
    home = find(task)
    lookup("corruption or attack", kind, STRENGTHS)
    x, y = _classified(home, split, kind)
    if not x.is_floating_point():
        raise ValueError(
            f"{kind} changes inputs by a little, so they must be floats, and those of {home.name} are {x.dtype}. "
            f"Tasks of pictures, such as task('digits-cnn'), have such inputs."
        )
    limits = data_range(home)
    if kind in CORRUPTIONS:
        if x.ndim != 4:
            raise ValueError(
                f"{kind} is for pictures, (samples, channels, height, width) as in task('digits-cnn'), and the inputs "
                f"of {home.name} are {tuple(x.shape)}. If these are pictures, give the task their shape and let the "
                "network begin with nn.Flatten()."
            )
        return _accuracy(model, corrupt(x, kind, strength, limits=limits, seed=seed), y)
    epsilon, device = strength * (limits[1] - limits[0]), next(model.parameters()).device
    drawn = {"seed": torch.Generator().manual_seed(whole("seed", seed))} if kind == "pgd" else {}
    attacked = [
        ATTACKS[kind](model, inputs.to(device), labels.to(device), epsilon, limits=limits, **drawn).cpu()
        for inputs, labels in zip(x.split(BATCH), y.split(BATCH), strict=True)
    ]
    return _accuracy(model, torch.cat(attacked), y)


def data_range(task: str | Task) -> Limits:
    """The smallest and the greatest value in a task's training inputs: black and white, where they are pictures."""
    x = find(task).data["train"][0]
    return float(x.min()), float(x.max())


def robust_accuracy(
    model: nn.Module,
    task: str | Task,
    split: str = "test",
    *,
    kinds: str | Iterable[str] = tuple(CORRUPTIONS),
    levels: int | Iterable[int] = LEVELS,
    seed: int = 0,
) -> float:
    """The mean of `robustness` over kinds and levels, without the clean row; all five corruptions if not told else."""
    table = robustness(model, task, split=split, kinds=kinds, levels=levels, seed=seed)
    return float(table.loc[table["level"] > 0, "accuracy"].mean())


def calibration_error(model: nn.Module, task: str | Task, split: str = "test", *, bins: int = 15) -> float:
    """How far confidence is from accuracy: the expected calibration error (Guo et al. 2017, equation 3).

    Samples are put into bins of equal width by their greatest probability; the error is the mean over the bins of
    |accuracy − mean confidence|, weighted by how many samples each holds. 0 is best. With few samples it is biased
    upwards, the more the more bins: a perfectly calibrated network has some error too.

    Args:
        model: a classifier; left as it was.
        task: whose data, or its name.
        split: of the data.
        bins: how many; bin k holds confidences in ((k − 1) / bins, k / bins].

    Raises:
        ValueError: fewer than one bin, an unknown split, or labels that are not one class for each sample.
    """
    at_least_one("bins", bins)
    x, y = _classified(find(task), split, "calibration_error")
    confidence, predicted = _logits(model, x).double().softmax(1).max(1)
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    gap = (predicted == y).double() - confidence
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, torch.bucketize(confidence, edges), gap)
    return float(sums.abs().sum() / len(y))


def class_accuracy(model: nn.Module, task: str | Task, split: str = "test") -> "pd.Series":
    """The accuracy on the samples of each class that the split has, indexed by class.

    Raises:
        ValueError: an unknown split, or labels that are not one class for each sample.
    """
    import pandas as pd

    x, y = _classified(find(task), split, "class_accuracy")
    right = _logits(model, x).argmax(1) == y
    return pd.Series(right.double().numpy(), name="accuracy").groupby(pd.Index(y.numpy(), name="class")).mean()


def worst_class(model: nn.Module, task: str | Task, split: str = "test") -> float:
    """The least of `class_accuracy`.

    Which class that is is chosen on the same samples, so it is below the mean by chance alone, and falls faster than
    it: hold it against another network's worst class, and never against its own accuracy.
    """
    return float(class_accuracy(model, task, split).min())


def _classified(task: Task, split: str, what: str) -> tuple[Tensor, Tensor]:
    """A split of a task that has one class for each sample."""
    x, y = lookup("split", split, task.data)
    if y.ndim != 1 or y.is_floating_point():
        raise ValueError(
            f"{what} is for tasks with one class for each sample, such as task('digits-mlp'); "
            f"the labels of {task.name} are {tuple(y.shape)} of {y.dtype}"
        )
    return x, y


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """(samples, classes), on the processor."""
    device = next(model.parameters()).device
    with evaluating(model):
        return torch.cat([rows(model(inputs.to(device))).cpu() for inputs in x.split(BATCH)])


def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return int((_logits(model, x).argmax(1) == y).sum()) / len(y)


Metric = Callable[[nn.Module, Task], float]

METRICS: dict[str, Callable[..., float]] = {  # a third argument is the split
    "corrupted": robust_accuracy,
    **{kind: partial(robust_accuracy, kinds=kind) for kind in CORRUPTIONS},
    **{kind: partial(robust_accuracy, kinds=kind, levels=3) for kind in ATTACKS},  # for they take long
    "calibration_error": calibration_error,
    "worst_class": worst_class,
}
LOWER_IS_BETTER = frozenset({"calibration_error"})
