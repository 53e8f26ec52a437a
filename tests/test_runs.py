"""Runs of a comparison: each by itself, and stored under all that makes its result."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import make_task
from torch import nn

from pruninglab import compare
from pruninglab.schedules import gradual
from pruninglab.statistics import STATISTICS, statistic
from pruninglab.tasks import Task


def test_in_a_comparison_the_other_runs_go_on():
    calls = []

    def sometimes(weight, grad):
        calls.append(0)
        return weight * math.nan if len(calls) > 4 else weight.abs()

    with pytest.warns(UserWarning, match="runs of 'sometimes' failed"):
        table = compare(
            sometimes, task=make_task(), sparsity=0.5, schedule=gradual(every=10), seeds=2, calibration=8, cache=False
        )
    assert table.query("criterion == 'sometimes'")["note"].str.contains("NaN").any()
    assert table.query("criterion == 'magnitude'")["achieved"].notna().all()


def test_what_a_criterion_remembers_of_one_run_is_not_for_another():
    class Counting:
        def __init__(self):
            self.seen = 0

        def __call__(self, weight):
            self.seen += 1
            return weight.abs() if self.seen <= 3 else -weight.abs()

    rows = compare(Counting(), task=make_task(), sparsity=0.8, seeds=[4, 0], cache=False)
    alone = compare(Counting(), task=make_task(), sparsity=0.8, seeds=[0], cache=False)
    own = rows.query("criterion == 'Counting' and seed == 0")["accuracy"].item()
    assert own == alone.query("criterion == 'Counting'")["accuracy"].item()


def test_the_generator_is_not_the_one_that_drew_the_first_weights():
    found = []

    def drawn(weight, generator, initial_weight):
        draws = torch.rand(weight.shape, generator=generator)
        found.append(abs(float(torch.corrcoef(torch.stack([draws.flatten(), initial_weight.flatten()]))[0, 1])))
        return draws

    compare(drawn, task=make_task(), sparsity=0.5, seeds=2, cache=False)
    assert max(found) < 0.6


class Read(Task):
    """A task whose trained network comes from elsewhere."""

    def trained(self, seed=0, *, until=1.0):
        return self.model(seed + SHIFT["by"])


SHIFT = {"by": 0}


def test_rows_are_stored_under_the_network_that_they_began_with(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNINGLAB_DATA", str(tmp_path))
    base = make_task()
    home = Read("read", base.load, base.build, base.training)

    def rows(**options):
        return compare(task=home, sparsity=0.5, seeds=1, **options)["accuracy"].tolist()

    first = rows()
    monkeypatch.setitem(SHIFT, "by", 1)
    assert rows() == rows(cache=False) != first


def test_a_task_is_looked_at_each_time():
    kind = nn.ReLU
    home = replace(make_task(), build=lambda: nn.Sequential(nn.Linear(8, 16), kind(), nn.Linear(16, 3)))
    before = home.version
    kind = nn.Tanh
    assert home.version != before


def test_one_trained_network_says_how_to_compare_on_it():
    from language_tasks import tiny_text_task

    alone = replace(tiny_text_task(), ready=lambda: tiny_text_task().model(0), only_ready=True)
    with pytest.raises(ValueError, match=r"all there is \(seeds=\[0\]\)"):
        alone.trained(1)


def test_a_statistic_of_one_s_own_may_look_at_the_initial_weights():
    @statistic
    def drifted(weight, initial_weight):
        return weight - initial_weight

    def movement(drifted):
        return drifted.abs()

    try:
        rows = compare(movement, task=make_task(), sparsity=0.5, seeds=1, cache=False)
    finally:
        del STATISTICS["drifted"]
    assert rows.query("criterion == 'movement'")["accuracy"].notna().all()
