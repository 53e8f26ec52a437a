"""Units against a brute-force look at each group."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruninglab import prune, units

LAYERS = {
    "linear": lambda: nn.Linear(16, 6),
    "conv1d": lambda: nn.Conv1d(8, 5, 3),
    "conv2d": lambda: nn.Conv2d(8, 4, (3, 2)),
    "grouped": lambda: nn.Conv2d(16, 6, 2, groups=2),
}


def groups_along_inputs(shape, m):
    """Lists of m index tuples that follow one another along dimension 1, one kernel position each."""
    for out, *kernel in itertools.product(range(shape[0]), *(range(size) for size in shape[2:])):
        for start in range(0, shape[1], m):
            yield [(out, i, *kernel) for i in range(start, min(start + m, shape[1]))]


def first_best(values, n):
    """Positions of the n highest; of equals the first."""
    return set(sorted(range(len(values)), key=lambda i: -values[i])[:n])


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (3, 4), (1, 2)])
def test_n_of_m_keeps_the_n_highest_of_each_group(layer, n, m):
    torch.manual_seed(0)
    model = LAYERS[layer]()
    weight = model.weight.detach().clone()
    masks = prune(model, unit=f"{n}:{m}")
    for group in groups_along_inputs(weight.shape, m):
        best = first_best([abs(float(weight[i])) for i in group], n)
        assert [bool(masks["weight"][i]) for i in group] == [j in best for j in range(m)]
    assert masks.sparsity() == 1 - n / m
    assert torch.equal(model.weight, weight * masks["weight"])


def test_one_of_four_is_three_quarters_sparse():
    model = nn.Linear(8, 8)
    assert prune(model, unit="1:4").sparsity() == 0.75
    assert int((model.weight != 0).sum()) == 16


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_n_of_m_with_ties_and_any_scores(data):
    m = data.draw(st.integers(2, 9))
    n = data.draw(st.integers(1, m - 1))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    number = st.sampled_from([0.0, -0.0, 1.0, 1.0, -1.0, 2.5, math.inf, -math.inf])
    rows = data.draw(st.lists(st.lists(number, min_size=2 * m, max_size=2 * m), min_size=1, max_size=5))
    mask = units.nm(n, m).choose(torch.tensor(rows, dtype=dtype), "layer")
    for row, kept in zip(rows, mask.tolist(), strict=True):
        for start in (0, m):
            best = first_best(row[start : start + m], n)
            assert kept[start : start + m] == [j in best for j in range(m)]


def test_ties_keep_the_first():
    mask = units.nm(2, 4).choose(torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0, 2.0, 1.0, 1.0]]), "layer")
    assert mask.tolist() == [[True, True, False, False, False, True, True, False]]


def test_many_groups_and_large_groups():
    """More groups than are handled at a time, and groups whose ranks do not fit a byte."""
    torch.manual_seed(0)
    for n, m, rows in ((2, 4, 50_001), (3, 8, 20_001), (100, 300, 250)):
        scores = torch.randint(0, 50, (rows, m)).float()
        mask = units.nm(n, m).choose(scores, "layer")
        expected = torch.zeros_like(mask).scatter_(1, scores.argsort(dim=1, descending=True, stable=True)[:, :n], True)
        assert torch.equal(mask, expected)


def test_scores_that_are_not_contiguous():
    torch.manual_seed(0)
    scores = torch.randn(8, 6)
    assert torch.equal(units.nm(2, 4).choose(scores.T, "x"), units.nm(2, 4).choose(scores.T.contiguous(), "x"))


@pytest.mark.parametrize(("remainder", "last"), [("dense", 3), ("partial", 2)])
def test_a_remainder(remainder, last):
    torch.manual_seed(0)
    scores = torch.rand(5, 11, 2)  # 4 + 4 + 3 inputs at two kernel positions
    mask = units.nm(2, 4, remainder).choose(scores, "layer")
    for group in groups_along_inputs(scores.shape, 4):
        best = first_best([float(scores[i]) for i in group], 2 if len(group) == 4 else last)
        assert [bool(mask[i]) for i in group] == [j in best for j in range(len(group))]


def test_a_remainder_is_an_error_unless_told():
    with pytest.raises(ValueError, match=r"2:4 does not fit layer 'weight'.*10 inputs"):
        prune(nn.Linear(10, 4), unit="2:4")
    with pytest.raises(ValueError, match="partial"):
        units.nm(2, 4, "drop")


@pytest.mark.parametrize("n_of_m", [(0, 4), (4, 4), (5, 4)])
def test_n_must_lie_between(n_of_m):
    with pytest.raises(ValueError, match="1 ≤ N < M"):
        units.nm(*n_of_m)


def blocks(shape, rows, columns):
    """Index sets of the rectangles of the weight as a matrix, smaller ones at the edges included."""
    width = math.prod(shape[1:])
    for i, j in itertools.product(range(0, shape[0], rows), range(0, width, columns)):
        yield [(a, b) for a in range(i, min(i + rows, shape[0])) for b in range(j, min(j + columns, width))]


UNITS = [("row", None), ("block", (4, 4)), ("3x5", (3, 5)), ("1x4", (1, 4)), ("100x1", (100, 1))]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("unit", "sides"), UNITS)
def test_whole_units_the_best_means_first_and_within_one_unit(layer, unit, sides):
    torch.manual_seed(0)
    weight = LAYERS[layer]().weight.detach()
    rows, columns = sides or (1, weight[0].numel())
    parts = list(blocks(weight.shape, rows, columns))
    if unit == "row":
        assert len(parts) == weight.shape[0]
    matrix = weight.abs().double().flatten(1)
    means = [sum(float(matrix[i]) for i in part) / len(part) for part in parts]
    for sparsity in (0.0, 0.3, 0.5, 0.8):
        model = LAYERS[layer]()
        model.weight.data = weight.clone()
        mask = prune(model, sparsity=sparsity, unit=unit)["weight"].flatten(1)
        kept = [all(bool(mask[i]) for i in part) for part in parts]
        assert not any(bool(mask[i]) for part, all_in in zip(parts, kept, strict=True) if not all_in for i in part)
        lowest_in = min((mean for mean, in_ in zip(means, kept, strict=True) if in_), default=math.inf)
        highest_out = max((mean for mean, in_ in zip(means, kept, strict=True) if not in_), default=-math.inf)
        assert lowest_in >= highest_out - 1e-12
        assert abs(int(mask.sum()) - (1 - sparsity) * mask.numel()) <= max(map(len, parts))


def test_groups_compete_over_layers_by_their_mean():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 3, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 1.0], [-9.0, 0.0]])  # means 1 and 4.5
    model[1].weight.data = torch.tensor([[5.0, -5.0], [0.5, 0.5], [2.0, -2.0]])  # 5, 0.5 and 2
    prune(model, sparsity=0.4, unit="row")
    assert model[0].weight.tolist() == [[0, 0], [-9, 0]]
    assert model[1].weight.tolist() == [[5, -5], [0, 0], [2, -2]]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5))
def test_labels_number_the_blocks_without_a_gap(height, width, rows, columns):
    labels = units.block(rows, columns).labels(torch.Size([height, width]))
    parts = list(blocks((height, width), rows, columns))
    assert sorted({int(labels[part[0]]) for part in parts}) == list(range(len(parts)))
    assert all(len({int(labels[i]) for i in part}) == 1 for part in parts)


def test_names():
    assert units.find("weight") is None
    assert isinstance(units.find("2:4"), units.Pattern)
    assert isinstance(units.find("4x4"), units.Grouping)
    mine = units.block(2, 2)
    assert units.find(mine) is mine
    with pytest.raises(ValueError, match="colum"):
        units.find("column")
    with pytest.raises(ValueError, match="at least one"):
        units.find("0x4")


@pytest.mark.parametrize("unit", ["weight", "row", "2:4", "n:4"])
def test_learned_scores_serve_every_unit(unit):
    torch.manual_seed(0)
    learned: dict = {}

    def score(weight):
        return learned.setdefault(weight.shape, torch.nn.Parameter(torch.rand(weight.shape)))

    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    masks = prune(model, criterion=score, unit=unit, **({} if unit == "2:4" else {"sparsity": 0.5}))
    assert 0.5 <= masks.sparsity() <= 0.75
