"""The k highest of many layers, against a plain sort of (score, layer, index)."""

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruninglab import prune
from pruninglab.allocation.threshold import _edge, count_above, top_masks
from pruninglab.criteria import Scores, magnitude, score
from pruninglab.criteria.base import PIECE

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FEW = [0.0, -0.0, 1.0, 1.0, -1.0, 0.5, math.inf, -math.inf, 1e-45, -1e-45, 1.0000001, 60000.0]
any_scores = st.lists(
    st.one_of(st.floats(allow_nan=False), st.sampled_from(FEW), st.floats(-2, 2, width=16)), min_size=1, max_size=12
)


def chosen(tensors, keep):
    return top_masks({f"layer{i}": Scores.of(f"layer{i}", t) for i, t in enumerate(tensors)}, keep)


def plain(tensors, keep):
    """Sort everything in Python; of equals, the earlier layer and the lower index come first."""
    places = [(-float(x), i, j) for i, t in enumerate(tensors) for j, x in enumerate(t.flatten().tolist())]
    kept = {(i, j) for _, i, j in sorted(places)[:keep]}
    return [[(i, j) in kept for j in range(t.numel())] for i, t in enumerate(tensors)]


def check(tensors, keep):
    masks = list(chosen(tensors, keep).values())
    assert [mask.shape for mask in masks] == [t.shape for t in tensors]
    assert all(mask.dtype == torch.bool for mask in masks)
    assert [mask.flatten().tolist() for mask in masks] == plain(tensors, keep)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(any_scores, st.sampled_from(DTYPES)), min_size=1, max_size=4), st.data())
