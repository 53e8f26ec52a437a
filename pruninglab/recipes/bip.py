"""BiP: bi-level pruning, where mask and weights learn in turns instead of in rounds (Zhang et al. 2022).

The mask m is to be good for the weights that training would find for it:

    min over m of ℓ(m ⊙ θ*(m)),   θ*(m) = argmin over θ of ℓ(m ⊙ θ) + γ/2 ‖θ‖²

Because mask and weights only ever meet as the product z = m ⊙ θ, the gradient through θ*(m) costs no more than an
ordinary one: see `mask_gradient`.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pruninglab.masks import Masks
from pruninglab.naming import at_least_one
from pruninglab.pruning import prune
from pruninglab.tasks import Task
from pruninglab.tasks.training import batch_at


def bip(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    seed: int = 0,
    steps: int | None = None,
    lr: float | None = None,
    mask_lr: float = 1.0,
    gamma: float = 1e4,
) -> Masks:
    """Let the mask of a trained network learn together with its weights, and leave it pruned and trained.

    It begins with the mask of global magnitude pruning and scores m̃ = |w| / max |w|. Each iteration takes two batches:

        on the first   θ ← θ − α (m ⊙ ∇_z ℓ + weight decay · θ)   all of θ stays: a weight may come back
        on the second  m̃ ← clamp(m̃ − β dℓ/dm, 0, 1), and m = 1 for the highest scores of the whole network

    α is the task's own learning rate with its momentum; β falls along the same cosine, so that the mask settles.
    The paper's rule has no momentum; the authors' code takes β = 0.1 with momentum 0.9, which adds up to 1 over time,
    and 1 is what β is here. The weight decay is the task's own too: γ is used in dℓ/dm alone, as in that code, whose
    1/γ is 1e-4.

    Costs two gradients an iteration: twice as many as ordinary training for these steps.

    Args:
        model: a trained network; changed in place.
        task: what it was trained on.
        sparsity: the fraction of prunable weights to remove, in [0, 1); met exactly.
        seed: of the order of the data; the second batches come in the order of seed + 1.
        steps: how many iterations; as many as the task's own training has if not given.
        lr: α at the beginning; the task's own if not given.
        mask_lr: β at the beginning.
        gamma: γ, how strongly θ*(m) is held to zero.

    Returns:
        The masks, applied.

    Raises:
        ValueError: a sparsity out of range or that leaves nothing, no step, mask_lr or gamma that is not positive; or
            training that leaves the finite numbers, which leaves the model as it is then.
    """
    steps = task.training.steps if steps is None else at_least_one("steps", steps)
    if not 0 < mask_lr < math.inf or not gamma > 0:
        raise ValueError(f"mask_lr and gamma must be positive, not mask_lr={mask_lr} and gamma={gamma}")
    start = prune(copy.deepcopy(model), sparsity=sparsity)
    names, keep = list(start), start.kept()
    weights = [model.get_parameter(name) for name in names]
    largest = max(float(weight.detach().abs().max()) for weight in weights)
    scores = _flat([weight.detach().abs() for weight in weights]) / (largest or 1.0)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    mask = _flat([start[name] for name in names]).to(scores)

    def loss(z: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        x = x.to(z[0].dtype) if x.is_floating_point() else x  # half precision is trained in single
        return task.loss(functional_call(model, dict(zip(names, z, strict=True)), (x,)), y)

    def objective(_: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return loss([m * w for m, w in zip(_parts(mask, weights), weights, strict=True)], x, y)

    def on_step(step: int, _: torch.optim.Optimizer) -> None:
        nonlocal mask
        theta = _flat([weight.detach() for weight in weights])
        z = [part.requires_grad_() for part in _parts(mask * theta, weights)]
        x, y = batch_at(step - 1, task.data["train"], task.training, seed + 1)
        gradients = torch.autograd.grad(loss(z, x.to(theta.device), y.to(theta.device)), z, materialize_grads=True)
        beta = mask_lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        scores.sub_(beta * mask_gradient(theta, mask, _flat(gradients), gamma)).clamp_(0, 1)
        if not bool(scores.isfinite().all()):
            raise ValueError(f"bip: weights or gradients are NaN or infinite at step {step}; take a smaller lr")
        mask = _highest(scores, keep)

    task.train(model, seed=seed, steps=steps, lr=lr, objective=objective, on_step=on_step, label="BiP")
    masks = Masks(dict(zip(names, _parts(mask.bool(), weights), strict=True)))
    masks.apply(model)
    return masks


def mask_gradient(weight: Tensor, mask: Tensor, gradient: Tensor, gamma: float) -> Tensor:
    """dℓ(m ⊙ θ*(m)) / dm = (θ − m ⊙ ∇_z ℓ / γ) ⊙ ∇_z ℓ at z = m ⊙ θ, where θ = θ*(m).

    By the chain rule it is ∂ℓ/∂m + (dθ*/dm)ᵀ ∂ℓ/∂θ, where ∂ℓ/∂m = θ ⊙ ∇_z ℓ and ∂ℓ/∂θ = m ⊙ ∇_z ℓ. θ* is where
    m ⊙ ∇_z ℓ + γ θ = 0; differentiated by m, with ∇²_z ℓ taken to be 0 (the paper's assumption; exact for a linear ℓ),
    that says dθ*/dm = −diag(∇_z ℓ) / γ. The factor m in the second term is 1 for every weight that is there.

    Args:
        weight: θ.
        mask: m, of the same shape, as numbers.
        gradient: ∇_z ℓ, of the same shape.
        gamma: γ > 0.

    Returns:
        A tensor of the same shape.
    """
    return (weight - mask * gradient / gamma) * gradient


def _highest(scores: Tensor, keep: int) -> Tensor:
    """1 for the `keep` highest of a vector of scores, of equal ones the first, and 0 for the others.

    Not `top_masks`, which is made for networks that fill the memory and here takes longer than the gradients.
    """
    edge = scores.topk(keep).values[-1]
    above = scores > edge
    tied = (scores == edge).nonzero()[: keep - int(above.count_nonzero())]
    return above.to(scores).index_fill_(0, tied[:, 0], 1)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """All tensors as one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _parts(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A vector as tensors of the shapes of others, copied."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape).clone() for piece, tensor in zip(pieces, like, strict=True)]
