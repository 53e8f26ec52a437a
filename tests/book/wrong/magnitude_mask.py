"""Wrong answers to exercise 1 of chapter 2; its check has to reject each."""

import torch


def wrong_1(weight, sparsity):
    """A threshold: all ties stand or fall together."""
    k = int(weight.numel() * sparsity)
    if k == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    return weight.abs() > weight.abs().flatten().kthvalue(k).values


def wrong_2(weight, sparsity):
    """True where a weight is removed."""
    return ~right(weight, sparsity)


def wrong_3(weight, sparsity):
    """Keeps the largest weights, not the largest magnitudes."""
    return right(weight - weight.min() + 1, sparsity)


def wrong_4(weight, sparsity):
    """Prunes the weight itself on the way."""
    mask = right(weight, sparsity)
    weight.mul_(mask)
    return mask


def wrong_5(weight, sparsity):
    """A float mask."""
    return right(weight, sparsity).float()


def wrong_6(weight, sparsity):
    """Forgets to give the mask the weight's shape."""
    return right(weight, sparsity).flatten()


def wrong_7(weight, sparsity):
    """Removes the same share of each row, and rounds in each."""
    return torch.stack([right(row, sparsity) for row in weight])


def wrong_8(weight, sparsity):
    """Fails on a weight that is not contiguous."""
    order = weight.abs().view(-1).argsort(descending=True, stable=True)
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[order[: int(weight.numel() * (1 - sparsity) + 0.5)]] = True
    return mask.view(weight.shape)


def wrong_9(weight, sparsity):
    """Rounds the count down."""
    return right(weight, 1 - int(weight.numel() * (1 - sparsity)) / weight.numel())


def right(weight, sparsity):
    """What the others get nearly right."""
    n = weight.numel()
    order = weight.abs().flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(n, dtype=torch.bool)
    mask[order[: int(n * (1 - sparsity) + 0.5)]] = True
    return mask.view(weight.shape)


def wrong_10(weight, sparsity):
    """Of equal weights it keeps whichever the sort happens to put first: here the last ones."""
    n = weight.numel()
    order = weight.abs().flatten().flip(0).argsort(descending=True, stable=True)
    mask = torch.zeros(n, dtype=torch.bool)
    mask[n - 1 - order[: int(n * (1 - sparsity) + 0.5)]] = True
    return mask.view(weight.shape)
