"""Masks that change while training goes on: pruning little by little, and dropping here to grow there.

Both are something that a training loop calls after each step, so they work in any loop:

    with Gradual(prune, sparsity=0.95, steps=800) as hook:
        for step, batch in enumerate(batches, start=1):
            ...
            optimizer.step()
            hook(step, optimizer)
    hook.masks
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol, Self

import torch
from torch import Tensor

from pruninglab.masks import Masks
from pruninglab.naming import at_least_one, unknown
from pruninglab.pruning import check_sparsity

GROWING = 2_000_000  # added to a seed: numbers that were not drawn before, for the weights or for the first masks
Exchange = Callable[[Masks, float, torch.optim.Optimizer], Masks]


class Prune(Protocol):
    """How a schedule prunes the model it was given."""

    def __call__(self, sparsity: float, within: Masks | None = None) -> Masks: ...


def cubic(t: float, sparsity: float, initial: float = 0.0) -> float:
    """The sparsity at a fraction t in [0, 1] of the pruning window (Zhu & Gupta 2017, eq. 1).

    s(t) = sparsity + (initial − sparsity) (1 − t)³: fast while there is much to spare, slow at the end.
    """
    t = min(max(t, 0.0), 1.0)
    return sparsity + (initial - sparsity) * (1 - t) ** 3


def check_window(begin: float, end: float, every: int) -> None:
    """Raises a ValueError unless 0 ≤ begin < end ≤ 1 and `every` ≥ 1; a TypeError if that is no whole number."""
    if not 0 <= begin < end <= 1:
        raise ValueError(f"the window must be 0 ≤ begin < end ≤ 1, not begin={begin}, end={end}")
    at_least_one("every", every)


class Changing:
    """Changes masks every few steps of a window, and holds them in between and afterwards.

    Args:
        masks: to begin with, if any.
        steps: of the whole training.
        begin, end: of the window, as fractions of training.
        every: how many steps lie between changes.

    Raises:
        ValueError: not 0 ≤ begin < end ≤ 1, or `every` is less than 1 or longer than the window.
        RuntimeError: on leaving the `with` block, training ended before the window did.
    """

    def __init__(self, masks: Masks | None, steps: int, begin: float, end: float, every: int) -> None:
        check_window(begin, end, every)
        self.first, self.last = round(begin * steps), round(end * steps)
        if every > self.last - self.first:
            raise ValueError(f"every={every} steps does not fit the window of {self.last - self.first} steps")
        self.every, self.masks = every, masks
        self._held, self._holding, self._finished = ExitStack(), False, False

    def change(self, t: float, optimizer: torch.optim.Optimizer) -> Masks:
        """New masks at a fraction t of the window."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._held.close()
        if error is None and not self._finished:
            raise RuntimeError(f"training ended before step {self.last}, where the window ends")

    def __call__(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """To be called after step `step` = 1, 2, … of the optimizer."""
        if not self._holding:  # not since the first step, which has moved the zeros
            self._hold(optimizer)
        at_end = step >= self.last and not self._finished
        if at_end or (self.first < step < self.last and (step - self.first) % self.every == 0):
            self._finished = at_end
            self._held.close()
            t = (step - self.first) / (self.last - self.first)
            self.masks = self.change(min(t, 1.0), optimizer)  # a loop may begin when the window is over
            self._hold(optimizer)

    def _hold(self, optimizer: torch.optim.Optimizer) -> None:
        if self.masks is not None:
            self._held.enter_context(self.masks.enforced(optimizer))
            self._holding = True


class Gradual(Changing):
    """Pruning to the cubic sparsity of each moment, all through a window of training (Zhu & Gupta 2017).

    Args:
        prune: prunes the model to a sparsity, within earlier masks.
        sparsity: at the end.
        steps: of the whole training.
        begin, end: of the window, as fractions of training.
        every: how many steps lie between prunings.
        initial: the sparsity at the beginning.
        masks: to begin with, if `initial` is not 0.
        then: what else happens to the masks after each pruning: `then(masks, t, optimizer) -> Masks`.

    Raises:
        ValueError: a bad sparsity, or `initial` above it; or as `Changing` says.
    """

    def __init__(
        self,
        prune: Prune,
        sparsity: float,
        steps: int,
        *,
        begin: float = 0.0,
        end: float = 0.75,
        every: int = 25,
        initial: float = 0.0,
        masks: Masks | None = None,
        then: Exchange | None = None,
    ) -> None:
        check_sparsity(sparsity)
        if not 0 <= initial <= sparsity:
            raise ValueError(f"initial is a sparsity from 0 to the final {sparsity}, not {initial}")
        super().__init__(masks, steps, begin, end, every)
        self.prune, self.sparsity, self.initial, self.then = prune, sparsity, initial, then

    def change(self, t: float, optimizer: torch.optim.Optimizer) -> Masks:
        masks = self.prune(cubic(t, self.sparsity, self.initial), within=self.masks)
        return masks if self.then is None else self.then(masks, t, optimizer)


class Regrow(Changing):
    """Drops the smallest weights of each layer and grows as many in other places (SET, RigL); the count stays.

    Args:
        masks: to begin with.
        steps: of the whole training.
        grow: "gradient" or "random", as in `exchange`.
        fraction: of each layer's weights to exchange at first; it falls to zero along a cosine.
        begin, end: of the window, as fractions of training.
        every: how many steps lie between exchanges.
        seed: for growing at random.

    Raises:
        ValueError: `fraction` is not in (0, 1), an unknown `grow`; or as `Changing` says.
    """

    def __init__(
        self,
        masks: Masks,
        steps: int,
        *,
        grow: str = "gradient",
        fraction: float = 0.3,
        begin: float = 0.0,
        end: float = 0.75,
        every: int = 25,
        seed: int = 0,
    ) -> None:
        super().__init__(masks, steps, begin, end, every)
        self.exchange = exchanging(grow, fraction, seed)

    def change(self, t: float, optimizer: torch.optim.Optimizer) -> Masks:
        assert self.masks is not None
        return self.exchange(self.masks, t, optimizer)


def exchanging(grow: str, fraction: float, seed: int = 0) -> Exchange:
    """`exchange` with a fraction that falls to zero along a cosine: fraction · ½ (1 + cos πt) (Evci et al. 2020, §3).

    Raises:
        ValueError: `fraction` is not in (0, 1), or `grow` is neither "gradient" nor "random".
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is the share of weights exchanged, in (0, 1), not {fraction}")
    if grow not in ("gradient", "random"):
        raise unknown("way to grow", grow, ("gradient", "random"))
    generator = torch.Generator().manual_seed(GROWING + seed)

    def then(masks: Masks, t: float, optimizer: torch.optim.Optimizer) -> Masks:
        return exchange(masks, optimizer, fraction * 0.5 * (1 + math.cos(math.pi * t)), grow, generator)

    return then


@torch.no_grad()
def exchange(
    masks: Masks, optimizer: torch.optim.Optimizer, fraction: float, grow: str, generator: torch.Generator
) -> Masks:
    """Drop each layer's smallest weights, and grow as many where the gradient is largest, or at random.

    Grown weights begin at zero with no momentum. A weight that is dropped may be grown again at once, as new (RigL,
    Evci et al. 2020, algorithm 1; growing at random is SET, Mocanu et al. 2018).

    Args:
        masks: applied to the model; its weights hold the gradients of the last step, also where masks are False.
        optimizer: that of the model.
        fraction: of each layer's remaining weights; rounded down.
        grow: "gradient" or "random".
        generator: for growing at random.

    Returns:
        Masks that keep as many weights in each layer, applied to the model.

    Raises:
        RuntimeError: a weight has no gradient to grow by.
    """
    changed: dict[str, Tensor] = {}
    for name, weight in masks.weights().items():
        mask = masks[name].to(weight.device)
        count = int(fraction * int(mask.sum()))
        size = torch.where(mask, weight.abs(), torch.inf).flatten()
        kept = mask.flatten().index_fill(0, size.argsort(stable=True)[:count], False)
        if grow == "gradient":
            if weight.grad is None:
                raise RuntimeError(f"{name} has no gradient to grow by; call before zero_grad, and freeze none")
            wish = weight.grad.abs().flatten()
        else:
            wish = torch.rand(weight.numel(), generator=generator).to(weight.device)
        best = wish.masked_fill(kept, -torch.inf).argsort(descending=True, stable=True)[:count]
        new = torch.zeros_like(kept).index_fill(0, best, True).view_as(mask)
        changed[name] = kept.view_as(mask) | new
        weight.masked_fill_(new, 0)
        for state in optimizer.state.get(weight, {}).values():  # [weight] would make an entry
            if isinstance(state, Tensor) and state.shape == weight.shape:
                state.masked_fill_(new, 0)
    found = Masks({name: changed.get(name, mask) for name, mask in masks.items()})
    found.apply_to(masks.weights())
    return found
