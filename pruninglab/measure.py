"""What was gained, and what it cost: sparsity, size, work, time and accuracy, each measured rather than assumed.

Zeros alone make nothing faster, so nothing here turns one number into another: bytes are bytes of a file, and latency
is a clock's.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruninglab.batches import Inputs, call
from pruninglab.files import save_tensors
from pruninglab.layers import EMBEDDINGS, PRUNABLE, Exclude, prunable
from pruninglab.metrics import METRICS
from pruninglab.naming import lookup
from pruninglab.recording import requiring_grad
from pruninglab.storage import save_sparse
from pruninglab.tasks import Task
from pruninglab.tasks.training import evaluating

if TYPE_CHECKING:
    import pandas as pd


def sparsity(model: nn.Module, exclude: Exclude | Iterable[Exclude] = ()) -> float:
    """The fraction of prunable weights that are exactly zero."""
    weights = [layer.weight.detach() for layer in prunable(model, exclude).values()]
    return 1 - sum(int(torch.count_nonzero(w)) for w in weights) / sum(w.numel() for w in weights)


def empty_layers(model: nn.Module) -> list[str]:
    """The prunable layers that have no weight left."""
    return [name for name, layer in prunable(model).items() if not torch.count_nonzero(layer.weight)]


class _Reached(torch.autograd.Function):
    """1 where anything arrives, 0 elsewhere; forwards for signals, backwards for gradients."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        return (x != 0).to(x.dtype)

    @staticmethod
    def backward(_context: Any, grad: Tensor) -> Tensor:
        return (grad != 0).to(grad.dtype)


class _Open(TorchFunctionMode):
    """Leaves out functions that hide paths: flat where many arrive, or of a constant sum."""

    HIDING = (
        "softmax", "log_softmax", "softmin", "sigmoid", "logsigmoid", "hardsigmoid", "tanh", "hardtanh", "relu6",
        "softsign", "clamp",
    )  # fmt: skip

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "").rstrip("_") in self.HIDING and args:
            return args[0]
        return function(*args, **(kwargs or {}))


@torch.enable_grad()
def effective_sparsity(model: nn.Module, example_input: Tensor) -> float:
    """Like `sparsity`, but weights that lie on no path from an input to an output count as gone too.

    A weight is on a path if something reaches it and something leaves it. Both are found by running a copy of the model
    in which every weight that is not zero is 1, biases are gone and norms let everything through: forwards tells what
    reaches a weight, backwards what leaves it. That is exact for networks of linear layers and convolutions, norms,
    ReLU and its kin, pooling, addition and concatenation, whatever squashing function (softmax, tanh, …) they end in.
    It is not for gates, attention and division, where signals multiply, nor where they are subtracted.

    Args:
        model: any module.
        example_input: one batch of the right shape; its values do not matter.

    Raises:
        ValueError: no path is found even with every weight in place.
    """
    skeleton = copy.deepcopy(model).eval()
    for name, module in list(skeleton.named_modules(remove_duplicate=False)):
        plain = _plain(module)
        if plain is not None:
            parent, _, child = name.rpartition(".")
            setattr(skeleton.get_submodule(parent), child, plain)
    layers = prunable(skeleton)
    with torch.no_grad():
        for parameter in skeleton.parameters():
            parameter.requires_grad_(True)
        for name, parameter in skeleton.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        for module in skeleton.modules():
            if isinstance(module, (*PRUNABLE, *EMBEDDINGS)):
                module.weight.copy_(module.weight != 0)
                module.register_forward_hook(lambda _module, _args, output: _Reached.apply(output))
    weights = [layer.weight for layer in layers.values()]
    alive = _on_paths(skeleton, weights, torch.ones_like(example_input[:1]))
    if not alive:
        with torch.no_grad():
            for weight in weights:
                weight.fill_(1)
        if not _on_paths(skeleton, weights, torch.ones_like(example_input[:1])):
            raise ValueError(
                f"effective_sparsity cannot follow {type(model).__name__}: it finds no path, pruned or not"
            )
    return 1 - alive / sum(weight.numel() for weight in weights)


