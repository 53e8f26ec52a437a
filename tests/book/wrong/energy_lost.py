"""Wrong answers to the first question of the lab on the worst layer; its tests have to reject each."""

import torch


def _share(powers, level):
    return float(powers[: int(level * len(powers))].sum() / powers.sum())


def wrong_1(weight, levels, p):
    """Always the energy, whatever p."""
    powers = weight.abs().double().flatten().sort().values.pow(2)
    return [_share(powers, level) for level in levels]


def wrong_2(weight, levels, p):
    """The largest go."""
    powers = weight.abs().double().flatten().sort(descending=True).values.pow(p)
    return [_share(powers, level) for level in levels]


def wrong_3(weight, levels, p):
    """The levels are sorted first."""
    powers = weight.abs().double().flatten().sort().values.pow(p)
    return [_share(powers, level) for level in sorted(levels)]


def wrong_4(weight, levels, p):
    """Sorted with their signs."""
    powers = weight.double().flatten().sort().values.abs().pow(p)
    return [_share(powers, level) for level in levels]


def wrong_5(weight, levels, p):
    """With the root of a norm."""
    powers = weight.abs().double().flatten().sort().values.pow(p)
    return [_share(powers, level) ** (1 / p) for level in levels]


def wrong_6(weight, levels, p):
    """What is kept, not what is lost; as a tensor at that."""
    powers = weight.abs().double().flatten().sort().values.pow(p)
    return torch.tensor([1 - _share(powers, level) for level in levels])
