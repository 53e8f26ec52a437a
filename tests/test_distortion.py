"""Distortion curves against a plain loop that prunes copies."""

import copy

import numpy as np
import pytest
import torch
from helpers import same, snapshot
from networks import Net
from small_networks import NETWORKS, conv, images, ladders_of, residual
from torch import nn

from pruninglab import criteria, prune
from pruninglab.channels import by_name, rank
from pruninglab.curves import distortion_curves
from pruninglab.distortion import Probe
from pruninglab.graph import trace
from pruninglab.ladders import at_levels, check_levels
from pruninglab.layers import prunable
from pruninglab.outputs import outputs
from pruninglab.structured import Question, scored_channels
from pruninglab.units import structure


@pytest.fixture(params=NETWORKS)
def net(request):
    torch.manual_seed(1)
    return NETWORKS[request.param]().eval()


@pytest.fixture
def x():
    return images()


# ── curves against a plain loop ───────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def plain_curve(model, x, masks_at_levels, aggregate="mean"):
    """Prune a copy at each level, run it from the start, and compare. Masks: parameter → (where to keep)."""
    was = outputs(model(x))
    curve = []
    for masks in masks_at_levels:
        other = copy.deepcopy(model)
        for name, mask in masks.items():
            other.get_parameter(name).mul_(mask)
        moved = (outputs(other(x)) - was).square().mean(1)
        curve.append(float(moved.mean() if aggregate == "mean" else moved.max()))
    return curve


def smallest_gone(weight, fraction):
    """What stays of a tensor when the ⌊fraction · n⌋ smallest magnitudes go (no ties here)."""
    order = weight.abs().flatten().argsort()
    mask = torch.ones(weight.numel())
    mask[order[: int(fraction * weight.numel() + 1e-9)]] = 0
    return mask.view_as(weight)


@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_curves_of_weights_are_those_of_pruned_copies(net, x, aggregate):
    levels = [0, 0.1, 0.35, 0.5, 0.77, 1]
    found = distortion_curves(net, x, levels=levels, aggregate=aggregate)
    assert list(found.distortion) == list(prunable(net))
    for name, curve in found.distortion.items():
        weight = net.get_parameter(name)
        expected = plain_curve(net, x, [{name: smallest_gone(weight, level)} for level in levels], aggregate)
        assert curve == pytest.approx(expected, rel=1e-4, abs=1e-9)
        assert found.kept[name].tolist() == [weight.numel() - int(level * weight.numel() + 1e-9) for level in levels]


