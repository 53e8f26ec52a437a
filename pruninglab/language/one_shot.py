"""One-shot pruning of a language model: visit each block, prune its layers, go on with what is left.

A *step* prunes one block in place and returns its layers' masks. `scored` makes one from any criterion, `repaired` is
SparseGPT's; both combine with any share for each layer.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruninglab import criteria, units
from pruninglab.criteria import Criterion
from pruninglab.files import digest, load_tensors, save_tensors
from pruninglab.language.blocks import Block, find_blocks, walk
from pruninglab.language.selection import select
from pruninglab.language.sparsegpt import factor, sparsegpt
from pruninglab.layers import prunable
from pruninglab.masks import Masks
from pruninglab.naming import label
from pruninglab.recording import recording
from pruninglab.scoring import layer_scores
from pruninglab.statistics import Data, collect
from pruninglab.units import Pattern

Shares = Mapping[str, float] | float
Step = Callable[[Block, Mapping[str, float]], dict[str, Tensor]]


@torch.no_grad()
def one_shot(
    model: nn.Module,
    data: Data,
    step: Step,
    sparsity: Shares,
    *,
    blocks: str | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> Masks:
    """Prune all blocks, each with the inputs that the blocks pruned before it give.

    Embeddings, norms and the output layer stay as they are.

    Args:
        model: a language model; changed in place.
        data: token ids, (sequences, tokens), or batches of what the model is called with.
        step: what is done to a block.
        sparsity: the fraction to remove from each layer: one for all, or layer → fraction.
        blocks: as in `find_blocks`.
        resume: a folder that keeps each block as soon as it is done, so that an interrupted run goes on.

    Returns:
        The masks, applied.

    Raises:
        ValueError: a layer without a share or one out of range, or a `resume` folder of another run; and as `walk`.
    """
    layers = {
        f"{name}.{own}": layer
        for name, module in find_blocks(model, blocks).items()
        for own, layer in prunable(module).items()
    }
    shares = shares_of(sparsity, layers)
    kept = _Kept(resume, data, step, shares)
    masks: dict[str, Tensor] = {}
    for block in walk(model, data, blocks):
        found = kept.load(block)
        if found is None:
            run = kept.run(block)
            with _whole_or_not(block.module):
                found = step(block, {own: shares[block.full(own)] for own in block.layers()})
            kept.save(block, run, found)
        masks |= {block.full(own): mask for own, mask in found.items()}
    return Masks(masks)


def shares_of(sparsity: Shares, layers: Iterable[str]) -> dict[str, float]:
    """Layer → the fraction to remove. Raises a ValueError where one is missing or out of [0, 1)."""
    names = list(layers)
    shares = dict(sparsity) if isinstance(sparsity, Mapping) else dict.fromkeys(names, float(sparsity))
    if set(shares) != set(names):
        wrong = sorted(set(shares) ^ set(names))
        raise ValueError(f"a share is needed for each layer of the blocks and no other; look at {', '.join(wrong[:3])}")
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name}: sparsity is the fraction removed, in [0, 1), not {share}")
    return shares


def scored(criterion: str | Criterion = "wanda", group: str = "row", unit: str | Pattern | None = None) -> Step:
    """A step that removes what a criterion ranks lowest, and repairs nothing.

    Args:
        criterion: a name or a function of statistics. Gradients would need the whole model (see `gblm`).
        group: "row" or "layer": among whom weights compete.
        unit: "N:M" instead of single weights.
    """
    function, pattern = criteria.find(criterion), pattern_of(unit)

    def step(block: Block, shares: Mapping[str, float]) -> dict[str, Tensor]:
        layers = block.layers()
        scores = layer_scores(block.module, layers, function, block.inputs)
        return masked(block, {name: select(scores[name].tensor(), shares[name], group, pattern) for name in layers})

    return named(step, label(function), group, unit)


def repaired(damping: float = 0.01, unit: str | Pattern | None = None) -> Step:
    """SparseGPT's step: what is left of a layer makes up for what goes (Frantar & Alistarh 2023).

    Args:
        damping: as in `sparsegpt.factor`.
        unit: "N:M" instead of single weights.
    """
    if not damping > 0:
        raise ValueError(f"damping must be positive, not {damping}")
    pattern = pattern_of(unit)

    def step(block: Block, shares: Mapping[str, float]) -> dict[str, Tensor]:
        layers, masks = block.layers(), {}
        for together in siblings(block):
            first, *others = together
            rest = [layer for name, layer in layers.items() if name != first]
            hessian = collect(block.module, ["hessian"], block.inputs, exclude=rest)[first]["hessian"]
            m = factor(hessian, damping, block.full(first))
            for name in (first, *others):
                weight = layers[name].weight
                fresh, masks[name] = sparsegpt(weight, m, shares[name], pattern)
                weight.copy_(fresh)
        return {name: masks[name] for name in layers}

    return named(step, "sparsegpt", damping, unit)


def siblings(block: Block) -> list[list[str]]:
    """Layers that are given the very same tensor, such as q, k and v: they share its statistics."""
    found: dict[int, list[str]] = {}
    with recording(block.module, block.layers()) as recorders:
        block.module(**block.inputs[0])
        held = {name: recorder.calls[0]["x"] for name, recorder in recorders.items() if recorder.calls}
    for name, x in held.items():
        found.setdefault(x.data_ptr() if x.numel() else id(x), []).append(name)
    return list(found.values())


def masked(block: Block, masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same masks, applied to the block."""
    Masks(masks).apply(block.module)
    return masks


