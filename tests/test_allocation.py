"""Allocations against slow computations from their definitions."""

import itertools
import math
import warnings
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruninglab import prune
from pruninglab.allocation import ALLOCATIONS, allocate, erk, global_, lamp, uniform
from pruninglab.criteria import Scores

SHAPES = [(64, 3, 3, 3), (128, 64, 3, 3), (10, 128), (300, 784), (5, 2, 7), (1, 1)]
shapes = st.lists(
    st.one_of(st.sampled_from(SHAPES[:1] + SHAPES[2:]), st.tuples(st.integers(1, 12), st.integers(1, 12))),
    min_size=1,
    max_size=5,
)
small = st.lists(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 3.5]), min_size=1, max_size=9), min_size=1, max_size=4
)


def scores_of(tensors):
    tensors = [torch.as_tensor(t) for t in tensors]
    return {f"layer{i}": Scores.of(f"layer{i}", t) for i, t in enumerate(tensors)}


def by_rank(lists, keep, floor=0):
    """The global competition in which each layer's `floor` best are ranked before all else: places of each layer."""
    places = []
    for i, values in enumerate(lists):
        order = sorted(range(len(values)), key=lambda j: -values[j])
        for rank, j in enumerate(order):
            places.append((-math.inf if rank < floor else -values[j], i, j))
    counts = [0] * len(lists)
    for _, i, _ in sorted(places)[:keep]:
        counts[i] += 1
    return counts


def check_sum(places, scores, keep):
    assert sum(places.values()) == keep
    assert all(0 <= n <= scores[name].numel() for name, n in places.items())
    assert all(isinstance(n, int) for n in places.values())


@settings(max_examples=100, deadline=None)
@given(shapes, st.floats(0, 1))
def test_uniform_is_the_same_fraction_within_one_weight(shapes, density):
    scores = scores_of([torch.rand(shape) for shape in shapes])
    total = sum(math.prod(shape) for shape in shapes)
    keep = round(density * total)
    places = uniform(scores, keep)
    check_sum(places, scores, keep)
    for name, n in places.items():
        assert abs(n - keep / total * scores[name].numel()) < 1


def erk_by_bisection(shapes, keep):
    """Densities min(1, ε (Σ dimensions) / (Π dimensions)), with the ε that keeps so many in all (Evci et al. 2020)."""
    low, high = 0.0, 1e9
    for _ in range(300):
        epsilon = (low + high) / 2
        sizes = [math.prod(shape) * min(1.0, epsilon * sum(shape) / math.prod(shape)) for shape in shapes]
        low, high = (epsilon, high) if sum(sizes) < keep else (low, epsilon)
    return sizes


@settings(max_examples=150, deadline=None)
@given(shapes, st.floats(0.001, 1))
def test_erk_is_what_bisection_finds(shapes, density):
    scores = scores_of([torch.rand(shape) for shape in shapes])
    keep = round(density * sum(math.prod(shape) for shape in shapes))
    places = erk(scores, keep)
    check_sum(places, scores, keep)
    for n, expected in zip(places.values(), erk_by_bisection(shapes, keep), strict=True):
        assert abs(n - expected) < 1 + 1e-6


def test_erk_by_hand():
    """A linear layer of 100 × 100 (ratio 0.02) and one of 10 × 100 (0.11): 0.02·10000 ε + 0.11·1000 ε = 310 ε."""
    scores = scores_of([torch.rand(100, 100), torch.rand(10, 100)])
    assert erk(scores, 620) == {"layer0": 400, "layer1": 220}
    assert erk(scores, 6000) == {"layer0": 5000, "layer1": 1000}  # the small one is full
    assert erk(scores_of([torch.rand(8, 4, 3, 3), torch.rand(8, 4)]), 3) == {"layer0": 2, "layer1": 1}  # 18 to 12


def lamp_scores(values):
    """Eq. 4 of Lee et al. 2021: s² over the sum of s² of those that come no earlier in ascending order."""
    order = sorted(range(len(values)), key=lambda j: values[j])
    result = [0.0] * len(values)
    for place, j in enumerate(order):
        rest = sum(values[i] ** 2 for i in order[place:])
        result[j] = values[j] ** 2 / rest if rest else 0.0
    return result


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 30), min_size=1, max_size=4), st.data())
def test_lamp_is_its_definition(seed, sizes, data):
    generator = torch.Generator().manual_seed(seed)
    lists = [torch.rand(size, generator=generator, dtype=torch.float64).tolist() for size in sizes]
    keep = data.draw(st.integers(0, sum(sizes)))
    scores = scores_of([torch.tensor(values, dtype=torch.float64) for values in lists])
    places = lamp(scores, keep)
    check_sum(places, scores, keep)
    ranked = [lamp_scores(values) for values in lists]
    assert all(max(values) == 1 for values in ranked)
    assert list(places.values()) == by_rank(ranked, keep)
    if keep >= len(sizes):  # the highest score of each layer is 1, so none is emptied
        assert min(places.values()) >= 1


@settings(max_examples=100, deadline=None)
@given(small, st.data())
def test_lamp_gives_every_place_also_with_ties_and_zeros(lists, data):
    scores = scores_of([torch.tensor(values) for values in lists])
    keep = data.draw(st.integers(0, sum(map(len, lists))))
    places = lamp(scores, keep)
    check_sum(places, scores, keep)
    alive = [any(value > 0 for value in values) for values in lists]
    if keep >= sum(alive):
        assert all(n >= 1 for n, some in zip(places.values(), alive, strict=True) if some)


