"""Plausible wrong answers to exercise 1 of chapter 9; its check has to reject each."""


def _norms(weight):
    return weight.square().sum(0)


def wrong_1(inputs, weight):
    """Divides by one less than the number of tokens, as torch does by default."""
    return inputs.var(0) * _norms(weight)


def wrong_2(inputs, weight):
    """The standard deviation."""
    return inputs.std(0, correction=0) * _norms(weight)


def wrong_3(inputs, weight):
    """The weights do not count."""
    return inputs.var(0, correction=0)


def wrong_4(inputs, weight):
    """The norm, not its square."""
    return inputs.var(0, correction=0) * weight.norm(dim=0)


def wrong_5(inputs, weight):
    """The norm of each row instead of each column."""
    return inputs.var(0, correction=0) * weight.square().sum(1)[: inputs.shape[1]]


def wrong_6(inputs, weight):
    """The mean square: the mean is left in."""
    return inputs.square().mean(0) * _norms(weight)


def wrong_7(inputs, weight):
    """The variance over channels instead of tokens."""
    return inputs.var(1, correction=0)[: inputs.shape[1]] * _norms(weight)


def wrong_8(inputs, weight):
    """Centres the inputs in place."""
    inputs -= inputs.mean(0)
    return inputs.square().mean(0) * _norms(weight)


def wrong_9(inputs, weight):
    """The difference of two squares, which loses its digits in single precision."""
    return (inputs.square().mean(0) - inputs.mean(0).square()) * _norms(weight)


def wrong_10(inputs, weight):
    """A score for each weight."""
    return inputs.var(0, correction=0) * weight.square()


def wrong_11(inputs, weight):
    """The square of the sum instead of the sum of squares."""
    return inputs.var(0, correction=0) * weight.sum(0).square()


def wrong_12(inputs, weight):
    """The mean over outputs instead of the sum."""
    return inputs.var(0, correction=0) * weight.square().mean(0)


def wrong_13(inputs, weight):
    """The sum of squared deviations, not their mean."""
    return (inputs - inputs.mean(0)).square().sum(0) * _norms(weight)


def wrong_14(inputs, weight):
    """Wanda's score, summed over the outputs."""
    return (weight.abs() * inputs.norm(dim=0)).sum(0)


def wrong_15(inputs, weight):
    """Absolute deviations."""
    return (inputs - inputs.mean(0)).abs().mean(0).square() * _norms(weight)


def wrong_16(inputs, weight):
    """The mean over everything is taken off, not each channel's own."""
    return (inputs - inputs.mean()).square().mean(0) * _norms(weight)
