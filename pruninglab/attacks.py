"""Inputs changed by so little that nobody would notice, so that a network errs.

Both attacks know the network's weights, and may change every value of an input by ε at most (the ℓ∞ ball). What they
find is a bound from one side only: a network that withstands them may still fall to a better one. And a network whose
gradient is zero or noise is not robust, only hard to attack this way (obfuscated gradients; Athalye et al. 2018):
compare the one step of `fgsm` with the many of `pgd`.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruninglab.corruptions import Limits
from pruninglab.naming import at_least_one, whole
from pruninglab.tasks.training import evaluating, rows

# ε as a fraction of the range of the data, for the five levels at which `robustness` attacks.
STRENGTHS: tuple[float, float, float, float, float] = (0.02, 0.04, 0.06, 0.08, 0.1)


def fgsm(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, *, limits: Limits | None = None) -> Tensor:
    """Inputs after one step of ε along the sign of the loss's gradient: x + ε sign(∂L/∂x) (Goodfellow et al. 2015).

    Args:
        model: run in evaluation mode and left as it was, gradients too.
        x: (n, …) floats, on the model's device; all of them are attacked at once.
        y: (n,) the true classes.
        epsilon: ε, in the data's own units.
        limits: the smallest and the greatest value that data can have; none if not given. A value that is beyond them
            already may stay, but goes no further.

    Raises:
        ValueError: x is no tensor of floats, y is not one class for each input, ε is negative or not finite, or the
            limits are not in order.
    """
    low, high = _ball(x, y, epsilon, limits)
    with evaluating(model):
        return _step(model, x, y, epsilon, low, high)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    limits: Limits | None = None,
    steps: int = 10,
    step: float | None = None,
    seed: int | torch.Generator = 0,
) -> Tensor:
    """Inputs after projected gradient descent from a random point of the ball (Madry et al. 2018).

    Each step goes along the sign of the loss's gradient, and then back into the ball and the limits. The last point is
    the answer.

    Args:
        model: as in `fgsm`.
        x: as in `fgsm`.
        y: as in `fgsm`.
        epsilon: as in `fgsm`.
        limits: as in `fgsm`.
        steps: how many.
        step: how far each of them goes; 2.5 ε / steps if not given, so that every corner can be reached.
        seed: of the random start, or a generator.

    Raises:
        ValueError: as in `fgsm`, fewer than one step, or a `step` that is negative or not finite.
    """
    low, high = _ball(x, y, epsilon, limits)
    at_least_one("steps", steps)
    step = 2.5 * epsilon / steps if step is None else step
    if not 0 <= step < math.inf:
        raise ValueError(f"step is how far a value moves at once, 0 or more, not {step!r}")
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(whole("seed", seed))
    found = (low + (high - low) * torch.rand(x.shape, generator=generator).to(x)).clamp(low, high)
    with evaluating(model):
        for _ in range(steps):
            found = _step(model, found, y, step, low, high)
    return found


ATTACKS: dict[str, Callable[..., Tensor]] = {"fgsm": fgsm, "pgd": pgd}


def _ball(x: Tensor, y: Tensor, epsilon: float, limits: Limits | None) -> tuple[Tensor, Tensor]:
    """The least and the greatest that each value may become. Raises as `fgsm` says."""
    if not x.is_floating_point():
        raise ValueError(f"an attack changes inputs by a little, so they must be floats, not {x.dtype}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"an attack needs one class for each of {len(x)} inputs, not labels of shape {tuple(y.shape)}")
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon is how far a value may move, 0 or more, not {epsilon!r}")
    low, high = x - epsilon, x + epsilon
    if limits is None:
        return low, high
    if not limits[0] < limits[1]:
        raise ValueError(f"limits are the smallest and the greatest value, in this order, not {limits!r}")
    return torch.maximum(low, x.clamp(max=limits[0])), torch.minimum(high, x.clamp(min=limits[1]))


@torch.enable_grad()
def _step(model: nn.Module, x: Tensor, y: Tensor, length: float, low: Tensor, high: Tensor) -> Tensor:
    """One step along the sign of the gradient of the loss, and back to where values may be."""
    x = x.detach().clone().requires_grad_(True)
    # In float32 a sure network's probability rounds to 1, and half of the gradient with it to 0.
    logits = rows(model(x)).to("cpu", torch.float64)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y.cpu(), reduction="sum"), x)
    return (x.detach() + length * gradient.sign()).clamp(low, high)
