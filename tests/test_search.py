"""`find_sparsity`: the sparsity it names was measured and holds, and the next step does not."""

import dataclasses
import importlib
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import make_task, same, snapshot
from torch import nn

from pruninglab import Masks, find_sparsity, prune
from pruninglab.allocation import global_
from pruninglab.recovery import finetune
from pruninglab.tasks import TASKS

module = importlib.import_module("pruninglab.search")


class Cliff(nn.Module):
    """A network whose accuracy falls at an exact place: right as long as `needed` of its 1000 weights are there."""

    def __init__(self, needed):
        super().__init__()
        self.fc = nn.Linear(1000, 1, bias=False)
        self.needed = needed
        self.fc.weight.data = 1 + torch.arange(1000.0).view(1, 1000)

    def forward(self, x):
        right = int(self.fc.weight.count_nonzero()) >= self.needed
        answer = nn.functional.one_hot(x.long().view(-1), 2).float()
        return answer if right else 1 - answer


@pytest.fixture
def cliff_task():
    y = torch.arange(100) % 2
    split = (y.float().view(-1, 1), y)
    return make_task("cliff", splits={"train": split, "validation": split, "test": split})


@pytest.mark.parametrize("needed", [1000, 999, 871, 500, 137, 20])
@pytest.mark.parametrize("tolerance", [0.01, 0.002])
def test_the_edge_is_found(cliff_task, needed, tolerance):
    model = Cliff(needed)
    before = snapshot(model)
    found = find_sparsity(model, cliff_task, tolerance=tolerance)
    assert same(before, snapshot(model))
    true = 1 - needed / 1000
    assert true - tolerance <= found.sparsity <= true + 0.0005
    assert found.masks.kept() >= needed
    assert found.accuracy == found.dense_accuracy == 1
    trials = found.trials
    assert list(trials) == ["sparsity", "achieved", "accuracy", "holds"]
    assert found.sparsity == found.masks.sparsity() == trials[trials["holds"]]["achieved"].max()
    broken = trials[~trials["holds"]]["sparsity"]
    if len(broken):
        assert broken.min() - trials[trials["holds"]]["sparsity"].max() <= tolerance, "the next step does not hold"


def test_the_result_holds_on_a_real_network():
    task = make_task(steps=60)
    model = task.trained()
    before = snapshot(model)
    found = find_sparsity(model, task, max_drop=0.05, tolerance=0.01)
    assert same(before, snapshot(model))
    assert found.dense_accuracy == task.accuracy(model, "validation")
    assert found.accuracy >= found.dense_accuracy - 0.05
    assert 0.1 < found.sparsity < 1
    again = prune(model, sparsity=found.sparsity)
    assert again == found.masks == Masks.of(model)
    assert task.accuracy(model, "validation") == found.accuracy
    broken = found.trials[~found.trials["holds"]]
    next_step = broken["sparsity"].min()
    assert next_step - found.sparsity <= 0.01 + 0.5 / 356
    prune(model, sparsity=next_step)
    assert task.accuracy(model, "validation") < found.dense_accuracy - 0.05


def test_repair_allows_more(tiny):
    model = tiny.trained()
    bare = find_sparsity(model, tiny, criterion="random", tolerance=0.05, max_drop=0.02)
    repaired = find_sparsity(
        model, tiny, criterion="random", tolerance=0.05, max_drop=0.02, recovery=partial(finetune, steps=60)
    )
    assert repaired.sparsity > bare.sparsity
    by_name = find_sparsity(model, tiny, tolerance=0.2, max_drop=0.5, recovery="finetune")
    assert by_name.accuracy >= by_name.dense_accuracy - 0.5


def test_arguments_of_prune_go_through(tiny):
    model = tiny.trained()
    found = find_sparsity(model, tiny, tolerance=0.2, max_drop=0.3, exclude="fc3", unit="row", allocation="uniform")
    assert list(found.masks) == ["fc1.weight", "fc2.weight"]


def test_accuracy_is_taken_on_the_split_that_is_named(tiny):
    model = tiny.trained()
    assert find_sparsity(model, tiny, tolerance=0.5, split="test").dense_accuracy == tiny.accuracy(model, "test")


def test_the_last_weights_of_a_small_network(cliff_task):
    """Nothing breaks it: the answer is the largest sparsity there is, not an error."""
    model = Cliff(0)
    model.fc = nn.Linear(10, 1, bias=False)
    found = find_sparsity(model, cliff_task, tolerance=0.002)
    assert found.masks.kept() == 1


