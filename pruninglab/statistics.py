"""What a criterion may ask for, and the one pass that collects it.

A *statistic* is what a criterion's argument names: `weight`, `grad`, `input_norm`, … . It is itself a function whose
argument names say what it needs, one level further down. For each batch it may ask for the *ingredients*

    weight          the layer's weight
    initial_weight  the weight before training
    batch_grad      gradient of the batch's mean loss with respect to the weight, shaped like it
    batch_size      how many samples the batch has
    inputs          (g, n, t, d): what each weight of each sample and position is multiplied with
    output_grads    (g, n, t, o): gradient of each sample's own loss with respect to the layer's output
    layer           the module

(g groups, n samples, t positions such as pixels or tokens, d inputs and o outputs of a group). What it returns is
summed over batches; an optional `finish` turns the sum into the answer. Layers must see the samples in the first
dimension, alone or merged with positions in batch-major order (sample 0's tokens, then sample 1's, …).
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset
from torch.utils.hooks import RemovableHandle

from pruninglab.batches import batches, length
from pruninglab.layers import PRUNABLE, Exclude, Layer, like_weight, outputs_by_position, patches, prunable
from pruninglab.naming import lookup, unknown
from pruninglab.progress import progress

Loss = Callable[[Any, Tensor], Tensor]
Data = Iterable[Any] | Dataset | tuple[Tensor, Tensor] | Tensor
Statistics = dict[str, dict[str, Tensor]]

WITHOUT_DATA = ("weight", "initial_weight", "layer")
INGREDIENTS = (*WITHOUT_DATA, "batch_grad", "batch_size", "inputs", "output_grads")
FINISHING = ("total", "samples", "positions", "layer")
PIECE = 1 << 24  # numbers that per-sample gradients may fill at a time


@dataclass(frozen=True)
class Statistic:
    """A statistic: `batch` gives one batch's share, `finish(total, samples, positions, layer)` the answer."""

    name: str
    batch: Callable[..., Tensor]
    finish: Callable[..., Tensor] | None
    needs: tuple[str, ...]

    @property
    def needs_data(self) -> bool:
        return not set(self.needs) <= set(WITHOUT_DATA)


STATISTICS: dict[str, Statistic] = {}


def statistic(function: Any = None, *, finish: Callable[..., Tensor] | None = None) -> Any:
    """Make a function a statistic that criteria can ask for by its name.

    Args:
        function: its arguments are ingredients (see the top of this file); returns one batch's share of a sum.
        finish: what turns the sum into the answer; its arguments are among `total`, `samples` (how many samples were
            seen), `positions` (how many rows of inputs, so samples × pixels or tokens) and `layer`.

    Raises:
        ValueError: an argument is not the name of an ingredient.

    Example:
        >>> @statistic(finish=lambda total, positions: total / positions)
        ... def active_fraction(inputs, layer):
        ...     return like_weight(layer, (inputs > 0).sum((1, 2)))
    """
    if function is None:
        return lambda decorated: statistic(decorated, finish=finish)
    needs = tuple(inspect.signature(function).parameters)
    for name in needs:
        if name not in INGREDIENTS:
            raise unknown(f"ingredient in statistic {function.__name__!r}:", name, INGREDIENTS)
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


def _mean_over_samples(total: Tensor, samples: int) -> Tensor:
    return total / samples


@statistic(finish=_mean_over_samples)
def grad(batch_grad: Tensor, batch_size: int) -> Tensor:
    """Gradient of the mean loss, shaped like the weight."""
    return batch_grad.to(torch.promote_types(batch_grad.dtype, torch.float32)) * batch_size  # sums outgrow bfloat16


@statistic(finish=lambda total: total.sqrt())
def grad_norm(inputs: Tensor, output_grads: Tensor, layer: Layer) -> Tensor:
    """ℓ2 norm over samples of each weight's per-sample gradient, √Σₙ (∂ℓₙ/∂w)²; shaped like the weight."""
    return _sum_of_squared_sample_grads(inputs, output_grads, layer)


@statistic(finish=_mean_over_samples)
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
    return like_weight(layer, inputs.double().square().sum((1, 2)))


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
    return F.cross_entropy(outputs, targets)


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
    layers = prunable(model, exclude)
    if any(s.needs_data for s in asked) and data is None:
        which = ", ".join(s.name for s in asked if s.needs_data)
        raise ValueError(f"data is needed to collect {which}: pass data=(x, y), or task.calibration(n)")
    result: Statistics = {name: {} for name in layers}
    for s in asked:
        if not s.needs_data:
            for name, layer in layers.items():
                result[name][s.name] = s.batch(**_pick(s.needs, name, layer, initial))
    measured = [s for s in asked if s.needs_data]
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


