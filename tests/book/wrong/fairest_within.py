"""Wrong answers to the second question of the lab on the worst layer; its tests have to reject each."""

import itertools


def _choices(costs, distortions):
    for picks in itertools.product(*map(range, map(len, costs))):
        chosen = [layer[k] for layer, k in zip(distortions, picks, strict=True)]
        yield sum(layer[k] for layer, k in zip(costs, picks, strict=True)), chosen, list(picks)


def _best(costs, distortions, budget, key):
    _, chosen, picks = min((one for one in _choices(costs, distortions) if one[0] <= budget), key=key)
    return max(chosen), picks


def wrong_1(costs, distortions, budget):
    """The rule of the chapter: the least sum."""
    return _best(costs, distortions, budget, lambda one: sum(one[1]))


def wrong_2(costs, distortions, budget):
    """The largest is least, but what it costs is not looked at."""
    return _best(costs, distortions, budget, lambda one: (max(one[1]), -one[0]))


def wrong_3(costs, distortions, budget):
    """As if there were no budget."""
    return _best(costs, distortions, float("inf"), lambda one: (max(one[1]), one[0]))


def wrong_4(costs, distortions, budget):
    """The budget may not be met exactly."""
    return _best(costs, distortions, max(budget - 1, sum(map(min, costs))), lambda one: (max(one[1]), one[0]))


def wrong_5(costs, distortions, budget):
    """The least sum is told, not the largest."""
    _, picks = _best(costs, distortions, budget, lambda one: (max(one[1]), one[0]))
    return sum(layer[k] for layer, k in zip(distortions, picks, strict=True)), picks


def wrong_6(costs, distortions, budget):
    """Always the cheapest."""
    return _best(costs, distortions, budget, lambda one: one[0])
