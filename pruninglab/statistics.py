"""What a criterion may ask for, and the one pass that collects it.

A *statistic* is what a criterion's argument names: `weight`, `grad`, `input_norm`, … . It is itself a function whose
argument names say what it needs, one level further down. For each batch it may ask for the *ingredients*

    weight          the layer's weight
    initial_weight  the weight before training
    batch_grad      gradient of the batch's mean loss with respect to the weight, shaped like it
    batch_size      how many samples the batch has
    inputs          (g, n, t, d): what each weight of each sample and position is multiplied with
    output_grads    (g, n, t, o): gradient of each sample's own loss with respect to the layer's output
    maps            feature maps, a list with one (n, outputs, …) for each time the layer was called: its output after
                    the norm and the activation that alone take it, if any; what is zero there is gone for the rest
    map_grads       gradients of each sample's own loss with respect to these
    layer           the module

(g groups, n samples, t positions such as pixels or tokens, d inputs and o outputs of a group). What it returns is
summed over batches; an optional `finish` turns the sum into the answer. Layers must see the samples in the first
dimension, alone or merged with positions in batch-major order (sample 0's tokens, then sample 1's, …).

A statistic that needs passes of its own asks for the `model` instead (and `data`, `loss`, `exclude` as `collect` got
them; `data=None` if it can do without) and returns parameter name → tensor. Those of whole filters, one number for each
output, are in `pruninglab.filtering`; those of criteria before training are in `pruninglab.flowing`.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from pruninglab.batches import batches, length, to_device
from pruninglab.layers import Exclude, Layer, entries, like_weight, prunable
from pruninglab.naming import is_built_in, lookup, unknown
from pruninglab.progress import progress
from pruninglab.recording import MAPS, RECORDED, Following, Recorder, observed, recording, requiring_grad

Loss = Callable[[Any, Tensor], Tensor]
Data = Iterable[Any] | Dataset | tuple[Tensor, Tensor] | Tensor
Statistics = dict[str, dict[str, Tensor]]

WITHOUT_DATA = ("weight", "initial_weight", "layer")
INGREDIENTS = (*WITHOUT_DATA, "batch_grad", "batch_size", *sorted(RECORDED))
OF_MODEL = ("model", "data", "loss", "exclude")
FINISHING = ("total", "samples", "positions", "layer")
ROWS = 128  # of inputs summed in their own precision, in the processor's cache; sums of those in float64
PIECE = 1 << 24  # numbers that per-sample gradients may fill at a time


@dataclass(frozen=True)
class Statistic:
    """A statistic: `batch` gives one batch's share, `finish(total, samples, positions, layer)` the answer.

    If it is `of_model`, `batch` gives the answer for all layers.
    """

    name: str
    batch: Callable[..., Any]
    finish: Callable[..., Tensor] | None
    needs: tuple[str, ...]

    @property
    def needs_data(self) -> bool:
        """Whether it cannot do without data; it can if it says `data=None`."""
        data = inspect.signature(self.batch).parameters.get("data")
        optional = {"data"} if data is not None and data.default is None else set()
        return not set(self.needs) - optional <= {*WITHOUT_DATA, "model", "loss", "exclude"}

    @property
    def of_model(self) -> bool:
        return "model" in self.needs


STATISTICS: dict[str, Statistic] = {}


def statistic(function: Any = None, *, finish: Callable[..., Tensor] | None = None) -> Any:
    """Make a function a statistic that criteria can ask for by its name.

    Args:
        function: its arguments are ingredients (see the top of this file); returns one batch's share of a sum. Other
            arguments must have a default, which they keep.
        finish: what turns the sum into the answer; its arguments are among `total`, `samples` (how many samples were
            seen), `positions` (how many rows of inputs, so samples × pixels or tokens) and `layer`.

    Raises:
        ValueError: an argument without a default is no ingredient's name, a statistic of the model has a `finish`, or
            the name is that of a built-in statistic, on which other criteria depend.

    Example:
        >>> @statistic(finish=lambda total, positions: total / positions)
        ... def active_fraction(inputs, layer):
        ...     return like_weight(layer, (inputs > 0).sum((1, 2)))
    """
    if function is None:
        return lambda decorated: statistic(decorated, finish=finish)
    taken = STATISTICS.get(function.__name__)
    if taken and is_built_in(taken.batch) and not is_built_in(function):
        raise ValueError(f"{function.__name__!r} is a built-in statistic: give yours a name of its own")
    arguments = inspect.signature(function).parameters
    known = OF_MODEL if "model" in arguments else INGREDIENTS
    for name, argument in arguments.items():
        if name not in known and argument.default is argument.empty:
            raise unknown(f"ingredient in statistic {function.__name__!r}:", name, known)
    needs = tuple(name for name in arguments if name in known)
    if "model" in needs and finish is not None:
        raise ValueError(f"statistic {function.__name__!r} is of the whole model, so it has nothing to finish")
    for name in inspect.signature(finish).parameters if finish else ():
        if name not in FINISHING:
            raise unknown(f"argument of finish in statistic {function.__name__!r}:", name, FINISHING)
    STATISTICS[function.__name__] = Statistic(function.__name__, function, finish, needs)
    return function


# ── the statistics ────────────────────────────────────────────────────────────────────────────────────────────────


@statistic
def weight(weight: Tensor) -> Tensor:
    """The weight as it is now."""
    return weight


@statistic
def initial_weight(initial_weight: Tensor) -> Tensor:
    """The weight before training, from what `collect` was given as `initial`."""
    return initial_weight


def mean_over_samples(total: Tensor, samples: int) -> Tensor:
    """What a statistic finishes with that is a mean."""
    return total / samples


@statistic(finish=mean_over_samples)
def grad(batch_grad: Tensor, batch_size: int) -> Tensor:
    """Gradient of the mean loss, shaped like the weight."""
    return batch_grad.to(torch.promote_types(batch_grad.dtype, torch.float32)) * batch_size  # sums outgrow bfloat16


@statistic(finish=lambda total: total.sqrt())
def grad_norm(inputs: Tensor, output_grads: Tensor, layer: Layer) -> Tensor:
    """ℓ2 norm over samples of each weight's per-sample gradient, √Σₙ (∂ℓₙ/∂w)²; shaped like the weight."""
    return _sum_of_squared_sample_grads(inputs, output_grads, layer)


