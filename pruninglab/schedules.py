"""When? At once, in rounds, before training, or while it goes on.

A schedule is a function `(sparsity, prune, train) -> Masks`:

    prune(sparsity, within=None) -> Masks   prunes the model, within masks of earlier rounds
    train(masks=None, on_step=None)         trains it on, for one recovery's worth of steps
    train.rewind(to)                        sets it back to where it was at a fraction of its own training
    train.rest(masks=None, on_step=None)    trains it from there to the end, as it was trained at first

so that every schedule works with every criterion, unit, allocation and task. The model comes trained. A schedule leaves
it pruned to `sparsity`; the recovery after the last pruning is not its business, unless the schedule *is* the training.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from pruninglab.during import Gradual, Prune, Regrow, check_window, exchanging
from pruninglab.masks import Masks
from pruninglab.naming import at_least_one, label
from pruninglab.pruning import check_sparsity
from pruninglab.tasks.training import OnStep
from pruninglab.units import Unit


class Train(Protocol):
    """How a schedule trains the model it was given.

    Attributes:
        steps: of one call.
        whole: steps of the model's whole training.
        seed: of the run, for schedules that draw at random.
    """

    steps: int
    whole: int
    seed: int

    def __call__(self, *, masks: Masks | None = None, on_step: OnStep | None = None) -> object: ...

    def rewind(self, to: float = 0.0) -> None: ...

    def rest(self, *, masks: Masks | None = None, on_step: OnStep | None = None) -> object: ...


Schedule = Callable[[float, Prune, Train], Masks]


def one_shot(sparsity: float, prune: Prune, train: Train) -> Masks:
    """Prune once to the end."""
    return prune(sparsity)


def iterative(rounds: int = 5) -> Schedule:
    """Prune the same fraction of what is left in each round, and train on between rounds (Han et al. 2015).

    After round r of R the density is (1 − sparsity)^(r/R).

    Raises:
        ValueError: `rounds` is less than 1. TypeError: it is no whole number.
    """
    at_least_one("rounds", rounds)

    def schedule(sparsity: float, prune: Prune, train: Train) -> Masks:
        return _in_rounds(_levels(sparsity, rounds), prune, lambda masks: train(masks=masks))

    return _named(schedule, "iterative", rounds=(rounds, 5))


def lottery(rounds: int | None = None, rate: float | None = None, rewind_to: float = 0.0) -> Schedule:
    """Iterative magnitude pruning with rewinding: how winning tickets are found (Frankle & Carbin 2019; 2020).

    Each round removes a fraction of the weights that are left, sets the others back to an early point of training, and
    trains again from there. It ends with the last pruning; the recovery "rewind" makes a trained ticket of it.

    Args:
        rounds: how many equal rounds.
        rate: instead, the fraction of the remaining weights that goes in each round, the last of which removes less;
            0.2 if neither is given.
        rewind_to: the fraction of training to go back to; 0 is the initial weights.

    Raises:
        ValueError: `rounds` is less than 1, `rate` not in (0, 1), both are given, or `rewind_to` is not in [0, 1).
        TypeError: `rounds` is no whole number.
    """
    if rounds is not None:
        at_least_one("rounds", rounds)
        if rate is not None:
            raise ValueError(f"give rounds or rate, not both: rounds={rounds} and rate={rate}")
    told, rate = rate, 0.2 if rate is None else rate
    if not 0 < rate < 1:
        raise ValueError(f"rate is the fraction removed in each round, in (0, 1), not {rate}")
    if not 0 <= rewind_to < 1:
        raise ValueError(f"rewind_to is a fraction of training, in [0, 1), not {rewind_to}")

    def schedule(sparsity: float, prune: Prune, train: Train) -> Masks:
        needed = max(1, math.ceil(math.log(1 - check_sparsity(sparsity)) / math.log(1 - rate) - 1e-9))
        by_rate = [min(1 - (1 - rate) ** r, sparsity) for r in range(1, needed)] + [sparsity]

        def again(masks: Masks) -> None:
            train.rewind(rewind_to)
            train.rest(masks=masks)

        return _in_rounds(by_rate if rounds is None else _levels(sparsity, rounds), prune, again)

    return _named(schedule, "lottery", rounds=(rounds, None), rate=(told, None), rewind_to=(rewind_to, 0.0))


def before_training(rounds: int = 1) -> Schedule:
    """Prune the untrained network, in rounds if more than one, and then train what is left (Lee et al. 2019).

    Between rounds scores are asked for again, on the network as it is then pruned; nothing is trained. After round r of
    R the density is (1 − sparsity)^(r/R) (Tanaka et al. 2020, algorithm 1).

    Raises:
        ValueError: `rounds` is less than 1. TypeError: it is no whole number.
    """
    at_least_one("rounds", rounds)

    def schedule(sparsity: float, prune: Prune, train: Train) -> Masks:
        train.rewind()
        masks = _in_rounds(_levels(sparsity, rounds), prune, lambda masks: None)
        train.rest(masks=masks)
        return masks

    return _named(schedule, "before_training", rounds=(rounds, 1))


def gradual(begin: float = 0.0, end: float = 0.75, every: int = 25, from_scratch: bool = False) -> Schedule:
    """Prune every few steps along the cubic curve while training goes on (Zhu & Gupta 2017; see `Gradual`).

    Args:
        begin: of the pruning window, as a fraction of the training.
        end: likewise.
        every: how many steps lie between prunings.
        from_scratch: prune during the network's own training, from its initial weights; if not, during one recovery's
            worth of training on.
    """
    check_window(begin, end, every)

    def schedule(sparsity: float, prune: Prune, train: Train) -> Masks:
        if from_scratch:
            train.rewind()
        steps, go = (train.whole, train.rest) if from_scratch else (train.steps, train)
        with Gradual(prune, sparsity, steps, begin=begin, end=end, every=every) as hook:
            go(on_step=hook)
        assert hook.masks is not None  # the window is never empty
        return hook.masks

    told = {"begin": (begin, 0.0), "end": (end, 0.75), "every": (every, 25), "from_scratch": (from_scratch, False)}
    return _named(schedule, "gradual", **told)


def regrow(
    grow: str = "gradient", fraction: float = 0.3, begin: float = 0.0, end: float = 0.75, every: int = 25
) -> Schedule:
    """Sparse from the first step on: every few steps, drop the smallest weights and grow as many elsewhere.

    With `grow="gradient"` this is RigL (Evci et al. 2020; there a step that moves masks leaves the weights alone, here
    it follows an ordinary one), with "random" SET (Mocanu et al. 2018; usually without the cosine that lets `fraction`
    fall; here both have it, so that they differ in one thing only). Where weights lie at first is up to the criterion
    and the allocation, usually "random" and "erk".
    """
    check_window(begin, end, every)  # errors now, not in the middle
    exchanging(grow, fraction)

    def schedule(sparsity: float, prune: Prune, train: Train) -> Masks:
        train.rewind()
        masks = prune(sparsity)
        how: dict[str, Any] = {"begin": begin, "end": end, "every": every, "seed": train.seed}
        with Regrow(masks, train.whole, grow=grow, fraction=fraction, **how) as hook:
            train.rest(on_step=hook)
        assert hook.masks is not None
        return hook.masks

    vars(schedule)["exchanges"] = True
    told = {"fraction": (fraction, 0.3), "begin": (begin, 0.0), "end": (end, 0.75), "every": (every, 25)}
    return _named(schedule, "rigl" if grow == "gradient" else "set", **told)


def granet(
    initial: float = 0.0, fraction: float = 0.5, begin: float = 0.0, end: float = 0.75, every: int = 25
) -> Schedule:
    """Gradual pruning from scratch with an exchange by gradient after each pruning (GraNet, Liu et al. 2021).

    Args:
        initial: the sparsity at the first step: 0 is dense-to-sparse, more is sparse-to-sparse. The criterion and the
            allocation of the run choose those weights.
        fraction: of each layer's weights to exchange at first; it falls to zero along a cosine.
        begin: of the window, as a fraction of training.
        end: likewise.
        every: how many steps lie between changes.
    """
    check_window(begin, end, every)
    check_sparsity(initial)
    exchanging("gradient", fraction)

    def schedule(sparsity: float, prune: Prune, train: Train) -> Masks:
        train.rewind()
        first = prune(initial) if initial else None
        how: dict[str, Any] = {"begin": begin, "end": end, "every": every, "initial": initial, "masks": first}
        with Gradual(prune, sparsity, train.whole, then=exchanging("gradient", fraction), **how) as hook:
            train.rest(on_step=hook)
        assert hook.masks is not None
        return hook.masks

    vars(schedule)["exchanges"] = True
    told = {"initial": (initial, 0.0), "fraction": (fraction, 0.5), "begin": (begin, 0.0), "end": (end, 0.75)}
    return _named(schedule, "granet", **told, every=(every, 25))


def _levels(sparsity: float, rounds: int) -> list[float]:
    return [1 - (1 - sparsity) ** (r / rounds) for r in range(1, rounds + 1)]


def _in_rounds(levels: list[float], prune: Prune, between: Callable[[Masks], object]) -> Masks:
    """Prune to one level after the other, each within the masks of the one before; `between` happens between two."""
    masks = prune(levels[0])
    for level in levels[1:]:
        between(masks)
        masks = prune(level, within=masks)
    return masks


def check_unit(schedule: Schedule, unit: Unit) -> None:
    """Raise a ValueError if a schedule exchanges single weights, which would tear other units apart."""
    own: Any = schedule
    while isinstance(own, partial):
        own = own.func
    if unit is not None and getattr(own, "exchanges", False):
        raise ValueError(
            f"schedule {label(schedule)!r} exchanges single weights: unit must be 'weight', not {unit.name!r}"
        )


def _named(schedule: Schedule, name: str, **told: tuple[Any, Any]) -> Schedule:
    """Give a schedule the name that tables show: its own, and the options (value, default) that are not the default."""
    changed = {option: value for option, (value, default) in told.items() if value != default}
    parts = [f"{value:g}" if option == "rounds" else f"{option}={value}" for option, value in changed.items()]
    schedule.__name__ = f"{name}({', '.join(parts)})" if parts else name
    return schedule


SCHEDULES: dict[str, Schedule] = {
    "one_shot": one_shot,
    "iterative": iterative(),
    "gradual": gradual(),
    "lottery": lottery(),
    "before_training": before_training(),
    "rigl": regrow(),
    "set": regrow("random"),
    "granet": granet(),
}
