"""FLAP's two ideas: a score for what hardly changes, and a bias that says its mean (An et al. 2024).

What a head or neuron feeds into its reader is a mean and a fluctuation around it. The mean can go into the reader's
bias for good, so only the fluctuation is lost.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruninglab.language.structures import Part, standardized


def fluctuation(weight: Tensor, input_var: Tensor) -> Tensor:
    """Var(x_j) · w_ij², shaped like the weight: summed over a column it is Var(x_j) ‖W_:j‖₂² (An et al. 2024, WIFV).

    The criterion to judge inputs by: the mean square of what the outputs lose, if they keep the input's mean.
    """
    return weight.square() * input_var


def head_scores(columns: Sequence[Tensor]) -> list[Tensor]:
    """For each part one score for each structure: its columns' scores, standardised over the part, then the mean.

    Standardised, the scores of unlike blocks and kinds can compete with each other.

    Args:
        columns: (structures, columns of each) for each part, as `structures.reader_scores` gives them.

    Returns:
        (structures,) for each part.
    """
    return [standardized(own).mean(1) for own in columns]


@torch.no_grad()
def compensate(
    model: nn.Module, parts: Sequence[Part], gone: Sequence[Tensor], means: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Add Σ_j W_:j μ_j over the inputs j that go to each reader's bias, and return what was added, by reader.

    A reader without a bias gets one, here: the model has parameters more than before. To be called while the weights
    are still whole.

    Args:
        model: a language model; changed in place.
        parts: what `structures.find_parts` found.
        gone: (structures,) bool for each part.
        means: reader → μ, the mean of its inputs, of any shape with so many numbers.
    """
    added = {}
    for part, removed in zip(parts, gone, strict=True):
        path = part.reader.removesuffix(".weight")
        layer: Any = model.get_submodule(path)
        weight = layer.weight
        columns = part.columns[removed].reshape(-1).to(weight.device)
        mean = means[part.reader].reshape(-1).to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        more = (weight[:, columns].to(mean.dtype) @ mean[columns]).to(weight.dtype)
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(more), weight.requires_grad)
        layer.bias.add_(more)
        added[part.reader] = more
    return added
