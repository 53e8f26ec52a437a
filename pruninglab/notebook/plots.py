"""The drawings that the chapters share. Each takes data and returns a `Picture`."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor, nn

from pruninglab.layers import prunable
from pruninglab.masks import Masks
from pruninglab.notebook.pictures import BLUE, COLOURS, GREY, LINES, MARKERS, ORANGE, Picture, canvas, legend

if TYPE_CHECKING:
    import pandas as pd

KEPT = ListedColormap(["#00000000", BLUE])


def draw_numbers(tensors: Mapping[str, Tensor], alt: str, digits: int = 1) -> Picture:
    """Small matrices side by side as numbers in cells of one size; zeros and False are left blank: holes are seen."""
    shapes = [tensor.shape for tensor in tensors.values()]
    most, widths = max(rows for rows, _ in shapes), [columns for _, columns in shapes]
    figure, axes = canvas(
        1, len(tensors), 0.52 * sum(widths), 0.4 * most + 0.3, squeeze=False, gridspec_kw={"width_ratios": widths}
    )
    for ax, (title, tensor) in zip(axes[0], tensors.items(), strict=True):
        values = tensor.detach().float().cpu().numpy()
        rows, columns = values.shape
        reach = max(float(np.abs(values).max()), 1e-9)
        ax.imshow(np.abs(values) / reach, cmap="Blues", vmin=0, vmax=1.6, aspect="auto", alpha=(values != 0) * 1.0)
        for (i, j), value in np.ndenumerate(values):
            text = "" if value == 0 else "✓" if tensor.dtype == torch.bool else f"{value:.{digits}f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=9, color="black")
        ax.hlines(np.arange(rows + 1) - 0.5, -0.5, columns - 0.5, color=GREY, linewidth=0.5, clip_on=False)
        ax.vlines(np.arange(columns + 1) - 0.5, -0.5, rows - 0.5, color=GREY, linewidth=0.5, clip_on=False)
        ax.set(xlim=(-0.5, columns - 0.5), ylim=(most - 0.5, -0.5), xticks=[], yticks=[])
        ax.set_title(title, fontsize=10, color=GREY)
        for spine in ax.spines.values():
            spine.set_visible(False)
    return Picture(figure, alt)


def draw_bars(
    values: Mapping[str, float],
    alt: str,
    *,
    label: str = "{:.1f}",
    bold: Collection[str] = (),
    end: float | None = None,
) -> Picture:
    """A bar for each name, its number beside it; those in `bold` are blue and hatched, the others grey."""
    figure, ax = canvas(width=6.5, height=0.35 * len(values) + 0.2)
    for name, value in values.items():
        style = {"color": BLUE, "hatch": "///", "edgecolor": "white"} if name in bold else {"color": GREY}
        bar = ax.barh([name], [value], **style)
        ax.bar_label(bar, [label.format(value)], padding=4, color=GREY)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.15 * (end or max(values.values()))), xticks=[])
    ax.spines["bottom"].set_visible(False)
    return Picture(figure, alt)


def draw_lines(
    x: Sequence[str], curves: Mapping[str, Sequence[float]], alt: str, *, xlabel: str, ylabel: str
) -> Picture:
    """Curves of ratios over named places, on a logarithmic scale with a line at 1."""
    figure, ax = canvas(width=7, height=3.4)
    for i, (name, values) in enumerate(curves.items()):
        ax.plot(x, values, label=name, color=COLOURS[i % 8], linestyle=LINES[i % 8], marker=MARKERS[i % 8])
    ax.axhline(1, color=GREY, linewidth=1)
    logarithmic(ax, "y")
    ax.set_xlabel(xlabel, color=GREY)
    ax.set_ylabel(ylabel, color=GREY)
    legend(ax)
    return Picture(figure, alt)


def draw_curves(
    x: Sequence[float],
    curves: Mapping[str, Any],
    alt: str,
    *,
    xlabel: str,
    ylabel: str,
    percent: bool = True,
    level: tuple[str, float] | None = None,
    log: str = "",
) -> Picture:
    """Curves over x, each the mean over seeds with one standard deviation as a band.

    Args:
        x: the positions, in order.
        curves: name → numbers of shape (seeds, positions).
        alt: the alternative text.
        xlabel: of the axis.
        ylabel: likewise.
        percent: whether the numbers are fractions, to be shown as percentages.
        level: a name and a number, drawn as a grey line across.
        log: the axes that are logarithmic: "", "x", "y" or "xy".
    """
    figure, ax = canvas(width=7, height=3.6)
    if level is not None:
        ax.axhline(level[1], color=GREY, linewidth=1)
        where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
        ax.annotate(level[0], (1, level[1]), (-2, 3), color=GREY, **where)  # curves begin near it, at the left
    for i, (name, values) in enumerate(curves.items()):
        numbers = np.asarray(values, dtype=float)
        mean, std = numbers.mean(0), numbers.std(0, ddof=1) if len(numbers) > 1 else np.zeros(numbers.shape[1])
        ax.plot(x, mean, label=name, color=COLOURS[i % 8], linestyle=LINES[i % 8], marker=MARKERS[i % 8], markersize=5)
        low = np.maximum(mean - std, mean / 4) if "y" in log else mean - std  # a logarithm has no zero
        ax.fill_between(x, low, mean + std, color=COLOURS[i % 8], alpha=0.15, linewidth=0)
    for name in log:
        logarithmic(ax, name)
    if percent:
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if value >= 0.01 else f"{value:.2g}")
    ax.set_xlabel(xlabel, color=GREY)
    ax.set_ylabel(ylabel, color=GREY)
    legend(ax)
    return Picture(figure, alt)


def logarithmic(ax: Axes, name: str) -> None:
    """Give the axis "x" or "y" a logarithmic scale with plain numbers at 1, 2 and 5."""
    ax.set(**{f"{name}scale": "log"})
    axis = ax.xaxis if name == "x" else ax.yaxis
    axis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def draw_masks(masks: Masks, alt: str | None = None) -> Picture:
    """Every layer's mask as a matrix (outputs down, inputs across); blue = kept, blank = removed."""
    figure, axes = canvas(1, len(masks), min(3.2 * len(masks), 12), 3.0, squeeze=False)
    for ax, (name, mask) in zip(axes[0], masks.items(), strict=True):
        _mask_on(ax, name, mask)
    words = "; ".join(f"{row.layer}: {row.kept} of {row.weights}" for row in masks.per_layer().itertuples())
    return Picture(figure, alt or f"Which weights are kept in each layer, as blue points. Kept: {words}.")


