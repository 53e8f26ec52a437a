"""Ratios of language models: each rule against its formula done by hand, and all against the budget."""

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import close, same, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from language_tasks import calls, inside, tiny_text_task
from torch import nn

from pruninglab.language import ratios, sensitivity
from pruninglab.language.one_shot import one_shot, scored
from pruninglab.language.sensitivity import grouped
from pruninglab.layers import prunable

RULES = {
    "uniform": ratios.uniform,
    "owl": ratios.owl,
    "ecoflap": partial(ratios.ecoflap, draws=4),
    "ecoflap, first order": partial(ratios.ecoflap, order="first", draws=4),
    "ecoflap by layer": partial(ratios.ecoflap, order="first", draws=4, by="layer"),
    "adapt_pruner": ratios.adapt_pruner,
    "rate_distortion": ratios.rate_distortion,
    "rate_distortion by block": partial(ratios.rate_distortion, by="block"),
}


@pytest.fixture(scope="module")
def text():
    """A task, its model in float64, and eight windows of its text."""
    task = tiny_text_task()
    return task, task.model(0).double(), task.calibration(8, 0)


def by_block(model, shares):
    """What each block loses, from what each of its layers does."""
    sizes = {name: layer.weight.numel() for name, layer in inside(model).items()}
    parts = {}
    for block in range(len(model.model.layers)):
        own = [name for name in sizes if name.startswith(f"model.layers.{block}.")]
        parts[f"model.layers.{block}"] = sum(shares[n] * sizes[n] for n in own) / sum(sizes[n] for n in own)
    return parts


# ── all rules ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.6, 0.95, 0.995])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_budget_is_met_to_the_weight_and_the_model_is_as_before(text, rule, sparsity):
    _, model, data = text
    before = snapshot(model)
    shares = rule(model, data, sparsity)
    assert same(before, snapshot(model))
    layers = inside(model)
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    assert list(shares) == list(sizes)
    assert all(0 <= share < 1 for share in shares.values())
    gone = {name: shares[name] * sizes[name] for name in sizes}
    assert all(count == pytest.approx(round(count)) for count in gone.values())
    assert round(sum(gone.values())) == round(sparsity * sum(sizes.values()))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_what_is_pruned_is_what_was_said(text, rule):
    task, model, data = text
    shares = rule(model, data, 0.6)
    masks = one_shot(task.model(0), data, scored("wanda"), shares)
    total = sum(mask.numel() for mask in masks.values())
    for name, mask in masks.items():
        assert int((~mask).sum()) == round(shares[name] * mask.numel())
    assert total - masks.kept() == round(0.6 * total)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("sparsity", [1.0, -0.1, 60])
def test_a_sparsity_out_of_range_is_refused(text, rule, sparsity):
    _, model, data = text
    with pytest.raises(ValueError, match=r"fraction removed, in \[0, 1\)"):
        rule(model, data, sparsity)


@pytest.mark.parametrize("rule", list(RULES.values())[1:], ids=list(RULES)[1:])
def test_weights_that_are_not_finite_are_told_of(text, rule):
    task, _, data = text
    model = task.model(0)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"finite|NaN|nan"):
        rule(model, data, 0.5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(8, 40), st.integers(8, 40), st.floats(-2, 2)), min_size=1, max_size=6),
    st.floats(0, 0.98),
)
def test_only_differences_count_until_a_layer_is_whole_or_all_but_gone(parts, sparsity):
    groups = {str(i): {f"{i}.weight": nn.Linear(a, b)} for i, (a, b, _) in enumerate(parts)}
    raw = {str(i): part[2] for i, part in enumerate(parts)}
    shares = ratios.budgeted(raw, groups, sparsity)
    sizes = {f"{i}.weight": a * b for i, (a, b, _) in enumerate(parts)}
    assert round(sum(shares[n] * sizes[n] for n in sizes)) == round(sparsity * sum(sizes.values()))
    shifted = ratios.budgeted({name: value + 0.25 for name, value in raw.items()}, groups, sparsity)
    assert all(shares[n] == pytest.approx(shifted[n], abs=1.5 / sizes[n]) for n in sizes)
    for (i, one), (j, other) in itertools.combinations(raw.items(), 2):
        a, b = shares[f"{i}.weight"], shares[f"{j}.weight"]
        off = 1 / sizes[f"{i}.weight"] + 1 / sizes[f"{j}.weight"]
        if all(off < share < 0.99 - off for share in (a, b)):
            assert a - b == pytest.approx(one - other, abs=off)
        elif one > other:
            assert a >= b - off


