"""The blocks of a language model, one after the other, each with the inputs that reach it.

What a block gets depends on what was pruned before it. So the blocks are walked in order: the inputs of one are known
when all before it are done, and whatever happens to it while it is visited, its outputs are computed afterwards.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruninglab.batches import batches
from pruninglab.layers import PRUNABLE, Layer, prunable
from pruninglab.progress import progress
from pruninglab.recording import observed
from pruninglab.statistics import Data

CHUNK = 16  # sequences that go through a block at a time


@dataclass(frozen=True)
class Block:
    """One block, while it is visited.

    Attributes:
        name: of the module.
        module: itself; change it as you like.
        inputs: batches of what it is called with, by name; the first entry is the hidden states, (n, tokens, width).
    """

    name: str
    module: nn.Module
    inputs: list[dict[str, Any]]

    def layers(self) -> dict[str, Layer]:
        """Its prunable layers; names are those within the block."""
        return prunable(self.module)

    def full(self, name: str) -> str:
        """The name of a parameter in the model."""
        return f"{self.name}.{name}"


def find_blocks(model: nn.Module, blocks: str | None = None) -> dict[str, nn.Module]:
    """The model's blocks in order, by name.

    Args:
        model: a language model.
        blocks: the name of the list that holds them; the list with most weights in it if not given.

    Raises:
        ValueError: there is no such list; says which lists there are.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(isinstance(part, PRUNABLE) for part in module.modules())
    }
    if blocks is None and lists:  # the outer one of two that hold the same weights is seen first
        blocks = max(lists, key=lambda name: sum(parameter.numel() for parameter in lists[name].parameters()))
    if blocks not in lists:
        known = ", ".join(map(repr, lists)) or "none"
        raise ValueError(
            f"{type(model).__name__} has no list of blocks {blocks!r}: name the nn.ModuleList that holds them, as in "
            f"blocks='model.layers'; those with linear layers in them: {known}"
        )
    return {f"{blocks}.{i}": block for i, block in enumerate(lists[blocks])}


@torch.no_grad()
def walk(model: nn.Module, data: Data, blocks: str | None = None, label: str = "pruning") -> Iterator[Block]:
    """Visit each block in turn; its outputs are computed when the visitor comes back for the next.

    Args:
        model: a language model whose blocks take the hidden states first and return them.
        data: token ids, (sequences, tokens), or `(x, y)`, or batches; labels are ignored.
        blocks: as in `find_blocks`.
        label: the text of the progress bar.

    Raises:
        ValueError: no blocks, no data, or token ids that the model does not know.
    """
    found = find_blocks(model, blocks)
    with observed(model), _without_cache(model):
        calls = arguments(model, found, data)
        bar = progress(found.items(), desc=label, unit="block", total=len(found))
        for place, (name, module) in enumerate(bar):
            block = Block(name, module, [batch[place] for batch in calls])
            yield block
            for batch, given in zip(calls, block.inputs, strict=True):
                output = module(**given)
                if place + 1 < len(batch):
                    following = batch[place + 1]
                    following[next(iter(following))] = output
                batch[place].clear()


def arguments(model: nn.Module, blocks: Mapping[str, nn.Module], data: Data) -> list[list[dict[str, Any]]]:
    """What each block is called with, for each batch: `[batch][block]`. Hidden states are right for the first only.

    No block runs for this: while the model is called, each only notes its arguments and hands its input on. So the
    model's own code says what the mask, the positions and all else are, whatever the model is.
    """
    known = getattr(model.get_input_embeddings(), "num_embeddings", None)  # type: ignore[operator]
    found: list[list[dict[str, Any]]] = []
    for x in _chunks(data):
        if known is not None and isinstance(x, Tensor) and not bool(((x >= 0) & (x < known)).all()):
            raise ValueError(
                f"token ids run from 0 to {known - 1} here; the data have {int(x.min())} to {int(x.max())}"
            )
        seen: list[dict[str, Any]] = []
        with ExitStack() as undo:
            for place, module in enumerate(blocks.values()):
                last = place == len(blocks) - 1
                undo.callback(module.__dict__.pop, "forward", None)
                module.forward = _note(inspect.signature(module.forward), seen, last)
            with suppress(_Enough):
                model(**x) if isinstance(x, dict) else model(x.to(next(model.parameters()).device))
        if len(seen) != len(blocks):
            raise ValueError(f"{type(model).__name__} called {len(seen)} of its {len(blocks)} blocks")
        found.append(seen)
    if not found:
        raise ValueError("the calibration data are empty: not one sequence to prune with")
    return found


class _Enough(Exception):
    """All blocks' arguments are known: what the model does afterwards need not be done."""


def _note(signature: inspect.Signature, seen: list[dict[str, Any]], last: bool) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for name, parameter in signature.parameters.items():  # what is beyond the named arguments
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        seen.append(dict(given))
        if last:
            raise _Enough
        return next(iter(given.values()))

    return forward


def _chunks(data: Data) -> Iterator[Any]:
    for x, _ in batches(data):
        yield from x.split(CHUNK) if isinstance(x, Tensor) else [x]


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """A cache of keys and values would grow with each call of a block."""
    config = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    if before is not None:
        config.use_cache = False  # type: ignore[union-attr]
    try:
        yield
    finally:
        if before is not None:
            config.use_cache = before  # type: ignore[union-attr]
