"""Wrong answers to the first question of the lab on pieces of rows; its tests have to reject each."""

import torch


def _pieces(weight, width):
    return weight.abs().split(width, dim=1)


def wrong_1(weight, width, p):
    """A short last piece is divided by the full width."""
    return torch.stack([piece.pow(p).sum(dim=1) / width for piece in _pieces(weight, width)], dim=1).pow(1 / p)


def wrong_2(weight, width, p):
    """A norm, not a mean: long pieces are larger."""
    return torch.stack([piece.norm(p, dim=1) for piece in _pieces(weight, width)], dim=1)


def wrong_3(weight, width, p):
    """Without the root."""
    return torch.stack([piece.pow(p).mean(dim=1) for piece in _pieces(weight, width)], dim=1)


def wrong_4(weight, width, p):
    """p is ignored: the mean magnitude, as the library's blocks have it."""
    return torch.stack([piece.mean(dim=1) for piece in _pieces(weight, width)], dim=1)


def wrong_5(weight, width, p):
    """The short last piece is left out."""
    whole = weight[:, : weight.shape[1] // width * width].abs().pow(p)
    return whole.view(len(weight), -1, width).mean(dim=2).pow(1 / p)


def wrong_6(weight, width, p):
    """The input is overwritten."""
    return torch.stack([piece.mean(dim=1) for piece in weight.abs_().pow(p).split(width, dim=1)], dim=1).pow(1 / p)
