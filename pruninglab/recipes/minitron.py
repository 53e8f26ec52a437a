"""Minitron: cut heads, neurons and blocks by how active they are, and let the whole model teach the rest (Muralidharan
et al. 2024).

Activations cost forward passes alone. What heals is distillation from the model's own state before: the paper finds its
logits enough where the depth stays, and drops the labels. Its term for hidden states, which is for much shallower
students, and the search among many shapes are left out; so is the width of the stream.
"""

import copy
from functools import partial

from torch import Tensor, nn

from pruninglab.language.blocks import find_blocks
from pruninglab.language.depth import drop_blocks, influences
from pruninglab.language.structures import cut_parts, find_parts, reader_scores
from pruninglab.layers import Layer, like_weight
from pruninglab.masks import Masks
from pruninglab.naming import resolve, whole
from pruninglab.recovery import RECOVERIES, Recovery, distill
from pruninglab.statistics import statistic
from pruninglab.tasks import Task


@statistic(finish=lambda total: total.sqrt())
def input_activity(inputs: Tensor, layer: Layer) -> Tensor:
    """√Σ_n (mean_t |x_ntj|)²: the mean size of each input over a sample's positions, ℓ2 over samples (Minitron).

    Broadcasts against the weight.
    """
    return like_weight(layer, inputs.double().abs().mean(2).square().sum(1))


def activity(weight: Tensor, input_activity: Tensor) -> Tensor:
    """The square of the input's activity, whatever its weights are, spread evenly over its column."""
    return (input_activity.square() / len(weight)).expand(weight.shape)


def minitron(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    seed: int = 0,
    samples: int = 128,
    depth: int = 0,
    steps: int | None = None,
    lr: float | None = None,
    recovery: str | Recovery | None = None,
    blocks: str | None = None,
) -> Masks:
    """Remove blocks, then heads and neurons of a language model by their activations, and distil.

    Args:
        model: a language model; changed in place.
        task: for its calibration data, and to train on.
        sparsity: the fraction of heads and of neurons to remove from each block that stays, in [0, 1).
        seed: which data are drawn, and their order in training.
        samples: how many sequences to measure activations with.
        depth: how many whole blocks go first, those with the least influence (see `depth.influences`).
        steps: of distillation; half of the task's own if not given; 0 for none.
        lr: the first learning rate; half of the task's own if not given. The authors advise a fifth, for far
            longer training.
        recovery: another recovery, a name or a function, in place of distillation from the model before.
        blocks: the name of the list of blocks; found if not given.

    Returns:
        The masks, applied. `slim` cuts them out, and `language.depth.shorten` takes what is left of whole blocks.

    Raises:
        ValueError: a sparsity or depth out of range. GraphError: nothing can be removed.
    """
    names = list(find_blocks(model, blocks))
    if not 0 <= whole("depth", depth) < len(names):
        raise ValueError(f"depth is how many blocks go, from 0 to {len(names) - 1}, not {depth}")
    heal = _recovery(model, task, steps, lr) if recovery is None else resolve("recovery", recovery, RECOVERIES)
    x = task.calibration(samples, seed)[0].to(next(model.parameters()).device)
    masks: dict[str, Tensor] = {}
    removed: list[str] = []
    if depth:
        influence = influences(model, x, blocks)
        removed = sorted(names, key=influence.__getitem__)[:depth]
    graph, parts = find_parts(model, x[:1], blocks=blocks)
    parts = [part for part in parts if part.block not in removed]
    if removed:
        masks |= drop_blocks(model, removed, x[:1], blocks)
    columns, _ = reader_scores(model, parts, activity, x, blocks=blocks)
    scores = [own.sum(1).sqrt() for own in columns]
    for name, mask in cut_parts(model, graph, parts, scores, sparsity).items():
        masks[name] = mask & masks[name] if name in masks else mask
    found = Masks(masks)
    found.apply(model)
    heal(model, found, task, seed=seed)
    return found


def _recovery(model: nn.Module, task: Task, steps: int | None, lr: float | None) -> Recovery:
    """Distillation from the model as it is now, from its logits alone."""
    if steps == 0:
        return lambda *_, **__: 0
    lr = task.training.lr / 2 if lr is None else lr
    return partial(distill, teacher=copy.deepcopy(model), temperature=1.0, alpha=1.0, steps=steps, lr=lr)
