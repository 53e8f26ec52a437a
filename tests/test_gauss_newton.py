"""Curves by Gauss–Newton against torch's own derivatives."""

import numpy as np
import pytest
import torch
from small_networks import NETWORKS, conv, images, ladders_of
from torch import nn
from torch.func import functional_call, jvp

from pruninglab.curves import distortion_curves
from pruninglab.distortion import Probe
from pruninglab.gauss_newton import gauss_newton
from pruninglab.ladders import at_levels


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
def x():
    return images()


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
