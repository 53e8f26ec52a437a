"""How long a network of other widths would take: a table of what each layer takes here, measured once.

Operations do not tell: a narrow convolution is bound by its overhead, a wide one by arithmetic, and widths that fit the
processor are quicker than others. So each kind of layer is timed at a few widths of inputs and outputs, and the time of
a network is the sum over its layers plus what is not in them (NetAdapt: Yang et al. 2018, §3.3).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruninglab.batches import Inputs, call
from pruninglab.graph import Graph
from pruninglab.measure import latency
from pruninglab.progress import progress
from pruninglab.tasks.training import evaluating

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)  # of a layer's inputs and outputs, at which it is timed
REPEATS = 9
TIMED = (nn.Linear, nn.Conv1d, nn.Conv2d)


class LatencyTable:
    """Milliseconds of every layer of a traced network by its numbers of inputs and outputs, on this machine.

    Args:
        model: the network that was traced.
        graph: what `trace` found.
        threads: how many threads torch may use.
    """

    def __init__(self, model: nn.Module, graph: Graph, *, threads: int = 1) -> None:
        from scipy.interpolate import RegularGridInterpolator

        self.graph, self.threads = graph, threads
        self.layers: dict[str, Any] = {}
        known: dict[tuple[Any, ...], Any] = {}
        seen = _inputs_of_layers(model, graph.inputs)
        with progress(seen.items(), desc="timing layers", unit="layer") as bar:
            for name, shape in bar:
                layer = model.get_submodule(name)
                key = (repr(layer), tuple(shape))
                if key not in known:
                    grid = [[self._time(layer, shape, i, o) for o in FRACTIONS] for i in FRACTIONS]
                    axes = (np.array(FRACTIONS), np.array(FRACTIONS))
                    known[key] = RegularGridInterpolator(axes, np.array(grid), bounds_error=False, fill_value=None)
                self.layers[name] = known[key]
        with evaluating(model):
            self.whole = latency(lambda: call(model, graph.inputs), threads=threads).low
        inside = sum(float(table((1.0, 1.0))) for table in self.layers.values())
        self.rest = max(0.0, self.whole - inside)

    def _time(self, layer: nn.Module, shape: torch.Size, inputs: float, outputs: float) -> float:
        made, x = _resized(layer, shape, inputs, outputs)
        return latency(made, x, repeats=REPEATS, threads=self.threads).low

    def predict(self, removed: Tensor) -> float:
        """Milliseconds that the network would take without some channels, (channels,) bool.

        What is not in the timed layers (norms, activations, additions) shrinks with the channels that are left.
        """
        parts = self.graph.kept_parts(removed)
        total = 0.0
        for name, table in self.layers.items():
            out, inner = 1.0, 1.0
            for mask in parts.get(f"{name}.weight", ()):
                left = float(mask.sum()) / mask.numel()
                if mask.shape[0] > 1 and mask.numel() == mask.shape[0]:
                    out = left
                else:
                    inner = left
            total += float(table((inner, out)))
        return total + self.rest * float((~removed).sum()) / len(removed)


def _inputs_of_layers(model: nn.Module, inputs: Inputs) -> Mapping[str, torch.Size]:
    """Layer → the shape of what it is called with."""
    shapes: dict[str, torch.Size] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, TIMED):

            def note(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                shapes[name] = next(tensor for tensor in (*args, *kwargs.values())).shape

            hooks.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        with evaluating(model), torch.no_grad():
            call(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _resized(layer: nn.Module, shape: torch.Size, inputs: float, outputs: float) -> tuple[nn.Module, Tensor]:
    """A layer like this one with a fraction of its inputs and outputs, and something to call it with."""
    if isinstance(layer, nn.Linear):
        width = max(1, round(layer.in_features * inputs))
        made: nn.Module = nn.Linear(width, max(1, round(layer.out_features * outputs)), layer.bias is not None)
        return made.to(layer.weight), torch.randn(*shape[:-1], width).to(layer.weight)
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    depthwise = layer.groups == layer.in_channels > 1
    into = max(1, round(layer.in_channels / layer.groups * inputs)) * layer.groups
    out = max(1, round(layer.out_channels / layer.groups * outputs)) * layer.groups
    groups = layer.groups
    if depthwise:
        into = out = groups = max(1, round(layer.in_channels * outputs))
    made = type(layer)(
        into,
        out,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        groups,
        layer.bias is not None,
        layer.padding_mode,
    )
    return made.to(layer.weight), torch.randn(shape[0], into, *shape[2:]).to(layer.weight)
