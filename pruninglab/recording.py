"""What layers see and give while a model runs: their inputs, the gradients of their outputs, their feature maps.

`Recorder` listens to one weight with hooks. `Following` watches every function that the model calls, and so finds the
norm and the activation that take a layer's output, whether they are modules or not. Sums and means of what is recorded
are the business of `pruninglab.statistics`.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from pruninglab.layers import PRUNABLE, Layer, is_routed, outputs_by_position, patches

NORMS = frozenset({"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"})
_ACTIVATIONS = """
    celu elu gelu hardsigmoid hardswish hardtanh leaky_relu mish prelu relu relu6 selu sigmoid silu softplus tanh
"""
ACTIVATIONS = frozenset(_ACTIVATIONS.split())
RECORDED = frozenset({"inputs", "output_grads", "maps", "map_grads"})
MAPS = frozenset({"maps", "map_grads"})


class Following(TorchFunctionMode):
    """Follows tensors through the norm and the activation that come next, as long as nothing else uses them.

    `start` begins a trail, a dictionary that always holds `end`, the last tensor of the trail (a copy, since a model
    may write into its own), and `norm`, the first parameter of the norm on it, or None. Where a backward pass comes
    afterwards, `grads[depth]` is the gradient of the loss with respect to `end`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trails = WeakTensorKeyDictionary()

    def start(self, output: Tensor) -> dict[str, Any]:
        trail: dict[str, Any] = {"depth": -1, "open": True, "grads": {}, "norm": None}
        self._step(trail, output)
        return trail

    def _step(self, trail: dict[str, Any], tensor: Tensor) -> None:
        """Make `tensor` the end of the trail."""
        depth = trail["depth"] + 1
        trail.update(depth=depth, end=tensor.detach().clone())
        self.trails[tensor] = (trail, depth)
        if tensor.requires_grad:
            tensor.register_hook(lambda grad: trail["grads"].update({depth: grad}))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            return result  # a question such as x.shape, not a use
        name = getattr(func, "__name__", "").rstrip("_")
        given = [leaf for leaf in tree_leaves((args, dict(kwargs or {}))) if isinstance(leaf, Tensor)]
        for place, tensor in enumerate(given):
            if tensor not in self.trails:
                continue
            trail, depth = self.trails[tensor]
            norm = name in NORMS
            if trail["open"] and depth == trail["depth"] and not place and (norm or name in ACTIVATIONS):
                if norm and trail["norm"] is None:
                    weights = [leaf for leaf in given[1:] if isinstance(leaf, nn.Parameter)]
                    trail["norm"] = (depth, weights[0] if weights else None)
                self._step(trail, result)
            else:
                self._settle(trail, depth, tensor)
        return result

    def _settle(self, trail: dict[str, Any], depth: int, tensor: Tensor) -> None:
        """Something else uses `tensor`: the trail ends there, if it does not end before."""
        trail["open"] = False
        if depth < trail["depth"]:
            trail.update(depth=depth, end=tensor.detach().clone())
            if trail["norm"] is not None and trail["norm"][0] >= depth:
                trail["norm"] = None


