"""What tests build and compare with: a task that trains in a blink, and everything a function may not change."""

import json
import re
from pathlib import Path

import nbformat
import numpy as np
import torch
from torch import nn

from pruninglab import book
from pruninglab.tasks import Task, Training, models


def blobs(seed: int = 0, spread: float = 1.2):
    """Three clouds of points in eight dimensions, as the splits of a task."""
    generator = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn(3, 8, generator=generator)
    splits = {}
    for name, n in (("train", 320), ("validation", 60), ("test", 90)):
        y = torch.arange(n) % 3
        splits[name] = (centres[y] + spread * torch.randn(n, 8, generator=generator), y)
    return splits


def make_task(name: str = "tiny", steps: int = 30, norm: bool = False, splits=None, **recipe) -> Task:
    """A task that trains in some ten milliseconds. Made of closures, so that other processes can be sent it."""
    splits = blobs() if splits is None else splits
    mlp, Linear, Sequential, Norm, ReLU = models.mlp, nn.Linear, nn.Sequential, nn.BatchNorm1d, nn.ReLU

    def build():
        if norm:
            return Sequential(Linear(8, 16), Norm(16), ReLU(), Linear(16, 12), ReLU(), Linear(12, 3))
        return mlp(8, 16, 12, 3)

    return Task(name, lambda: splits, build, Training(**{"steps": steps, "batch": 32, "lr": 0.1} | recipe))


def snapshot(model: nn.Module) -> dict:
    """Everything of a model that a function may not change: values, gradients, modes, frozen parameters, hooks."""
    return {
        "state": {name: value.detach().clone() for name, value in model.state_dict().items()},
        "grad": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        "frozen": {name: p.requires_grad for name, p in model.named_parameters()},
        "mode": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: tuple(len(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks"))
            + tuple(len(getattr(module, kind)) for kind in ("_backward_hooks", "_backward_pre_hooks"))
            for name, module in model.named_modules()
        },
        "parameter hooks": {name: len(p._backward_hooks or ()) for name, p in model.named_parameters()},
    }


def same(one: dict, other: dict) -> bool:
    """Whether two snapshots are equal to the bit (NaN equals NaN)."""

    def equal(a, b):
        if a is None or b is None:
            return a is b
        return a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))

    for kind in one:
        if one[kind].keys() != other[kind].keys():
            return False
        test = equal if kind in ("state", "grad") else lambda a, b: a == b
        if not all(test(one[kind][name], other[kind][name]) for name in one[kind]):
            return False
    return True


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found, expected, **tolerance):
    torch.testing.assert_close(found, expected, **({"rtol": 1e-6, "atol": 1e-9} | tolerance))


def brute_force(costs, distortions, budget):
    """The least sum of distortions within the budget, by trying everything; None if nothing fits."""
    totals, sums = np.zeros(1, dtype=np.int64), np.zeros(1)
    for cost, distortion in zip(costs, distortions, strict=True):
        totals = np.add.outer(totals, cost).ravel()
        sums = np.add.outer(sums, distortion).ravel()
    fits = totals <= budget
    return sums[fits].min() if fits.any() else None


def run_quickly(chapter: book.Chapter, folder: Path) -> None:
    """Run a chapter's quick version with another seed; all its pictures have words."""
    book.run(chapter.path, folder / chapter.path.name, {"seed": 1, "fast": True})
    done = nbformat.read(folder / chapter.path.name, as_version=4)
    images = re.findall(r"<img [^>]*>", json.dumps(done, ensure_ascii=False))
    assert images
    assert all(re.search(r'alt=\\"[^"\\]{20,}', image) for image in images)
