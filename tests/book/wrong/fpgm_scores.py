"""Plausible wrong answers to `fpgm_scores` (chapter 3); `check(…, strictly=True)` rejects each."""

import torch


def wrong_1(weight):
    """Squared distances."""
    flat = weight.flatten(1)
    return ((flat[:, None] - flat[None]) ** 2).sum((1, 2))


def wrong_2(weight):
    """The distance to the mean filter, which is not the geometric median."""
    flat = weight.flatten(1)
    return (flat - flat.mean(0)).norm(dim=1)


def wrong_3(weight):
    """Distances along the axes (ℓ1)."""
    flat = weight.flatten(1)
    return (flat[:, None] - flat[None]).abs().sum((1, 2))


def wrong_4(weight):
    """The wrong way round: the most replaceable filter scores highest."""
    flat = weight.flatten(1)
    return -torch.cdist(flat, flat).sum(1)


def wrong_5(weight):
    """All distances, not their sum."""
    flat = weight.flatten(1)
    return torch.cdist(flat, flat)


def wrong_6(weight):
    """The nearest other filter only."""
    flat = weight.flatten(1)
    return (torch.cdist(flat, flat) + 1e9 * torch.eye(len(flat))).min(1).values


def wrong_7(weight):
    """The mean of the distances."""
    flat = weight.flatten(1)
    return torch.cdist(flat, flat).mean(1)


def wrong_8(weight):
    """Compares input channels instead of filters."""
    flat = weight.transpose(0, 1).flatten(1)
    return torch.cdist(flat, flat).sum(1)


def wrong_9(weight):
    """The filter's own size: a norm, not a distance."""
    return weight.flatten(1).norm(dim=1)


def wrong_10(weight):
    """Scales every filter to length one first."""
    flat = weight.flatten(1)
    flat = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-9)
    return torch.cdist(flat, flat).sum(1)


def wrong_11(weight):
    """Right, but it centres the weight in place."""
    flat = weight.flatten(1)
    flat -= flat.mean(0)
    return torch.cdist(flat, flat).sum(1)
