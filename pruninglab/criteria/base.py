"""How important is it? A criterion is a function whose argument names say what it needs.

    @criterion
    def wanda(weight, input_norm):
        return weight.abs() * input_norm

Arguments are looked up among the statistics (see `pruninglab.statistics`); `generator` is a seeded random generator;
an argument with a default is a hyper-parameter. The result is a score shaped like the weight; **higher means keep**.
A criterion knows no model, no budget and no mask.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from pruninglab.naming import is_built_in, label, resolve, unknown
from pruninglab.statistics import STATISTICS

Criterion = Callable[..., Tensor]
C = TypeVar("C", bound=Criterion)

CRITERIA: dict[str, Criterion] = {}
OF_BLOCKS = ("block_input", "block_output")  # what a criterion of whole blocks may ask for (unit "layer")
OF_MODELS = {"weight", "initial_weight"}  # statistics that are the parameters themselves
PIECE = 1 << 17  # weights scored at a time where that is possible: they stay in the processor's cache


def criterion(function: C) -> C:
    """Make a function known by its name, so that `prune(criterion="name")` finds it. The function itself is unchanged.

    A plain function works everywhere without this. A name that is built in stays with the built-in criterion, so that
    a baseline always is what it is called; pass your function itself in that case.

    Raises:
        ValueError: an argument without a default is neither a statistic nor `generator`.
    """
    name = function.__name__
    needs(function)
    taken = CRITERIA.get(name)
    if taken is not None and is_built_in(taken, __package__) and not is_built_in(function, __package__):
        warnings.warn(f"{name!r} is built in and keeps its name; pass your function itself", stacklevel=2)
    else:
        CRITERIA[name] = function
    return function


def find(answer: str | Criterion) -> Criterion:
    """The criterion of this name, or the function itself.

    Raises:
        ValueError: no criterion has this name. TypeError: it is neither a name nor a function.
    """
    return resolve("criterion", answer, CRITERIA)


def needs(function: Criterion) -> tuple[str, ...]:
    """Which statistics (and `generator`) a criterion asks for: its arguments without a default.

    Raises:
        ValueError: an argument is not known.
    """
    wanted = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(f"criterion {label(function)!r}: name the arguments; *{name} does not say what is needed")
        if parameter.default is not parameter.empty:
            continue
        if name not in STATISTICS and name not in OF_BLOCKS and name != "generator":
            raise unknown(f"argument of criterion {label(function)!r}:", name, [*STATISTICS, *OF_BLOCKS, "generator"])
        wanted.append(name)
    return tuple(wanted)


@dataclass(frozen=True)
class Scores:
    """The scores of one layer. Held as a tensor, or made piece by piece, so that they need not all exist at once.

    `pieces()` yields them flat and in order, `pieces(size)` so many at a time; `tensor()` gives them whole, shaped like
    the weight (or like the units), to be read only. Layers of one `kind` are alike (the "isomorphic" allocation).
    """

    name: str
    shape: torch.Size
    pieces: Callable[..., Iterator[Tensor]]
    made_by: str = "scores"
    kind: str = ""

    @classmethod
    def of(cls, name: str, tensor: Tensor, made_by: str = "scores", kind: str = "") -> "Scores":
        return cls(name, tensor.shape, lambda size=PIECE: iter(tensor.reshape(-1).split(size)), made_by, kind)

    def tensor(self) -> Tensor:
        return next(self.pieces(self.numel())).view(self.shape)

    def numel(self) -> int:
        return self.shape.numel()

    def reject_nan(self) -> None:
        """Raise a ValueError that names layer and criterion if a score is NaN."""
        if bad := sum(int(torch.isnan(piece).sum()) for piece in self.pieces()):
            raise ValueError(f"{self.made_by} gave NaN for {bad} of {self.numel()} weights of layer {self.name!r}")


@torch.no_grad()
def score(
    function: Criterion,
    name: str,
    statistics: Mapping[str, Tensor],
    generator: torch.Generator,
    *,
    of_filters: bool = False,
) -> Scores:
    """Apply a criterion to one layer.

    A criterion marked `elementwise` that asks for the weight alone is applied to pieces of it, when they are asked for.

    Args:
        function: the criterion.
        name: the layer, for errors.
        statistics: what was collected for it; must hold all that `needs(function)` names, and `weight`.
        generator: for criteria that draw.
        of_filters: whether one score for each output of the layer will do as well, as units that are cut out allow.

    Raises:
        ValueError: the weights or the scores are NaN somewhere, or the scores are of another shape than the weight.
        TypeError: the criterion returned no floating-point tensor.
    """
    weight = statistics["weight"]
    made_by = f"criterion {label(function)!r}"
    lazy = None
    if getattr(function, "elementwise", False) and needs(function) == ("weight",) and weight.is_contiguous():
        flat = weight.view(-1)
        lazy = Scores(
            name, weight.shape, lambda size=PIECE: (function(weight=piece) for piece in flat.split(size)), made_by
        )
        # A sum tells whether there can be a NaN at all, which is much cheaper than looking at each number.
        sums = (piece.sum() + scores.sum() for piece, scores in zip(flat.split(PIECE), lazy.pieces(), strict=True))
        if not any(torch.isnan(total) for total in sums):
            return lazy
    if torch.isnan(weight.sum()) and torch.isnan(weight).any():
        raise ValueError(f"the weights of layer {name!r} contain NaN; nothing was pruned")
    if lazy:
        lazy.reject_nan()
        return lazy
    known: dict[str, Any] = {**statistics}
    if "generator" in needs(function):
        # A stream of its own: with one seed for both, these would be the numbers that drew the first layer's weights.
        known["generator"] = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
    asked = {need: known[need] for need in needs(function)}
    for need in OF_MODELS & asked.keys():  # a criterion may work in place (`weight.abs_()`)
        asked[need] = asked[need].clone()
    scores = function(**asked)
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"{made_by} must return a floating-point tensor of scores for layer {name!r}, not {kind}")
    scores = scores.detach()  # they may be learned ones
    if scores.shape != weight.shape and not (of_filters and scores.shape == weight.shape[:1]):
        hint = " (it scores filters: use unit='channel')" if scores.shape == weight.shape[:1] else ""
        raise ValueError(
            f"{made_by} must return scores shaped {tuple(weight.shape)} for layer {name!r}, not "
            f"{tuple(scores.shape)}{hint}"
        )
    result = Scores.of(name, scores, made_by)
    result.reject_nan()
    return result