def draw_weights(model: nn.Module, masks: Masks | None = None, alt: str | None = None) -> Picture:
    """Histograms of each layer's weights, counted on a logarithmic scale; with masks, kept against removed."""
    layers = prunable(model)
    figure, axes = canvas(1, len(layers), min(3.2 * len(layers), 12), 2.6, squeeze=False)
    for ax, (name, layer) in zip(axes[0], layers.items(), strict=True):
        _weights_on(ax, name, layer.weight.detach(), None if masks is None else masks[name])
    axes[0][0].set_ylabel("how many")
    return Picture(figure, alt or f"Histograms of the weights of {', '.join(layers)}: most weights are close to zero.")


def draw_pruning(model: nn.Module, masks: Masks, alt: str | None = None) -> Picture:
    """For each layer its mask, and below it a histogram of what that keeps and removes of the dense weights."""
    layers = prunable(model)
    figure, axes = canvas(2, len(layers), min(3.2 * len(layers), 12), 4.8, squeeze=False)
    for column, (name, layer) in enumerate(layers.items()):
        _mask_on(axes[0][column], name, masks[name])
        _weights_on(axes[1][column], "", layer.weight.detach(), masks[name])
    axes[1][0].set_ylabel("how many")
    kept = "; ".join(f"{name} {float(mask.float().mean()):.1%}" for name, mask in masks.items())
    told = f"Masks of each layer and histograms of what they keep and remove. Kept: {kept}."
    return Picture(figure, alt or told)


def _mask_on(ax: Axes, name: str, mask: Tensor) -> None:
    matrix = mask.flatten(1).cpu().numpy()
    ax.imshow(
        matrix,
        cmap=KEPT,
        vmin=0,
        vmax=1,
        aspect="auto",
        interpolation="nearest" if matrix.shape[0] < 250 else "antialiased",
    )
    ax.set_title(f"{name.removesuffix('.weight')}\n{matrix.mean():.1%} kept", fontsize=10, color=GREY)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(True)


def _weights_on(ax: Axes, name: str, weight: Tensor, mask: Tensor | None) -> None:
    weights = weight.flatten().cpu()
    edges = np.linspace(float(weights.min()), float(weights.max()) + 1e-9, 61).tolist()
    kept = torch.ones_like(weights, dtype=torch.bool) if mask is None else mask.flatten().cpu()
    if mask is not None:
        ax.hist(weights[~kept].numpy(), edges, color=ORANGE, alpha=0.7, label="removed", hatch="////")
    ax.hist(weights[kept].numpy(), edges, color=BLUE, alpha=0.8, label="kept")
    ax.set_yscale("log")
    ax.set_title(name.removesuffix(".weight"), fontsize=10, color=GREY)
    ax.set_xlabel("weight", color=GREY)
    if mask is not None:
        legend(ax, fontsize=8)


