"""Plausible wrong answers to `conv_macs` (chapter 1); `check(…, strictly=True)` rejects each."""


def wrong_1(inputs, outputs, kernel, height, width):
    """Counts FLOPs: a multiply–add is taken as two operations."""
    return 2 * inputs * outputs * kernel * kernel * height * width


def wrong_2(inputs, outputs, kernel, height, width):
    """Counts the weights of the layer, and forgets that they are used at each position."""
    return inputs * outputs * kernel * kernel


def wrong_3(inputs, outputs, kernel, height, width):
    """Takes the kernel for a row: k instead of k × k."""
    return inputs * outputs * kernel * height * width


def wrong_4(inputs, outputs, kernel, height, width):
    """Lets each output channel look at one input channel only, as in a depthwise convolution."""
    return outputs * kernel * kernel * height * width


def wrong_5(inputs, outputs, kernel, height, width):
    """Adds the bias, one operation for each number of the output."""
    return (inputs * kernel * kernel + 1) * outputs * height * width


def wrong_6(inputs, outputs, kernel, height, width):
    """Shrinks the output by the kernel, although height and width are the output's already."""
    return inputs * outputs * kernel * kernel * (height - kernel + 1) * (width - kernel + 1)


def wrong_7(inputs, outputs, kernel, height, width):
    """Takes the picture for a square."""
    return inputs * outputs * kernel * kernel * height * height


def wrong_8(inputs, outputs, kernel, height, width):
    """Gives a float."""
    return inputs * outputs * kernel**2 * height * width * 1.0
