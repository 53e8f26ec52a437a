"""Running a network for its shapes alone.

To follow channels, and to see whether a smaller network runs, takes no numbers. So the result of a product is a tensor
of the *meta* device here (a shape without numbers), and so is all that is computed from it. What comes from elsewhere,
such as positions, masks and indices, keeps its numbers. A network that asks for a number that is not there fails, and
has to be run as it is.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pruninglab.colours.shadows import tensors_in

PRODUCTS = frozenset("mm bmm addmm baddbmm linear dot mv matmul".split())
HEAVY = PRODUCTS | frozenset("convolution _convolution embedding".split())
META = torch.device("meta")


def shapes_only(function: Any, name: str, args: Any, kwargs: dict[str, Any], home: torch.device) -> Any:
    """The result of an operation, without numbers if it is a product or an operand has none.

    `home` is the device on which what has numbers is made (`arange(n, device=x.device)`, where x may have none).

    Raises:
        RuntimeError: the operation needs numbers that are not there.
    """
    tensors = list(tensors_in((args, kwargs)))
    if name in HEAVY or any(tensor.is_meta for tensor in tensors):
        if name.endswith("_") and not tensors[0].is_meta:
            raise RuntimeError(f"{name} writes what has no numbers into what has")
        indexing = name.startswith("index")  # the size of what a boolean index picks depends on its numbers

        def bare(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.is_meta or (indexing and not value.is_floating_point()):
                return value
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)

        args, kwargs = tree_map(bare, (args, kwargs))
        if kwargs.get("device") is not None:
            kwargs["device"] = META
    elif kwargs.get("device") == META:
        kwargs = kwargs | {"device": home}
    return function(*args, **kwargs)


def home_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
