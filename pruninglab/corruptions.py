"""Pictures made worse in five ways, each at five levels: what a network meets outside of its test set.

    corrupt(x, "blur", 0.1)     # by a tenth of the picture's side

The idea is Hendrycks & Dietterich's (2019); the corruptions are fewer and the levels our own, for small pictures.
Strengths say the same of pictures of any size and scale: they are fractions of the range from black to white or of the
shorter side, and degrees. What lies outside of a picture is black.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pruninglab.naming import lookup, whole

Limits = tuple[float, float]  # what black and white are: the least and the greatest value of a pixel

# Chosen so that the dense digits-mlp falls step by step, from 97 % to between 25 % (shift) and 67 % (noise).
STRENGTHS: dict[str, tuple[float, float, float, float, float]] = {
    "noise": (0.1, 0.2, 0.3, 0.4, 0.5),
    "blur": (0.06, 0.08, 0.1, 0.12, 0.15),
    "contrast": (0.5, 0.7, 0.8, 0.9, 0.95),
    "shift": (0.03125, 0.0625, 0.09375, 0.125, 0.1875),
    "rotation": (10.0, 15.0, 20.0, 25.0, 30.0),
}


def corrupt(x: Tensor, kind: str, strength: float, *, limits: Limits = (0.0, 1.0), seed: int = 0) -> Tensor:
    """A copy of the pictures with one corruption; at strength 0 it is the same to the bit.

    What is drawn (noise, directions) depends on the seed and on how many pictures of which shape there are, not on the
    strength: levels differ in nothing but how much.

    Args:
        x: (n, channels, height, width), floats.
        kind: one of `CORRUPTIONS`.
        strength: "noise": the standard deviation, as a fraction of the range of `limits`, within which the result is
            cut off. "blur": the standard deviation of the Gaussian, as a fraction of the shorter side. "contrast": the
            fraction of it that is lost, at most 1. "shift": the way in one of four directions, as a fraction of the
            shorter side. "rotation": degrees, to the left or to the right.
        limits: the values of black and white.
        seed: of what is drawn.

    Raises:
        ValueError: x is not a tensor of pictures, an unknown kind, a strength that is negative or too large, or limits
            that are not in order.
    """
    how = lookup("corruption", kind, CORRUPTIONS)
    if x.ndim != 4 or not x.is_floating_point() or not x.numel():
        raise ValueError(
            "pictures are a tensor of floats, (samples, channels, height, width), each at least 1, "
            f"not {tuple(x.shape)} of {x.dtype}"
        )
    most = 1.0 if kind == "contrast" else math.inf
    if not 0 <= strength <= most or not math.isfinite(strength):
        raise ValueError(f"the strength of {kind} is a number from 0 to {most:g}, not {strength!r}")
    black, white = limits
    if not black < white:
        raise ValueError(f"limits are (black, white), the smaller first, not {limits!r}")
    if not strength:
        return x.clone()
    generator = torch.Generator().manual_seed(whole("seed", seed))
    return how(x, float(strength), (float(black), float(white)), generator)


def _noise(x: Tensor, strength: float, limits: Limits, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(x.shape, generator=generator).to(x)
    return (x + strength * (limits[1] - limits[0]) * drawn).clamp(*limits)


def _blur(x: Tensor, strength: float, limits: Limits, _generator: torch.Generator) -> Tensor:
    """A Gaussian, cut off at four standard deviations; along columns, then along rows."""
    sigma = strength * min(x.shape[2:])
    reach = math.ceil(4 * sigma)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).to(x).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    planes = (x - limits[0]).flatten(0, 1).unsqueeze(1)
    planes = F.conv2d(F.conv2d(planes, kernel, padding=(reach, 0)), kernel.mT, padding=(0, reach))
    return planes.view_as(x) + limits[0]


def _contrast(x: Tensor, strength: float, _limits: Limits, _generator: torch.Generator) -> Tensor:
    """Every pixel nearer to the mean of its picture and channel."""
    return x.lerp(x.mean((2, 3), keepdim=True).expand_as(x), strength)


def _shift(x: Tensor, strength: float, limits: Limits, generator: torch.Generator) -> Tensor:
    directions = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    way = directions[torch.randint(4, (len(x),), generator=generator)] * strength * min(x.shape[2:])
    return _moved(x, torch.zeros(len(x), dtype=torch.float64), way, limits[0])


def _rotation(x: Tensor, strength: float, limits: Limits, generator: torch.Generator) -> Tensor:
    side = 2 * torch.randint(2, (len(x),), generator=generator).double() - 1
    return _moved(x, side * math.radians(strength), torch.zeros(len(x), 2, dtype=torch.float64), limits[0])


def _moved(x: Tensor, angle: Tensor, way: Tensor, black: float) -> Tensor:
    """Each picture turned about its middle by `angle` (n,), then shifted by `way` (n, 2) pixels down and right.

    Between pixels, values are interpolated in both directions.
    """
    height, width = x.shape[2:]
    cos, sin = (f(angle).view(-1, 1, 1) for f in (torch.cos, torch.sin))
    # Where each pixel comes from, seen from the middle of the picture.
    down = torch.arange(height).view(1, -1, 1) - (height - 1) / 2 - way[:, 0].view(-1, 1, 1)
    right = torch.arange(width).view(1, 1, -1) - (width - 1) / 2 - way[:, 1].view(-1, 1, 1)
    from_right, from_down = cos * right + sin * down, cos * down - sin * right
    grid = torch.stack([2 * from_right / width, 2 * from_down / height], -1)  # the edges of the picture are at ±1
    return F.grid_sample(x - black, grid.to(x), align_corners=False) + black


CORRUPTIONS: dict[str, Callable[[Tensor, float, Limits, torch.Generator], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "shift": _shift,
    "rotation": _rotation,
}