def test_lamp_does_not_depend_on_a_layers_scale():
    torch.manual_seed(0)
    a, b = torch.rand(50, 10), torch.rand(20, 10)
    assert lamp(scores_of([a, b]), 300) == lamp(scores_of([a * 1000, b / 1000]), 300)


def test_lamp_on_one_layer_is_magnitude():
    torch.manual_seed(0)
    one, other = nn.Linear(30, 20), nn.Linear(30, 20)
    other.load_state_dict(one.state_dict())
    assert prune(one, sparsity=0.8, allocation="lamp") == prune(other, sparsity=0.8)


def test_lamp_refuses_negative_scores_but_takes_what_is_gone_already():
    with pytest.raises(ValueError, match="layer1"):
        lamp(scores_of([torch.rand(4), torch.tensor([1.0, -1.0])]), 2)
    gone = torch.tensor([1.0, -math.inf, 2.0, -math.inf])
    assert lamp(scores_of([gone, torch.rand(4)]), 6) == {"layer0": 2, "layer1": 4}


@settings(max_examples=200, deadline=None)
@given(small, st.integers(0, 6), st.data())
def test_min_keep_ranks_the_best_of_each_layer_first(lists, floor, data):
    scores = scores_of([torch.tensor(values) for values in lists])
    least = sum(min(floor, len(values)) for values in lists)
    keep = data.draw(st.integers(least, sum(map(len, lists))))
    groups = allocate(partial(global_, min_keep=floor), scores, keep)
    counts = {
        name: count
        for who, n in groups.items()
        for name, count in zip(who, by_rank([lists[int(name[5:])] for name in who], n), strict=True)
    }
    assert [counts[name] for name in scores] == by_rank(lists, keep, floor)


def test_min_keep_through_prune():
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1, 101).view(10, 10) / 1e4)
        model[1].weight.copy_(torch.arange(1, 101).view(10, 10))
    masks = prune(model, sparsity=0.9, allocation=partial(global_, min_keep=7))
    assert masks["0.weight"].flatten().nonzero().flatten().tolist() == list(range(93, 100))
    assert masks["1.weight"].flatten().nonzero().flatten().tolist() == list(range(87, 100))


def test_min_keep_out_of_range():
    scores = scores_of([torch.rand(10), torch.rand(3)])
    assert allocate(partial(global_, min_keep=5), scores, 8) == {("layer0",): 5, ("layer1",): 3}
    with pytest.raises(ValueError, match=r"min_keep=5 .* 7 places"):
        global_(scores, 7, min_keep=5)
    with pytest.raises(ValueError, match="-1"):
        global_(scores, 7, min_keep=-1)


@pytest.mark.parametrize(("name", "sparsity"), [*itertools.product(ALLOCATIONS, (0.0, 0.1, 0.5, 0.9, 0.987))])
def test_the_count_over_all_layers_is_exact(name, sparsity):
    torch.manual_seed(0)
    front = [nn.Conv1d(6, 4, 2, groups=2), nn.Flatten(), nn.Linear(28, 31), nn.Linear(31, 5)]
    model = nn.Sequential(*front, nn.Unflatten(1, (5, 1, 1)), nn.Conv2d(5, 7, 1), nn.Flatten(), nn.Linear(7, 1))
    with warnings.catch_warnings(action="ignore"):  # whether distortions add up is another matter
        masks = prune(model, sparsity=sparsity, allocation=name, data=torch.randn(4, 6, 8))
    assert masks.kept() == math.floor(masks.total() * (1 - sparsity) + 0.5)
    for layer, mask in masks.items():  # within a layer the largest weights stay
        weight = model.get_parameter(layer).detach().abs()
        assert torch.equal(weight > 0, mask)


BAD = {
    "must name each layer once": lambda scores, keep: {"layer0": keep},
    r"layer0.*layer0": lambda scores, keep: {("layer0", "layer1"): keep, "layer0": 0},
    "11 places to layer0": lambda scores, keep: {"layer0": 11, "layer1": keep - 11},
    "-1 places": lambda scores, keep: {"layer0": -1, "layer1": keep + 1},
    "gives 7 places, 8": lambda scores, keep: {("layer0", "layer1"): keep - 1},
}


@pytest.mark.parametrize("message", BAD)
def test_an_allocation_of_ones_own_is_checked(message):
    with pytest.raises(ValueError, match=message):
        allocate(BAD[message], scores_of([torch.rand(10), torch.rand(10)]), 8)


def test_names_and_kinds():
    with pytest.raises(ValueError, match="uniform"):
        allocate("unifrom", scores_of([torch.rand(3)]), 1)
    with pytest.raises(TypeError, match="name or a function"):
        allocate(3, scores_of([torch.rand(3)]), 1)
    assert allocate(lambda scores, keep: {"layer0": keep}, scores_of([torch.rand(3)]), 2) == {("layer0",): 2}


def test_lamp_with_scores_that_say_always():
    a, b = torch.rand(2, 64, generator=torch.Generator().manual_seed(0))
    plain = lamp(scores_of([a, b]), 64)
    a[0] = torch.inf
    places = lamp(scores_of([a, b]), 64)
    assert sum(places.values()) == 64
    assert all(abs(places[key] - plain[key]) <= 3 for key in plain)
    everything = torch.full((8,), torch.inf)
    assert sum(lamp(scores_of([everything, everything]), 8).values()) == 8


def test_a_group_whose_mean_is_no_number_is_an_error():
    def torn(weight):
        scores = torch.ones_like(weight)
        scores[0, 0], scores[0, 1] = torch.inf, -torch.inf
        return scores

    with pytest.raises(ValueError, match=r"a row of layer 'weight' has scores of \+∞ and of −∞"):
        prune(nn.Linear(8, 8), unit="row", sparsity=0.5, criterion=torn)
