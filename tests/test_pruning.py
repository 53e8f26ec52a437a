"""`prune`: exact budgets, the same answer twice, clear errors; and the issue's table of bad input."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers import make_task, same, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruninglab import Masks, compare, find_sparsity, prune, task
from pruninglab.allocation import BudgetError, global_
from pruninglab.tasks import models
from pruninglab.units import nm


def network(seed: int = 0) -> nn.Module:
    """Layers of unequal size, a convolution among them: 36 + 160 + 30 + 15 = 241 weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10), nn.ReLU(), nn.BatchNorm1d(10),
            nn.Linear(10, 3, bias=False), nn.Linear(3, 5),
        ).eval()  # fmt: skip


def calibration():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(12, 1, 2, 2, generator=generator), torch.randint(5, (12,), generator=generator)


TOTAL = 36 + 160 + 30 + 15
ALLOCATIONS = {
    "global": "global",
    "floor": partial(global_, min_keep=3),
    "uniform": "uniform",
    "erk": "erk",
    "lamp": "lamp",
}
CRITERIA = ["magnitude", "random", "taylor", "snip", "obd", "fisher", "wanda"]


def quiet(model, **options):
    """The masks, on a copy."""
    return prune(copy.deepcopy(model), **options)


# ── budgets ───────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=80, deadline=None)
@given(st.floats(0, 0.94), st.sampled_from(sorted(ALLOCATIONS)), st.sampled_from(CRITERIA), st.integers(0, 3))
def test_the_count_is_the_rounded_target(sparsity, allocation, criterion, seed):
    model = network(seed)
    options = {"allocation": ALLOCATIONS[allocation], "criterion": criterion, "data": calibration(), "seed": seed}
    again = copy.deepcopy(model)
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    masks = prune(model, sparsity=sparsity, **options)

    exact = TOTAL * (1 - sparsity)
    assert abs(masks.kept() - exact) <= 0.5 + 1e-9
    assert masks.total() == TOTAL
    assert list(masks) == ["0.weight", "3.weight", "6.weight", "7.weight"]
    for name, value in model.state_dict().items():
        expected = dense[name].clone()
        if name in masks:
            expected[~masks[name]] = 0
        assert torch.equal(value, expected)
    assert prune(again, sparsity=sparsity, **options) == masks, "the same call twice"


@pytest.mark.parametrize("kept", range(1, TOTAL + 1, 6))
def test_every_count_can_be_asked_for(kept):
    assert quiet(network(), sparsity=1 - kept / TOTAL).kept() == kept


def test_half_a_weight_is_rounded_up():
    layer = nn.Linear(5, 1, bias=False)
    assert quiet(layer, sparsity=0.5).kept() == 3  # 2.5


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.94), st.sampled_from(sorted(ALLOCATIONS)))
def test_pruning_again_to_the_same_sparsity_changes_nothing(sparsity, allocation):
    model = network()
    first = prune(model, sparsity=sparsity, allocation=ALLOCATIONS[allocation])
    pruned = snapshot(model)
    assert prune(model, sparsity=sparsity, allocation=ALLOCATIONS[allocation]) == first
    assert same(pruned, snapshot(model))


def test_sparsity_is_absolute():
    model = network()
    prune(model, sparsity=0.3)
    assert prune(model, sparsity=0.5) == quiet(network(), sparsity=0.5)


def test_sparsity_zero_removes_nothing():
    model = network()
    before = snapshot(model)
    assert prune(model, sparsity=0).sparsity() == 0
    assert same(before, snapshot(model))


def test_params_counts_what_cannot_be_pruned_too():
    model = network()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    everything = sum(p.numel() for p in model.parameters())
    fixed = everything - TOTAL
    for params in (fixed + 1, fixed + 100, everything):
        pruned = copy.deepcopy(model)
        prune(pruned, params=params)
        assert sum(int(p.count_nonzero()) for p in pruned.parameters()) == params


