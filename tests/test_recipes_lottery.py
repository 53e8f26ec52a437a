"""BiP against a plain loop and against autograd through the inner problem; AP's and SAP's rounds, one by one."""

import math
from dataclasses import fields
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from helpers import make_task
from recipe_tasks import make
from torch import nn
from torch.func import functional_call

from pruninglab import prune
from pruninglab.masks import Masks
from pruninglab.recipes import recipe
from pruninglab.recipes.ap import ap, negative_movement, plan
from pruninglab.recipes.bip import bip, mask_gradient
from pruninglab.recipes.sap import sap
from pruninglab.tasks import Task
from pruninglab.tasks.training import batch_index

UNSTRUCTURED = ("ap", "bip", "sap")


# ── promises of all ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "sparsity"), [("mlp", 0.5), ("mlp", 0.87), ("resnet", 0.6), ("grouped", 0.333)])
@pytest.mark.parametrize("name", UNSTRUCTURED)
def test_the_count_is_exact_and_the_zeros_are_written(name, sparsity, kind):
    t = make(kind, steps=5)
    model = t.model(0)
    masks = recipe(name)(model, t, sparsity=sparsity)
    assert masks.kept() == prune(t.model(0), sparsity=sparsity).kept()
    assert all((model.get_parameter(layer)[~mask] == 0).all() for layer, mask in masks.items())
    assert masks == Masks.of(model)  # and no others
    assert not model.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", UNSTRUCTURED)
def test_the_same_call_gives_the_same_masks_and_weights(name):
    t = make("cnn", steps=8)
    results = []
    for seed in (0, 0, 1):
        model = t.model(0)
        masks = recipe(name)(model, t, sparsity=0.5, seed=seed)
        results.append((masks, {n: p.detach().clone() for n, p in model.state_dict().items()}))
    (one, state), (two, again), (other, _) = results
    assert one == two
    assert all(torch.equal(state[n], again[n]) for n in state)
    assert one != other


@pytest.mark.parametrize("name", UNSTRUCTURED)
def test_sparsity_0_is_training_alone(name):
    t = make_task()
    model, trained = t.model(0), t.model(0)
    masks = recipe(name)(model, t, sparsity=0.0, steps=20, **({"share": 0.0} if name == "ap" else {}))
    t.train(trained, steps=20)
    assert masks.kept() == masks.total()
    for found, expected in zip(model.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("bip", {"sparsity": 1.0}, r"fraction removed, in \[0, 1\)"),
        ("bip", {"sparsity": 90}, "write 0.9"),
        ("bip", {"sparsity": 0.9999}, "would leave none"),
        ("bip", {"sparsity": 0.5, "steps": 0}, "steps must be at least 1, not 0"),
        ("bip", {"sparsity": 0.5, "mask_lr": 0.0}, "must be positive, not mask_lr=0.0"),
        ("bip", {"sparsity": 0.5, "gamma": -1.0}, "gamma=-1.0"),
        ("ap", {"sparsity": -0.1}, r"fraction removed, in \[0, 1\)"),
        ("ap", {"sparsity": 0.9999}, "would leave none"),
        ("ap", {"sparsity": 0.5, "steps": 0}, "steps must be at least 1, not 0"),
        ("ap", {"sparsity": 0.5, "rounds": 0}, "rounds must be at least 1, not 0"),
        ("ap", {"sparsity": 0.5, "share": 1.0}, r"in \[0, 1\), not 1.0"),
        ("ap", {"sparsity": 0.5, "rounds": 2, "share": 0.4}, r"share=0.4 .* more than the 0.293 that each of 2 rounds"),
        ("ap", {"sparsity": 0.0, "share": 0.02}, "more than the 0 that each of 1 rounds"),
        ("sap", {"sparsity": 0.9999}, "would leave none"),
        ("sap", {"sparsity": 0.5, "steps": 0}, "steps must be at least 1, not 0"),
        ("sap", {"sparsity": 0.5, "rounds": 0}, "rounds must be at least 1, not 0"),
        ("sap", {"sparsity": 0.5, "p": 2.0}, "0 < p < q, not p=2.0, q=2.0"),
        ("sap", {"sparsity": 0.5, "beta": 1.0}, r"in \(0, 1\), not 1.0"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(name, options, words):
    t = make_task(steps=3)
    model = t.model(0)
    with pytest.raises(ValueError, match=words):
        recipe(name)(model, t, **options)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), t.model(0).parameters(), strict=True))