class Recorder:
    """What the layers of one weight saw and gave during a batch, call by call."""

    def __init__(self, name: str, layer: Layer, following: Following | None = None) -> None:
        self.name, self.layer, self.following = name, layer, following
        self.calls: list[dict[str, Any]] = []

    def watch(self, module: nn.Module) -> RemovableHandle:
        def after(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            x = args[0] if args else kwargs["input"]
            # Sharers may differ in stride or padding, so each call has its own layer.
            call = {"x": x.detach(), "written": writes(x), "layer": module, "outputs": output.shape}
            self.calls.append(call)
            if output.requires_grad:
                output.register_hook(lambda grad: call.update(grad=grad))
            if self.following is not None:
                call["trail"] = self.following.start(output)

        return module.register_forward_hook(after, with_kwargs=True)

    def take(self, samples: int, needs: set[str]) -> dict[str, Any]:
        """What was asked for of this batch; several calls of one weight count as positions of a sample."""
        calls, self.calls = self.calls, []
        taken: dict[str, Any] = {}
        if samples > 1 and needs & {"output_grads", *MAPS} and is_routed(self.layer):
            raise ValueError(
                f"{self.name} is of an expert, which sees tokens of all {samples} samples of a batch mixed: what is of "
                "single samples needs batches of one sample, such as data=list(zip(x.split(1), y.split(1)))"
            )
        if needs & {"inputs", "output_grads"}:
            taken |= self._rows(calls, samples, needs)
        if needs & MAPS:
            trails = [call["trail"] for call in calls]
            taken["maps"] = [self._map(trail["end"], samples) for trail in trails]
        if "map_grads" in needs:
            grads = [trail["grads"].get(trail["depth"], torch.zeros_like(trail["end"])) for trail in trails]
            taken["map_grads"] = [self._map(grad, samples) * samples for grad in grads]  # of each sample's own loss
        return taken

    def _rows(self, calls: list[dict[str, Any]], samples: int, needs: set[str]) -> dict[str, Tensor]:
        """`inputs` and `output_grads`."""
        if any(writes(call["x"]) != call["written"] for call in calls):
            raise RuntimeError(
                f"the model writes into the input of {self.name} in place after the layer has seen it: "
                "let the model write into a copy, or leave the layer out with exclude"
            )
        taken: dict[str, Tensor] = {}
        if "inputs" in needs:
            inputs = [self._by_sample(patches(call["layer"], call["x"]), samples) for call in calls]
            taken["inputs"] = torch.cat(inputs, 2)
        if "output_grads" in needs:
            grads = [self._by_sample(outputs_by_position(call["layer"], _grad(call)), samples) for call in calls]
            shapes = [tuple(call["x"].shape) for g, call in zip(grads, calls, strict=True) if g.shape[1] != samples]
            if shapes:
                raise ValueError(
                    f"{self.name} saw inputs of shape {shapes[0]} in a batch of {samples} samples: gradients of single "
                    "samples need layers that see the samples in the first dimension (batch_first=True?)"
                )
            taken["output_grads"] = torch.cat(grads, 2) * samples  # of each sample's own loss, not of the mean
        return taken

    def _by_sample(self, rows: Tensor, samples: int) -> Tensor:
        """(g, n, t, ·) in at least float32; rows that a model had merged into the batch become positions again."""
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if rows.shape[1] != samples and rows.shape[1] % samples == 0:
            rows = rows.unflatten(1, (samples, -1)).flatten(2, 3)
        return rows

    def _map(self, tensor: Tensor, samples: int) -> Tensor:
        """(n, o, …) in at least float32: samples, outputs, then whatever positions there are."""
        tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        if isinstance(self.layer, nn.Linear):
            tensor = tensor.movedim(-1, 1)
        if len(tensor) == samples:
            return tensor
        if len(tensor) % samples:
            raise ValueError(
                f"{self.name} gave outputs of shape {tuple(tensor.shape)} in a batch of {samples} samples: feature "
                "maps need layers that see the samples in the first dimension (batch_first=True?)"
            )
        return tensor.unflatten(0, (samples, -1)).transpose(1, 2)


def _grad(call: Mapping[str, Any]) -> Tensor:
    """The gradient of a call's output: zero for one that the loss does not depend on."""
    return call["grad"] if "grad" in call else call["x"].new_zeros(call["outputs"])


def writes(x: Tensor) -> int:
    """How often a tensor was written into."""
    return 0 if x.is_inference() else x._version


@contextmanager
def recording(
    model: nn.Module, layers: Mapping[str, Layer], following: Following | None = None
) -> Iterator[dict[str, Recorder]]:
    """Recorders of all layers, listening; and, if given, `following` at work."""
    recorders = {name: Recorder(name, layer, following) for name, layer in layers.items()}
    by_weight = {id(layer.weight): recorders[name] for name, layer in layers.items()}
    handles = [
        by_weight[id(module.weight)].watch(module)
        for module in model.modules()
        if isinstance(module, PRUNABLE) and id(module.weight) in by_weight
    ]
    try:
        yield recorders
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def observed(model: nn.Module, *, gradients: bool | None = None) -> Iterator[None]:
    """A model in evaluation mode and uncompiled; its modes and its frozen parameters are afterwards as before.

    Args:
        model: any module.
        gradients: whether its parameters ask for gradients meanwhile; None leaves them as they are.
    """
    with ExitStack() as undo:
        if "torch._dynamo" in sys.modules:  # compiled models would pass the hooks by
            undo.enter_context(torch.compiler.set_stance("force_eager"))
        for module in model.modules():
            undo.callback(setattr, module, "training", module.training)
        if gradients is not None:
            undo.enter_context(requiring_grad(model.parameters(), gradients))
        model.eval()
        yield


@contextmanager
def requiring_grad(parameters: Iterable[Tensor], wanted: bool = True) -> Iterator[None]:
    """Parameters that ask for gradients, or do not, while the block runs; afterwards each is as before."""
    with ExitStack() as undo:
        for parameter in parameters:
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(wanted)
        yield


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """A language model keeps no keys and values meanwhile: its cache would grow with each call of a block."""
    configs: dict[int, Any] = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    with ExitStack() as undo:
        for config in configs.values():
            if getattr(config, "use_cache", None):
                undo.callback(setattr, config, "use_cache", config.use_cache)
                config.use_cache = False
        yield
