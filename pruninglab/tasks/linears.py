"""Layers of transformers that are linear but packed otherwise, as ordinary `Linear` ones, and back again.

GPT-2 keeps its weights transposed (`Conv1D`), and a mixture of experts keeps those of all experts in one tensor. Every
criterion and statistic is written for `Linear`, so models are unpacked when they are loaded; `as_published` packs them
again, so that `save_pretrained` writes what `from_pretrained` can read.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Experts(nn.Module):
    """The experts of one block, each with three linear layers. Does what the packed module does."""

    def __init__(self, packed: Any) -> None:
        super().__init__()
        self.packed = [packed]  # in a list, so that its parameters are not found twice
        gate_up, down = packed.gate_up_proj.detach(), packed.down_proj.detach()
        gate, up = gate_up.chunk(2, dim=1)
        self.gate_proj = nn.ModuleList(map(_linear, gate))
        self.up_proj = nn.ModuleList(map(_linear, up))
        self.down_proj = nn.ModuleList(map(_linear, down))
        self.act_fn = packed.act_fn
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
        return packed


def as_linear(model: nn.Module) -> nn.Module:
    """Replace what is packed otherwise by `Linear` layers, in place; the model computes what it did."""
    for owner, name, module in _children(model):
        if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
            layer = _linear(module.weight.detach().T)
            layer.bias = module.bias
            layer.was_conv1d = True  # type: ignore[assignment]
            owner.register_module(name, layer)
        elif _packs_experts(module):
            owner.register_module(name, Experts(module))
    return model


def as_published(model: nn.Module) -> nn.Module:
    """Undo `as_linear`, in place, with the weights of now."""
    from transformers.pytorch_utils import Conv1D

    for owner, name, module in _children(model):
        if getattr(module, "was_conv1d", False):
            conv = Conv1D(module.out_features, module.in_features)
            conv.weight, conv.bias = nn.Parameter(module.weight.detach().T.contiguous()), module.bias
            owner.register_module(name, conv)
        elif isinstance(module, Experts):
            owner.register_module(name, module.repack())
    return model


def _children(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    return [(owner, name, child) for owner in model.modules() for name, child in owner.named_children()]


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.contiguous())
    return layer


def _packs_experts(module: Any) -> bool:
    up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not isinstance(up, Tensor) or not isinstance(down, Tensor) or up.ndim != 3 or down.ndim != 3:
        return False
    return hasattr(module, "act_fn") and up.shape == (len(down), 2 * down.shape[2], down.shape[1])
