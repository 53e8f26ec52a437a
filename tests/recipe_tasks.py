"""Tasks that train in a blink, for networks of every kind: chains, convolutions, residual blocks, groups."""

import torch
from helpers import make_task
from torch import nn

from pruninglab.tasks import Task, Training, models


def pictures(build, steps=60, channels=1, **training):
    """A task of small pictures, each with a bright corner that tells its class."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(240) % 4
    x = 0.7 * torch.randn(240, channels, 8, 8, generator=generator)
    for corner in range(4):
        row, column = 4 * (corner // 2), 4 * (corner % 2)
        x[y == corner, :, row : row + 4, column : column + 4] += 1.0
    splits = {"train": (x[:160], y[:160]), "validation": (x[160:200], y[160:200]), "test": (x[200:], y[200:])}
    return Task("pictures", lambda: splits, build, Training(**{"steps": steps, "batch": 32, "lr": 0.05} | training))


def grouped():
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
        nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 6, 3, groups=3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def make(kind, steps=60):
    if kind == "mlp":
        return make_task(steps=steps)
    if kind == "cnn":
        return pictures(lambda: models.cnn(8, (8, 12, 20), 4), steps)
    if kind == "resnet":
        return pictures(lambda: models.ResNet(1, 1, (4, 8, 12), 4), steps)
    return pictures(grouped, steps, channels=2)
