"""Published systems that are no more than one answer to each of the five questions, and what makes recipes of them.

    ANSWERS["snip"]                                                  # its five answers
    masks = ANSWERS["snip"](model, task, sparsity=0.9)               # …which are a recipe
    replace(ANSWERS["snip"], allocation="erk")(model, task, …)       # and so is what is one answer away

Where the library's answer is not quite the paper's, the atlas says so.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from pruninglab import allocation as allocations
from pruninglab import criteria, units
from pruninglab.allocation import ALLOCATIONS, Allocation, global_
from pruninglab.criteria import CRITERIA, Criterion, Scores
from pruninglab.layers import Exclude, entries
from pruninglab.masks import Masks
from pruninglab.naming import label, resolve, unknown
from pruninglab.pruning import check_sparsity, prune
from pruninglab.recovery import RECOVERIES, Recovery, rewind
from pruninglab.runs import Train
from pruninglab.schedules import SCHEDULES, Schedule, before_training, check_unit, gradual, lottery, one_shot
from pruninglab.tasks import LanguageTask, Task
from pruninglab.units import Pattern, structure

STARTS = ("trained", "untrained", "dense")
FLOOR = 5e-4  # of all weights, which each layer keeps at least in global magnitude pruning as its authors' code does it


@dataclass(frozen=True)
class Answers:
    """One answer to each question; called, they prune a model.

    Attributes:
        criterion: as in `prune`.
        unit: likewise.
        allocation: likewise.
        schedule: a name in `SCHEDULES`, or a schedule.
        recovery: None, a name in `RECOVERIES`, or a recovery.
        start: "trained" if it is handed a trained network; "untrained" if it is handed an untrained one, which the
            schedule trains; "dense" if it is handed an untrained one that is trained as it is, before anything goes.
    """

    criterion: str | Criterion
    unit: units.Answer = "weight"
    allocation: str | Allocation = "global"
    schedule: str | Schedule = "one_shot"
    recovery: str | Recovery | None = None
    start: str = "trained"

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise unknown("start", self.start, STARTS)

    def __call__(
        self,
        model: nn.Module,
        task: Task,
        *,
        sparsity: float | None = None,
        seed: int = 0,
        samples: int = 256,
        exclude: Exclude | Iterable[Exclude] = (),
    ) -> Masks:
        """Prune a model as these answers say.

        Args:
            model: trained or untrained, as `start` says; changed in place. An untrained one's weights now are those
                that it is set back to.
            task: for calibration data and training.
            sparsity: the fraction of units to remove, in [0, 1); may be left out for an N:M unit, which fixes it.
            seed: of the calibration data, of what is drawn, and of the order of the data.
            samples: how many training samples the criterion may look at.
            exclude: layers to leave alone, as in `prune`.

        Returns:
            The masks, applied; the model is trained and repaired as far as the answers go.

        Raises:
            ValueError: a sparsity out of range or that cannot be met, more samples than there are, an unknown answer;
                the model is unchanged then. GraphError: nothing can be removed.
            TypeError: an argument of the wrong kind.
        """
        schedule = resolve("schedule", self.schedule, SCHEDULES)
        repair = None if self.recovery is None else resolve("recovery", self.recovery, RECOVERIES)
        shape, exclude = units.find(self.unit), entries(exclude)
        criteria.find(self.criterion)
        check_unit(schedule, shape)
        if sparsity is None and isinstance(shape, Pattern):
            sparsity = 1 - shape.density
        level = check_sparsity(sparsity)
        device = next(model.parameters()).device
        x, y = (part.to(device) for part in task.calibration(samples, seed))
        if schedule is not one_shot or self.start != "trained":  # what cannot be is told before anything is trained
            places = "uniform" if allocations.measures(self.allocation) else self.allocation
            how: dict[str, Any] = {"unit": self.unit, "allocation": places, "exclude": exclude, "data": (x[:1], y[:1])}
            prune(copy.deepcopy(model), sparsity=level, **how)
        home = task if self.start == "trained" else beginning_as(task, model, seed)
        initial = None if self.start == "trained" else home.model(seed)
        generator = torch.Generator().manual_seed(seed)

        def prune_to(sparsity: float, within: Masks | None = None) -> Masks:
            return prune(
                model,
                sparsity=sparsity,
                criterion=self.criterion,
                unit=self.unit,
                allocation=self.allocation,
                data=(x, y),
                loss=task.loss,
                initial=initial,
                within=within,
                seed=generator,
                exclude=exclude,
            )

        train = Train(model, home, seed)
        if self.start == "dense":
            train.rest()
        masks = schedule(level, prune_to, train)
        if repair is not None:
            repair(model, masks, home, seed=seed)
        return masks

    def told(self) -> dict[str, str]:
        """Question → the answer's name, in backticks where it is one that the library knows by its name."""
        shape = units.find(self.unit)
        return {
            "what": f"`{label(self.unit) if shape is None else shape.name}`",
            "how_important": _told(self.criterion, CRITERIA),
            "how_much": "as the unit says" if isinstance(shape, Pattern) else _told(self.allocation, ALLOCATIONS),
            "when": _told(self.schedule, SCHEDULES),
            "repair": _told(self.recovery, RECOVERIES) if self.recovery else _after(self.start),
        }