@pytest.mark.parametrize("excess", [0, TOTAL + 1])
def test_params_that_cannot_be_met(excess):
    model = network()
    fixed = sum(p.numel() for p in model.parameters()) - TOTAL
    with pytest.raises(ValueError, match=rf"{fixed} parameters are not prunable, {TOTAL} are, so {fixed + 1} to"):
        prune(model, params=fixed + excess)


# ── which weights ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_global_keeps_the_largest_of_all_and_uniform_of_each():
    model = network()
    weights = {name: model.get_parameter(name).detach().abs() for name in quiet(model, sparsity=0)}
    everything = torch.cat([w.flatten() for w in weights.values()]).sort(descending=True).values
    kept = round(TOTAL * 0.3)
    for name, mask in quiet(model, sparsity=1 - kept / TOTAL).items():
        assert torch.equal(mask, weights[name] >= everything[kept - 1])
    for name, mask in quiet(model, sparsity=0.5, allocation="uniform").items():
        n = int(mask.sum())
        assert abs(n - weights[name].numel() / 2) <= 1
        assert torch.equal(mask, weights[name] >= weights[name].flatten().sort(descending=True).values[n - 1])


def test_equal_weights_are_not_all_dropped():
    model = network()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    masks = quiet(model, sparsity=0.5)
    assert masks.kept() == math.floor(TOTAL / 2 + 0.5)
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    assert flat[: masks.kept()].all(), "of equal ones the first stay"


def test_the_seed_decides_what_random_removes():
    model = network()
    one, same_seed, other = (quiet(model, sparsity=0.5, criterion="random", seed=s) for s in (1, 1, 2))
    assert one == same_seed
    assert one != other
    generator = torch.Generator().manual_seed(1)
    assert quiet(model, sparsity=0.5, criterion="random", seed=generator) == one
    assert quiet(model, sparsity=0.5, criterion="random", seed=generator) != one, "a generator goes on"


def test_loss_is_what_gradients_are_of():
    def only_class_0(outputs, targets):
        return -outputs[:, 0].mean()

    masks = quiet(network(), sparsity=0.95, criterion="taylor", data=calibration(), loss=only_class_0)
    rows = masks["7.weight"].sum(1)
    assert rows[0] > 0
    assert rows[1:].sum() == 0


def test_initial_weights_reach_the_criterion():
    model, untrained = network(0), network(1)
    moved = {n: (model.get_parameter(n) - untrained.get_parameter(n)).abs() for n in quiet(model, sparsity=0)}

    def movement(weight, initial_weight):
        return (weight - initial_weight).abs()

    for initial in (untrained, untrained.state_dict()):
        masks = quiet(model, sparsity=0.8, criterion=movement, initial=initial)
        kept = torch.cat([moved[n][m] for n, m in masks.items()])
        gone = torch.cat([moved[n][~m] for n, m in masks.items()])
        assert kept.min() >= gone.max()


def test_exclude_leaves_layers_untouched():
    model = network()
    before = model[3].weight.clone()
    masks = prune(model, sparsity=0.5, exclude=["0", nn.BatchNorm1d, model[3]])
    assert list(masks) == ["6.weight", "7.weight"]
    assert torch.equal(model[3].weight, before)
    assert masks.kept() == math.floor(45 / 2 + 0.5)


def test_exclude_reaches_the_statistics():
    """An excluded layer that is never called does not get in the way."""
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "spare": nn.Linear(4, 3)})
    model.forward = lambda x: model["used"](x)
    for exclude in ("spare", iter(["spare"])):
        assert list(prune(model, sparsity=0.5, criterion="wanda", data=torch.randn(5, 4), exclude=exclude)) == [
            "used.weight"
        ]


def test_gradients_and_mode_stay_as_they_were():
    model = network().train()
    model[3].weight.grad = torch.ones_like(model[3].weight)
    before = snapshot(model)
    masks = prune(model, sparsity=0.5, criterion="obd", data=calibration())
    after = snapshot(model)
    assert Masks.of(model) == masks
    assert not same(before, after)
    after["state"] = before["state"]
    assert same(before, after)


