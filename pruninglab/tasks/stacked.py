"""Many small networks as one: their weights lie stacked, and each layer of all of them is one operation.

A small network leaves a processor idle between its many small operations; five of them together cost little more than
one. The trick is to lay the networks' batches behind one another, as one batch of S · n samples. Whatever treats
samples alike (activations, pooling, padding, adding) then needs no change. Only layers with weights have to know that
the first n samples belong to the first network, the next n to the second, and so on.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRIED = 4  # samples for each network in the trial whether a stack gives what they give
DRAWING = (nn.modules.dropout._DropoutNd, nn.RReLU)  # alone each network draws what its own seed says
LARGE = 300_000  # parameters, above which a network keeps a processor's cores busy by itself


class StackedLinear(nn.Module):
    """S linear layers. The weight is (S, inputs, outputs), so transposed: a batch of products is faster that way."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().t() for layer in layers]))
        self.bias = _stacked(layers, "bias")

    def forward(self, x: Tensor) -> Tensor:
        networks, inputs, outputs = self.weight.shape
        y = torch.bmm(x.reshape(networks, -1, inputs), self.weight)
        return (y if self.bias is None else y.add_(self.bias[:, None])).view(*x.shape[:-1], outputs)


class StackedConv2d(nn.Module):
    """S convolutions as one with S times as many groups."""

    def __init__(self, layers: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.weight, self.bias = _stacked(layers, "weight"), _stacked(layers, "bias")
        first = layers[0]
        self.how = (first.stride, first.padding, first.dilation, first.groups * len(layers))

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        bias = None if self.bias is None else self.bias.flatten()
        y = F.conv2d(_beside(x, len(self.weight)), self.weight.flatten(0, 1), bias, *self.how)  # type: ignore[arg-type]
        return _behind(y, len(self.weight))


class StackedBatchNorm(nn.Module):
    """S batch norms as one over S times as many channels."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, layers: Sequence[nn.BatchNorm2d]) -> None:
        super().__init__()
        self.weight, self.bias = _stacked(layers, "weight"), _stacked(layers, "bias")
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, torch.stack([getattr(layer, name) for layer in layers]))
        self.momentum, self.eps = layers[0].momentum, layers[0].eps

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (None if tensor is None else tensor.flatten() for tensor in (self.weight, self.bias))
        if self.training:
            self.num_batches_tracked.add_(1)
        mean, var = self.running_mean.flatten(), self.running_var.flatten()  # views, so they are updated in place
        beside = _beside(x, len(self.running_mean))
        y = F.batch_norm(beside, mean, var, weight, bias, self.training, self.momentum or 0.0, self.eps)
        return _behind(y, len(self.running_mean))


STACKED = {nn.Linear: StackedLinear, nn.Conv2d: StackedConv2d, nn.BatchNorm2d: StackedBatchNorm}


def _stacked(layers: Sequence[nn.Module], name: str) -> nn.Parameter | None:
    parts = [getattr(layer, name) for layer in layers]
    return None if parts[0] is None else nn.Parameter(torch.stack([part.detach() for part in parts]))


def _beside(x: Tensor, networks: int) -> Tensor:
    """(S · n, channels, …) → (n, S · channels, …): samples behind one another become channels beside one another."""
    return x.unflatten(0, (networks, -1)).transpose(0, 1).flatten(1, 2)


def _behind(x: Tensor, networks: int) -> Tensor:
    """(n, S · channels, …) → (S · n, channels, …)."""
    return x.unflatten(1, (networks, -1)).transpose(0, 1).flatten(0, 1)


class Stack(nn.Module):
    """Networks of one kind as one module, whose batches are theirs behind one another: (S · n, …) → (S · n, …).

    Args:
        models: what `stackable` agrees to; they are not changed.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.size = len(models)
        memo: dict[int, object] = {}
        for name, module in models[0].named_modules():
            if type(module) in STACKED:
                memo[id(module)] = STACKED[type(module)]([model.get_submodule(name) for model in models])
        self.net = copy.deepcopy(models[0], memo)  # deepcopy takes from the memo what it finds there

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Each sample's cross-entropy, shape (S · n,)."""
        return F.cross_entropy(self(x), y, reduction="none")

    def slots(self) -> Iterator[tuple[str, Tensor]]:
        """Name in a single network → stacked tensor, of parameters and buffers."""
        yield from self.net.named_parameters()
        yield from self.net.named_buffers()

    def part(self, name: str, stacked: Tensor, s: int) -> Tensor:
        """Network s's part of a stacked parameter, or of its gradient or momentum: a view."""
        module = self.net.get_submodule(name.rpartition(".")[0])
        return stacked[s].t() if isinstance(module, StackedLinear) and stacked.ndim == 3 else stacked[s]

    @contextmanager
    def shared_with(self, models: Sequence[nn.Module]) -> Iterator[None]:
        """While the block runs, the networks' own parameters and buffers are views of the stack's."""
        try:
            for s, model in enumerate(models):
                for name, stacked in self.slots():
                    _tensor_of(model, name).data = self.part(name, stacked.detach(), s)
            yield
        finally:
            for model in models:
                for name, _ in self.slots():
                    tensor = _tensor_of(model, name)
                    tensor.data, tensor.grad = tensor.detach().clone(memory_format=torch.contiguous_format), None


def _tensor_of(model: nn.Module, name: str) -> Tensor:
    path, _, own = name.rpartition(".")
    return getattr(model.get_submodule(path), own)


@torch.no_grad()
def stackable(models: Sequence[nn.Module], inputs: Tensor) -> bool:
    """Whether networks can train as a `Stack`: small, of one kind, made of known layers, and treating samples alike.

    The last is tried: some samples of `inputs` for each network have to come out of the stack as out of the networks,
    in training and in evaluation.
    """
    kinds = [[(name, type(module), _settings(module)) for name, module in model.named_modules()] for model in models]
    shapes = [[(name, t.shape, t.dtype, t.device) for name, t in model.state_dict().items()] for model in models]
    first = models[0]
    if any(kind != kinds[0] for kind in kinds) or any(shape != shapes[0] for shape in shapes):
        return False
    if len({id(model) for model in models}) < len(models) or sum(p.numel() for p in first.parameters()) > LARGE:
        return False
    if not all(_known(module) for model in models for module in model.modules()):
        return False
    if len(list(first.parameters())) != len(list(first.named_parameters(remove_duplicate=False))):
        return False  # weights that two layers share
    x = inputs[torch.arange(TRIED * len(models)) % len(inputs)].to(next(first.parameters()).device)
    try:
        with generators_kept(x.device):
            return all(_alike(models, x, training) for training in (False, True))
    except Exception:  # a forward that knows its layers' names or shapes: it cannot be done as a stack
        return False


def generators_kept(device: torch.device) -> AbstractContextManager[None]:
    """After the block, the random generators of the processor and of this device are as they were before."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _settings(module: nn.Module) -> dict[str, object]:
    """What a module was made with, such as a momentum; but not its mode."""
    plain = (bool, int, float, str, tuple, type(None))
    return {name: value for name, value in vars(module).items() if isinstance(value, plain) and name != "training"}


def _alike(models: Sequence[nn.Module], x: Tensor, training: bool) -> bool:
    """Whether a stack gives what the networks give, each for its part of x. The networks are not changed."""
    together = Stack(models).train(training)(x)
    parts = zip(models, x.chunk(len(models)), strict=True)
    alone = torch.cat([copy.deepcopy(model).train(training)(part) for model, part in parts])
    return together.shape == alone.shape and torch.allclose(together, alone, rtol=1e-3, atol=1e-4)


def _known(module: nn.Module) -> bool:
    if isinstance(module, DRAWING):
        return False
    if any(getattr(module, hooks) for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")):
        return False
    if not all(p.requires_grad for p in module.parameters(recurse=False)):
        return False
    if isinstance(module, nn.Conv2d):
        return type(module) is nn.Conv2d and module.padding_mode == "zeros"
    if isinstance(module, nn.BatchNorm2d):
        return type(module) is nn.BatchNorm2d and module.track_running_stats and module.momentum is not None
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return type(module) is nn.Linear or not own
