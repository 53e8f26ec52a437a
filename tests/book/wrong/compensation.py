"""Plausible wrong answers to exercise 2 of chapter 9; its check has to reject each."""

import torch


def wrong_1(weight, inputs, gone):
    """The channels that stay."""
    return weight[:, ~gone] @ inputs[:, ~gone].mean(0)


def wrong_2(weight, inputs, gone):
    """Takes off what it should add."""
    return -weight[:, gone] @ inputs[:, gone].mean(0)


def wrong_3(weight, inputs, gone):
    """The sum over tokens."""
    return weight[:, gone] @ inputs[:, gone].sum(0)


def wrong_4(weight, inputs, gone):
    """The mean of |x|."""
    return weight[:, gone] @ inputs[:, gone].abs().mean(0)


def wrong_5(weight, inputs, gone):
    """One mean for all channels that go."""
    if not gone.any():
        return torch.zeros(len(weight), dtype=weight.dtype)
    return weight[:, gone].sum(1) * inputs[:, gone].mean()


def wrong_6(weight, inputs, gone):
    """All channels."""
    return weight @ inputs.mean(0)


def wrong_7(weight, inputs, gone):
    """The median, which is not the mean where values are rare and large."""
    return weight[:, gone] @ inputs[:, gone].median(0).values


def wrong_8(weight, inputs, gone):
    """A bias for each token."""
    return inputs[:, gone] @ weight[:, gone].T


def wrong_9(weight, inputs, gone):
    """Prunes the weight on the way."""
    bias = weight[:, gone] @ inputs[:, gone].mean(0)
    weight[:, gone] = 0
    return bias


def wrong_10(weight, inputs, gone):
    """The means, not what the outputs make of them."""
    return inputs[:, gone].mean(0)


def wrong_11(weight, inputs, gone):
    """What the outputs become, not what they lack."""
    return weight @ (inputs * ~gone).mean(0)


def wrong_12(weight, inputs, gone):
    """The first token speaks for all."""
    return weight[:, gone] @ inputs[0, gone]


def wrong_13(weight, inputs, gone):
    """The mean over channels instead of tokens."""
    return weight[:, gone].mean(1) * inputs[:, gone].mean()


def wrong_14(weight, inputs, gone):
    """The mean of what each channel does, where their sum is asked for."""
    return weight[:, gone] @ inputs[:, gone].mean(0) / max(int(gone.sum()), 1)


def wrong_15(weight, inputs, gone):
    """Clears the channels in place and takes the difference."""
    before = inputs @ weight.T
    inputs[:, gone] = 0
    return (before - inputs @ weight.T).mean(0)
