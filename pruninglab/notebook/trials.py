"""Trying a criterion out on one trained network: its scores, its masks, and the accuracy at every sparsity.

All is measured on the validation split: a criterion that somebody tunes may not see the test set.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from io import StringIO
from typing import Any, TextIO, TypeVar

import torch
from torch import Tensor

from pruninglab import allocation as allocations
from pruninglab import tasks, units
from pruninglab.allocation import ALLOCATIONS, Allocation, BudgetError
from pruninglab.criteria import Criterion, Scores, find
from pruninglab.graph import Graph, trace
from pruninglab.ladders import weight_ladders
from pruninglab.layers import prunable
from pruninglab.limits import limited
from pruninglab.masks import Masks
from pruninglab.naming import label, lookup
from pruninglab.notebook.typed import watched
from pruninglab.progress import quietly
from pruninglab.pruning import check_sparsity, prune
from pruninglab.scoring import layer_scores
from pruninglab.structured import Question, scored_channels
from pruninglab.surgery import emptied
from pruninglab.tasks import LanguageTask, Task

T = TypeVar("T")

LEVELS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
BASELINES = ("magnitude", "random")
CALIBRATION = 256  # training samples that a criterion may look at, as in `compare`

Swept = dict[float, tuple[Masks, float] | BudgetError]  # sparsity → masks and accuracy, or why it is not possible
Competing = dict[str, tuple[Tensor, Tensor]]  # layer → the scores of what competes there, and what of it stays


@dataclass(frozen=True)
class Trial:
    """What a criterion does to a network at one setting.

    Attributes:
        criterion, unit, allocation: their names.
        sparsity: what was asked for, or what the unit fixes.
        masks: of the layers' weights.
        competing: layer → the scores of what competes there (weights, blocks, channels), and what of it stays.
        curves: criterion → sparsity → accuracy on the validation split; NaN where so little cannot be kept.
        dense: that of the network as it was.
        pictures: how many the validation split has.
    """

    criterion: str
    unit: str
    allocation: str
    sparsity: float
    masks: Masks
    competing: Competing
    curves: dict[str, dict[float, float]]
    dense: float
    pictures: int


class Bench:
    """A trained network on which criteria are tried. Remembers what it has measured.

    Args:
        task: one of pictures, or its name.
        seed: of the network, the calibration data, and criteria that draw.
        levels: the sparsities of the curves.
        seconds: how long typed code may run at a time; None for as long as it likes.

    Raises:
        ValueError: there is no such task, or it is one of language.
    """

    def __init__(
        self, task: str | Task, seed: int = 0, levels: Iterable[float] = LEVELS, seconds: float | None = None
    ) -> None:
        self.task, self.seconds = tasks.find(task), seconds
        limited(int, seconds)  # which says at once if this is none
        if isinstance(self.task, LanguageTask):
            raise ValueError(f"the playground draws networks for pictures; {self.task.name!r} is a language model")
        self.levels = sorted({check_sparsity(level) for level in levels})
        self.model = self.task.trained(seed)
        self.data = self.task.calibration(CALIBRATION, seed)
        self.how: dict[str, Any] = {"data": self.data, "loss": self.task.loss, "seed": seed}
        self.how["initial"] = self.task.model(seed)
        self.dense = self.task.accuracy(self.model, "validation")
        self._scored: dict[Any, tuple[Any, str]] = {}
        self._swept: dict[Any, Swept] = {}

    @cached_property
    def graph(self) -> Graph:
        return trace(self.model, self.data[0][:1])

    def try_out(
        self, function: Criterion, *, unit: str, allocation: str, sparsity: float, printed: TextIO | None = None
    ) -> Trial:
        """Prune by a criterion to every level, and look closely at one. What it prints goes to `printed`.

        Raises:
            ValueError, TypeError: what does not fit together; scores that are none; a sparsity that is not a level.
            TimeLimit: the criterion took too long.
        """
        shape, settings = units.find(unit), self.settings(unit)
        lookup("allocation", allocation, ALLOCATIONS)
        level = 1 - shape.density if isinstance(shape, units.Pattern) else sparsity
        if level not in settings:
            raise ValueError(f"sparsity {sparsity} is none of {', '.join(f'{one:g}' for one in settings)}")
        for known in (self._scored, self._swept):  # of other criteria than this one
            for key in [key for key in known if not isinstance(key[0], str) and key[0] is not function]:
                del known[key]
        found = self._scores(function, shape, printed or StringIO())
        mine = self._sweep(function, unit, allocation)
        if isinstance(chosen := mine[level], BudgetError):
            raise chosen
        name = label(function)
        curves = {f"{name} (yours)" if name in BASELINES else name: mine}
        curves |= {baseline: self._sweep(baseline, unit, allocation) for baseline in BASELINES}
        layers = prunable(self.model)  # masks of channels speak of biases too
        masks = Masks({name: chosen[0][name] for name in layers if name in chosen[0]})
        of_channels = isinstance(shape, units.Structure)
        return Trial(
            next(iter(curves)),
            unit,
            allocation,
            level,
            masks,
            self._channels(found, chosen[0], masks) if of_channels else competing(found, masks, shape),
            {name: {at: _accuracy(result) for at, result in sweep.items()} for name, sweep in curves.items()},
            self.dense,
            len(self.task.data["validation"][1]),
        )

    def settings(self, unit: str) -> dict[float, dict[str, Any]]:
        """Sparsity → what `prune` is asked with. For N of M every N is a level."""
        shape = units.find(unit)
        if isinstance(shape, units.Pattern):
            m = int(unit.split(":")[1])
            return {1 - n / m: {"unit": units.nm(n, m, "dense")} for n in range(m - 1, 0, -1)}
        if not isinstance(shape, units.Structure):
            return {level: {"unit": unit, "sparsity": level} for level in self.levels}
        if shape.name != "channel":
            raise ValueError(f"the playground draws single weights, rows, blocks, N:M and channels, not {unit!r}")
        return {level: {"unit": unit, "sparsity": level, "example_inputs": self.graph} for level in self.levels}

    def _limited(self, criterion: str | Criterion, call: Callable[[], T]) -> T:
        """What is typed may take so long; what is built in takes as long as it does."""
        with quietly():
            return limited(call, self.seconds if callable(criterion) else None, label(criterion))

    def _scores(self, criterion: str | Criterion, shape: units.Unit, printed: TextIO) -> Any:
        """The scores of layers, or of channels; what the criterion prints meanwhile, or did so before, goes on."""
        key = (criterion, isinstance(shape, units.Structure))
        if key not in self._scored:
            model, said = copy.deepcopy(self.model), StringIO()
            asked = watched(find(criterion), said)

            def scores() -> Any:
                if isinstance(shape, units.Structure):
                    question = Question(criterion=asked, exclude=(), **self.how)
                    return scored_channels(model, shape, self.graph, question)[1]
                return layer_scores(model, prunable(model), asked, **self.how)

            try:
                found = self._limited(criterion, scores)
            except BaseException:
                printed.write(said.getvalue())
                raise
            self._scored[key] = found, said.getvalue()
        printed.write(self._scored[key][1])
        return self._scored[key][0]

    def _sweep(self, criterion: str | Criterion, unit: str, allocation: str) -> Swept:
        """Masks and accuracy at every level, or why so little cannot be kept."""
        key, shape = (criterion, unit, allocation), units.find(unit)
        if key in self._swept:
            return self._swept[key]
        # Scores of weights are asked for once. Channels are asked about anew: `prune` takes no scores of channels.
        found = None if isinstance(shape, units.Structure) else self._scores(criterion, shape, StringIO())
        places = allocation if found is None else self._places(allocation, shape, found)
        swept: Swept = {}
        for level, setting in self.settings(unit).items():
            model = copy.deepcopy(self.model)
            asked = watched(criterion, StringIO()) if callable(criterion) else criterion
            how = self.how | setting | {"criterion": asked if found is None else again(found), "allocation": places}
            try:
                masks = self._limited(criterion, partial(prune, model, **how))
                swept[level] = masks, self.task.accuracy(model, "validation")
            except BudgetError as error:
                swept[level] = error
        self._swept[key] = swept
        return swept

    def _places(self, allocation: str, shape: units.Unit, scores: Mapping[str, Scores]) -> str | Allocation:
        """The allocation; one that measures the network does so once for all levels."""
        if not allocations.measures(allocation) or isinstance(shape, units.Mixture):
            return allocation
        ladders = cache(partial(weight_ladders, scores))
        measured = allocations.with_means(allocation, copy.deepcopy(self.model), self.data, ladders)
        return lambda scores, keep: measured(scores, keep)  # which `prune` does not give means of its own

    def _channels(self, scores: Tensor, whole: Masks, masks: Masks) -> Competing:
        """Layer → the scores of those channels of its output that can be removed, and which stay."""
        removed = torch.zeros(len(scores), dtype=torch.bool)
        if whole.kept() < whole.total():
            removed = emptied(self.model, whole, self.graph)
        movable = torch.cat([cell for family in self.graph.families for cell in family.cells])
        found = {}
        for name in masks:
            born = self.graph.outputs(name)
            born = born[torch.isin(born, movable)]
            found[name] = (scores[born], ~removed[born])
        return found


def again(scores: Mapping[str, Scores]) -> Criterion:
    """A criterion that gives these scores once more, layer by layer, so that no statistic is collected for it."""
    left = iter(scores.values())
    return lambda weight: next(left).tensor()


def competing(scores: Mapping[str, Scores], masks: Masks, shape: units.Unit) -> Competing:
    """Layer → the scores of what competes there, and what of it stays: weights, or groups with their mean score."""
    found = {}
    for name, layer in scores.items():
        values, kept = layer.tensor().flatten(), masks[name].flatten()
        if isinstance(shape, units.Grouping):
            group = shape.labels(layer.shape).flatten()
            values = torch.bincount(group, values.double()) / torch.bincount(group)
            kept = torch.bincount(group, kept.double()) > 0
        found[name] = (values, kept)
    return found


def _accuracy(result: tuple[Masks, float] | BudgetError) -> float:
    return math.nan if isinstance(result, BudgetError) else result[1]
