"""`Masks`: which weights stay. Plain data, and the only thing that remembers what was pruned.

A mask is a bool tensor of its parameter's shape; True = keep. Applying masks writes zeros into the model and leaves
nothing else there: no hook, no buffer, no renamed key. So `state_dict`, `deepcopy`, tied weights and export go on
working.
This file knows nothing of criteria or budgets.
"""

import json
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pruninglab.files import load_tensors, save_tensors
from pruninglab.layers import Exclude, prunable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pandas as pd

CHUNK = 1 << 17  # weights handled at a time: a piece that stays in the processor's cache is several times faster
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Masks(Mapping[str, Tensor]):
    """An ordered mapping *parameter name → bool tensor* (True = keep).

    Args:
        tensors: the masks; each a bool tensor of the shape of the parameter it is named after.

    Raises:
        TypeError: a mask is not a bool tensor.
        ValueError: there is no mask at all.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        for name, mask in tensors.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise TypeError(f"the mask of {name!r} must be a bool tensor (True = keep), not {kind}")
        if not tensors:
            raise ValueError("Masks needs at least one mask")
        self._tensors = dict(tensors)
        self._applied_to: dict[str, weakref.ref[nn.Parameter]] = {}

    @classmethod
    def of(cls, model: nn.Module, exclude: "Exclude | Iterable[Exclude]" = ()) -> "Masks":
        """The masks that the zeros of a model's prunable weights spell out."""
        return cls({name: layer.weight.detach() != 0 for name, layer in prunable(model, exclude).items()})

    def __getstate__(self) -> dict[str, object]:
        """What is pickled or copied: the masks, without the model that they were applied to."""
        return {"_tensors": self._tensors, "_applied_to": {}}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        """Same names, and the same mask for each."""
        if not isinstance(other, Masks):
            return NotImplemented
        return self.keys() == other.keys() and all(torch.equal(self[n].cpu(), other[n].cpu()) for n in self)

    __hash__ = None  # type: ignore[assignment]  # compared by content, so not hashable

    def __and__(self, other: "Masks") -> "Masks":
        """Keep what both keep."""
        return self._joined(other, torch.logical_and)

    def __or__(self, other: "Masks") -> "Masks":
        """Keep what either keeps."""
        return self._joined(other, torch.logical_or)

    def _joined(self, other: "Masks", join: "Callable[[Tensor, Tensor], Tensor]") -> "Masks":
        if not isinstance(other, Masks):
            return NotImplemented
        _raise_differences("the two masks", self, {name: mask.shape for name, mask in other.items()})
        return Masks({name: join(self[name], other[name].to(self[name].device)) for name in self})

    def __repr__(self) -> str:
        kept, total = self.kept(), self.total()
        return f"Masks({len(self)} layers, {kept:,} of {total:,} weights kept, sparsity {self.sparsity():.4f})"

    def kept(self) -> int:
        """How many weights stay."""
        return sum(int(torch.count_nonzero(mask)) for mask in self.values())

    def total(self) -> int:
        """How many weights the masks speak of."""
        return sum(mask.numel() for mask in self.values())

    def sparsity(self) -> float:
        """The fraction of weights removed, over all masks together."""
        return 1 - self.kept() / self.total()

    def per_layer(self) -> "pd.DataFrame":
        """A table with a row for each mask: `layer`, `shape`, `weights`, `kept`, `sparsity`."""
        import pandas as pd

        rows = []
        for name, mask in self.items():
            kept = int(torch.count_nonzero(mask))
            row = {"layer": name, "shape": "×".join(map(str, mask.shape)), "weights": mask.numel(), "kept": kept}
            rows.append(row | {"sparsity": 1 - kept / mask.numel()})
        return pd.DataFrame(rows)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all."""
        save_tensors(path, self, {"format": "pruninglab.masks", "order": json.dumps(list(self))})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Masks":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it does not hold whole masks.
        """
        tensors, metadata = load_tensors(path)
        if metadata.get("format") != "pruninglab.masks":
            raise ValueError(f"{os.fspath(path)!r} is a safetensors file, but not one that Masks.save wrote")
        return cls({name: tensors[name] for name in json.loads(metadata["order"])})

    def apply(self, model: nn.Module) -> nn.Module:
        """Write a zero wherever a mask is False, in place, and return the model.

        Raises:
            ValueError: the model lacks a masked parameter or holds it in another shape; all differences are listed,
                and nothing was written.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        held = {name: parameters[name].shape for name in self if name in parameters}
        _raise_differences(f"these masks and this {type(model).__name__}", self, held)
        self.apply_to(parameters)
        return model

    def apply_to(self, weights: "Mapping[str, nn.Parameter]") -> None:
        """The same for parameters by name, such as the `weights` of other masks."""
        for name, mask in self.items():
            write_zeros(weights[name], mask)
            self._applied_to[name] = weakref.ref(weights[name])

    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters that these masks were last applied to.

        Raises:
            RuntimeError: the masks were never applied, or these parameters no longer exist.
        """
        if not self._applied_to:
            raise RuntimeError("call masks.apply(model) first: whose weights are meant?")
        alive = {name: parameter for name, ref in self._applied_to.items() if (parameter := ref()) is not None}
        if gone := self._applied_to.keys() - alive.keys():
            raise RuntimeError(
                f"{', '.join(sorted(gone))} no longer exist in the model these masks were last applied to; "
                "call masks.apply(model) again"
            )
        return alive

    def regrown(self, model: nn.Module) -> int:
        """How many of the removed weights are not zero in a model, as after training without the masks."""
        return sum(int(model.get_parameter(name)[~mask].count_nonzero()) for name, mask in self.items())

    def shuffled(self, seed: int = 0) -> "Masks":
        """As many weights kept in each layer, at random places: the control for *which* stay (Frankle et al. 2021)."""
        generator = torch.Generator().manual_seed(seed)
        order = {name: torch.randperm(mask.numel(), generator=generator) for name, mask in self.items()}
        return Masks({name: mask.cpu().flatten()[order[name]].view(mask.shape) for name, mask in self.items()})

    @contextmanager
    def enforced(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """While the block runs, write the zeros again after each step of the optimizer.

        For the model that these masks were last applied to. Parameters that the optimizer does not hold stay as they
        are anyway. Outside the block nothing holds the zeros in place.

        Raises:
            TypeError: this is no optimizer.
            RuntimeError: the masks were never applied, or to a model of which this optimizer holds nothing, or whose
            parameters have been replaced since.
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"enforced takes the optimizer that steps, not {type(optimizer).__name__}")
        alive = self.weights()
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        names = [name for name, parameter in alive.items() if id(parameter) in stepped]
        if not names:
            raise RuntimeError(
                "this optimizer holds none of the parameters these masks were last applied to; "
                "apply the masks to the model that it trains first"
            )
        weights: list[Tensor] = [alive[name] for name in names]
        # As floats, laid out as the weights are: multiplying by a bool tensor costs about eight times as much.
        keep = [torch.empty_like(weight).copy_(self[name]) for name, weight in zip(names, weights, strict=True)]

        def zero_again(*_: object) -> None:
            with torch.no_grad():
                torch._foreach_mul_(weights, keep)

        zero_again()
        hook = optimizer.register_step_post_hook(zero_again)
        try:
            yield
        finally:
            hook.remove()
            for name in names:  # multiplying a negative weight by zero leaves −0.0, which is not stored as a zero
                write_zeros(alive[name], self[name])


@torch.no_grad()
def write_zeros(weight: Tensor, mask: Tensor) -> None:
    """Zero `weight` in place where `mask` is False.

    The bits are multiplied by 0 or 1, as whole numbers, so that a zero is +0.0 even where a weight was negative,
    infinite or NaN; and in pieces, so that no second copy of the weight is ever made.
    """
    mask = mask.to(weight.device)
    bits = weight.data.view(_BITS[weight.element_size()])
    if not (bits.is_contiguous() and mask.is_contiguous()):
        bits.mul_(mask)
        return
    for part, keep in zip(bits.view(-1).split(CHUNK), mask.view(-1).split(CHUNK), strict=True):
        part.mul_(keep)


def _raise_differences(what: str, masks: Mapping[str, Tensor], held: Mapping[str, torch.Size]) -> None:
    wrong = []
    for name, mask in masks.items():
        if name not in held:
            wrong.append(f"{name}: {tuple(mask.shape)} here, missing there")
        elif mask.shape != held[name]:
            wrong.append(f"{name}: {tuple(mask.shape)} here, {tuple(held[name])} there")
    wrong += [f"{name}: missing here, {tuple(shape)} there" for name, shape in held.items() if name not in masks]
    if wrong:
        raise ValueError(f"{what} do not fit:\n  " + "\n  ".join(wrong))
