"""Optimal and combinatorial brain surgeon against least squares and all choices."""

import copy
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import close, make_task, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_tasks import make
from torch import nn

from pruninglab import collect, prune, task
from pruninglab.criteria import obs
from pruninglab.curvature import cbs_select, cbs_update, inverse_of, obs_layer, obs_prune, obs_step
from pruninglab.masks import Masks
from pruninglab.recipes import recipe

SEEDS = st.integers(0, 10_000)


def positive(n, seed=0):
    """A Hessian whose weights have much to do with each other."""
    a = normal(n, n, seed=seed)
    return a @ a.T / n + 0.05 * torch.eye(n, dtype=torch.float64)


def cheapest(weights, hessian, gone):
    """The least ½ δᵀHδ with these weights gone, by least squares on a square root of H; and what is left then."""
    root = torch.linalg.cholesky(hessian).T
    stay = [i for i in range(len(weights)) if i not in gone]
    target, left = root @ weights, torch.zeros_like(weights)
    if stay:
        left[stay] = torch.linalg.lstsq(root[:, stay], target).solution
    return 0.5 * float((root @ left - target).square().sum()), left


# ── optimal brain surgeon ─────────────────────────────────────────────────────────────────────────────────────────────


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_each_step_of_the_surgeon_is_the_best_of_all(seed):
    weights, hessian = normal(6, seed=seed), positive(6, seed + 1)
    found = obs_prune(weights, hessian, 6)
    gone, total = [], 0.0
    for q, loss in zip(found.order.tolist(), found.losses.tolist(), strict=True):
        costs = {i: cheapest(weights, hessian, [*gone, i])[0] for i in range(6) if i not in gone}
        assert costs[q] == pytest.approx(min(costs.values()), rel=1e-6)
        gone.append(q)
        total += loss
        assert total == pytest.approx(costs[q], rel=1e-6)
    for n in range(7):
        some = obs_prune(weights, hessian, n)
        assert some.order.tolist() == gone[:n]
        close(some.weights, cheapest(weights, hessian, gone[:n])[1], rtol=1e-5, atol=1e-8)
        assert (some.weights[some.order] == 0).all()


def test_one_step_leaves_the_others_where_least_squares_puts_them():
    weights, hessian = normal(5), positive(5, 1)
    inverse = torch.linalg.inv(hessian)
    for q in range(5):
        delta, saliency = obs_step(weights, inverse, q)
        expected, left = cheapest(weights, hessian, [q])
        close(weights + delta, left)
        assert saliency == pytest.approx(expected)
        assert 0.5 * float(delta @ hessian @ delta) == pytest.approx(expected)


def test_what_the_surgeon_refuses():
    weights = normal(4)
    rank_two = normal(4, 2) @ normal(4, 2).T
    for hessian, words in (
        (rank_two, "of 4 weights is singular or not positive definite.*add damping"),
        (-torch.eye(4), "not positive definite"),
        (torch.full((4, 4), torch.nan), "not finite"),
        (torch.eye(3), r"weights \(4,\) do not fit a Hessian of shape \(3, 3\)"),
    ):
        with pytest.raises(ValueError, match=words):
            obs_prune(weights, hessian, 1)
    with pytest.raises(ValueError, match="n must be 0 to 4 weights, not 5"):
        obs_prune(weights, torch.eye(4), 5)
    with pytest.raises(ValueError, match=r"a square matrix, not \(2, 3\)"):
        inverse_of(torch.ones(2, 3))
    close(inverse_of(positive(7)), torch.linalg.inv(positive(7)))


def layer_problem(outputs=3, d=5, n=30, seed=0):
    x = normal(n, d, seed=seed) @ normal(d, d, seed=seed + 1)
    return x, normal(outputs, d, seed=seed + 2)


