"""Training networks of half precision in single precision, and rounding them at the end.

A step is smaller than what bfloat16 resolves (a norm's scale of 1 never moves), and squares of gradients, on which Adam
depends, leave float16's range: they become 0, and the step 0/0.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


def halves(model: nn.Module) -> list[tuple[Tensor, torch.dtype]]:
    """A model's parameters and buffers of half precision, and of which kind each is."""
    return [(tensor, tensor.dtype) for tensor in [*model.parameters(), *model.buffers()] if tensor.dtype in HALF]


@contextmanager
def single_precision(model: nn.Module) -> Iterator[None]:
    """In the block, what is of half precision is of single; parameters stay the same objects."""
    found = halves(model)
    try:
        for tensor, _ in found:
            tensor.grad, tensor.data = None, tensor.data.float()
        yield
    finally:
        for tensor, dtype in found:
            tensor.grad, tensor.data = None, tensor.data.to(dtype)
