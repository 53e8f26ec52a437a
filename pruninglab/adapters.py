"""Low-rank adapters: two small matrices beside each linear layer, which are trained in place of its weight.

With W the weight (outputs, inputs), M its mask, B (outputs, rank), A (rank, inputs) and s = alpha / rank, a layer uses

    "lora"    W + s BA           whatever the mask; merging has to write zeros, which changes what was learned
    "mask"    W + s M ⊙ BA       zeros stay zeros, so merging loses nothing
    "scale"   W ⊙ BA             likewise; weights can only be rescaled

LoRA is from Hu et al. 2021; the other two are from Zimmer et al. 2023 (PERP). Nothing is put into the model: it is
wrapped, and only while the wrapper is called do its layers use their adapters.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruninglab.layers import prunable
from pruninglab.masks import Masks, write_zeros
from pruninglab.naming import unknown
from pruninglab.recording import requiring_grad
from pruninglab.watching import own_forward

KINDS = ("lora", "mask", "scale")


class Adapter(nn.Module):
    """The two matrices of one layer, which at first change nothing.

    Attributes:
        up: B, (outputs, rank).
        down: A, (rank, inputs).
        mask: the layer's, if it has one.
    """

    def __init__(
        self, layer: nn.Linear, kind: str, mask: Tensor | None, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        outputs, inputs = layer.weight.shape
        self.kind, self.scale = kind, alpha / rank
        self.mask = None if mask is None else mask.to(layer.weight.device)
        like: dict[str, Any] = {"device": layer.weight.device}
        like["dtype"] = torch.promote_types(layer.weight.dtype, torch.float32)  # small steps vanish in bfloat16
        reach = 1 / math.sqrt(inputs)
        drawn = (2 * torch.rand(rank, inputs, generator=generator, dtype=torch.float64) - 1) * reach
        self.down = nn.Parameter(drawn.to(**like))
        self.up = nn.Parameter(torch.zeros(outputs, rank, **like))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Set BA to what changes nothing: 0, or 1 for "scale".

        The paper starts "scale" with 1 / √rank everywhere. All columns of B then get the same gradient at each step, so
        that BA would keep rank 1. Here the first column of B and the first row of A are 1; the others begin as in LoRA.
        """
        self.up.zero_()
        if self.kind == "scale":
            self.up[:, 0] = 1
            self.down[0] = 1

    def weight(self, weight: Tensor) -> Tensor:
        """The weight that the layer uses instead of its own; same shape and dtype."""
        product = self.up @ self.down
        if self.kind == "scale":
            return (weight * product).to(weight.dtype)
        change = self.scale * product
        if self.kind == "mask" and self.mask is not None:
            change = torch.where(self.mask, change, 0)
        return (weight + change).to(weight.dtype)

    def forward(self, layer: nn.Linear, input: Tensor) -> Tensor:
        """What the layer returns. For "lora" BA is never formed, nor the gradient of anything of the weight's size."""
        if self.kind != "lora":
            return F.linear(input, self.weight(layer.weight), layer.bias)
        output = F.linear(input, layer.weight, layer.bias)
        change = F.linear(F.linear(input.to(self.down.dtype), self.down), self.scale * self.up)
        return output + change.to(output.dtype)


