"""OBSPA: the surgeon's costs and updates against least squares, and what they are worth in a network."""

import copy

import pytest
import torch
from helpers import make_task
from recipe_tasks import make
from torch import nn

from pruninglab import prune, task
from pruninglab.recipes.obspa import obspa
from pruninglab.recipes.surgeon import damped, obs_update, removal_costs, removal_order
from pruninglab.units import structure


def problem(d=6, n=40, outputs=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator).double() @ torch.randn(d, d, generator=generator).double()
    return x, torch.randn(outputs, d, generator=generator).double()


def best_error(x, weight, stay):
    """The least squared error with these inputs alone, by least squares."""
    y = x @ weight.T
    return float((y - x[:, stay] @ torch.linalg.lstsq(x[:, stay], y).solution).square().sum())


def test_the_update_is_the_least_squares_solution_without_those_columns():
    x, weight = problem()
    gone = torch.tensor([True, False, False, True, False, False])
    updated = obs_update(weight, x.T @ x, gone)
    expected = torch.linalg.lstsq(x[:, ~gone], x @ weight.T).solution.T
    torch.testing.assert_close(updated[:, ~gone], expected, rtol=1e-6, atol=1e-6)
    assert (updated[:, gone] == 0).all()


def test_damping_is_a_ridge_towards_the_old_weights_that_leaves_the_bias_free():
    x, weight = problem()
    x = torch.cat([x + 3, torch.ones(len(x), 1).double()], 1)  # inputs with a mean, and the constant one
    weight = torch.cat([weight, weight[:, :1]], 1)
    gone = torch.tensor([True, False, True, False, False, False, False])
    moments = (x.T @ x / len(x))[None]
    hessian = damped(moments, 6, 0.1)[0]
    ridge = (0.1 * len(x) * x[:, :6].square().mean()).sqrt()
    rows = ridge * torch.eye(7, dtype=torch.float64)[:6]
    targets = torch.cat([x @ weight.T, rows @ weight.T])
    expected = torch.linalg.lstsq(torch.cat([x, rows])[:, ~gone], targets).solution.T
    torch.testing.assert_close(obs_update(weight, hessian, gone)[:, ~gone], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("channels", [6, 3, 2])
def test_the_score_is_the_exact_increase_of_the_squared_error(channels):
    x, weight = problem()
    costs = removal_costs(weight, torch.linalg.inv(x.T @ x), channels)
    for channel, columns in enumerate(torch.arange(6).view(channels, -1)):
        stay = [c for c in range(6) if c not in columns]
        assert float(costs[channel]) == pytest.approx(best_error(x, weight, stay), rel=1e-6)
    if channels == 6:
        inverse = torch.linalg.inv(x.T @ x)
        torch.testing.assert_close(costs, weight.square().sum(0) / inverse.diagonal())


@pytest.mark.parametrize("channels", [6, 3])
def test_channels_go_in_the_order_in_which_each_is_the_cheapest(channels):
    x, weight = problem(seed=1)
    columns = torch.arange(6).view(channels, -1)
    left, expected = list(range(channels)), torch.zeros(channels).double()
    for step in range(1, channels + 1):
        without = {
            c: best_error(x, weight, columns[[o for o in left if o != c]].flatten()) if len(left) > 1 else 0.0
            for c in left
        }
        cheapest = min(without, key=without.__getitem__)
        expected[cheapest] = step
        left.remove(cheapest)
    torch.testing.assert_close(removal_order(weight, x.T @ x, channels), expected)


def test_of_two_channels_that_say_the_same_only_one_is_worthless():
    x, weight = problem()
    x[:, 5] = x[:, 2] + 1e-3 * x[:, 5]
    order = removal_order(weight, x.T @ x, 6)
    assert {int(order[2]), int(order[5])} & {1}
    assert max(int(order[2]), int(order[5])) > 2


def test_a_network_repaired_in_its_last_layer_gives_the_best_fit_to_the_old_outputs():
    t = make_task(steps=1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 3)).double().eval()
    dense, x = copy.deepcopy(model), t.data["train"][0].double()
    masks = obspa(model, t, sparsity=0.5, data=x, damping=1e-12)
    stay = masks["0.bias"]
    assert int(stay.sum()) == 5
    with torch.no_grad():
        hidden = torch.cat([torch.tanh(dense[0](x))[:, stay], torch.ones(len(x), 1).double()], 1)
        expected = hidden @ torch.linalg.lstsq(hidden, dense(x)).solution
        torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "first", "second"), [("mlp", "fc1", "fc2"), ("cnn", "conv1", "conv2")])
def test_channels_that_are_copies_cost_nothing(kind, first, second):
    """Every channel of a layer twice: half of them can go, one of each pair, and its reader makes up for it."""
    t = make(kind, steps=30)
    model = t.trained(0)
    layer = model.get_submodule(first)
    half = len(layer.weight) // 2
    with torch.no_grad():
        layer.weight[half:], layer.bias[half:] = layer.weight[:half], layer.bias[:half]
    dense, x = copy.deepcopy(model), t.data["train"][0]
    masks = obspa(model, t, sparsity=0.5, data=x, damping=1e-7)
    kept, rows = masks[f"{first}.bias"], masks[f"{second}.bias"]
    assert (kept[:half] ^ kept[half:]).all()
    end = [name for name, _ in model.named_children()].index(second) + 1
    with torch.no_grad():
        torch.testing.assert_close(model[:end](x)[:, rows], dense[:end](x)[:, rows], rtol=1e-3, atol=1e-3)


def test_obspa_beats_magnitude_without_tuning_and_needs_no_data():
    t = task("digits-cnn")
    found = {}
    for what in ("magnitude", None, "noise"):
        model = t.trained(0)
        if what == "magnitude":
            unit = structure("channel", multiple_of=1)
            prune(model, unit=unit, sparsity=0.75, allocation="uniform", example_inputs=t.data["train"][0][:1])
        else:
            obspa(model, t, sparsity=0.75, data=what)
        found[what] = t.accuracy(model)
    assert found[None] > found["magnitude"] + 0.1
    assert found["noise"] > found["magnitude"] + 0.1


def test_obspa_measures_norms_anew_and_leaves_a_network_alone_that_loses_nothing():
    t = make("resnet", steps=20)
    model = t.trained(0)
    before = copy.deepcopy(model.state_dict())
    obspa(model, t, sparsity=0.0).weights()
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    masks = obspa(model, t, sparsity=0.5)
    stay = masks["layer1.0.bn1.weight"]
    x, seen = t.data["train"][0], {}
    model.layer1[0].bn1.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))
    with torch.no_grad():
        model(x)
    assert int((~stay).sum()) == 2
    found = model.layer1[0].bn1.running_mean[stay]
    torch.testing.assert_close(found, seen["x"].mean((0, 2, 3))[stay], rtol=0.2, atol=0.05)
    assert not torch.allclose(found, before["layer1.0.bn1.running_mean"][stay], atol=1e-3)