class _Recorder:
    """What the layers of one weight saw during a batch: inputs, and gradients of outputs, call by call."""

    def __init__(self, name: str, layer: Layer) -> None:
        self.name, self.layer = name, layer
        self.calls: list[dict[str, Any]] = []

    def watch(self, module: nn.Module) -> RemovableHandle:
        def after(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            x = args[0] if args else kwargs["input"]
            call = {"x": x.detach(), "written": _writes(x), "layer": module}  # sharers may differ in stride or padding
            self.calls.append(call)
            if output.requires_grad:
                output.register_hook(lambda grad: call.update(grad=grad))

        return module.register_forward_hook(after, with_kwargs=True)

    def take(self, samples: int, needs: set[str]) -> dict[str, Any]:
        """`inputs` and `output_grads` of this batch; several calls of one weight count as positions of a sample."""
        calls, self.calls = self.calls, []
        if any(_writes(call["x"]) != call["written"] for call in calls):
            raise RuntimeError(
                f"the model writes into the input of {self.name} in place after the layer has seen it: "
                "let the model write into a copy, or leave the layer out with exclude"
            )
        inputs = [self._by_sample(patches(call["layer"], call["x"]), samples) for call in calls]
        shapes = [tuple(call["x"].shape) for x, call in zip(inputs, calls, strict=True) if x.shape[1] != samples]
        if shapes and "output_grads" in needs:
            raise ValueError(
                f"{self.name} saw inputs of shape {shapes[0]} in a batch of {samples} samples: gradients of single "
                "samples need layers that see the samples in the first dimension (batch_first=True?)"
            )
        taken = {"inputs": torch.cat(inputs, 2)}
        if "output_grads" in needs:
            width = self.layer.weight.shape[0] // len(inputs[0])
            grads = [
                x.new_zeros(*x.shape[:3], width)  # a call that the loss does not depend on
                if "grad" not in call
                else self._by_sample(outputs_by_position(call["layer"], call["grad"]), samples)
                for x, call in zip(inputs, calls, strict=True)
            ]
            taken["output_grads"] = torch.cat(grads, 2) * samples  # of each sample's own loss, not of the mean
        return taken

    def _by_sample(self, rows: Tensor, samples: int) -> Tensor:
        """(g, n, t, ·) in at least float32; rows that a model had merged into the batch become positions again."""
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if rows.shape[1] != samples and rows.shape[1] % samples == 0:
            rows = rows.unflatten(1, (samples, -1)).flatten(2, 3)
        return rows


def _writes(x: Tensor) -> int:
    """How often a tensor was written into."""
    return 0 if x.is_inference() else x._version


def _measure(
    model: nn.Module, layers: dict[str, Layer], asked: list[Statistic], data: Any, loss: Loss, initial: Any
) -> Statistics:
    """Sum each statistic over the batches of one pass."""
    needs = {need for s in asked for need in s.needs}
    want_grad = bool(needs & {"batch_grad", "output_grads"})
    weights = [layer.weight for layer in layers.values()]
    recorders = {name: _Recorder(name, layer) for name, layer in layers.items()}
    totals: Statistics = {name: {} for name in layers}
    samples, positions = 0, dict.fromkeys(layers, 0)
    with ExitStack() as undo:
        if "torch._dynamo" in sys.modules:  # compiled models would pass the hooks by
            undo.enter_context(torch.compiler.set_stance("force_eager"))
        for module in model.modules():
            undo.callback(setattr, module, "training", module.training)
            if needs & {"inputs", "output_grads"}:
                for recorder in recorders.values():
                    if isinstance(module, PRUNABLE) and module.weight is recorder.layer.weight:
                        undo.callback(recorder.watch(module).remove)
        for w in weights:
            undo.callback(w.requires_grad_, w.requires_grad)
            w.requires_grad_(w.requires_grad or want_grad)
        model.eval()
        for x, y in progress(batches(data), desc="collecting statistics", unit="batch"):
            grads = _run(model, x, y, weights, loss, want_grad)
            batch_size = length(x, "inputs")
            samples += batch_size
            silent = [name for name, recorder in recorders.items() if not recorder.calls]
            if silent and needs & {"inputs", "output_grads"}:
                raise ValueError(
                    f"never called as a layer in the forward pass (used through the weight only?): {silent}; "
                    f"leave out with exclude={silent}, or choose a criterion that needs no data"
                )
            for (name, layer), batch_grad in zip(layers.items(), grads, strict=True):
                found: dict[str, Any] = {"batch_grad": batch_grad, "batch_size": batch_size}
                if needs & {"inputs", "output_grads"}:
                    found |= recorders[name].take(batch_size, needs)
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


def _run(
    model: nn.Module, x: Any, y: Any, weights: Sequence[Tensor], loss: Loss, want_grad: bool
) -> list[Tensor | None]:
    """One forward pass and, if wanted, one backward pass; gradients of the batch's mean loss, none in `.grad`."""
    x, y = tree_map(lambda leaf: leaf.to(weights[0].device) if isinstance(leaf, Tensor) else leaf, (x, y))
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
        grads = torch.autograd.grad(value, weights, allow_unused=True)
    return [torch.zeros_like(w) if grad is None else grad for w, grad in zip(weights, grads, strict=True)]


def _finished(s: Statistic, total: Tensor, samples: int, positions: int, layer: Layer) -> Tensor:
    if s.finish is not None:
        known = {"total": total, "samples": samples, "positions": positions, "layer": layer}
        total = s.finish(**{name: known[name] for name in inspect.signature(s.finish).parameters})
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    return total.detach().to(dtype) if total.is_floating_point() else total
