"""What a network gives when channels are masked: the large model, computed without any of the surgery.

Every member of a removed channel is zero. Only where a norm takes a mean over channels does this differ from running
the masked model as it is: the mean is over the channels that are left, as in the smaller model.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pruninglab.batches import call
from pruninglab.colours import Colouring, narrow
from pruninglab.graph import Graph, watched


class Masked(Colouring):
    """Colours a run anew, and lets norms look at living channels only."""

    def __init__(self, model: nn.Module, graph: Graph, removed: Tensor) -> None:
        super().__init__(model)
        self.number, self.removed = graph.number, torch.cat([removed, torch.zeros(1, dtype=torch.bool)])

    def living(self, tensor: Tensor) -> Tensor | None:
        shadow = self.shadow(tensor)
        if shadow is None:
            return None
        return (~self.removed[self.number[narrow(shadow)]]).expand(tensor.shape)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        alive = self.living(args[0]) if args and isinstance(args[0], Tensor) else None
        out = super().__torch_dispatch__(function, types, args, kwargs)
        if alive is None or alive.all():
            return out
        if name == "native_layer_norm":
            x, shape, weight, bias, eps = args
            dims = list(range(x.ndim - len(shape), x.ndim))
            count = alive.sum(dims, keepdim=True)
            mean = (x * alive).sum(dims, keepdim=True) / count
            variance = ((x - mean).square() * alive).sum(dims, keepdim=True) / count
            normed = (x - mean) / (variance + eps).sqrt()
            normed = normed if weight is None else normed * weight
            out[0].copy_(normed if bias is None else normed + bias)
        elif name == "mean" and len(args) > 1:
            keepdim = len(args) > 2 and args[2]
            count = alive.sum(args[1], keepdim=keepdim).clamp(min=1)
            out.copy_((args[0] * alive).sum(args[1], keepdim=keepdim) / count)
        elif name == "native_group_norm":
            x, weight, bias, n, c, _, groups, eps = args
            parts, lives = x.reshape(n, groups, -1), alive.reshape(n, groups, -1)
            count = lives.sum(-1, keepdim=True)
            mean = (parts * lives).sum(-1, keepdim=True) / count
            variance = ((parts - mean).square() * lives).sum(-1, keepdim=True) / count
            normed = ((parts - mean) / (variance + eps).sqrt()).view(x.shape)
            wide = [1, c] + [1] * (x.ndim - 2)
            out[0].copy_(normed * weight.view(wide) + bias.view(wide))
        return out


@torch.no_grad()
def masked_outputs(model: nn.Module, graph: Graph, removed: Tensor, inputs: Any) -> Any:
    """The outputs of a model of which every member of `removed` channels is zero already."""
    mode = Masked(model, graph, removed)
    with watched(model, mode.where), mode:
        return call(model, inputs)


@torch.no_grad()
def zero(model: nn.Module, graph: Graph, removed: Tensor) -> None:
    """Write zeros into every parameter of the removed channels."""
    alive = graph.alive(removed)
    for name, parameter in model.named_parameters():
        if name in alive:
            parameter.mul_(alive[name])
