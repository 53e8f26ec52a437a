"""Lines between networks against parabolas, CKA against its definition by Gram matrices, dead units counted by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import make_task, same, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruninglab.measure import Dead, dead_units
from pruninglab.stability import Barrier, barrier, cka, distance, interpolate
from pruninglab.tasks import models


def number(value):
    """A network that is one weight."""
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(value)
    return net


def normed(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
        nn.init.normal_(net[1].weight)
        nn.init.normal_(net[1].bias)
        net.train()(torch.randn(16, 4) + seed)
    return net.eval()


def squashed(net):
    net.relu2 = nn.Tanh()
    return net


# ── between two networks ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_weights_and_float_buffers_lie_on_the_line(alpha):
    a, b = normed(0), normed(1)
    b[1].num_batches_tracked += 5
    a(torch.ones(2, 4)).sum().backward()
    before = snapshot(a), snapshot(b)
    c = interpolate(a, b, alpha)
    assert same(before[0], snapshot(a))
    assert same(before[1], snapshot(b))
    states = a.state_dict(), b.state_dict()
    for name, value in c.state_dict().items():
        x, y = (state[name] for state in states)
        if name == "1.num_batches_tracked":
            assert int(value) == 1
        elif alpha in (0, 1):
            assert torch.equal(value, (x, y)[int(alpha)])
        else:
            torch.testing.assert_close(value, x + alpha * (y - x))
            assert not torch.equal(x, y)
    assert not c.training
    assert all(p.grad is None and p.requires_grad for p in c.parameters())


def test_tied_weights_stay_tied():
    a, b = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
    for net in (a, b):
        net[1].weight = net[0].weight
    c = interpolate(a, b, 0.3)
    assert c[0].weight is c[1].weight
    torch.testing.assert_close(c[0].weight, 0.7 * a[0].weight + 0.3 * b[0].weight)


def test_weights_are_paired_by_name_not_by_the_order_of_their_making():
    a, b = (nn.Module() for _ in range(2))
    a.left, a.right = number(1), number(2)
    b.right, b.left = number(4), number(3)
    c = interpolate(a, b, 0.5)
    assert (float(c.left.weight.detach()), float(c.right.weight.detach())) == (2, 3)
    assert distance(a, b) == pytest.approx(math.sqrt(8))


@settings(max_examples=50, deadline=None)
@given(*[st.floats(-3, 3)] * 5, st.integers(2, 9))
def test_height_and_connectivity_of_a_parabola(u, v, bend, slope, level, points):
    def error(net):
        w = float(net.weight.detach())
        return bend * w * w + slope * w + level

    found = barrier(number(u), number(v), error, points=points)
    line = [i / (points - 1) for i in range(points)]
    expected = [bend * w * w + slope * w + level for w in ((1 - t) * u + t * v for t in line)]
    assert found.alphas == pytest.approx(line)
    assert found.errors == pytest.approx(expected, abs=1e-4)
    mean = (expected[0] + expected[-1]) / 2
    assert found.height == pytest.approx(max(expected) - mean, abs=1e-4)
    assert found.height >= 0
    assert abs(found.connectivity) == pytest.approx(max(abs(e - mean) for e in expected), abs=1e-4)


def test_a_hill_has_height_a_valley_is_better_than_its_ends_and_a_slope_counts_half():
    hill = barrier(number(-1), number(1), lambda net: 1 - net.weight**2)
    assert hill.height == 1
    assert hill.connectivity == -1
    valley = barrier(number(-1), number(1), lambda net: net.weight**2)
    assert valley.height == 0
    assert valley.connectivity == 1
    slope = barrier(number(0), number(1), lambda net: net.weight)
    assert slope.height == pytest.approx(0.5)
    assert abs(slope.connectivity) == pytest.approx(0.5)
    assert barrier(number(0), number(1), lambda net: torch.tensor(2.0)).connectivity == 0
    assert Barrier((0.0, 0.5, 1.0), (1.0, 4.0, 2.0)).height == 2.5


def test_a_convex_error_has_no_more_than_its_higher_end(tiny):
    """Softmax regression: whatever two weights are taken, the loss between them is never above both."""
    x, y = tiny.data["train"]
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        ends = [nn.Linear(8, 3), nn.Linear(8, 3)]
        with torch.no_grad():
            for net in ends:
                net.weight.normal_(generator=generator)
        found = barrier(*ends, lambda net: F.cross_entropy(net(x), y))
        first, last = found.errors[0], found.errors[-1]
        assert found.height == pytest.approx(abs(first - last) / 2, rel=1e-5)


def test_the_same_function_with_its_units_in_another_order_lies_behind_a_barrier(tiny):
    a = tiny.trained(0)
    b = copy.deepcopy(a)
    first, second, _ = (layer for layer in b if isinstance(layer, nn.Linear))
    order = torch.arange(len(first.weight)).flip(0)
    with torch.no_grad():
        first.weight.copy_(first.weight[order])
        first.bias.copy_(first.bias[order])
        second.weight.copy_(second.weight[:, order])
    x, y = tiny.data["test"]
    torch.testing.assert_close(a(x), b(x))
    found = barrier(a, b, lambda net: tiny.loss(net(x), y))
    assert found.errors[0] == pytest.approx(found.errors[-1], rel=1e-5)
    assert found.height > 0.1 * found.errors[0]
    assert found.connectivity == pytest.approx(-found.height)


def statistics_on(net, x):
    """Mean and variance of what arrives at the norm, as it counts them: over n − 1."""
    arriving = net[0](x)
    return arriving.mean(0), arriving.var(0)


def test_norms_are_measured_anew_at_every_point_ends_too():
    a, b = normed(0), normed(1)
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(2))
    before = snapshot(a), snapshot(b)
    seen = []

    def error(net):
        with torch.no_grad():
            mean, variance = statistics_on(net, x)
        torch.testing.assert_close(net[1].running_mean, mean)
        torch.testing.assert_close(net[1].running_var, variance)
        assert not net.training
        seen.append(net)
        return 0.0

    barrier(a, b, error, points=4, recalibrate=x)
    barrier(a, b, error, points=3, recalibrate=(batch for batch in [x]))  # a generator can be read only once
    assert len({id(net) for net in seen}) == 7
    assert same(before[0], snapshot(a))
    assert same(before[1], snapshot(b))


def test_without_data_the_statistics_of_norms_are_interpolated():
    a, b = normed(0), normed(1)
    means = []
    barrier(a, b, lambda net: means.append(net[1].running_mean.clone()) or 0.0, points=3)
    torch.testing.assert_close(means[1], (a[1].running_mean + b[1].running_mean) / 2)


def test_distance_is_that_of_all_parameters_and_of_no_buffer():
    a = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    b = copy.deepcopy(a)
    b[1].running_mean += 100
    assert distance(a, b) == 0
    with torch.no_grad():
        b[0].weight += torch.tensor([[3.0, 0.0]])
        b[0].bias -= 4
        b[1].weight += 12
    assert distance(a, b) == pytest.approx(13)
    assert distance(b, a) == distance(a, b)
    assert distance(a, interpolate(a, b, 0.25)) == pytest.approx(13 / 4, rel=1e-5)


@pytest.mark.parametrize(
    ("b", "words"),
    [
        (models.mlp(6, 7, 5, 4), r"fc3\.weight: \(3, 5\) here, \(4, 5\) there"),
        (models.mlp(6, 7, 3), "Linear here, missing there"),
        (squashed(models.mlp(6, 7, 5, 3)), "relu2: ReLU here, Tanh there"),
        (nn.Linear(6, 3), "the network: Sequential here, Linear there"),
    ],
)
def test_other_architectures_are_refused(mlp, b, words):
    for compare in (distance, lambda *nets: interpolate(*nets, 0.5), lambda *nets: barrier(*nets, lambda _: 0.0)):
        with pytest.raises(ValueError, match=words):
            compare(mlp, b)


@pytest.mark.parametrize("points", [1, 0, -3])
def test_fewer_than_two_points_are_refused(mlp, points):
    with pytest.raises(ValueError, match=f"at least 2, not {points}"):
        barrier(mlp, mlp, lambda _: 0.0, points=points)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_a_point_off_the_line_is_refused(mlp, alpha):
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        interpolate(mlp, mlp, alpha)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_an_error_that_is_no_number_is_refused(wrong):
    with pytest.raises(ValueError, match=f"at alpha = 0.5 of the line is {wrong}"):
        barrier(number(0), number(1), lambda net: wrong if net.weight == 0.5 else 0.0, points=3)


def test_empty_data_are_refused():
    with pytest.raises(ValueError, match="these are empty"):
        barrier(normed(0), normed(1), lambda _: 0.0, recalibrate=torch.zeros(0, 4))


# ── CKA ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def pair(seed, n=20, d=5, e=7):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) + 3
    noise = torch.randn(n, e, generator=generator, dtype=torch.float64)
    return x, x @ torch.randn(d, e, generator=generator, dtype=torch.float64) + noise, generator


def hsic(k, l):  # noqa: E741
    n = len(k)
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    return torch.trace(k @ h @ l @ h) / (n - 1) ** 2


@pytest.mark.parametrize("shape", [(20, 5, 7), (4, 9, 6), (2, 1, 1), (50, 10, 10)])
def test_cka_is_hsic_of_gram_matrices(shape):
    for seed in range(3):
        x, y, _ = pair(seed, *shape)
        k, l = x @ x.T, y @ y.T  # noqa: E741
        assert cka(x, y) == pytest.approx(float(hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()), rel=1e-10)


def test_cka_does_not_see_rotations_factors_and_shifts_but_other_linear_maps():
    x, y, generator = pair(0)
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64)).Q
    assert cka(x, -12.5 * y @ rotation + 100) == pytest.approx(cka(x, y), rel=1e-10)
    assert cka(x, y) == cka(y, x)
    assert cka(y, y @ rotation) == pytest.approx(1, rel=1e-12)
    assert cka(1e-30 * x, 1e30 * y) == pytest.approx(cka(x, y), rel=1e-10)
    assert abs(cka(x, y * torch.logspace(-1, 1, 7)) - cka(x, y)) > 0.01


def test_cka_of_uncorrelated_outputs_is_0_and_of_one_column_the_squared_correlation():
    x = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    y = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert cka(x, y) == 0
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    assert cka(u[:, None], v[:, None]) == pytest.approx(float(torch.corrcoef(torch.stack([u, v]))[0, 1] ** 2))


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.randn(5, 2), torch.randn(4, 2), r"\(5, 2\) and \(4, 2\)"),
        (torch.randn(5), torch.randn(5), r"\(5,\) and \(5,\)"),
        (torch.randn(1, 3), torch.randn(1, 3), "n ≥ 2"),
        (torch.tensor([[1.0], [math.nan]]), torch.randn(2, 1), "first matrix holds NaN"),
        (torch.randn(2, 1), torch.tensor([[1.0], [math.inf]]), "second matrix holds NaN or infinite"),
        (torch.randn(7, 3), torch.full((7, 2), 0.1), "all rows of the second matrix are equal"),
        (torch.zeros(7, 3), torch.randn(7, 2), "all rows of the first matrix are equal"),
    ],
)
def test_what_cka_cannot_compare_is_refused(x, y, words):
    with pytest.raises(ValueError, match=words):
        cka(x, y)


# ── dead units ────────────────────────────────────────────────────────────────────────────────────────────────────


class Cuts(nn.Module):
    """What a function makes of the inputs."""

    def __init__(self, *functions):
        super().__init__()
        self.functions = functions

    def forward(self, x):
        for function in self.functions:
            x = function(x)
        return x


SIGNS = torch.tensor([[1.0, -1.0, 0.0], [2.0, -3.0, 4.0]])  # three zeros of six; the second unit is always dead


@pytest.mark.parametrize(
    "cut",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        F.relu,
        torch.relu,
        torch.Tensor.relu,
        lambda x: F.relu(x, inplace=True),
        lambda x: torch.relu_(x),
        lambda x: x.relu_(),
    ],
)
def test_every_way_to_call_relu_is_counted_once(cut):
    assert dead_units(Cuts(torch.clone, cut), SIGNS) == Dead(dynamic=3 / 6, static=1 / 3)


def test_dead_units_of_a_network_counted_by_hand(mlp, batch):
    x = batch[0]
    with torch.no_grad():
        mlp[1].bias[2] = -9  # so that one unit of twelve is silent for all
    before = snapshot(mlp.train())
    found = dead_units(mlp, x)
    assert same(before, snapshot(mlp))
    silent, always, units = 0, 0, 0
    weights = [(layer.weight.tolist(), layer.bias.tolist()) for layer in mlp if isinstance(layer, nn.Linear)]
    rows = x.tolist()
    for weight, bias in weights[:-1]:
        sums = [[math.fsum([*map(math.prod, zip(w, row, strict=True)), c]) for w, c in zip(weight, bias, strict=True)]
                for row in rows]  # fmt: skip
        rows = [[max(0.0, s) for s in row] for row in sums]
        silent += sum(value == 0 for row in rows for value in row)
        always += sum(all(value == 0 for value in unit) for unit in zip(*rows, strict=True))
        units += len(bias)
    assert found.dynamic == pytest.approx(silent / (len(rows) * units))
    assert found.static == pytest.approx(always / units)
    assert 0 < found.static < found.dynamic < 1


def test_each_position_of_a_map_and_each_call_is_a_unit_of_its_own():
    shared = nn.ReLU()
    maps = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 1, 2, 2).repeat(3, 2, 1, 1)
    assert dead_units(Cuts(shared, torch.neg, shared), maps) == Dead(0.75, 0.75)  # 1 0 1 0, then 0 0 0 0
    assert dead_units(shared, maps[:, :, :, :1]) == Dead(0, 0)


def test_a_unit_without_inputs_is_dead_for_all_of_them(tiny):
    model = tiny.trained(0)
    before = dead_units(model, tiny.data["test"][0])
    with torch.no_grad():
        model[1].weight[:4] = 0
        model[1].bias[:4] = -1
    after = dead_units(model, tiny.data["test"][0])
    assert after.static >= 4 / 28
    assert after.static > before.static
    assert after.dynamic >= after.static


def test_norms_work_as_in_evaluation():
    t = make_task(norm=True)
    model, x = t.trained(0), t.data["test"][0]
    assert dead_units(model.train(), x) == dead_units(model.eval(), x)
    assert dead_units(model, x[:1]).static == dead_units(model, x[:1]).dynamic  # of one input they are the same


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.GELU()), nn.ReLU6()])
def test_a_network_without_relu_is_refused(model):
    with pytest.raises(ValueError, match=r"no ReLU of this \w+ \(nn.ReLU, F.relu, torch.relu\) put anything out"):
        dead_units(model, SIGNS)


def test_no_inputs_and_nan_are_refused():
    with pytest.raises(ValueError, match="put anything out"):
        dead_units(nn.ReLU(), SIGNS[:0])
    with pytest.raises(ValueError, match="output of ReLU is NaN"):
        dead_units(nn.ReLU(), torch.tensor([[math.nan]]))
