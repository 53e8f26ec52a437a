"""Plausible wrong answers to exercise 3 of chapter 8; its check has to reject each."""

import torch


def wrong_1(weight, keep, a, b, scale):
    """Forgets the mask: the pruned weights come back."""
    return weight + scale * (b @ a)


def wrong_2(weight, keep, a, b, scale):
    """Goes by zeros instead of the mask."""
    return weight + (weight != 0) * (scale * (b @ a))


def wrong_3(weight, keep, a, b, scale):
    """Forgets the scale."""
    return weight + keep * (b @ a)


def wrong_4(weight, keep, a, b, scale):
    """Divides by the rank, as if the scale were LoRA's alpha."""
    return weight + keep * (scale / len(a) * (b @ a))


def wrong_5(weight, keep, a, b, scale):
    """The matrices the wrong way round."""
    return weight + keep * (scale * (a @ b))


def wrong_6(weight, keep, a, b, scale):
    """Merges in place."""
    weight += keep * (scale * (b @ a))
    return weight


def wrong_7(weight, keep, a, b, scale):
    """Only what was learned."""
    return keep * (scale * (b @ a))


def wrong_8(weight, keep, a, b, scale):
    """The mask the wrong way round."""
    return weight + ~keep * (scale * (b @ a))


def wrong_9(weight, keep, a, b, scale):
    """Masks the columns of A: a column is seldom empty."""
    return weight + scale * (b @ (a * keep.any(0)))


def wrong_10(weight, keep, a, b, scale):
    """Scales the weight too."""
    return scale * (weight + keep * (b @ a))


def wrong_11(weight, keep, a, b, scale):
    """Multiplies where it should add."""
    return weight * (1 + scale * (b @ a))


def wrong_12(weight, keep, a, b, scale):
    """Masks the weight, which has its zeros already, and not the adapter."""
    return weight * keep + scale * (b @ a)


def wrong_13(weight, keep, a, b, scale):
    """Scales both A and B."""
    return weight + keep * ((scale * b) @ (scale * a))


def wrong_14(weight, keep, a, b, scale):
    """Scales B in place."""
    b *= scale
    return weight + keep * (b @ a)


def wrong_15(weight, keep, a, b, scale):
    """The merged layer's transpose."""
    return (weight + keep * (scale * (b @ a))).T


def wrong_16(weight, keep, a, b, scale):
    """Takes off what was learned."""
    return weight - keep * (scale * torch.einsum("or,ri->oi", b, a))
