"""How far can this network be pruned? The largest sparsity that keeps the accuracy."""

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruninglab import tasks, units
from pruninglab.allocation import BudgetError
from pruninglab.files import cache_dir, code_version
from pruninglab.fingerprint import stored_as
from pruninglab.masks import Masks
from pruninglab.naming import resolve, whole
from pruninglab.progress import quietly
from pruninglab.pruning import prune
from pruninglab.recovery import RECOVERIES, Recovery
from pruninglab.store import Store
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
    cache: bool = True,
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
        cache: whether trials are stored, and looked up, so that an interrupted or repeated search goes on.
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

    everything = (code_version(), torch.__version__, task.version, model, recover, split, seed, how)
    trials_of = stored_as("find_sparsity", *everything) if cache else ""
    store = Store(cache_dir() / "runs.sqlite") if trials_of else None

    def pruned(sparsity: float) -> tuple[nn.Module, Masks]:
        trial = copy.deepcopy(model)
        with quietly():
            return trial, prune(trial, sparsity=sparsity, seed=seed, **how)

    def measured(sparsity: float) -> dict[str, Any]:
        try:
            trial, masks = pruned(sparsity)
        except BudgetError:  # no weight, or not enough for the floors, would be left: too far
            return {"achieved": math.nan, "accuracy": math.nan}
        if recover is not None:
            recover(trial, masks, task, seed=seed)
        return {"achieved": masks.sparsity(), "accuracy": task.accuracy(trial, split)}

    def holds(sparsity: float) -> bool:
        key = f"{trials_of} {sparsity!r}"
        row = store[key] if store else None
        if row is None:
            row = measured(sparsity)
            if store:
                store[key] = row
        held = row["accuracy"] >= dense - max_drop - 1e-12
        trials.append({"sparsity": sparsity, **row, "holds": held})
        return held

    low, high = 0.0, 1.0
    try:
        if not holds(low):
            raise ValueError(
                "even with nothing removed the accuracy falls by more than max_drop: the recovery does harm"
            )
        while high - low > tolerance:
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
    finally:
        if store:
            store.close()
    accuracy = next(trial["accuracy"] for trial in trials if trial["sparsity"] == low)
    best = pruned(low)[1]
    return Found(best.sparsity(), accuracy, dense, best, pd.DataFrame(trials))
