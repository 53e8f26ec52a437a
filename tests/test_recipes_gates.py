"""LAPP and polarised consensus: gates that learn while the network trains."""

import copy

import pytest
import torch
from helpers import make_task
from recipe_tasks import make

from pruninglab import task
from pruninglab.channels import masks_of
from pruninglab.graph import trace
from pruninglab.measure import flops
from pruninglab.recipes import recipe
from pruninglab.recipes.budget import cost, layer_flops
from pruninglab.recipes.gates import Gates
from pruninglab.recipes.inner import inner, readers
from pruninglab.recipes.lapp import gated, margins, open_gates
from pruninglab.recipes.polarize import train_gates
from pruninglab.surgery import slim

# ── LAPP ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_thresholds_learn_from_the_loss_and_from_the_constraint():
    t = make("cnn")
    model, (x, y) = t.model(0), t.calibration(32)
    graph = trace(model, x[:1])
    families, total = inner(graph), cost(model, graph, layer_flops(model, x[:1]))
    thresholds = torch.ones(3, requires_grad=True)
    gates = open_gates(margins(model, graph, families, thresholds))
    assert 0 < float((gates == 0).float().mean()) < 1
    for value in (t.loss(gated(model, gates, readers(graph, model), x), y), total(gates)):
        (grad,) = torch.autograd.grad(value, thresholds, retain_graph=True)
        assert (grad.abs() > 0).all()
    assert (grad < 0).all()  # a higher threshold costs less


def test_a_closed_gate_gives_what_a_masked_channel_gives():
    for kind in ("cnn", "resnet", "grouped"):
        t = make(kind)
        model, x = t.model(0).double(), t.data["test"][0].double()
        graph = trace(model, x[:1])
        removed = torch.zeros(graph.n, dtype=torch.bool)
        for family in inner(graph).values():
            removed[family.cells[0][::3]] = True
        with torch.no_grad():
            found = gated(model, (~removed).double(), readers(graph, model), x)
            masks_of(model, graph, removed).apply(model)
            torch.testing.assert_close(found, model(x))


@pytest.mark.parametrize("sparsity", [0.5, 0.75])
def test_lapp_hits_its_flops_with_rates_that_differ_and_still_learns(sparsity):
    t = task("digits-cnn")
    model, x = t.model(0), t.data["train"][0][:1]
    before = flops(model, x)
    masks = recipe("lapp")(model, t, sparsity=sparsity, steps=150)
    assert flops(slim(model, masks, x), x) == pytest.approx((1 - sparsity) * before, rel=0.02)
    rates = [float(masks[f"{layer}.bias"].float().mean()) for layer in ("conv1", "conv2", "fc1")]
    assert max(rates) - min(rates) > 0.1
    assert min(rates) > 0
    assert t.accuracy(model) > 0.85


# ── polarised consensus ───────────────────────────────────────────────────────────────────────────────────────────


def settled(gates, model, t):
    """The fraction of gates on which nearly all inputs agree, and test accuracy with gates and with masks instead."""
    means = gates.means(model, t.data["train"][0])
    with gates.on(model):
        dynamic = t.accuracy(model)
    static = copy.deepcopy(model)
    gates.masks(static, means > 0.5).apply(static)
    return float((means * (1 - means) < 0.01).float().mean()), dynamic, t.accuracy(static)


def test_polarising_makes_gates_agree_so_that_masks_can_take_their_place():
    t = make_task(steps=300)
    found = {}
    for weight in (0.0, 10.0):
        model = t.model(0)
        gates = train_gates(model, t, sparsity=0.5, polarization=weight)
        found[weight] = settled(gates, model, t)
    agreed, dynamic, static = found[10.0]
    assert agreed == 1.0
    assert dynamic == static > 0.8
    assert found[0.0][0] < 0.9
    assert found[0.0][2] < found[0.0][1]  # masks cannot do what gates do that look at each input


def test_gates_are_zero_or_one_with_a_gradient_and_leave_no_trace():
    t = make("grouped")
    model, x = t.model(0), t.data["train"][0][:32]
    plain = model(x)
    gates = Gates(model, trace(model, x[:1]))
    with gates.on(model):
        outputs = model(x)
        values = torch.cat(list(gates.values.values()), 1)
        assert set(values.unique().tolist()) <= {0.0, 1.0}
        outputs.square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in gates.deciders[0].parameters())
    assert not torch.equal(outputs, plain)
    assert torch.equal(model(x), plain)


def test_the_gates_of_one_input_close_its_channels_alone():
    t = make("cnn")
    model, x = t.model(0), t.data["train"][0][:6]
    gates = Gates(model, trace(model, x[:1]))
    with torch.no_grad(), gates.on(model):
        together = model(x)
        values = {name: v.clone() for name, v in gates.values.items()}
    for i in range(len(x)):
        own = copy.deepcopy(model)
        gates.masks(own, torch.cat([v[i] for v in values.values()]) > 0).apply(own)
        with torch.no_grad():
            torch.testing.assert_close(own(x[i : i + 1]), together[i : i + 1])


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.8])
def test_polarize_closes_exactly_as_many_channels_as_asked(sparsity):
    t = make("mlp", steps=30)
    model = t.model(0)
    masks = recipe("polarize")(model, t, sparsity=sparsity)
    kept = sum(int(masks[name].sum()) for name in ("fc1.bias", "fc2.bias"))
    assert kept == round((1 - sparsity) * 28)
    assert all(masks[name].any() for name in ("fc1.bias", "fc2.bias"))
