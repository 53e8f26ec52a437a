"""How much does each layer of a language model lose? Rules that answer layer → fraction, for `one_shot`.

    shares = owl(model, (x, y), 0.7)
    one_shot(model, x, scored("wanda"), shares)

Every rule says in its own way which layers, or whole blocks, can spare more than others. All meet the same budget: the
layers of the blocks together lose round(sparsity · weights), to the weight. The model stays as it is.

A rule is a function `(model, data, sparsity, …) -> {layer: fraction}`; what else it needs, it names: `blocks`, `loss`,
`seed`.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pruninglab.allocation.rate_distortion import solve
from pruninglab.criteria import Criterion
from pruninglab.language.depth import influences
from pruninglab.language.sensitivity import (
    Groups,
    Text,
    gradient_norms,
    grouped,
    hellinger_curves,
    next_token,
    outliers,
    slopes,
)
from pruninglab.naming import resolve, unknown
from pruninglab.pruning import check_sparsity
from pruninglab.statistics import Loss

Ratios = Callable[..., dict[str, float]]

ALMOST = 0.99  # no layer loses more, unless all together do


def uniform(model: nn.Module, data: Text, sparsity: float, *, blocks: str | None = None) -> dict[str, float]:
    """The same fraction of each layer. Arguments and errors as in `owl`; the data are not looked at."""
    groups = grouped(model, "block", blocks)
    return budgeted(dict.fromkeys(groups, 0.0), groups, sparsity)


def owl(
    model: nn.Module,
    data: Text,
    sparsity: float,
    *,
    times: float = 5.0,
    spread: float = 0.08,
    blocks: str | None = None,
) -> dict[str, float]:
    """Blocks with many outliers lose less (Yin et al. 2024, OWL, eq. 2 and 3).

    With D the fractions of outliers of the blocks (see `outliers`), block b loses

        c − 2λ (D_b − min D) / (max D − min D)       with c such that the budget is met

    Args:
        model: a language model.
        data: tokens to measure with; labels are ignored.
        sparsity: the fraction to remove of all layers of the blocks together, in [0, 1).
        times: M, as in `outliers`.
        spread: λ; no two fractions differ by more than 2λ.
        blocks: as in `blocks.find_blocks`.

    Raises:
        ValueError: a sparsity, M or λ out of range, or scores that are not finite.
    """
    if not spread >= 0:
        raise ValueError(f"spread is half of what fractions may differ by, at least 0, not {spread}")
    groups = grouped(model, "block", blocks)
    found = outliers(model, data, times, blocks)
    low, high = min(found.values()), max(found.values())
    scale = 2 * spread / (high - low) if high != low else 0.0
    return budgeted({name: -scale * part for name, part in found.items()}, groups, sparsity)


def adapt_pruner(
    model: nn.Module, data: Text, sparsity: float, *, amplitude: float = 0.05, blocks: str | None = None
) -> dict[str, float]:
    """Blocks that turn what passes through them lose less (Pan et al. 2025, Adapt-Pruner).

    Their importance is −cos(input, output). Centred and divided by its largest absolute value, it is Ĩ in [−1, 1], and
    block b loses c − A Ĩ_b, with c such that the budget is met. Published for heads and neurons, in fifty steps with a
    new Ĩ and A = 0.02 after each; here Ĩ is that of the model as it is, and A counts once.

    Args:
        model: a language model.
        data: tokens to measure with; labels are ignored.
        sparsity: the fraction to remove of all layers of the blocks together, in [0, 1).
        amplitude: A, at least 0.
        blocks: as in `blocks.find_blocks`.

    Raises:
        ValueError: a sparsity or amplitude out of range, or hidden states that are not finite.
    """
    if not amplitude >= 0:
        raise ValueError(f"amplitude is how far from the mean a block may come, at least 0, not {amplitude}")
    groups = grouped(model, "block", blocks)
    found = influences(model, data, blocks)  # 1 − cos: the 1 goes with the mean
    mean = sum(found.values()) / len(found)
    largest = max(abs(value - mean) for value in found.values()) or 1.0
    return budgeted({name: -amplitude * (value - mean) / largest for name, value in found.items()}, groups, sparsity)


def ecoflap(
    model: nn.Module,
    data: Text,
    sparsity: float,
    *,
    order: str = "zeroth",
    by: str = "block",
    span: float = 0.1,
    draws: int = 32,
    loss: Loss = next_token,
    seed: int = 0,
    blocks: str | None = None,
) -> dict[str, float]:
    """What the loss depends on more keeps more (Sung et al. 2024, ECoFLaP: from coarse to fine).

    The score of a block is the norm of the loss's gradient with respect to its weights; see `slopes` for how it is had
    without a backward pass, and `proportional` for what follows from it.

    Args:
        model: a language model.
        data: tokens and the next ones.
        sparsity: s, the fraction to remove of all layers of the blocks together, in [0, 1).
        order: "zeroth" runs the model forwards only; "first" takes gradients (see `gradient_norms`).
        by: "block" or "layer": what gets a score and a fraction of its own.
        span: none loses more than s + span.
        draws: into how many parts the data are cut; "zeroth" draws as many directions, a new one for each part.
        loss: `loss(model(x), y)`, the mean.
        seed: of the directions.
        blocks: as in `blocks.find_blocks`.

    Raises:
        ValueError: a sparsity, span or number of draws out of range, an unknown order, or a loss that is not finite.
    """
    check_sparsity(sparsity)
    if not span >= 0:
        raise ValueError(f"span is how much above the mean a fraction may be, at least 0, not {span}")
    groups = grouped(model, by, blocks)
    if order == "zeroth":
        found = slopes(model, data, groups, draws=draws, loss=loss, seed=seed)
    elif order == "first":
        found = gradient_norms(model, data, groups, parts=draws, loss=loss)
    else:
        raise unknown("order", order, ("zeroth", "first"))
    sizes = {name: sum(layer.weight.numel() for layer in group.values()) for name, group in groups.items()}
    return budgeted(proportional(found, sizes, sparsity, span), groups, sparsity)


def rate_distortion(
    model: nn.Module,
    data: Text,
    sparsity: float,
    *,
    criterion: str | Criterion = "wanda",
    by: str = "layer",
    sequences: int = 4,
    step: float = 0.05,
    reach: float = 0.1,
    blocks: str | None = None,
) -> dict[str, float]:
    """The fractions that change the predictions least, if what they do to them adds up (Xu et al. 2023).

    Each layer is pruned to s − reach, s − reach + step, … s + reach in turn; the others wait at s − reach, which
    foretells more of what happens when all are pruned than whole ones would. See `hellinger_curves` for what is
    measured. Then the levels are chosen that together remove as much as s of each, with the least sum.

    Args:
        model: a language model.
        data: tokens to measure with; labels are ignored.
        sparsity: s, the fraction to remove of all layers of the blocks together, in [0, 1).
        criterion: which weights of a row go first; one that needs no gradients.
        by: "layer" or "block": what gets a curve and a fraction of its own.
        sequences: how many of the data are used.
        step: between levels.
        reach: how far from s a fraction may be.
        blocks: as in `blocks.find_blocks`.

    Raises:
        ValueError: a sparsity, step or reach out of range, no data, or outputs that are not finite.
    """
    s = check_sparsity(sparsity)
    if not 0 < step <= reach:
        raise ValueError(f"step and reach must be 0 < step <= reach, not {step} and {reach}")
    groups = grouped(model, by, blocks)
    around = [s + step * k for k in range(-int(reach / step + 1e-9), int(reach / step + 1e-9) + 1)]
    levels = sorted({max(level, 0.0) for level in around if level <= max(s, ALMOST)})
    curves = hellinger_curves(model, data[0][:sequences], groups, levels, criterion)
    here = levels.index(s)
    budget = sum(int(ladder.kept[here]) for ladder in curves.ladders)  # what uniform fractions keep
    chosen = solve(curves.costs(), list(curves.distortion.values()), budget).levels
    return budgeted(dict(zip(groups, (levels[k] for k in chosen), strict=True)), groups, s)


def proportional(
    scores: Mapping[str, float], sizes: Mapping[str, int], sparsity: float, span: float = 0.1
) -> dict[str, float]:
    """Group → the fraction to remove: all keep 1 − s − span, and what else may stay is shared out by score.

    A group that has all its weights takes no more; what it leaves goes to the others, by score again.

    Args:
        scores: of each group, at least 0.
        sizes: how many weights each has.
        sparsity: s, of all together.
        span: how much above s a fraction may be.

    Raises:
        ValueError: a score that is negative or not finite.
    """
    if not all(0 <= score < math.inf for score in scores.values()):
        raise ValueError(f"scores must be numbers of at least 0, not {dict(scores)}")
    floor = max(1 - sparsity - span, 0.0)
    kept = {name: floor * size for name, size in sizes.items()}
    hungry = set(sizes)
    while hungry:
        spare = max((1 - sparsity) * sum(sizes.values()) - sum(kept.values()), 0.0)
        weight = scores if any(scores[name] for name in hungry) else sizes  # where all scores are 0, all get alike
        total = sum(weight[name] for name in hungry)
        fed = {name: kept[name] + spare * (weight[name] / total) for name in hungry}
        full = {name for name in hungry if fed[name] > sizes[name]}
        kept |= {name: float(sizes[name]) for name in full} or fed  # those that are full first
        hungry = hungry - full if full else set()
    return {name: 1 - kept[name] / size for name, size in sizes.items()}


def budgeted(raw: Mapping[str, float], groups: Groups, sparsity: float) -> dict[str, float]:
    """Layer → c + its group's number, cut to [0, 0.99], with c such that round(s · weights) go, to the weight.

    No layer loses all. Where s asks for it, layers lose more than 0.99.

    Args:
        raw: of each group; only differences count.
        groups: as `grouped` gives them.
        sparsity: s, in [0, 1).

    Raises:
        ValueError: a sparsity out of range or that leaves less than a weight for each layer, or numbers that are not
            finite.
    """
    s = check_sparsity(sparsity)
    if not all(math.isfinite(value) for value in raw.values()):
        raise ValueError(f"fractions must be finite (NaN or infinite weights, activations, loss?), not {dict(raw)}")
    sizes = {name: layer.weight.numel() for group in groups.values() for name, layer in group.items()}
    wanted = {layer: float(raw[name]) for name, group in groups.items() for layer in group}
    goal = round(s * sum(sizes.values()))
    if goal > sum(sizes.values()) - len(sizes):
        raise ValueError(f"sparsity={s:g} leaves less than one weight for each of {len(sizes)} layers")
    most = ALMOST if goal <= sum(min(ALMOST * size, size - 1) for size in sizes.values()) else 1.0

    def counts(c: float) -> dict[str, float]:
        return {
            name: min(sizes[name] * min(max(value + c, 0.0), most), sizes[name] - 1) for name, value in wanted.items()
        }

    low, high = -max(wanted.values()), most - min(wanted.values())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(counts(middle).values()) < goal else (low, middle)
    exact = counts(high)
    gone = {name: math.floor(count + 1e-6) for name, count in exact.items()}
    missing = goal - sum(gone.values())
    for name in sorted(gone, key=lambda name: gone[name] - exact[name])[:missing]:  # the largest remainders first
        gone[name] += 1
    return {name: count / sizes[name] for name, count in gone.items()}


def shares_by(rule: str | Ratios, model: nn.Module, data: Text, sparsity: float, **means: Any) -> dict[str, float]:
    """What a rule says, given by name or as a function; of `means` (`blocks`, `loss`, `seed`) it gets what it names.

    Raises:
        ValueError: no rule has this name, or as the rule says. TypeError: it is neither a name nor a function.
    """
    function = resolve("rule for ratios", rule, RATIOS)
    set_already = getattr(function, "keywords", {})  # of a functools.partial
    named = inspect.signature(function).parameters.keys() - set_already.keys()
    return function(model, data, sparsity, **{name: given for name, given in means.items() if name in named})


RATIOS: dict[str, Ratios] = {
    "uniform": uniform,
    "owl": owl,
    "ecoflap": ecoflap,
    "adapt_pruner": adapt_pruner,
    "rate_distortion": rate_distortion,
}
