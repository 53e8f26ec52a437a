"""Criteria that look at the weights alone."""

import torch
from torch import Tensor

from pruninglab.criteria.base import criterion


@criterion
def random(weight: Tensor, generator: torch.Generator) -> Tensor:
    """A uniform random score: the baseline that every other criterion has to beat."""
    return torch.rand(weight.shape, generator=generator).to(weight.device)


@criterion
def magnitude(weight: Tensor) -> Tensor:
    """|w|: small weights matter least (Janowsky 1989; Han et al. 2015)."""
    return weight.abs()


# Each score depends on its own weight only, so the library may ask for them piece by piece.
magnitude.elementwise = True  # type: ignore[attr-defined]
