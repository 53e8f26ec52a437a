"""The promises that all structured recipes make, what networks cost, and PreCrop against an optimiser."""

import itertools

import pytest
import torch
from helpers import make_task
from recipe_tasks import make
from scipy.optimize import minimize
from torch import nn

from pruninglab import task
from pruninglab.channels import masks_of
from pruninglab.graph import GraphError, trace
from pruninglab.measure import flops, parameters
from pruninglab.recipes import RECIPES, recipe
from pruninglab.recipes.budget import cost, layer_flops, nearest
from pruninglab.recipes.inner import inner, readers
from pruninglab.recipes.precrop import crop, precrop, water_filling
from pruninglab.surgery import slim

STRUCTURED = ("precrop", "obspa", "lapp", "polarize")


# ── promises of all ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["mlp", "cnn", "resnet", "grouped"])
@pytest.mark.parametrize("name", STRUCTURED)
def test_a_recipe_leaves_a_network_that_slim_makes_smaller_without_changing_it(name, kind):
    t = make(kind, steps=20)
    model = t.trained(0) if name == "obspa" else t.model(0)
    masks = recipe(name)(model, t, sparsity=0.4)
    x = t.data["test"][0]
    small = slim(model, masks, x[:2])
    assert parameters(small)[0] < 0.95 * parameters(model)[0]
    with torch.no_grad():
        torch.testing.assert_close(small.double()(x.double()), model.double()(x.double()), rtol=1e-6, atol=1e-6)
    assert not model.training


@pytest.mark.parametrize("name", STRUCTURED)
def test_the_same_call_gives_the_same_masks_and_weights(name):
    t = make("cnn", steps=20)
    results = []
    for seed in (0, 0, 1):
        model = t.model(0)
        masks = recipe(name)(model, t, sparsity=0.5, seed=seed)
        results.append((masks, {n: p.detach().clone() for n, p in model.state_dict().items()}))
    (one, state), (two, again), (_, other) = results
    assert one == two
    assert all(torch.equal(state[n], again[n]) for n in state)
    assert any(not torch.equal(state[n], other[n]) for n in state)


def test_a_wrong_name_is_told_the_right_one():
    with pytest.raises(ValueError, match=r"unknown recipe 'precorp'\. Did you mean 'precrop'\?"):
        recipe("precorp")
    assert all(recipe(name) is RECIPES[name] for name in RECIPES)


@pytest.mark.parametrize("name", STRUCTURED)
@pytest.mark.parametrize("sparsity", [1.0, -0.1, 50])
def test_a_sparsity_out_of_range_changes_nothing(name, sparsity):
    t = make("mlp", steps=3)
    model = t.model(0)
    with pytest.raises(ValueError, match=r"fraction removed, in \[0, 1\)"):
        recipe(name)(model, t, sparsity=sparsity)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), t.model(0).parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("precrop", {}, "exactly one budget of sparsity=, params=, flops=; got none"),
        ("precrop", {"params": 9, "flops": 9}, "got params, flops"),
        ("precrop", {"params": 3}, "not possible"),
        ("precrop", {"flops": -1}, "positive number"),
        ("lapp", {"sparsity": 0.5, "flops": 9}, "exactly one budget"),
        ("lapp", {"flops": 1e12}, "not possible"),
        ("lapp", {"sparsity": 0.5, "pruning": 0}, "pruning is a fraction"),
        ("obspa", {"sparsity": 0.5, "damping": 0.0}, "damping must be positive"),
        ("obspa", {"sparsity": 0.5, "data": "noice"}, "Did you mean 'noise'?"),
        ("obspa", {"sparsity": 0.5, "data": torch.zeros(0, 8)}, "empty"),
        ("polarize", {"sparsity": 0.5, "polarization": -1.0}, "weights ≥ 0"),
        ("polarize", {"sparsity": 0.5, "settled": 1.5}, "settled is a fraction"),
    ],
)
def test_bad_input_is_refused(name, options, words):
    t = make("mlp", steps=3)
    with pytest.raises(ValueError, match=words):
        recipe(name)(t.model(0), t, **options)


def test_a_network_without_anything_inside_is_refused():
    t = make_task(steps=3)
    with pytest.raises(GraphError):
        precrop(nn.Linear(8, 3), t, sparsity=0.5)


