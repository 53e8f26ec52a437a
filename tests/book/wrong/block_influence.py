"""Plausible wrong answers to exercise 3 of chapter 9; its check has to reject each."""

import math

import torch
import torch.nn.functional as F


def wrong_1(before, after):
    """The cosine itself: how little the block does."""
    return float(F.cosine_similarity(before, after, dim=1).mean())


def wrong_2(before, after):
    """One cosine for all tokens, in which loud ones speak for all."""
    return 1 - float(F.cosine_similarity(before.flatten(), after.flatten(), dim=0))


def wrong_3(before, after):
    """The cosine of the mean states."""
    return 1 - float(F.cosine_similarity(before.mean(0), after.mean(0), dim=0))


def wrong_4(before, after):
    """A cosine for each channel instead of each token."""
    return 1 - float(F.cosine_similarity(before, after, dim=0).mean())


def wrong_5(before, after):
    """Forgets the lengths."""
    return 1 - float((before * after).sum(1).mean())


def wrong_6(before, after):
    """How far the states move, for their length."""
    return float(((after - before).norm(dim=1) / before.norm(dim=1)).mean())


def wrong_7(before, after):
    """Normalises in place."""
    before /= before.norm(dim=1, keepdim=True)
    after /= after.norm(dim=1, keepdim=True)
    return 1 - float((before * after).sum(1).mean())


def wrong_8(before, after):
    """A tensor."""
    return 1 - F.cosine_similarity(before, after, dim=1).mean()


def wrong_9(before, after):
    """The angle, scaled so that both ends are right."""
    cosines = F.cosine_similarity(before, after, dim=1).clamp(-1, 1)
    return 2 * float(cosines.acos().mean()) / math.pi


def wrong_10(before, after):
    """One number for each token."""
    return (1 - F.cosine_similarity(before, after, dim=1)).tolist()


def wrong_11(before, after):
    """Whether a state was turned round does not count."""
    return 1 - float(F.cosine_similarity(before, after, dim=1).abs().mean())


def wrong_12(before, after):
    """The sum over tokens."""
    return float((1 - F.cosine_similarity(before, after, dim=1)).sum())


def wrong_13(before, after):
    """The mean product over the mean lengths, not the mean of the ratios."""
    product = (before * after).sum(1).mean()
    return 1 - float(product / (before.norm(dim=1).mean() * after.norm(dim=1).mean()))


def wrong_14(before, after):
    """The median token."""
    return 1 - float(torch.median(F.cosine_similarity(before, after, dim=1)))


def wrong_15(before, after):
    """Pearson's correlation: takes the mean off each state."""
    one, other = (x - x.mean(1, keepdim=True) for x in (before, after))
    return 1 - float(F.cosine_similarity(one, other, dim=1).mean())
