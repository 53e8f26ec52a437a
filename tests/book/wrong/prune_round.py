"""Wrong answers to exercise 1 of chapter 4; its check has to reject each."""

import torch


def wrong_1(weights, masks, rate):
    """Counts all weights, not those that are left."""
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    sizes = torch.cat([w.abs().flatten() for w in weights.values()]).masked_fill(~kept, torch.inf)
    gone = sizes.argsort()[: int(rate * kept.numel() + 0.5)]
    parts = kept.index_fill(0, gone, False).split([w.numel() for w in weights.values()])
    return {name: part.view(weights[name].shape) for name, part in zip(weights, parts, strict=True)}


def wrong_2(weights, masks, rate):
    """Lets what is gone come back."""
    sizes = torch.cat([w.abs().flatten() for w in weights.values()])
    left = sum(int(mask.sum()) for mask in masks.values())
    n = left - int(rate * left + 0.5)
    mask = torch.zeros(len(sizes), dtype=torch.bool).index_fill(0, sizes.argsort(descending=True)[:n], True)
    parts = mask.split([w.numel() for w in weights.values()])
    return {name: part.view(weights[name].shape) for name, part in zip(weights, parts, strict=True)}


def wrong_3(weights, masks, rate):
    """Takes the same fraction of each layer."""
    out = {}
    for name, weight in weights.items():
        sizes = weight.abs().flatten().masked_fill(~masks[name].flatten(), torch.inf)
        gone = sizes.argsort()[: int(rate * int(masks[name].sum()) + 0.5)]
        out[name] = masks[name].flatten().index_fill(0, gone, False).view(weight.shape)
    return out


def wrong_4(weights, masks, rate):
    """Removes the largest."""
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    sizes = torch.cat([w.abs().flatten() for w in weights.values()]).masked_fill(~kept, -1)
    gone = sizes.argsort(descending=True)[: int(rate * int(kept.sum()) + 0.5)]
    parts = kept.index_fill(0, gone, False).split([w.numel() for w in weights.values()])
    return {name: part.view(weights[name].shape) for name, part in zip(weights, parts, strict=True)}


def wrong_5(weights, masks, rate):
    """Changes the masks that it was given."""
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    sizes = torch.cat([w.abs().flatten() for w in weights.values()]).masked_fill(~kept, torch.inf)
    gone = sizes.argsort(stable=True)[: int(rate * int(kept.sum()) + 0.5)]
    parts = kept.index_fill(0, gone, False).split([w.numel() for w in weights.values()])
    for name, part in zip(weights, parts, strict=True):
        masks[name].copy_(part.view(masks[name].shape))
    return dict(masks)


def wrong_6(weights, masks, rate):
    """Forgets the magnitude: removes the most negative."""
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    sizes = torch.cat([w.flatten() for w in weights.values()]).masked_fill(~kept, torch.inf)
    gone = sizes.argsort()[: int(rate * int(kept.sum()) + 0.5)]
    parts = kept.index_fill(0, gone, False).split([w.numel() for w in weights.values()])
    return {name: part.view(weights[name].shape) for name, part in zip(weights, parts, strict=True)}
