"""Rate–distortion curves of a network: what each layer costs at each level, and what it does to the outputs."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from pruninglab import criteria, units
from pruninglab.allocation.rate_distortion import Solution, solve
from pruninglab.batches import Inputs
from pruninglab.channels import by_name, rank
from pruninglab.distortion import Floats, Probe
from pruninglab.graph import Graph
from pruninglab.ladders import Ladder, at_levels, channel_ladders, pattern_ladders, weight_ladders
from pruninglab.layers import Exclude, entries, prunable
from pruninglab.masks import Masks
from pruninglab.naming import unknown
from pruninglab.scoring import layer_scores
from pruninglab.statistics import Data, Loss
from pruninglab.structured import Question, first_sample, scored_channels
from pruninglab.units import Mixture, Structure

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Curves:
    """What `distortion_curves` found.

    Attributes:
        ladders: the levels of each layer, in the order of the model.
        distortion: layer → the distortion at each of its levels.
        positions: layer → how often each of its weights is used for one sample (1 in a linear layer, pixels or tokens
            elsewhere), so that kept weights × positions are the multiply–adds that are left.
    """

    ladders: tuple[Ladder, ...]
    distortion: dict[str, Floats]
    positions: dict[str, int]

    @property
    def kept(self) -> dict[str, Any]:
        """Layer → how many weights (or channels) each level leaves."""
        return {ladder.name: ladder.kept for ladder in self.ladders}

    def costs(self, cost: str = "kept") -> list[Any]:
        """What each level of each layer costs: "kept" weights (or channels), or "macs", the multiply–adds a sample.

        Raises:
            ValueError: another cost, or multiply–adds of channels (which depend on the neighbours' channels).
        """
        if cost == "kept":
            return [ladder.kept for ladder in self.ladders]
        if cost != "macs":
            raise unknown("cost", cost, ("kept", "macs"))
        if not self.positions:
            raise ValueError("multiply–adds of a layer depend on its neighbours' channels: use cost='kept'")
        return [ladder.kept * self.positions[ladder.name] for ladder in self.ladders]

    def total(self, cost: str = "kept") -> int:
        """What everything costs while nothing is pruned."""
        return int(sum(costs[0] for costs in self.costs(cost)))

    def solve(self, keep: float, cost: str = "kept", solver: str = "exact") -> Solution:
        """The levels with the least sum of distortions of which the cost is at most a fraction of `total(cost)`.

        Raises:
            ValueError: `keep` is not in (0, 1], or as `allocation.rate_distortion.solve` says.
        """
        if not 0 < keep <= 1:
            raise ValueError(f"keep is the fraction of {cost} that may stay, in (0, 1], not {keep}")
        costs = self.costs(cost)
        return solve(costs, list(self.distortion.values()), int(keep * self.total(cost) + 1e-6), solver)

    def at_random(self, keep: float, seed: int = 0) -> tuple[int, ...]:
        """Levels drawn at random that keep as near to a fraction of all weights as one shift of all of them comes.

        A layer's share removed is 1 / (1 + e^−z) with z normal; the same number is added to every z.
        """
        z = np.random.default_rng(seed).normal(scale=0.7, size=len(self.ladders))

        def levels(shift: float) -> tuple[int, ...]:
            gone = 1 / (1 + np.exp(-z - shift))
            return tuple(round((len(ladder.kept) - 1) * g) for ladder, g in zip(self.ladders, gone, strict=True))

        low, high = -20.0, 20.0
        for _ in range(40):
            middle = (low + high) / 2
            kept = sum(int(ladder.kept[k]) for ladder, k in zip(self.ladders, levels(middle), strict=True))
            low, high = (middle, high) if kept > keep * self.total() else (low, middle)
        return levels(high)

    def predicted(self, levels: Sequence[int]) -> float:
        """The sum of distortions at these levels: the true one, if those of the layers add up."""
        return float(sum(d[k] for d, k in zip(self.distortion.values(), levels, strict=True)))

    def masks(self, solution: Solution) -> Masks:
        """The masks of a choice of levels; they are not applied to anything."""
        return Masks(at_levels(self.ladders, solution.levels))

    def table(self, solution: Solution) -> "pd.DataFrame":
        """A row for each layer: how much of it stays and what it adds to the distortion."""
        import pandas as pd

        rows = [
            {
                "layer": ladder.name,
                "whole": int(ladder.kept[0]),
                "kept": int(ladder.kept[level]),
                "sparsity": 1 - ladder.kept[level] / ladder.kept[0],
                "distortion": self.distortion[ladder.name][level],
            }
            for ladder, level in zip(self.ladders, solution.levels, strict=True)
        ]
        return pd.DataFrame(rows)


def distortion_curves(
    model: nn.Module,
    data: Data,
    *,
    criterion: str | criteria.Criterion = "magnitude",
    levels: int | Iterable[float] = 101,
    aggregate: str = "mean",
    unit: str | Structure = "weight",
    method: str = "measured",
    loss: Loss | None = None,
    initial: nn.Module | Mapping[str, Tensor] | None = None,
    seed: int = 0,
    exclude: Exclude | Iterable[Exclude] = (),
    example_inputs: Inputs | Graph | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> Curves:
    """For each layer the expected squared change of the network's output when that layer alone is pruned to each level.

    Args:
        model: any module that returns a tensor, or something with `logits`; it is left as it was, also after an error.
        data: calibration data as in `prune`. Labels matter only if the criterion asks for gradients; with no data at
            hand, noise of the inputs' shape does (`torch.randn(256, 1, 8, 8)`).
        criterion: decides which weights of a layer go first.
        levels: how many equal steps from 0 to 1, or rising fractions that begin with 0. Only for single weights; N:M
            has M levels, and channels have theirs.
        aggregate: over samples: "mean", or "max", the worst case (which does not add up over layers: the largest sum
            is at most the sum of the largest).
        unit: "weight"; "n:M" such as "n:4" (N of every 4 for N = 4 … 1); "channel", "head" or a `units.structure`.
        method: "measured" runs the network at every level, from the pruned layer on; "gauss_newton" follows the
            outputs' first derivative along the path of pruning, for all levels in one pass; "diagonal" does so for each
            weight by itself. The last two are for weights and N:M.
        loss: as in `prune`, for criteria that ask for gradients.
        initial: as in `prune`.
        seed: for criteria that draw, and for Gauss–Newton's random signs.
        exclude: as in `prune`.
        example_inputs: as in `prune`, for channels.
        resume: a file that holds the curves measured so far, so that an interrupted measurement goes on.

    Raises:
        ValueError: no or empty data, bad levels, an unknown name, outputs that are no tensor or not finite, a layer
            that the model never runs, or a `resume` file of another measurement.
    """
    function, shape, exclude = criteria.find(criterion), units.find(unit), entries(exclude)
    data = list(data) if isinstance(data, Iterator) else data  # they are read more than once
    positions: dict[str, int] = {}
    if isinstance(shape, Structure):
        question = Question(function, data, loss, initial, seed, exclude)
        traced: Any = first_sample(data, model) if example_inputs is None else example_inputs
        graph, scores, families = scored_channels(model, shape, traced, question)
        rankings = by_name([rank(family, scores, replace(shape, multiple_of=1)) for family in families])
        ladders = channel_ladders(model, graph, rankings)
    elif shape is None or isinstance(shape, Mixture):
        layers, given = prunable(model, exclude), {"loss": loss, "initial": initial, "seed": seed, "exclude": exclude}
        ranked = layer_scores(model, layers, function, data, **given)  # type: ignore[arg-type]
        ladders = weight_ladders(ranked, levels) if shape is None else pattern_ladders(ranked, shape.m)
    else:
        raise ValueError(f"curves are known for 'weight', 'n:M', 'channel' and 'head', not {unit!r}")
    probe = Probe(model, data, resume)
    if not isinstance(shape, Structure):
        positions = probe.positions([ladder.name for ladder in ladders])
    found = probe.curves(ladders, aggregate=aggregate, method=method, seed=seed)
    names = [ladder.name for ladder in ladders]
    return Curves(tuple(ladders), dict(zip(names, found, strict=True)), positions)
