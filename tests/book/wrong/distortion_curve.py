"""Plausible wrong answers to exercise 1 of chapter 6; its check has to reject each."""

import torch


def _curve(model, x, weight, levels, *, order=None, fresh=True, restore=True, combine=None, count=int):
    with torch.no_grad():
        whole, before = model(x), weight.detach().clone()
        order = before.abs().flatten().argsort() if order is None else order(before)
        curve = []
        for level in levels:
            pruned = (before if fresh else weight).flatten().clone()
            pruned[order[: count(level * len(order))]] = 0
            weight.copy_(pruned.view_as(before))
            change = model(x) - whole
            curve.append(float(change.square().mean()) if combine is None else combine(change))
        if restore:
            weight.copy_(before)
    return curve


def wrong_1(model, x, weight, levels):
    """Leaves the model pruned."""
    return _curve(model, x, weight, levels, restore=False)


def wrong_2(model, x, weight, levels):
    """Removes the largest."""
    return _curve(model, x, weight, levels, order=lambda w: w.abs().flatten().argsort(descending=True))


def wrong_3(model, x, weight, levels):
    """Forgets the bars: the most negative go first."""
    return _curve(model, x, weight, levels, order=lambda w: w.flatten().argsort())


def wrong_4(model, x, weight, levels):
    """Begins each level with what the last one left."""
    return _curve(model, x, weight, levels, fresh=False)


def wrong_5(model, x, weight, levels):
    """The sum over outputs, not the mean."""
    return _curve(model, x, weight, levels, combine=lambda change: float(change.square().sum(1).mean()) * 2)


def wrong_6(model, x, weight, levels):
    """The change itself, not its square."""
    return _curve(model, x, weight, levels, combine=lambda change: float(change.abs().mean()))


def wrong_7(model, x, weight, levels):
    """Rounds to the nearest count."""
    return _curve(model, x, weight, levels, count=round)


def wrong_8(model, x, weight, levels):
    """A tensor instead of numbers."""
    return torch.tensor(_curve(model, x, weight, levels))


def wrong_9(model, x, weight, levels):
    """How large the outputs are, not how far they moved."""
    with torch.no_grad():
        size = model(x)
    return _curve(model, x, weight, levels, combine=lambda change: float((change + size).square().mean()))
