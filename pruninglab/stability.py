"""Comparing two networks of one architecture: the straight line between them, how far apart they are, how alike.

Does training from one point lead to one valley or to several? Train twice with another order of the data and look at
the error between the two results. Errors are any function of a model; tasks and masks are none of this file's business.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruninglab import slimmed
from pruninglab.batches import batches
from pruninglab.layers import named_tensors
from pruninglab.naming import whole

CONSTANT = 1e-12  # of its norm: a spread below this is rounding


@dataclass(frozen=True)
class Barrier:
    """Errors on the straight line between two networks.

    Attributes:
        alphas: where on the line, from 0 (the first network) to 1 (the second).
        errors: at each of them, in the unit of the error function.
    """

    alphas: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def height(self) -> float:
        """The largest error on the line minus the mean of both ends' (instability; Frankle et al. 2020).

        Never negative, and half the difference between the ends even where the line runs straight from one to the
        other: other papers subtract that straight line instead of the mean.
        """
        return max(self.errors) - self._ends

    @property
    def connectivity(self) -> float:
        """The mean of both ends' errors minus the error where the two differ most (Yang et al. 2021).

        Negative behind a barrier, about zero in one flat valley, positive where the line is better than its ends.
        """
        return max((self._ends - error for error in self.errors), key=abs)

    @property
    def _ends(self) -> float:
        return (self.errors[0] + self.errors[-1]) / 2


def barrier(
    a: nn.Module,
    b: nn.Module,
    error: Callable[[nn.Module], float],
    *,
    points: int = 11,
    recalibrate: Any = None,
) -> Barrier:
    """Measure the error on the straight line between two networks, both ends included.

    Args:
        a: the network at 0; unchanged.
        b: the network at 1, of the same architecture; unchanged.
        error: what to measure of a network, lower is better, such as `lambda m: 1 - task.accuracy(m)`.
        points: how many, evenly spaced; 30 in Frankle et al. 2020.
        recalibrate: data as in `collect`, on which the statistics of batch norms are measured anew at every point, the
            ends too. Without them statistics are interpolated like weights, which is wrong for what is in between and
            makes barriers look higher.

    Raises:
        ValueError: the architectures differ, fewer than 2 points, an error that is NaN or infinite, or empty data.
    """
    if whole("points", points) < 2:
        raise ValueError(f"a line has two ends, so points must be at least 2, not {points}")
    data = None if recalibrate is None else list(batches(recalibrate))  # the same at all points, generators too
    alphas = tuple(i / (points - 1) for i in range(points))
    errors = []
    for alpha in alphas:
        model = interpolate(a, b, alpha)
        if data is not None:
            slimmed.recalibrate(model, data)
        measured = error(model)
        found = float(measured.detach() if isinstance(measured, Tensor) else measured)
        if not math.isfinite(found):
            raise ValueError(
                f"the error at alpha = {alpha:g} of the line is {found}, so there is no barrier to measure"
            )
        errors.append(found)
    return Barrier(alphas, tuple(errors))


@torch.no_grad()
def interpolate(a: nn.Module, b: nn.Module, alpha: float) -> nn.Module:
    """A new network with the weights, and the float buffers, (1 − alpha) a + alpha b.

    Everything else (whole-number buffers, device, mode, what is frozen) is as in a.

    Args:
        a: the network at 0.
        b: the network at 1, of the same architecture.
        alpha: how far from a to b, in [0, 1].

    Raises:
        ValueError: the architectures differ, or alpha is not in [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha says how far from one network to the other, in [0, 1], not {alpha}")
    _same_architecture(a, b)
    model, others = copy.deepcopy(a), dict(named_tensors(b))
    for name, mine in named_tensors(model):
        if mine.is_floating_point():
            mine.copy_((1 - alpha) * mine + alpha * others[name].to(mine.device))
    return model


@torch.no_grad()
def distance(a: nn.Module, b: nn.Module) -> float:
    """The ℓ2 distance between the parameters of two networks; buffers do not count (Frankle et al. 2019).

    Raises:
        ValueError: the architectures differ.
    """
    _same_architecture(a, b)
    others = dict(b.named_parameters())
    gaps = (mine.double() - others[name].to(mine.device).double() for name, mine in a.named_parameters())
    return math.sqrt(sum(float(gap.square().sum()) for gap in gaps))


@torch.no_grad()
def cka(x: Tensor, y: Tensor) -> float:
    """How alike two networks' outputs on the same inputs are: linear centred kernel alignment (Kornblith et al. 2019).

    ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖) in Frobenius norms, columns centred. From 0 (uncorrelated) to 1 (equal up to a rotation or
    reflection, one factor and a shift).

    Args:
        x: outputs of one network, (n, d): a row for each input.
        y: outputs of the other on the same inputs, (n, e).

    Raises:
        ValueError: not two matrices with the same number of rows, at least 2; something is NaN or infinite; or a
            matrix whose rows are all equal, which is like nothing.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2:
        raise ValueError(
            "cka compares two matrices (n, d) and (n, e) with a row for each of the same n ≥ 2 inputs, "
            f"not {tuple(x.shape)} and {tuple(y.shape)}"
        )
    x, y = _centred(x, "first"), _centred(y, "second")
    return float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def _centred(x: Tensor, which: str) -> Tensor:
    """Columns of mean 0, and a matrix of norm 1, in double precision."""
    x = x.double()
    if not x.isfinite().all():
        raise ValueError(f"the {which} matrix holds NaN or infinite outputs")
    centred = x - x.mean(0)
    if centred.norm() <= CONSTANT * x.norm():
        raise ValueError(f"all rows of the {which} matrix are equal: nothing varies that could be compared")
    return centred / centred.norm()


def _same_architecture(a: nn.Module, b: nn.Module) -> None:
    """Raise unless both hold tensors of the same names and shapes in modules of the same kinds."""
    mine, other = _parts(a), _parts(b)
    wrong = [
        f"{name or 'the network'}: {mine.get(name, 'missing')} here, {other.get(name, 'missing')} there"
        for name in mine | other
        if mine.get(name) != other.get(name)
    ]
    if wrong:
        more = [f"and {len(wrong) - 5} more"] if len(wrong) > 5 else []
        raise ValueError("these two networks differ in architecture:\n  " + "\n  ".join(wrong[:5] + more))


def _parts(model: nn.Module) -> dict[str, str]:
    """What a network is made of, by name: the kind of each module, the shape of each tensor."""
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    return kinds | {name: str(tuple(tensor.shape)) for name, tensor in named_tensors(model)}