class Adapted(nn.Module):
    """A model with adapters, to be called and trained like the model. The model itself stays as it is until `merge`.

    What its own parameters do is not decided here: see `training_only`.

    Args:
        model: any module.
        kind: "lora", "mask" or "scale".
        masks: what is pruned; needed for "mask". May speak of other parameters too.
        layers: names of weights of linear layers; all linear layers that `masks` speak of if not given, or all that
            are prunable.
        rank: of BA, at least 1.
        alpha: BA counts alpha / rank times; "scale" knows no alpha.
        seed: A begins at random.

    Raises:
        ValueError: an unknown kind, no masks for "mask", no linear layer, or a rank less than 1.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: str = "mask",
        *,
        masks: Masks | None = None,
        layers: Iterable[str] | None = None,
        rank: int = 8,
        alpha: float = 16.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise unknown("kind of adapter", kind, KINDS)
        if rank < 1:
            raise ValueError(f"the rank of an adapter is at least 1, not {rank}")
        self.model, self.layers = model, _linear_layers(model, masks, layers)
        known: Mapping[str, Tensor] = {} if masks is None else masks
        bare = [name for name in self.layers if name not in known]
        if kind == "mask" and bare:
            raise ValueError(f"adapters of kind 'mask' need the mask of each layer; there is none for {bare[0]!r}")
        generator = torch.Generator().manual_seed(seed)
        self.adapters = nn.ModuleList(
            Adapter(layer, kind, known.get(name), rank, alpha, generator) for name, layer in self.layers.items()
        )
        mine = {id(layer.weight): adapter for layer, adapter in zip(self.layers.values(), self.adapters, strict=True)}
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        self.users = [(layer, mine[id(layer.weight)]) for layer in linear if id(layer.weight) in mine]

    def by_name(self) -> dict[str, Adapter]:
        """Name of a weight → its adapter."""
        return dict(zip(self.layers, self.adapters, strict=True))  # type: ignore[arg-type]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns when its layers use their adapters."""
        with self._in_use():
            return self.model(*args, **kwargs)

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """While the block runs, the layers' `forward` is that of their adapters; the layers' hooks go on working."""
        with ExitStack() as undo:
            for layer, adapter in self.users:  # several where layers share a weight
                undo.enter_context(own_forward(layer))
                layer.forward = partial(adapter, layer)  # type: ignore[method-assign]
            yield

    @torch.no_grad()
    def merge(self) -> None:
        """Write into the weights what the adapters make of them, zeros where masks say so; the adapters begin anew."""
        for layer, adapter in zip(self.layers.values(), self.adapters, strict=True):
            assert isinstance(adapter, Adapter)
            layer.weight.copy_(adapter.weight(layer.weight))
            if adapter.mask is not None:
                write_zeros(layer.weight, adapter.mask)
            adapter.reset()

    def factored(self, masks: Masks) -> Masks:
        """Masks of the As and Bs, under which BA has the zeros of masks that empty whole rows and columns.

        With these held, "lora" can be merged without a loss too.

        Raises:
            ValueError: a mask is not of that kind.
        """
        found = {}
        for place, (name, adapter) in enumerate(self.by_name().items()):
            if name in masks:
                rows, columns = masks[name].any(1), masks[name].any(0)
                if not torch.equal(rows[:, None] & columns, masks[name]):
                    raise ValueError(f"the mask of {name} does not empty whole rows and columns, so A and B have none")
                found[f"adapters.{place}.up"] = rows[:, None].expand_as(adapter.up).contiguous()
                found[f"adapters.{place}.down"] = columns.expand_as(adapter.down).contiguous()
        return Masks(found)


@contextmanager
def training_only(model: nn.Module, parameters: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """While the block runs, these parameters of the model need gradients and no others; afterwards all is as before."""
    with requiring_grad(model.parameters(), False), requiring_grad(parameters):
        yield


def _linear_layers(model: nn.Module, masks: Masks | None, names: Iterable[str] | None) -> dict[str, nn.Linear]:
    linear = {name: layer for name, layer in prunable(model).items() if isinstance(layer, nn.Linear)}
    wanted = list(linear if masks is None else masks) if names is None else list(names)
    found = {name: linear[name] for name in wanted if name in linear}
    wrong = [name for name in wanted if name not in linear]
    if names is not None and wrong:
        raise ValueError(f"{wrong[0]!r} is not the weight of a linear layer; those are {', '.join(linear) or 'none'}")
    if not found:
        whose = f"this {type(model).__name__}" if masks is None else "the masks' layers"
        raise ValueError(f"adapters stand beside linear layers, of which there is none among {whose}")
    return found
