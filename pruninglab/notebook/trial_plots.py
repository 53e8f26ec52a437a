"""Drawings of a trial: masks, scores with what is removed of them, layers' shares, accuracy; and the same in words."""

import math
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from pruninglab import units
from pruninglab.masks import Masks
from pruninglab.notebook.pictures import BLUE, GREEN, GREY, ORANGE, Picture, dress, legend
from pruninglab.notebook.plots import _mask_on
from pruninglab.notebook.trials import BASELINES, Competing, Trial
from pruninglab.notebook.widgets import Drawn

SHOWN = 6  # layers that are drawn as pictures
BINS = 50


def thresholds(found: Competing) -> dict[str, float]:
    """Layer → the lowest score that stays there and above which nothing goes; the same for all where that is so."""
    sides = {name: (values[kept], values[~kept]) for name, (values, kept) in found.items()}
    low = min((float(kept.min()) for kept, _ in sides.values() if len(kept)), default=math.nan)
    if all(float(gone.max()) <= low for _, gone in sides.values() if len(gone)):
        return dict.fromkeys(found, low)
    return {
        name: float(kept.min())
        for name, (kept, gone) in sides.items()
        if len(kept) and len(gone) and float(gone.max()) <= float(kept.min())
    }


def draw_trial(trial: Trial) -> Drawn:
    """Each layer's mask and histogram of scores, what each layer loses, and accuracy against sparsity; and in words."""
    names = list(trial.masks)
    shown = sorted(sorted(names, key=lambda name: -trial.masks[name].numel())[:SHOWN], key=names.index)
    n = len(shown)
    places: list[Any] = [[f"{kind} {i}" for i in range(n) for _ in (0, 1)] for kind in ("mask", "scores")]
    places.append(["share"] * n + ["curve"] * n)
    figure = Figure(figsize=(min(max(3.2 * n, 7.5), 12), 7.4), layout="constrained")
    axes = figure.subplot_mosaic(places, height_ratios=[2.2, 2.0, 2.4])
    for ax in axes.values():
        dress(ax)
    found = {name: trial.competing[name] for name in shown}
    edges, logarithmic = _edges([values for values, _ in found.values()])
    limits = thresholds(trial.competing)
    for i, name in enumerate(shown):
        _mask_on(axes[f"mask {i}"], name, trial.masks[name])
        _scores_on(axes[f"scores {i}"], *found[name], edges, limits.get(name))
        zeros = ", 0 at the left edge" if logarithmic and bool((found[name][0] == 0).any()) else ""
        axes[f"scores {i}"].set_xlabel(f"score of a {_one(trial.unit)}{zeros}", color=GREY)
        if logarithmic:
            _powers(axes[f"scores {i}"], 5 if n <= 4 else 3)
    axes["mask 0"].set_xlabel("inputs →", color=GREY)
    axes["mask 0"].set_ylabel("← outputs", color=GREY)
    axes["scores 0"].set_ylabel("how many", color=GREY)
    signs = {text: sign for ax in axes.values() for sign, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    where: dict[str, Any] = {"loc": "outside upper center", "ncols": len(signs)}
    figure.legend(list(signs.values()), list(signs), frameon=False, labelcolor=GREY, **where)
    _shares_on(axes["share"], trial.masks)
    _curves_on(axes["curve"], trial)
    text = told(trial)
    some = f" The {n} largest of {len(names)} layers are drawn." if n < len(names) else ""
    return Picture(
        figure,
        f"Masks of the layers, histograms of their scores with what is removed in orange, the share that each layer "
        f"loses, and accuracy against sparsity. {text}{some} {_curves_told(trial)}",
    ), text


def told(trial: Trial) -> str:
    """A trial in words and numbers."""
    masks, curves = trial.masks, trial.curves
    text = f"{trial.criterion} keeps {masks.kept():,} of {masks.total():,} weights ({masks.sparsity():.1%} removed)"
    if trial.unit == "channel":
        stay = sum(int(kept.sum()) for _, kept in trial.competing.values())
        total = sum(len(kept) for _, kept in trial.competing.values())
        text += f", {stay} of {total} channels"
    beside = [("dense", trial.dense), *((name, curves[name][trial.sparsity]) for name in BASELINES)]
    others = ", ".join(f"{name} {_percent(value)}" for name, value in beside)
    shares = {name.removesuffix(".weight"): 1 - float(mask.float().mean()) for name, mask in masks.items()}
    lost = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    text += (
        f" by unit {trial.unit}, allocation {trial.allocation}. Before any repair it gets "
        f"{_percent(curves[trial.criterion][trial.sparsity])} of {trial.pictures:,} validation pictures right "
        f"({others}). Removed: {lost}."
    )
    if isinstance(units.find(trial.unit), units.Pattern):
        text += f" {trial.unit} fixes the sparsity of every layer: slider and allocation have no say."
    if tied := _tied(trial):
        text += f" {tied:,} removed scores equal the lowest kept: of ties, the first in order stay."
    return f"{text} One network and one seed: small differences mean nothing here."


def _tied(trial: Trial) -> int:
    """How many scores were removed that are as high as the lowest that stays."""
    limits = thresholds(trial.competing)
    return sum(
        int((values[~kept] == limits[name]).sum()) for name, (values, kept) in trial.competing.items() if name in limits
    )


def _percent(value: float) -> str:
    return "not possible" if math.isnan(value) else f"{value:.1%}"


def _one(unit: str) -> str:
    """What one score stands for."""
    return {"row": "row", "channel": "channel"}.get(unit, f"{unit} block" if "x" in unit else "weight")


def _edges(values: list[Tensor]) -> tuple[np.ndarray, bool]:
    """The bins of a histogram, and whether they grow: where most scores would else lie in the first few."""
    every = torch.cat([one.double() for one in values]).numpy()
    finite = every[np.isfinite(every)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    positive = finite[finite > 0]
    if low >= 0 and len(positive) and np.median(positive) < high / 20:
        return np.geomspace(max(float(np.quantile(positive, 1e-3)), 1e-12 * high), high, BINS + 1), True
    if low == high:  # all alike: one bar in the middle
        low, high = low - 0.5 * max(abs(low), 1.0), high + 0.5 * max(abs(high), 1.0)
    return np.linspace(low, high, BINS + 1), False


def _scores_on(ax: Axes, values: Tensor, kept: Tensor, edges: np.ndarray, limit: float | None) -> None:
    """A histogram of scores, what goes below what stays; scores beyond the edges (0 and ∞) are counted at them."""
    if not len(values):
        ax.text(0.5, 0.5, "all of its outputs stay", ha="center", color=GREY, transform=ax.transAxes)
        ax.set_axis_off()
        return
    numbers, stays = values.double().numpy().clip(edges[0], edges[-1]), kept.numpy()
    gone, both = np.histogram(numbers[~stays], edges)[0], np.histogram(numbers, edges)[0]
    ax.stairs(both, edges, baseline=gone, fill=True, color=BLUE, alpha=0.8, label="kept")
    style: dict[str, Any] = {"facecolor": ORANGE, "edgecolor": "white", "linewidth": 0}
    ax.stairs(gone, edges, fill=True, hatch="////", alpha=0.8, label="removed", **style)
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    if limit is not None and edges[0] <= limit <= edges[-1]:
        ax.axvline(limit, color=GREY, linestyle="--", linewidth=1.2, label="threshold")


def _powers(ax: Axes, most: int) -> None:
    """A logarithmic scale with a few powers of ten, in plain letters, which draw quickly."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(10, numticks=most))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda value, _: f"1e{round(math.log10(value))}")


def _shares_on(ax: Axes, masks: Masks) -> None:
    """For each layer the fraction that is removed, as a bar, with its number."""
    shares = {name.removesuffix(".weight"): 1 - float(mask.float().mean()) for name, mask in masks.items()}
    for (name, share), mask in zip(shares.items(), masks.values(), strict=True):
        ax.barh([name], [1], color=BLUE, alpha=0.25, height=0.7)
        ax.barh([name], [share], facecolor=ORANGE, edgecolor="white", hatch="////", linewidth=0, height=0.7)
        ax.annotate(f"{share:.1%} of {mask.numel():,}", (1.03, name), va="center", color=GREY, fontsize=8)
    ax.invert_yaxis()
    ax.tick_params(axis="y", labelsize=8)
    ax.set(xlim=(0, 1.5), xticks=[0, 0.5, 1])
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.set_xlabel("removed from each layer", color=GREY)


def _curves_on(ax: Axes, trial: Trial) -> None:
    """Accuracy of the criterion and of the baselines at every level; the chosen one is marked."""
    styles = [(GREEN, "-", "^", 3.0), (BLUE, "--", "o", 1.5), (GREY, ":", ".", 1.5)]  # where two agree, both are seen
    ax.axhline(trial.dense, color=GREY, linewidth=1)
    ax.annotate("dense", (1, trial.dense), (0, -10), ("axes fraction", "data"), "offset points", color=GREY, ha="right")
    for (name, curve), (colour, line, marker, width) in zip(trial.curves.items(), styles, strict=True):
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3 + width, "linewidth": width}
        ax.plot(range(len(curve)), list(curve.values()), line, label=name, **look)
    levels = list(trial.curves[trial.criterion])
    ax.axvline(levels.index(trial.sparsity), color=GREY, linestyle="--", linewidth=1)
    ax.set_xticks(range(len(levels)), [f"{level:.1%}".replace(".0%", "%") for level in levels])
    ax.tick_params(axis="x", labelsize=8)
    ax.set_xlabel("sparsity", color=GREY)
    ax.set_ylabel("validation accuracy", color=GREY)
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    legend(ax, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1)


def _curves_told(trial: Trial) -> str:
    mine = trial.curves[trial.criterion]
    return "Accuracy: " + ", ".join(f"{_percent(value)} at {level:.0%}" for level, value in mine.items()) + "."