def _on_paths(skeleton: nn.Module, weights: list[Tensor], x: Tensor) -> int:
    """How many of the weights get something from the input and pass it on to the output."""
    with _Open():
        outputs = skeleton(x)
    uneven = torch.linspace(1, 2, outputs.numel()).to(outputs).view_as(outputs)  # a plain sum may be constant
    grads = torch.autograd.grad(outputs, weights, uneven, allow_unused=True)
    found = [(weight != 0) & (grad != 0) for weight, grad in zip(weights, grads, strict=True) if grad is not None]
    return sum(int(mask.sum()) for mask in found)


def _plain(module: nn.Module) -> nn.Module | None:
    """What stands in for a module where only paths matter; None if it stands for itself."""
    if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.Dropout)):
        return nn.Identity()
    if isinstance(module, nn.MaxPool1d):  # the maximum lets one path through, the mean all of them
        return nn.AvgPool1d(module.kernel_size, module.stride, module.padding, module.ceil_mode)
    if isinstance(module, nn.MaxPool2d):
        return nn.AvgPool2d(module.kernel_size, module.stride, module.padding, module.ceil_mode)
    if isinstance(module, nn.AdaptiveMaxPool2d):
        return nn.AdaptiveAvgPool2d(module.output_size)
    return None


def parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters the model has, and how many of them are not zero."""
    return (
        sum(p.numel() for p in model.parameters()),
        sum(int(torch.count_nonzero(p)) for p in model.parameters()),
    )


def stored_bytes(model: nn.Module, sparse: bool = False) -> int:
    """The size in bytes of the state dict as a safetensors file; `sparse`: with zeros left out (see `storage`)."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        (save_sparse if sparse else lambda state, to: save_tensors(to, state))(model.state_dict(), path)
        return path.stat().st_size


def flops(model: nn.Module, example_input: Inputs) -> int:
    """Floating-point operations of one forward pass of this batch, by torch's own counter (2 for a multiply–add).

    A dense kernel multiplies by zeros as well, so zeros change nothing here.
    """
    from torch.utils.flop_counter import FlopCounterMode

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know attention in one piece
    try:
        still = requiring_grad(model.parameters(), False)  # the counter looks for gradients even of a parameter's view
        with evaluating(model), still, torch.no_grad(), FlopCounterMode(display=False) as counter:
            call(model, example_input)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


@dataclass(frozen=True)
class Dead:
    """How much of what ReLUs put out is zero, as fractions.

    Attributes:
        dynamic: zeros among all outputs, over units and inputs.
        static: units that are zero for every input.
    """

    dynamic: float
    static: float


class _Rectified(TorchFunctionMode):
    """Notes where outputs of ReLU are zero, whether a module or a function computed them."""

    def __init__(self) -> None:
        super().__init__()
        self.zeros: list[Tensor] = []

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "").rstrip("_") == "relu":
            if outputs.isnan().any():
                raise ValueError("an output of ReLU is NaN: such a unit is neither dead nor alive")
            self.zeros.append(outputs == 0)
        return outputs


