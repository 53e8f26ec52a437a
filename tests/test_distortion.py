"""Distortion curves against a plain loop that prunes copies, and Gauss–Newton against torch's own derivatives."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from helpers import same, snapshot
from networks import Net
from torch import nn
from torch.func import functional_call, jvp

from pruninglab import criteria, prune
from pruninglab.channels import by_name, rank
from pruninglab.curves import distortion_curves
from pruninglab.distortion import Probe
from pruninglab.gauss_newton import gauss_newton
from pruninglab.graph import trace
from pruninglab.ladders import at_levels, check_levels, weight_ladders
from pruninglab.layers import prunable
from pruninglab.outputs import outputs
from pruninglab.replay import Replay
from pruninglab.scoring import layer_scores
from pruninglab.structured import Question, scored_channels
from pruninglab.units import structure


def conv(a, b, k=3, **options):
    return nn.Conv2d(a, b, k, padding=k // 2, **options)


def _residual(self, x):
    x = torch.relu(self.norm(self.stem(x)))
    y = self.second(torch.relu(self.first(x)))
    y += x  # in place, on what a module returned
    return self.head(torch.relu(y).mean((2, 3)))


def _concatenated(self, x):
    x = self.stem(x)
    return self.head(torch.cat([self.left(x), self.right(x), x], 1).mean((2, 3)))


def _shared(self, x):
    x = self.stem(x)
    for _ in range(3):
        x = torch.relu(self.again(x))
    return self.head(x.mean((2, 3)))


def _in_place(self, x):
    x = self.act(self.stem(x))
    y = self.first(x)
    z = self.act(y)  # the same module again; it writes into y, and returns y itself
    z += 1
    return self.head((self.second(z) + y).mean((2, 3)))


def _nested(self, x):
    return self.head(self.body(self.stem(x)).mean((2, 3)))


NETWORKS = {
    "residual": lambda: Net(
        _residual, stem=conv(2, 4), norm=nn.BatchNorm2d(4), first=conv(4, 4), second=conv(4, 4), head=nn.Linear(4, 3)
    ),
    "concatenated": lambda: Net(
        _concatenated, stem=conv(2, 4), left=conv(4, 3), right=conv(4, 5, groups=1), head=nn.Linear(12, 3)
    ),
    "shared": lambda: Net(_shared, stem=conv(2, 4), again=conv(4, 4, groups=2), head=nn.Linear(4, 3)),
    "in place": lambda: Net(
        _in_place, stem=conv(2, 4), act=nn.ReLU(inplace=True), first=conv(4, 4), second=conv(4, 4), head=nn.Linear(4, 3)
    ),
    "nested": lambda: Net(
        _nested,
        stem=conv(2, 4),
        body=nn.Sequential(conv(4, 8), nn.Sequential(nn.ReLU(inplace=True), conv(8, 8, groups=8)), conv(8, 4, 1)),
        head=nn.Linear(4, 3),
    ),
}


@pytest.fixture(params=NETWORKS)
def net(request):
    torch.manual_seed(1)
    return NETWORKS[request.param]().eval()


@pytest.fixture
def x():
    return torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(2))


def ladders_of(model, levels=5, exclude=()):
    layers = prunable(model, exclude)
    return weight_ladders(layer_scores(model, layers, criteria.find("magnitude"), None, exclude=exclude), levels)


# ── replaying ─────────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_a_replay_is_a_full_run(net, x):
    """After a change in any layer, from the moment of its first use on."""
    other, given = copy.deepcopy(net), x.clone()
    with Replay(net, x) as replay:
        assert torch.equal(replay.outputs, other(x))
        for name in prunable(net):
            weight, mirrored = net.get_parameter(name), other.get_parameter(name)
            when, before = replay.first_use([weight]), weight.clone()
            for factor in (0.0, -2.0, 1.0):
                mirrored.copy_(weight.copy_(factor * before))
                assert torch.equal(replay.resume(when), other(x)), (name, factor)
    assert torch.equal(x, given)


def test_what_lies_before_is_not_run_again(x):
    torch.manual_seed(0)
    model, seen = NETWORKS["residual"]().eval(), []
    with Replay(model, x) as replay, torch.no_grad():
        model.second.register_forward_hook(lambda *_: None)
        for name in ("stem", "first", "second", "head"):
            inner = model.get_submodule(name)
            inner._conv_forward = partial(_noted, seen, name, getattr(inner, "_conv_forward", None))
        for name in ("stem", "first", "second"):
            seen.clear()
            replay.resume(replay.first_use([model.get_submodule(name).weight]))
            assert seen == ["stem", "first", "second"][["stem", "first", "second"].index(name) :]


def _noted(seen, name, run, *args):
    seen.append(name)
    return run(*args)


def test_a_replaced_forward_is_put_back_also_after_an_error(x):
    torch.manual_seed(0)
    model = NETWORKS["residual"]().eval()
    own = model.first.forward
    model.first.forward = replaced = lambda inputs: 2 * own(inputs)  # as adapters and quantisers do
    model.first.register_forward_hook(lambda _module, _args, output: output + 1)
    with torch.no_grad():
        expected = model(x)
    with Replay(model, x) as replay:
        assert torch.equal(replay.outputs, expected)
        assert torch.equal(replay.resume(replay.first_use([model.second.weight])), expected)
    assert model.first.__dict__["forward"] is replaced
    assert [name for name, module in model.named_modules() if "forward" in module.__dict__] == ["first"]

    def broken(_inputs):
        raise ArithmeticError("half way")

    model.second.forward = broken
    with pytest.raises(ArithmeticError, match="half way"):
        distortion_curves(model, x, levels=3)
    assert model.first.__dict__["forward"] is replaced
    assert model.second.__dict__["forward"] is broken
    assert [name for name, module in model.named_modules() if "forward" in module.__dict__] == ["first", "second"]


def test_hooks_run_where_modules_run(x):
    """A hook that scales what a layer gives is part of the network, and curves see it."""
    torch.manual_seed(0)
    model = NETWORKS["concatenated"]().eval()
    plain = distortion_curves(model, x, levels=4)
    model.left.register_forward_hook(lambda _module, _args, output: 3 * output)
    hooked = distortion_curves(model, x, levels=4)
    assert hooked.distortion["left.weight"] == pytest.approx(9 * plain.distortion["left.weight"], rel=1e-4)
    assert hooked.distortion["right.weight"] == pytest.approx(plain.distortion["right.weight"], rel=1e-4)


class Turning(nn.Module):
    """Calls two layers in another order once a later one is empty."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        first, second = (self.a, self.b) if self.last.weight.any() else (self.b, self.a)
        return self.last(second(first(x)))


