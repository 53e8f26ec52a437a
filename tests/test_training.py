"""Training: what it depends on, what it refuses, and networks that only seem to be alike."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import make_task, same, snapshot
from torch import nn

from pruninglab import compare, prune
from pruninglab.graph import GraphError
from pruninglab.recipes import ANSWERS, ap, bip, lapp, polarize, precrop, sap
from pruninglab.recovery import keep_signs
from pruninglab.schedules import gradual, granet, iterative, regrow
from pruninglab.tasks import Task, Training, together
from pruninglab.tasks.stacked import stackable


def with_dropout(p, width=16):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Dropout(p), nn.Linear(width, 3))


def alike(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ── what it depends on ────────────────────────────────────────────────────────────────────────────────────────────


def test_dropout_is_drawn_by_the_seed_and_touches_no_other_randomness():
    home = replace(make_task(), build=partial(with_dropout, 0.5))
    first, again, other = (home.model(0) for _ in range(3))
    home.train(first, seed=0)
    torch.rand(3)
    before = torch.get_rng_state()
    home.train(again, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    home.train(other, seed=1)
    assert alike(first, again)
    assert not alike(first, other)


def test_dropout_of_a_step_does_not_depend_on_where_training_began():
    home = replace(make_task(), build=partial(with_dropout, 0.5))

    def drawn(start):
        model, seen = home.model(0), []
        model[2].register_forward_hook(lambda _m, x, y: seen.append((y == 0) & (x[0] != 0)))
        home.train(model, seed=0, lr=0.0, start=start, stop=20)
        return seen[-1]

    assert drawn(0).any()
    assert torch.equal(drawn(0), drawn(15))


class Squared(Task):
    """A task whose loss is its own."""

    def loss(self, outputs, targets):
        return (outputs - targets).square().mean()


def test_a_loss_of_its_own_is_what_is_trained_on():
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    splits = dict.fromkeys(("train", "validation", "test"), (x, x[:, :1] - 2 * x[:, 1:2]))
    home = Squared("squared", lambda: splits, lambda: nn.Linear(8, 1), Training(steps=300, batch=32, lr=0.05))
    model = home.model(0)
    losses = home.train(model)
    assert losses[-1] < 0.01 * losses[0]
    assert model.weight[0, :2].tolist() == pytest.approx([1, -2], abs=0.05)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"steps": -1}, "steps must be 0 or more, not -1"),
        ({"batch": 0}, "batch must be 1 or more, not 0"),
        ({"lr": math.nan}, "lr must be a finite number of 0 or more, not nan"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), not 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be a finite number"),
        ({"warmup": -1.0}, "warmup must be a fraction of the steps"),
        ({"clip": 0.0}, "clip must be more than 0, or None, not 0.0"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'"),
    ],
)
def test_a_recipe_that_cannot_be(how, words):
    with pytest.raises(ValueError, match=words):
        Training(**how)


# ── networks that only seem to be alike ───────────────────────────────────────────────────────────────────────────


def test_networks_with_other_settings_are_no_stack():
    x = torch.randn(40, 8)

    def norm(momentum):
        return nn.Sequential(nn.Flatten(), nn.Linear(8, 3), nn.Hardtanh(-momentum, momentum))

    assert stackable([norm(0.5), norm(0.5)], x)
    assert not stackable([norm(0.5), norm(0.1)], x)
    assert not stackable([with_dropout(0.5), with_dropout(0.5)], x)


class Centred(nn.Module):
    """Treats samples alike in evaluation only."""

    def forward(self, x):
        return x - x.mean(0) if self.training else x


class Mean(nn.Module):
    """Sums over what a stack of linear layers would once have flattened."""

    def forward(self, x):
        return x.mean(1)


class Reads(nn.Module):
    """Uses a layer's weight itself."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x):
        return nn.functional.linear(x, self.layer.weight)


@pytest.mark.parametrize("odd", [Centred, Reads, partial(nn.Dropout, 0.3)])
def test_what_cannot_be_a_stack_trains_as_alone(odd):
    def build():
        return nn.Sequential(odd(), nn.Linear(3, 3)) if odd is Reads else nn.Sequential(nn.Linear(8, 3), odd())

    home = replace(make_task(), build=build)
    alone = [home.model(seed) for seed in range(2)]
    for seed, model in enumerate(alone):
        home.train(model, seed=seed)
    beside = [home.model(seed) for seed in range(2)]
    together([partial(home.train, model, seed=seed) for seed, model in enumerate(beside)])
    assert all(alike(*pair) for pair in zip(alone, beside, strict=True))


def test_rows_of_several_vectors_can_be_stacked():
    def build():
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Mean(), nn.Linear(8, 3))

    models = [build(), build()]
    assert stackable(models, torch.randn(20, 5, 6))


# ── one that fails ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("own_objective", [False, True])
def test_a_failure_is_that_of_one_job(own_objective):
    home = make_task()

    def job(seed):
        def on_step(step, _optimizer):
            if seed == 1 and step == 5:
                raise ValueError("enough")

        model = home.model(seed)
        options = {"objective": lambda m, x, y: home.loss(m(x), y)} if own_objective else {}
        try:
            home.train(model, seed=seed, on_step=on_step, **options)
        except ValueError as error:
            return str(error)
        return model

    first, second, third = together([partial(job, seed) for seed in range(3)])
    assert second == "enough"
    for seed, model in ((0, first), (2, third)):
        alone = job(seed)
        for a, b in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


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


# ── doors ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("schedule", ["rigl", "set", "granet"])
@pytest.mark.parametrize("unit", ["channel", "row", "2x2"])
def test_exchanges_of_single_weights_are_for_single_weights(schedule, unit):
    with pytest.raises(ValueError, match=f"schedule '{schedule}' exchanges single weights: unit must be 'weight'"):
        compare(task=make_task(), unit=unit, schedule=schedule, sparsity=0.5)
    home = make_task()
    answers = replace(ANSWERS[schedule], unit=unit)
    model = home.model(0)
    before = snapshot(model)
    with pytest.raises(ValueError, match="exchanges single weights"):
        answers(model, home, sparsity=0.5)
    assert same(snapshot(model), before)


@pytest.mark.parametrize("schedule", [gradual, regrow, granet])
def test_every_is_looked_at_when_a_schedule_is_made(schedule):
    with pytest.raises(ValueError, match="every is a number of steps of at least 1, not 0"):
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", [lapp, polarize])
def test_any_precision_will_do(method, dtype):
    home = in_precision(dtype)
    model = home.model(0)
    masks = method(model, home, sparsity=0.5)
    assert 0 < masks.kept() < masks.total()
    assert all(p.dtype == dtype for p in model.parameters())


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


# ── comparisons ───────────────────────────────────────────────────────────────────────────────────────────────────


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


def test_quiet_runs_stay_quiet_while_they_train_together(capsys):
    from pruninglab.progress import quietly, say

    home = make_task()

    def job(seed):
        with quietly():
            home.train(home.model(seed), seed=seed, on_step=lambda *_: say("loud") and None)

    together([partial(job, seed) for seed in range(2)])
    assert "loud" not in "".join(capsys.readouterr())


def test_one_trained_network_says_how_to_compare_on_it():
    from language_tasks import tiny_text_task

    alone = replace(tiny_text_task(), ready=lambda: tiny_text_task().model(0), only_ready=True)
    with pytest.raises(ValueError, match=r"all there is \(seeds=\[0\]\)"):
        alone.trained(1)
