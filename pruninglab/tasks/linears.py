"""Layers of transformers that are linear but packed otherwise, as ordinary `Linear` ones, and back again.

GPT-2 keeps its weights transposed (`Conv1D`), and a mixture of experts keeps those of all experts in one tensor. Every
criterion and statistic is written for `Linear`, so models are unpacked when they are loaded; `as_published` packs them
again, so that `save_pretrained` writes what `from_pretrained` can read.
"""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn


class Experts(nn.Module):
    """The experts of one block, each with three linear layers. Does what the packed module does, which is emptied."""

    def __init__(self, packed: Any) -> None:
        super().__init__()
        self.packed = [packed]  # in a list, so that its parameters are not found twice
        gate, up = packed.gate_up_proj.detach().chunk(2, dim=1)
        self.gate_proj = nn.ModuleList(map(_linear, gate))
        self.up_proj = nn.ModuleList(map(_linear, up))
        self.down_proj = nn.ModuleList(map(_linear, packed.down_proj.detach()))
        for layer in (*self.gate_proj, *self.up_proj, *self.down_proj):
            layer.routed = True  # see `layers.is_routed`
        self.act_fn = packed.act_fn
        self.train(packed.training)
        packed.to("meta")

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Each token's weighted sum over its experts; an expert without a token is called with none.

        Args:
            hidden_states: (tokens, width).
            top_k_index: (tokens, k), which experts.
            top_k_weights: (tokens, k), how much of each.
        """
        result = torch.zeros_like(hidden_states)
        for e, (gate, up, down) in enumerate(zip(self.gate_proj, self.up_proj, self.down_proj, strict=True)):
            token, place = torch.where(top_k_index == e)
            x = hidden_states[token]
            y = down(self.act_fn(gate(x)) * up(x)) * top_k_weights[token, place, None]
            result = result.index_add(0, token, y.to(result.dtype))
        return result

    def repack(self) -> nn.Module:
        """The packed module with the weights of now."""
        (packed,) = self.packed
        parts: tuple[Any, ...] = (self.gate_proj, self.up_proj, self.down_proj)
        gate, up, down = (torch.stack([layer.weight.detach() for layer in layers]) for layers in parts)
        packed.gate_up_proj, packed.down_proj = nn.Parameter(torch.cat([gate, up], 1)), nn.Parameter(down)
        return packed.train(self.training)


def as_linear(model: nn.Module) -> nn.Module:
    """Replace what is packed otherwise by `Linear` layers, in place; the model computes what it did.

    Experts that do anything else with their weights than those of Mixtral stay as they are, with a warning.
    """
    for owner, name, module in _children(model):
        if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
            layer = _linear(module.weight.detach().T)
            layer.bias = module.bias
            layer.was_conv1d = True  # type: ignore[assignment]
            owner.register_module(name, layer.train(module.training))
        elif _packs_experts(module):
            owner.register_module(name, Experts(module))
        elif isinstance(getattr(module, "gate_up_proj", None), Tensor):
            kind = type(module).__name__
            warnings.warn(f"{kind} packs its experts in a way that is not known here: they stay dense", stacklevel=2)
    return model


def as_published(model: nn.Module) -> nn.Module:
    """Undo `as_linear`, in place, with the weights of now."""
    from transformers.pytorch_utils import Conv1D

    for owner, name, module in _children(model):
        if getattr(module, "was_conv1d", False):
            with torch.device("meta"):
                conv = Conv1D(module.out_features, module.in_features)
            conv.weight, conv.bias = nn.Parameter(module.weight.detach().T.contiguous()), module.bias
            owner.register_module(name, conv.train(module.training))
        elif isinstance(module, Experts):
            owner.register_module(name, module.repack())
    return model


def _children(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    return [(owner, name, child) for owner in model.modules() for name, child in owner.named_children()]


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    return layer


def _packs_experts(module: Any) -> bool:
    """Whether `Experts` would compute the same: asked of two experts with small weights, and inputs that are large."""
    packed = dict(module.named_parameters())
    if set(packed) != {"gate_up_proj", "down_proj"} or not hasattr(module, "act_fn"):
        return False
    random = torch.Generator().manual_seed(0)
    small = copy.copy(module)
    small._parameters = {
        "gate_up_proj": nn.Parameter(torch.randn(2, 16, 16, generator=random)),
        "down_proj": nn.Parameter(torch.randn(2, 16, 8, generator=random)),
    }
    small.num_experts = 2
    x = 10 * torch.randn(6, 16, generator=random)  # large enough for a limit on activations to be seen
    index = torch.tensor([[0], [1], [1], [0], [1], [0]])
    weights = torch.rand(6, 1, generator=random)
    try:
        with torch.no_grad():
            before = small(x, index, weights)
            return torch.allclose(before, Experts(small)(x, index, weights), rtol=1e-3)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):  # it takes other things
        return False
