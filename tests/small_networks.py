"""Small networks that use what a layer gives in unlike ways, images for them, and the levels of their layers."""

import torch
from networks import Net
from torch import nn

from pruninglab import criteria
from pruninglab.ladders import weight_ladders
from pruninglab.layers import prunable
from pruninglab.scoring import layer_scores


def conv(a, b, k=3, **options):
    return nn.Conv2d(a, b, k, padding=k // 2, **options)


def residual(self, x):
    x = torch.relu(self.norm(self.stem(x)))
    y = self.second(torch.relu(self.first(x)))
    y += x  # in place, on what a module returned
    return self.head(torch.relu(y).mean((2, 3)))


def _concatenated(self, x):
    x = self.stem(x)
    return self.head(torch.cat([self.left(x), self.right(x), x], 1).mean((2, 3)))


def _shared(self, x):
    x = self.stem(x)
    for _ in range(3):
        x = torch.relu(self.again(x))
    return self.head(x.mean((2, 3)))


def _in_place(self, x):
    x = self.act(self.stem(x))
    y = self.first(x)
    z = self.act(y)  # the same module again; it writes into y, and returns y itself
    z += 1
    return self.head((self.second(z) + y).mean((2, 3)))


def _nested(self, x):
    return self.head(self.body(self.stem(x)).mean((2, 3)))


NETWORKS = {
    "residual": lambda: Net(
        residual, stem=conv(2, 4), norm=nn.BatchNorm2d(4), first=conv(4, 4), second=conv(4, 4), head=nn.Linear(4, 3)
    ),
    "concatenated": lambda: Net(
        _concatenated, stem=conv(2, 4), left=conv(4, 3), right=conv(4, 5, groups=1), head=nn.Linear(12, 3)
    ),
    "shared": lambda: Net(_shared, stem=conv(2, 4), again=conv(4, 4, groups=2), head=nn.Linear(4, 3)),
    "in place": lambda: Net(
        _in_place, stem=conv(2, 4), act=nn.ReLU(inplace=True), first=conv(4, 4), second=conv(4, 4), head=nn.Linear(4, 3)
    ),
    "nested": lambda: Net(
        _nested,
        stem=conv(2, 4),
        body=nn.Sequential(conv(4, 8), nn.Sequential(nn.ReLU(inplace=True), conv(8, 8, groups=8)), conv(8, 4, 1)),
        head=nn.Linear(4, 3),
    ),
}


def images():
    return torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(2))


def ladders_of(model, levels=5, exclude=()):
    layers = prunable(model, exclude)
    return weight_ladders(layer_scores(model, layers, criteria.find("magnitude"), None, exclude=exclude), levels)
