"""Plausible wrong answers to exercise 3 of chapter 6; its check has to reject each."""

import math


def _table(costs, distortions, budget, *, strictly=False, first=None):
    """The table of the least distortion for each amount spent, with faults to choose from."""
    best = {0: (0.0, [])}
    for layer, (c, d) in enumerate(zip(costs, distortions, strict=True)):
        following = {}
        options = range(len(c)) if layer or first is None else first(c, d)
        for spent, (value, picks) in best.items():
            for k in options:
                total = spent + c[k]
                fits = total < budget if strictly else total <= budget
                if fits and (total not in following or value + d[k] < following[total][0]):
                    following[total] = (value + d[k], [*picks, k])
        best = following
    return min(best.values()) if best else (math.inf, [0] * len(costs))


def wrong_1(costs, distortions, budget):
    """Something must be left over."""
    return _table(costs, distortions, budget, strictly=True)


def wrong_2(costs, distortions, budget):
    """The first layer may only take what is nearest to a third of the budget, more or less."""
    return _table(
        costs, distortions, budget, first=lambda c, d: [min(range(len(c)), key=lambda k: abs(c[k] - budget / 3))]
    )


def wrong_3(costs, distortions, budget):
    """Greedy: the step that saves most for its distortion, until it fits."""
    picks = [0] * len(costs)
    while sum(c[k] for c, k in zip(costs, picks, strict=True)) > budget:
        steps = [
            ((d[k + 1] - d[k]) / max(c[k] - c[k + 1], 1e-9), layer)
            for layer, (c, d, k) in enumerate(zip(costs, distortions, picks, strict=True))
            if k + 1 < len(c)
        ]
        if not steps:
            break
        picks[min(steps)[1]] += 1
    return sum(d[k] for d, k in zip(distortions, picks, strict=True)), picks


def wrong_4(costs, distortions, budget):
    """Ignores the budget."""
    picks = [d.index(min(d)) for d in distortions]
    return sum(d[k] for d, k in zip(distortions, picks, strict=True)), picks


def wrong_5(costs, distortions, budget):
    """Cheapest of all: fits, and is not the best."""
    picks = [c.index(min(c)) for c in costs]
    return sum(d[k] for d, k in zip(distortions, picks, strict=True)), picks


def wrong_6(costs, distortions, budget):
    """Right options, but the average distortion."""
    value, picks = _table(costs, distortions, budget)
    return value / len(costs), picks


def wrong_7(costs, distortions, budget):
    """Trusts that curves rise: never looks past the first option that fits."""
    picks, left = [], budget
    for i, c in enumerate(costs):
        later = sum(min(other) for other in costs[i + 1 :])
        k = next((k for k in range(len(c)) if c[k] + later <= left), len(c) - 1)
        picks.append(k)
        left -= c[k]
    return sum(d[k] for d, k in zip(distortions, picks, strict=True)), picks
