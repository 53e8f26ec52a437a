"""Drawings of chapters 8 and 9: loud channels, how much goes where, what is left of each block, and what it buys."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pruninglab.notebook.pictures import BLUE, COLOURS, GREY, ORANGE, Picture, canvas
from pruninglab.notebook.plots import logarithmic

if TYPE_CHECKING:
    from pruninglab.language.structures import Part

HATCHES = ("///", "", "xx", "..")


# ── loud channels ─────────────────────────────────────────────────────────────────────────────────────────────────


def draw_channels(
    norms: Mapping[str, Tensor],
    alt: str | None = None,
    *,
    planted: Mapping[str, Iterable[int]] | None = None,
    ordered: bool = False,
) -> Picture:
    """For each layer the norm of each input channel, in medians of its layer, and how far the largest stands out.

    Args:
        norms: layer → ‖x_j‖₂ over some tokens, (inputs,) or (1, inputs) as the statistic `input_norm` has it.
        alt: the alternative text; made from the numbers if not given.
        planted: layer → the channels that were made loud on purpose; marked as such.
        ordered: from the loudest to the quietest instead of in place.

    Raises:
        ValueError: no layer, norms that are no norms, or a planted channel that a layer does not have.
    """
    if not norms:
        raise ValueError("there is no layer whose channels could be drawn")
    flat = {name: norm.detach().double().cpu().reshape(-1) for name, norm in norms.items()}
    made = {name: sorted(set(channels)) for name, channels in (planted or {}).items()}
    for name, channels in made.items():
        if name not in flat or not all(0 <= j < len(flat[name]) for j in channels):
            raise ValueError(f"planted: there are no channels {channels} of {name!r} among those to draw")
    rows, columns = _panels(len(norms))
    figure, axes = canvas(rows, columns, 2.7 * columns + 0.4, 2.3 * rows + 0.5, squeeze=False, sharey=True)
    told = []
    for ax, (name, norm) in zip(axes.flat, flat.items(), strict=False):
        told.append(_channels_on(ax, name, norm, made.get(name, []), ordered))
    for ax in axes.flat[len(norms) :]:
        ax.remove()
    for ax in axes[:, 0]:
        ax.set_ylabel("norm ÷ median", color=GREY)
    for ax in figure.axes[: len(flat)]:
        logarithmic(ax, "y")
    _legend_below(figure)
    return Picture(figure, alt or f"The norm of each input channel on a logarithmic scale. {'; '.join(told)}.")


def _channels_on(ax: Axes, name: str, norm: Tensor, planted: Sequence[int], ordered: bool) -> str:
    """Draw one layer's channels, and say in words what is to be seen."""
    alive = norm > 0
    if not bool((torch.isfinite(norm) & (norm >= 0)).all()) or not bool(alive.any()):
        raise ValueError(f"{name}: norms are finite, not negative and not all 0; given {float(norm.min())} and others")
    ratio = norm / norm[alive].median()
    loudest, most = int(ratio.argmax()), float(ratio.max())
    order = ratio.argsort(descending=True, stable=True) if ordered else torch.arange(len(ratio))
    place = order.argsort()  # where each channel stands
    usual = alive.clone()
    usual[list(planted)] = False
    ax.axhline(1, color=GREY, linewidth=1)
    ax.plot(place[usual], ratio[usual], ".", color=BLUE, markersize=3.5, label="channel")
    if planted:
        shown = torch.tensor([j for j in planted if alive[j]], dtype=torch.int64)
        ax.plot(place[shown], ratio[shown], "D", color=ORANGE, markersize=5, label="planted")
    if not bool(alive.all()):  # a logarithm has no zero
        low = torch.full((int((~alive).sum()),), 0.02)
        ax.plot(place[~alive], low, "x", color=GREY, label="always 0", transform=ax.get_xaxis_transform())
    ax.set_xlabel("channel, loudest first" if ordered else "channel", color=GREY)
    ax.set_title(f"{_title(name)}\nlargest {_short(most)} × median", fontsize=10, color=GREY)
    words = f"{_title(name)}: the largest of {len(norm)}, channel {loudest}, is {_short(most)} times the median"
    if planted:
        words += f" (planted: {', '.join(map(str, planted))})"
    if not bool(alive.all()):
        words += f"; {int((~alive).sum())} of them are always 0"
    return words


