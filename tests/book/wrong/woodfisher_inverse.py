"""Plausible wrong answers to exercise 2 of chapter 7; its check has to reject each."""

import torch


def _recursion(grads, damp, *, start=None, sign=-1.0, denominator=None):
    """The right recursion, with parts to put wrong."""
    samples, n = grads.shape
    inverse = torch.eye(n, dtype=grads.dtype) * (1 / damp if start is None else start)
    for g in grads:
        turned = inverse @ g
        below = samples + g @ turned if denominator is None else denominator(samples, n, g @ turned)
        inverse = inverse + sign * torch.outer(turned, turned) / below
    return inverse


def wrong_1(grads, damp):
    """The sum over samples, not the mean."""
    return _recursion(grads, damp, denominator=lambda samples, n, along: 1 + along)


def wrong_2(grads, damp):
    """Begins with λI instead of its inverse."""
    return _recursion(grads, damp, start=damp)


def wrong_3(grads, damp):
    """Adds where it should subtract."""
    return _recursion(grads, damp, sign=1.0)


def wrong_4(grads, damp):
    """Divides by the samples alone."""
    return _recursion(grads, damp, denominator=lambda samples, n, along: samples)


def wrong_5(grads, damp):
    """The mean gradient as if it were the only sample."""
    return _recursion(grads.mean(0, keepdim=True), damp)


def wrong_6(grads, damp):
    """The diagonal only."""
    return torch.diag(1 / (grads.square().mean(0) + damp))


def wrong_7(grads, damp):
    """F + λI itself."""
    return grads.T @ grads / len(grads) + damp * torch.eye(grads.shape[1], dtype=grads.dtype)


def wrong_8(grads, damp):
    """Inverts."""
    return torch.linalg.inv(wrong_7(grads, damp))


def wrong_9(grads, damp):
    """Solves, which is inverting under another name."""
    return torch.linalg.solve(wrong_7(grads, damp), torch.eye(grads.shape[1], dtype=grads.dtype))


def wrong_10(grads, damp):
    """Divides by the weights' number instead of the samples'."""
    return _recursion(grads, damp, denominator=lambda samples, n, along: n + along)


def wrong_11(grads, damp):
    """Scales the gradients it was given."""
    grads /= len(grads) ** 0.5
    return _recursion(grads, damp, denominator=lambda samples, n, along: 1 + along)


def wrong_12(grads, damp):
    """A row and a column for each sample."""
    return _recursion(grads.T, damp)
