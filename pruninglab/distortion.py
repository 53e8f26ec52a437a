"""How much do the outputs change if this layer is pruned by this much? One curve for each layer.

The *distortion* of a pruned network is the squared change of its outputs, ‖f(x; W) − f(x; W̃)‖² / outputs, averaged
over samples (or the largest of them). A curve gives it for one layer pruned to each level while all others are whole
(Xu et al. 2023, ICCV, §3). Labels are not needed, and not even data: noise will do for a first guess.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruninglab.batches import Inputs, batches, call, length, to_device
from pruninglab.files import digest, load_tensors, save_tensors
from pruninglab.gauss_newton import gauss_newton
from pruninglab.ladders import Ladder, at_levels
from pruninglab.naming import unknown
from pruninglab.outputs import aggregator, outputs, over_samples, per_sample
from pruninglab.progress import progress
from pruninglab.recording import observed
from pruninglab.replay import Replay
from pruninglab.statistics import Data

Floats = NDArray[np.float64]
METHODS = ("measured", "gauss_newton", "diagonal")


@contextmanager
def unchanged(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Whatever happens to these parameters inside, they are afterwards what they were, to the bit."""
    saved = [(parameter, parameter.detach().clone()) for parameter in parameters]
    try:
        yield
    finally:
        for parameter, before in saved:
            parameter.data.copy_(before)


