"""What there is: the answers to each question by name, with what their docstrings say, for the command line."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from pruninglab.naming import label

Rows = Iterable[tuple[str, ...]]
YEAR = re.compile(r"\b(?:19|20)\d\d\b")

UNITS = {
    "weight": "Single weights.",
    "row": "All weights of one output: a row of a linear layer, a filter of a convolution.",
    "block": "Blocks of 4×4 weights.",
    "RxC": 'Blocks of R rows and C columns ("2x8").',
    "N:M": 'N kept of every M along the inputs ("2:4"); fixes the sparsity.',
    "n:M": 'N of every M with an N for each layer, which the allocation chooses ("n:4").',
    "channel": "Channels, with all that is tied to them; can be cut out.",
    "head": "Attention heads; can be cut out.",
    "layer": "Whole residual blocks; can be cut out.",
}


def _tasks() -> Rows:
    from pruninglab.tasks import TASKS

    for name, task in TASKS.items():
        yield name, f"{_said(task.load)} {task.training.steps} steps of training."


def _criteria() -> Rows:
    from pruninglab.criteria import CRITERIA, needs

    for name, criterion in CRITERIA.items():
        yield name, ", ".join(needs(criterion)), _said(criterion)


def _statistics() -> Rows:
    import pruninglab.criteria  # noqa: F401  some statistics are registered by the criteria that ask for them
    from pruninglab.statistics import STATISTICS

    return _table({name: statistic.batch for name, statistic in STATISTICS.items()})


def _systems() -> Rows:
    from pruninglab.atlas import SYSTEMS

    for name, system in SYSTEMS.items():
        yield name, system.state, f"{system.title}: {system.claim} {system.reference}"


def _allocations() -> Rows:
    from pruninglab.allocation import ALLOCATIONS

    return _table(ALLOCATIONS)


def _schedules() -> Rows:
    from pruninglab import schedules

    return _table({name: getattr(schedules, name, schedules.regrow) for name in schedules.SCHEDULES})


def _recoveries() -> Rows:
    from pruninglab.recovery import RECOVERIES

    yield "none", "Nothing."
    yield from _table(RECOVERIES)


def _metrics() -> Rows:
    from pruninglab.metrics import METRICS

    return _table(METRICS)


def _table(answers: Mapping[str, Callable[..., Any]]) -> Rows:
    return ((name, _said(answer)) for name, answer in answers.items())


def _said(thing: Callable[..., Any]) -> str:
    """What a docstring says first; and, if no year is in that, its first sentence with one, which names the source."""
    if isinstance(thing, partial):
        return f"{_said(thing.func)} Here: {label(thing)}."
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", thing.__doc__ or "")]
    first, sentences = paragraphs[0], re.split(r"(?<=[.:]) (?=[A-Z`])", " ".join(paragraphs[1:]))
    sources = [] if YEAR.search(first) else [sentence for sentence in sentences if YEAR.search(sentence)]
    return " ".join([first, *sources[:1]])


LISTINGS: dict[str, tuple[str, Callable[[], Rows]]] = {
    "tasks": ("data with a network", _tasks),
    "criteria": ("how important is it: the criteria, and the statistics that each asks for", _criteria),
    "statistics": ("what a criterion may ask for", _statistics),
    "units": ("what is removed", UNITS.items),
    "allocations": ("how much from where", _allocations),
    "schedules": ("when", _schedules),
    "recoveries": ("how it is repaired", _recoveries),
    "metrics": ("what can be measured beside accuracy", _metrics),
    "systems": ("published systems", _systems),
}