# ── within ────────────────────────────────────────────────────────────────────────────────────────────────────────


def subset(inner: Masks, outer: Masks) -> bool:
    return not any((inner[name] & ~outer[name]).any() for name in inner)


@settings(max_examples=80, deadline=None)
@given(
    st.floats(0, 0.9),
    st.floats(0, 1),
    st.sampled_from(sorted(ALLOCATIONS)),
    st.sampled_from(sorted(ALLOCATIONS)),
    st.sampled_from(["magnitude", "random", "wanda"]),
)
def test_within_nothing_comes_back_and_the_count_is_exact(first, more, allocation, second_allocation, criterion):
    model = network()
    outer = prune(model, sparsity=first, allocation=ALLOCATIONS[allocation])
    second = first + more * (0.94 - first)
    inner = quiet(
        model,
        sparsity=second,
        allocation=ALLOCATIONS[second_allocation],
        criterion=criterion,
        data=calibration(),
        within=outer,
    )
    assert subset(inner, outer)
    assert abs(inner.kept() - TOTAL * (1 - second)) <= 0.5 + 1e-9


def test_within_counts_only_the_layers_that_are_pruned():
    model = network()
    outer = quiet(model, sparsity=0.9)
    left = outer["7.weight"].sum() + outer["6.weight"].sum()
    exclude = ["0", "3"]
    inner = quiet(
        model, params=sum(p.numel() for p in model.parameters()) - 45 + int(left), within=outer, exclude=exclude
    )
    assert subset(inner, outer)
    with pytest.raises(ValueError, match=rf"`within` has only {left} left"):
        quiet(model, sparsity=0.0, within=outer, exclude=exclude)


def test_within_less_than_is_to_be_kept():
    model = network()
    outer = quiet(model, sparsity=0.8)
    with pytest.raises(ValueError, match=rf"were to be kept, but `within` has only {outer.kept()} left"):
        prune(model, sparsity=0.5, within=outer)


def test_within_masks_of_another_model():
    model = network()
    before = snapshot(model)
    named_alike = Masks({name: torch.ones(1, 1, dtype=torch.bool) for name in quiet(model, sparsity=0)})
    for other in (quiet(models.mlp(4, 3, 2), sparsity=0.1), named_alike):
        with pytest.raises(ValueError, match=r"`within`.*0\.weight"):
            prune(model, sparsity=0.5, within=other)
    assert same(before, snapshot(model))


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 0.8), st.sampled_from(["row", "2x3", "block", nm(2, 4, remainder="partial")]))
def test_units_within_single_weights(first, unit):
    model = network()
    outer = quiet(model, sparsity=first, criterion="random")
    budget = {} if isinstance(unit, type(nm(1, 2))) else {"sparsity": 0.9}
    inner = quiet(model, unit=unit, within=outer, **budget)
    assert subset(inner, outer)
    if budget:
        assert abs(inner.kept() - 0.1 * TOTAL) <= 16  # the largest unit
        assert inner.kept() > 0


def test_a_row_within_weights_is_judged_by_the_weights_it_has_left():
    layer = nn.Linear(3, 2, bias=False)
    layer.weight.data = torch.tensor([[9.0, 9.0, 1.0], [2.0, 2.0, 2.0]])
    outer = Masks({"weight": torch.tensor([[False, False, True], [True, True, True]])})
    assert torch.equal(quiet(layer, sparsity=0.5, unit="row", within=outer)["weight"].sum(1), torch.tensor([0, 3]))


def test_within_scores_of_minus_infinity_still_rank_above_what_is_gone():
    model = network()
    outer = quiet(model, sparsity=0.5, criterion="random")
    inner = quiet(model, sparsity=0.6, criterion=lambda weight: torch.full_like(weight, -torch.inf), within=outer)
    assert subset(inner, outer)
    assert inner.kept() == round(0.4 * TOTAL)


