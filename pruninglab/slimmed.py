"""What a smaller model needs around it: an optimizer that holds its parameters, statistics of its own, a file."""

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from pruninglab.batches import batches, call, length, to_device
from pruninglab.files import load_tensors, save_tensors
from pruninglab.graph import is_line, left_shape
from pruninglab.layers import named_tensors
from pruninglab.masks import Masks
from pruninglab.tasks.training import evaluating

FORMAT = "pruninglab.slim"


def remaining(tensor: Tensor, masks: Sequence[Tensor], name: str) -> Tensor:
    """What masks (which may broadcast) leave of a tensor, as a smaller tensor.

    Raises:
        GraphError: what is left is no whole tensor, because parts of it lose different numbers of channels.
    """
    ragged = [mask.cpu() for mask in masks if not is_line(mask)]
    lines = [mask.cpu() for mask in masks if is_line(mask)]
    alive = reduce(torch.logical_and, ragged) if ragged else None
    for dim in range(tensor.ndim):
        along = [mask.reshape(-1) for mask in lines if mask.shape[dim] > 1]
        if alive is not None and alive.shape[dim] > 1:
            along.append(alive.movedim(dim, 0).flatten(1).any(1))
        if along:
            kept = reduce(torch.logical_and, along).nonzero().reshape(-1)
            tensor = tensor.index_select(dim, kept.to(tensor.device))
            if alive is not None and alive.shape[dim] > 1:
                alive = alive.index_select(dim, kept)
    if alive is None or alive.all():
        return tensor.clone() if tensor._is_view() else tensor
    left = left_shape(alive, name)
    shape = [left[d] if alive.shape[d] > 1 else tensor.shape[d] for d in range(alive.ndim)]
    if tensor.is_meta:
        return tensor.new_empty(shape)
    return tensor[alive.to(tensor.device).expand(tensor.shape)].view(shape)


def rebind(optimizer: torch.optim.Optimizer, model: nn.Module, small: nn.Module, masks: Masks) -> None:
    """Let an optimizer that trained `model` go on with `small`: its parameters are exchanged, its moments cut to fit.

    Raises:
        ValueError: the optimizer holds a parameter that is not the model's.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    after = dict(small.named_parameters(remove_duplicate=False))
    names |= {id(parameter): name for name, parameter in model.named_parameters()}  # of several names the masks' one
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if strangers := [tuple(parameter.shape) for parameter in held if id(parameter) not in names]:
        raise ValueError(f"this optimizer holds {len(strangers)} parameters that are not the model's: {strangers[:3]}")
    for group in optimizer.param_groups:
        kept = []
        for old in group["params"]:
            name = names[id(old)]
            state = optimizer.state.pop(old, {})
            if name not in after:  # in a block that is gone
                continue
            new = after[name]
            kept.append(new)
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == old.shape and value.shape != new.shape:
                    state[key] = remaining(value, [masks[name]], name)
                elif isinstance(value, Tensor) and value.numel() > 1 and old.shape != new.shape:
                    state = {}  # moments of rows and columns (Adafactor): it begins anew here
                    break
            if state:
                optimizer.state[new] = state
        group["params"] = kept


@torch.no_grad()
def recalibrate(model: nn.Module, data: Any) -> nn.Module:
    """Measure the running statistics of every batch norm anew, as the plain mean over some data; returns the model.

    After pruning, what arrives at a norm has another mean and variance than what it was trained with.

    Args:
        model: changed in place; its mode is afterwards as it was. After an error its statistics are, too.
        data: as in `collect`; labels are not looked at. Batches count by their samples.

    Raises:
        ValueError: the data are empty.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [(norm.momentum, copy.deepcopy(dict(norm.named_buffers()))) for norm in norms]
    seen = 0
    with evaluating(model):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
            for x, _ in batches(data):
                seen += (samples := length(x, "data"))
                for norm in norms:
                    norm.momentum = samples / seen  # a running mean
                if norms:
                    call(model, to_device(x, next(model.parameters()).device))
            if not seen:
                raise ValueError("recalibrate needs data, and these are empty")
        except BaseException:
            for norm, (_, buffers) in zip(norms, before, strict=True):
                norm.load_state_dict(buffers, strict=False)
            raise
        finally:
            for norm, (momentum, _) in zip(norms, before, strict=True):
                norm.momentum = momentum
    return model


def save_slim(small: nn.Module, path: str | os.PathLike[str], original: nn.Module) -> None:
    """Write a smaller model to one safetensors file, with a recipe of how it differs from the original.

    Args:
        small: what `slim` made.
        path: the file, written whole or not at all.
        original: the model before, or one like it; only its structure is looked at.
    """
    modules = dict(small.named_modules())
    bypassed = sorted(
        name for name, module in original.named_modules() if name in modules and type(modules[name]) is not type(module)
    )
    recipe: dict[str, Any] = {"numbers": changed_numbers(original, small), "bypassed": bypassed}
    save_tensors(path, dict(named_tensors(small)), {"format": FORMAT, "recipe": json.dumps(recipe)})


def load_slim(path: str | os.PathLike[str], make: Callable[[], nn.Module]) -> nn.Module:
    """Rebuild a smaller model from the constructor of the original.

    Args:
        path: what `save_slim` wrote.
        make: a function without arguments that makes the original model, such as `torchvision.models.resnet18`.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is not whole, or it is of another model.
    """
    from pruninglab.blocks import Bypass

    tensors, metadata = load_tensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{os.fspath(path)!r} is a safetensors file, but not one that save_slim wrote")
    recipe, model = json.loads(metadata["recipe"]), make()
    for name in recipe["bypassed"]:
        model.set_submodule(name, Bypass(model.get_submodule(name)))
    held = named_tensors(model)
    if differing := sorted({name for name, _ in held} ^ set(tensors)):
        raise ValueError(
            f"this file is not of a {type(model).__name__} as it is made: {', '.join(differing[:5])} differ"
        )
    for name, tensor in held:
        tensor.data = tensors[name].to(tensor)  # in place, so that tied weights stay tied
    set_numbers(model, recipe["numbers"])
    return model


def changed_numbers(model: nn.Module, small: nn.Module) -> dict[str, Any]:
    """In which whole numbers of its modules a smaller model differs from the larger one: place → number, or list."""
    before = dict(_numbers(model))
    return {place: value for place, value in _numbers(small) if place in before and before[place] != value}


def set_numbers(model: nn.Module, numbers: Mapping[str, Any]) -> None:
    """Give the modules of a model what `changed_numbers` found."""
    for place, value in numbers.items():
        path, _, key = place.rpartition("/")
        holder: Any = model.get_submodule(path.removesuffix("/config"))
        holder = holder.config if path.endswith("/config") else holder
        setattr(holder, key, type(getattr(holder, key))(value))


def is_row(value: Any) -> bool:
    """Whether this is a list or tuple of whole numbers."""
    return isinstance(value, (list, tuple)) and bool(value) and all(type(item) is int for item in value)


def _numbers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The whole numbers (and lists of them) that modules hold, by place: `module/attribute`."""
    for name, module in model.named_modules():
        config = vars(module).get("config")
        places = [(name, vars(module))]
        if hasattr(config, "__dict__"):
            places.append((f"{name}/config", vars(config)))
        for where, values in places:
            for key, value in values.items():
                plain = isinstance(value, int) and not isinstance(value, bool)
                row = is_row(value)
                if not key.startswith("_") and (plain or row):
                    yield f"{where}/{key}", list(value) if row else value