def _panels(n: int) -> tuple[int, int]:
    """Rows and columns for n panels: three beside each other, or two where that leaves no gap."""
    columns = 2 if n == 4 else min(n, 3)
    return -(-n // columns), columns


def _legend_below(figure: Figure) -> None:
    """One legend for all panels, if there is more than one thing to tell apart."""
    named = {text: handle for ax in figure.axes for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    if len(named) > 1:
        options: dict[str, Any] = {"frameon": False, "labelcolor": GREY, "ncols": len(named)}
        figure.legend(named.values(), named.keys(), loc="outside lower center", **options)


# ── how much from where ───────────────────────────────────────────────────────────────────────────────────────────


def draw_shares(shares: Mapping[str, Mapping[str, float | Tensor]], alt: str | None = None) -> Picture:
    """How much of each layer is removed, in percent: for each method a map of blocks (down) and kinds of layer.

    Args:
        shares: method → layer → the fraction removed. Also method → `Masks`, of which it is counted.
        alt: the alternative text; made from the numbers if not given.

    Raises:
        ValueError: nothing to draw, or a layer whose name has no block's number in it.
    """
    tables = {method: {_place(name): _removed(share) for name, share in own.items()} for method, own in shares.items()}
    every = [share for table in tables.values() for share in table.values()]
    if not every or not all(tables.values()):
        raise ValueError("each method needs a layer at least, and its share")
    if not all(0 <= share <= 1 for share in every):
        raise ValueError(f"a share is the fraction removed, in [0, 1]; given {sorted({*every}, key=str)[:5]}")
    blocks = sorted({block for table in tables.values() for block, _ in table})
    widest = max(len(_kinds(table)) for table in tables.values())
    low, high = min(every), max(max(every), min(every) + 0.05)  # shares that hardly differ shall look so
    rows, columns = _panels(len(tables))
    wide, tall = max(0.38 * widest, 1.6) * columns + 0.6, (0.25 * len(blocks) + 1.1) * rows
    figure, axes = canvas(rows, columns, wide, tall, squeeze=False, sharey=True)
    told = []
    for ax, (method, table) in zip(axes.flat, tables.items(), strict=False):
        kinds = _kinds(table)
        grid = np.array([[table.get((block, kind), np.nan) for kind in kinds] for block in blocks])
        ax.imshow(grid, cmap="Blues", vmin=low - 0.2 * (high - low), vmax=high + 0.8 * (high - low), aspect="auto")
        for (i, j), share in np.ndenumerate(grid):
            text = "" if np.isnan(share) else f"{100 * share:.0f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color="black")
        ax.hlines(np.arange(len(blocks) + 1) - 0.5, -0.5, len(kinds) - 0.5, color=GREY, linewidth=0.5, clip_on=False)
        ax.vlines(np.arange(len(kinds) + 1) - 0.5, -0.5, len(blocks) - 0.5, color=GREY, linewidth=0.5, clip_on=False)
        ax.set(xlim=(-0.5, len(kinds) - 0.5), ylim=(len(blocks) - 0.5, -0.5))
        ax.set_title(method, fontsize=10, color=GREY)
        ax.set_xticks(range(len(kinds)), _tails(kinds), rotation=90, fontsize=8)
        ax.set_yticks(range(len(blocks)), [str(block) for block in blocks], fontsize=8)
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
        told.append(f"{method}: {_range(table)}")
    for ax in axes.flat[len(tables) :]:
        ax.remove()
    for ax in axes[:, 0]:
        ax.set_ylabel("block", color=GREY)
    return Picture(figure, alt or f"Percent of the weights removed, by block and kind of layer. {'; '.join(told)}.")


def _kinds(table: Mapping[tuple[int, str], float]) -> list[str]:
    return list(dict.fromkeys(kind for _, kind in table))


def _range(table: Mapping[tuple[int, str], float]) -> str:
    """The least and the largest share, in words."""
    least, most = min(table, key=table.__getitem__), max(table, key=table.__getitem__)
    ends = [f"{100 * table[place]:.0f} %" for place in (least, most)]
    if ends[0] == ends[1]:
        return f"{ends[0]} everywhere"
    named = [f"{kind} in block {block}" if kind else f"block {block}" for block, kind in (least, most)]
    return f"from {ends[0]} of {named[0]} to {ends[1]} of {named[1]}"


def _removed(share: float | Tensor) -> float:
    return 1 - float(share.double().mean()) if isinstance(share, Tensor) else float(share)


def _place(name: str) -> tuple[int, str]:
    """The block's number and the layer within: "model.layers.3.mlp.up_proj.weight" is (3, "mlp.up_proj")."""
    whole = name.removesuffix(".weight")
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", whole)
    if not found:
        raise ValueError(f"{name!r} has no block's number in it, as 'model.layers.0.mlp.up_proj.weight' has")
    return int(found[1]), whole[found.end() :]


def _tails(kinds: Sequence[str]) -> list[str]:
    """The last part of each name, where that tells them apart."""
    tails = [kind.rpartition(".")[2] for kind in kinds]
    return [tail if tails.count(tail) == 1 else kind for tail, kind in zip(tails, kinds, strict=True)]


def _title(name: str) -> str:
    """A layer's name as a title, short if it is one in a block."""
    try:
        block, kind = _place(name)
    except ValueError:
        return name.removesuffix(".weight")
    return f"block {block}, {kind.rpartition('.')[2]}" if kind else f"block {block}"


# ── heads and neurons ─────────────────────────────────────────────────────────────────────────────────────────────

Kept = Mapping[str, Mapping[str, tuple[int, int]]]


def kept_of(parts: Iterable["Part"], masks: Mapping[str, Tensor]) -> dict[str, dict[str, tuple[int, int]]]:
    """How many heads and neurons of each block masks keep: block → kind → (kept, of how many).

    One is kept if any weight of the layer that reads it is.

    Args:
        parts: what `pruninglab.language.structures.find_parts` found in the model before it was pruned.
        masks: of the same model; a layer that they do not speak of is kept.
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for part in parts:
        read = masks[part.reader].any(0).cpu() if part.reader in masks else None
        left = len(part.cells) if read is None else int(read[part.columns].any(1).sum())
        found.setdefault(part.block, {})[part.kind] = (left, len(part.cells))
    return found


def draw_kept(variants: Mapping[str, Kept], alt: str | None = None) -> Picture:
    """What is left of each block: a bar for each kind of part, inside the outline of what was there.

    Args:
        variants: name → block → kind, such as "heads" → (kept, of how many); `kept_of` counts them.
        alt: the alternative text; made from the numbers if not given.

    Raises:
        ValueError: nothing to draw, variants of unlike blocks, or more kept than there were.
    """
    blocks = list(next(iter(variants.values()), {}))
    if not blocks or any(list(own) != blocks for own in variants.values()):
        raise ValueError(
            f"variants of the same blocks are needed, one at least; given {[list(v) for v in variants.values()]}"
        )
    kinds = list(dict.fromkeys(kind for own in variants.values() for block in own.values() for kind in block))
    rows, columns = _panels(len(variants))
    tall = (0.2 * len(kinds) + 0.12) * len(blocks) + 0.5
    figure, axes = canvas(rows, columns, 2.6 * columns + 0.5, min(tall * rows + 0.4, 24), squeeze=False, sharey=True)
    told = []
    for ax, (name, own) in zip(axes.flat, variants.items(), strict=False):
        told.append(_kept_on(ax, name, own, kinds))
        ax.set_yticks(range(len(blocks)), [_title(block).removeprefix("block ") for block in blocks], fontsize=8)
        ax.set(ylim=(len(blocks) - 0.5, -0.5), xlim=(0, 1.55), xticks=[])
        ax.spines["bottom"].set_visible(False)
    for ax in axes.flat[len(variants) :]:
        ax.remove()
    for ax in axes[:, 0]:
        ax.set_ylabel("block", color=GREY)
    _legend_below(figure)
    return Picture(figure, alt or f"What is left of each block. {' '.join(told)}")


def _kept_on(ax: Axes, name: str, own: Kept, kinds: Sequence[str]) -> str:
    height, words = 0.84 / len(kinds), []
    for place, (block, counts) in enumerate(own.items()):
        for i, kind in enumerate(kinds):
            kept, of = counts.get(kind, (0, 0))
            if not 0 <= kept <= of:
                raise ValueError(f"{name}, {block}: {kept} of {of} {kind} cannot be kept")
            if of:
                at, thick = place + (i + 0.5) * height - 0.42, 0.8 * height
                style: dict[str, Any] = {
                    "color": COLOURS[i % 8],
                    "hatch": HATCHES[i % 4],
                    "edgecolor": "white",
                    "linewidth": 0,
                }
                ax.barh([at], [1], thick, color="none", edgecolor=GREY, linestyle="--", linewidth=0.8)
                ax.barh([at], [kept / of], thick, label=kind, **style)
                text = f"{kept} of {of}" if kept else f"0 of {of}: gone"
                ax.text(1.04, at, text, va="center", fontsize=8, color=GREY)
        words.append((_title(block), " and ".join(f"{k} of {n} {kind}" for kind, (k, n) in counts.items())))
    ax.set_title(name, fontsize=10, color=GREY)
    runs = [(what, [block for block, _ in same]) for what, same in groupby(words, key=lambda pair: pair[1])]
    told = (
        f"{' to '.join(dict.fromkeys((run[0], run[-1])))} with {what}" for what, run in runs
    )  # alike blocks at once
    return f"{name}: {'; '.join(told)}."


# ── what it buys ──────────────────────────────────────────────────────────────────────────────────────────────────


def draw_sizes(
    variants: Mapping[str, Mapping[str, float | Sequence[float]]],
    alt: str | None = None,
    *,
    points: Iterable[str] = ("perplexity",),
) -> Picture:
    """Variants of a model below each other: a panel for each measure, such as parameters, tokens/s and perplexity.

    The first variant is what the others are compared with: each number stands there with its ratio to it. Several
    numbers of one measure (seeds) are shown as their mean, and a line from the least to the largest.

    Args:
        variants: name → measure → number or numbers, all positive. A measure may be missing.
        alt: the alternative text; made from the numbers if not given.
        points: measures without a meaningful zero: drawn as points on a logarithmic scale instead of bars.

    Raises:
        ValueError: nothing to draw, or a number that is not positive.
    """
    names, dots = list(variants), set(points)
    measures = list(dict.fromkeys(measure for own in variants.values() for measure in own))
    if not measures:
        raise ValueError("there are no variants with a measure to draw")
    table = {
        name: {measure: np.atleast_1d(values) for measure, values in own.items()} for name, own in variants.items()
    }
    for name, own in table.items():
        for measure, values in own.items():
            if not values.size or not (np.isfinite(values) & (values > 0)).all():
                raise ValueError(f"{name}: {measure} must be positive numbers, not {values.tolist()}")
    figure, axes = canvas(
        1, len(measures), 2.7 * len(measures) + 0.8, 0.36 * len(names) + 0.6, squeeze=False, sharey=True
    )
    for ax, measure in zip(axes[0], measures, strict=True):
        _measure_on(ax, measure, {name: table[name].get(measure) for name in names}, measure in dots)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    told = "; ".join(
        f"{name}: " + ", ".join(f"{measure} {_short(float(values.mean()))}" for measure, values in own.items())
        for name, own in table.items()
    )
    return Picture(figure, alt or f"Variants of a model compared. {told}.")


def _measure_on(ax: Axes, measure: str, numbers: Mapping[str, Any], dots: bool) -> None:
    first = next(iter(numbers.values()))
    highest = max(float(values.max()) for values in numbers.values() if values is not None)
    least = min(float(values.min()) for values in numbers.values() if values is not None)
    for place, values in enumerate(numbers.values()):
        if values is None:
            ax.text(0, place, " not measured", va="center", fontsize=8, color=GREY, transform=ax.get_yaxis_transform())
            continue
        mean, text = float(values.mean()), _short(float(values.mean()))
        if place and first is not None:
            text += f" (× {_short(mean / float(first.mean()))})"
        if dots:
            ax.plot([mean], [place], "D" if place else "o", color=ORANGE if place else GREY, zorder=3)
        else:
            style: dict[str, Any] = {"color": BLUE, "hatch": "///", "edgecolor": "white"} if place else {"color": GREY}
            ax.barh([place], [mean], 0.7, **style)
        ax.plot([values.min(), values.max()], [place, place], color=GREY, linewidth=2, zorder=2 if dots else 3)
        ax.annotate(
            text, (values.max(), place), (7, 0), textcoords="offset points", va="center", fontsize=8, color=GREY
        )
    if dots:
        ax.set_xscale("log")
        ax.set_xlim(least / 1.1, highest * (highest / least) ** 0.6 * 1.6)  # room for the words
    else:
        ax.set_xlim(0, 1.7 * highest)
    ax.xaxis.set_visible(False)
    ax.spines["bottom"].set_visible(False)
    ax.set_title(f"{measure} (log)" if dots else measure, fontsize=10, color=GREY)


def _short(value: float) -> str:
    """A number as one says it: 1.23 M, 45.6 k, 789, 1.23."""
    for least, size, sign in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / size:.3g} {sign}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
