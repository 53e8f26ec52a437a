"""From a criterion to the scores of a model's layers: collect what it names, then ask it about each layer."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pruninglab import criteria
from pruninglab.criteria import Scores
from pruninglab.layers import Exclude, Layer
from pruninglab.naming import whole
from pruninglab.statistics import Data, Loss, collect


def layer_scores(
    model: nn.Module,
    layers: Mapping[str, Layer],
    criterion: criteria.Criterion,
    data: Data | None = None,
    *,
    loss: Loss | None = None,
    initial: nn.Module | Mapping[str, Tensor] | None = None,
    seed: int | torch.Generator = 0,
    exclude: Exclude | Iterable[Exclude] = (),
) -> dict[str, Scores]:
    """The criterion's scores of each layer of `prunable(model, exclude)`; arguments and errors as in `prune`."""
    generator = generator_of(seed)
    wanted = dict.fromkeys(["weight", *(name for name in criteria.needs(criterion) if name != "generator")])
    found = collect(model, wanted, data, loss=loss, initial=initial, exclude=exclude)
    return {name: criteria.score(criterion, name, found[name], generator) for name in layers}


def generator_of(seed: int | torch.Generator) -> torch.Generator:
    """A generator as it is, or a new one with this seed.

    Raises:
        TypeError: it is neither.
    """
    return seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(whole("seed", seed))
