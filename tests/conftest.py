"""What all tests share: one thread, a seed, a data folder of their own, and a task that trains in a blink."""

import importlib
import os
import tempfile

import pytest
import torch
from helpers import make_task
from torch.utils.flop_counter import FlopCounterMode

from pruninglab import measure
from pruninglab.criteria import CRITERIA
from pruninglab.statistics import STATISTICS
from pruninglab.tasks import Task, models

torch.set_num_threads(1)
torch.manual_seed(0)  # of what test files draw as they are read


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
def _seeded():
    """What a test draws is the same each time, also where it sets no seed."""
    torch.manual_seed(0)


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


@pytest.fixture
def counted_time(monkeypatch):
    """Latency as if each million operations took a millisecond: what a busy machine does is no matter of a test."""

    def counted(run, *inputs, repeats=30, threads=1):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run(*inputs)
        ms = counter.get_total_flops() / 1e6
        return measure.Latency(ms, ms, ms, repeats, threads)

    for place in (measure, importlib.import_module("pruninglab.latency")):
        monkeypatch.setattr(place, "latency", counted)


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


LONG_CHAPTERS = ("04_", "05_", "06_", "07_", "08_", "09_")


@pytest.hookimpl(tryfirst=True)  # before pytest itself leaves out what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long chapters in full are slow tests; each chapter's quick version, with another seed, is not."""
    for item in items:
        if item.path.suffix == ".ipynb" and item.path.name.startswith(LONG_CHAPTERS):
            item.add_marker(pytest.mark.slow)
