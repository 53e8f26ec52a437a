"""Which parameters can be pruned, and how a layer looks when it is seen as a matrix.

A convolution is a linear layer over patches: with its inputs cut into patches, `Linear` and `Conv1d/2d`
(with groups too) are one and the same thing, `Y = X Wᵀ`. Every statistic is written for that one thing.
Shapes: g groups, n samples, t positions (tokens, pixels; 1 for a plain linear layer), d inputs and o outputs a group.
"""

import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch.nn.functional as F
from torch import Tensor, nn

from pruninglab.naming import few

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
Exclude = str | type | nn.Module


def prunable(model: nn.Module, exclude: Exclude | Iterable[Exclude] = ()) -> dict[str, Layer]:
    """The layers whose weight can be pruned: parameter name → module, in the order of the model.

    Those are the weights of `Linear` and `Conv` layers; biases, norms and embeddings are left alone, and so are an
    output layer that shares its weight with an embedding, and empty weights. A weight that is shared by several layers
    appears once.

    Args:
        model: any module.
        exclude: what to leave out: names or globs of parameters or modules, module types, or modules. A module stands
            for everything inside it, and a shared weight is left out under each of its names.

    Raises:
        ValueError: an entry of `exclude` matches nothing, a weight is re-parametrised, or nothing is left to prune.
        TypeError: an entry of `exclude` is of another kind.
    """
    exclude = entries(exclude)
    found: dict[str, Layer] = {}
    owners: dict[int, list[tuple[str, nn.Module]]] = {}  # all that hold a weight, under all their names
    for module_name, module in model.named_modules(remove_duplicate=False):
        name = f"{module_name}.weight" if module_name else "weight"
        owners.setdefault(id(module._parameters.get("weight")), []).append((name, module))
        if not isinstance(module, PRUNABLE):
            continue
        if module._parameters.get("weight") is None:
            raise ValueError(not_plain(module_name))
        first = next(owner for owner, held in owners[id(module.weight)] if isinstance(held, PRUNABLE))
        found.setdefault(first, module)
    for name, layer in list(found.items()):
        if not layer.weight.numel() or any(isinstance(held, EMBEDDINGS) for _, held in owners[id(layer.weight)]):
            del found[name]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no prunable layer: no Linear, Conv1d, Conv2d or Conv3d "
            "with a weight of its own"
            + (" (GPT-2's Conv1D: `tasks.linears.as_linear(model)` first)" if _has_conv1d(model) else "")
        )
    for entry in exclude:
        hit = [name for name, layer in found.items() if any(matches(entry, *who) for who in owners[id(layer.weight)])]
        if not hit and not _matches_elsewhere(entry, model):
            raise ValueError(f"exclude={entry!r} matches no layer. Prunable here: {', '.join(found)}")
        for name in hit:
            del found[name]
    if not found:
        raise ValueError("exclude leaves no prunable layer")
    return found


def _has_conv1d(model: nn.Module) -> bool:
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


def not_plain(module: str) -> str:
    """What is said of a layer whose weight is computed from other parameters."""
    return (
        f"the weight of {module or 'the model'!r} is not a plain parameter (is a parametrization or "
        "torch.nn.utils.prune on it?): remove that first, so that zeros can be written into it"
    )


def entries(exclude: Exclude | Iterable[Exclude]) -> tuple[Exclude, ...]:
    """What `exclude` holds: one entry, or several. Raises a TypeError as `prunable` says."""
    if isinstance(exclude, (str, type, nn.Module)):
        return (exclude,)
    listed = tuple(exclude) if isinstance(exclude, Iterable) else (exclude,)
    for entry in listed:
        if not isinstance(entry, (str, type, nn.Module)):
            raise TypeError(f"exclude takes names, globs, module types and modules, not {entry!r}")
    return listed