@pytest.mark.parametrize("seed", range(4))
def test_a_layer_loses_the_weight_that_its_row_makes_up_for_best(seed):
    x, weight = layer_problem(seed=10 * seed)
    y = x @ weight.T

    def error(row, stay):
        if not stay:
            return float(y[:, row].square().sum())
        return float((x[:, stay] @ torch.linalg.lstsq(x[:, stay], y[:, row]).solution - y[:, row]).square().sum())

    kept = [list(range(5)) for _ in range(3)]
    for removed in range(15):
        found, mask = obs_layer(weight, x.T @ x, removed / 15, damp=0)
        assert [row.nonzero().flatten().tolist() for row in mask] == kept
        for row, stay in enumerate(kept):
            expected = torch.zeros(5, dtype=torch.float64)
            if stay:
                expected[stay] = torch.linalg.lstsq(x[:, stay], y[:, row]).solution
            close(found[row], expected, rtol=1e-5, atol=1e-8)
        rise = {
            (row, i): error(row, [k for k in stay if k != i]) - error(row, stay)
            for row, stay in enumerate(kept)
            for i in stay
        }
        row, i = min(rise, key=rise.__getitem__)
        kept[row].remove(i)


def test_rows_that_are_traced_apart_are_traced_alike(monkeypatch):
    x, weight = layer_problem(outputs=9, d=6)
    expected = obs_layer(weight, x.T @ x, 0.6)
    monkeypatch.setattr("pruninglab.curvature.obs.PIECE", 80)  # two rows at a time
    for one, other in zip(obs_layer(weight, x.T @ x, 0.6), expected, strict=True):
        assert torch.equal(one, other)


