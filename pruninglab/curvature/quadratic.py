"""The change of the loss as a quadratic in zeros and ones: which weights of a block are gone.

Two weights may each be harmless to lose and both together not, or the other way round: that is what the off-diagonal
of the Hessian says, and what no score of single weights can. With x_i = 1 for a weight that goes, the change of the
loss is a quadratic in x (Yu et al. 2022; in iCBS, Rosenberg et al. 2024, with a gradient and from a network that is
already pruned). `solvers` looks for its minimum with a fixed number of ones.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Quadratic:
    """E(x) = constant + xᵀ Q x for x in {0, 1}ⁿ: what the loss changes by if the weights with x = 1 are the ones gone.

    Q is held whole: a search for the best swap looks at every pair anyway, and a block has hundreds of weights, not
    millions.

    Attributes:
        matrix: Q, (n, n), symmetric; what one weight does alone is on the diagonal, 2 Q_ij what a pair does on top.
        constant: E of losing none.
    """

    matrix: Tensor
    constant: float = 0.0

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2 or self.matrix.shape[0] != self.matrix.shape[1]:
            raise ValueError(f"a quadratic needs a square matrix, not {tuple(self.matrix.shape)}")
        if not torch.isfinite(self.matrix).all():
            raise ValueError("the quadratic has entries that are not finite: a weight or a gradient is not")

    def __len__(self) -> int:
        return len(self.matrix)

    @cached_property
    def diagonal(self) -> Tensor:
        """What each weight does alone, (n,)."""
        return self.matrix.diagonal()

    def field(self, x: Tensor) -> Tensor:
        """Q x, (…, n): half the slope of E."""
        return self.ones(x) @ self.matrix

    def energy(self, x: Tensor) -> Tensor:
        """E of each x, (…, n) → (…)."""
        return self.constant + (self.ones(x) * self.field(x)).sum(-1)

    def clipped(self) -> "Quadratic":
        """The same without its negative entries, as the authors' code has it: then no pair can make up for another."""
        return Quadratic(self.matrix.clamp(min=0), self.constant)

    def ones(self, x: Tensor) -> Tensor:
        """X as numbers. Raises a ValueError unless it has a place for each weight."""
        if x.shape[-1:] != self.matrix.shape[:1]:
            raise ValueError(f"x has shape {tuple(x.shape)}, the quadratic is of {len(self)} weights")
        return x.to(self.matrix)


def quadratic(
    old: Tensor, change: Tensor, hessian: Tensor, gradient: Tensor, *, gamma: float = 0.75, ridge: float = 1e-3
) -> Quadratic:
    """The change of the loss as a quadratic in which weights of a block are gone (Rosenberg et al. 2024).

    The weights were `old` once, and are `old + change` now. Those with x = 1 become 0, the others `old` again: a step
    of δ = −(change + old ⊙ x), for which the loss changes by

        γ gᵀδ + ½ δᵀHδ + μ ‖δ‖² = constant + xᵀ Q x
        Q = ½ diag(old) H diag(old) + diag(old ⊙ (H change − γ g + μ (2 change + old)))

    since x² = x.

    Args:
        old: (n,) the weights before any pruning.
        change: (n,) what they have changed by since: −old where a weight is gone now, 0 elsewhere.
        hessian: H, (n, n): the block's Fisher, or a Hessian. Its diagonal alone (`H.diagonal().diag()`) gives what
            optimal brain damage would say.
        gradient: g, (n,) of the mean loss at the weights as they are now.
        gamma: γ, how far the gradient is trusted.
        ridge: μ, what it costs to move at all.

    Raises:
        ValueError: shapes that do not fit, or a number that is not finite.
    """
    n = len(old)
    if not old.shape == change.shape == gradient.shape == (n,) or hessian.shape != (n, n):
        shapes = [tuple(part.shape) for part in (old, change, gradient, hessian)]
        raise ValueError(f"old, change, gradient and hessian must be (n,), (n,), (n,), (n, n), not {shapes}")
    w, dw, g, h = (part.detach().double() for part in (old, change, gradient, hessian))
    moved = h @ dw
    alone = w * (moved - gamma * g + ridge * (2 * dw + w))
    constant = 0.5 * dw @ moved - gamma * g @ dw + ridge * dw @ dw
    return Quadratic(0.5 * w[:, None] * h * w + torch.diag(alone), float(constant))
