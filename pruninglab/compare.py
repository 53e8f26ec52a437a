"""Criteria × answers to the other questions × sparsities × seeds → one tidy table, with the baselines always in.

Every run starts from the same trained network of its seed, gets the same calibration data and the same recovery, and
is measured on the same splits. What it cost stands beside what it reached. Nothing here chooses by the test split:
who wants to choose has the column `validation`.
"""

import math
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from pruninglab import allocation as allocations
from pruninglab import tasks, units
from pruninglab.allocation import Allocation
from pruninglab.criteria import CRITERIA, Criterion, needs
from pruninglab.criteria import find as find_criterion
from pruninglab.files import cache_dir, digest
from pruninglab.layers import Exclude, entries
from pruninglab.metrics import METRICS, Metric
from pruninglab.naming import label, resolve, whole
from pruninglab.progress import progress
from pruninglab.pruning import check_sparsity, prune
from pruninglab.recovery import RECOVERIES, Recovery
from pruninglab.runs import Row, Run, do, failed, measured
from pruninglab.schedules import SCHEDULES, Schedule, check_unit, one_shot
from pruninglab.statistics import STATISTICS
from pruninglab.store import Store
from pruninglab.tasks import Task, together
from pruninglab.tasks.workers import spread, workers
from pruninglab.units import Pattern, Structure

if TYPE_CHECKING:
    import pandas as pd

BASELINES = ("random", "magnitude")
SAVE_EVERY = 0.5  # seconds: what an interruption can cost at most, beside the runs that it interrupts
SIDE_BY_SIDE = 10  # runs that train as one: more would hardly be quicker, and an interruption would lose more
ANSWERS = ("task", "unit", "allocation", "schedule", "recovery")
Runs = dict[Any, Run]
Shared = dict[str, Any]  # of `Run`'s attributes those that runs have in common


