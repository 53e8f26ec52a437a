"""How much from where? An allocation says who competes with whom, and for how many places.

It is a function `(scores, keep, **options) -> {who: places}`: `scores` are the layers' `Scores`, `keep` is how many
weights stay in all, and `who` is a layer, or a tuple of layers that compete for the places together.
Places add up to `keep`. It picks no single weight: `threshold.top_masks` does.

One that must measure names what it measures with: `probe` (a `distortion.Probe` of the model and the data) and
`ladders` (a function that makes the levels of each layer); `prune` hands these in by `with_means`.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from pruninglab.allocation import rate_distortion
from pruninglab.allocation.simple import BudgetError, erk, global_, isomorphic, lamp, uniform
from pruninglab.criteria import Scores
from pruninglab.naming import resolve

Places = Mapping[str, int] | Mapping[tuple[str, ...], int]
Allocation = Callable[..., Places]

ALLOCATIONS: dict[str, Allocation] = {
    "uniform": uniform,
    "global": global_,
    "isomorphic": isomorphic,
    "erk": erk,
    "lamp": lamp,
    "rate_distortion": rate_distortion.rate_distortion,
}


def find(answer: str | Allocation) -> Allocation:
    """The allocation of this name, or the function itself.

    Raises:
        ValueError: no allocation has this name. TypeError: it is neither a name nor a function.
    """
    return resolve("allocation", answer, ALLOCATIONS)


def measures(answer: str | Allocation) -> bool:
    """Whether an allocation measures the model, and so needs data."""
    return "probe" in inspect.signature(find(answer)).parameters


def with_means(answer: str | Allocation, model: nn.Module, data: Any, ladders: Callable[[Any], Any]) -> Allocation:
    """The allocation with what it names to measure with (see above), if it measures.

    Raises:
        ValueError: it measures, but there are no data.
    """
    function = find(answer)
    if not measures(function):
        return function
    from pruninglab.distortion import Probe

    means = {"probe": Probe(model, data), "ladders": ladders}
    named = means.keys() & inspect.signature(function).parameters.keys()
    return partial(function, **{name: means[name] for name in named})


def allocate(answer: str | Allocation, scores: Mapping[str, Scores], keep: int) -> dict[tuple[str, ...], int]:
    """Ask an allocation, and check what it says.

    Returns:
        Tuples of layers that compete → how many weights they keep together.

    Raises:
        ValueError: the places name a layer twice, miss one, do not fit it, or do not add up to `keep`.
    """
    places = {(who,) if isinstance(who, str) else tuple(who): n for who, n in find(answer)(scores, keep).items()}
    named = sorted(name for who in places for name in who)
    if named != sorted(scores):
        raise ValueError(f"an allocation must name each layer once: {sorted(scores)}, not {named}")
    for who, n in places.items():
        if not 0 <= n <= sum(scores[name].numel() for name in who):
            raise ValueError(f"the allocation gives {n} places to {', '.join(who)}: not possible")
    if sum(places.values()) != keep:
        raise ValueError(f"the allocation gives {sum(places.values())} places, {keep} were to be given")
    return places


__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "BudgetError",
    "Places",
    "allocate",
    "erk",
    "find",
    "global_",
    "isomorphic",
    "lamp",
    "measures",
    "rate_distortion",
    "uniform",
    "with_means",
]
