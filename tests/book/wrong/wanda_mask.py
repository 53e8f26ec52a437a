"""Plausible wrong answers to exercise 1 of chapter 8; its check has to reject each."""

import torch


def _mask(weight, inputs, sparsity, *, scores=None, round_=int, dim=1):
    """The right answer, with parts to put wrong."""
    if scores is None:
        scores = weight.abs() * inputs.norm(dim=0)
    n = round_(sparsity * scores.shape[dim])
    order = scores.argsort(dim=dim, stable=True)
    return torch.ones_like(scores, dtype=torch.bool).scatter(dim, order.narrow(dim, 0, n), False)


def wrong_1(weight, inputs, sparsity):
    """Magnitude: the inputs do not count."""
    return _mask(weight, inputs, sparsity, scores=weight.abs())


def wrong_2(weight, inputs, sparsity):
    """All weights of the layer compete."""
    scores = (weight.abs() * inputs.norm(dim=0)).reshape(1, -1)
    return _mask(weight, inputs, sparsity, scores=scores).reshape(weight.shape)


def wrong_3(weight, inputs, sparsity):
    """The square of the norm beside the weight itself."""
    return _mask(weight, inputs, sparsity, scores=weight.abs() * inputs.square().sum(0))


def wrong_4(weight, inputs, sparsity):
    """The mean of |x|, another norm."""
    return _mask(weight, inputs, sparsity, scores=weight.abs() * inputs.abs().mean(0))


def wrong_5(weight, inputs, sparsity):
    """Keeps the sign of the weight."""
    return _mask(weight, inputs, sparsity, scores=weight * inputs.norm(dim=0))


def wrong_6(weight, inputs, sparsity):
    """True where a weight goes."""
    return ~_mask(weight, inputs, sparsity)


def wrong_7(weight, inputs, sparsity):
    """A threshold: of equal scores all stay."""
    scores = weight.abs() * inputs.norm(dim=0)
    n = int(sparsity * weight.shape[1])
    if n == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    return scores >= scores.sort(1).values[:, n : n + 1]


def wrong_8(weight, inputs, sparsity):
    """A threshold that takes one weight too many with it."""
    scores = weight.abs() * inputs.norm(dim=0)
    return scores > scores.sort(1).values[:, int(sparsity * weight.shape[1])][:, None]


def wrong_9(weight, inputs, sparsity):
    """The norm of each token instead of each channel."""
    norms = inputs.norm(dim=1)[: weight.shape[1]]
    return _mask(weight, inputs, sparsity, scores=weight.abs() * norms)


def wrong_10(weight, inputs, sparsity):
    """Rounds to the nearest."""
    return _mask(weight, inputs, sparsity, round_=lambda value: int(value + 0.5))


def wrong_11(weight, inputs, sparsity):
    """Takes the magnitude in place."""
    return _mask(weight, inputs, sparsity, scores=weight.abs_() * inputs.norm(dim=0))


def wrong_12(weight, inputs, sparsity):
    """Prunes the weight on the way."""
    mask = _mask(weight, inputs, sparsity)
    weight.mul_(mask)
    return mask


def wrong_13(weight, inputs, sparsity):
    """The standard deviation, which takes off the mean."""
    return _mask(weight, inputs, sparsity, scores=weight.abs() * inputs.std(0))


def wrong_14(weight, inputs, sparsity):
    """The weights of one input compete, not those of one output."""
    return _mask(weight, inputs, sparsity, dim=0)


def wrong_15(weight, inputs, sparsity):
    """The largest |x| of each channel."""
    return _mask(weight, inputs, sparsity, scores=weight.abs() * inputs.abs().max(0).values)


def wrong_16(weight, inputs, sparsity):
    """A mask of zeros and ones."""
    return _mask(weight, inputs, sparsity).float()


def wrong_17(weight, inputs, sparsity):
    """The pruned weight instead of the mask."""
    return weight * _mask(weight, inputs, sparsity)


def wrong_18(weight, inputs, sparsity):
    """The wrong threshold at sparsity 0, where `[n - 1]` is the last one."""
    scores = weight.abs() * inputs.norm(dim=0)
    return scores > scores.sort(1).values[:, int(sparsity * weight.shape[1]) - 1][:, None]


def wrong_19(weight, inputs, sparsity):
    """The channel's sum, in which plus and minus cancel."""
    return _mask(weight, inputs, sparsity, scores=weight.abs() * inputs.sum(0).abs())
