"""Hessian–vector products: what the whole Hessian does to one direction, at the price of a few gradients.

H v is the derivative of the gradient along v (Pearlmutter 1994). H itself, a row and a column for each weight, is never
formed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pruninglab.batches import batches, length
from pruninglab.naming import lookup
from pruninglab.progress import progress
from pruninglab.recording import observed, requiring_grad
from pruninglab.statistics import Data, Loss, cross_entropy, run


def hvp(
    model: nn.Module, data: Data, direction: Mapping[str, Tensor], *, loss: Loss | None = None
) -> dict[str, Tensor]:
    """H v for the mean loss over all data, where H is the Hessian in the parameters that `direction` names.

    In evaluation mode, batch by batch; the model is afterwards as it was.

    Args:
        model: any module whose operations can be differentiated twice.
        data: as in `collect`, with labels.
        direction: v: parameter name → tensor of the parameter's shape. What it does not name stays where it is.
        loss: as in `collect`.

    Returns:
        Parameter name → tensor of its shape, in at least float32.

    Raises:
        ValueError: an empty direction, a name that is no parameter, a shape that is not its own, or data that are empty
            or without labels.
        RuntimeError: torch knows no second derivative of an operation in the model (hardsigmoid, say).
    """
    if not direction:
        raise ValueError("direction names no parameter: pass {name: tensor}")
    known = dict(model.named_parameters(remove_duplicate=False))
    parameters = [lookup("parameter", name, known) for name in direction]
    for (name, v), parameter in zip(direction.items(), parameters, strict=True):
        if v.shape != parameter.shape:
            raise ValueError(
                f"direction of {name!r} has shape {tuple(v.shape)}, the parameter {tuple(parameter.shape)}"
            )
    with observed(model), twice_differentiable(parameters):
        along = [v.to(parameter) for v, parameter in zip(direction.values(), parameters, strict=True)]
        found = hessian_product(model, data, parameters, along, loss or cross_entropy)
    return dict(zip(direction, found, strict=True))


@contextmanager
def twice_differentiable(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Parameters that ask for gradients, and attention by operations that have a second derivative; then as before."""
    with sdpa_kernel(SDPBackend.MATH), requiring_grad(parameters):  # fused kernels have no second derivative
        yield


def mean_gradient(model: nn.Module, data: Any, parameters: Sequence[Tensor], loss: Loss) -> list[Tensor]:
    """The gradient of the mean loss over all data. The model is run as it is: the caller sets its mode."""
    return _mean(lambda x, y: run(model, x, y, parameters, loss, True), data)  # type: ignore[arg-type, return-value]


def hessian_product(
    model: nn.Module, data: Any, parameters: Sequence[Tensor], direction: Sequence[Tensor], loss: Loss
) -> list[Tensor]:
    """H v for the mean loss over all data, summed batch by batch, so that memory holds the graph of one batch.

    To be called within `twice_differentiable`. The model is run as it is: the caller sets its mode.
    """

    def product(x: Any, y: Any) -> list[Tensor]:
        grads: list[Any] = run(model, x, y, parameters, loss, True, differentiable=True)
        with torch.enable_grad():
            along = torch.stack([(grad * step).sum() for grad, step in zip(grads, direction, strict=True)]).sum()
        if not along.requires_grad:  # a loss that is linear in all parameters
            return [torch.zeros_like(parameter) for parameter in parameters]
        found = torch.autograd.grad(along, parameters, allow_unused=True)
        return [torch.zeros_like(p) if value is None else value for p, value in zip(parameters, found, strict=True)]

    return _mean(product, data)


def _mean(of_batch: Callable[[Any, Any], list[Tensor]], data: Any) -> list[Tensor]:
    """The mean over samples of what a function gives for each batch, summed in at least float32."""
    total: list[Tensor] = []
    samples = 0
    for x, y in progress(batches(data), desc="following the gradient", unit="batch"):
        n = length(x, "inputs")
        shares = [n * value.to(torch.promote_types(value.dtype, torch.float32)) for value in of_batch(x, y)]
        total = [a + b for a, b in zip(total, shares, strict=True)] if total else shares
        samples += n
    if not samples:
        raise ValueError("the calibration data are empty: not one sample to follow the gradient with")
    return [value / samples for value in total]
