"""The PQ index against its formula and the axioms of sparsity, its bound against every subset, SAP by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pruninglab.pq import next_keep, pq_index, retained

ORDERS = [(0.1, 1.0), (0.5, 1.0), (0.3, 1.7), (1.0, 1.5), (1.0, 2.0)]
orders = st.sampled_from(ORDERS)
weights = st.lists(st.integers(0, 1000).map(float), min_size=2, max_size=12).filter(any)
quick = settings(max_examples=100, deadline=None)


def index(values, p, q):
    return pq_index(torch.tensor(values, dtype=torch.float64), p=p, q=q)


def by_hand(values, p, q):
    def norm(order):
        return math.fsum(abs(v) ** order for v in values) ** (1 / order)

    return 1 - len(values) ** (1 / q - 1 / p) * norm(p) / norm(q)


# ── the index ─────────────────────────────────────────────────────────────────────────────────────────────────────


@quick
@given(weights, orders)
def test_the_index_is_its_formula_and_stays_in_its_range(w, pq):
    p, q = pq
    found = index(w, p, q)
    assert found == pytest.approx(by_hand(w, p, q), abs=1e-11)
    assert 0 <= found <= 1 - len(w) ** (1 / q - 1 / p) + 1e-12


@pytest.mark.parametrize(("p", "q"), ORDERS)
def test_equal_weights_have_index_0_and_a_single_one_the_largest(p, q):
    for d in (1, 2, 7, 1000):
        assert index([-3.7] * d, p, q) == pytest.approx(0, abs=1e-12)
        assert index([0.0] * (d - 1) + [2.5], p, q) == pytest.approx(1 - d ** (1 / q - 1 / p), abs=1e-12)


def test_of_many_random_weights_the_index_is_that_of_their_distribution():
    """√(E w²) and E|w| are 1 and √(2/π) for Gaussian weights, 1/√3 and 1/2 for uniform ones."""
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(400, 1000, generator=generator)
    uniform = torch.rand(400, 1000, generator=generator)
    assert pq_index(gaussian) == pytest.approx(1 - math.sqrt(2 / math.pi), abs=2e-3)
    assert pq_index(uniform) == pytest.approx(1 - math.sqrt(3) / 2, abs=2e-3)
    assert retained(gaussian) / 400_000 == pytest.approx(2 / math.pi, abs=2e-3)
    assert retained(uniform) / 400_000 == pytest.approx(3 / 4, abs=2e-3)


@quick
@given(weights, orders, st.floats(0.05, 0.95), st.data())
def test_robin_hood_what_goes_from_a_large_to_a_small_one_lowers_it(w, pq, share, data):
    rich, poor = data.draw(st.permutations(range(len(w))))[:2]
    assume(w[rich] > w[poor])
    moved = share * (w[rich] - w[poor]) / 2
    after = list(w)
    after[rich], after[poor] = w[rich] - moved, w[poor] + moved
    assert index(after, *pq) < index(w, *pq)


def test_robin_hood_can_fail_with_both_orders_on_one_side_of_1():
    assert index([1.0] * 1000 + [1000.0, 1000.0], 0.1, 0.9) > index([1.0] * 1000 + [900.0, 1100.0], 0.1, 0.9)
    assert index([100.0, 2.0, 2.0], 1.5, 3.0) > index([100.0, 1.0, 3.0], 1.5, 3.0)


@quick
@given(weights, orders, st.floats(1e-3, 1e3), st.sampled_from([-1, 1]))
def test_scaling_changes_nothing(w, pq, factor, sign):
    assert index([sign * factor * v for v in w], *pq) == pytest.approx(index(w, *pq), abs=1e-11)


@quick
@given(weights, orders, st.floats(0.1, 1000))
def test_rising_tide_a_constant_added_to_all_lowers_it(w, pq, level):
    assume(len(set(w)) > 1)
    assert index([v + level for v in w], *pq) < index(w, *pq)


@quick
@given(weights, orders, st.integers(2, 4))
def test_cloning_changes_nothing(w, pq, copies):
    assert index(w * copies, *pq) == pytest.approx(index(w, *pq), abs=1e-11)


@quick
@given(weights, orders, st.floats(1, 1000), st.data())
def test_bill_gates_once_one_is_the_largest_more_of_it_raises_it(w, pq, more, data):
    rich = data.draw(st.integers(0, len(w) - 1))
    assume(any(w[:rich] + w[rich + 1 :]))
    richest = [*w[:rich], max(w) + 1, *w[rich + 1 :]]
    richer = [*w[:rich], max(w) + 1 + more, *w[rich + 1 :]]
    assert index(richer, *pq) > index(richest, *pq)


@quick
@given(weights, orders, st.integers(1, 5))
def test_babies_more_zeros_raise_it(w, pq, zeros):
    assert index(w + [0.0] * zeros, *pq) > index(w, *pq)


@quick
@given(weights, st.integers(0, 10_000))
def test_only_what_the_mask_keeps_counts(w, seed):
    w = torch.tensor(w)
    mask = torch.rand(len(w), generator=torch.Generator().manual_seed(seed)) < 0.6
    assume(w[mask].any())
    assert pq_index(w, mask) == pq_index(w[mask])
    assert retained(w.view(1, -1), mask.view(1, -1)) == retained(w[mask])
    assert next_keep(w, mask) == next_keep(w[mask])


def test_extreme_orders_and_weights_stay_in_the_range_of_floats():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(100_000, generator=generator)
    plain = pq_index(w, p=0.01, q=1.0)  # ‖w‖_0.01 is about 10^500
    assert 0 < plain < 1
    assert pq_index(1e-30 * w, p=0.01, q=1.0) == pytest.approx(plain, rel=1e-6)
    assert pq_index(1e30 * w, p=1.0, q=20.0) == pytest.approx(pq_index(w, p=1.0, q=20.0), rel=1e-6)


def test_weights_are_not_changed_and_may_need_gradients():
    w = torch.tensor([[-4.0, 1.0], [1.0, 1.0]], requires_grad=True)
    assert pq_index(w) == pytest.approx(1 - 0.5 * 7 / math.sqrt(19))
    assert w.tolist() == [[-4, 1], [1, 1]]


# ── the bound ─────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 50).map(float), min_size=1, max_size=8).filter(any),
    orders,
    st.sampled_from([0.0, 0.05, 0.5, 2.0]),
)
def test_no_subset_that_lets_go_little_enough_is_smaller_than_the_bound(w, pq, eta):
    p, q = pq
    bound = retained(torch.tensor(w), p=p, q=q, eta=eta)
    for size in range(1, len(w) + 1):
        for kept in itertools.combinations(range(len(w)), size):
            inside = math.fsum(w[i] ** p for i in kept)
            outside = math.fsum(w[i] ** p for i in range(len(w)) if i not in kept)
            if inside and outside <= eta * inside:
                assert size >= bound


@quick
@given(weights, orders, st.floats(0, 5))
def test_the_bound_is_its_formula_rounded_up(w, pq, eta):
    p, q = pq
    exact = len(w) * (1 + eta) ** (-q / (q - p)) * (1 - by_hand(w, p, q)) ** (q * p / (q - p))
    found = retained(torch.tensor(w), p=p, q=q, eta=eta)
    assert exact - 1e-6 <= found < max(1, exact) + 1


@pytest.mark.parametrize(("p", "q"), ORDERS)
@pytest.mark.parametrize("alike", [1, 3, 17, 999])
def test_the_bound_is_met_where_all_that_is_not_zero_is_alike(p, q, alike):
    assert retained(torch.tensor([0.3] * alike + [0.0] * 5), p=p, q=q) == alike
    half = retained(torch.tensor([0.3] * 2 * alike), p=p, q=q, eta=1.0)  # one half stays, the other goes
    assert half <= alike


def test_with_orders_1_and_2_the_bound_is_the_participation_ratio():
    w = torch.rand(500, generator=torch.Generator().manual_seed(0)).double() ** 3
    assert retained(w) == math.ceil(float(w.sum() ** 2 / w.square().sum()))


# ── SAP ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("values", "options", "keep"),
    [
        ([4, 1, 1, 1, 1], {}, 4),  # 8² / 20 = 3.2, so r = 4: a fifth of five goes
        ([4, 1, 1, 1, 1], {"gamma": 2.0}, 3),
        ([4, 1, 1, 1, 1], {"gamma": 0.9}, 5),
        ([4, 1, 1, 1, 1], {"eta": 1.0}, 1),  # (1 + 1)⁻² · 3.2 = 0.8, so r = 1: four fifths
        ([4, 1, 1, 1, 1], {"eta": 1.0, "beta": 0.5}, 3),
        ([0] * 9 + [1], {}, 1),
        ([0] * 9 + [1], {"beta": 0.7}, 3),
        ([0] * 99 + [1], {"beta": 0.29}, 71),  # 0.29 · 100 is 28.999… in floats
        ([2, -2, 2, 2], {"gamma": 100.0}, 4),  # all alike: nothing to prune
        ([5], {"gamma": 100.0}, 1),
        ([9, 4, 0], {"p": 0.5, "q": 1.0}, 2),  # (3 + 2)² / 13 = 1.92…
    ],
)
def test_how_many_stay_after_a_round(values, options, keep):
    assert next_keep(torch.tensor(values, dtype=torch.float32), **options) == keep


@quick
@given(weights, orders, st.floats(0.1, 5), st.floats(0.05, 0.95))
def test_a_round_never_removes_more_than_beta_nor_everything(w, pq, gamma, beta):
    keep = next_keep(torch.tensor(w), p=pq[0], q=pq[1], gamma=gamma, beta=beta)
    assert 1 <= keep <= len(w)
    assert len(w) - keep <= beta * len(w) + 1e-6


def test_rounds_without_training_end_where_what_is_left_is_nearly_alike():
    w = torch.randn(1000, generator=torch.Generator().manual_seed(0)).abs().sort(descending=True).values
    kept = [1000]
    while len(kept) < 2 or kept[-1] < kept[-2]:
        kept.append(next_keep(w[: kept[-1]]))
    assert kept[1] == pytest.approx(1000 * 2 / math.pi, abs=25)
    left = w[: kept[-1]]
    assert 1 < len(left) < 100
    assert float(left.sum() ** 2 / left.square().sum()) > len(left) - 1


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("function", [pq_index, retained, next_keep])
@pytest.mark.parametrize(
    ("w", "options", "words"),
    [
        ([], {}, "no weights"),
        ([1.0, 2.0], {"mask": torch.tensor([False, False])}, "keeps nothing"),
        ([0.0, 0.0], {}, "all zero"),
        ([0.0, 1.0], {"mask": torch.tensor([True, False])}, "all zero"),
        ([1.0, math.nan], {}, "NaN or infinite"),
        ([1.0, math.inf], {}, "NaN or infinite"),
        ([1.0, 2.0], {"mask": torch.tensor([True])}, r"shape \(2,\)"),
        ([1.0, 2.0], {"mask": torch.tensor([1, 0])}, "bool tensor"),
        ([1.0, 2.0], {"p": 2.0, "q": 2.0}, "0 < p < q, not p=2.0, q=2.0"),
        ([1.0, 2.0], {"p": 0.0}, "0 < p < q"),
        ([1.0, 2.0], {"p": -1.0}, "0 < p < q"),
        ([1.0, 2.0], {"q": math.inf}, "0 < p < q"),
        ([1.0, 2.0], {"p": math.nan}, "0 < p < q"),
    ],
)
def test_bad_input_is_refused(function, w, options, words):
    with pytest.raises(ValueError, match=words):
        function(torch.tensor(w), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eta": -0.1}, "eta is"),
        ({"eta": math.nan}, "eta is"),
        ({"gamma": 0.0}, "gamma must be positive"),
        ({"gamma": math.nan}, "gamma must be positive"),
        ({"beta": 1.0}, r"in \(0, 1\), not 1.0"),
        ({"beta": 0.0}, r"in \(0, 1\), not 0.0"),
    ],
)
def test_options_of_a_round_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        next_keep(torch.tensor([1.0, 2.0]), **options)
