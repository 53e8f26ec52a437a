"""Gates that open and close channels for each input: small networks that run beside a network while it trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from pruninglab.channels import masks_of
from pruninglab.graph import Graph
from pruninglab.layers import prunable
from pruninglab.masks import Masks
from pruninglab.recipes.inner import inner, readers

HIDDEN = 16  # width of the small network that decides


class Gates(nn.Module):
    """Binary gates on the channels inside a network, decided for each input by what arrives at their layer.

    g(x) = 1 if σ(MLP(mean of x over positions)) > ½ else 0, with the gradient of σ.

    Args:
        model: the network, which is not changed.
        graph: its channels.
        seed: of the gates' own weights.
    """

    def __init__(self, model: nn.Module, graph: Graph, seed: int = 0) -> None:
        super().__init__()
        self.graph, self.families, self.columns = graph, inner(graph), readers(graph, model)
        self.values: dict[str, Tensor] = {}  # layer → gates of the last batch, (batch, channels)
        self.deciders = nn.ModuleList()
        layers, like = prunable(model), next(model.parameters())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name in self.families:
                layer = layers[name]
                inputs, outputs = layer.weight.shape[1] * getattr(layer, "groups", 1), len(layer.weight)
                self.deciders.append(nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)))
        self.to(like.device, torch.promote_types(like.dtype, torch.float32))

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """While the block runs, each layer of `model` reads its input channels times their gates."""
        layers = prunable(model)
        handles = [
            layers[name].register_forward_pre_hook(partial(self._read, channels.reshape(-1)))
            for name, channels in self.columns.items()
        ]
        handles += [
            layers[name].register_forward_pre_hook(partial(self._decide, name, decider))
            for name, decider in zip(self.families, self.deciders, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.values = {}

    def _decide(self, name: str, decider: nn.Module, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].to(next(decider.parameters()).dtype)
        positions = list(range(1, x.ndim - 1)) if isinstance(layer, nn.Linear) else list(range(2, x.ndim))
        soft = torch.sigmoid(decider(x.mean(positions) if positions else x))
        self.values[name] = (soft > 0.5).to(soft) + (soft - soft.detach())

    def _read(self, channels: Tensor, layer: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        (x,) = args
        gates = self.all(x)[:, channels % (self.graph.n + 1)]
        middle = [1] * (x.ndim - 2)
        return x * (
            gates.view(len(x), *middle, -1) if isinstance(layer, nn.Linear) else gates.view(len(x), -1, *middle)
        )

    def all(self, like: Tensor) -> Tensor:
        """The gates of the last batch, (batch, channels + 1); 1 for channels without a gate and for no channel."""
        result = like.new_ones(len(like), self.graph.n + 1)
        for name, values in self.values.items():
            result = result.index_copy(1, self.graph.births[name, 0].to(like.device), values.to(like))
        return result

    @torch.no_grad()
    def means(self, model: nn.Module, x: Tensor) -> Tensor:
        """The fraction of inputs for which each gate is open, (gates,), layer after layer."""
        with self.on(model):
            model(x)
            return torch.cat([values.mean(0) for values in self.values.values()])

    def masks(self, model: nn.Module, is_open: Tensor) -> Masks:
        """Masks of the channels whose gates are closed; `is_open` is (gates,) bool."""
        return masks_of(model, self.graph, self.closed(is_open))

    def closed(self, is_open: Tensor) -> Tensor:
        """Those channels, (channels,) bool."""
        channels = torch.cat([self.graph.births[name, 0] for name in self.families])
        removed = torch.zeros(self.graph.n, dtype=torch.bool)
        removed[channels[~is_open.cpu()]] = True
        return removed

    @property
    def sizes(self) -> list[int]:
        """How many gates each layer has."""
        return [family.channels for family in self.families.values()]
