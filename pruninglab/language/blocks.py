"""The blocks of a language model, one after the other, each with the inputs that reach it.

What a block gets depends on what was pruned before it. So the blocks are walked in order: the inputs of one are known
when all before it are done, and whatever happens to it while it is visited, its outputs are computed afterwards.
"""

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruninglab.batches import batches, call, to_device
from pruninglab.layers import PRUNABLE, Layer, prunable
from pruninglab.progress import progress
from pruninglab.recording import observed, without_cache
from pruninglab.statistics import Data
from pruninglab.tasks.text import check_tokens
from pruninglab.watching import own_forward

CHUNK = 16  # sequences that go through a block at a time
Visit = Callable[[str, nn.Module], AbstractContextManager[Any]]


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

    def output(self, batch: Mapping[str, Any]) -> Tensor:
        """The hidden states that it gives for one of its inputs, (n, tokens, width)."""
        found = self.module(**batch)
        return found[0] if isinstance(found, tuple) else found


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
    if blocks is None or blocks not in lists:
        known = ", ".join(map(repr, lists)) or "none"
        called = "" if blocks is None else f" {blocks!r}"
        raise ValueError(
            f"{type(model).__name__} has no list of blocks{called}: name the nn.ModuleList that holds them, as in "
            f"blocks='model.layers'; those with linear layers in them: {known}. (GPT-2's layers are linear after "
            "`task.from_pretrained`, or `tasks.linears.as_linear`.)"
        )
    return {f"{blocks}.{i}" if blocks else str(i): block for i, block in enumerate(lists[blocks])}


@torch.no_grad()
def walk(
    model: nn.Module,
    data: Data,
    blocks: str | None = None,
    label: str = "pruning",
    around: Visit = lambda name, module: nullcontext(),
) -> Generator[Block, None, None]:
    """Visit each block in turn; its outputs are computed when the visitor comes back for the next.

    Args:
        model: a language model whose blocks take the hidden states first and return them.
        data: token ids, (sequences, tokens), or `(x, y)`, or batches; labels are ignored.
        blocks: as in `find_blocks`.
        label: the text of the progress bar.
        around: `around(name, module)` is a context that is entered before a block is visited and left when its
            outputs are known, so that it need not be in memory before or after.

    Raises:
        ValueError: no blocks, no data, token ids that the model does not know, or a model that does something of its
            own between its blocks.
    """
    found = find_blocks(model, blocks)
    with observed(model), without_cache(model):
        calls = arguments(model, found, data)
        bar = progress(found.items(), desc=label, unit="block", total=len(found))
        for place, (name, module) in enumerate(bar):
            with around(name, module):
                block = Block(name, module, [batch[place] for batch in calls])
                yield block
                for batch in calls:
                    if place + 1 < len(found):
                        following = batch[place + 1]
                        following[next(iter(following))] = block.output(batch[place])
                    batch[place].clear()


def arguments(model: nn.Module, blocks: Mapping[str, nn.Module], data: Data) -> list[list[dict[str, Any]]]:
    """What each block is called with, for each batch: `[batch][block]`. Hidden states are there for the first only.

    No block runs for this: while the model is called, each only notes its arguments and hands its input on. So the
    model's own code says what the mask, the positions and all else are, whatever the model is.
    """
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    device = next(model.parameters() if embeddings is None else embeddings.parameters()).device
    found: list[list[dict[str, Any]]] = []
    for x in _chunks(data):
        tokens = x.get("input_ids") if isinstance(x, Mapping) else x
        if isinstance(embeddings, nn.Embedding) and isinstance(tokens, Tensor):
            check_tokens(tokens, embeddings.num_embeddings)
        inputs = to_device(x, device)
        heard = _heard(model, list(blocks.values()), inputs, lambda hidden: hidden)
        if heard is None:  # older blocks return a tuple
            heard = _heard(model, list(blocks.values()), inputs, lambda hidden: (hidden,))
        if heard is None:
            raise ValueError(
                f"{type(model).__name__} does more between its blocks than to hand the hidden states on, "
                "so they cannot be walked one by one"
            )
        found.append(heard)
    if not found:
        raise ValueError("the calibration data are empty: not one sequence to prune with")
    return found


def _heard(
    model: nn.Module, blocks: list[nn.Module], inputs: Any, handed: Callable[[Tensor], Any]
) -> list[dict[str, Any]] | None:
    """The arguments of each block, or None if what one hands on is not what the next one gets."""
    heard: list[tuple[nn.Module, dict[str, Any]]] = []

    def instead(module: nn.Module) -> Callable[..., Any]:
        signature = inspect.signature(type(module).forward.__get__(module))  # its own: it may have been wrapped

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            for name, parameter in signature.parameters.items():  # what is beyond the named arguments
                if parameter.kind is parameter.VAR_KEYWORD:
                    given |= given.pop(name, {})
            heard.append((module, dict(given)))
            if module is blocks[-1]:
                raise _Enough
            return handed(next(iter(given.values())))

        return forward

    with ExitStack() as undo:
        for module in blocks:
            undo.enter_context(own_forward(module))
            module.forward = instead(module)
        try:
            with suppress(_Enough):
                call(model, inputs)
        except (IndexError, TypeError, ValueError):
            if not heard:  # this is about the data; else it is about what was handed on
                raise
            return None
    if [module for module, _ in heard] != blocks:
        raise ValueError(
            f"{type(model).__name__} does not call its {len(blocks)} blocks one after the other, each once"
        )
    first, *others = (given for _, given in heard)
    hidden = next(iter(first.values()))
    for given in others:
        name = next(iter(given))
        if given[name] is not hidden:
            return None
        given[name] = None  # nobody knows them yet
    return [first, *others]


class _Enough(Exception):
    """All blocks' arguments are known: what the model does afterwards need not be done."""


def _chunks(data: Data) -> Iterator[Any]:
    for x, _ in batches(data):
        yield from x.split(CHUNK) if isinstance(x, Tensor) else [x]
