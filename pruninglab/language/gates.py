"""Gates on heads and neurons: numbers from 0 to 1 that what a structure says is multiplied by, to be learned.

    with gated(model, parts, gates):
        loss = task.loss(model(x), y)

A gate stands where its structure is read, at the inputs of the layer that writes into the stream. A closed one is as
good as a structure cut out, and any other can be folded into the columns of that layer.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from pruninglab.language.structures import Part

LOW, HIGH = -0.1, 1.1  # γ and ζ: a gate is stretched to this range, and what lies outside [0, 1] is cut off
BETA = 2 / 3  # temperature


@contextmanager
def gated(model: nn.Module, parts: Sequence[Part], gates: Sequence[Tensor]) -> Iterator[None]:
    """While the block runs, the readers of these parts get their inputs times the gates. Gates may need gradients.

    Args:
        model: a language model, or something around it such as `Adapted(model)`'s `model`.
        parts: what `structures.find_parts` found.
        gates: (structures,) for each part.

    Raises:
        ValueError: not one gate for each structure.
    """
    handles = []
    try:
        for part, own in zip(parts, gates, strict=True):
            reader = model.get_submodule(part.reader.removesuffix(".weight"))
            width = model.get_parameter(part.reader).shape[1]
            handles.append(reader.register_forward_pre_hook(partial(_times, columns_of(part, own, width))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _times(factors: Tensor, _reader: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
    (x,) = args
    return x * factors.to(x.dtype)


def columns_of(part: Part, gates: Tensor, width: int) -> Tensor:
    """The gate of each of the reader's inputs, (width,); 1 for an input that belongs to no structure.

    Raises:
        ValueError: not one gate for each structure.
    """
    if gates.shape != (len(part.cells),):
        raise ValueError(f"the {part.kind} of {part.block} need ({len(part.cells)},) gates, not {tuple(gates.shape)}")
    places = part.columns.reshape(-1).to(gates.device)
    return gates.new_ones(width).index_copy(0, places, gates.repeat_interleave(part.columns.shape[1]))


@torch.no_grad()
def fold(model: nn.Module, parts: Sequence[Part], gates: Sequence[Tensor]) -> None:
    """Multiply the readers' columns by the gates: the model then says without gates what it said with them."""
    for part, own in zip(parts, gates, strict=True):
        weight = model.get_parameter(part.reader)
        weight.mul_(columns_of(part, own.to(weight.device), weight.shape[1]).to(weight.dtype))


def share(parts: Sequence[Part], gates: Sequence[Tensor]) -> Tensor:
    """Which fraction of the parts' parameters gates of 0 and 1 leave; of probabilities, the fraction expected."""
    left = sum((part.cost * own.sum() for part, own in zip(parts, gates, strict=True)), torch.zeros(()))
    return left / sum(part.cost * len(part.cells) for part in parts)


# ── hard concrete gates (Louizos et al. 2018) ─────────────────────────────────────────────────────────────────────


def sample(log_alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Gates drawn at random, with gradients: z = min(1, max(0, (ζ − γ) σ((log u − log(1 − u) + log α) / β) + γ)).

    u is uniform on (0, 1) (eq. 10 and 11). A gate is exactly 0, or exactly 1, with a probability of its own for each.

    Args:
        log_alpha: of any shape; the higher, the more open.
        generator: where u comes from.
    """
    u = torch.rand(log_alpha.shape, generator=generator, dtype=torch.float64)
    noise = torch.logit(u, eps=1e-9).to(log_alpha)
    return stretched(torch.sigmoid((noise + log_alpha) / BETA))


def stretched(s: Tensor) -> Tensor:
    """(ζ − γ) s + γ, cut off at 0 and 1."""
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def chance_open(log_alpha: Tensor) -> Tensor:
    """P(z > 0) = σ(log α − β log(−γ / ζ)) of such gates (eq. 12)."""
    return torch.sigmoid(log_alpha - BETA * math.log(-LOW / HIGH))


def settled(log_alpha: Tensor) -> Tensor:
    """What to put for a gate when nothing is drawn any more: min(1, max(0, (ζ − γ) σ(log α) + γ)) (eq. 13)."""
    return stretched(torch.sigmoid(log_alpha))
