"""Channels that go in rounds: what an earlier round removed stays away."""

import copy
from functools import cache

import pytest
import torch
from networks import randomize

from pruninglab import measure, prune
from pruninglab.allocation import BudgetError
from pruninglab.graph import trace
from pruninglab.surgery import emptied, slim
from pruninglab.tasks.models import ResNet


@cache
def _made():
    torch.manual_seed(0)
    x = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    model = ResNet(1, 2, (16, 32, 64)).eval()
    randomize(model, x)
    return model, trace(model, x), x


def made():
    """A network, its graph, and example inputs."""
    model, graph, x = _made()
    return copy.deepcopy(model), graph, x


def test_pruning_again_within_masks():
    model, graph, _ = made()
    first = prune(model, unit="channel", sparsity=0.3, example_inputs=graph)
    gone = emptied(model, first, graph)
    second = prune(model, unit="channel", sparsity=0.6, within=first, criterion="random", example_inputs=graph)
    more = emptied(model, second, graph)
    assert bool(more[gone].all()), "what was removed stays removed"
    assert int(more.sum()) > int(gone.sum())


def test_nothing_removed_before_is_nothing_to_stay_within():
    model, graph, _ = made()
    nothing = prune(model, unit="channel", sparsity=0.0, example_inputs=graph)
    assert nothing.kept() == nothing.total()
    assert prune(model, unit="channel", sparsity=0.5, within=nothing, example_inputs=graph).kept() < nothing.kept()


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("allocation", ["uniform", "global", "isomorphic"])
def test_rounds_of_any_allocation_bring_nothing_back(allocation, criterion):
    model, graph, _ = made()
    total, masks, before = sum(family.channels for family in graph.families), None, None
    for i, sparsity in enumerate((0.2, 0.35, 0.5, 0.5)):
        where = "global" if i == 1 else allocation
        options = {"criterion": criterion, "allocation": where, "seed": i, "example_inputs": graph}
        masks = prune(model, unit="channel", sparsity=sparsity, within=masks, **options)
        after = emptied(model, masks, graph)
        assert before is None or bool(after[before].all())
        assert abs(int(after.sum()) - sparsity * total) <= 16
        before = after
    with pytest.raises(BudgetError, match="channels were to be kept, but `within` has only"):
        prune(model, unit="channel", sparsity=0.1, within=masks, example_inputs=graph)


@pytest.mark.parametrize("budget", ["flops", "params"])
def test_a_budget_within_masks(budget):
    model, graph, x = made()
    whole = measure.flops(model, x) if budget == "flops" else sum(p.numel() for p in model.parameters())
    first = prune(model, unit="channel", sparsity=0.2, criterion="random", example_inputs=graph)
    gone = emptied(model, first, graph)
    masks = prune(model, unit="channel", within=first, example_inputs=graph, **{budget: 0.4 * whole})
    assert bool(emptied(model, masks, graph)[gone].all())
    small = slim(model, masks, graph)
    left = measure.flops(small, x) if budget == "flops" else sum(p.numel() for p in small.parameters())
    assert left == pytest.approx(0.4 * whole, rel=0.02)
