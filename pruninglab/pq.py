"""The PQ index: how unequal weights are, how many of them must stay, and how many to prune next.

Knows weights and masks as plain tensors, and nothing of networks or training.
"""

import math

import torch
from torch import Tensor

ROUNDING = 1e-10  # relative: a count this little above a whole number is that number


def pq_index(weights: Tensor, mask: Tensor | None = None, *, p: float = 1.0, q: float = 2.0) -> float:
    """How sparse weights are as numbers: 1 − d^(1/q − 1/p) · ‖w‖_p / ‖w‖_q (Diao et al. 2023).

    0 if all d weights are equally large, 1 − d^(1/q − 1/p) if all but one are zero. With p ≤ 1 ≤ q, moving magnitude
    from a large weight to a small one always lowers it; with p and q on one side of 1 it need not.

    Args:
        weights: of any shape.
        mask: which of them count (True), in the same shape; all if not given. Zeros that count are weights like any
            other, so leave pruned ones out.
        p: the order of the norm that small weights add much to, positive.
        q: the order of the norm that large weights rule, above p.

    Raises:
        ValueError: nothing counts, all that counts is zero, something is NaN or infinite, a mask of another shape, or
            not 0 < p < q.
    """
    magnitudes = _magnitudes(weights, mask)
    return max(0.0, -math.expm1(_log_evenness(magnitudes, p, q)))


def retained(weights: Tensor, mask: Tensor | None = None, *, p: float = 1.0, q: float = 2.0, eta: float = 0.0) -> int:
    """How many weights must stay at least, whichever they are (Diao et al. 2023).

    If r of d weights stay and Σ |w|^p over those that go is at most `eta` times Σ |w|^p over those that stay, then
    r ≥ d (1 + eta)^(−q/(q − p)) (1 − I)^(qp/(q − p)), with I the PQ index. With `eta` = 0 that is a count of effective
    weights: d if all are equally large, 1 if only one is not zero, (Σ |w|)² / Σ w² for p = 1, q = 2.

    Args:
        weights: of any shape.
        mask: which of them count (True); all if not given.
        p: as in `pq_index`.
        q: as in `pq_index`.
        eta: what may go, as a multiple of what stays; 0 or more.

    Returns:
        The bound, rounded up: from 1 to d.

    Raises:
        ValueError: as in `pq_index`, or `eta` is negative or not finite.
    """
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta is what may go as a multiple of what stays, 0 or more, not {eta}")
    magnitudes = _magnitudes(weights, mask)
    evenness = _log_evenness(magnitudes, p, q)
    bound = len(magnitudes) * math.exp(q / (q - p) * (p * evenness - math.log1p(eta)))
    return max(1, math.ceil(bound * (1 - ROUNDING)))


def next_keep(
    weights: Tensor,
    mask: Tensor | None = None,
    *,
    p: float = 1.0,
    q: float = 2.0,
    eta: float = 0.0,
    gamma: float = 1.0,
    beta: float = 0.9,
) -> int:
    """How many weights stay after the next round of sparsity-informed adaptive pruning (SAP; Diao et al. 2023).

    Of d weights, ⌊d · min(gamma (1 − r/d), beta)⌋ go, where r is the bound of `retained` for the weights as they are
    now: many while they are unequal, none once they are all alike. SAP prunes down to the bound as if it could always
    be met, although what goes is then more than `eta` allows; the training of the next round has to make up for it.

    Args:
        weights: as trained in this round, of any shape.
        mask: which of them are left (True); all if not given.
        p: as in `pq_index`.
        q: as in `pq_index`.
        eta: as in `retained`.
        gamma: how boldly: the factor on the fraction that the bound lets go, positive.
        beta: the largest fraction that one round may remove, in (0, 1).

    Raises:
        ValueError: as in `retained`, or `gamma` or `beta` is out of range.
    """
    if not 0 < gamma < math.inf:
        raise ValueError(f"gamma must be positive, not {gamma}")
    if not 0 < beta < 1:
        raise ValueError(f"beta is the largest fraction removed in a round, in (0, 1), not {beta}")
    d = len(_magnitudes(weights, mask))
    going = min(gamma * (d - retained(weights, mask, p=p, q=q, eta=eta)), beta * d)
    return d - math.floor(going * (1 + ROUNDING))


def _magnitudes(weights: Tensor, mask: Tensor | None) -> Tensor:
    """|w| of the weights that count, (d,), in double precision."""
    if mask is not None and (mask.shape != weights.shape or mask.dtype != torch.bool):
        raise ValueError(
            f"a mask for weights of shape {tuple(weights.shape)} is a bool tensor of that shape, "
            f"not {mask.dtype} of shape {tuple(mask.shape)}"
        )
    counted = weights.detach().flatten() if mask is None else weights.detach()[mask.to(weights.device)]
    if not len(counted):
        raise ValueError("the PQ index of no weights is undefined: the tensor is empty, or its mask keeps nothing")
    magnitudes = counted.abs().double()
    if not magnitudes.isfinite().all():
        raise ValueError("the PQ index needs finite weights, and some of these are NaN or infinite")
    if not magnitudes.any():
        raise ValueError(f"the PQ index of weights that are all zero ({len(magnitudes)} of them) is undefined")
    return magnitudes


def _log_evenness(magnitudes: Tensor, p: float, q: float) -> float:
    """The logarithm of 1 − PQ index. Powers of 1/p would leave the range of floats when p is small."""
    if not 0 < p < q < math.inf:
        raise ValueError(f"the PQ index needs 0 < p < q, not p={p}, q={q}")
    logs = magnitudes.log()
    norms = [float(torch.logsumexp(order * logs, 0)) / order for order in (p, q)]
    return norms[0] - norms[1] + (1 / q - 1 / p) * math.log(len(magnitudes))
