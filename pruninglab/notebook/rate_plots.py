"""Drawings of chapter 6: layers' curves, the plane of cost and distortion, and predictions against the truth."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pruninglab.allocation.rate_distortion import solve
from pruninglab.notebook.pictures import BLUE, COLOURS, GREY, LINES, ORANGE, Picture, canvas, legend

MOST = 100_000  # combinations of layers' options that are drawn


def draw_distortions(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], alt: str) -> Picture:
    """One line for each name: (fractions removed, distortions), distortion on a logarithmic scale."""
    figure, ax = canvas(width=7, height=3.8)
    for i, (name, (removed, distortions)) in enumerate(curves.items()):
        shown = np.asarray(distortions) > 0
        line = {"color": COLOURS[i % 8], "linestyle": LINES[i // 8 % len(LINES)], "label": name}
        ax.plot(100 * np.asarray(removed)[shown], np.asarray(distortions)[shown], **line)
    ax.set_yscale("log")
    ax.set_xlabel("% of the layer's weights removed", color=GREY)
    ax.set_ylabel("distortion", color=GREY)
    legend(ax)
    return Picture(figure, alt)


def draw_price(costs: Sequence[Any], distortions: Sequence[Any], budget: int, price: float) -> tuple[Picture, str]:
    """Every allocation as a point (cost, distortion), and the one that a price chooses.

    Args:
        costs: for each layer those of its options; few enough that all combinations can be drawn.
        distortions: likewise.
        budget: drawn as a line.
        price: distortion for a unit of cost.

    Returns:
        The picture, and what it shows in words.

    Raises:
        ValueError: more than 100,000 combinations.
    """
    if (combinations := math.prod(map(len, costs))) > MOST:
        raise ValueError(
            f"{combinations:,} combinations are too many to draw; give fewer layers or levels ({MOST:,} at most)"
        )
    cost, distortion = np.zeros(1), np.zeros(1)
    for c, d in zip(costs, distortions, strict=True):
        cost, distortion = np.add.outer(cost, c).ravel(), np.add.outer(distortion, d).ravel()
    picks = [int(np.argmin(np.asarray(d) + price * np.asarray(c))) for c, d in zip(costs, distortions, strict=True)]
    at = sum(c[k] for c, k in zip(costs, picks, strict=True))
    value = sum(d[k] for d, k in zip(distortions, picks, strict=True))
    best = solve(costs, distortions, budget)
    figure, ax = canvas(width=7, height=3.8)
    top = 4 * best.distortion
    seen = distortion < top
    ax.scatter(cost[seen], distortion[seen], s=4, color=GREY, alpha=0.5, linewidths=0, rasterized=True)
    ax.plot(*_corners(costs, distortions), ".-", color=GREY, linewidth=1, label="hull and its corners")
    ends = np.array([0, cost.max()])
    ax.plot(ends, value - price * (ends - at), color=BLUE, label="equally good at this price")
    bound = value - price * (budget - at)
    ax.plot([budget], [bound], "^", color=BLUE, fillstyle="none", markersize=8, label="bound")
    ax.plot([at], [value], "o", color=BLUE, markersize=9, label="chosen")
    ax.plot([best.cost], [best.distortion], "D", color=ORANGE, label="optimum")
    ax.axvline(budget, color=GREY, linestyle="--", linewidth=1)
    ax.annotate("budget", (budget, 0), (-40, 4), textcoords="offset points", color=GREY)
    ax.set(ylim=(0, top), xlim=(0, cost.max()))
    ax.set_xlabel("weights kept", color=GREY)
    ax.set_ylabel("sum of distortions", color=GREY)
    legend(ax, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1)
    verdict = "within" if at <= budget else "over"
    text = f"keeps {at:,} weights, {verdict} the budget of {budget:,}; distortion {value:.3g}, "
    text += f"bound {bound:.3g}, optimum {best.distortion:.3g}"
    return Picture(figure, f"All allocations as points, cost against distortion. The price {price:.3g} {text}"), text


def _corners(costs: Sequence[Any], distortions: Sequence[Any]) -> tuple[list[float], list[float]]:
    """What prices choose, from the dearest weight to the cheapest: costs and distortions."""
    found = set()
    for price in np.geomspace(1e-9, 1e3, 2000):
        picks = [int(np.argmin(np.asarray(d) + price * np.asarray(c))) for c, d in zip(costs, distortions, strict=True)]
        sums = (sum(float(row[k]) for row, k in zip(rows, picks, strict=True)) for rows in (costs, distortions))
        found.add(tuple(sums))
    ordered = sorted(found)
    return [c for c, _ in ordered], [d for _, d in ordered]


def draw_agreement(points: Mapping[str, tuple[Sequence[float], Sequence[float]]], alt: str) -> Picture:
    """Predicted against true, on logarithmic scales, with the line on which both are equal."""
    figure, ax = canvas(width=5.5, height=4.2)
    low = min(min(map(min, pair)) for pair in points.values())
    high = max(max(map(max, pair)) for pair in points.values())
    ax.plot([low, high], [low, high], color=GREY, linewidth=1)
    for i, (name, (predicted, true)) in enumerate(points.items()):
        ax.scatter(true, predicted, s=8, color=COLOURS[i % 8], label=name, alpha=0.6, linewidths=0)
    ax.set(xscale="log", yscale="log")
    ax.set_xlabel("true distortion", color=GREY)
    ax.set_ylabel("sum of the curves", color=GREY)
    legend(ax)
    return Picture(figure, alt)
