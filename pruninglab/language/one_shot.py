"""One-shot pruning of a language model: visit each block, prune its layers, go on with what is left.

A *step* prunes one block in place and returns its layers' masks. `scored` makes one from any criterion, `repaired` is
SparseGPT's; both combine with any share for each layer.
"""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruninglab import criteria, units
from pruninglab.batches import tensors_of
from pruninglab.criteria import Criterion
from pruninglab.files import digest, load_tensors, save_tensors
from pruninglab.language.blocks import Block, find_blocks, walk
from pruninglab.language.selection import GROUPS, select
from pruninglab.language.sparsegpt import factor, sparsegpt
from pruninglab.layers import Layer, prunable
from pruninglab.masks import Masks
from pruninglab.naming import label, unknown
from pruninglab.recording import recording
from pruninglab.scoring import layer_scores
from pruninglab.statistics import STATISTICS, Data, collect
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
        resume: a folder that keeps each block as soon as it is done, so that an interrupted run goes on, with the model
            as it was before or as the interruption left it.

    Returns:
        The masks, applied.

    Raises:
        ValueError: a layer without a share or one out of range, a `resume` folder of another run, hidden states that
            are not finite, or what the step says; and as `walk`. The block that was worked on is as it was before;
            those before it are pruned.
    """
    layers = {
        f"{name}.{own}": layer
        for name, module in find_blocks(model, blocks).items()
        for own, layer in prunable(module).items()
    }
    shares = shares_of(sparsity, layers)
    data = list(data) if isinstance(data, Iterator) else data  # they are read more than once
    kept = _Kept(resume, data, step, shares)
    masks: dict[str, Tensor] = {}
    visits: Any = walk(model, data, blocks)
    with closing(visits):  # so that the model's modes are restored at once, whatever happens
        for block in visits:
            found = kept.load(block)
            if found is None:
                reject_nan(block)
                with _whole_or_not(block):
                    before = kept.state(block)
                    found = step(block, {own: shares[block.full(own)] for own in block.layers()})
                    kept.save(block, before, found)
            masks |= {block.full(own): mask for own, mask in found.items()}
    whole = Masks(masks)
    whole.apply(model)
    return whole


def shares_of(sparsity: Shares, layers: Iterable[str]) -> dict[str, float]:
    """Layer → the fraction to remove. Raises a ValueError where one is missing or out of [0, 1)."""
    names = list(layers)
    given = sparsity if isinstance(sparsity, Mapping) else dict.fromkeys(names, sparsity)
    shares = {name: float(share) for name, share in given.items()}
    if set(shares) != set(names):
        wrong = sorted(set(shares) ^ set(names))
        raise ValueError(f"a share is needed for each layer of the blocks and no other; look at {', '.join(wrong[:3])}")
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name}: sparsity is the fraction removed, in [0, 1), not {share}")
    return shares


def scored(
    criterion: str | Criterion = "wanda", group: str = "row", unit: str | Pattern | None = None, *, seed: int = 0
) -> Step:
    """A step that removes what a criterion ranks lowest, and repairs nothing.

    Args:
        criterion: a name or a function of statistics, but not of gradients: those need the whole model (see `gblm`).
        group: "row" or "layer": among whom weights compete.
        unit: "N:M" instead of single weights.
        seed: of a criterion that draws; each block gets a draw of its own.
    """
    function, pattern = criteria.find(criterion), pattern_of(unit)
    if group not in GROUPS:
        raise unknown("group", group, GROUPS)
    named_by_it = [STATISTICS[need] for need in criteria.needs(function) if need in STATISTICS]
    if any("grad" in ingredient for statistic in named_by_it for ingredient in statistic.needs):
        raise ValueError(f"criterion {label(function)!r} asks for gradients, which one block alone cannot give")

    def step(block: Block, shares: Mapping[str, float]) -> dict[str, Tensor]:
        draw = zlib.crc32(f"{block.name} {seed}".encode())
        scores = layer_scores(block.module, block.layers(), function, block.inputs, seed=draw)
        return masked(
            block,
            {
                own: select(found.tensor(), shares[own], group, pattern, block.full(own))
                for own, found in scores.items()
            },
        )

    return named(step, label(function), group, unit, seed or None)


def repaired(damping: float = 0.01, unit: str | Pattern | None = None) -> Step:
    """SparseGPT's step: what is left of a layer makes up for what goes (Frantar & Alistarh 2023).

    Each layer is fitted to the inputs that it has before anything of its block is pruned. Layers with the same inputs,
    such as q, k and v, share one Hessian and its factor. The Hessians of a block are collected in one pass, or in
    several if together they are larger than the block itself.

    Args:
        damping: as in `sparsegpt.factor`.
        unit: "N:M" instead of single weights.
    """
    if not damping > 0:
        raise ValueError(f"damping must be positive, not {damping}")
    pattern = pattern_of(unit)

    @torch.no_grad()
    def step(block: Block, shares: Mapping[str, float]) -> dict[str, Tensor]:
        layers, done = block.layers(), dict[str, tuple[Tensor, Tensor]]()
        for together in _passes(siblings(block), layers):
            firsts = {first for first, *_ in together}
            rest = [layer for name, layer in layers.items() if name not in firsts]
            found = collect(block.module, ["hessian"], block.inputs, exclude=rest)
            for alike in together:
                m = factor(found.pop(alike[0])["hessian"], damping, block.full(alike[0]))
                for name in alike:
                    done[name] = sparsegpt(layers[name].weight, m, shares[name], pattern, block.full(name))
        for name, layer in layers.items():  # not before, since all passes are to see the same
            layer.weight.copy_(done[name][0])
        return masked(block, {name: done[name][1] for name in layers})  # writes +0.0 for what a product made −0.0

    return named(step, "sparsegpt", damping, unit)


@torch.no_grad()
def siblings(block: Block) -> list[list[str]]:
    """The block's layers; those that are given the very same tensor stand together."""
    found: dict[object, list[str]] = {}
    with recording(block.module, block.layers()) as recorders:
        block.output(block.inputs[0])
        for name, recorder in recorders.items():
            given = [(call["x"], call["written"]) for call in recorder.calls]
            same = tuple((x.data_ptr(), x.shape, x.stride(), written) for x, written in given if x.numel())
            found.setdefault(same or name, []).append(name)
    return list(found.values())