# ── units ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pattern_fixes_the_sparsity():
    layer = nn.Linear(16, 6)
    for unit, kept in (("2:4", 2), ("1:4", 1), ("4:8", 4)):
        masks = quiet(layer, unit=unit)
        size = int(unit[-1])
        groups = masks["weight"].view(6, -1, size).sum(2)
        assert (groups == kept).all()
        assert quiet(layer, unit=unit, sparsity=1 - kept / size) == masks
    with pytest.raises(ValueError, match=r"unit 1:4 fixes sparsity=0\.75; leave the budget out"):
        prune(layer, unit="1:4", sparsity=0.5)
    with pytest.raises(ValueError, match="leave the budget out"):
        prune(layer, unit="2:4", params=50)


def test_whole_rows_go():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    masks = quiet(model, sparsity=0.5, unit="row")
    scores = {}
    for name, mask in masks.items():
        assert torch.equal(mask.all(1), mask.any(1)), "a row is kept whole or not at all"
        for i, row in enumerate(model.get_parameter(name).detach().abs().mean(1)):
            scores[name, i] = float(row), bool(mask[i, 0])
    kept = [value for value, stays in scores.values() if stays]
    gone = [value for value, stays in scores.values() if not stays]
    assert min(kept) > max(gone)
    assert abs(masks.kept() - 40) <= 4  # half of the largest row


# ── the table of bad input ────────────────────────────────────────────────────────────────────────────────


def no_layer():
    return nn.Sequential(nn.ReLU(), nn.LayerNorm(4))


def with_nan():
    model = network()
    model[3].weight.data[2, 5] = torch.nan
    return model


EMPTY = (torch.zeros(0, 1, 2, 2), torch.zeros(0, dtype=torch.long))
BAD = {
    "sparsity below 0": (network, {"sparsity": -0.1}, ValueError, r"in \[0, 1\); -0\.1 is not"),
    "sparsity 1": (network, {"sparsity": 1.0}, ValueError, r"in \[0, 1\); 1\.0 is not"),
    "sparsity above 1": (network, {"sparsity": 1.5}, ValueError, r"in \[0, 1\); 1\.5 is not"),
    "sparsity in percent": (network, {"sparsity": 90}, ValueError, r"For 90 %, write 0\.9\."),
    "sparsity NaN": (network, {"sparsity": float("nan")}, ValueError, r"in \[0, 1\); nan is not"),
    "sparsity as text": (network, {"sparsity": "0.5"}, TypeError, r"a number in \[0, 1\), not '0\.5'"),
    "sparsity as bool": (network, {"sparsity": True}, TypeError, "a number"),
    "sparsity that leaves nothing": (network, {"sparsity": 0.9999}, ValueError, f"would leave none of {TOTAL} weights"),
    "no prunable layer": (no_layer, {"sparsity": 0.5}, ValueError, "Sequential has no prunable layer"),
    "NaN weights": (with_nan, {"sparsity": 0.5}, ValueError, r"weights of layer '3\.weight' contain NaN"),
    "NaN weights, no magnitude": (
        with_nan,
        {"sparsity": 0.5, "criterion": "random"},
        ValueError,
        r"weights of layer '3\.weight' contain NaN",
    ),
    "empty data": (
        network,
        {"sparsity": 0.5, "criterion": "wanda", "data": EMPTY},
        ValueError,
        "calibration data are empty",
    ),
    "no data": (network, {"sparsity": 0.5, "criterion": "wanda"}, ValueError, r"pass data=\(x, y\)"),
    "unknown criterion": (network, {"sparsity": 0.5, "criterion": "wnada"}, ValueError, "Did you mean 'wanda'"),
    "unknown unit": (network, {"sparsity": 0.5, "unit": "wieght"}, ValueError, "unknown unit.*Did you mean 'weight'"),
    "unknown allocation": (
        network,
        {"sparsity": 0.5, "allocation": "globl"},
        ValueError,
        "unknown allocation.*Did you mean 'global'",
    ),
    "seed as text": (network, {"sparsity": 0.5, "seed": "a"}, TypeError, "seed must be a whole number, not 'a'"),
    "allocation of a wrong kind": (network, {"sparsity": 0.5, "allocation": 3}, TypeError, "a name or a function"),
    "two budgets": (network, {"sparsity": 0.5, "params": 100}, ValueError, "exactly one budget.*got sparsity, params"),
    "no budget": (network, {}, ValueError, "exactly one budget.*got none"),
    "exclude that matches nothing": (network, {"sparsity": 0.5, "exclude": "fc9"}, ValueError, "matches no layer"),
    "floor too high": (
        network,
        {"sparsity": 0.9, "allocation": partial(global_, min_keep=20)},
        ValueError,
        "needs more than the 24 places",
    ),
    "N:M that does not divide": (network, {"unit": "2:4"}, ValueError, r"2:4 does not fit layer '0\.weight'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_clear_error_and_leaves_the_model_alone(name):
    make, options, kind, match = BAD[name]
    model = make()
    before = snapshot(model)
    with pytest.raises(kind, match=match):
        prune(model, **options)
    assert same(before, snapshot(model))


def test_bad_input_unknown_task():
    with pytest.raises(ValueError, match=r"unknown task 'digit-mlp'\. Did you mean 'digits-mlp'\?"):
        task("digit-mlp")
    with pytest.raises(ValueError, match="unknown task"):
        compare(task="digit-mlp")


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), "0.5"])
def test_bad_input_sparsity_in_compare(sparsity, tiny):
    with pytest.raises((ValueError, TypeError), match=r"\[0, 1\)"):
        compare(task=tiny, sparsity=sparsity, seeds=1)
    with pytest.raises((ValueError, TypeError), match=r"\[0, 1\)"):
        compare(task=tiny, sparsity=[0.5, sparsity], seeds=1)


