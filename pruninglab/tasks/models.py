"""The small networks of the tasks. Ordinary modules; nothing in them knows of pruning."""

from collections import OrderedDict
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(*widths: int) -> nn.Sequential:
    """Fully connected layers with ReLU between: `mlp(64, 300, 100, 10)` is the 300-100 network of LeCun et al. 1998."""
    layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
    for i, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        layers.append((f"fc{i}", nn.Linear(inputs, outputs)))
        if i < len(widths) - 1:
            layers.append((f"relu{i}", nn.ReLU()))
    return nn.Sequential(OrderedDict(layers))


def cnn(size: int, widths: tuple[int, int, int] = (16, 32, 64), classes: int = 10) -> nn.Sequential:
    """Two 3×3 convolutions, each with pooling, and two linear layers (LeNet-like), for grey pictures of size × size."""
    first, second, hidden = widths
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, first, 3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(first, second, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(second * (size // 4) ** 2, hidden),
            relu3=nn.ReLU(),
            fc2=nn.Linear(hidden, classes),
        )
    )


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm, around which the input is led (He et al. 2015).

    Where the shape changes, the way around takes every other position and fills the new channels with zeros
    ("option A" of the paper), so that it has no parameters.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        around = x[:, :, :: self.stride, :: self.stride]
        around = F.pad(around, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return torch.relu(y + around)


class ResNet(nn.Module):
    """A residual network for small pictures: one stage of `blocks` blocks for each of `widths`, halving the picture."""

    def __init__(self, channels: int, blocks: int, widths: tuple[int, ...], classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        before = widths[0]
        for stage, width in enumerate(widths, start=1):
            strides = [1 if stage == 1 else 2] + [1] * (blocks - 1)
            parts = []
            for stride in strides:
                parts.append(Block(before, width, stride))
                before = width
            setattr(self, f"layer{stage}", nn.Sequential(*parts))
        self.stages = len(widths)
        self.linear = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.linear(x.mean((2, 3)))
