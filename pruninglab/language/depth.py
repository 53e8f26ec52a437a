"""Whole blocks of a language model: how far each turns what passes through it, what it is worth, and going without.

influence = influences(model, x)       # how far each block turns what passes through it
angles = distances(model, x, span=2)   # how far each two in a row do, by the first of them
masks = drop_blocks(model, ["model.layers.3"], x[:1])
small = shorten(slim(model, masks, x[:1]))
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruninglab.blocks import Bypass, block_masks, removable, see
from pruninglab.criteria import block_influence
from pruninglab.graph import GraphError
from pruninglab.language.blocks import find_blocks, walk
from pruninglab.masks import Masks
from pruninglab.recording import observed
from pruninglab.statistics import Data, Loss

SEQUENCES = 8  # that go through the model at a time


@torch.no_grad()
def influences(model: nn.Module, data: Data, blocks: str | None = None) -> dict[str, float]:
    """Block → its influence: 1 − cos(input, output), the mean over tokens (Men et al. 2024, ShortGPT, eq. 1).

    Args:
        model: a language model.
        data: tokens, or batches of what the model is called with.
        blocks: as in `blocks.find_blocks`.
    """
    found = {}
    for block in walk(model, data, blocks, label="block influence"):
        total, tokens = 0.0, 0
        for given in block.inputs:
            x = next(iter(given.values()))
            n = x.shape[:-1].numel()
            total, tokens = total + n * float(block_influence(x, block.output(given))), tokens + n
        found[block.name] = total / tokens
    return found


@torch.no_grad()
def distances(
    model: nn.Module, x: Tensor, span: int, *, last: bool = True, blocks: str | None = None
) -> dict[str, float]:
    """Block b → the angle between what enters b and what enters b + span, over π (Gromov et al. 2024, eq. 6).

    The mean over sequences of arccos cos(x_b, x_{b+span}) / π, in [0, 1]. Where it is small, `span` blocks from b on
    can go together. The last of these may be the last of all.

    Args:
        model: a language model.
        x: tokens, (sequences, tokens).
        span: how many blocks are to go.
        last: look at the last token of each sequence, as the paper does, and not at all of them.
        blocks: as in `blocks.find_blocks`.

    Raises:
        ValueError: not 1 ≤ span < the number of blocks.
    """
    names = list(find_blocks(model, blocks))
    if not 1 <= span < len(names):
        raise ValueError(f"span is a number of blocks from 1 to {len(names) - 1}, not {span}")
    totals, tokens = torch.zeros(len(names) - span + 1, dtype=torch.float64), 0
    for some in x.to(next(model.parameters()).device).split(SEQUENCES):
        seen = see(model, names, some)
        stream = [args[0] if args else next(iter(given.values())) for args, given, _ in seen.values()]
        end = seen[names[-1]][2]
        stream.append(end[0] if isinstance(end, tuple) else end)
        states = torch.stack([state[:, -1:] if last else state for state in stream]).double()
        cosine = F.cosine_similarity(states[:-span], states[span:], dim=-1).clamp(-1, 1)
        totals += cosine.arccos().flatten(1).sum(1).cpu() / torch.pi
        tokens += cosine[0].numel()
    return dict(zip(names, (totals / tokens).tolist(), strict=False))


@torch.no_grad()
def removal_losses(
    model: nn.Module, data: tuple[Tensor, Tensor], loss: Loss, blocks: str | None = None
) -> dict[str, float]:
    """Block → the loss of the model without it, all others in place: what its removal really does.

    Args:
        model: a language model.
        data: tokens and for each of them the next one.
        loss: `loss(model(x), y)`, the mean.
        blocks: as in `blocks.find_blocks`.
    """
    (x, y), device = data, next(model.parameters()).device
    found = {}

    def past(_block: nn.Module, args: Any, named: Any, result: Any) -> Any:
        before = args[0] if args else next(iter(named.values()))
        return (before, *result[1:]) if isinstance(result, tuple) else before

    with observed(model):
        for name, block in find_blocks(model, blocks).items():
            total = 0.0
            hook = block.register_forward_hook(past, with_kwargs=True)
            try:
                for some, following in zip(x.split(SEQUENCES), y.split(SEQUENCES), strict=True):
                    total += len(some) * float(loss(model(some.to(device)), following.to(device)))
            finally:
                hook.remove()
            found[name] = total / len(x)
    return found


def drop_blocks(model: nn.Module, names: list[str], x: Tensor, blocks: str | None = None) -> Masks:
    """Empty whole blocks, so that what enters one leaves it, and return the masks of all blocks, applied.

    Args:
        model: a language model; changed in place.
        names: of the blocks that go.
        x: tokens of one sequence, (1, tokens), to see with that a block can go.
        blocks: as in `blocks.find_blocks`.

    Raises:
        GraphError: a block that does not return its input when its weights are zero.
        ValueError: a name that is no block's, or all of them.
    """
    every = list(find_blocks(model, blocks))
    if strangers := sorted(set(names) - set(every)):
        raise ValueError(f"no blocks of this {type(model).__name__}: {', '.join(strangers)}; it has {', '.join(every)}")
    if len(set(names)) == len(every):
        raise ValueError(f"all {len(every)} blocks would go; at least one must stay")
    if needed := sorted(set(names) - set(removable(model, x))):
        raise GraphError(f"{', '.join(needed)} cannot go: without weights they do not return their input")
    masks = block_masks(model, every, names)
    masks.apply(model)
    return masks


def shorten(small: nn.Module, blocks: str | None = None) -> nn.Module:
    """Make the list of blocks shorter where `slim` left what lets its input pass by, in place; returns the model.

    The config then has as many blocks, and `save_pretrained` writes an ordinary model.

    Args:
        small: a language model that `slim` made.
        blocks: as in `blocks.find_blocks`.
    """
    found = find_blocks(small, blocks)
    where, _, _ = next(iter(found)).rpartition(".")
    stay = [place for place, block in enumerate(found.values()) if not isinstance(block, Bypass)]
    kept = nn.ModuleList(small.get_submodule(f"{where}.{place}") for place in stay)
    small.set_submodule(where, kept)
    for place, block in enumerate(kept):
        for values in map(vars, block.modules()):
            if isinstance(values.get("layer_idx"), int):  # where a cache keeps what the block has seen
                values["layer_idx"] = place
    config: Any = getattr(small, "config", None)
    if hasattr(config, "num_hidden_layers"):
        config.num_hidden_layers = len(kept)
        for key, value in list(vars(config).items()):
            if isinstance(value, list) and "layer" in key:
                setattr(config, key, _shortened(value, stay, len(found)))
    return small


def _shortened(value: list[Any], stay: list[int], n: int) -> list[Any]:
    """What is left of a list with an entry for each of n blocks, or of one that names some of them by their places."""
    of_blocks = all(type(entry) is int and 0 <= entry < n for entry in value)
    places = of_blocks and (len(value) != n or value == list(range(n)))
    if places:
        return [stay.index(place) for place in value if place in stay]
    return [value[place] for place in stay] if len(value) == n else value