def warn_of_unprunable(model: nn.Module, exclude: Exclude | Iterable[Exclude] = ()) -> None:
    """Warn if more than a tenth of a model's parameters are matrices (or larger) that `prunable` does not know.

    Such as the weights of an `LSTM` or of attention. Embeddings do not count, nor does what `exclude` names.

    Args:
        model: any module.
        exclude: as in `prunable`.
    """
    exclude, known = entries(exclude), (*PRUNABLE, *EMBEDDINGS)
    total = sum(parameter.numel() for parameter in model.parameters())
    left = {
        id(parameter): (name, parameter.numel()) for name, parameter in model.named_parameters() if parameter.ndim > 1
    }
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(name, recurse=False):
            if (own.endswith("weight") and isinstance(module, known)) or any(matches(e, own, module) for e in exclude):
                left.pop(id(parameter), None)
    names, sizes = [name for name, _ in left.values()], [size for _, size in left.values()]
    if sum(sizes) > total / 10:
        warnings.warn(
            f"{sum(sizes) / total:.0%} of the parameters are not in Linear or Conv layers and stay as they are: "
            f"{few(names)}. Name them in exclude if that is meant",
            stacklevel=3,
        )


def is_routed(module: nn.Module) -> bool:
    """Whether it is of an expert (see `tasks.linears`), which gets tokens of all samples of a batch mixed."""
    return getattr(module, "routed", False)


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer once, with its name."""
    return [*model.named_parameters(), *model.named_buffers()]


def matches(entry: Exclude, name: str, module: nn.Module) -> bool:
    """Whether an entry of `exclude` speaks of a parameter (or module) of this name in this module."""
    if isinstance(entry, str):  # the name of the parameter, of its module, or of a module around that
        parts = name.split(".")
        return any(fnmatchcase(".".join(parts[:end]), entry) for end in range(len(parts) + 1))
    if isinstance(entry, type):
        return isinstance(module, entry)
    return any(part is module for part in entry.modules())


def _matches_elsewhere(entry: Exclude, model: nn.Module) -> bool:
    """Whether `entry` names something that is there but was already out (excluded before, or never prunable)."""
    matrices = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    return (isinstance(entry, str) and any(fnmatchcase(name, entry) for name in matrices)) or any(
        matches(entry, f"{name}.weight", module) for name, module in model.named_modules()
    )


def patches(layer: Layer, x: Tensor) -> Tensor:
    """The inputs that each weight meets.

    Args:
        layer: `Linear`, `Conv1d` or `Conv2d`.
        x: its input, batch first.

    Returns:
        (g, n, t, d), so that `patches @ weight.view(g, o, d).mT` is the output without bias.

    Raises:
        TypeError: the layer is of another kind.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, len(x), x.shape[1:-1].numel(), x.shape[-1])
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        raise TypeError(f"statistics of inputs are known for Linear, Conv1d and Conv2d, not {type(layer).__name__}")
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if isinstance(layer, nn.Conv1d):
        x, kernel, stride, dilation = x.unsqueeze(2), (1, *kernel), (1, *stride), (1, *dilation)
    columns = F.unfold(x, kernel, dilation=dilation, stride=stride)  # (n, g·d, t)
    return columns.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2)


def outputs_by_position(layer: Layer, y: Tensor) -> Tensor:
    """An output (or its gradient), batch first, as (g, n, t, o)."""
    if isinstance(layer, nn.Linear):
        return y.reshape(1, len(y), y.shape[1:-1].numel(), y.shape[-1])
    return y.flatten(2).unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2)


def like_weight(layer: Layer, values: Tensor) -> Tensor:
    """Values of the inputs, (g, d), in a shape that broadcasts against the weight.

    (1, d) for `Linear`, (1, d, *kernel) for an ungrouped convolution, the weight's own shape for a grouped one.
    """
    weight = layer.weight
    if len(values) > 1:
        values = values.repeat_interleave(len(weight) // len(values), dim=0)
    return values.reshape(-1, *weight.shape[1:])
