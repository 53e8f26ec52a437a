"""When? At once, in rounds, or little by little while training goes on.

A schedule is a function `(model, sparsity, prune, train) -> Masks`:

    prune(sparsity, within=None) -> Masks   prunes the model, within masks of earlier rounds
    train(masks=None, on_step=None)         trains it for one recovery's worth of steps, with the masks held

so that every schedule works with every criterion, unit, allocation and task. A schedule leaves the model pruned to
`sparsity`; the recovery after the last pruning is not its business (except for `gradual`, which *is* training).
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

import torch

from pruninglab.masks import Masks
from pruninglab.pruning import check_sparsity
from pruninglab.tasks.training import OnStep


class Prune(Protocol):
    """How a schedule prunes the model it was given."""

    def __call__(self, sparsity: float, within: Masks | None = None) -> Masks: ...


class Train(Protocol):
    """How a schedule trains the model it was given, `steps` steps at a time."""

    steps: int

    def __call__(self, *, masks: Masks | None = None, on_step: OnStep | None = None) -> object: ...


Schedule = Callable[[float, Prune, Train], Masks]


def one_shot(sparsity: float, prune: Prune, train: Train) -> Masks:
    """Prune once to the end."""
    return prune(sparsity)


def iterative(rounds: int = 5) -> Schedule:
    """Prune the same fraction of what is left in each round, and train between rounds (Han et al. 2015).

    After round r of R the density is (1 − sparsity)^(r/R).

    Raises:
        ValueError: `rounds` is less than 1.
    """
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds must be a whole number of at least 1, not {rounds!r}")

    def schedule(sparsity: float, prune: Prune, train: Train) -> Masks:
        masks = None
        for r in range(1, rounds + 1):
            if masks is not None:
                train(masks=masks)
            masks = prune(1 - (1 - sparsity) ** (r / rounds), within=masks)
        assert masks is not None  # rounds ≥ 1
        return masks

    schedule.__name__ = "iterative" if rounds == 5 else f"iterative({rounds})"
    return schedule


def cubic(t: float, sparsity: float, initial: float = 0.0) -> float:
    """The sparsity at a fraction t in [0, 1] of the pruning window (Zhu & Gupta 2017, eq. 1).

    s(t) = sparsity + (initial − sparsity) (1 − t)³: fast while there is much to spare, slow at the end.
    """
    t = min(max(t, 0.0), 1.0)
    return sparsity + (initial - sparsity) * (1 - t) ** 3


class Gradual:
    """Gradual pruning as something that a training loop calls after each step; works in any loop.

    Between `begin` and `end` (fractions of training) the model is pruned every `every` steps to the cubic sparsity of
    that moment; in between and afterwards the masks are held.

        gradual = Gradual(prune, sparsity=0.95, steps=800)
        with gradual:
            for step, batch in enumerate(batches, start=1):
                ...
                optimizer.step()
                gradual(step, optimizer)
        gradual.masks

    Args:
        prune: prunes the model to a sparsity, within earlier masks.
        sparsity: at the end.
        steps: of the whole training.
        begin, end: when to prune for the first and the last time, as fractions of training.
        every: how many steps lie between prunings.

    Raises:
        ValueError: not 0 ≤ begin < end ≤ 1, `every` is less than 1 or longer than the window, or a bad sparsity.
        RuntimeError: on leaving the `with` block, training ended before the window did, so that too little is pruned.
    """

    def __init__(
        self, prune: Prune, sparsity: float, steps: int, *, begin: float = 0.0, end: float = 0.75, every: int = 25
    ) -> None:
        check_sparsity(sparsity)
        if not 0 <= begin < end <= 1:
            raise ValueError(f"the window must be 0 ≤ begin < end ≤ 1, not begin={begin}, end={end}")
        self.first, self.last = round(begin * steps), round(end * steps)
        if not 1 <= every <= self.last - self.first:
            raise ValueError(f"every={every} steps does not fit the window of {self.last - self.first} steps")
        self.prune, self.sparsity, self.every = prune, sparsity, every
        self.masks: Masks | None = None
        self._held, self._finished = ExitStack(), False

    def __enter__(self) -> "Gradual":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._held.close()
        if error is None and not self._finished:
            raise RuntimeError(f"training ended before step {self.last}, at which {self.sparsity} would be reached")

    def __call__(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """To be called after step `step` = 1, 2, … of the optimizer."""
        at_end = step >= self.last and not self._finished
        if not at_end and not (self.first < step < self.last and (step - self.first) % self.every == 0):
            return
        self._finished = at_end
        now = cubic((step - self.first) / (self.last - self.first), self.sparsity)
        self._held.close()
        self.masks = self.prune(now, within=self.masks)
        self._held.enter_context(self.masks.enforced(optimizer))


def gradual(begin: float = 0.0, end: float = 0.75, every: int = 25) -> Schedule:
    """Prune every few steps along the cubic curve while one recovery's worth of training goes on (see `Gradual`)."""

    def schedule(sparsity: float, prune: Prune, train: Train) -> Masks:
        with Gradual(prune, sparsity, train.steps, begin=begin, end=end, every=every) as pruner:
            train(on_step=pruner)
        assert pruner.masks is not None  # the window is never empty
        return pruner.masks

    options = {"begin": (begin, 0.0), "end": (end, 0.75), "every": (every, 25)}
    told = ", ".join(f"{name}={value:g}" for name, (value, default) in options.items() if value != default)
    schedule.__name__ = f"gradual({told})" if told else "gradual"
    return schedule


SCHEDULES: dict[str, Schedule] = {"one_shot": one_shot, "iterative": iterative(), "gradual": gradual()}
