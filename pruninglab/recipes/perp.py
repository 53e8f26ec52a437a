"""PERP as a system: prune a language model at once, and retrain a few of its parameters (Zimmer et al. 2023)."""

import torch
from torch import nn

from pruninglab.language.blocks import find_blocks
from pruninglab.language.one_shot import Step, one_shot, scored
from pruninglab.layers import prunable
from pruninglab.masks import Masks
from pruninglab.perp import Parts, share
from pruninglab.perp import perp as retrain
from pruninglab.pruning import check_sparsity
from pruninglab.tasks import Task


def perp(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    seed: int = 0,
    samples: int = 128,
    step: Step | None = None,
    parts: Parts | None = None,
    rank: int = 8,
    alpha: float = 16.0,
    steps: int = 100,
    lr: float | None = None,
    blocks: str | None = None,
) -> Masks:
    """Remove weights, and train norms, biases and masked adapters for a while; the adapters are merged at the end.

    Args:
        model: a trained language model; changed in place.
        task: what to train on.
        sparsity: the fraction of the weights of each layer of the blocks to remove, in [0, 1).
        seed: of the calibration data, of the order of the training data, and of the adapters.
        samples: how many windows to calibrate with, if the step looks at any.
        step: what prunes a block (see `one_shot`); by magnitude, over each layer, if not given.
        parts: what to train, as in `perp.perp`.
        rank: likewise.
        alpha: likewise.
        steps: how many.
        lr: the first learning rate; the task's own if not given.
        blocks: as in `blocks.find_blocks`.

    Returns:
        The masks, applied.

    Raises:
        ValueError: a sparsity out of range, or a part that the network does not have; the model is unchanged then.
    """
    check_sparsity(sparsity)
    unpruned = {
        f"{name}.{own}": torch.ones_like(layer.weight, dtype=torch.bool)
        for name, block in find_blocks(model, blocks).items()
        for own, layer in prunable(block).items()
    }
    share(model, Masks(unpruned), parts, rank=rank)  # raises now what it would raise after pruning
    x, _ = task.calibration(samples, seed)
    masks = one_shot(model, x, step or scored("magnitude", "layer"), sparsity, blocks=blocks)
    retrain(model, masks, task, seed=seed, parts=parts, rank=rank, alpha=alpha, steps=steps, lr=lr)
    return masks