# ── BiP ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _problem(seed, n=7):
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(n, dtype=torch.float64, generator=generator)
    a = torch.randn(n, n, dtype=torch.float64, generator=generator)
    m = torch.rand(n, dtype=torch.float64, generator=generator)
    m[:2] = torch.tensor([0.0, 1.0])
    return c, a @ a.T / n, m.requires_grad_()


@pytest.mark.parametrize("gamma", [0.3, 1.0, 40.0])
def test_the_mask_gradient_is_autograd_through_the_inner_minimum(gamma):
    """ℓ(z) = c·z has no curvature, so the formula is exact: θ*(m) = −m ⊙ c / γ and dℓ/dm = −2 m ⊙ c² / γ."""
    c, _, m = _problem(0)
    theta = -m * c / gamma
    inner = theta.detach().requires_grad_()
    (slope,) = torch.autograd.grad(c @ (m.detach() * inner) + gamma / 2 * inner.square().sum(), inner)
    torch.testing.assert_close(slope, torch.zeros_like(c))  # θ is where the inner problem has its minimum
    (expected,) = torch.autograd.grad(c @ (m * theta), m)
    found = mask_gradient(theta.detach(), m.detach(), c, gamma)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, -2 * m.detach() * c**2 / gamma)


def test_the_error_of_the_mask_gradient_is_of_the_order_of_the_curvature():
    """With ℓ(z) = c·z + ε/2 zᵀAz the inner minimum is a linear system; without ε the formula is exact."""
    c, a, m = _problem(1)
    gamma, errors = 2.0, []
    for epsilon in (1e-3, 1e-4):
        h = epsilon * a
        theta = torch.linalg.solve(m[:, None] * h * m + gamma * torch.eye(len(c), dtype=c.dtype), -m * c)
        z = m * theta
        (expected,) = torch.autograd.grad(c @ z + z @ h @ z / 2, m)
        gradient = (c + h @ z).detach()
        errors.append((mask_gradient(theta.detach(), m.detach(), gradient, gamma) - expected).abs().max())
    assert 0 < errors[1] < 1e-3
    assert float(errors[0] / errors[1]) == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize(
    ("gamma", "decay", "keep", "beta"),
    [(1e4, 1e-3, 100, 20.0), (0.02, 0.1, 100, 20.0), (1e4, 1e-3, 250, 20.0), (1e4, 1e-3, 30, 200.0)],
)
def test_bip_is_the_plain_loop(gamma, decay, keep, beta):
    t = make_task(weight_decay=decay)
    model, (x, y) = t.model(3), t.data["train"]
    steps, alpha = 12, 0.1
    names = [name for name, p in model.named_parameters() if p.ndim > 1]

    theta = {name: p.detach().clone() for name, p in model.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in theta.items()}
    peak = max(theta[name].abs().max() for name in names)
    scores = {name: theta[name].abs() / peak for name in names}

    def top():
        ranked = sorted((-float(s), name, i) for name in names for i, s in enumerate(scores[name].flatten()))
        mask = {name: torch.zeros(theta[name].numel()) for name in names}
        for _, name, i in ranked[:keep]:
            mask[name][i] = 1.0
        return {name: mask[name].view_as(theta[name]) for name in names}

    def gradients(step, seed):
        z = {name: theta[name] * m.get(name, torch.ones(())) for name in theta}
        z = {name: value.requires_grad_() for name, value in z.items()}
        index = batch_index(step, len(x), 32, seed)
        F.cross_entropy(functional_call(model, z, (x[index],)), y[index]).backward()
        return {name: value.grad for name, value in z.items()}

    first = m = top()
    for step in range(steps):
        cosine = (1 + math.cos(math.pi * step / steps)) / 2
        for name, g in gradients(step, 5).items():
            slope = m.get(name, torch.ones(())) * g + decay * theta[name]
            velocity[name] = 0.9 * velocity[name] + slope
            theta[name] = theta[name] - alpha * cosine * velocity[name]
        for name, g in gradients(step, 6).items():
            if name in names:
                change = theta[name] * g - m[name] * g**2 / gamma
                scores[name] = (scores[name] - beta * cosine * change).clamp(0, 1)
        m = top()

    assert sum(int((first[name] != m[name]).sum()) for name in names) >= 20  # the masks have moved
    total = sum(theta[name].numel() for name in names)
    masks = bip(model, t, sparsity=1 - keep / total, seed=5, steps=steps, mask_lr=beta, gamma=gamma)
    for name, p in model.named_parameters():
        if name in names:
            assert torch.equal(masks[name], m[name].bool())
        torch.testing.assert_close(p.detach(), theta[name] * m.get(name, torch.ones(())), rtol=1e-4, atol=1e-5)


