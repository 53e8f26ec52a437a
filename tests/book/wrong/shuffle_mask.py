"""Wrong answers to exercise 2 of chapter 4; its check has to reject each."""

import torch


def wrong_1(mask, seed):
    """About as many, not exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(mask.shape, generator=generator) < mask.float().mean()


def wrong_2(mask, seed):
    """Changes everybody's randomness."""
    torch.manual_seed(seed)
    return mask.flatten()[torch.randperm(mask.numel())].view(mask.shape)


def wrong_3(mask, seed):
    """Shuffles whole rows only."""
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(seed))
    return mask[order]


def wrong_4(mask, seed):
    """The seed does nothing."""
    order = torch.randperm(mask.numel(), generator=torch.Generator().manual_seed(0))
    return mask.flatten()[order].view(mask.shape)


def wrong_5(mask, seed):
    """Numbers instead of bools."""
    order = torch.randperm(mask.numel(), generator=torch.Generator().manual_seed(seed))
    return mask.flatten()[order].view(mask.shape).float()


def wrong_6(mask, seed):
    """Shuffles in place."""
    order = torch.randperm(mask.numel(), generator=torch.Generator().manual_seed(seed))
    mask.copy_(mask.flatten()[order].view(mask.shape))
    return mask
