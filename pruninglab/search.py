"""How far can this network be pruned? The largest sparsity that keeps the accuracy."""

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from pruninglab import tasks, units
from pruninglab.allocation import BudgetError
from pruninglab.masks import Masks
from pruninglab.naming import resolve, whole
from pruninglab.progress import quietly
from pruninglab.pruning import prune
from pruninglab.recovery import RECOVERIES, Recovery
from pruninglab.tasks import Task

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Found:
    """What `find_sparsity` found: the masks and the sparsity they have, both accuracies, and every trial it made."""

    sparsity: float
    accuracy: float
    dense_accuracy: float
    masks: Masks
    trials: "pd.DataFrame"


def find_sparsity(
    model: nn.Module,
    task: str | Task,
    max_drop: float = 0.01,
    *,
    recovery: str | Recovery | None = None,
    tolerance: float = 0.002,
    split: str = "validation",
    seed: int = 0,
    **how: Any,
) -> Found:
    """The largest sparsity whose accuracy is at most `max_drop` below the unpruned model's, by bisection.

    Bisection takes it that accuracy falls as sparsity rises. Where noise breaks that, the answer still is a sparsity
    that was measured and held; a higher one may hold as well. The model is left as it was.

    Args:
        model: a trained model.
        task: what it was trained on, or its name.
        max_drop: the tolerated loss, as a fraction (0.01 is one percentage point).
        recovery: what follows each pruning before it is judged, as in `compare`.
        tolerance: stop when the answer is known this exactly.
        split: where accuracy is measured. Not "test", unless that is not reported afterwards.
        seed: for criteria that draw, and for the recovery.
        how: further arguments of `prune` (criterion, unit, allocation, data, …).

    Raises:
        ValueError: `max_drop` is not in [0, 1], `tolerance` not in (0, 1), or the unit fixes the sparsity (N:M).
    """
    import pandas as pd

    task, seed = tasks.find(task), whole("seed", seed)
    unit = units.find(how.get("unit", "weight"))
    if isinstance(unit, units.Pattern):
        raise ValueError(f"unit {unit.name} fixes sparsity={1 - unit.density:g}: there is none to find")

    if not 0 <= max_drop <= 1:
        raise ValueError(f"max_drop is a fraction, in [0, 1], not {max_drop}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance is a fraction, in (0, 1), not {tolerance}")
    recover = None if recovery is None else resolve("recovery", recovery, RECOVERIES)
    dense = task.accuracy(model, split)
    trials: list[dict[str, Any]] = []

    def try_out(sparsity: float) -> Masks | None:
        trial = copy.deepcopy(model)
        try:
            with quietly():
                masks = prune(trial, sparsity=sparsity, seed=seed, **how)
        except BudgetError:  # no weight, or not enough for the floors, would be left: too far
            trials.append({"sparsity": sparsity, "achieved": math.nan, "accuracy": math.nan, "holds": False})
            return None
        if recover is not None:
            recover(trial, masks, task, seed=seed)
        reached = task.accuracy(trial, split)
        holds = reached >= dense - max_drop - 1e-12
        trials.append({"sparsity": sparsity, "achieved": masks.sparsity(), "accuracy": reached, "holds": holds})
        return masks if holds else None

    low, high = 0.0, 1.0
    best = try_out(low)
    if best is None:
        raise ValueError("even with nothing removed the accuracy falls by more than max_drop: the recovery does harm")
    while high - low > tolerance:
        middle = (low + high) / 2
        masks = try_out(middle)
        if masks is None:
            high = middle
        else:
            low, best = middle, masks
    accuracy = next(trial["accuracy"] for trial in trials if trial["sparsity"] == low)
    return Found(best.sparsity(), accuracy, dense, best, pd.DataFrame(trials))
