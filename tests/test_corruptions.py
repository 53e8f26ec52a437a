"""Corruptions against scipy.ndimage and NumPy, and against what they must leave alone."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pruninglab.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from pruninglab.tasks import data

SHAPES = [(6, 1, 8, 8), (6, 3, 7, 10), (6, 2, 9, 5)]
SOME = {"noise": 0.2, "blur": 0.11, "contrast": 0.6, "shift": 0.17, "rotation": 23.0}


def pictures(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def agree(found, expected, tolerance=1e-9):
    return np.abs(np.asarray(found) - np.asarray(expected)).max() < tolerance


# ── against other computations ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("black", [0.0, -1.3])
def test_blur_is_scipys(shape, strength, black):
    x = pictures(*shape) + black
    sigma = strength * min(shape[2:])
    filtered = ndimage.gaussian_filter(
        x.numpy(), (0, 0, sigma, sigma), mode="constant", cval=black, radius=(0, 0, *2 * [math.ceil(4 * sigma)])
    )
    assert agree(corrupt(x, "blur", strength, limits=(black, 2)), filtered)


def moves(x, found, candidates):
    """For each picture which of the candidates it became; an error if none."""
    chosen = []
    for before, after in zip(x.numpy(), found.numpy(), strict=True):
        right = [i for i, made in enumerate(candidates) if agree(after, made(before))]
        assert len(right) == 1, "no candidate, or several, made this picture"
        chosen += right
    return chosen


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("black", [0.0, -1.3])
def test_shift_is_scipys_in_one_of_four_directions(shape, black):
    x = pictures(40, *shape[1:]) + black
    directions = []
    for strength in (0.05, 0.3):
        d = strength * min(shape[2:])
        candidates = [
            lambda picture, way=way: ndimage.shift(picture, way, order=1, mode="grid-constant", cval=black)
            for way in [(0, d, 0), (0, -d, 0), (0, 0, d), (0, 0, -d)]
        ]
        directions.append(moves(x, corrupt(x, "shift", strength, limits=(black, 2)), candidates))
    assert directions[0] == directions[1], "levels may differ in nothing but how much"
    assert set(directions[0]) == {0, 1, 2, 3}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("black", [0.0, -1.3])
def test_rotation_is_scipys_to_one_of_both_sides(shape, black):
    x = pictures(20, *shape[1:]) + black
    sides = []
    for degrees in (7.0, 50.0):
        candidates = [
            lambda picture, a=a: ndimage.rotate(
                picture, a, axes=(1, 2), reshape=False, order=1, mode="grid-constant", cval=black
            )
            for a in (degrees, -degrees)
        ]
        sides.append(moves(x, corrupt(x, "rotation", degrees, limits=(black, 2)), candidates))
    assert sides[0] == sides[1], "levels may differ in nothing but how much"
    assert set(sides[0]) == {0, 1}


def test_a_quarter_turn_and_a_shift_by_whole_pixels_are_exact():
    x = pictures(30, 2, 8, 8)
    turned = corrupt(x, "rotation", 90.0)
    both = np.rot90(x.numpy(), 1, (2, 3)), np.rot90(x.numpy(), -1, (2, 3))
    assert all(agree(turned[i], both[0][i]) or agree(turned[i], both[1][i]) for i in range(30))
    shifted = corrupt(x, "shift", 0.25).numpy()
    for before, after in zip(x.numpy(), shifted, strict=True):
        right, down = np.zeros_like(before), np.zeros_like(before)
        right[:, :, 2:], down[:, 2:] = before[:, :, :-2], before[:, :-2]
        left, up = np.zeros_like(before), np.zeros_like(before)
        left[:, :, :-2], up[:, :-2] = before[:, :, 2:], before[:, 2:]
        assert any(agree(after, made) for made in (right, down, left, up))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", [0.3, 0.95, 1.0])
def test_contrast_draws_pixels_to_the_mean_of_picture_and_channel(shape, strength):
    x = pictures(*shape)
    found = corrupt(x, "contrast", strength)
    for i in range(shape[0]):
        for c in range(shape[1]):
            plane = x[i, c].numpy()
            assert agree(found[i, c], (1 - strength) * (plane - plane.mean()) + plane.mean())


def test_noise_has_the_standard_deviation_asked_for_and_is_cut_off():
    x = torch.full((200, 1, 10, 10), 1.0, dtype=torch.float64)
    small, large = (corrupt(x, "noise", s, limits=(-3, 5)) - x for s in (0.05, 0.1))
    assert float(small.std()) == pytest.approx(0.05 * 8, rel=0.02)
    assert abs(float(small.mean())) < 0.01
    assert agree(large, 2 * small), "levels may differ in nothing but how much"
    cut = corrupt(x, "noise", 2.0, limits=(-3, 5))
    assert (float(cut.min()), float(cut.max())) == (-3, 5)
    unlike = [tuple(picture.flatten().tolist()) for picture in small]
    assert len(set(unlike)) == len(unlike), "each picture gets noise of its own"


# ── properties ────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(CORRUPTIONS)),
    st.sampled_from(SHAPES),
    st.integers(0, 99),
    st.floats(0.1, 9),
    st.floats(-5, 5),
)
def test_the_scale_of_the_data_does_not_matter(kind, shape, seed, scale, offset):
    x = pictures(*shape, seed=seed)
    plain = corrupt(x, kind, SOME[kind], seed=seed)
    scaled = corrupt(scale * x + offset, kind, SOME[kind], limits=(offset, scale + offset), seed=seed)
    assert agree((scaled - offset) / scale, plain, 1e-7)
    assert plain.shape == x.shape
    assert plain.dtype == x.dtype
    assert float(plain.min()) > -1e-12
    assert float(plain.max()) < 1 + 1e-12


@pytest.mark.parametrize("kind", sorted(CORRUPTIONS))
def test_the_same_seed_gives_the_same_and_nothing_else_is_touched(kind):
    x = pictures(8, 1, 8, 8).float()
    before, generator = x.clone(), torch.get_rng_state()
    one, other = corrupt(x, kind, SOME[kind], seed=3), corrupt(x, kind, SOME[kind], seed=3)
    assert torch.equal(one, other)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), generator)
    drawn = kind in ("noise", "shift", "rotation")
    assert torch.equal(one, corrupt(x, kind, SOME[kind], seed=4)) != drawn


@pytest.mark.parametrize("kind", sorted(CORRUPTIONS))
def test_strength_zero_is_a_copy_of_the_pictures(kind):
    x = 4 * pictures(3, 1, 8, 8) - 1.7  # beyond the limits too
    found = corrupt(x, kind, 0)
    assert torch.equal(found, x)
    found += 1
    assert not torch.equal(found, x)


@pytest.mark.parametrize("kind", sorted(set(CORRUPTIONS) - {"noise"}))
def test_a_black_picture_stays_black(kind):
    x = torch.full((3, 1, 8, 8), -1.3)
    torch.testing.assert_close(corrupt(x, kind, SOME[kind], limits=(-1.3, 2.0)), x)


@pytest.mark.parametrize("kind", sorted(CORRUPTIONS))
def test_each_level_takes_digits_farther_from_what_they_were(kind):
    x = data.digits()["train"][0]
    limits = (float(x.min()), float(x.max()))
    away = [float((corrupt(x, kind, s, limits=limits) - x).square().mean()) for s in STRENGTHS[kind]]
    assert len(away) == 5
    assert all(near < far for near, far in itertools.pairwise(away))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("kind", sorted(CORRUPTIONS))
def test_the_smallest_pictures(kind, size):
    assert corrupt(pictures(2, 1, size, size), kind, SOME[kind]).isfinite().all()


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("x", "kind", "strength", "limits", "message"),
    [
        (torch.rand(3, 64), "blur", 0.1, (0, 1), r"\(samples, channels, height, width\).*\(3, 64\)"),
        (torch.ones(3, 1, 8, 8, dtype=torch.int64), "blur", 0.1, (0, 1), "floats.*int64"),
        (torch.rand(0, 1, 8, 8), "blur", 0.1, (0, 1), r"each at least 1, not \(0, 1, 8, 8\)"),
        (torch.rand(3, 1, 8, 8), "blurr", 0.1, (0, 1), "unknown corruption 'blurr'. Did you mean 'blur'"),
        (torch.rand(3, 1, 8, 8), "blur", -0.1, (0, 1), "strength of blur is a number from 0 to inf, not -0.1"),
        (torch.rand(3, 1, 8, 8), "noise", math.nan, (0, 1), "not nan"),
        (torch.rand(3, 1, 8, 8), "rotation", math.inf, (0, 1), "not inf"),
        (torch.rand(3, 1, 8, 8), "contrast", 1.1, (0, 1), "strength of contrast is a number from 0 to 1, not 1.1"),
        (torch.rand(3, 1, 8, 8), "noise", 0.1, (1, 0), r"limits are \(black, white\).*not \(1, 0\)"),
    ],
)
def test_errors_say_what_is_allowed(x, kind, strength, limits, message):
    with pytest.raises(ValueError, match=message):
        corrupt(x, kind, strength, limits=limits)