def test_a_model_that_takes_another_path_is_told():
    model, x = Turning(), torch.randn(3, 4)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="Turning does not call its modules in the same order"):
        distortion_curves(model, x, levels=3)
    assert same(before, snapshot(model))
    assert len(distortion_curves(model, x, levels=[0, 0.9]).distortion) == 3  # not as long as something is left


# ── curves against a plain loop ───────────────────────────────────────────────────────────────────────────────────


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
        _residual, stem=conv(4, 8), norm=nn.Identity(), first=conv(8, 8), second=conv(8, 8), head=nn.Linear(8, 3)
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
        _residual, stem=conv(2, 4), norm=nn.BatchNorm2d(4), first=conv(4, 6), second=conv(6, 4), head=nn.Linear(4, 3)
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


# ── Gauss–Newton ──────────────────────────────────────────────────────────────────────────────────────────────────


class Tied(nn.Module):
    """One matrix used twice, at several positions the second time, and then grouped and plain layers."""

    def __init__(self, outputs=3):
        super().__init__()
        self.conv = conv(2, 4)
        self.grouped = conv(4, 8, groups=4, stride=2)
        self.line = nn.Conv1d(8, 4, 3, dilation=2)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.head = nn.Linear(4, outputs)

    def forward(self, x):
        x = torch.tanh(self.grouped(torch.tanh(self.conv(x)))).flatten(2)
        tokens = torch.tanh(self.line(x)).mT
        return self.head(self.b(torch.tanh(self.a(tokens))).mean(1))


def by_jvp(model, x, ladder, masks_now=None):
    """JΔ of the outputs along what each level removes: (levels, samples, outputs), in float64."""
    state = {name: p.detach().double() for name, p in model.named_parameters()}
    if masks_now is not None:
        state |= {name: state[name] * mask for name, mask in masks_now.items()}
    weight = state[ladder.name]
    found = []
    for level in range(len(ladder.kept)):
        delta = -weight * (ladder.removed_at[ladder.name] <= level)

        def run(w):
            return functional_call(model, state | {ladder.name: w}, (x.double(),))

        found.append(jvp(run, (weight,), (delta,))[1])
    return torch.stack(found), run(weight)


