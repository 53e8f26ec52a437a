"""One run: a trained network is pruned by one answer to each of the five questions, recovers, and is measured."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from pruninglab import units
from pruninglab.allocation import Allocation
from pruninglab.criteria import Criterion
from pruninglab.files import code_version
from pruninglab.fingerprint import stored_as
from pruninglab.layers import Exclude
from pruninglab.limits import limited
from pruninglab.masks import Masks
from pruninglab.metrics import Metric
from pruninglab.naming import label, whole
from pruninglab.progress import quietly
from pruninglab.pruning import prune
from pruninglab.recovery import Recovery
from pruninglab.schedules import Schedule
from pruninglab.statistics import Statistic
from pruninglab.tasks import Task, clock
from pruninglab.tasks.training import OnStep

Row = dict[str, Any]
ALIKE = "each layer's scores are all equal: what went was decided by position"


@dataclass(frozen=True)
class Run:
    """All that makes one run: no names, but what they stood for, so that it can be sent to another process.

    `limit` is how many seconds each pruning may take; it is not part of the result.
    """

    task: Task
    criterion: Criterion
    statistics: dict[str, Statistic]
    unit: units.Answer
    allocation: Allocation
    exclude: tuple[Exclude, ...]
    schedule: Schedule
    recovery: Recovery | None
    sparsity: float
    seed: int
    calibration: int
    metrics: dict[str, Metric] = field(default_factory=dict)
    limit: float | None = None

    def key(self, network: str) -> str:
        """What the result is stored under, or "" if it cannot be; the library's own code is part of it.

        Args:
            network: a hash of the task and of the trained network that the run begins with.
        """
        return stored_as(code_version(), torch.__version__, vars(self) | {"task": network, "limit": None})


def do(runs: Sequence[Run]) -> list[Row]:
    """Do runs that differ in their recovery alone: the network is pruned once, and recovers in each of their ways.

    What goes wrong in a run is told in its row's `note`, and its numbers are NaN.
    """
    try:
        model, masks, found = _pruned(runs[0])
    except Exception as error:
        return [_lost(run, error) for run in runs]
    if len(runs) == 1:
        return [_recovered(runs[0], model, masks, found)]
    return [_recovered(run, *copy.deepcopy((model, masks)), found) for run in runs]


def failed(metrics: dict[str, Metric], note: str) -> Row:
    """What the row of a run without a result holds."""
    columns = ["achieved", "accuracy_before", "accuracy", "validation", *metrics]
    columns += ["seconds_pruning", "seconds_recovery", "steps", "forward_passes"]
    return dict.fromkeys(columns, math.nan) | {"note": note}


def measured(model: nn.Module, task: Task, metrics: dict[str, Metric], known: float | None = None) -> Row:
    """Accuracy on the two splits that were not trained on, and the metrics; `known` is that on the test split."""
    validation = task.accuracy(model, "validation") if "validation" in task.data else math.nan
    values = {name: float(metric(model, task)) for name, metric in metrics.items()}
    return {"accuracy": task.accuracy(model) if known is None else known, "validation": validation} | values


def _pruned(run: Run) -> tuple[nn.Module, Masks, Row]:
    """The pruned network, its masks, and what is known of it before it recovers."""
    task = run.task
    model = task.trained(run.seed)
    asked = {need for statistic in run.statistics.values() for need in statistic.needs} | run.statistics.keys()
    initial = task.model(run.seed) if "initial_weight" in asked else None
    data = task.calibration(run.calibration, run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    criterion = copy.deepcopy(run.criterion)  # what it remembers of this run is not for another one
    forward_passes = 0
    alike: list[bool] = []

    def count(*_: object) -> None:
        nonlocal forward_passes
        forward_passes += 1

    def prune_to(sparsity: float, within: Masks | None = None) -> Masks:
        counting = model.register_forward_pre_hook(count)
        pruning = partial(
            prune,
            model,
            sparsity=sparsity,
            criterion=_watched(criterion, alike),
            unit=run.unit,
            allocation=run.allocation,
            data=data,
            loss=task.loss,
            initial=initial,
            within=within,
            seed=generator,
            exclude=run.exclude,
        )
        try:
            return limited(pruning, run.limit, f"pruning by {label(run.criterion)}")
        finally:
            counting.remove()

    train = Train(model, task, run.seed)
    start = clock()
    with quietly():
        masks = run.schedule(run.sparsity, prune_to, train)
    found: Row = {"achieved": masks.sparsity(), "seconds_pruning": clock() - start, "steps": train.spent}
    found |= {"forward_passes": forward_passes, "note": ALIKE if alike and all(alike) else ""}
    return model, masks, found | {"accuracy_before": task.accuracy(model)}


def _recovered(run: Run, model: nn.Module, masks: Masks, found: Row) -> Row:
    """The row of a run, whose network recovers, if it does at all, and is measured."""
    steps, start = 0, clock()
    try:
        if run.recovery is not None:
            masks.apply(model)  # a copy does not know whose they are
            taken = run.recovery(model, masks, run.task, seed=run.seed)
            steps = whole("the number of steps that a recovery returns", taken)
            if back := masks.regrown(model):
                raise ValueError(f"the recovery gave {back} of the removed weights back: train with masks=masks")
        seconds, known = clock() - start, found["accuracy_before"] if run.recovery is None else None
        row = {"sparsity": run.sparsity, "seed": run.seed} | found | measured(model, run.task, run.metrics, known)
    except Exception as error:
        return _lost(run, error)
    return row | {"seconds_recovery": seconds, "steps": found["steps"] + steps}


def _lost(run: Run, error: Exception) -> Row:
    note = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"sparsity": run.sparsity, "seed": run.seed} | failed(run.metrics, note)


def _watched(criterion: Criterion, alike: list[bool]) -> Callable[..., Any]:
    """The criterion, noting of each layer whether all its scores are equal."""

    @wraps(criterion)
    def watched(**statistics: Any) -> Any:
        scores = criterion(**statistics)
        if isinstance(scores, Tensor) and scores.numel() > 1:
            alike.append(bool(scores.min() == scores.max()))
        return scores

    watched.name = label(criterion)  # type: ignore[attr-defined]  # what errors call it
    return watched


class Train:
    """Training as schedules want it, that remembers how many gradient steps it took."""

    def __init__(self, model: nn.Module, task: Task, seed: int) -> None:
        self.model, self.task, self.seed = model, task, seed
        self.steps, self.whole = task.training.steps // 2, task.training.steps
        self.spent = self.start = 0

    def __call__(self, *, masks: Masks | None = None, on_step: OnStep | None = None) -> None:
        losses = self.task.train(self.model, masks=masks, on_step=on_step, steps=self.steps, seed=self.seed + 1)
        self.spent += len(losses)

    def rewind(self, to: float = 0.0) -> None:
        self.model.load_state_dict(self.task.trained(self.seed, until=to).state_dict())
        self.start = round(to * self.whole)

    def rest(self, *, masks: Masks | None = None, on_step: OnStep | None = None) -> None:
        losses = self.task.train(self.model, masks=masks, on_step=on_step, seed=self.seed, start=self.start)
        self.spent += len(losses)