def test_the_set_of_a_plain_sort(layers, data):
    """Also where layers differ in dtype: their bits are then not comparable as they are."""
    tensors = [torch.tensor(values, dtype=torch.float64).to(dtype) for values, dtype in layers]
    check(tensors, data.draw(st.integers(0, sum(map(len, tensors)))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "make", [torch.randn, lambda n: torch.randn(n).abs(), lambda n: torch.randint(-3, 4, (n,)) / 2]
)
def test_every_count_is_exact_in_every_type(dtype, make):
    torch.manual_seed(0)
    tensors = [make(n).to(dtype) for n in (60, 1, 200)]
    for keep in range(0, 262, 9):
        check(tensors, keep)
    check(tensors, 261)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_of_several_pieces(dtype):
    torch.manual_seed(0)
    tensors = [torch.randn(3, PIECE // 2 + 7).to(dtype), torch.randn(PIECE).to(dtype)]
    flat = torch.cat([t.flatten() for t in tensors]).double()
    for keep in (1, 1000, len(flat) // 2, len(flat) - 1):
        kept = torch.cat([mask.flatten() for mask in chosen(tensors, keep).values()])
        order = flat.argsort(descending=True, stable=True)
        expected = torch.zeros(len(flat), dtype=torch.bool)
        expected[order[:keep]] = True
        assert torch.equal(kept, expected)


def test_doubles_that_floats_cannot_tell_apart():
    near = torch.tensor([1.0, 1 + 1e-15, 1 - 1e-15, 1.0], dtype=torch.float64)
    check([torch.ones(2), near], 1)
    check([torch.ones(2), near], 4)


def test_ties_over_pieces_go_to_the_first():
    kept = torch.cat(list(chosen([torch.zeros(PIECE + 3), torch.zeros(5)], PIECE + 4).values()))
    assert kept.tolist() == [True] * (PIECE + 4 - 1) + [True] + [False] * 4


def test_none_and_all_and_too_many():
    tensors = [torch.randn(3, 2), torch.randn(4)]
    assert not any(mask.any() for mask in chosen(tensors, 0).values())
    assert all(mask.all() for mask in chosen(tensors, 10).values())
    for keep in (-1, 11):
        with pytest.raises(ValueError, match=f"{keep} of 10"):
            chosen(tensors, keep)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(-4, 4, width=16)), st.data())
def test_the_edge_and_count_above(values, data):
    k = data.draw(st.integers(1, len(values)))
    scores = {"a": Scores.of("a", torch.from_numpy(values)), "b": Scores.of("b", torch.from_numpy(values))}
    assert _edge({"a": scores["a"]}, k)[0] == sorted(values.tolist(), reverse=True)[k - 1]
    above = sum(value > 0.5 for value in values.tolist())
    assert count_above(scores, 0.5) == {"a": above, "b": above}


@pytest.mark.parametrize("dtype", DTYPES)
def test_pruning_is_exact_and_leaves_the_kept_weights_alone(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 50), nn.Conv1d(3, 7, 5)).to(dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks = prune(model, sparsity=0.7)
    weights = [before[name] for name in masks]
    total = sum(w.numel() for w in weights)
    assert [masks[name].flatten().tolist() for name in masks] == plain(
        [w.abs() for w in weights], math.floor(0.3 * total + 0.5)
    )
    for name, parameter in model.named_parameters():
        expected = torch.where(masks[name], before[name], 0) if name in masks else before[name]
        assert torch.equal(parameter, expected)


def test_a_weight_that_is_not_contiguous():
    torch.manual_seed(0)
    model = nn.Linear(8, 6)
    model.weight = nn.Parameter(torch.randn(8, 6).T)
    before = model.weight.detach().clone()
    masks = prune(model, sparsity=0.5)
    assert masks["weight"].flatten().tolist() == plain([before.abs()], 24)[0]
    assert torch.equal(model.weight, before * masks["weight"])


def test_written_zeros_are_positive_whatever_was_there():
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[-math.inf, 5.0, -3.0, -0.0]])
    prune(model, sparsity=0.5, criterion=lambda weight: torch.tensor([[1.0, 2.0, 1.0, 3.0]]))
    assert model.weight.tolist() == [[0.0, 5.0, 0.0, 0.0]]
    assert torch.signbit(model.weight).tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_in_a_weight_is_named_and_nothing_changes(dtype):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(dtype)
    model[1].weight.data[2, 3] = math.nan
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"1\.weight.*NaN"):
        prune(model, sparsity=0.5)
    for was, now in zip(before, model.parameters(), strict=True):
        assert torch.equal(was.nan_to_num(7), now.nan_to_num(7))


def test_nan_scores_name_the_layer_and_the_criterion():
    def logarithm(weight):
        return weight.log()

    def piecewise_logarithm(weight):
        return weight.log()

    piecewise_logarithm.elementwise = True
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight.data.fill_(-1)
    for function in (logarithm, piecewise_logarithm):
        with pytest.raises(ValueError, match=rf"'{function.__name__}' gave NaN for 16 of 16 .*'0\.weight'"):
            prune(model, sparsity=0.5, criterion=function)


def test_infinite_weights_of_both_signs_are_no_nan():
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[math.inf, -math.inf, 1.0, 2.0]])
    prune(model, sparsity=0.5)
    assert model.weight.tolist() == [[math.inf, -math.inf, 0.0, 0.0]]


def test_scores_made_in_pieces_are_the_scores_made_at_once():
    weight = torch.randn(3, PIECE)
    made = score(magnitude, "w", {"weight": weight}, torch.Generator())
    assert len(list(made.pieces())) == 3
    assert torch.equal(torch.cat(list(made.pieces())), weight.abs().flatten())
    assert torch.equal(made.tensor(), weight.abs())
    assert made.numel() == 3 * PIECE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(700, 300), nn.Conv2d(8, 4, 3))
    here = prune(model.cuda(), sparsity=0.6)
    assert all(mask.is_cuda for mask in here.values())
    torch.manual_seed(0)
    assert prune(nn.Sequential(nn.Linear(700, 300), nn.Conv2d(8, 4, 3)), sparsity=0.6) == here
