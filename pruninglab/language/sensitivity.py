"""How much a language model's predictions and its loss depend on each block, or on each layer.

What the rules of `ratios` go by: outliers among Wanda's scores, slopes of the loss, and curves of what pruning does.
The model stays as it is.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruninglab import criteria
from pruninglab.batches import to_device
from pruninglab.criteria import Criterion, Scores
from pruninglab.curves import Curves
from pruninglab.distortion import Probe, unchanged
from pruninglab.ladders import Ladder, weight_ladders
from pruninglab.language.blocks import find_blocks, walk
from pruninglab.layers import Layer, is_routed, prunable
from pruninglab.naming import unknown, whole
from pruninglab.progress import progress
from pruninglab.recording import observed
from pruninglab.scoring import layer_scores
from pruninglab.statistics import Loss, collect
from pruninglab.tasks.training import rows

Text = tuple[Tensor, Tensor]  # tokens, and for each of them the next one: (sequences, tokens) both
Groups = dict[str, dict[str, Layer]]  # block (or layer) → its layers, by their full names


def next_token(outputs: Any, targets: Tensor) -> Tensor:
    """Mean cross-entropy over all tokens, of whatever a model returns."""
    return F.cross_entropy(rows(outputs), targets.flatten())


def grouped(model: nn.Module, by: str = "block", blocks: str | None = None) -> Groups:
    """The layers of the blocks by their full names, block by block or each for itself.

    Raises:
        ValueError: no blocks, or neither "block" nor "layer".
    """
    found = {
        name: {f"{name}.{own}": layer for own, layer in prunable(module).items()}
        for name, module in find_blocks(model, blocks).items()
    }
    if by not in ("block", "layer"):
        raise unknown("part of a model", by, ("block", "layer"))
    if by == "block":
        return found
    return {name: {name: layer} for group in found.values() for name, layer in group.items()}


@torch.no_grad()
def outliers(model: nn.Module, data: Text | Tensor, times: float = 5.0, blocks: str | None = None) -> dict[str, float]:
    """Block → the fraction of its weights whose Wanda score |w| · ‖x‖ is above so many times the block's mean.

    All layers of a block together, in the model as it is.

    Raises:
        ValueError: `times` is not positive, or scores are not finite.
    """
    if not times > 0:
        raise ValueError(f"times is how many times the mean makes an outlier, above 0, not {times}")
    found = {}
    for block in walk(model, data, blocks, label="counting outliers"):
        scores = layer_scores(block.module, block.layers(), criteria.find("wanda"), block.inputs)
        flat = torch.cat([layer.tensor().flatten() for layer in scores.values()])
        if not bool(flat.isfinite().all()):
            raise ValueError(f"scores in {block.name} are not finite: look at its weights and at what it is given")
        found[block.name] = float((flat > times * flat.mean()).double().mean())
    return found


@torch.no_grad()
def slopes(
    model: nn.Module,
    data: Text,
    groups: Groups,
    *,
    draws: int = 32,
    epsilon: float = 1e-3,
    loss: Loss = next_token,
    seed: int = 0,
) -> dict[str, float]:
    """Group → the mean of |L(w + εz) − L(w − εz)| / 2ε over normal directions z of its weights, the others at rest.

    The difference is zᵀg with g the gradient, a normal number of variance ‖g‖²: the mean tends to √(2/π) ‖g‖₂. Each
    direction is tried on another part of the data. No direction is kept: it is drawn again from its seed.

    Args:
        model: a language model; its weights are the same afterwards, to the bit.
        data: tokens and the next ones.
        groups: as `grouped` gives them.
        draws: how many directions.
        epsilon: ε.
        loss: `loss(model(x), y)`, the mean.
        seed: of the directions.

    Raises:
        ValueError: less than one draw, or ε that is not positive.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon is how far weights are moved, above 0, not {epsilon}")
    pieces, device = _pieces(data, draws), next(model.parameters()).device
    seeds = torch.Generator().manual_seed(whole("seed", seed))
    totals = dict.fromkeys(groups, 0.0)
    with observed(model):
        for draw in progress(range(draws), desc="measuring slopes", unit="draw"):
            x, y = to_device(pieces[draw % len(pieces)], device)
            for name, layers in groups.items():
                weights = [model.get_parameter(layer) for layer in layers]
                again = int(torch.randint(2**62, (), generator=seeds))
                with unchanged(weights):
                    nudge(weights, epsilon, again)
                    above = float(loss(model(x), y))
                    nudge(weights, -2 * epsilon, again)
                    below = float(loss(model(x), y))
                totals[name] += abs(above - below) / (2 * epsilon)
    return {name: total / draws for name, total in totals.items()}