# ── costs and budgets ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["mlp", "cnn", "resnet", "grouped"])
def test_the_cost_of_a_choice_is_that_of_the_network_cut_out(kind):
    t = make(kind)
    model, x = t.model(0), t.data["train"][0][:1]
    graph = trace(model, x)
    generator = torch.Generator().manual_seed(3)
    removed = torch.zeros(graph.n, dtype=torch.bool)
    for family in graph.families:
        for cell in family.cells:
            removed[cell[torch.randperm(len(cell), generator=generator)[: len(cell) // 2]]] = True
    small = slim(model, masks_of(model, graph, removed), x)
    open_ = (~removed).double()
    ones = dict.fromkeys(dict(model.named_parameters()), 1)
    assert float(cost(model, graph, ones)(open_)) == pytest.approx(parameters(small)[0], rel=1e-12)
    assert float(cost(model, graph, layer_flops(model, x))(open_)) == pytest.approx(flops(small, x), rel=1e-12)


def test_the_cost_is_differentiable():
    t = make("cnn")
    model, x = t.model(0), t.data["train"][0][:1]
    graph = trace(model, x)
    total = cost(model, graph, layer_flops(model, x))
    gates = torch.rand(graph.n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(total, gates)


def test_work_that_is_not_in_layers_is_not_overlooked():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return self.layer(x) @ x.mT

    with pytest.raises(ValueError, match="are not in Linear or Conv layers"):
        layer_flops(Attends(), torch.zeros(4, 8))


def test_nearest_meets_the_budget_where_single_channels_are_too_coarse():
    t = make("cnn")
    model, x = t.model(0), t.data["train"][0][:1]
    graph = trace(model, x)
    total = cost(model, graph, layer_flops(model, x))
    scores = torch.full((graph.n,), torch.inf)
    families = list(inner(graph).values())
    for f, family in enumerate(families):  # whole layers rank after each other: the worst case for an order alone
        scores[family.cells[0]] = torch.linspace(0, 1, family.channels) - 2 * f
    whole = float(total(torch.ones(graph.n)))
    for share in (0.3, 0.45, 0.6, 0.8):
        removed = nearest(scores, families, total, share * whole)
        assert float(total((~removed).double())) == pytest.approx(share * whole, rel=0.02)
        for family in families:
            kept = scores[family.cells[0][~removed[family.cells[0]]]]
            gone = scores[family.cells[0][removed[family.cells[0]]]]
            assert len(kept) >= 1
            assert not len(gone) or kept.min() > gone.max()
    untouched = nearest(scores, families, total, whole)
    assert not untouched.any()


# ── PreCrop ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(6))
def test_water_filling_is_what_an_optimiser_finds(seed):
    generator = torch.Generator().manual_seed(seed)
    n = 10 ** (4 * torch.rand(2 + seed, generator=generator, dtype=torch.float64))
    budget = float(n.sum()) * (0.1 + 0.15 * seed)
    p = water_filling(n, budget)
    found = minimize(  # over log p, in which the problem is convex and well scaled
        lambda u: -u.sum(), torch.full((len(n),), -3.0).double().numpy(), jac=lambda u: -1 + 0 * u, method="SLSQP",
        bounds=[(-30, 0)] * len(n), options={"ftol": 1e-14, "maxiter": 1000},
        constraints={"type": "ineq", "fun": lambda u: 1 - float((n * torch.tensor(u).exp()).sum() / budget)},
    )  # fmt: skip
    assert found.success
    torch.testing.assert_close(p.log(), torch.tensor(found.x), rtol=1e-3, atol=1e-3)


def test_water_filling_satisfies_the_kkt_conditions():
    n = torch.tensor([10.0, 5.0, 1000.0, 80.0, 300.0, 80.0]).double()
    for budget in (1.0, 29.0, 30.0, 200.0, 700.0, 1475.0, 5000.0):
        p = water_filling(n, budget)
        assert float((n * p).sum()) == pytest.approx(min(budget, float(n.sum())))
        full = p == 1
        level = (n * p)[~full]
        torch.testing.assert_close(level, level[:1].expand(len(level)), rtol=1e-12, atol=0)  # stationary
        if len(level):
            assert (n[full] <= level[0] + 1e-9).all()  # the multipliers of p ≤ 1 are not negative
    assert water_filling([1.0], 5).tolist() == [1.0]
    with pytest.raises(ValueError, match="must be positive"):
        water_filling([1.0, 0.0], 5)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "resnet"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_precrop_meets_its_budget(kind, share):
    t = task(f"digits-{kind}")
    x = t.data["train"][0][:1]
    model = t.model(0)
    small = slim(model, precrop(model, t, params=round(share * parameters(model)[0])), x)
    assert parameters(small)[0] == pytest.approx(share * parameters(model)[0], rel=0.02)
    model = t.model(0)
    small = slim(model, precrop(model, t, flops=share * flops(model, x)), x)
    assert flops(small, x) == pytest.approx(share * flops(model, x), rel=0.02)


def test_precrop_leaves_residual_streams_alone_and_crops_the_inner_width_to_the_lesser_density():
    t = make("resnet")
    model = t.model(0)
    graph = trace(model, t.data["train"][0][:1])
    families = inner(graph)
    assert list(families) == [f"layer{i}.0.conv1.weight" for i in (1, 2, 3)]
    order = {name: torch.arange(family.channels) for name, family in families.items()}
    density = dict.fromkeys((name for name, p in model.named_parameters() if p.ndim > 1), 1.0)
    density |= {"layer2.0.conv1.weight": 0.75, "layer2.0.conv2.weight": 0.5, "layer3.0.conv1.weight": 0.25}
    kept = ~crop(model, graph, density, order)
    assert [int(kept[families[name].cells[0]].sum()) for name in families] == [4, 4, 3]
    stream = [c for f in graph.families if len(f.layers) > 1 or len(f.cells) > 1 for cell in f.cells for c in cell]
    assert stream
    assert kept[torch.stack(stream)].all()


def test_precrop_takes_the_square_root_on_chains():
    t = make("cnn")
    model = t.model(0)
    graph = trace(model, t.data["train"][0][:1])
    order = {name: torch.arange(family.channels) for name, family in inner(graph).items()}
    density = {"conv1.weight": 0.25, "conv2.weight": 1 / 36, "fc1.weight": 1e-9, "fc2.weight": 1e-9}
    kept = ~crop(model, graph, density, order)
    assert [int(kept[f.cells[0]].sum()) for f in inner(graph).values()] == [4, 2, 1]  # of 8, 12, 20


def test_readers_name_the_channel_of_each_input():
    """Readers name each input of each layer: their channels are those that begin at the layers before."""
    for kind, expected in (("mlp", 2), ("cnn", 3), ("grouped", 3)):
        t = make(kind)
        model = t.model(0)
        graph = trace(model, t.data["train"][0][:1])
        columns = readers(graph, model)
        read = set(itertools.chain.from_iterable(c.flatten().tolist() for c in columns.values())) - {-1}
        assert {c for f in inner(graph).values() for c in f.cells[0].tolist()} <= read
        assert sum(1 for c in columns.values() if (c >= 0).all()) == expected