class Probe:
    """Measures how far a model's outputs move when its ladders are climbed down. The model itself stays as it is.

    A probe remembers what it has measured, so make a new one after the model's weights have changed.

    Args:
        model: any module that returns a tensor, or something with `logits`.
        data: calibration data as in `prune`; labels are ignored. For no data at all, noise of the inputs' shape.
        resume: a file in which finished curves are kept while the others are measured, so that an interrupted run goes
            on; it is written whole or not at all.

    Raises:
        ValueError: no data, `resume` is of another measurement or not whole, a layer that the model never runs.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data | None,
        resume: str | os.PathLike[str] | None = None,
    ) -> None:
        if data is None:
            raise ValueError(
                "distortion is measured on inputs: pass data=x (labels are not needed; with none at hand, noise of the "
                "inputs' shape such as torch.randn(256, 1, 8, 8) shows a good part of it)"
            )
        self.model, self.resume = model, None if resume is None else Path(resume)
        self.parameters = dict(model.named_parameters())
        device = next(iter(self.parameters.values())).device
        self.batches: list[Inputs] = [to_device(x, device) for x, _ in batches(data)]
        if not self.batches:
            raise ValueError("the calibration data are empty")
        self.samples = sum(length(x, "inputs") for x in self.batches)
        self.known: dict[Any, tuple[Sequence[Ladder], list[Floats]]] = {}  # with the ladders, so that ids stay theirs

    @cached_property
    def reference(self) -> list[Tensor]:
        """The outputs of the model as it is, for each batch."""
        with observed(self.model), torch.no_grad():
            return [outputs(call(self.model, x)) for x in self.batches]

    def distortion(self, ladders: Sequence[Ladder], at: Sequence[int], aggregate: str = "mean") -> float:
        """The true distortion when each ladder is at its level."""
        with self._pruned(ladders, at) as reference, observed(self.model), torch.no_grad():
            moved = [outputs(call(self.model, x)) for x in self.batches]
        parts = [per_sample(y, was) for y, was in zip(moved, reference, strict=True)]
        return float(over_samples(torch.cat(parts), aggregate, self.samples))

    def curves(
        self,
        ladders: Sequence[Ladder],
        at: Sequence[int] | None = None,
        aggregate: str = "mean",
        method: str = "measured",
        seed: int = 0,
    ) -> list[Floats]:
        """For each ladder the distortion at each of its levels, while the others stay where `at` has them.

        Distortion is against the outputs of the model as it was, also where `at` is not the top. Where a ladder itself
        already is at a level, the levels above it leave it there.

        Args:
            ladders: of all layers.
            at: the level of each now; the top if not given.
            aggregate: over samples: "mean" or "max".
            method: "measured", "gauss_newton" or "diagonal"; see `curves.distortion_curves`.
            seed: of Gauss–Newton's random signs.
        """
        at = [0] * len(ladders) if at is None else list(at)
        aggregator(aggregate)
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        question = (tuple(map(id, ladders)), tuple(at), aggregate, method, seed)
        if question not in self.known:  # a search for a budget asks the same again and again
            if method == "measured":
                found = self._measured(ladders, at, aggregate)
            else:
                how: dict[str, Any] = {"aggregate": aggregate, "diagonal": method == "diagonal", "seed": seed}
                with self._pruned(ladders, at) as reference:
                    found = gauss_newton(self.model, ladders, self.batches, reference, **how)
            self.known[question] = (ladders, found)
        return self.known[question][1]

    def _measured(self, ladders: Sequence[Ladder], at: Sequence[int], aggregate: str) -> list[Floats]:
        """The curves by running the model at every level."""
        combine, (pieces, keep) = aggregator(aggregate), self._resumed(ladders, at, aggregate)
        with (
            self._pruned(ladders, at) as reference,
            torch.no_grad(),
            progress(total=len(self.batches) * len(ladders), desc="measuring distortion", unit="curve") as bar,
        ):
            for b, (x, was) in enumerate(zip(self.batches, reference, strict=True)):
                with Replay(self.model, x) as replay:
                    for i, ladder in enumerate(ladders):
                        if f"{b}.{i}" not in pieces:
                            pieces[f"{b}.{i}"] = climb_down(replay, self.parameters, ladder, at[i], was, combine)
                            keep()
                        bar.update()
        columns = [torch.stack([pieces[f"{b}.{i}"] for b in range(len(self.batches))]) for i in range(len(ladders))]
        return [over_samples(column, aggregate, self.samples).numpy() for column in columns]

    def positions(self, names: Iterable[str]) -> dict[str, int]:
        """Layer → how often each weight of it is used for one sample: pixels or tokens, 1 in a plain linear layer.

        0 where the layer's module is never called itself.
        """
        samples = length(self.batches[0], "inputs")
        with Replay(self.model, self.batches[0]) as replay:
            return {name: replay.outputs_of(self.parameters[name]) // samples for name in names}

    @contextmanager
    def _pruned(self, ladders: Sequence[Ladder], at: Sequence[int]) -> Iterator[list[Tensor]]:
        """The model with each ladder at its level, for a while; gives the outputs that it has otherwise."""
        masks, reference = at_levels(ladders, at), self.reference
        with unchanged(self.parameters[name] for name in masks):
            for name, mask in masks.items():
                self.parameters[name].data.mul_(mask.to(self.parameters[name].device))
            yield reference

    def _resumed(
        self, ladders: Sequence[Ladder], at: Sequence[int], aggregate: str
    ) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """What an interrupted run of the same measurement has left, and what writes it down once it has grown."""
        pieces: dict[str, Tensor] = {}
        if self.resume is None:
            return pieces, lambda: None
        levels = [at for ladder in ladders for at in ladder.removed_at.values()]
        parts = [*self.parameters.values(), *self.model.buffers(), *levels, *self.reference]
        signature = {"measurement": digest([ladder.name for ladder in ladders], list(at), aggregate, *parts)}
        if self.resume.exists():
            pieces, written = load_tensors(self.resume)
            if written != signature:
                raise ValueError(
                    f"resume={os.fspath(self.resume)!r} holds another measurement (other weights, data or levels): "
                    "name another file, or delete it"
                )
        return pieces, partial(save_tensors, self.resume, pieces, signature)


def climb_down(
    replay: Replay,
    parameters: Mapping[str, nn.Parameter],
    ladder: Ladder,
    start: int,
    was: Tensor,
    combine: Callable[[Tensor], Tensor],
) -> Tensor:
    """One curve on one batch, (levels,) float64: the sum (or the largest) over samples at each level.

    Raises:
        ValueError: the model does not run this layer.
    """
    own = {name: parameters[name] for name in ladder.removed_at}
    when, before = replay.first_use(own.values()), {name: p.detach().clone() for name, p in own.items()}
    levels = {name: at.to(own[name].device) for name, at in ladder.removed_at.items()}
    curve = torch.empty(len(ladder.kept), dtype=torch.float64)
    try:
        for level in range(len(curve)):
            if level > start:
                for name, parameter in own.items():
                    torch.mul(before[name], levels[name] > level, out=parameter.data)
            if level > start or not level:
                value = combine(per_sample(outputs(replay.resume(when)), was)).cpu()
            curve[level] = value
    finally:
        for name, parameter in own.items():
            parameter.data.copy_(before[name])
    if not curve.any() and not replay.runs(own.values()):
        raise ValueError(
            f"the model never runs layer {ladder.name!r}: its outputs do not change however much of it goes. "
            f"Leave it out: exclude={ladder.name!r}"
        )
    return curve
