"""Distortion curves without pruning anything: the outputs' first derivative is asked instead (Gauss–Newton).

To first order, removing weights moves the outputs by J Δ with Δ = −w where a weight goes. Then ‖J Δ‖² / outputs is the
distortion. A backward pass from v · f(x) gives vᵀJ for each sample, and summing vᵀJ · (−w) over the weights in the
order in which they go gives vᵀJ Δ for all levels at once. With one v for each output that is exact; with random signs
it is so on average, since E (vᵀ J Δ)² = ‖J Δ‖².
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruninglab.batches import batches, call, length
from pruninglab.ladders import Ladder
from pruninglab.layers import Layer, prunable
from pruninglab.outputs import outputs, over_samples
from pruninglab.progress import progress
from pruninglab.recording import observed, recording
from pruninglab.statistics import PIECE, Data, reject_silent

PROBES = 16  # more outputs than this are not asked one by one, but so many times all together, with random signs


def gauss_newton(
    model: nn.Module,
    ladders: Sequence[Ladder],
    data: Data,
    reference: Sequence[Tensor] | None = None,
    *,
    aggregate: str = "mean",
    diagonal: bool = False,
    probes: int = PROBES,
    seed: int = 0,
) -> list[NDArray[np.float64]]:
    """For each ladder the distortion at each level, to first order in what is removed.

    Args:
        model: any module that returns a tensor, or something with `logits`; it is left as it was.
        ladders: of weights or of N:M.
        data: calibration data; labels are ignored.
        reference: the outputs that distortion is measured against, (samples, outputs) for each batch; the model's own
            if not given.
        aggregate: over samples: "mean" or "max".
        diagonal: leave out what weights of one layer do together, Σ wᵢ² ‖Jᵢ‖² (the diagonal of the Fisher matrix of a
            Gaussian; optimal brain damage on the outputs). What `reference` is off already is only added to it.
        probes: how many backward passes at most for each batch.
        seed: of the random signs.

    Raises:
        ValueError: a ladder is not of one layer's weight.
    """
    layers = prunable(model)
    for ladder in ladders:
        if list(ladder.removed_at) != [ladder.name] or ladder.name not in layers:
            raise ValueError(f"Gauss–Newton curves are for layers' weights; {ladder.name!r} is something else")
    own = {ladder.name: layers[ladder.name] for ladder in ladders}
    generator = torch.Generator().manual_seed(seed)
    found: list[list[Tensor]] = [[] for _ in ladders]  # per batch: (samples, levels)
    with observed(model, gradients=True), torch.enable_grad(), recording(model, own) as recorders:
        for b, (x, _) in enumerate(progress(batches(data), desc="Gauss–Newton", unit="batch")):
            n, y = length(x, "inputs"), outputs(call(model, x))
            off = torch.zeros_like(y) if reference is None else y.detach() - reference[b]
            reject_silent(recorders)
            calls = {name: list(recorder.calls) for name, recorder in recorders.items()}
            inputs = {name: recorder.take(n, {"inputs"})["inputs"] for name, recorder in recorders.items()}
            directions = _directions(y.shape[1], probes, generator)
            squares = [torch.zeros(n, len(ladder.kept), dtype=torch.float64) for ladder in ladders]
            for v in directions.to(y):
                weights = [layer.weight for layer in own.values()]
                torch.autograd.grad((y @ v).sum(), weights, retain_graph=True, allow_unused=True)
                for square, ladder in zip(squares, ladders, strict=True):
                    recorder = recorders[ladder.name]
                    recorder.calls = list(calls[ladder.name])
                    grads = recorder.take(n, {"output_grads"})["output_grads"] / n  # of the sum, not of the mean
                    moved = _moved(own[ladder.name], ladder, inputs[ladder.name], grads, diagonal)
                    before = (off @ v).double().cpu()[:, None]
                    square += moved + before.square() if diagonal else (moved + before).square()
            for parts, square in zip(found, squares, strict=True):
                parts.append(square / y.shape[1])
            for recorder in recorders.values():
                recorder.calls.clear()
    curves = [torch.cat(parts) for parts in found]
    return [over_samples(curve, aggregate, len(curve)).numpy() for curve in curves]


def _directions(width: int, probes: int, generator: torch.Generator) -> Tensor:
    """What the outputs are multiplied with: each output alone, or random signs such that E Σ v vᵀ = 1."""
    if width <= probes:
        return torch.eye(width)
    return (torch.randint(0, 2, (probes, width), generator=generator) * 2.0 - 1) / probes**0.5


def _moved(layer: Layer, ladder: Ladder, inputs: Tensor, grads: Tensor, diagonal: bool) -> Tensor:
    """vᵀ J Δ of each sample at each level, (samples, levels) float64; the sum of its squared parts if asked.

    Args:
        layer: the layer.
        ladder: its levels.
        inputs: (g, n, t, d).
        grads: vᵀ times the derivative by the layer's outputs, (g, n, t, o).
        diagonal: whether weights are taken one by one.
    """
    weight = layer.weight.detach().flatten()  # what is gone already is zero
    levels = ladder.removed_at[ladder.name].flatten().to(weight.device, torch.int64)
    step, shares = max(1, PIECE // len(weight)), []
    for a, g in zip(inputs.split(step, 1), grads.split(step, 1), strict=True):
        moves = (g.mT @ a).movedim(1, 0).reshape(a.shape[1], -1) * -weight  # (samples, weights)
        bins = moves.new_zeros(len(moves), len(ladder.kept) + 1)
        bins.index_add_(1, levels, moves.square() if diagonal else moves)
        shares.append(bins[:, :-1].double().cumsum(1).cpu())
    return torch.cat(shares)