@pytest.fixture
def tied():
    torch.manual_seed(4)
    return Tied(), torch.randn(7, 2, 6, 6)


@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_gauss_newton_is_the_derivative_along_the_path(tied, aggregate):
    model, x = tied
    rungs = ladders_of(model, levels=6)
    assert len(rungs) == 5
    curves = gauss_newton(model, rungs, x, aggregate=aggregate)
    for ladder, curve in zip(rungs, curves, strict=True):
        moved = by_jvp(model, x, ladder)[0].square().mean(2)
        expected = moved.mean(1) if aggregate == "mean" else moved.amax(1)
        assert curve == pytest.approx(expected.numpy(), rel=2e-4, abs=1e-9), ladder.name


def test_gauss_newton_from_a_point_half_way_down(tied):
    """What the outputs are off already is added to each sample's move before it is squared."""
    model, x = tied
    rungs, at = ladders_of(model, levels=6), [1, 4, 0, 2, 3]
    curves = Probe(model, [x[:3], x[3:]]).curves(rungs, at, method="gauss_newton")
    masks = at_levels(rungs, at)
    was = by_jvp(model, x, rungs[0])[1]
    for ladder, curve in zip(rungs, curves, strict=True):
        moved, now = by_jvp(model, x, ladder, masks)
        assert curve == pytest.approx((moved + now - was).square().mean((1, 2)).numpy(), rel=2e-3, abs=1e-6)
        assert curve[0] == pytest.approx(float((now - was).square().mean()), rel=1e-4)


def test_the_diagonal_leaves_out_what_weights_do_together(tied):
    model, x = tied
    rungs = ladders_of(model, levels=6)
    curves = gauss_newton(model, rungs, x, diagonal=True)
    state = {name: p.detach() for name, p in model.named_parameters()}
    for ladder, curve in zip(rungs, curves, strict=True):

        def run(w, name=ladder.name):
            return functional_call(model, state | {name: w}, (x,))

        jacobian = torch.func.jacrev(run)(state[ladder.name]).flatten(2)  # (samples, outputs, weights)
        each = (jacobian * state[ladder.name].flatten()).square().mean((0, 1))
        gone = ladder.removed_at[ladder.name].flatten()
        expected = [float(each[gone <= level].sum()) for level in range(6)]
        assert curve == pytest.approx(expected, rel=1e-3, abs=1e-9), ladder.name


def test_on_a_linear_network_gauss_newton_is_what_is_measured():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(24, 8), nn.Linear(8, 5))
    x = torch.randn(9, 3, 8)
    measured, derived = (
        distortion_curves(model, x, levels=9, method=method).distortion for method in ("measured", "gauss_newton")
    )
    for name, curve in measured.items():
        assert derived[name] == pytest.approx(curve, rel=1e-4, abs=1e-9)


def test_random_signs_are_right_on_average():
    """More outputs than probes: draws scatter, the mean of many is the exact curve, within 4 standard errors."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 24)), torch.randn(5, 6)
    rungs = ladders_of(model, levels=4)
    exact = np.array(gauss_newton(model, rungs, x, probes=24))
    draws = np.array([gauss_newton(model, rungs, x, probes=4, seed=seed) for seed in range(150)])
    error = draws.std(0, ddof=1) / len(draws) ** 0.5
    assert (np.abs(draws.mean(0) - exact) <= 4 * error + 1e-12).all()
    assert (draws.std(0)[:, 1:] > 0.02 * exact[:, 1:]).all()  # they do scatter
    assert np.array_equal(draws[3], gauss_newton(model, rungs, x, probes=4, seed=3))


@pytest.mark.parametrize("method", ["gauss_newton", "diagonal"])
def test_derivatives_are_for_weights_of_layers(x, method):
    model = NETWORKS["residual"]().eval()
    with pytest.raises(ValueError, match=r"Gauss–Newton curves are for layers' weights; '0\|"):
        distortion_curves(model, x, unit="channel", method=method)


# ── nothing is left behind ────────────────────────────────────────────────────────────────────────────────────────


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


# ── going on ──────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────────────────────


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