@statistic(finish=mean_over_samples)
def fisher(inputs: Tensor, output_grads: Tensor, layer: Layer) -> Tensor:
    """Mean squared per-sample gradient (the diagonal of the empirical Fisher); shaped like the weight."""
    return _sum_of_squared_sample_grads(inputs, output_grads, layer)


def _sum_of_squared_sample_grads(inputs: Tensor, output_grads: Tensor, layer: Layer) -> Tensor:
    if inputs.shape[2] == 1:  # one position: (g x)² = g² x², one product for all samples
        total = output_grads.squeeze(2).square().mT @ inputs.squeeze(2).square()
    else:
        step = max(1, PIECE // layer.weight.numel())
        total = inputs.new_zeros(len(inputs), output_grads.shape[-1], inputs.shape[-1])
        for x, g in zip(inputs.split(step, 1), output_grads.split(step, 1), strict=True):
            total += (g.mT @ x).square().sum(1)
    return total.reshape(layer.weight.shape)


@statistic(finish=lambda total: total.sqrt())
def input_norm(inputs: Tensor, layer: Layer) -> Tensor:
    """ℓ2 norm of each input over all samples and positions, ‖Xⱼ‖₂ (Wanda); broadcasts against the weight."""
    rows = inputs.flatten(1, 2).split(ROWS, 1)
    return like_weight(layer, torch.stack([part.square().sum(1) for part in rows]).sum(0, dtype=torch.float64))


@statistic(finish=lambda total, positions: total / positions)
def input_mean(inputs: Tensor, layer: Layer) -> Tensor:
    """Mean of each input over all samples and positions; broadcasts against the weight."""
    return like_weight(layer, inputs.double().sum((1, 2)))


def _variance(total: Tensor, positions: int) -> Tensor:
    mean, mean_square = total / positions
    return (mean_square - mean.square()).clamp(min=0)


@statistic(finish=_variance)
def input_var(inputs: Tensor, layer: Layer) -> Tensor:
    """Variance (division by the count) of each input over all samples and positions; broadcasts against the weight."""
    x = inputs.double()
    return torch.stack([like_weight(layer, x.sum((1, 2))), like_weight(layer, x.square().sum((1, 2)))])


@statistic
def hessian(inputs: Tensor) -> Tensor:
    """XᵀX over all samples and positions: half the Hessian of ‖XWᵀ − Y‖² for each row of W.

    (d, d); for a grouped convolution (g, d, d). For a convolution d runs over channel, then kernel position.
    """
    x = inputs.flatten(1, 2)
    product = x.mT @ x
    return product[0] if len(product) == 1 else product


# ── the pass ──────────────────────────────────────────────────────────────────────────────────────────────────────


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits: the loss where none is named."""
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"the model returns a {type(outputs).__name__}, not logits: pass loss=, called loss(model(x), y)"
        )
    return F.cross_entropy(outputs.to(torch.promote_types(outputs.dtype, torch.float32)), targets)


def collect(
    model: nn.Module,
    names: Iterable[str],
    data: Data | None = None,
    *,
    loss: Loss | None = None,
    initial: nn.Module | Mapping[str, Tensor] | None = None,
    exclude: Exclude | Iterable[Exclude] = (),
) -> Statistics:
    """Gather statistics of every prunable layer, in one forward (and, where a gradient is named, one backward) pass.

    Only statistics of the whole model, such as relevance, make a pass of their own.

    The model is run in evaluation mode, so that no sample sees another through batch norm; its mode, its gradients and
    which parameters are frozen are afterwards as they were before.

    Args:
        model: any module.
        names: which statistics; see `STATISTICS`.
        data: `(x, y)` tensors, a `Dataset`, or an iterable of `(x, y)` batches, or of x alone where no gradient is
            asked for. x may be a mapping too, and is then passed by name: `model(**x)`.
        loss: `loss(model(x), y)`, the mean over the samples of a batch. Cross-entropy if not given.
        initial: the untrained model or its state dict; needed for `initial_weight` only.
        exclude: as in `prune`.

    Returns:
        Parameter name → statistic name → tensor.

    Raises:
        ValueError: an unknown name, no or empty data where data are needed, no labels where gradients are asked for,
            a loss that is not one number, or a layer that the model never called or not with the samples first.
        RuntimeError: the model writes into a layer's input after the layer.
    """
    asked = [
        lookup("statistic", name, STATISTICS) for name in dict.fromkeys([names] if isinstance(names, str) else names)
    ]
    exclude = entries(exclude)
    layers = prunable(model, exclude)
    if any(s.needs_data for s in asked) and data is None:
        which = ", ".join(s.name for s in asked if s.needs_data)
        raise ValueError(f"data is needed to collect {which}: pass data=(x, y), or task.calibration(n)")
    result: Statistics = {name: {} for name in layers}
    for s in asked:
        if not s.needs_data and not s.of_model:
            for name, layer in layers.items():
                result[name][s.name] = s.batch(**_pick(s.needs, name, layer, initial))
    measured = [s for s in asked if s.needs_data and not s.of_model]
    alone = [s for s in asked if s.of_model]
    if isinstance(data, Iterator) and len(alone) + bool(measured) > 1:
        data = list(data)  # it is read more than once
    for s in alone:
        own = {"model": model, "data": data, "loss": loss or cross_entropy, "exclude": exclude}
        for name, value in s.batch(**{need: own[need] for need in s.needs}).items():
            if name in result:
                result[name][s.name] = _finished(s, value, 0, 0, layers[name])
    if measured:
        for name, values in _measure(model, layers, measured, data, loss or cross_entropy, initial).items():
            result[name].update(values)
    return result


def _pick(needs: Iterable[str], name: str, layer: Layer, initial: Any, **found: Any) -> dict[str, Any]:
    """The ingredients of `needs` for one layer."""
    picked: dict[str, Any] = {}
    for need in needs:
        if need == "weight":
            picked[need] = layer.weight.detach()
        elif need == "layer":
            picked[need] = layer
        elif need == "initial_weight":
            picked[need] = _initial_weight(name, layer, initial)
        else:
            picked[need] = found[need]
    return picked


def _initial_weight(name: str, layer: Layer, initial: Any) -> Tensor:
    if initial is None:
        raise ValueError("initial_weight is asked for: pass initial=, the untrained model or its state dict")
    state = initial.state_dict() if isinstance(initial, nn.Module) else initial
    if name not in state or state[name].shape != layer.weight.shape:
        there = tuple(state[name].shape) if name in state else "missing"
        raise ValueError(f"initial does not fit the model: {name} is {tuple(layer.weight.shape)} here, {there} there")
    return state[name].detach().to(layer.weight)


def _measure(
    model: nn.Module, layers: dict[str, Layer], asked: list[Statistic], data: Any, loss: Loss, initial: Any
) -> Statistics:
    """Sum each statistic over the batches of one pass."""
    needs = {need for s in asked for need in s.needs}
    want_grad = bool(needs & {"batch_grad", "output_grads", "map_grads"})
    weights = [layer.weight for layer in layers.values()]
    totals: Statistics = {name: {} for name in layers}
    samples, positions = 0, dict.fromkeys(layers, 0)
    following = Following() if needs & MAPS else None
    with ExitStack() as undo:
        undo.enter_context(observed(model))
        recorders = undo.enter_context(recording(model, layers if needs & RECORDED else {}, following))
        undo.enter_context(requiring_grad(weights if want_grad else ()))
        for x, y in progress(batches(data), desc="collecting statistics", unit="batch"):
            with following or nullcontext():
                grads = run(model, x, y, weights, loss, want_grad)
            batch_size = length(x, "inputs")
            samples += batch_size
            reject_silent(recorders)
            for (name, layer), batch_grad in zip(layers.items(), grads, strict=True):
                found: dict[str, Any] = {"batch_grad": batch_grad, "batch_size": batch_size}
                if name in recorders:
                    found |= recorders[name].take(batch_size, needs)
                if "inputs" in found:
                    positions[name] += found["inputs"].shape[1] * found["inputs"].shape[2]
                for s in asked:
                    share = s.batch(**_pick(s.needs, name, layer, initial, **found))
                    totals[name][s.name] = totals[name][s.name] + share if s.name in totals[name] else share
    if not samples:
        raise ValueError("the calibration data are empty: not one sample to collect statistics from")
    return {
        name: {s.name: _finished(s, totals[name][s.name], samples, positions[name], layer) for s in asked}
        for name, layer in layers.items()
    }


def reject_silent(recorders: Mapping[str, Recorder]) -> None:
    """Raise a ValueError that names the layers that a forward pass did not call."""
    silent = [name for name, recorder in recorders.items() if not recorder.calls]
    if silent:
        raise ValueError(
            f"never called as a layer in the forward pass (used through the weight only?): {silent}; "
            f"leave out with exclude={silent}, or choose a criterion that needs no data"
        )


def run(
    model: nn.Module,
    x: Any,
    y: Any,
    weights: Sequence[Tensor],
    loss: Loss,
    want_grad: bool,
    *,
    differentiable: bool = False,
) -> list[Tensor | None]:
    """One forward pass and, if wanted, one backward pass; gradients of the batch's mean loss, none in `.grad`.

    With `differentiable` the gradients can be differentiated themselves.
    """
    x, y = to_device((x, y), weights[0].device)
    with torch.set_grad_enabled(want_grad):
        outputs = model(**x) if isinstance(x, dict) else model(x)
        if not want_grad:
            return [None] * len(weights)
        if y is None:
            raise ValueError("gradients are asked for, so each batch of data must be (x, y)")
        value = loss(outputs, y)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"loss must return one number, the mean over the batch, as a tensor; it returned {got}")
        grads = torch.autograd.grad(value, weights, allow_unused=True, create_graph=differentiable)
    return [torch.zeros_like(w) if grad is None else grad for w, grad in zip(weights, grads, strict=True)]


def _finished(s: Statistic, total: Tensor, samples: int, positions: int, layer: Layer) -> Tensor:
    if s.finish is not None:
        known = {"total": total, "samples": samples, "positions": positions, "layer": layer}
        total = s.finish(**{name: known[name] for name in inspect.signature(s.finish).parameters})
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    return total.detach().to(dtype) if total.is_floating_point() else total
