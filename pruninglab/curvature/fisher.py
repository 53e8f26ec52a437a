"""The empirical Fisher, block by block: gradients of single samples for the weights that are asked for, and no others.

F = 1/N Σₙ gₙ gₙᵀ stands in for the Hessian of the loss: it needs first derivatives alone, and is never indefinite. A
whole network's would have a row for each weight, so it is only ever made for a block of them.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruninglab.batches import batches, length
from pruninglab.layers import Exclude, Layer, prunable
from pruninglab.naming import lookup
from pruninglab.recording import observed, recording, requiring_grad
from pruninglab.statistics import PIECE, Data, Loss, cross_entropy, reject_silent, run, statistic

BLOCK = 64  # weights of a row that are inverted together
DAMPING = 1e-2  # as a fraction of the layer's mean squared gradient


@dataclass(frozen=True)
class Gradients:
    """Gradients of a pass over data: the mean of each layer, and those of single samples as far as they are asked for.

    Attributes:
        mean: parameter name → gradient of the mean loss, shaped like the weight.
        samples: how many there are.
    """

    mean: dict[str, Tensor]
    samples: int
    _layers: dict[str, Layer]
    _rows: dict[str, list[tuple[Tensor, Tensor]]]

    def of(self, name: str, index: Tensor) -> Tensor:
        """∂ℓₙ/∂w of each sample n for some weights of a layer, (samples, weights).

        The gradient of one weight is Σₜ gₙₜₒ xₙₜᵢ over the positions t: what came back to its output times what went
        into its input.

        Args:
            name: the layer.
            index: (weights,) whole numbers, places in the flattened weight.

        Raises:
            ValueError: a layer that was not recorded, or an index that is not a list of places in it.
        """
        layer = lookup("layer", name, self._layers)
        size = layer.weight.numel()
        if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool:
            raise ValueError(
                f"index must be a vector of whole numbers, not {index.dtype} of shape {tuple(index.shape)}"
            )
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < size:
            raise ValueError(f"index runs from {int(index.min())} to {int(index.max())}; {name} has {size} weights")
        outputs, inputs = len(layer.weight), layer.weight[0].numel()
        row, column = index // inputs, index % inputs
        parts = []
        for x, g in self._rows[name]:
            width = outputs // len(x)  # outputs of a group
            group, output = row // width, row % width
            step = max(1, PIECE // (x.shape[1] * x.shape[2]))
            pieces = [
                (x[group[at], :, :, column[at]] * g[group[at], :, :, output[at]]).sum(2)
                for at in torch.arange(len(index), device=x.device).split(step)
            ]
            parts.append(torch.cat(pieces).mT if len(index) else x.new_zeros(x.shape[1], 0))
        return torch.cat(parts)


def gradients(
    model: nn.Module,
    data: Data,
    *,
    loss: Loss | None = None,
    only: Iterable[str] | None = None,
    exclude: Exclude | Iterable[Exclude] = (),
) -> Gradients:
    """One forward and one backward pass, after which `.mean` is there and single samples can be asked for.

    In evaluation mode; the model is afterwards as it was. Memory holds the inputs and output gradients of the layers.

    Args:
        model: any module.
        data: as in `collect`, with labels.
        loss: as in `collect`.
        only: names of the layers to look at; all prunable ones if not given.
        exclude: as in `prune`.

    Raises:
        ValueError: an unknown layer, data that are empty or without labels, a loss that is not one number, or a layer
            that the model never called or not with the samples first.
    """
    layers = prunable(model, exclude)
    if only is not None:
        layers = {name: lookup("layer", name, layers) for name in only}
    weights = [layer.weight for layer in layers.values()]
    means = [torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32)) for w in weights]
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    samples = 0
    with ExitStack() as undo:
        undo.enter_context(observed(model))
        recorders = undo.enter_context(recording(model, layers))
        undo.enter_context(requiring_grad(weights))
        for x, y in batches(data):
            n = length(x, "inputs")
            grads: list[Any] = run(model, x, y, weights, loss or cross_entropy, True)
            reject_silent(recorders)
            for mean, grad in zip(means, grads, strict=True):
                mean.add_(grad, alpha=n)
            for name, recorder in recorders.items():
                taken = recorder.take(n, {"inputs", "output_grads"})
                rows[name].append((taken["inputs"], taken["output_grads"]))
            samples += n
    if not samples:
        raise ValueError("the calibration data are empty: not one sample to take a gradient of")
    return Gradients({name: m / samples for name, m in zip(layers, means, strict=True)}, samples, layers, rows)


def sample_grads(
    model: nn.Module, data: Data, blocks: Mapping[str, Tensor], *, loss: Loss | None = None
) -> dict[str, Tensor]:
    """∂ℓₙ/∂w of each sample for blocks of weights: parameter name → (samples, weights of the block).

    Args:
        model: any module.
        data: as in `collect`, with labels.
        blocks: parameter name → places in the flattened weight, (weights,) whole numbers.
        loss: as in `collect`.

    Raises:
        ValueError: as `gradients` and `Gradients.of` say.
    """
    found = gradients(model, data, loss=loss, only=blocks)
    return {name: found.of(name, index) for name, index in blocks.items()}


def fisher_of(grads: Tensor) -> Tensor:
    """F = 1/N Σₙ gₙ gₙᵀ from gradients of single samples, (N, n) → (n, n). Its rank is at most N."""
    return grads.mT @ grads / len(grads)


def fisher_inverse(grads: Tensor, damp: float = DAMPING) -> Tensor:
    """(F + λI)⁻¹, built up sample by sample without inverting anything (WoodFisher, Singh & Alistarh 2020).

    By the formula of Sherman and Morrison a sample turns the inverse A into A − (A g)(A g)ᵀ / (N + gᵀA g); A starts as
    I/λ. The paper's λ is a number; here it is a fraction of the mean squared gradient, so that scale does not matter.

    Args:
        grads: gradients of single samples, (N, n).
        damp: λ as a fraction of the mean of the gradients' squares (a number where all of them are 0). With fewer
            samples than weights F is singular, so that it has to be damped. 0 is possible where F has an inverse.

    Returns:
        (n, n), in float64.

    Raises:
        ValueError: no samples, damp negative, or damp 0 and F singular.
    """
    if grads.ndim != 2 or not grads.numel():
        raise ValueError(f"gradients of single samples are (samples, weights), not {tuple(grads.shape)}")
    if not damp >= 0:
        raise ValueError(f"damp must be 0 or more, not {damp}")
    g = grads.double()
    samples, n = g.shape
    if damp == 0:  # the recursion has nowhere to start from
        rank = int(torch.linalg.matrix_rank(g))
        if rank < n:
            raise ValueError(
                f"the Fisher of {n} weights from {samples} samples has rank {rank}: it is singular and has no inverse "
                "without damping (damp > 0)"
            )
        return torch.linalg.inv(fisher_of(g))
    size = float(g.square().mean())
    inverse = torch.eye(n, dtype=g.dtype, device=g.device) / (damp * (size or 1.0))
    for sample in g:
        turned = inverse @ sample
        inverse -= torch.outer(turned, turned / (samples + sample @ turned))
    return inverse


# ── the inverse's diagonal for whole layers ───────────────────────────────────────────────────────────────────────


def _inverse_diagonal(total: Tensor, samples: int, layer: Layer) -> Tensor:
    """[(F + λI)⁻¹]_ii from the sum of block-wise products, shaped like the weight."""
    size = total.diagonal(dim1=-2, dim2=-1).sum() / samples / layer.weight.numel()
    ridge = DAMPING * (size if size > 0 else 1.0) * torch.eye(total.shape[-1], dtype=torch.float64, device=total.device)
    step = max(1, PIECE // total.shape[-1] ** 2)
    found = [torch.linalg.inv(part.double() / samples + ridge).diagonal(dim1=1, dim2=2) for part in total.split(step)]
    rows = torch.cat(found).reshape(len(layer.weight), -1)  # ends of rows that blocks overshoot are cut off
    return rows[:, : layer.weight[0].numel()].reshape(layer.weight.shape)


@statistic(finish=_inverse_diagonal)
def fisher_inverse_diagonal(inputs: Tensor, output_grads: Tensor, layer: Layer) -> Tensor:
    """[(F + λI)⁻¹]_ii, with F the empirical Fisher of each 64 neighbours in a row; shaped like the weight.

    Blocks along a row, as in WoodFisher (Singh & Alistarh 2020); a row is all that feeds one output. A Fisher from
    fewer samples than weights is singular, so it is always damped: λ is a hundredth of the layer's mean squared
    gradient. Memory holds 64 numbers for each weight.
    """
    inputs, output_grads = inputs.double(), output_grads.double()
    d = inputs.shape[-1]
    block = min(BLOCK, d)
    missing = -d % block
    step = max(1, PIECE // ((d + missing) * len(layer.weight)))
    total = inputs.new_zeros(len(layer.weight) * (d + missing) // block, block, block)
    for x, g in zip(inputs.split(step, 1), output_grads.split(step, 1), strict=True):
        grads = F.pad((g.mT @ x).transpose(0, 1), (0, missing))  # (samples, groups, outputs, inputs)
        blocks = grads.reshape(len(grads), -1, block).transpose(0, 1)
        total += blocks.mT @ blocks
    return total