def compare(
    criteria: str | Criterion | Iterable[str | Criterion] = (),
    *,
    task: str | Task | list[str | Task] = "digits-mlp",
    sparsity: float | Iterable[float] = (0.5, 0.8, 0.9, 0.95),
    unit: units.Answer | list[units.Answer] = "weight",
    allocation: str | Allocation | list[str | Allocation] = "global",
    schedule: str | Schedule | list[str | Schedule] = "one_shot",
    recovery: str | Recovery | list[str | Recovery | None] | None = None,
    exclude: Exclude | Iterable[Exclude] = (),
    seeds: int | Iterable[int] = 5,
    calibration: int = 256,
    metrics: str | Metric | Iterable[str | Metric] = (),
    time_limit: float | None = None,
    n_jobs: int | None = None,
    cache: bool = True,
) -> "pd.DataFrame":
    """Prune the same trained networks by each criterion to each sparsity, and measure.

    `task`, `unit`, `allocation`, `schedule` and `recovery` may each be a list: then all combinations are run.

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
        metrics: names in `METRICS` ("corrupted", "worst_class", …) or functions `(model, task) -> float`; each is a
            column.
        time_limit: how many seconds one pruning may take.
        n_jobs: how many processes share the work; -1 for one on each core. If not given, one, or what an active
            `joblib.parallel_config` says: with `joblib.parallel_config("dask")` the work goes to a cluster.
        cache: whether results are stored, and looked up, so that an interrupted or repeated sweep goes on.

    Returns:
        A row for each run: `task`, `criterion`, `unit`, `allocation`, `schedule`, `recovery`, `sparsity` (asked),
        `achieved` (of the weights that masks speak of, also where channels were asked for), `seed`, `accuracy_before`
        and `accuracy` (before and after recovery, on the test split), `validation` (after recovery, on that split), the
        metrics, `seconds_pruning`, `seconds_recovery` and gradient `steps`, not counting the dense training (which
        schedules that begin at the first weights do without), `forward_passes` (batches that the network was run on in
        order to prune it) and `note`. Where a run fails (scores that are NaN or of a wrong shape, an unknown statistic,
        an error, too much time, a recovery that gives removed weights back) its note says why, its numbers are NaN, and
        the others go on. The unpruned network is there as criterion "dense".

    Raises:
        ValueError, TypeError: a wrong name or number, a name that two share, no seed, or what does not fit together;
            before anything runs.
    """
    import pandas as pd

    chosen = [criteria] if isinstance(criteria, str) or callable(criteria) else list(criteria)
    chosen += [name for name in BASELINES if name not in chosen and CRITERIA[name] not in chosen]
    functions = [find_criterion(criterion) for criterion in chosen]
    labels = _labels(chosen)
    which = [whole("a seed", seed) for seed in (seeds if isinstance(seeds, Iterable) else range(whole("seeds", seeds)))]
    levels = list(sparsity) if isinstance(sparsity, Iterable) and not isinstance(sparsity, str) else [sparsity]
    for level in levels:
        check_sparsity(level)
    levels = [float(level) for level in levels]
    if not which or not levels:
        raise ValueError(
            f"compare needs at least one seed and one sparsity, not seeds={seeds!r}, sparsity={sparsity!r}"
        )
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"time_limit is a number of seconds above 0, not {time_limit}")
    workers(n_jobs)
    asked = [metrics] if isinstance(metrics, str) or callable(metrics) else list(metrics)
    _distinct("seed", which)
    _distinct("sparsity", levels)
    _distinct("metric", [*map(label, asked), *ANSWERS, "criterion", "sparsity", "seed", *failed({}, "")])
    measures = {label(metric): resolve("metric", metric, METRICS) for metric in asked}
    common: Shared = {"exclude": entries(exclude), "calibration": whole("calibration", calibration)}
    common |= {"metrics": measures, "limit": time_limit}

    each: tuple[Any, ...] = (task, unit, allocation, schedule, recovery)
    given = [answer if isinstance(answer, list) else [answer] for answer in each]
    for name, some in zip(ANSWERS, given, strict=True):
        if not some:
            raise ValueError(f"{name} is an empty list: give one answer or a list of some")
        _distinct(name, [*map(label, some)])
    settings = dict(zip(product(*(range(len(some)) for some in given)), product(*given), strict=True))
    homes: dict[str, Task] = {}
    runs: Runs = {}
    for place, answers in settings.items():
        own_levels, shared = _checked(answers, levels, common)
        home = shared["task"]
        homes[home.name] = home
        for seed, level, i in product(which, own_levels, range(len(functions))):
            own: Shared = {"criterion": functions[i], "statistics": {}, "sparsity": level, "seed": seed}
            runs[(place, seed, level, i)] = Run(**shared, **common, **own)
    unfit = {i: note for i, function in enumerate(functions) if (note := _unfit(function))}
    dense = _dense(homes, which, measures)
    fit = {place: _with_statistics(run) for place, run in runs.items() if place[-1] not in unfit}
    found = _found(fit, n_jobs, cache)

    rows = []
    for place, answers in settings.items():
        names = dict(zip(ANSWERS, map(label, answers), strict=True)) | {"task": tasks.find(answers[0]).name}
        rows += [names | {"criterion": "dense"} | dense[names["task"], seed] for seed in which]
        for there, run in runs.items():
            if there[0] == place:
                row = found.get(there) or failed(measures, unfit[there[-1]])
                row = {"sparsity": run.sparsity, "seed": run.seed} | row
                rows.append(names | {"criterion": labels[there[-1]]} | row)
    table = pd.DataFrame(rows)
    for criterion, lost in table[table["achieved"].isna()].groupby("criterion", sort=False):
        warnings.warn(f"{len(lost)} runs of {criterion!r} failed: {lost['note'].iloc[0]}", stacklevel=2)
    first = ["task", "criterion", *ANSWERS[1:], "sparsity", "achieved", "seed", "accuracy_before", "accuracy"]
    return table[[*first, *(column for column in table if column not in first)]]


def _checked(answers: tuple[Any, ...], levels: list[float], common: Shared) -> tuple[list[float], Shared]:
    """The sparsities of one combination of answers, and what its runs share.

    Raises:
        ValueError, TypeError: a wrong name, or what does not fit together.
    """
    task, unit, allocation, schedule, recovery = answers
    home, shape, places = tasks.find(task), units.find(unit), allocations.find(allocation)
    when = resolve("schedule", schedule, SCHEDULES)
    repair = None if recovery is None else resolve("recovery", recovery, RECOVERIES)
    check_unit(when, shape)
    if isinstance(shape, Pattern):
        levels = [1 - shape.density]
        if when is not one_shot:
            fixed = f"unit {shape.name} fixes sparsity={levels[0]:g}"
            raise ValueError(f"{fixed}: schedule must be 'one_shot', not {label(schedule)!r}")
    home.calibration(common["calibration"])
    for level in levels:  # what does not fit together is told by an untrained network
        data = home.calibration(1) if isinstance(shape, Structure) else None
        trial = "uniform" if allocations.measures(places) else places
        prune(home.model(), sparsity=level, unit=unit, allocation=trial, exclude=common["exclude"], data=data)
    return levels, {"task": home, "unit": unit, "allocation": places, "schedule": when, "recovery": repair}


