"""Attacks against closed forms of linear classifiers, finite differences, and search over the whole ball."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import make_task, same, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruninglab.attacks import ATTACKS, fgsm, pgd

both = pytest.mark.parametrize("attack", [fgsm, pgd], ids=["fgsm", "pgd"])


def linear(classes, width=7, seed=0):
    model = nn.Linear(width, classes).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


def samples(n, width=7, classes=2, seed=0):
    generator = torch.Generator().manual_seed(100 + seed)
    x = torch.rand(n, width, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=generator)


@torch.no_grad()
def worst_margins(model, x, y, epsilon, limits):
    """The least that logit y − logit j can become in the ball, (n, classes): a sum of independent choices."""
    found = torch.full((len(x), model.out_features), math.inf, dtype=torch.float64)
    for i, (picture, label) in enumerate(zip(x, y, strict=True)):
        for j in set(range(model.out_features)) - {int(label)}:
            direction = model.weight[label] - model.weight[j]
            margin = float(model.bias[label] - model.bias[j])
            for value, slope in zip(picture.tolist(), direction.tolist(), strict=True):
                ends = value - epsilon, value + epsilon
                if limits is not None:  # a value that is beyond them may stay, but goes no further
                    ends = max(ends[0], min(limits[0], value)), min(ends[1], max(limits[1], value))
                margin += min(slope * end for end in ends)
            found[i, j] = margin
    return found


@torch.no_grad()
def margins(model, x, y):
    logits = model(x)
    others = logits.scatter(1, y[:, None], -math.inf)
    return logits.gather(1, y[:, None]).squeeze(1) - others.max(1).values


# ── linear classifiers ────────────────────────────────────────────────────────────────────────────────────────────


@both
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), epsilon=st.floats(0, 0.6), limits=st.sampled_from([None, (0.0, 1.0), (0.3, 0.6)]))
def test_of_two_classes_the_worst_point_is_found_exactly(attack, seed, epsilon, limits):
    model, (x, y) = linear(2, seed=seed), samples(12, seed=seed)
    worst = worst_margins(model, x, y, epsilon, limits).min(1).values
    found = margins(model, attack(model, x, y, epsilon, limits=limits), y)
    torch.testing.assert_close(found, worst, rtol=0, atol=1e-9)


@both
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), epsilon=st.floats(0, 0.6))
def test_of_four_classes_no_attack_beats_the_bound(attack, seed, epsilon):
    model, (x, y) = linear(4, seed=seed), samples(12, classes=4, seed=seed)
    bound = worst_margins(model, x, y, epsilon, (0, 1)).min(1).values
    found = margins(model, attack(model, x, y, epsilon, limits=(0, 1)), y)
    assert bool((found >= bound - 1e-9).all())
    if attack is pgd and epsilon > 0.05:
        assert float(found.mean()) < float(margins(model, x, y).mean())


def test_fgsm_follows_the_closed_form_of_softmax_regression():
    model, (x, y) = linear(4), samples(20, classes=4)
    probabilities = torch.softmax(x @ model.weight.T + model.bias, 1)
    gradient = (probabilities - F.one_hot(y, 4)) @ model.weight
    assert torch.equal(fgsm(model, x, y, 0.1), x + 0.1 * gradient.sign())


@both
def test_a_sure_network_is_attacked_as_well_as_an_unsure_one(attack):
    model, (x, _) = linear(2), samples(50)
    sure = nn.Linear(7, 2)
    with torch.no_grad():
        sure.weight.copy_(model.weight * 9)
        sure.bias.copy_(model.bias * 9)
    x = x.float()
    y = sure(x).argmax(1)
    assert float(margins(sure, x, y).max()) > 20, "so that its probability is 1 in float32"
    worst = worst_margins(model, x.double(), y, 0.2, None).min(1).values
    torch.testing.assert_close(margins(sure, attack(sure, x, y, 0.2), y).double() / 9, worst, rtol=0, atol=1e-5)


# ── other networks ────────────────────────────────────────────────────────────────────────────────────────────────


def curved(seed=0, width=6):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(width, 9), nn.Tanh(), nn.Linear(9, 3)).double()


@torch.no_grad()
def loss(model, x, y):
    return F.cross_entropy(model(x), y, reduction="none")


def test_fgsm_follows_finite_differences():
    model, (x, y) = curved(), samples(10, width=6, classes=3)
    moved = (fgsm(model, x, y, 0.05) - x) / 0.05
    tiny = 1e-6
    for i in range(6):
        step = tiny * F.one_hot(torch.tensor(i), 6)
        slope = (loss(model, x + step, y) - loss(model, x - step, y)) / (2 * tiny)
        assert float(slope.abs().min()) > 1e-7, "too flat to know the sign"
        torch.testing.assert_close(moved[:, i], slope.sign(), rtol=0, atol=1e-9)


class Valley(nn.Module):
    """Of one number: surest of class 0 everywhere but around 0.3."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.cat([4 * (x - 0.3).abs() * self.scale, torch.ones_like(x)], 1)


