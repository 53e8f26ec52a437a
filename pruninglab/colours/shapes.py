"""Running a network for its shapes alone.

To follow channels, and to see whether a smaller network runs, takes no numbers. So the result of a product is a tensor
of the *meta* device here (a shape without numbers), and so is all that is computed from it. What comes from elsewhere,
such as positions, masks and indices, keeps its numbers. A network that asks for a number that is not there fails, and
has to be run as it is.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pruninglab.colours.shadows import tensors_in

PRODUCTS = frozenset("mm bmm addmm baddbmm linear dot mv matmul".split())
HEAVY = PRODUCTS | frozenset("convolution _convolution embedding".split())
NORMS = frozenset("native_layer_norm native_batch_norm native_group_norm".split())  # of three results, one is used
ALIKE = frozenset("gelu silu hardswish _softmax _safe_softmax".split())  # a result like the operand
META = torch.device("meta")


def shapes_only(function: Any, name: str, args: Any, kwargs: dict[str, Any], home: torch.device) -> Any:
    """The result of an operation, without numbers if it is a product or an operand has none.

    `home` is the device on which what has numbers is made (`arange(n, device=x.device)`, where x may have none).

    Raises:
        RuntimeError: the operation needs numbers that are not there.
    """
    tensors = tensors_in((args, kwargs))
    if name in HEAVY or any(tensor.is_meta for tensor in tensors):
        if name.endswith("_") and not tensors[0].is_meta:
            raise RuntimeError(f"{name} writes what has no numbers into what has")
        if (known := _known(name, args)) is not None:
            return known
        if not all(tensor.is_meta for tensor in tensors):  # what a boolean index picks depends on its numbers
            args, kwargs = _bare(args, name.startswith("index")), _bare(kwargs, False)
        if kwargs.get("device") is not None:
            kwargs["device"] = META
    elif kwargs.get("device") == META:
        kwargs = kwargs | {"device": home}
    return function(*args, **kwargs)


def _known(name: str, args: Any) -> Any:
    """The result of some frequent operations, for which torch's own rules take longer than for all others together."""
    if name == "native_layer_norm" and list(args[0].shape[-len(args[1]) :]) != list(args[1]):
        raise RuntimeError(f"given normalized_shape={list(args[1])}, but the input is of shape {tuple(args[0].shape)}")
    if name in NORMS:
        laid_out = torch.preserve_format if name == "native_batch_norm" else torch.contiguous_format
        result = torch.empty_like(args[0], device=META, memory_format=laid_out)
        return result, result.new_empty(0), result.new_empty(0)  # the statistics are of no use without gradients
    if name in ALIKE:
        return torch.empty_like(args[0], device=META)
    if name == "addmm":
        bias, a, b = args[:3]
        if a.shape[1] == b.shape[0] and bias.shape == b.shape[1:]:
            return torch.empty((len(a), b.shape[1]), dtype=a.dtype, device=META)
    if name in ("add", "mul") and isinstance(args[0], Tensor) and args[0].is_floating_point():
        a, b = args[:2]
        if not isinstance(b, Tensor) or (a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()):
            return torch.empty_like(a, device=META)
    return None


def _bare(value: Any, indexing: bool) -> Any:
    """The same arguments without numbers; those of indices stay."""
    if isinstance(value, Tensor):
        if value.is_meta or (indexing and not value.is_floating_point()):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)
    if isinstance(value, (list, tuple)):
        return [_bare(item, indexing) for item in value]
    if isinstance(value, dict):
        return {key: _bare(item, indexing) for key, item in value.items()}
    return value


def home_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
