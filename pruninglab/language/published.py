"""A pruned language model as transformers knows it: a config that says what the model is, so that it can be loaded.

    small = slim(model, masks, x[:1])
    fit_config(small)
    small.save_pretrained(folder)          # AutoModelForCausalLM.from_pretrained(folder) reads it

A config has one number for all blocks. Blocks that differ in width (global allocations) it cannot describe; those are
for `save_slim`.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pruninglab.language.blocks import find_blocks

FLAGS = {"attention_bias": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp_bias": ("gate_proj", "up_proj", "down_proj")}


@torch.no_grad()
def fit_config(model: nn.Module, blocks: str | None = None) -> nn.Module:
    """Write into a model's config how many blocks, heads and neurons it has, and whether it has biases; returns it.

    A config knows biases only for all layers of a kind: where some have one, the others get zeros.

    Args:
        model: a language model of Llama's kind, slimmed or not; its config is changed, and biases of zero are added.
        blocks: as in `blocks.find_blocks`.

    Raises:
        ValueError: no config of this kind describes the model; says which parameters would not fit. The model is as it
            was then.
    """
    block, *others = find_blocks(model, blocks).values()
    parts = {name: part for module in block.modules() for name, part in vars(module)["_modules"].items()}
    attention: Any = next((module for module in block.modules() if hasattr(module, "q_proj")), None)
    if attention is None or not {"q_proj", "k_proj", "down_proj"} <= parts.keys():
        raise ValueError(f"{type(model).__name__} is not of Llama's kind: its blocks need q_proj, k_proj and down_proj")
    known: Any = model.config
    config = copy.deepcopy(known)
    config.num_hidden_layers = 1 + len(others)
    config.head_dim = attention.head_dim
    config.num_attention_heads = attention.q_proj.out_features // attention.head_dim
    config.num_key_value_heads = attention.k_proj.out_features // attention.head_dim
    config.intermediate_size = parts["down_proj"].in_features
    for flag, names in FLAGS.items():
        if hasattr(config, flag):
            setattr(config, flag, any(name in parts and parts[name].bias is not None for name in names))
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in type(model)(config).named_parameters()}
    held = {name: tensor.shape for name, tensor in model.named_parameters()}
    missing = [name for name in wanted.keys() - held.keys() if name.endswith(".bias")]
    differing = {name for name in (wanted.keys() | held.keys()) - set(missing) if wanted.get(name) != held.get(name)}
    if differing:
        which = ", ".join(
            f"{name} ({_shape(held, name)}, not {_shape(wanted, name)})" for name in sorted(differing)[:3]
        )
        raise ValueError(
            f"no config describes this {type(model).__name__}: its blocks differ from each other, or from what the "
            f"class makes: {which}. Keep it with save_slim"
        )
    for name in missing:
        layer = model.get_submodule(name.removesuffix(".bias"))
        like: Any = layer.weight
        layer.bias = nn.Parameter(like.new_zeros(wanted[name]), like.requires_grad)
    vars(known).update(vars(config))  # the same object, since every part of the model holds it
    return model


def _shape(shapes: Mapping[str, torch.Size], name: str) -> str:
    return "×".join(map(str, shapes[name])) if name in shapes else "missing"