def _passes(groups: list[list[str]], layers: Mapping[str, Layer]) -> list[list[list[str]]]:
    """Groups whose Hessians together are no larger than the block, or one group."""
    room = sum(layer.weight.numel() for layer in layers.values())
    passes: list[list[list[str]]] = []
    left = 0
    for group in groups:
        size = layers[group[0]].weight.shape[1] ** 2
        if size > left:
            passes.append([])
            left = room
        passes[-1].append(group)
        left -= size
    return passes


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


def reject_nan(block: Block) -> None:
    """Raise a ValueError if what reaches a block is NaN or infinite somewhere."""
    for batch in block.inputs:
        if not bool(next(iter(batch.values())).isfinite().all()):
            raise ValueError(
                f"the hidden states that reach {block.name} are NaN or infinite: look for such weights before it, or "
                "for a half precision that they are too large for"
            )


@contextmanager
def _whole_or_not(block: Block) -> Iterator[None]:
    """Whoever interrupts the work on a block finds the block as it was before."""
    before = {name: tensor.clone() for name, tensor in block.module.state_dict().items()}
    try:
        yield
    except BaseException as error:
        block.module.load_state_dict(before)
        error.add_note(f"while {block.name} was pruned, which is again as it was before")
        raise


class _Kept:
    """The blocks that are done, each in a file of its own, with what was asked and what it was before."""

    def __init__(self, folder: Any, data: Data, step: Step, shares: Mapping[str, float]) -> None:
        self.folder = None if folder is None else Path(folder)
        self.question = "" if folder is None else digest(label(step), sorted(shares.items()), *tensors_of(data))

    def load(self, block: Block) -> dict[str, Tensor] | None:
        """The masks of a block that was done, and its weights put in place."""
        if self.folder is None or not self._path(block).exists():
            return None
        tensors, written = load_tensors(self._path(block))
        known = written.get("before"), written.get("after")
        if written.get("question") != self.question or self.state(block) not in known:
            raise ValueError(
                f"resume={os.fspath(self.folder)!r} is of another run (model, data, shares or step): name another "
                "folder, or delete it"
            )
        block.module.load_state_dict(_part("state/", tensors))
        device = next(block.module.parameters()).device
        return {name: mask.to(device) for name, mask in _part("mask/", tensors).items()}

    def save(self, block: Block, before: str, masks: Mapping[str, Tensor]) -> None:
        if self.folder is not None:
            tensors = {f"state/{name}": tensor for name, tensor in block.module.state_dict().items()}
            tensors |= {f"mask/{name}": mask for name, mask in masks.items()}
            about = {"question": self.question, "before": before, "after": self.state(block)}
            save_tensors(self._path(block), tensors, about)

    def state(self, block: Block) -> str:
        """A hash of the block's weights."""
        state = {} if self.folder is None else block.module.state_dict()
        return digest(block.name, *(part for item in state.items() for part in item))

    def _path(self, block: Block) -> Path:
        assert self.folder is not None
        return self.folder / f"{block.name}.safetensors"


def _part(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