def test_bip_begins_with_the_largest_weights_and_lets_others_come_back():
    t = make_task(steps=60)
    start = prune(t.trained(0), sparsity=0.8)
    still = bip(t.trained(0), t, sparsity=0.8, mask_lr=1e-9)
    moved = bip(t.trained(0), t, sparsity=0.8, mask_lr=3.0)
    assert still == start
    assert 0 < sum(int((mask & ~start[name]).sum()) for name, mask in moved.items()) < start.kept() / 2


def test_bip_sees_two_batches_in_each_step():
    t = make_task(steps=6)
    seen = []
    model = t.model(0)
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    bip(model, t, sparsity=0.5)
    assert len(seen) == 2 * 6  # which is the cost: two gradients a step
    assert all(not torch.equal(one, other) for one, other in zip(seen[::2], seen[1::2], strict=True))


def test_bip_follows_a_task_that_augments():
    t = make("cnn", steps=3)
    seen = []
    t = Task(t.name, t.load, t.build, type(t.training)(**{**vars(t.training), "augment": True}))
    model = t.model(0)
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    bip(model, t, sparsity=0.5)
    pictures = t.data["train"][0]
    for batch in seen:
        assert not any((pictures == batch[i]).flatten(1).all(1).any() for i in range(3))


# ── AP ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Watched(Task):
    """A task that remembers what each training began with, held and ended with."""

    def train(self, model, *, masks=None, **options):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        losses = super().train(model, masks=masks, **options)
        after = {name: value.clone() for name, value in model.state_dict().items()}
        self.__dict__.setdefault("runs", []).append((before, masks, after))
        return losses


def watched(t):
    return Watched(**{field.name: getattr(t, field.name) for field in fields(Task)})


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_ap_takes_what_it_says_in_every_half_round(kind):
    t = watched(make(kind, steps=10))
    model, initial = t.model(0), t.model(0).state_dict()
    masks = ap(model, t, sparsity=0.8, rounds=3, share=0.1)
    runs = t.__dict__["runs"]
    assert len(runs) == 2 * 3 + 1
    total = masks.total()
    full = Masks({name: torch.ones_like(mask) for name, mask in masks.items()})

    for before, held, _ in runs:  # every training begins with the initial weights under its masks, buffers too
        for name, value in initial.items():
            assert torch.equal(before[name], value * held[name] if held and name in held else value)

    stages = [full, *(held for _, held, _ in runs[1:])]  # masks held after 0, 1, 2, … half rounds
    assert stages[-1] == masks
    left = [round(total * 0.2 ** (r / 3)) for r in range(4)]
    assert [stage.kept() for stage in stages[::2]] == left
    assert [stage.kept() for stage in stages[1::2]] == [b + round(0.1 * a) for a, b in pairwise(left)]

    for half, (one, two) in enumerate(pairwise(stages)):
        trained = runs[half][2]
        gone = {name: one[name] & ~two[name] for name in one}
        assert not any((two[name] & ~one[name]).any() for name in one)
        if half % 2 == 0:  # the smallest of all that were left
            scores = {name: trained[name].abs() for name in one}
            rivals = two
        else:  # of the negative ones, those nearest to where they began
            assert all((trained[name][gone[name]] < 0).all() for name in one)
            scores = {name: (trained[name] - initial[name]).abs() for name in one}
            rivals = {name: two[name] & (trained[name] < 0) for name in one}
        out = torch.cat([scores[name][gone[name]] for name in one])
        stay = torch.cat([scores[name][rivals[name]] for name in one])
        assert len(out)
        assert out.max() <= stay.min()

    for name, value in model.state_dict().items():
        assert torch.equal(value, runs[-1][2][name])  # what comes out is what the last training left


