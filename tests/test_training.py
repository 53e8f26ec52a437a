"""Training: what it depends on, what it refuses, and networks that only seem to be alike."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import make_task
from torch import nn

from pruninglab import prune
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


def test_quiet_runs_stay_quiet_while_they_train_together(capsys):
    from pruninglab.progress import quietly, say

    home = make_task()

    def job(seed):
        with quietly():
            home.train(home.model(seed), seed=seed, on_step=lambda *_: say("loud") and None)

    together([partial(job, seed) for seed in range(2)])
    assert "loud" not in "".join(capsys.readouterr())


# ── half precision ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_half_precision_learns_as_single_does_and_is_rounded_at_the_end(dtype, optimizer):
    home = make_task(norm=True, optimizer=optimizer, lr=1e-3)
    half, single = home.model(0).to(dtype), home.model(0).to(dtype).float()
    masks = [prune(model, sparsity=0.5) for model in (half, single)]
    held = list(half.parameters())
    for model, mask in zip((half, single), masks, strict=True):
        home.train(model, masks=mask)
    assert all(one is other for one, other in zip(held, half.parameters(), strict=True))
    for name, value in half.state_dict().items():
        assert torch.equal(value, single.state_dict()[name].to(value.dtype))
        assert value.dtype == (dtype if value.is_floating_point() else torch.int64)
    assert not any(bool(half.get_parameter(name)[~mask].any()) for name, mask in masks[0].items())


def test_an_error_in_training_leaves_half_precision():
    home, model = make_task(), make_task().model(0).half()

    def failing(step, optimizer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        home.train(model, on_step=failing)
    assert {p.dtype for p in model.parameters()} == {torch.float16}


def test_a_loss_of_half_precision_is_no_multiple_of_what_half_precision_resolves():
    home, x = make_task(), torch.randn(40, 3).bfloat16()
    y = torch.arange(40) % 3
    torch.testing.assert_close(home.loss(x, y), home.loss(x.float(), y), rtol=0, atol=0)
