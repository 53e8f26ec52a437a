"""Which weights of a matrix stay: exactly so many, the lowest go, and of equal ones the first."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruninglab import units
from pruninglab.language import select


@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 20),
    sparsity=st.floats(0, 1),
    levels=st.sampled_from([1, 3, 1000]),
    group=st.sampled_from(["row", "layer"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_exactly_so_many_of_the_lowest_go(rows, width, sparsity, levels, group, seed):
    scores = torch.randint(levels, (rows, width), generator=torch.Generator().manual_seed(seed)).float()
    keep = select(scores, sparsity, group)
    total = int((~keep).sum())
    assert abs(total - rows * width * sparsity) <= 0.5 + 1e-5
    table = scores if group == "row" else scores.view(1, -1)
    gone = (~keep).view_as(table)
    removed = gone.sum(1)
    assert int(removed.max() - removed.min()) <= 1
    for r, (line, out, number) in enumerate(zip(table, gone, removed.tolist(), strict=True)):
        expected = sorted(range(len(line)), key=lambda j: (float(line[j]), j))[:number]
        assert sorted(out.nonzero().flatten().tolist()) == sorted(expected)
        assert abs(int(removed[: r + 1].sum()) - table[: r + 1].numel() * sparsity) <= 0.5 + 1e-5  # evenly placed


def test_large_layers_are_cut_as_small_ones():
    scores = torch.rand(700, 300, generator=torch.Generator().manual_seed(0))
    keep = select(scores, 0.6021)
    for row, line in zip(keep[::50], scores[::50], strict=True):
        lowest = line.sort().values[int((~row).sum()) - 1]
        assert torch.equal(row, line > lowest)
    assert int((~keep).sum()) == round(700 * 300 * 0.6021)


def test_scores_of_any_kind_are_told_apart():
    close_by = 1 + 1e-12 * torch.tensor([[3.0, 1.0, 2.0, 0.0]], dtype=torch.float64)
    assert select(close_by, 0.5).tolist() == [[True, False, True, False]]
    assert select(torch.tensor([[math.inf, 1, -math.inf, 2]]), 0.5).tolist() == [[True, False, False, True]]
    half = torch.tensor([[0.1, 3, 2, 1]], dtype=torch.bfloat16)
    assert select(half, 0.5).tolist() == [[False, True, True, False]]
    assert select(half.T, 0.25, "layer").T.tolist() == [[False, True, True, True]]
    assert select(torch.zeros(2, 3), 0.5).tolist() == [[False, False, True], [False, True, True]]
    assert torch.equal(select(half, 0.9, unit=units.find("1:2")), units.find("1:2").choose(half, ""))


def test_bad_scores_are_named():
    scores = torch.ones(2, 6)
    for arguments, message in (
        ((scores, 1.5), r"in \[0, 1\], not 1\.5"),
        ((scores, math.nan), r"in \[0, 1\], not nan"),
        ((scores, 0.5, "column"), r"unknown group 'column'.*layer, row"),
        ((scores, 0.5, "row", units.find("2:4"), "a.q"), r"2:4 does not fit layer 'a\.q'"),
        ((torch.full((2, 6), math.nan), 0.5, "row", None, "a.q"), r"scores of a\.q are NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            select(*arguments)