def test_bad_input_masks_from_another_model():
    masks = quiet(models.mlp(4, 3, 2), sparsity=0.5)
    model = network()
    before = snapshot(model)
    with pytest.raises(ValueError, match="do not fit"):
        masks.apply(model)
    assert same(before, snapshot(model))


def test_bad_input_max_drop(tiny):
    with pytest.raises(ValueError, match=r"max_drop is a fraction, in \[0, 1\], not 5"):
        find_sparsity(tiny.model(), tiny, max_drop=5)


def test_bad_input_corrupt_cache(data_folder):
    tiny = make_task("corrupt")
    expected = tiny.trained().state_dict()
    (cached,) = (data_folder / "cache" / "models").glob("*.safetensors")
    cached.write_bytes(b"rubbish")
    with pytest.warns(UserWarning, match="is broken and is made again"):
        again = tiny.trained()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
    assert len(cached.read_bytes()) > 100


def test_bad_input_an_error_half_way_through_the_masks_changes_nothing():
    """The last layer's scores are wrong: the first layers must not have been pruned by then."""
    model = network()
    before = snapshot(model)

    def late(weight):
        return weight * torch.nan if weight.shape == (5, 3) else weight

    with pytest.raises(ValueError, match=r"'late' gave NaN for 15 of 15 weights of layer '7\.weight'"):
        prune(model, sparsity=0.5, criterion=late)
    assert same(before, snapshot(model))


def test_a_budget_of_less_than_one_unit_is_an_error_and_nothing_is_pruned():
    model = nn.Linear(4, 2)
    before = model.weight.detach().clone()
    with pytest.raises(BudgetError, match="1 of 8 weights is less than one row"):
        prune(model, sparsity=0.9, unit="row")
    assert torch.equal(model.weight, before)


def test_numpy_numbers_are_numbers():
    model = nn.Linear(5001, 3)
    exact = prune(copy.deepcopy(model), sparsity=0.5)
    for sparsity in (np.float64(0.5), np.float32(0.5), np.float16(0.5)):
        assert prune(copy.deepcopy(model), sparsity=sparsity) == exact
    draw = prune(copy.deepcopy(model), sparsity=0.5, criterion="random", seed=3)
    assert prune(copy.deepcopy(model), sparsity=0.5, criterion="random", seed=np.int64(3)) == draw
    assert prune(copy.deepcopy(model), params=np.int64(100)).kept() == 97
