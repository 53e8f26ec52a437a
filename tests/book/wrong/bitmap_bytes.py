"""Plausible wrong answers to `bitmap_bytes` (chapter 1); `check(…, strictly=True)` rejects each."""

import torch


def wrong_1(weight):
    """Rounds the last byte of the bitmap down."""
    return weight.numel() // 8 + int(torch.count_nonzero(weight)) * weight.element_size()


def wrong_2(weight):
    """Takes every value for float32."""
    return -(-weight.numel() // 8) + 4 * int(torch.count_nonzero(weight))


def wrong_3(weight):
    """Spends a whole byte, not a bit, on each entry."""
    return weight.numel() + int(torch.count_nonzero(weight)) * weight.element_size()


def wrong_4(weight):
    """Counts positive values only."""
    return -(-weight.numel() // 8) + int((weight > 0).sum()) * weight.element_size()


def wrong_5(weight):
    """Divides exactly, so that there are fractions of a byte."""
    return weight.numel() / 8 + int(torch.count_nonzero(weight)) * weight.element_size()


def wrong_6(weight):
    """Gives bits."""
    return weight.numel() + 8 * int(torch.count_nonzero(weight)) * weight.element_size()


def wrong_7(weight):
    """Forgets the bitmap: without it nobody knows where the values belong."""
    return int(torch.count_nonzero(weight)) * weight.element_size()


def wrong_8(weight):
    """Starts each row of the bitmap at a new byte."""
    rows, columns = weight.shape[0], weight[0].numel()
    return rows * -(-columns // 8) + int(torch.count_nonzero(weight)) * weight.element_size()


def wrong_9(weight):
    """Counts the zeros as the values."""
    return -(-weight.numel() // 8) + int((weight == 0).sum()) * weight.element_size()


def wrong_10(weight):
    """Gives a tensor in place of a number."""
    return -(-weight.numel() // 8) + torch.count_nonzero(weight) * weight.element_size()
