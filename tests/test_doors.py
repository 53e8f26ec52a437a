"""What training methods refuse before they begin, and odd networks that they take."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import make_task, same, snapshot
from small_llama import language_task
from torch import nn

from pruninglab import compare, prune
from pruninglab.graph import GraphError
from pruninglab.recipes import ANSWERS, ap, bip, lapp, polarize, precrop, sap
from pruninglab.recovery import RECOVERIES, keep_signs
from pruninglab.schedules import SCHEDULES, gradual, granet, iterative, regrow

# ── doors ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("schedule", ["rigl", "set", "granet"])
@pytest.mark.parametrize("unit", ["channel", "row", "2x2"])
def test_exchanges_of_single_weights_are_for_single_weights(schedule, unit):
    with pytest.raises(ValueError, match=f"schedule '{schedule}' exchanges single weights: unit must be 'weight'"):
        compare(task=make_task(), unit=unit, schedule=schedule, sparsity=0.5)
    with pytest.raises(ValueError, match="exchanges single weights"):
        compare(task=make_task(), unit=unit, schedule=partial(SCHEDULES[schedule]), sparsity=0.5)
    home = make_task()
    answers = replace(ANSWERS[schedule], unit=unit)
    model = home.model(0)
    before = snapshot(model)
    with pytest.raises(ValueError, match="exchanges single weights"):
        answers(model, home, sparsity=0.5)
    assert same(snapshot(model), before)


@pytest.mark.parametrize("schedule", [gradual, regrow, granet])
def test_every_is_looked_at_when_a_schedule_is_made(schedule):
    with pytest.raises(ValueError, match="every must be at least 1, not 0"):
        schedule(every=0)
    with pytest.raises(TypeError, match=r"every must be a whole number, not 2\.5"):
        schedule(every=2.5)


def test_numpy_counts_rounds_too():
    import numpy as np

    assert iterative(np.int64(3)).__name__ == "iterative(3)"


@pytest.mark.parametrize(
    ("change", "words"),
    [({"criterion": "magnitud"}, "Did you mean 'magnitude'"), ({"start": "untraind"}, "unknown start 'untraind'")],
)
def test_wrong_answers_are_told_before_anything_is_trained(change, words):
    home = make_task()
    model = home.model(0)
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        replace(ANSWERS["lottery"], **change)(model, home, sparsity=0.5)
    assert same(snapshot(model), before)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        (lapp, {"flops": 1e12}, "is not possible|at most"),
        (lapp, {"flops": 1.0}, "is not possible|at least|least"),
        (lapp, {"sparsity": 0.5, "steps": 0}, "steps must be at least 1, not 0"),
        (lapp, {"sparsity": 0.5, "strength": math.nan}, "strength is a weight of 0 or more, not nan"),
        (polarize, {"sparsity": 0.5, "steps": 0}, "steps must be at least 1, not 0"),
        (polarize, {"sparsity": 0.5, "polarization": math.nan}, "weights ≥ 0, not nan"),
        (bip, {"sparsity": 0.5, "mask_lr": math.inf}, "must be positive, not mask_lr=inf"),
    ],
)
def test_numbers_that_cannot_be_change_nothing(method, options, words):
    home = make_task()
    model = home.model(0)
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        method(model, home, **options)
    assert same(snapshot(model), before)


# ── odd networks ──────────────────────────────────────────────────────────────────────────────────────────────────


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.out(self.second(self.first(x).relu()).relu())


@pytest.mark.parametrize("method", [lapp, polarize, precrop])
def test_what_cannot_be_cut_out_is_told_before_anything_is_trained(method):
    home = replace(make_task(), build=Tied)
    model = home.model(0)
    before = snapshot(model)
    with pytest.raises(GraphError):
        method(model, home, sparsity=0.5)
    assert same(snapshot(model), before)


def in_precision(dtype):
    home = make_task()
    data = {name: (x.to(dtype), y) for name, (x, y) in home.data.items()}
    return replace(home, load=lambda: data, build=lambda: home.build().to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [lapp, polarize, bip, sap])
def test_any_precision_will_do(method, dtype):
    home = in_precision(dtype)
    model = home.model(0)
    masks = method(model, home, sparsity=0.5)
    assert 0 < masks.kept() < masks.total()
    assert all(p.dtype == dtype and bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("recovery", sorted(RECOVERIES))
def test_a_language_model_of_half_precision_recovers(recovery):
    home = language_task()
    home = replace(home, build=lambda: language_task().build().half())
    model = home.model(0)
    masks = prune(model, sparsity=0.5)
    RECOVERIES[recovery](model, masks, home)
    assert all(p.dtype == torch.float16 and bool(p.isfinite().all()) for p in model.parameters())


def test_weights_that_begin_at_zero_are_no_pruned_ones():
    def build():
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        nn.init.zeros_(model[2].weight)
        return model

    home = replace(make_task(steps=60), build=build)
    model = home.model(0)
    masks = sap(model, home, sparsity=0.2)
    assert masks["2.weight"].any()
    assert home.accuracy(model) > 0.8


def test_training_that_leaves_the_numbers_is_told():
    home = make_task(lr=1e30)
    with pytest.raises(ValueError, match="NaN or infinite at step"):
        bip(home.model(0), home, sparsity=0.5)


@pytest.mark.parametrize("sparsity", [0.0, 0.01])
def test_ap_takes_what_little_there_is(sparsity):
    home = make_task()
    masks = ap(home.model(0), home, sparsity=sparsity)
    assert masks.kept() == int(masks.total() * (1 - sparsity) + 0.5)


def test_a_negative_seed_begins_with_the_weights_that_are_handed_over():
    home = make_task(steps=0)
    model = home.model(5)
    before = snapshot(model)["state"]
    ANSWERS["snip"](model, home, sparsity=0.0, seed=-1, samples=16)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_sign_of_a_single_weight_keeps_its_size():
    home = replace(make_task(steps=0), build=lambda: nn.Sequential(nn.Linear(8, 1), nn.Linear(1, 1), nn.Linear(1, 3)))
    model = home.model(0)
    before = model[1].weight.item()
    keep_signs(model, prune(model, sparsity=0.0), home)
    assert model[1].weight.item() == pytest.approx(before)
    assert all(p.isfinite().all() for p in model.parameters())