def test_a_floor_that_cannot_be_kept_is_a_limit_like_any_other(tiny):
    model = tiny.trained()
    found = find_sparsity(model, tiny, max_drop=1.0, tolerance=0.01, allocation=partial(global_, min_keep=20))
    assert found.masks.kept() == pytest.approx(60, abs=5)


def test_an_error_that_has_nothing_to_do_with_sparsity_is_raised(tiny):
    model = tiny.trained()
    with pytest.raises(ValueError, match="unknown criterion"):
        find_sparsity(model, tiny, criterion="magnitud")
    with pytest.raises(ValueError, match="unknown recovery"):
        find_sparsity(model, tiny, recovery="finetun")


def test_a_task_may_be_named_and_numbers_may_be_numpys(tiny, monkeypatch):
    monkeypatch.setitem(TASKS, "tiny", tiny)
    model = tiny.trained()
    options = {"tolerance": 0.2, "criterion": "random", "max_drop": 0.5}
    one = find_sparsity(model, "tiny", **options, seed=np.int64(1))
    assert one.masks == find_sparsity(model, tiny, **options, seed=1).masks


@pytest.mark.parametrize(
    ("task", "options", "kind", "match"),
    [
        ("tny", {}, ValueError, "unknown task"),
        (3, {}, TypeError, "a task is a name or a Task, not 3"),
        (None, {"unit": "2:4"}, ValueError, r"unit 2:4 fixes sparsity=0\.5: there is none to find"),
        (None, {"seed": 0.5}, TypeError, r"seed must be a whole number, not 0\.5"),
        (None, {"recovery": 3}, TypeError, "a recovery is a name or a function, not 3"),
    ],
)
def test_what_cannot_be_searched_is_said_at_once(tiny, task, options, kind, match):
    with pytest.raises(kind, match=match):
        find_sparsity(tiny.model(), task or tiny, **options)


def test_a_recovery_that_does_harm(tiny):
    def ruin(model, masks, task, *, seed=0):
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        return 0

    with pytest.raises(ValueError, match="the recovery does harm"):
        find_sparsity(tiny.trained(), tiny, recovery=ruin)


@pytest.mark.parametrize("options", [{"max_drop": -0.1}, {"max_drop": 1.5}, {"tolerance": 0}, {"tolerance": 1}])
def test_arguments_out_of_range(tiny, options):
    with pytest.raises(ValueError, match="is a fraction, in"):
        find_sparsity(tiny.model(), tiny, **options)


# ── the store ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def prunings(data_folder, monkeypatch):
    """The sparsities that are really pruned to."""
    done, true = [], module.prune
    monkeypatch.setattr(module, "prune", lambda *a, **o: done.append(o["sparsity"]) or true(*a, **o))
    return done


def test_a_repeated_search_measures_nothing_anew(cliff_task, prunings):
    first = find_sparsity(Cliff(500), cliff_task, tolerance=0.01)
    n = len(prunings)
    again = find_sparsity(Cliff(500), cliff_task, tolerance=0.01)
    assert len(prunings) == n + 1, "the masks alone are made again"
    assert again.masks == first.masks
    pd.testing.assert_frame_equal(again.trials, first.trials)
    finer = find_sparsity(Cliff(500), cliff_task, tolerance=0.002)
    assert len(finer.trials) > len(first.trials)
    assert len(prunings) == n + 1 + len(finer.trials) - len(first.trials) + 1, "only what is new"


def test_whatever_makes_a_trial_is_part_of_its_key(cliff_task, prunings):
    for i, (model, options) in enumerate(
        [(Cliff(500), {}), (Cliff(400), {}), (Cliff(500), {"criterion": "random"}), (Cliff(500), {"seed": 1})], start=1
    ):
        found = find_sparsity(model, cliff_task, tolerance=0.25, **options)
        assert len(prunings) == i * (len(found.trials) + 1), (i, options)


def test_an_interrupted_search_goes_on(cliff_task, prunings):
    whole = find_sparsity(Cliff(500), cliff_task, tolerance=0.01, cache=False)
    prunings.clear()
    task = dataclasses.replace(cliff_task)
    true, calls = type(task).accuracy, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return true(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(task), "accuracy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            find_sparsity(Cliff(500), cliff_task, tolerance=0.01)
    done = len(prunings)
    resumed = find_sparsity(Cliff(500), cliff_task, tolerance=0.01)
    assert len(prunings) - done == len(whole.trials) - (done - 1) + 1
    assert resumed.masks == whole.masks
