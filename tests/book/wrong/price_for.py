"""Plausible wrong answers to exercise 2 of chapter 6; its check has to reject each."""

import itertools


def _choice(costs, distortions, price):
    picks = []
    for c, d in zip(costs, distortions, strict=True):
        charged = [pain + price * cost for cost, pain in zip(c, d, strict=True)]
        picks.append(charged.index(min(charged)))
    return picks


def _cost(costs, picks):
    return sum(c[k] for c, k in zip(costs, picks, strict=True))


def _prices():
    return [0.0, *(2.0**e for e in range(-30, 30))]


def wrong_1(costs, distortions, budget):
    """One price that suits nobody in particular."""
    return _choice(costs, distortions, 1.0)


def wrong_2(costs, distortions, budget):
    """The cheapest option of each layer: within the budget, and wasteful."""
    return [c.index(min(c)) for c in costs]


def wrong_3(costs, distortions, budget):
    """The least distortion, whatever it costs."""
    return [d.index(min(d)) for d in distortions]


def wrong_4(costs, distortions, budget):
    """Stops just above the budget."""
    over = [p for p in _prices() if _cost(costs, _choice(costs, distortions, p)) > budget]
    return _choice(costs, distortions, over[-1] if over else 0.0)


def wrong_5(costs, distortions, budget):
    """Splits the budget evenly, and lets every layer choose for itself."""
    share = budget / len(costs)
    picks = []
    for c, d in zip(costs, distortions, strict=True):
        fitting = [k for k in range(len(c)) if c[k] <= share] or [c.index(min(c))]
        picks.append(min(fitting, key=lambda k: d[k]))
    return picks


def wrong_6(costs, distortions, budget):
    """Powers of two only: a price that is too high."""
    return next(picks for p in _prices() if _cost(costs, picks := _choice(costs, distortions, p)) <= budget)


def wrong_7(costs, distortions, budget):
    """Charges for what is removed instead of what is kept."""
    for price in _prices():
        picks = []
        for c, d in zip(costs, distortions, strict=True):
            charged = [pain - price * cost for cost, pain in zip(c, d, strict=True)]
            picks.append(charged.index(min(charged)))
        if _cost(costs, picks) <= budget:
            return picks
    return [0] * len(costs)


def wrong_8(costs, distortions, budget):
    """The pairs of costs and options instead of the options."""
    return list(itertools.islice(zip(costs, distortions, strict=True), 3))
