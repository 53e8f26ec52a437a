"""Criteria × sparsities × seeds → one tidy table, with the baselines always in.

Every run starts from the same trained network of its seed, gets the same calibration data and the same recovery, and
is measured on the same test split. What it cost stands beside what it reached.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruninglab import allocation as allocations
from pruninglab import tasks, units
from pruninglab.allocation import Allocation
from pruninglab.criteria import CRITERIA, Criterion, needs
from pruninglab.criteria import find as find_criterion
from pruninglab.files import cache_dir, code_version, data_dir
from pruninglab.fingerprint import fingerprint
from pruninglab.layers import Exclude, entries
from pruninglab.masks import Masks
from pruninglab.naming import label, resolve, whole
from pruninglab.progress import progress, quietly
from pruninglab.pruning import check_sparsity, prune
from pruninglab.recovery import RECOVERIES, Recovery
from pruninglab.schedules import SCHEDULES, Schedule, one_shot
from pruninglab.statistics import STATISTICS, Statistic
from pruninglab.store import Store
from pruninglab.tasks import Task, clock, together
from pruninglab.tasks.meeting import elsewhere, processes
from pruninglab.tasks.training import OnStep
from pruninglab.units import Grouping, Pattern, Structure

if TYPE_CHECKING:
    import pandas as pd

BASELINES = ("random", "magnitude")
SIDE_BY_SIDE = 10  # runs that train as one: more would hardly be quicker, and an interruption would lose more


@dataclass(frozen=True)
class Run:
    """All that makes one run: no names, but what they stood for, so that it can be sent to another process."""

    task: Task
    criterion: Criterion
    statistics: dict[str, Statistic]
    unit: str | Pattern | Grouping | Structure
    allocation: Allocation
    exclude: tuple[Exclude, ...]
    schedule: Schedule
    recovery: Recovery | None
    sparsity: float
    seed: int
    calibration: int

    def key(self) -> str:
        """What the result is stored under; the library's own code is part of it."""
        task = (self.task.name, self.task.training, self.task.load, self.task.build)  # data are what `load` makes
        return fingerprint((code_version(), torch.__version__, vars(self) | {"task": task}))


def compare(
    criteria: str | Criterion | Iterable[str | Criterion] = (),
    *,
    task: str | Task = "digits-mlp",
    sparsity: float | Iterable[float] = (0.5, 0.8, 0.9, 0.95),
    unit: str | Pattern | Grouping | Structure = "weight",
    allocation: str | Allocation = "global",
    schedule: str | Schedule = "one_shot",
    recovery: str | Recovery | None = None,
    exclude: Exclude | Iterable[Exclude] = (),
    seeds: int | Iterable[int] = 5,
    calibration: int = 256,
    n_jobs: int = 1,
    cache: bool = True,
) -> "pd.DataFrame":
    """Prune the same trained networks by each criterion to each sparsity, and measure.

    Args:
        criteria: names or functions; "random" and "magnitude" are added where they are missing.
        task: a task, or its name.
        sparsity: one or several; for an N:M unit it follows from the unit and what is given here is ignored.
        unit: as in `prune`.
        allocation: as in `prune`.
        schedule: a name in `SCHEDULES` ("one_shot", "iterative", "gradual", …) or a schedule (`iterative(10)`).
        recovery: None, a name in `RECOVERIES` ("finetune", "rewind", …) or a recovery (`partial(finetune, steps=200)`).
        exclude: layers to leave alone, as in `prune`.
        seeds: how many (0, 1, …), or which.
        calibration: how many training samples criteria may look at.
        n_jobs: how many processes share the work; -1 for one on each core.
        cache: whether results are stored, and looked up, so that an interrupted or repeated sweep goes on.

    Returns:
        A row for each run: `task`, `criterion`, `unit`, `allocation`, `schedule`, `recovery`, `sparsity` (asked),
        `achieved` (of the weights that masks speak of, also where channels were asked for), `seed`, `accuracy_before`
        and `accuracy` (before and after recovery), `seconds_pruning`, `seconds_recovery` and gradient `steps`, not
        counting the dense training (which schedules that begin at the first weights do without). The unpruned network
        is there as criterion "dense".

    Raises:
        ValueError, TypeError: a wrong name or number, no seed, or what does not fit together; before anything runs.
    """
    import pandas as pd

    chosen = [criteria] if isinstance(criteria, str) or callable(criteria) else list(criteria)
    chosen += [name for name in BASELINES if name not in chosen and CRITERIA[name] not in chosen]
    functions, labels = [find_criterion(criterion) for criterion in chosen], _labels(chosen)
    statistics = [{need: STATISTICS[need] for need in needs(f) if need in STATISTICS} for f in functions]
    home, places = tasks.find(task), allocations.find(allocation)
    when = resolve("schedule", schedule, SCHEDULES)
    repair = None if recovery is None else resolve("recovery", recovery, RECOVERIES)
    left_out = entries(exclude)
    levels = list(sparsity) if isinstance(sparsity, Iterable) and not isinstance(sparsity, str) else [sparsity]
    shape = units.find(unit)
    if isinstance(shape, Pattern):
        levels = [1 - shape.density]
        if when is not one_shot:
            fixed = f"unit {shape.name} fixes sparsity={levels[0]:g}"
            raise ValueError(f"{fixed}: schedule must be 'one_shot', not {label(schedule)!r}")
    for level in levels:
        check_sparsity(level)
    levels = [float(level) for level in levels]
    which = [whole("a seed", seed) for seed in (seeds if isinstance(seeds, Iterable) else range(whole("seeds", seeds)))]
    processes(n_jobs)
    if not which or not levels:
        raise ValueError(
            f"compare needs at least one seed and one sparsity, not seeds={seeds!r}, sparsity={sparsity!r}"
        )
    calibration = whole("calibration", calibration)
    home.calibration(calibration)
    for level in levels:  # what does not fit together is told by an untrained network
        data = home.calibration(1) if isinstance(shape, Structure) else None
        trial = "uniform" if allocations.measures(places) else places
        prune(home.model(), sparsity=level, unit=unit, allocation=trial, exclude=left_out, data=data)

    shared = (unit, places, left_out, when, repair)
    runs = {
        (seed, level, i): Run(home, functions[i], statistics[i], *shared, level, seed, calibration)
        for seed, level, i in product(which, levels, range(len(functions)))
    }
    answers = {"unit": unit, "allocation": allocation, "schedule": schedule, "recovery": recovery}
    names = {"task": home.name} | {column: label(answer) for column, answer in answers.items()}
    rows: dict[Any, dict[str, Any]] = {}
    for seed in which:
        before = home.accuracy(home.trained(seed))
        dense = {"sparsity": 0.0, "achieved": 0.0, "seed": seed, "accuracy_before": before, "accuracy": before}
        rows[(seed, -1)] = (
            {"criterion": "dense"} | dense | {"seconds_pruning": 0.0, "seconds_recovery": 0.0, "steps": 0}
        )
    store = Store(cache_dir() / "runs.sqlite") if cache else None
    keys = {place: run.key() for place, run in runs.items()} if store else {}
    stored = {place: row for place, key in keys.items() if store and (row := store[key])}
    missing = {place: run for place, run in runs.items() if place not in stored}
    with progress(total=len(runs), initial=len(stored), desc=f"comparing on {home.name}", unit="run", delay=1) as bar:
        for place, row in _results(missing, n_jobs):
            stored[place] = row
            if store:
                store[keys[place]] = row
            bar.update()
    if store:
        store.close()
    for place in runs:
        rows[place] = {"criterion": labels[place[2]]} | stored[place]
    table = pd.DataFrame([names | row for row in rows.values()])
    first = ["task", "criterion", "unit", "allocation", "schedule", "recovery", "sparsity", "achieved", "seed"]
    return table[[*first, *(column for column in table if column not in first)]]


