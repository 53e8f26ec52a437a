"""OBSPA: remove channels so that what reads them loses least, and repair it in closed form (Wang et al. 2024).

No fine-tuning, and hardly any data: the inputs that tell how channels depend on each other may be noise. A layer's
outputs are to stay as they are, which the optimal brain surgeon solves exactly (see `surgeon`). That importance is
normalised within each layer before it is added up is from the paper as remembered; its text was not at hand.
"""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from pruninglab.allocation import Allocation
from pruninglab.graph import trace
from pruninglab.layers import Layer, prunable
from pruninglab.masks import Masks
from pruninglab.naming import unknown
from pruninglab.pruning import prune
from pruninglab.recipes.inner import at, readers
from pruninglab.recipes.surgeon import damped, obs_update, removal_order
from pruninglab.slimmed import recalibrate
from pruninglab.statistics import collect, statistic
from pruninglab.surgery import emptied
from pruninglab.tasks import Task
from pruninglab.units import structure

SAMPLES = 1024  # how many are used, drawn from the training data or of noise


@statistic(finish=lambda total, positions: total / positions)
def input_moments(inputs: Tensor, layer: Layer) -> Tensor:
    """Mean of x xᵀ over samples and positions, (g, d, d); with a bias d counts one input more, which is always 1."""
    x = inputs.flatten(1, 2)
    if layer.bias is not None:
        x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    return x.mT @ x


def obs_order(weight: Tensor, input_moments: Tensor, damping: float = 1e-2) -> Tensor:
    """The criterion: an input channel is worth the more, the later the surgeon would remove it.

    Only inputs are judged: a channel's score is spread evenly over its weights, so that rows (outputs) are all alike.
    """
    groups, channels, inputs = len(input_moments), weight.shape[1], weight[0].numel()
    hessians = damped(input_moments.double(), inputs, damping)
    scores = []
    for matrix, hessian in zip(weight.double().reshape(groups, -1, inputs), hessians, strict=True):
        constant = matrix.new_zeros(len(matrix), len(hessian) - inputs)
        order = removal_order(torch.cat([matrix, constant], 1), hessian, channels)
        scores.append(order.repeat_interleave(inputs // channels).expand(matrix.shape))
    return torch.stack(scores).reshape(weight.shape).to(weight.dtype)


def obspa(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    data: Tensor | str | None = None,
    damping: float = 1e-2,
    allocation: str | Allocation = "uniform",
    seed: int = 0,
) -> Masks:
    """Remove channels of a trained network and repair what is left in closed form, layer after layer. No training.

    Args:
        model: a trained network; changed in place.
        task: for its training inputs, of which 1,024 are used (no labels), or for their shape.
        sparsity: the fraction of channels to remove, in [0, 1).
        data: other inputs to calibrate with, samples first; "noise" for Gaussian noise, which needs no data at all.
        damping: λ as a fraction of the mean square of a layer's inputs.
        allocation: "uniform" (each layer loses the same fraction), "global" or "isomorphic".
        seed: which samples are drawn, or which noise.

    Returns:
        The masks, applied.

    Raises:
        ValueError: a budget or damping out of range, or data that are neither inputs nor "noise".
    """
    if not damping > 0:
        raise ValueError(f"damping must be positive, not {damping}")
    x = inputs_of(task, data, seed).to(next(model.parameters()).device)
    graph = trace(model, x[:1])
    unit = structure("channel", multiple_of=1, normalize="mean")
    asked = {"criterion": partial(obs_order, damping=damping), "data": x, "example_inputs": x[:1], "seed": seed}
    masks = prune(copy.deepcopy(model), unit=unit, sparsity=sparsity, allocation=allocation, **asked)  # type: ignore[arg-type]
    if masks.kept() == masks.total():
        masks.apply(model)
        return masks
    removed = emptied(model, masks, graph).double()
    for name, columns in readers(graph, model).items():
        gone = at(removed, columns, none=0.0) > 0
        if gone.any():  # what goes still speaks here: its rows are emptied when all who read it are repaired
            repair(model, name, gone, x, damping)
    masks.apply(model)
    recalibrate(model, x)
    return masks


@torch.no_grad()
def repair(model: nn.Module, name: str, gone: Tensor, x: Tensor, damping: float) -> None:
    """Let one layer do without some of its input channels, (groups, channels of a group) bool."""
    layers = prunable(model)
    layer = layers.pop(name)
    moments = collect(model, ["input_moments"], x, exclude=list(layers.values()))[name]["input_moments"]
    groups, inputs, positions = len(gone), layer.weight[0].numel(), layer.weight[0, 0].numel()
    whole = layer.weight.reshape(groups, -1, inputs).double()
    columns = gone.to(whole.device).repeat_interleave(positions, 1)
    if layer.bias is not None:  # the weight of an input that is always 1, which stays
        whole = torch.cat([whole, layer.bias.reshape(groups, -1, 1).double()], 2)
        columns = torch.cat([columns, torch.zeros_like(columns[:, :1])], 1)
    hessians = damped(moments.double(), inputs, damping)
    fresh = torch.stack([obs_update(*group) for group in zip(whole, hessians, columns, strict=True)])
    layer.weight.copy_(fresh[..., :inputs].reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(fresh[..., -1].reshape(-1))


def inputs_of(task: Task, data: Tensor | str | None, seed: int) -> Tensor:
    """Calibration inputs: the task's own, those given, or noise. Raises as `obspa` says."""
    known = task.data["train"][0]
    if data is None:
        return task.calibration(min(SAMPLES, len(known)), seed)[0]
    if isinstance(data, Tensor):
        if not len(data):
            raise ValueError("the calibration data are empty")
        return data
    if data != "noise":
        raise unknown("calibration data", data, ["noise"])
    return torch.randn(SAMPLES, *known.shape[1:], generator=torch.Generator().manual_seed(seed))