def test_batches_of_any_kind_make_no_difference(x):
    torch.manual_seed(0)
    model = NETWORKS["residual"]().eval()
    y = torch.zeros(len(x), dtype=torch.long)
    for aggregate in ("mean", "max"):
        how = {"levels": 5, "aggregate": aggregate}
        whole = distortion_curves(model, x, **how).distortion
        for data in ((x, y), [x[:1], x[1:]], [(x[:4], y[:4]), (x[4:], y[4:])]):
            for name, curve in distortion_curves(model, data, **how).distortion.items():
                assert curve == pytest.approx(whole[name], rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_curves_of_n_of_every_m_are_those_of_pruned_copies(x, aggregate):
    torch.manual_seed(3)
    model = Net(
        residual, stem=conv(4, 8), norm=nn.Identity(), first=conv(8, 8), second=conv(8, 8), head=nn.Linear(8, 3)
    )
    inputs = torch.randn(5, 4, 4, 4)
    found = distortion_curves(model, inputs, unit="n:4", aggregate=aggregate)
    for name, curve in found.distortion.items():
        weight = model.get_parameter(name).detach()
        groups = weight.movedim(1, -1).unflatten(-1, (-1, 4))
        rank_in_group = groups.abs().argsort(-1, descending=True).argsort(-1)
        masks = [(rank_in_group < n).flatten(-2).movedim(-1, 1) for n in (4, 3, 2, 1)]
        expected = plain_curve(model, inputs, [{name: mask} for mask in masks], aggregate)
        assert curve == pytest.approx(expected, rel=1e-4, abs=1e-9)
        assert found.kept[name].tolist() == [int(mask.sum()) for mask in masks]


def test_curves_of_channels_are_those_of_pruned_copies(x):
    torch.manual_seed(0)
    model = Net(
        residual, stem=conv(2, 4), norm=nn.BatchNorm2d(4), first=conv(4, 6), second=conv(6, 4), head=nn.Linear(4, 3)
    ).eval()
    found = distortion_curves(model, x, unit="channel")
    graph = trace(model, x[:1])
    unit = structure("channel", multiple_of=1)
    question = Question(criteria.find("magnitude"), None, None, None, 0, ())
    _, scores, families = scored_channels(model, unit, graph, question)
    named = by_name([rank(family, scores, unit) for family in families])
    assert list(found.distortion) == list(named)
    assert len(named) == 2  # what the skip ties together, and what lies inside the block
    for name, ranking in named.items():
        masks, gone = [], torch.zeros(graph.n, dtype=torch.bool)
        parameters = dict(model.named_parameters())
        for step in [torch.empty(0, dtype=torch.long), *reversed(ranking.steps[ranking.floor :])]:
            gone[step] = True
            alive = graph.alive(gone)
            masks.append({p: alive[p].expand(parameters[p].shape) for p in alive.keys() & parameters.keys()})
        assert len(masks) == len(found.kept[name])
        assert found.distortion[name] == pytest.approx(plain_curve(model, x, masks), rel=1e-4, abs=1e-9)
    with pytest.raises(ValueError, match="multiply–adds"):
        found.costs("macs")


def test_curves_from_a_point_half_way_down(x):
    """With others pruned already: against the outputs of the whole network, and flat as far as a layer itself is."""
    torch.manual_seed(0)
    model = NETWORKS["residual"]().eval()
    rungs, at = ladders_of(model), [2, 0, 3, 1]
    probe = Probe(model, x)
    found = probe.curves(rungs, at)
    for i, curve in enumerate(found):
        points = [[*at[:i], max(at[i], level), *at[i + 1 :]] for level in range(5)]
        expected = plain_curve(model, x, [at_levels(rungs, point) for point in points])
        assert curve == pytest.approx(expected, rel=1e-4)
        assert (curve[: at[i] + 1] == curve[0]).all()
        assert curve[-1] == pytest.approx(probe.distortion(rungs, points[-1]), rel=1e-5)
    worst = probe.distortion(rungs, at, "max")
    assert worst == pytest.approx(plain_curve(model, x, [at_levels(rungs, at)], "max")[0], rel=1e-5)
    assert probe.distortion(rungs, [0, 0, 0, 0]) == 0


class Worded(nn.Module):
    """Takes named inputs and returns something with logits, as language models do; float64 and half are outputs too."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, words, scale):
        logits = self.head(self.embed(words) * scale)
        return type("Output", (), {"logits": logits})()


def test_named_inputs_and_logits():
    torch.manual_seed(0)
    model = Worded()
    data = [{"words": torch.randint(9, (4, 5)), "scale": torch.tensor(2.0)} for _ in range(2)]
    found = distortion_curves(model, data, levels=3)
    by_derivative = distortion_curves(model, data, levels=3, method="gauss_newton")
    assert by_derivative.distortion["head.weight"] == pytest.approx(found.distortion["head.weight"], rel=1e-4)
    assert found.positions == {"head.weight": 5}


def test_a_criterion_decides_what_goes_first(x):
    torch.manual_seed(0)
    model = NETWORKS["residual"]().eval()
    y = torch.randint(3, (len(x),))
    found = distortion_curves(model, (x, y), criterion="taylor", levels=[0, 0.4, 1])
    masks = prune(copy.deepcopy(model), sparsity=0.4, criterion="taylor", allocation="uniform", data=(x, y))
    for name, ladder in zip(found.distortion, found.ladders, strict=True):
        n = ladder.kept[0]
        if 0.4 * n == int(0.4 * n):
            assert torch.equal(ladder.mask(name, 1), masks[name])


# ── nothing is left behind ────────────────────────────────────────────────────────────────────────────────────────────


def forwards(model):
    return {name: module.__dict__.get("forward") for name, module in model.named_modules()}


@pytest.mark.parametrize("method", ["measured", "gauss_newton", "diagonal"])
@pytest.mark.parametrize("break_at", [None, 2, 3, 9])
def test_the_model_is_left_as_it_was_also_after_an_error(x, method, break_at):
    torch.manual_seed(0)
    model = NETWORKS["residual"]().train()
    model.norm.eval()
    model.first.weight.requires_grad_(False)
    model.head.weight.data[0, 0] = -0.0
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    counted = Countdown(break_at)
    handle = model.second.register_forward_hook(counted)
    before, methods = snapshot(model), forwards(model)
    try:
        distortion_curves(model, [x[:2], x[2:4], x[4:]], levels=4, method=method)
        assert counted.left is None or counted.left > 0
    except ArithmeticError:
        assert counted.left == 0
    assert same(before, snapshot(model))
    assert torch.signbit(model.head.weight)[0, 0]
    assert forwards(model) == methods
    handle.remove()


class Countdown:
    """A hook that fails at its n-th call."""

    def __init__(self, n):
        self.left = n

    def __call__(self, *_):
        if self.left is not None:
            self.left -= 1
            if not self.left:
                raise ArithmeticError("half way")


@pytest.mark.parametrize("method", ["measured", "gauss_newton", "diagonal"])
def test_measuring_twice_is_the_same_to_the_bit(x, method):
    for make in (NETWORKS["residual"], NETWORKS["shared"], NETWORKS["nested"]):
        torch.manual_seed(0)
        model = make().eval()
        one, other = (distortion_curves(model, x, levels=4, method=method) for _ in range(2))
        for name, curve in one.distortion.items():
            assert np.array_equal(curve, other.distortion[name])


# ── going on ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_interrupted_measurement_goes_on(tmp_path, x):
    torch.manual_seed(0)
    model = NETWORKS["residual"]().eval()
    file, data, how = tmp_path / "curves.safetensors", [x[:4], x[4:]], {"levels": 6, "aggregate": "max"}
    expected = distortion_curves(model, data, **how).distortion
    all_runs = Counted()
    handle = model.head.register_forward_hook(all_runs)
    distortion_curves(model, data, **how)
    all_runs, n = Counted(), all_runs.n
    handle.remove()

    handle = model.head.register_forward_hook(Countdown(n // 2))
    with pytest.raises(ArithmeticError):
        distortion_curves(model, data, **how, resume=file)
    handle.remove()
    handle = model.head.register_forward_hook(all_runs)
    found = distortion_curves(model, data, **how, resume=file).distortion
    handle.remove()
    assert n // 2 <= all_runs.n < 0.75 * n  # the curve in which it stopped, and the first pass of each batch, again
    for name, curve in expected.items():
        assert np.array_equal(found[name], curve)
    done = Counted()
    handle = model.head.register_forward_hook(done)
    again = distortion_curves(model, data, **how, resume=file).distortion
    handle.remove()
    assert done.n <= 6  # one pass of each batch for the reference, one for the replay, one to count positions
    assert all(np.array_equal(again[name], curve) for name, curve in expected.items())


class Counted:
    """A hook that counts its calls."""

    def __init__(self):
        self.n = 0

    def __call__(self, *_):
        self.n += 1


def test_resume_takes_no_other_measurement_and_no_torn_file(tmp_path, x):
    torch.manual_seed(0)
    model, file = NETWORKS["residual"]().eval(), tmp_path / "curves.safetensors"
    distortion_curves(model, x, levels=4, resume=file)
    other = copy.deepcopy(model)
    other.head.weight.data[0, 0] += 0.1
    shifted = copy.deepcopy(model)
    shifted.norm.running_mean += 0.1
    attempts = [(model, x, {"levels": 5}), (model, x[:5], {}), (model, x + 1, {}), (model, [x[:3], x[3:]], {})]
    attempts += [(model, x, {"aggregate": "max"}), (model, x, {"exclude": "stem"}), (other, x, {}), (shifted, x, {})]
    for net, data, how in attempts:
        with pytest.raises(ValueError, match=r"curves.safetensors' holds another measurement"):
            distortion_curves(net, data, **({"levels": 4} | how), resume=file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        distortion_curves(model, x, levels=4, resume=file)


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"levels": 1}, "levels must be at least 2"),
        ({"levels": [0.5, 1]}, "levels must rise from 0"),
        ({"levels": [0, 0.6, 0.5]}, "levels must rise from 0"),
        ({"levels": [0, 0.5, 1.2]}, "levels must rise from 0"),
        ({"levels": [0]}, "levels must rise from 0"),
        ({"levels": [0, float("nan")]}, "levels must rise from 0"),
        ({"method": "hessian"}, "unknown method 'hessian'"),
        ({"aggregate": "median"}, "unknown aggregate 'median'"),
        ({"unit": "block"}, "'weight', 'n:M', 'channel' and 'head', not 'block'"),
        ({"unit": "n:5"}, "does not fit layer"),
        ({"criterion": "magnitud"}, "unknown criterion"),
        ({"exclude": "nothing"}, "matches no layer"),
    ],
)
def test_bad_input_is_told_before_anything_runs(x, how, text):
    model = NETWORKS["residual"]().eval()
    before = snapshot(model)
    with pytest.raises(ValueError, match=text):
        distortion_curves(model, x, **how)
    assert same(before, snapshot(model))


@pytest.mark.parametrize("data", [None, torch.empty(0, 2, 5, 5), []])
def test_no_data_are_told(data):
    with pytest.raises(ValueError, match=r"noise of the|empty"):
        distortion_curves(NETWORKS["residual"]().eval(), data, levels=3)


def test_outputs_that_cannot_be_compared_are_told(x):
    model = NETWORKS["residual"]().eval()
    model.head.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="outputs are not finite"):
        distortion_curves(model, x, levels=3)
    listing = Net(lambda self, x: [self.line(x)], line=nn.Linear(3, 2))
    with pytest.raises(ValueError, match="not list"):
        distortion_curves(listing, torch.randn(2, 3), levels=3)


def test_solving_curves(x):
    torch.manual_seed(0)
    model = NETWORKS["residual"]().eval()
    found = distortion_curves(model, x, levels=11)
    solution = found.solve(0.4)
    masks = found.masks(solution)
    assert sum(int(mask.sum()) for mask in masks.values()) == solution.cost <= 0.4 * found.total()
    table = found.table(solution)
    assert table.kept.sum() == solution.cost
    assert table.distortion.sum() == pytest.approx(solution.distortion)
    for budget in (0, -1, 1.5):
        with pytest.raises(ValueError, match="fraction of kept"):
            found.solve(budget)
    with pytest.raises(ValueError, match="unknown cost 'bytes'"):
        found.solve(0.5, cost="bytes")


def test_levels():
    assert check_levels(5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert check_levels([0, 0.9]).tolist() == [0, 0.9]