def test_ap_without_its_share_is_iterative_magnitude_pruning():
    t = watched(make_task(steps=15))
    model, other = t.model(0), t.model(0)
    masks = ap(model, t, sparsity=0.75, rounds=2, share=0.0)
    assert len(t.__dict__["runs"]) == 3
    lottery = None
    for sparsity in (0.5, 0.75):
        t.train(other, masks=lottery)
        lottery = prune(other, sparsity=sparsity, within=lottery)
        other.load_state_dict(t.model(0).state_dict())
        lottery.apply(other)
    t.train(other, masks=lottery)
    assert masks == lottery
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_plan_adds_up():
    assert plan(1000, 1000, 1, 0.0) == [(1000, 1000)]
    assert plan(1000, 250, 2, 0.1) == [(600, 500), (300, 250)]
    pairs = plan(10_000, 1_000, None, 0.02)
    assert len(pairs) == 10  # 0.8¹⁰ = 0.107
    assert pairs[-1][1] == 1_000
    for (_, before), (middle, after) in zip([(0, 10_000), *pairs], pairs, strict=False):
        assert before > middle > after
        assert middle - after == round(0.02 * before)
        assert after / before == pytest.approx(0.1**0.1, abs=1e-3)


def test_movement_ranks_negative_weights_below_all_others():
    weight, initial = torch.tensor([-1.0, -2.0, 3.0, 0.0]), torch.tensor([1.0, -2.5, 3.0, 5.0])
    assert negative_movement(weight, initial).tolist() == [2.0, 0.5, math.inf, math.inf]


def test_too_few_negative_weights_are_told():
    t = make_task(steps=2, lr=1e-4)
    model = t.model(0)
    with torch.no_grad():
        for p in model.parameters():
            p.abs_().add_(0.1)
    with pytest.raises(ValueError, match=r"share=0.3 asks for \d+ negative weights .* only 0 are negative"):
        ap(model, t, sparsity=0.5, rounds=1, share=0.3)


def test_a_bare_layer_can_be_pruned():
    for name in UNSTRUCTURED:
        t = make_task(steps=5)
        model = nn.Linear(8, 3)
        assert recipe(name)(model, t, sparsity=0.5).kept() == 12


# ── SAP ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _left_after(t, sizes):
    """What SAP's definition leaves: train, remove the smallest of all weights, set the rest back, `sizes` in turn."""
    names = list(Masks.of(t.model(0)))
    keep = {name: torch.ones_like(t.model(0).get_parameter(name), dtype=torch.bool) for name in names}
    counts = []
    for size in sizes:
        net, masks = t.model(0), Masks(keep)
        t.train(masks.apply(net), masks=masks, seed=0)
        left = torch.cat([net.get_parameter(name).detach()[keep[name]].abs().double() for name in names])
        n = size(left)
        threshold = left.sort(descending=True).values[n - 1]
        keep = {name: keep[name] & (net.get_parameter(name).abs().double() >= threshold) for name in names}
        counts.append(n)
    return Masks(keep), counts


def test_sap_removes_in_each_round_what_the_index_says_and_no_more_than_asked():
    t = make_task(steps=30)
    total = Masks.of(t.model(0)).total()

    def size(left):  # p = 1, q = 2, eta = 0: (Σ|w|)² / Σw² of them are as many as equal ones would be
        return len(left) - math.floor(len(left) - math.ceil(float(left.sum() ** 2 / left.square().sum())))

    two, counts = _left_after(t, [size, size])
    assert total > counts[0] > counts[1]
    assert sap(t.model(0), t, sparsity=1 - counts[1] / total) == two  # just met
    between = (counts[0] + counts[1]) // 2
    cut, _ = _left_after(t, [size, lambda left: between])
    assert sap(t.model(0), t, sparsity=1 - between / total) == cut  # the round that would go beyond stops
    few, _ = _left_after(t, [size, lambda left: total // 10])
    assert sap(t.model(0), t, sparsity=1 - (total // 10) / total, rounds=2) == few  # the last removes what is missing


def test_sap_ends_with_the_ticket_trained_from_its_first_weights():
    t = make_task(steps=30)
    model, again = t.model(0), t.model(0)
    masks = sap(model, t, sparsity=0.6)
    t.train(masks.apply(again), masks=masks, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