def _labels(chosen: list[str | Criterion]) -> list[str]:
    """Names for the table; a function that is called like a built-in criterion but is not it is marked as yours."""
    found = []
    for criterion in chosen:
        name = label(criterion)
        built_in = CRITERIA.get(name)
        theirs = not isinstance(criterion, str) and built_in is not None and built_in is not criterion
        found.append(f"{name} (yours)" if theirs else name)
    if len(set(found)) < len(found):
        raise ValueError(f"each criterion needs a name of its own; these share one: {found}")
    return found


def _results(runs: dict[Any, Run], n_jobs: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Rows as they come, in any order. Runs of one criterion and sparsity go side by side, for they train alike."""
    alike: dict[Any, dict[Any, Run]] = {}
    for place, run in runs.items():
        alike.setdefault(place[1:], {})[place] = run
    groups = [part for group in alike.values() for part in _parts(group)]
    if n_jobs == 1 or len(groups) < 2:
        for group in groups:
            yield from zip(group, together(_jobs(group)), strict=True)
        return
    from joblib import Parallel, cpu_count, delayed

    threads = max(1, cpu_count() // processes(n_jobs))
    jobs = (delayed(_run_elsewhere)(group, threads, os.fspath(data_dir())) for group in groups)
    for rows in Parallel(n_jobs=n_jobs, return_as="generator_unordered")(jobs):
        yield from rows.items()


def _run_elsewhere(group: dict[Any, Run], threads: int, data: str) -> dict[Any, dict[str, Any]]:
    for run in group.values():
        STATISTICS.update(run.statistics)
    return dict(zip(group, elsewhere(_jobs(group), threads, data), strict=True))


def _jobs(group: dict[Any, Run]) -> list[partial[dict[str, Any]]]:
    return [partial(_run, run) for run in group.values()]


def _parts(runs: dict[Any, Run]) -> Iterator[dict[Any, Run]]:
    """Runs that train, several at a time; others one by one, so that an interruption loses less."""
    places = list(runs)
    trains = any(run.recovery is not None or run.schedule is not one_shot for run in runs.values())
    n = SIDE_BY_SIDE if trains else 1
    return ({place: runs[place] for place in places[i : i + n]} for i in range(0, len(places), n))


class _Train:
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


def _run(run: Run) -> dict[str, Any]:
    """Do one run: prune by the schedule, measure, recover, measure."""
    task = run.task
    model = task.trained(run.seed)
    initial = task.model(run.seed) if "initial_weight" in run.statistics else None
    data = task.calibration(run.calibration, run.seed)
    generator = torch.Generator().manual_seed(run.seed)

    def prune_to(sparsity: float, within: Masks | None = None) -> Masks:
        return prune(
            model,
            sparsity=sparsity,
            criterion=run.criterion,
            unit=run.unit,
            allocation=run.allocation,
            data=data,
            loss=task.loss,
            initial=initial,
            within=within,
            seed=generator,
            exclude=run.exclude,
        )

    train = _Train(model, task, run.seed)
    start = clock()
    with quietly():
        masks = run.schedule(run.sparsity, prune_to, train)
    pruned = clock()
    row = {"sparsity": run.sparsity, "achieved": masks.sparsity()}
    row |= {"seed": run.seed, "accuracy_before": task.accuracy(model)}
    steps, began = train.spent, clock()
    if run.recovery is not None:
        steps += run.recovery(model, masks, task, seed=run.seed)
    seconds = clock() - began
    return row | {
        "accuracy": task.accuracy(model),
        "seconds_pruning": pruned - start,
        "seconds_recovery": seconds,
        "steps": steps,
    }