@torch.no_grad()
def dead_units(model: nn.Module, x: Inputs) -> Dead:
    """How many units a ReLU has silenced, for single inputs and for all of them (Liu et al. 2023, dead-neuron rate).

    A unit is one element of a ReLU's output for one input: in a convolutional network every channel at every position.
    Counted are `nn.ReLU`, `F.relu`, `torch.relu` and their in-place forms, wherever they are called, each call with
    units of its own; the first dimension of what they put out has to be the inputs. Other ways to cut at zero, such as
    `clamp` or ReLU6, are not seen.

    Args:
        model: run once, in evaluation mode.
        x: inputs, (n, …) or as the model takes them.

    Raises:
        ValueError: the model calls no ReLU, there are no inputs, or a ReLU puts out NaN.
    """
    with evaluating(model), _Rectified() as seen:
        call(model, x)
    outputs = sum(zero.numel() for zero in seen.zeros)
    if not outputs:
        raise ValueError(
            f"no ReLU of this {type(model).__name__} (nn.ReLU, F.relu, torch.relu) put anything out, "
            "so there is no unit that could be dead"
        )
    always = [zero.all(0) for zero in seen.zeros]
    return Dead(
        dynamic=sum(int(zero.sum()) for zero in seen.zeros) / outputs,
        static=sum(int(unit.sum()) for unit in always) / sum(unit.numel() for unit in always),
    )


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call: the median of `repeats`, and the quartiles around it, on `threads` threads."""

    median: float
    low: float
    high: float
    repeats: int
    threads: int

    def __str__(self) -> str:
        return (
            f"{self.median:.3f} ms ({self.low:.3f} to {self.high:.3f}, {self.repeats} calls, "
            f"{self.threads} thread{'s' * (self.threads > 1)})"
        )


@torch.no_grad()
def latency(run: Any, *inputs: Tensor, repeats: int = 30, threads: int = 1) -> Latency:
    """Time calls of a model, or of any function of tensors.

    Args:
        run: what is called, in evaluation mode if it is a module.
        inputs: what it is called with.
        repeats: how many calls are timed, after three that are not.
        threads: how many threads torch may use meanwhile.

    Raises:
        ValueError: `repeats` is less than 3.
    """
    if repeats < 3:
        raise ValueError(f"repeats must be at least 3 for a median and quartiles, not {repeats}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with evaluating(run) if isinstance(run, nn.Module) else nullcontext():
            for _ in range(3):
                run(*inputs)
            times = []
            for _ in range(repeats):
                _wait(inputs)
                start = time.perf_counter()
                run(*inputs)
                _wait(inputs)
                times.append(1000 * (time.perf_counter() - start))
    finally:
        torch.set_num_threads(before)
    low, median, high = statistics.quantiles(times, n=4)
    return Latency(median, low, high, repeats, threads)


def race(
    ways: Mapping[str, Callable[..., Any]], *inputs: Tensor, rounds: int = 5, repeats: int = 15, threads: int = 1
) -> "pd.DataFrame":
    """Milliseconds of several ways to do one thing: a row for each round, a column for each way.

    For comparing, not for quoting. The ways take turns, so that a busy moment of the machine meets them all; and since
    other work can only add time, each round is the quickest lower quartile of three turns. Divide within rows.

    Args:
        ways: models or functions, by name.
        inputs: what each is called with.
        rounds: how many independent repetitions.
        repeats: calls in one turn.
        threads: how many threads torch may use meanwhile.
    """
    import pandas as pd

    def turn() -> dict[str, float]:
        return {name: latency(run, *inputs, repeats=repeats, threads=threads).low for name, run in ways.items()}

    return pd.DataFrame([pd.DataFrame([turn() for _ in range(3)]).min() for _ in range(rounds)])


def _wait(inputs: tuple[Tensor, ...]) -> None:
    if any(tensor.is_cuda for tensor in inputs) or torch.cuda.is_initialized():  # what is timed may hold tensors itself
        torch.cuda.synchronize()


def accuracy(model: nn.Module, task: Task, split: str = "test") -> tuple[float, float]:
    """Accuracy and its binomial standard error √(p (1 − p) / n): what the finite test set alone leaves open."""
    p, n = task.accuracy(model, split), task.data[split][1].numel()
    return p, math.sqrt(p * (1 - p) / n)


def report(
    model: nn.Module, task: Task, *, split: str = "test", threads: int = 1, metrics: Iterable[str] = ()
) -> "pd.DataFrame":
    """Sparsity, size, work, time and accuracy of a model in one row; put rows together with `pandas.concat`.

    FLOPs and latency are for one input.

    `metrics` are names in `METRICS` ("corrupted", "worst_class", …), each of which becomes a column.
    """
    import pandas as pd

    x = task.data[split][0][:1].to(next(model.parameters()).device)
    p, error = accuracy(model, task, split)
    total, nonzero = parameters(model)
    row = {
        "accuracy": p,
        "accuracy_error": error,
        **{name: lookup("metric", name, METRICS)(model, task, split) for name in metrics},
        "sparsity": sparsity(model),
        "effective_sparsity": effective_sparsity(model, x),
        "empty_layers": len(empty_layers(model)),
        "parameters": total,
        "nonzero": nonzero,
        "bytes_dense": stored_bytes(model),
        "bytes_sparse": stored_bytes(model, sparse=True),
        "flops": flops(model, x),
        "latency_ms": latency(model, x, threads=threads).median,
        "threads": threads,
    }
    return pd.DataFrame([row])
