"""What all tests share: one thread, a data folder of their own, and a task that trains in a blink."""

import os
import tempfile

import pytest
import torch
from torch import nn

from pruninglab.criteria import CRITERIA
from pruninglab.statistics import STATISTICS
from pruninglab.tasks import Task, Training, models

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Keep the tests out of the user's cache, unless told where to put things."""
    if "PRUNINGLAB_DATA" not in os.environ:
        config._pruninglab_data = tempfile.TemporaryDirectory(prefix="pruninglab-tests-")
        os.environ["PRUNINGLAB_DATA"] = config._pruninglab_data.name


def pytest_unconfigure(config: pytest.Config) -> None:
    folder = getattr(config, "_pruninglab_data", None)
    if folder is not None:
        os.environ.pop("PRUNINGLAB_DATA", None)
        folder.cleanup()


@pytest.fixture(autouse=True)
def _tables_as_before():
    """What a test registers is gone after it."""
    before = dict(CRITERIA), dict(STATISTICS)
    yield
    for table, old in zip((CRITERIA, STATISTICS), before, strict=True):
        table.clear()
        table.update(old)


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """A fresh, empty data folder."""
    monkeypatch.setenv("PRUNINGLAB_DATA", str(tmp_path))
    return tmp_path


def blobs(seed: int = 0, spread: float = 1.2):
    """Three clouds of points in eight dimensions, as the splits of a task."""
    generator = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn(3, 8, generator=generator)
    splits = {}
    for name, n in (("train", 192), ("validation", 60), ("test", 90)):
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


@pytest.fixture
def tiny() -> Task:
    return make_task()


@pytest.fixture
def mlp():
    """A small untrained network, 6-7-5-3."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.mlp(6, 7, 5, 3).eval()


@pytest.fixture
def batch():
    """Eleven inputs and labels for `mlp`."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(11, 6, generator=generator), torch.randint(3, (11,), generator=generator)


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