def test_a_rule_gets_what_it_names_and_nothing_else(text):
    _, model, data = text
    seen = {}

    def rule(model, data, sparsity, *, seed=5):
        seen.update(seed=seed)
        return {}

    ratios.shares_by(rule, model, data, 0.5, seed=3, loss=None, blocks=None)
    assert seen == {"seed": 3}
    ratios.shares_by(partial(rule, seed=4), model, data, 0.5, seed=3)
    assert seen == {"seed": 4}
    assert ratios.shares_by("owl", model, data, 0.5, blocks="model.layers") == ratios.owl(model, data, 0.5)
    with pytest.raises(ValueError, match="Did you mean 'owl'"):
        ratios.shares_by("owls", model, data, 0.5)
    with pytest.raises(TypeError, match="name or a function"):
        ratios.shares_by(0.5, model, data, 0.5)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (ratios.owl, {"times": 0}, "times is how many times the mean"),
        (ratios.owl, {"spread": -0.1}, "spread is half"),
        (ratios.adapt_pruner, {"amplitude": -1}, "amplitude is how far"),
        (ratios.ecoflap, {"span": -0.1}, "span is how much above"),
        (ratios.ecoflap, {"draws": 0}, "at least 1 part, not 0"),
        (ratios.ecoflap, {"order": "second"}, r"unknown order 'second'.* Known: first, zeroth"),
        (ratios.ecoflap, {"by": "head"}, "unknown part of a model 'head'"),
        (ratios.rate_distortion, {"step": 0.2, "reach": 0.1}, "0 < step <= reach"),
        (ratios.rate_distortion, {"step": 0}, "0 < step <= reach"),
        (ratios.rate_distortion, {"sequences": 0}, "empty"),
        (ratios.uniform, {"blocks": "model.blocks"}, "no list of blocks 'model.blocks'"),
    ],
)
def test_wrong_options_are_told(text, rule, options, message):
    _, model, data = text
    with pytest.raises(ValueError, match=message):
        rule(model, data, 0.5, **options)


# ── OWL ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("times", [1.5, 3.0])
def test_outliers_are_counted_one_by_one(text, times):
    _, model, (x, y) = text
    layers = inside(model)
    seen = calls(model, x, layers)
    found = sensitivity.outliers(model, (x, y), times)
    for block, fraction in found.items():
        scores = []
        for name, layer in layers.items():
            if name.startswith(block + "."):
                rows = seen[name][0].flatten(0, 1)
                for weights in layer.weight.tolist():
                    scores += [abs(w) * float(rows[:, j].norm()) for j, w in enumerate(weights)]
        mean = sum(scores) / len(scores)
        assert fraction == sum(score > times * mean for score in scores) / len(scores)
        assert fraction > 0


def test_owl_keeps_the_mean_and_differs_by_two_lambda_at_most():
    task = tiny_text_task(blocks=4)
    model, data = task.model(0), task.calibration(8, 0)
    for power, block in enumerate(model.model.layers):  # heavier tails in later blocks
        for layer in prunable(block).values():
            layer.weight.data *= layer.weight.data.abs() ** (power / 2)
    found = sensitivity.outliers(model, data, 3.0)
    lost = by_block(model, ratios.owl(model, data, 0.6, times=3.0, spread=0.07))
    assert len(set(found.values())) == 4
    assert sum(lost.values()) / 4 == pytest.approx(0.6, abs=1e-3)
    assert max(lost.values()) - min(lost.values()) == pytest.approx(0.14, abs=2e-3)
    assert sorted(lost, key=lost.get) == sorted(found, key=found.get, reverse=True)
    low, high = min(found.values()), max(found.values())
    for one, other in itertools.combinations(found, 2):  # in proportion between the two ends
        expected = 0.14 * (found[other] - found[one]) / (high - low)
        assert lost[one] - lost[other] == pytest.approx(expected, abs=2e-3)


def test_without_outliers_or_without_a_spread_owl_is_uniform(text):
    _, model, data = text
    plain = ratios.uniform(model, data, 0.6)
    assert ratios.owl(model, data, 0.6, times=1e6) == plain
    assert ratios.owl(model, data, 0.6, spread=0.0) == plain