@torch.no_grad()
def nudge(weights: Sequence[Tensor], epsilon: float, seed: int) -> None:
    """Add εz to weights, in place: the same normal z for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.add_(torch.randn(weight.shape, generator=generator).to(weight), alpha=epsilon)


def gradient_norms(
    model: nn.Module, data: Text, groups: Groups, *, parts: int = 32, loss: Loss = next_token
) -> dict[str, float]:
    """Group → ‖g‖₂, the mean over so many parts of the data: what `slopes` estimates, times √(π/2).

    Arguments and errors as in `slopes`.
    """
    others, pieces = outside(model, groups), _pieces(data, parts)
    totals = dict.fromkeys(groups, 0.0)
    for piece in progress(pieces, desc="measuring gradients", unit="part"):
        grads = collect(model, ["grad"], [piece], loss=loss, exclude=others)
        for name, layers in groups.items():
            totals[name] += math.sqrt(sum(float(grads[layer]["grad"].double().square().sum()) for layer in layers))
    return {name: total / len(pieces) for name, total in totals.items()}


def hellinger_curves(
    model: nn.Module, x: Tensor, groups: Groups, levels: Sequence[float], criterion: str | Criterion = "wanda"
) -> Curves:
    """What it does to the predictions to prune each group to each level, while the others are at the first level.

    With p the probabilities of the next token in the whole model and p̃ those in the pruned one, the distortion is the
    mean of (√p − √p̃)² over tokens and over all that may follow: the squared Hellinger distance but for a factor, and
    proportional to the Kullback–Leibler divergence where it is small. (Logits can all move alike, and nothing changes.)
    A curve tells what is added to it from the first level on. Each row of a layer loses what scores lowest in it.

    Args:
        model: a language model.
        x: tokens, (sequences, tokens).
        groups: as `grouped` gives them.
        levels: fractions removed, rising.
        criterion: what ranks the weights of a row; one that needs no gradients.
    """
    others = outside(model, groups)
    layers = {name: layer for group in groups.values() for name, layer in group.items()}
    scores = layer_scores(model, layers, criteria.find(criterion), x, exclude=others)
    ranks = {name: Scores.of(name, _rank_in_row(score.tensor())) for name, score in scores.items()}
    single = {ladder.name: ladder for ladder in weight_ladders(ranks, levels if levels[0] == 0 else [0.0, *levels])}
    first = int(levels[0] != 0)  # a ladder begins with the whole layer
    ladders = []
    for name, group in groups.items():
        kept = np.sum([single[layer].kept for layer in group], 0)
        ladders.append(Ladder(name, kept, {layer: single[layer].removed_at[layer] for layer in group}))
    hook = model.register_forward_hook(lambda _module, _inputs, found: _roots(found))
    try:
        found = Probe(model, x).curves(ladders, [first] * len(ladders))
    finally:
        hook.remove()
    ladders = [
        Ladder(one.name, one.kept[first:], {n: at - first for n, at in one.removed_at.items()}) for one in ladders
    ]
    added = {one.name: curve[first:] - curve[first] for one, curve in zip(ladders, found, strict=True)}
    return Curves(tuple(ladders), added, {})


def outside(model: nn.Module, groups: Groups) -> list[str]:
    """The prunable layers that are in no group, such as the output layer."""
    inside = {name for group in groups.values() for name in group}
    return [name for name in prunable(model) if name not in inside]


def few(model: nn.Module, data: Text) -> list[Text]:
    """The data in batches from which gradients of single sequences can be had.

    Args:
        model: what reads them. Where it has experts, which see tokens of all sequences mixed, they come one by one.
        data: tokens and the next ones.
    """
    x, y = data
    size = 1 if any(map(is_routed, model.modules())) else 8
    return list(zip(x.split(size), y.split(size), strict=True))


def _pieces(data: Text, number: int) -> list[Text]:
    """The data in so many parts, or one for each sequence if there are fewer."""
    if whole("the number of draws or parts", number) < 1:
        raise ValueError(f"the data are cut into at least 1 part, not {number}")
    x, y = data
    number = min(number, len(x))
    return list(zip(x.tensor_split(number), y.tensor_split(number), strict=True))


def _rank_in_row(scores: Tensor) -> Tensor:
    """0 for the lowest score of each row, 1 for the next, and so on."""
    return scores.flatten(1).argsort(dim=1, stable=True).argsort(1).view(scores.shape).float()


def _roots(outputs: Any) -> Tensor:
    """The square roots of the probabilities of what follows."""
    logits: Tensor = getattr(outputs, "logits", outputs)
    return logits.float().softmax(-1).sqrt()
