"""Whole residual blocks: finding those that can go, and letting the input pass by where one was.

A block can go if, emptied of its weights, it returns its input: x + f(x) with f = 0.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pruninglab.batches import Inputs, call
from pruninglab.graph import GraphError
from pruninglab.layers import PRUNABLE
from pruninglab.masks import Masks
from pruninglab.recording import without_cache
from pruninglab.tasks.training import evaluating


class Bypass(nn.Module):
    """What stands where a block was: returns its first argument.

    If the block was one of a language model, a cache of keys and values is told how many tokens went by, since models
    ask it at one block for the position of the next token.

    Args:
        block: what was there.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        places = (vars(module).get("layer_idx") for module in block.modules())
        self.layer_idx: int | None = next((place for place in places if isinstance(place, int)), None)

    def forward(self, x: Tensor, *_: Any, **given: Any) -> Tensor:
        cache, place = given.get("past_key_values"), self.layer_idx
        if cache is not None and place is not None:
            layers = cache.layers[place : place + 1]  # they come as they are needed
            if all(hasattr(layer, "update") for layer in layers):  # one of linear attention has no keys
                one = x[:, None, :, :1]  # a key of one number for each token
                cache.update(one, one, place)
        return x


Seen = dict[str, tuple[tuple[Any, ...], dict[str, Any], Any]]


@torch.no_grad()
def see(model: nn.Module, names: list[str], inputs: Inputs) -> Seen:
    """What modules were called with, and returned, in a run of the model: name → (arguments, named arguments, result).

    A module that is called more than once, or never, is left out.
    """
    seen: Seen = {}
    twice: set[str] = set()
    hooks = []
    for name in names:

        def note(_module: nn.Module, args: Any, kwargs: Any, result: Any, name: str = name) -> None:
            twice.update({name} & seen.keys())
            seen[name] = (tuple(_copied(a) for a in args), kwargs, _copied(result))

        hooks.append(model.get_submodule(name).register_forward_hook(note, with_kwargs=True))
    try:
        with evaluating(model), without_cache(model):
            call(model, inputs)
    except Exception as error:
        raise GraphError(f"{type(model).__name__} fails on example_inputs: {type(error).__name__}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return {name: found for name, found in seen.items() if name not in twice}


def _copied(value: Any) -> Any:
    """Later layers may write into what a module got or gave."""
    return value.clone() if isinstance(value, Tensor) else value


@torch.no_grad()
def removable(model: nn.Module, inputs: Inputs) -> list[str]:
    """The innermost modules with weights that return their input when their weights are zero."""
    candidates = [
        name
        for name, module in model.named_modules()
        if name and any(isinstance(part, PRUNABLE) or part.__class__.__name__ == "Conv1D" for part in module.modules())
    ]
    found: list[str] = []
    for name, (args, kwargs, result) in see(model, candidates, inputs).items():  # the inner ones end first
        if any(other.startswith(f"{name}.") for other in found) or not _same_shape(args, result):
            continue
        module = model.get_submodule(name)
        kept = [parameter.detach().clone() for parameter in module.parameters()]
        with evaluating(module):
            try:
                for parameter in module.parameters():
                    parameter.zero_()
                x = args[0] if args[0].any() else torch.ones_like(args[0])  # of zeros whatever is empty makes zeros
                passes = torch.equal(module(x, *args[1:], **kwargs), x)
            finally:
                for parameter, before in zip(module.parameters(), kept, strict=True):
                    parameter.copy_(before)
        if passes:
            found.append(name)
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    return sorted(found, key=order.__getitem__)


def _same_shape(args: tuple[Any, ...], result: Any) -> bool:
    if not isinstance(result, Tensor) or not args or not isinstance(args[0], Tensor):
        return False
    return args[0].shape == result.shape and args[0].dtype == result.dtype


def without_weights(model: nn.Module, masks: Masks) -> list[str]:
    """The modules inside a model that have parameters, all of them masked to the last weight; outer ones first."""
    empty = {name for name, mask in masks.items() if not mask.flatten()[0] and not mask.cpu().numpy().any()}
    found = []
    for name, module in model.named_modules() if empty else ():
        own = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
        if name and own and empty.issuperset(own):
            found.append(name)
    return found


def emptied_blocks(model: nn.Module, masks: Masks, inputs: Inputs) -> list[str]:
    """The outermost modules of which a mask leaves nothing and which return their input then."""
    names: list[str] = []
    for name in without_weights(model, masks):
        if not any(name.startswith(f"{other}.") for other in names):
            names.append(name)
    if not names:
        return []
    return [
        name
        for name, (args, _, result) in see(model, names, inputs).items()
        if _same_shape(args, result) and torch.equal(args[0], result)
    ]


def bypass(model: nn.Module, names: list[str]) -> nn.Module:
    """A copy of the model in which the named blocks let their input pass by."""
    gone: dict[int, Any] = {id(model.get_submodule(name)): Bypass(model.get_submodule(name)) for name in names}
    return copy.deepcopy(model, gone)


def block_masks(model: nn.Module, blocks: list[str], removed: list[str]) -> Masks:
    """Masks of every parameter of every block that could go; all False in the removed ones."""
    found: Mapping[str, Tensor] = {
        f"{block}.{name}": torch.full(parameter.shape, block not in removed, device=parameter.device)
        for block in blocks
        for name, parameter in model.get_submodule(block).named_parameters()
    }
    return Masks(found)