def test_a_layer_keeps_its_type_and_needs_damping_where_inputs_are_dead():
    x, weight = layer_problem()
    x[:, 2] = 0
    with pytest.raises(ValueError, match="add damping"):
        obs_layer(weight, x.T @ x, 0.5, damp=0)
    found, mask = obs_layer(weight.float(), x.T @ x, 0.2, damp=1e-9)
    assert found.dtype == torch.float32
    assert not mask[:, 2].any()  # the input that is always 0 costs nothing to lose
    assert (found[~mask] == 0).all()
    close(found[mask], weight.float()[mask], rtol=1e-4)
    for options, words in (
        ({"sparsity": 1.0}, r"in \[0, 1\), not 1.0"),
        ({"sparsity": 0.5, "damp": -1.0}, "damp must be 0 or more"),
    ):
        with pytest.raises(ValueError, match=words):
            obs_layer(weight, x.T @ x, **options)
    with pytest.raises(ValueError, match=r"\(3, 5\) does not fit a Hessian of \(4, 4\)"):
        obs_layer(weight, torch.eye(4), 0.5)


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(4, 4, 2, groups=2)])
def test_the_obs_score_is_what_the_layers_error_grows_by(layer):
    model = nn.Sequential(layer).double()
    x = normal(20, 4) if isinstance(layer, nn.Linear) else normal(6, 4, 4, 4)
    scores = obs(layer.weight.detach(), collect(model, ["hessian"], x)["0.weight"]["hessian"], damping=0.0)
    rows = x[None] if x.ndim == 2 else F.unfold(x, 2).unflatten(1, (2, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    width = len(layer.weight) // len(rows)
    for row, weights in enumerate(layer.weight.detach().flatten(1)):
        inputs = rows[row // width]
        for i in range(len(weights)):
            stay = [k for k in range(len(weights)) if k != i]
            left = torch.linalg.lstsq(inputs[:, stay], inputs @ weights).solution
            rise = float((inputs[:, stay] @ left - inputs @ weights).square().sum())
            assert float(scores.flatten(1)[row, i]) == pytest.approx(rise, rel=1e-5)
    dead = torch.zeros_like(x)
    singular = collect(model, ["hessian"], dead)["0.weight"]["hessian"]
    with pytest.raises(ValueError, match="add damping"):
        partial(obs, damping=0.0)(layer.weight, singular)
    assert torch.isfinite(obs(layer.weight.detach(), singular)).all()


# ── combinatorial brain surgeon ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(5))
def test_cbs_finds_the_best_choice_where_magnitude_does_not(seed):
    weights, hessian = normal(10, seed=seed), positive(10, seed + 1)

    def loss(gone):
        moved = torch.zeros_like(weights)
        moved[list(gone)] = -weights[list(gone)]
        return 0.5 * float(moved @ hessian @ moved)

    chosen = cbs_select(weights, hessian, 5, restarts=10)
    assert int(chosen.sum()) == 5
    best = min(loss(some) for some in itertools.combinations(range(10), 5))
    assert loss(chosen.nonzero().flatten().tolist()) == pytest.approx(best)
    magnitude = loss(weights.abs().argsort()[:5].tolist())
    alone = loss(cbs_select(weights, hessian, 5).nonzero().flatten().tolist())
    assert best <= alone + 1e-12 <= magnitude + 1e-9


def test_a_pair_that_cancels_goes_together():
    """Two inputs that are the same with weights 1 and −1 do nothing: both can go, though each alone is missed.

    From the magnitudes no single exchange leads there: that is what restarts are for.
    """
    hessian = torch.tensor([[2.0, 2.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    weights = torch.tensor([1.0, -1.0, 0.5, -0.5])
    assert cbs_select(weights, hessian, 2, restarts=10).tolist() == [True, True, False, False]
    assert cbs_select(weights, hessian, 2).tolist() == [False, False, True, True]
    assert cbs_select(weights, hessian.diagonal().diag(), 2, restarts=10).tolist() == [False, False, True, True]


@pytest.mark.parametrize("gone", [(0,), (1, 4), (0, 1, 2, 3, 5)])
def test_the_update_of_cbs_is_least_squares(gone):
    weights, hessian = normal(6), positive(6, 1)
    mask = torch.zeros(6, dtype=torch.bool)
    mask[list(gone)] = True
    close(cbs_update(weights, hessian, mask), cheapest(weights, hessian, gone)[1])


def test_what_cbs_refuses():
    with pytest.raises(ValueError, match="n must be 0 to 3 weights, not 4"):
        cbs_select(torch.ones(3), torch.eye(3), 4)
    with pytest.raises(ValueError, match="do not fit"):
        cbs_update(torch.ones(3), torch.eye(3), torch.ones(3))
    with pytest.raises(ValueError, match="do not fit"):
        cbs_update(torch.ones(3), torch.eye(2), torch.ones(3, dtype=torch.bool))


# ── a network, layer after layer ──────────────────────────────────────────────────────────────────────────────────


def test_the_recipe_prunes_each_layer_on_what_the_pruned_ones_before_it_give():
    t = make_task()
    model, x = t.trained(0), t.calibration(64, 3)[0]
    before = copy.deepcopy(model)
    masks = recipe("obs")(model, t, sparsity=0.7, seed=3, samples=64)
    for name, mask in masks.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        seen = []
        with layer.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0])):
            model(x)
        gram = seen[0].double().T @ seen[0].double()
        hessian = gram + 1e-2 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        old = before.get_parameter(name).detach().double()
        for row, kept, weights in zip(layer.weight.double(), mask, old, strict=True):  # the best for this mask
            best = weights[kept] + torch.linalg.solve(hessian[kept][:, kept], hessian[kept][:, ~kept] @ weights[~kept])
            torch.testing.assert_close(row[kept], best, rtol=1e-4, atol=1e-5)
            assert (row[~kept] == 0).all()
        assert int((~mask).sum()) == round(0.7 * mask.numel())
    assert masks == Masks.of(model)


def test_the_recipe_is_better_than_taking_the_smallest_away():
    digits = task("digits-mlp")
    surgeon, smallest = digits.trained(0), digits.trained(0)
    recipe("obs")(surgeon, digits, sparsity=0.9, samples=256)
    prune(smallest, sparsity=0.9, allocation="uniform")
    assert digits.accuracy(surgeon) > digits.accuracy(smallest) + 0.03


def test_the_recipe_refuses_grouped_convolutions():
    t = make("grouped", steps=2)
    with pytest.raises(ValueError, match="does not work on grouped convolutions, which"):
        recipe("obs")(t.model(0), t, sparsity=0.5, samples=16)