def _told(answer: Any, table: Mapping[str, Any]) -> str:
    name = label(answer)
    return f"`{name}`" if name.partition("(")[0] in table else name


def _after(start: str) -> str:
    return "nothing" if start == "trained" else "the training itself"


def beginning_as(task: Task, model: nn.Module, seed: int) -> Task:
    """The task, with a network of this seed that begins with the weights that a model has now; others stay its own."""
    first = copy.deepcopy(model)

    def build() -> nn.Module:  # `Task.model(seed)` seeds torch and builds
        return copy.deepcopy(first) if torch.initial_seed() == seed % 2**64 else task.build()

    known = {"ready": None, "only_ready": False} if isinstance(task, LanguageTask) else {}
    return replace(task, load=lambda: task.data, build=build, **known)  # type: ignore[arg-type]


def global_with_floor(scores: Mapping[str, Scores], keep: int) -> dict[tuple[str, ...], int]:
    """`global_`, but each layer keeps at least 0.05 % of all weights there are (Gupta et al. 2022, as in their code).

    Raises:
        BudgetError: the floors alone need more than `keep` places.
    """
    return global_(scores, keep, min_keep=int(FLOOR * sum(layer.numel() for layer in scores.values())))


TUNED = "finetune"
CHANNEL = "channel"

ANSWERS: dict[str, Answers] = {
    # single weights of a trained network
    "magnitude": Answers("magnitude", allocation="uniform", schedule="iterative", recovery=TUNED),
    "global_mp": Answers("magnitude", allocation=global_with_floor, recovery=TUNED),
    "gradual": Answers("magnitude", "weight", "uniform", gradual(from_scratch=True), start="untrained"),
    "lamp": Answers("magnitude", allocation="lamp", schedule="iterative", recovery=TUNED),
    "nm": Answers("magnitude", "2:4", recovery="rewind_lr"),
    "obd": Answers("obd", schedule="iterative", recovery=TUNED),
    "woodfisher": Answers("woodfisher", schedule="iterative", recovery=TUNED),
    "rate_distortion": Answers("magnitude", "weight", "rate_distortion", "iterative", TUNED),
    # lottery tickets
    "lottery": Answers("magnitude", schedule="lottery", recovery="rewind", start="dense"),
    "stabilized_lottery": Answers(
        "magnitude", schedule=lottery(rewind_to=0.05), recovery=partial(rewind, to=0.05), start="dense"
    ),
    "sign_tickets": Answers("magnitude", schedule="lottery", recovery="keep_signs", start="dense"),
    "lr_rewinding": Answers("magnitude", schedule="iterative", recovery="rewind_lr"),
    "layer_tickets": Answers("grasp", "layer", schedule="before_training", start="untrained"),
    # before and while it trains
    "snip": Answers("snip", schedule="before_training", start="untrained"),
    "iterative_snip": Answers("snip", schedule=before_training(20), start="untrained"),
    "grasp": Answers("grasp", schedule="before_training", start="untrained"),
    "synflow": Answers("synflow", schedule=before_training(100), start="untrained"),
    "random_erk": Answers("random", "weight", "erk", "before_training", start="untrained"),
    "set": Answers("random", "weight", "erk", "set", start="untrained"),
    "rigl": Answers("random", "weight", "erk", "rigl", start="untrained"),
    "granet": Answers("magnitude", schedule="granet", start="untrained"),
    "sparse_pretraining": Answers(
        "magnitude", schedule=gradual(begin=0.25, end=0.75, from_scratch=True), start="untrained"
    ),
    # channels
    "l1_filter": Answers("l1_filter", CHANNEL, "uniform", recovery=TUNED),
    "slimming": Answers("slimming", CHANNEL, recovery=TUNED),
    "taylor_filter": Answers("taylor_filter", structure(normalize="l2"), "global", "iterative", TUNED),
    "taylor": Answers("taylor", CHANNEL, "global", "iterative", TUNED),
    "fpgm": Answers("fpgm", CHANNEL, "uniform", "iterative", TUNED),
    "hrank": Answers("hrank", CHANNEL, "uniform", recovery=TUNED),
    "relevance": Answers("relevance_filter", CHANNEL, "global", "iterative", TUNED),
    "beta_rank": Answers("beta_rank", CHANNEL, "uniform", recovery=TUNED),
    "depgraph": Answers("group_l2", structure(combine="mean", normalize="mean"), "global", "iterative", TUNED),
    "scratch": Answers("l1_filter", CHANNEL, "uniform", recovery="reinitialise"),
    "rate_distortion_channels": Answers("l2_filter", CHANNEL, "rate_distortion", "iterative", TUNED),
}