def draw_images(images: Mapping[str, Tensor], alt: str) -> Picture:
    """Matrices of non-negative numbers side by side as pictures, dark = large, each with its scale."""
    figure, axes = canvas(1, len(images), 3.2 * len(images), 2.7, squeeze=False)
    for ax, (title, values) in zip(axes[0], images.items(), strict=True):
        shown = ax.imshow(values.detach().float().cpu().numpy(), cmap="Blues", vmin=0)
        bar = figure.colorbar(shown, ax=ax, shrink=0.8)
        bar.ax.tick_params(colors=GREY)
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=10, color=GREY)
    return Picture(figure, alt)


def draw_scores(before: Tensor, after: Tensor, images: Tensor, labels: Sequence[int], alt: str) -> Picture:
    """A few pictures, and under each what two networks make of it; a wrong answer is underlined in orange."""
    figure, axes = canvas(1, len(images), 1.15 * len(images), 1.9, squeeze=False)
    for ax, image, a, b, label in zip(axes[0], images, before, after, labels, strict=True):
        ax.imshow(image.squeeze().cpu().numpy(), cmap="Greys")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        mark = ["" if int(answer) == label else " ✗" for answer in (a, b)]
        truth = f"\nis a {label}" if any(mark) else ""
        ax.set_xlabel(f"dense: {int(a)}{mark[0]}\npruned: {int(b)}{mark[1]}{truth}", fontsize=9)
        ax.xaxis.label.set_color(ORANGE if any(mark) else GREY)
    return Picture(figure, alt)


def plot_tradeoff(
    table: "pd.DataFrame", *, y: str = "accuracy", by: str = "criterion", title: str = "", alt: str | None = None
) -> Picture:
    """Accuracy against sparsity from a table of `compare`: the mean over seeds, and one standard deviation as a band.

    Args:
        table: rows of `compare`; several tables may be concatenated.
        y: which column to draw ("accuracy", "accuracy_before").
        by: which column tells the lines apart.
        title: of the picture.
        alt: the alternative text; made from the numbers if not given.

    Raises:
        ValueError: the table has no such column, or no row that is not "dense".
    """
    for column in (y, by, "sparsity", "seed"):
        if column not in table:
            raise ValueError(f"the table has no column {column!r}; it has {', '.join(table.columns)}")
    pruned = table[table["criterion"] != "dense"]
    if pruned.empty:
        raise ValueError("the table has no pruned network to draw")
    figure, ax = canvas(width=7, height=3.8)
    dense = table[table["criterion"] == "dense"][y]
    if len(dense):
        ax.axhline(dense.mean(), color=GREY, linewidth=1)
        ax.annotate("dense", (0, dense.mean()), (2, 3), "axes fraction", textcoords="offset points", color=GREY)
        ax.texts[-1].xy = (0.0, dense.mean())
        ax.texts[-1].xycoords = ("axes fraction", "data")
    words = []
    levels = sorted(pruned["sparsity"].unique())
    position = {level: i for i, level in enumerate(levels)}
    fixed = {"magnitude": 0, "random": 7}  # the baselines look the same in every picture
    free = iter([1, 2, 3, 4, 5, 6] * 9 if by == "criterion" else list(range(8)) * 9)
    for name in map(str, pruned[by].unique()):
        rows = pruned[pruned[by].astype(str) == name]
        i = fixed[name] if by == "criterion" and name in fixed else next(free)
        stats = rows.groupby("sparsity")[y].agg(["mean", "std"]).fillna(0)
        at = [position[level] for level in stats.index]
        style = {"color": COLOURS[i], "linestyle": LINES[i], "marker": MARKERS[i]}
        ax.plot(at, stats["mean"], label=str(name), markersize=5, **style)
        low, high = stats["mean"] - stats["std"], stats["mean"] + stats["std"]
        ax.fill_between(at, low, high.clip(upper=1), color=style["color"], alpha=0.15, linewidth=0)
        words.append(f"{name} {stats['mean'].iloc[0]:.0%} to {stats['mean'].iloc[-1]:.0%}")
    ax.set_xticks(range(len(levels)), [f"{level:.1%}".replace(".0%", "%") for level in levels])
    ax.set_xlabel("sparsity")
    ax.set_ylabel(y.replace("_", " "))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.set_title(title, color=GREY)
    legend(ax)
    seeds = pruned["seed"].nunique()
    told = f"{y} against sparsity ({levels[0]:.1%} to {levels[-1]:.1%}), mean and standard deviation over {seeds} seeds"
    return Picture(figure, alt or f"{told}: {'; '.join(words)}.")
