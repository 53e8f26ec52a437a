"""The optimal brain surgeon on a network, one layer after the other (Hassibi & Stork 1993; Dong et al. 2017).

The second derivative of a whole network's loss has as many entries as the weights squared. A layer's squared error is
quadratic as well and has a small Hessian, XᵀX, the same for all rows; so each layer keeps its own outputs as well as
it can, on the inputs that the pruned layers before it give.
"""

import torch
from torch import nn

from pruninglab.curvature.obs import obs_layer
from pruninglab.layers import prunable
from pruninglab.masks import Masks
from pruninglab.progress import progress
from pruninglab.pruning import check_sparsity
from pruninglab.statistics import collect
from pruninglab.tasks import Task


@torch.no_grad()
def obs(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    seed: int = 0,
    samples: int = 256,
    damp: float = 1e-2,
) -> Masks:
    """Remove weights one by one, always the one whose loss its row makes up for best. No training.

    Of each layer the same fraction goes, since the errors of different layers have no common scale. It takes d³ work
    for each row of d inputs.

    Args:
        model: a trained network; changed in place.
        task: for its training inputs; no labels are used.
        sparsity: the fraction of each layer's weights to remove, in [0, 1).
        seed: which samples are drawn.
        samples: how many.
        damp: λ as a fraction of the mean of H's diagonal.

    Returns:
        The masks, applied.

    Raises:
        ValueError: a sparsity out of range, more samples than there are, a negative damp, a singular Hessian, or a
            grouped convolution.
    """
    level = check_sparsity(sparsity)
    layers = prunable(model)
    if grouped := [name for name, layer in layers.items() if getattr(layer, "groups", 1) > 1]:
        raise ValueError(f"the surgeon does not work on grouped convolutions, which {', '.join(grouped)} is")
    device = next(model.parameters()).device
    x = task.calibration(samples, seed)[0].to(device)
    masks = {}
    for name, layer in progress(layers.items(), desc="OBS", unit="layer"):
        others = [other for other in layers.values() if other is not layer]
        hessian = collect(model, ["hessian"], x, exclude=others)[name]["hessian"]
        rows, keep = obs_layer(layer.weight.flatten(1), hessian, level, damp=damp)
        layer.weight.copy_(rows.view_as(layer.weight))
        masks[name] = keep.view_as(layer.weight)
    found = Masks(masks)
    found.apply(model)
    return found
