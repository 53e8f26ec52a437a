"""Wrong answers to the second question of the lab on pieces of rows; its tests have to reject each."""

import torch


def _spread(keep, width, inputs):
    return keep.repeat_interleave(width, dim=1)[:, :inputs]


def wrong_1(scores, width, inputs, threshold):
    """A row may lose everything."""
    return _spread(scores >= threshold * scores.mean(dim=1, keepdim=True), width, inputs)


def wrong_2(scores, width, inputs, threshold):
    """One mean for the whole layer."""
    keep = scores >= threshold * scores.mean()
    keep[torch.arange(len(scores)), scores.argmax(dim=1)] = True
    return _spread(keep, width, inputs)


def wrong_3(scores, width, inputs, threshold):
    """The median instead of the mean."""
    keep = scores >= threshold * scores.median(dim=1, keepdim=True).values
    keep[torch.arange(len(scores)), scores.argmax(dim=1)] = True
    return _spread(keep, width, inputs)


def wrong_4(scores, width, inputs, threshold):
    """True where a piece goes."""
    return ~_spread(scores >= threshold * scores.mean(dim=1, keepdim=True), width, inputs)


def wrong_5(scores, width, inputs, threshold):
    """The pieces are tiled instead of spread."""
    keep = scores >= threshold * scores.mean(dim=1, keepdim=True)
    keep[torch.arange(len(scores)), scores.argmax(dim=1)] = True
    return keep.repeat(1, width)[:, :inputs]


def wrong_6(scores, width, inputs, threshold):
    """The threshold is not relative to anything."""
    keep = scores >= threshold
    keep[torch.arange(len(scores)), scores.argmax(dim=1)] = True
    return _spread(keep, width, inputs)