def _labels(chosen: list[str | Criterion]) -> list[str]:
    """Names for the table; a function that is called like a built-in criterion but is not it is marked as yours."""
    found = []
    for criterion in chosen:
        name = label(criterion)
        built_in = CRITERIA.get(name)
        theirs = not isinstance(criterion, str) and built_in is not None and built_in is not criterion
        found.append(f"{name} (yours)" if theirs else name)
    _distinct("criterion", [*found, "dense"])
    return found


def _distinct(kind: str, names: list[Any]) -> None:
    """A table's rows and columns are known by their names only."""
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise ValueError(f"each {kind} needs a name of its own in the table; {twice[0]!r} is there more than once")


def _unfit(criterion: Criterion) -> str:
    """Why a criterion cannot run at all: it asks for what is not known."""
    try:
        needs(criterion)
    except ValueError as error:
        return str(error)
    return ""


def _with_statistics(run: Run) -> Run:
    names = [need for need in needs(run.criterion) if need in STATISTICS]
    return replace(run, statistics={name: STATISTICS[name] for name in names})


def _dense(homes: dict[str, Task], seeds: list[int], metrics: dict[str, Metric]) -> dict[tuple[str, int], Row]:
    """The row of each unpruned network."""
    rows = {}
    for (name, home), seed in product(homes.items(), seeds):
        row = measured(home.trained(seed), home, metrics)
        row = {"sparsity": 0.0, "achieved": 0.0, "seed": seed, "accuracy_before": row["accuracy"]} | row
        cost = {"seconds_pruning": 0.0, "seconds_recovery": 0.0, "steps": 0, "forward_passes": 0}
        rows[name, seed] = row | cost | {"note": ""}
    return rows


# ── doing the runs ────────────────────────────────────────────────────────────────────────────────────────────────


def _found(runs: Runs, n_jobs: int | None, cache: bool) -> dict[Any, Row]:
    """The row of each run: from the store, or by doing it. What failed is not stored."""
    store = Store(cache_dir() / "runs.sqlite") if cache else None
    keys = _keys(runs) if store else {}
    found = {place: row for place, key in keys.items() if store and (row := store[key])}
    missing = {place: run for place, run in runs.items() if place not in found}
    with progress(total=len(runs), initial=len(found), desc="comparing", unit="run", delay=1) as bar:
        waiting, written = {}, time.monotonic()
        try:
            for place, row in _results(missing, n_jobs):
                found[place] = row
                bar.update()
                if place in keys and not math.isnan(row["achieved"]):
                    waiting[keys[place]] = row
                if store and time.monotonic() - written > SAVE_EVERY:
                    store.update(waiting)
                    waiting, written = {}, time.monotonic()
        finally:
            if store:
                store.update(waiting)
                store.close()
    return found


def _keys(runs: Runs) -> dict[Any, str]:
    """What the result of each run is stored under, where it can be."""
    networks: dict[tuple[int, int], str] = {}
    keys = {}
    for place, run in runs.items():
        which = id(run.task), run.seed
        if which not in networks:
            networks[which] = digest(run.task.version, *run.task.trained(run.seed).state_dict().values())
        keys[place] = run.key(networks[which])
    return {place: key for place, key in keys.items() if key}


def _results(runs: Runs, n_jobs: int | None) -> Iterator[tuple[Any, Row]]:
    """Rows as they come, in any order. Runs that differ in their seed alone go side by side, for they train alike."""
    alike: dict[Any, dict[int, Runs]] = {}  # by seed, and of each seed those that differ in their recovery alone
    for place, run in runs.items():
        (*answers, _), seed, level, i = place
        alike.setdefault((*answers, level, i), {}).setdefault(seed, {})[place] = run
    parts = [part for group in alike.values() for part in _parts(list(group.values()))]
    here = workers(n_jobs) == 1 or len(parts) < 2
    for rows in map(_side_by_side, parts) if here else spread(_side_by_side, parts, n_jobs):
        yield from rows.items()


def _side_by_side(part: Sequence[Runs]) -> dict[Any, Row]:
    for runs in part:
        for run in runs.values():
            STATISTICS.update(run.statistics)  # of another process
    found = together([partial(do, list(runs.values())) for runs in part])
    return {place: row for runs, rows in zip(part, found, strict=True) for place, row in zip(runs, rows, strict=True)}


def _parts(group: list[Runs]) -> Iterator[list[Runs]]:
    """Seeds whose runs train, several at a time; others one by one, so that an interruption loses less."""
    trains = any(run.recovery is not None or run.schedule is not one_shot for runs in group for run in runs.values())
    n = SIDE_BY_SIDE if trains else 1
    return (group[i : i + n] for i in range(0, len(group), n))
