"""What a model puts out, as one matrix, and how far two such matrices are apart."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pruninglab.naming import lookup

AGGREGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": partial(torch.sum, dim=0),
    "max": partial(torch.amax, dim=0),
}


def outputs(result: Any) -> Tensor:
    """What a model returned as one (samples, outputs) tensor of at least float32: a tensor, or its `logits`.

    Raises:
        ValueError: it is neither, or not finite.
    """
    tensor = getattr(result, "logits", result)
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or not tensor.ndim:
        raise ValueError(f"distortion needs outputs that are a tensor (or have .logits), not {type(result).__name__}")
    if not tensor.isfinite().all():
        raise ValueError("the model's outputs are not finite: distortion cannot be measured")
    return tensor.flatten(1).to(torch.promote_types(tensor.dtype, torch.float32))


def per_sample(y: Tensor, was: Tensor) -> Tensor:
    """The mean squared change of the outputs of each sample, (samples,) float64."""
    return (y - was).square().mean(1).double()


def aggregator(name: str) -> Callable[[Tensor], Tensor]:
    """How distortions of samples become one, (n, …) → (…): summed (to be divided by their number) or the largest."""
    return lookup("aggregate", name, AGGREGATES)


def over_samples(parts: Tensor, aggregate: str, samples: int) -> Tensor:
    """The distortion over all samples, (n, …) → (…), from that of each, or of each batch as its `aggregator` has it."""
    whole = aggregator(aggregate)(parts)
    return whole / samples if aggregate == "mean" else whole