def pattern_of(unit: str | Pattern | None) -> Pattern | None:
    """N:M, or None for single weights. Raises a ValueError for other units."""
    found = None if unit is None else units.find(unit)
    if found is not None and not isinstance(found, Pattern):
        raise ValueError(f"blocks are pruned weight by weight or N:M, not by {unit!r}")
    return found


def named(step: Step, *what: object) -> Step:
    """The step, with a name that says all about it."""
    step.__name__ = " ".join(str(getattr(part, "name", part)) for part in what if part is not None)
    return step


@contextmanager
def _whole_or_not(block: nn.Module) -> Iterator[None]:
    """Whoever interrupts the work on a block finds the block as it was before."""
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    try:
        yield
    except BaseException:
        block.load_state_dict(before)
        raise


class _Kept:
    """The blocks that are done, each in a file of its own."""

    def __init__(self, folder: Any, data: Data, step: Step, shares: Mapping[str, float]) -> None:
        self.folder = None if folder is None else Path(folder)
        parts = data if isinstance(data, tuple) else (data,)
        given = [part for part in parts if isinstance(part, Tensor)]
        self.question = digest(step.__name__, sorted(shares.items()), *given)

    def load(self, block: Block) -> dict[str, Tensor] | None:
        """The masks of a block that was done, and its weights put in place."""
        if self.folder is None or not self._path(block).exists():
            return None
        tensors, written = load_tensors(self._path(block))
        state = _part("state/", tensors)
        here = block.module.state_dict()
        done = all(torch.equal(tensor, here[name].cpu()) for name, tensor in state.items())  # by this very model
        if not done and written.get("run") != self.run(block):
            raise ValueError(f"resume={os.fspath(self.folder)!r} is of another run: name another folder, or delete it")
        block.module.load_state_dict(state)
        return _part("mask/", tensors)

    def save(self, block: Block, before: str, masks: Mapping[str, Tensor]) -> None:
        if self.folder is not None:
            state = {f"state/{name}": tensor for name, tensor in block.module.state_dict().items()}
            state |= {f"mask/{name}": mask for name, mask in masks.items()}
            save_tensors(self._path(block), state, {"run": before})

    def run(self, block: Block) -> str:
        """What a block's file must be of: the question, and the block's weights before."""
        return "" if self.folder is None else digest(self.question, block.name, *block.module.state_dict().values())

    def _path(self, block: Block) -> Path:
        assert self.folder is not None
        return self.folder / f"{block.name}.safetensors"


def _part(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