# ── Adapt-Pruner ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_adapt_pruner_goes_by_the_angle_that_a_block_turns():
    task = tiny_text_task(blocks=3)
    model, data = task.model(0), task.calibration(8, 0)
    blocks = {f"model.layers.{i}": block for i, block in enumerate(model.model.layers)}
    turns = {}
    for name, (before, after) in calls(model, data[0], blocks).items():
        a, b = before.flatten(0, 1).double(), after.flatten(0, 1).double()
        turns[name] = -float(((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean())
    mean = sum(turns.values()) / 3
    scaled = {name: (turn - mean) / max(abs(t - mean) for t in turns.values()) for name, turn in turns.items()}
    lost = by_block(model, ratios.adapt_pruner(model, data, 0.5, amplitude=0.1))
    for name in blocks:
        assert lost[name] == pytest.approx(0.5 - 0.1 * scaled[name], abs=2e-3)


# ── ECoFLaP ───────────────────────────────────────────────────────────────────────────────────────────────────────


def gradients(model, x, y):
    """Layer of the blocks → gradient of the mean loss, by autograd."""
    layers = inside(model)
    loss = F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten())
    grads = torch.autograd.grad(loss, [layer.weight for layer in layers.values()])
    return dict(zip(layers, grads, strict=True))


class Small(nn.Module):
    """Two blocks of one layer each: fast enough to be run thousands of times."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 5)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(5, 7), nn.Tanh()), nn.Sequential(nn.Linear(7, 9))])

    def forward(self, x):
        return self.blocks[1](self.blocks[0](self.words(x)))


def test_slopes_tend_to_the_norm_of_the_gradient():
    torch.manual_seed(0)
    model, draws = Small().double(), 600
    x, y = torch.randint(9, (2, 4, 6))
    found = sensitivity.slopes(model, (x[:1], y[:1]), grouped(model), draws=draws)
    loss = F.cross_entropy(model(x[0]), y[0])
    for (name, value), grad in zip(
        found.items(), torch.autograd.grad(loss, [block[0].weight for block in model.blocks]), strict=True
    ):
        expected, deviation = math.sqrt(2 / math.pi) * grad.norm(), math.sqrt((1 - 2 / math.pi) / draws) * grad.norm()
        assert abs(value - float(expected)) < 4 * float(deviation), name


def test_one_slope_is_one_directional_derivative(text):
    _, model, data = text
    groups = {name: group for name, group in grouped(model, "layer").items() if "up_proj" in name}
    found = sensitivity.slopes(model, data, groups, draws=1, seed=7)
    grads, seeds = gradients(model, *data), torch.Generator().manual_seed(7)
    for name in groups:
        again = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=seeds)))
        z = torch.randn(grads[name].shape, generator=again)
        assert found[name] == pytest.approx(abs(float((z * grads[name]).sum())), rel=1e-4)


def test_slopes_are_the_same_again_and_others_with_another_seed(text):
    _, model, data = text
    groups = grouped(model)
    one, again, other = (sensitivity.slopes(model, data, groups, draws=3, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one != other
    with pytest.raises(ValueError, match="epsilon is how far"):
        sensitivity.slopes(model, data, groups, epsilon=0.0)


def test_gradient_norms_are_those_of_autograd(text):
    _, model, (x, y) = text
    groups = grouped(model)
    found = sensitivity.gradient_norms(model, (x, y), groups, parts=4)
    for name, layers in groups.items():
        norms = []
        for part in range(4):
            grads = gradients(model, x[2 * part : 2 * part + 2], y[2 * part : 2 * part + 2])
            norms.append(torch.cat([grads[layer].flatten() for layer in layers]).norm())
        assert found[name] == pytest.approx(float(sum(norms) / 4), rel=1e-6)


def test_ecoflap_lets_the_block_with_the_larger_gradient_keep_more(text):
    _, model, data = text
    norms = sensitivity.gradient_norms(model, data, grouped(model), parts=4)
    lost = by_block(model, ratios.ecoflap(model, data, 0.6, order="first", draws=4))
    (small, large) = sorted(norms, key=norms.get)
    assert lost[large] < lost[small] <= 0.7 + 1e-3
    # the floor is 0.3 of each; the rest, 0.1 of both, is shared out by norm
    share = norms[large] / (norms[large] + norms[small])
    assert lost[large] == pytest.approx(1 - 0.3 - 0.2 * share, abs=2e-3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 1000)), min_size=1, max_size=8),
    st.floats(0, 0.99),
    st.floats(0, 0.5),
)
def test_what_is_shared_out_meets_the_budget_and_rises_with_the_score(parts, sparsity, span):
    scores = {str(i): score for i, (score, _) in enumerate(parts)}
    sizes = {str(i): size for i, (_, size) in enumerate(parts)}
    lost = ratios.proportional(scores, sizes, sparsity, span)
    total = sum(sizes.values())
    assert sum(lost[n] * sizes[n] for n in sizes) == pytest.approx(sparsity * total, abs=1e-6 * total)
    assert all(-1e-9 <= share <= min(sparsity + span, 1.0) + 1e-9 for share in lost.values())
    for one, other in itertools.permutations(scores, 2):  # beyond the floor, counts rise with the score
        if scores[one] > scores[other] and lost[one] > 1e-9:
            beyond = [sizes[n] * (min(sparsity + span, 1.0) - lost[n]) for n in (one, other)]
            assert beyond[0] >= beyond[1] - 1e-6 * total


def test_what_one_group_cannot_take_goes_to_the_others_by_score():
    lost = ratios.proportional({"a": 90.0, "b": 6.0, "c": 3.0}, {"a": 10, "b": 100, "c": 100}, 0.5, 0.5)
    # 105 may stay: a takes its 10, and b and c the other 95 as 2 to 1
    assert lost == {"a": 0.0, "b": pytest.approx(1 - 95 * 2 / 300), "c": pytest.approx(1 - 95 / 300)}


@pytest.mark.parametrize("score", [-1.0, math.nan, math.inf])
def test_scores_to_share_by_are_numbers_of_at_least_0(score):
    with pytest.raises(ValueError, match="at least 0"):
        ratios.proportional({"a": score, "b": 1.0}, {"a": 4, "b": 4}, 0.5)


# ── rate–distortion ───────────────────────────────────────────────────────────────────────────────────────────────


def pruned_by_hand(model, x, levels):
    """A copy in which each layer of block b has lost levels[b] of its weights, the lowest |w| · ‖x‖ ranks of rows."""
    seen = calls(model, x, inside(model))
    other = tiny_text_task().model(0).double()
    other.load_state_dict(model.state_dict())
    for name, layer in inside(other).items():
        scores = layer.weight.abs() * seen[name][0].flatten(0, 1).norm(dim=0)
        ranks = scores.argsort(1).argsort(1).flatten()
        gone = int(levels[int(name.split(".")[2])] * ranks.numel() + 1e-9)
        # of equal ranks the last go first
        order = sorted(range(len(ranks)), key=lambda i: (int(ranks[i]), -i))
        layer.weight.data.view(-1)[torch.tensor(order[:gone], dtype=torch.int64)] = 0
    return other


@torch.no_grad()
def moved(one, other, x):
    p, q = (model(x).logits.float().softmax(-1) for model in (one, other))
    return float((p.sqrt() - q.sqrt()).square().mean())


def test_curves_are_what_pruning_adds_to_the_distance_of_the_predictions(text):
    _, model, (x, _) = text
    levels = [0.4, 0.5, 0.6]
    curves = sensitivity.hellinger_curves(model, x, grouped(model), levels)
    start = moved(model, pruned_by_hand(model, x, (0.4, 0.4)), x)
    for place, name in enumerate(curves.distortion):
        expected = []
        for level in levels:
            at = [0.4, 0.4]
            at[place] = level
            expected.append(moved(model, pruned_by_hand(model, x, at), x) - start)
        close(torch.tensor(curves.distortion[name]), torch.tensor(expected).double(), rtol=1e-4, atol=1e-9)
    size = sum(layer.weight.numel() for layer in inside(model).values()) // 2
    assert [ladder.kept[0] for ladder in curves.ladders] == [pytest.approx(0.6 * size, abs=7)] * 2


@pytest.mark.parametrize("by", ["block", "layer"])
@pytest.mark.parametrize("sparsity", [0.05, 0.6])
def test_the_choice_is_no_worse_than_uniform_and_within_the_budget(text, by, sparsity):
    _, model, data = text
    step, reach = 0.05, 0.1
    levels = sorted({max(sparsity + step * k, 0.0) for k in (-2, -1, 0, 1, 2)})
    curves = sensitivity.hellinger_curves(model, data[0][:4], grouped(model, by), levels)
    shares = ratios.rate_distortion(model, data, sparsity, by=by, step=step, reach=reach)
    nearest = []
    for name, group in grouped(model, by).items():
        first = next(iter(group))
        nearest.append(min(range(len(levels)), key=lambda k, share=shares[first]: abs(levels[k] - share)))
        # the last weights of the budget are spread evenly, so that fractions are near levels and not on them
        assert abs(levels[nearest[-1]] - shares[first]) < step / 2, name
    uniform = [levels.index(sparsity)] * len(nearest)
    assert curves.predicted(nearest) <= curves.predicted(uniform)
    if by == "block":  # try all
        kept = [ladder.kept for ladder in curves.ladders]
        budget = sum(kept[b][uniform[b]] for b in range(2))
        fits = [
            pair
            for pair in itertools.product(range(len(levels)), repeat=2)
            if sum(kept[b][pair[b]] for b in range(2)) <= budget
        ]
        assert curves.predicted(nearest) == min(curves.predicted(pair) for pair in fits)
