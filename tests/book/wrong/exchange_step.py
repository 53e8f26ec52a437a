"""Plausible wrong answers to exercise 3 of chapter 5; its check has to reject each."""

import torch


def _drop(weight, mask, count):
    size = weight.abs().masked_fill(~mask, torch.inf).flatten()
    return mask.flatten().index_fill(0, size.argsort(stable=True)[:count], False)


def _grow(kept, wish, count):
    order = wish.masked_fill(kept, -torch.inf).argsort(descending=True, stable=True)
    return kept.index_fill(0, order[:count], True)


def wrong_1(weight, mask, grad, count):
    """The smallest of all are the zeros that are gone already."""
    gone = weight.abs().flatten().argsort(stable=True)[:count]
    kept = mask.flatten().index_fill(0, gone, False)
    return _grow(kept, grad.abs().flatten(), count).view(mask.shape)


def wrong_2(weight, mask, grad, count):
    """Kept weights take part in growing, and use up places."""
    kept = _drop(weight, mask, count)
    return kept.index_fill(0, grad.abs().flatten().argsort(descending=True)[:count], True).view(mask.shape)


def wrong_3(weight, mask, grad, count):
    """Signed gradients: negative ones never grow."""
    return _grow(_drop(weight, mask, count), grad.flatten(), count).view(mask.shape)


def wrong_4(weight, mask, grad, count):
    """Signed weights: the most negative go."""
    size = weight.masked_fill(~mask, torch.inf).flatten()
    kept = mask.flatten().index_fill(0, size.argsort()[:count], False)
    return _grow(kept, grad.abs().flatten(), count).view(mask.shape)


def wrong_5(weight, mask, grad, count):
    """A weight that has gone can never come back."""
    kept = _drop(weight, mask, count)
    order = grad.abs().flatten().masked_fill(mask.flatten(), -torch.inf).argsort(descending=True)
    return kept.index_fill(0, order[:count], True).view(mask.shape)


def wrong_6(weight, mask, grad, count):
    """Grows at random: SET, not RigL."""
    noise = torch.rand(weight.numel(), generator=torch.Generator().manual_seed(0))
    return _grow(_drop(weight, mask, count), noise, count).view(mask.shape)


def wrong_7(weight, mask, grad, count):
    """Writes into the mask that it is given."""
    new = _grow(_drop(weight, mask, count), grad.abs().flatten(), count).view(mask.shape)
    return mask.copy_(new)


def wrong_8(weight, mask, grad, count):
    """Forgets to drop."""
    return _grow(mask.flatten(), grad.abs().flatten(), count).view(mask.shape)


def wrong_9(weight, mask, grad, count):
    """Flat."""
    return _grow(_drop(weight, mask, count), grad.abs().flatten(), count)


def wrong_10(weight, mask, grad, count):
    """A threshold on the weights that are left, and one on all the gradients."""
    low = weight.abs()[mask].sort().values[count] if count < int(mask.sum()) else torch.inf
    high = grad.abs().flatten().sort(descending=True).values[count]
    return (mask & (weight.abs() >= low)) | (grad.abs() > high)