def test_many_steps_find_what_one_step_jumps_over():
    model, x, y = Valley(), torch.zeros(8, 1), torch.zeros(8, dtype=torch.int64)
    line = torch.linspace(-1, 1, 2001)[:, None]
    worst = float(loss(model, line, torch.zeros(2001, dtype=torch.int64)).max())
    assert torch.equal(fgsm(model, x, y, 1.0), torch.ones(8, 1))
    found = loss(model, pgd(model, x, y, 1.0, steps=200), y)
    assert float(loss(model, fgsm(model, x, y, 1.0), y).max()) < worst - 0.5
    assert float(found.min()) > worst - 0.05


def test_on_a_trained_network_pgd_is_the_stronger():
    task = make_task(splits=None, steps=200)
    model = task.model()
    task.train(model)
    x, y = task.data["test"]
    clean = loss(model, x, y).mean()
    one, many = (loss(model, attack(model, x, y, 0.8), y).mean() for attack in (fgsm, pgd))
    assert clean < one < many


# ── what both promise ─────────────────────────────────────────────────────────────────────────────────────────────


@both
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999), epsilon=st.floats(0, 2), limits=st.sampled_from([None, (0.0, 1.0), (0.3, 0.6), (2, 3)])
)
def test_nothing_leaves_the_ball_or_the_limits(attack, seed, epsilon, limits):
    model, (x, y) = curved(seed), samples(5, width=6, classes=3, seed=seed)
    found = attack(model, x, y, epsilon, limits=limits)
    assert float((found - x).abs().max()) <= epsilon + 1e-12
    if limits is not None:  # what was beyond them goes no further
        assert bool((found >= x.clamp(max=limits[0]) - 1e-12).all())
        assert bool((found <= x.clamp(min=limits[1]) + 1e-12).all())


@both
def test_epsilon_zero_changes_nothing(attack):
    model, (x, y) = curved(), samples(5, width=6, classes=3)
    assert torch.equal(attack(model, x, y, 0, limits=(0.4, 0.5)), x)


def trembling():
    """A network in all the states that an attack must neither use nor change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 3))
        net(torch.randn(30, 6)).square().sum().backward()
    net[0].bias.requires_grad_(False)
    net[0].register_forward_hook(lambda *_: None)
    net[1].eval()
    return net


@both
def test_the_model_and_the_generators_are_left_as_they_were(attack):
    net, (x, y) = trembling(), samples(20, width=6, classes=3)
    x = x.float()
    before, state, inputs = snapshot(net), torch.get_rng_state(), x.clone()
    found = attack(net, x, y, 0.1)
    assert same(before, snapshot(net))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(x, inputs)
    assert not found.requires_grad
    assert not x.requires_grad
    assert torch.equal(found, attack(net.eval(), x, y, 0.1)), "it is attacked as it is when it is used"
    with torch.no_grad():
        assert torch.equal(found, attack(net, x, y, 0.1))
    net.requires_grad_(False)
    assert torch.equal(found, attack(net, x, y, 0.1))


def test_the_random_start_comes_from_the_seed():
    model, (x, y) = curved(), samples(30, width=6, classes=3)

    def start(seed):
        return pgd(model, x, y, 0.5, steps=1, step=0, seed=seed)

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))
    generator = torch.Generator().manual_seed(1)
    first, second = start(generator), start(generator)
    assert torch.equal(first, start(1))
    assert not torch.equal(first, second)
    away = (start(1) - x) / 0.5  # uniform in the ball
    assert float(away.std()) == pytest.approx(1 / math.sqrt(3), rel=0.1)
    assert abs(float(away.mean())) < 0.1


def test_outputs_with_logits_are_understood():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = curved()

        def forward(self, x):
            return type("Output", (), {"logits": self.inner(x)})()

    x, y = samples(5, width=6, classes=3)
    assert torch.equal(fgsm(Wrapped(), x, y, 0.1), fgsm(curved(), x, y, 0.1))


@pytest.mark.parametrize("name", sorted(ATTACKS))
@pytest.mark.parametrize(
    ("x", "y", "epsilon", "limits", "message"),
    [
        (torch.ones(2, 6, dtype=torch.int64), torch.zeros(2), 0.1, None, "must be floats, not torch.int64"),
        (torch.rand(2, 6), torch.zeros(3, dtype=torch.int64), 0.1, None, r"one class for each of 2 inputs.*\(3,\)"),
        (torch.rand(2, 6), torch.zeros(2, 4, dtype=torch.int64), 0.1, None, r"labels of shape \(2, 4\)"),
        (torch.rand(2, 6), torch.zeros(2, dtype=torch.int64), -0.1, None, "0 or more, not -0.1"),
        (torch.rand(2, 6), torch.zeros(2, dtype=torch.int64), math.nan, None, "0 or more, not nan"),
        (torch.rand(2, 6), torch.zeros(2, dtype=torch.int64), 0.1, (1, 0), r"in this order, not \(1, 0\)"),
    ],
)
def test_errors_say_what_is_allowed(name, x, y, epsilon, limits, message):
    with pytest.raises(ValueError, match=message):
        ATTACKS[name](curved().float(), x, y, epsilon, limits=limits)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": 0}, "steps must be at least 1, not 0"), ({"step": -1.0}, "not -1.0"), ({"step": math.nan}, "not nan")],
)
def test_errors_of_steps(options, message):
    with pytest.raises(ValueError, match=message):
        pgd(curved(), *samples(2, width=6, classes=3), 0.1, **options)
