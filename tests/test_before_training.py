"""GraSP against finite differences and a Hessian written out, SynFlow against sums over paths and ablation; pruning."""

import copy
import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import same, snapshot
from torch import nn
from torch.func import functional_call
from torch.utils.data import TensorDataset

from pruninglab import collect, prune, statistic, task
from pruninglab.batches import BATCH
from pruninglab.criteria import find, needs
from pruninglab.flowing import flow_grad, hessian_grad
from pruninglab.measure import effective_sparsity, empty_layers
from pruninglab.statistics import STATISTICS, cross_entropy
from pruninglab.tasks import models

T = 200.0


def close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name].double(), expected[name].double(), **({"rtol": 1e-5, "atol": 0} | tolerance)
        )


def scores(model, name, data=None):
    """Layer → scores, the way `prune` gets them."""
    function = find(name)
    return {layer: function(**statistics) for layer, statistics in collect(model, needs(function), data).items()}


# ── GraSP ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def attention():
    layer = nn.TransformerEncoderLayer(6, 2, 5, dropout=0.3, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (2, 6)), layer, nn.Flatten(), nn.Linear(12, 3))


def convolutions():
    parts = [
        nn.Conv2d(1, 3, 2),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 2, groups=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
    ]
    return nn.Sequential(nn.Unflatten(1, (1, 3, 4)), *parts, nn.Flatten(), nn.Linear(8, 3))


NETWORKS = {
    "mlp": lambda: models.mlp(12, 6, 5, 3),
    "convolutions": convolutions,
    "attention": attention,
    "dropout": lambda: nn.Sequential(nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Tanh(), nn.Linear(5, 3)),
}


def network(name):
    """One of the above in float64, with norms that have seen something."""
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


@pytest.fixture
def examples():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(23, 12, generator=generator).double(), torch.randint(3, (23,), generator=generator)


def gradient(model, x, y, temperature=T):
    """Gradient of the loss at a temperature, parameter by parameter, by plain `backward` in a copy of the model."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    model.requires_grad_(True).zero_grad()
    F.cross_entropy(model(x) / temperature, y).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def moved(model, by, factor):
    """A copy of the model with `factor · by` added to its parameters."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += factor * by[name]
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_the_product_is_a_finite_difference_of_gradients(name, examples):
    model = network(name)
    g = gradient(model, *examples)
    step = 1e-5 / torch.cat([value.flatten() for value in g.values()]).norm()
    forth, back = (gradient(moved(model, g, sign * step), *examples) for sign in (1, -1))
    found = collect(model, ["hessian_grad"], examples)
    for layer, statistics in found.items():
        expected = (forth[layer] - back[layer]) / (2 * step)
        error = (statistics["hessian_grad"] - expected).norm() / expected.norm()
        assert error < 1e-5, (layer, error)


@pytest.mark.parametrize("temperature", [1.0, 7.0])
def test_the_product_with_a_hessian_written_out(temperature):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x, y = torch.randn(9, 3).double(), torch.randn(9, 2).double()
    parts = dict(model.named_parameters())
    sizes = [p.numel() for p in parts.values()]

    def square(outputs, targets):
        return (outputs - targets).square().sum(1).mean()

    def loss(flat):
        pieces = {name: piece.view_as(parts[name]) for name, piece in zip(parts, flat.split(sizes), strict=True)}
        return square(functional_call(model, pieces, (x,)) / temperature, y)

    flat = torch.cat([p.detach().flatten() for p in parts.values()])
    g = torch.autograd.functional.jacobian(loss, flat)
    product = (torch.autograd.functional.hessian(loss, flat) @ g).split(sizes)
    expected = {n: v.view_as(parts[n]) for n, v in zip(parts, product, strict=True) if n.endswith("weight")}
    close(hessian_grad(model, (x, y), square, temperature), expected)
    if temperature == 1:  # a statistic of one's own, which hands on the loss that `collect` was given

        @statistic
        def cold(model, data, loss):
            return hessian_grad(model, data, loss, temperature=1.0)

        found = collect(model, ["cold"], [(x[:4], y[:4]), (x[4:], y[4:])], loss=square)
        close({name: statistics["cold"] for name, statistics in found.items()}, expected)


def test_batches_of_any_kind_give_the_product_of_the_whole(mlp, batch):
    x, y = batch
    expected = hessian_grad(mlp, batch)
    parts = [(x[:2], y[:2]), (x[2:9], y[2:9]), (x[9:], y[9:])]
    for data in (parts, iter(parts), TensorDataset(x, y)):
        close(hessian_grad(mlp, data), expected, rtol=1e-3, atol=1e-9)
    alone = [hessian_grad(mlp, [part]) for part in parts]  # what must not be done: g of each batch with its own H
    mean = sum(len(part[1]) * product["fc1.weight"] for part, product in zip(parts, alone, strict=True)) / len(x)
    assert (mean - expected["fc1.weight"]).norm() > 0.2 * expected["fc1.weight"].norm()
    longer = x.repeat(30, 1), y.repeat(30)
    assert len(longer[0]) > 2 * BATCH
    close(hessian_grad(mlp, longer), expected, rtol=1e-3, atol=1e-9)


def test_the_score_is_the_gradient_flow_that_is_lost(examples):
    """A weight that shrinks by a part ε changes ‖g‖² by −2ε times its score: sign and size, weight by weight."""
    model = network("mlp")
    epsilon = 1e-6

    def flow():
        return sum(value.square().sum() for value in gradient(model, *examples).values()).item()

    for layer, found in scores(model, "grasp", examples).items():
        weight = model.get_parameter(layer).data
        for place in itertools.product(*map(range, weight.shape)):
            old = weight[place].clone()
            weight[place] = old * (1 - epsilon)
            less = flow()
            weight[place] = old * (1 + epsilon)
            lost = (flow() - less) / (4 * epsilon)
            weight[place] = old
            assert math.isclose(found[place].item(), lost, rel_tol=1e-3, abs_tol=1e-10)


def test_pruning_by_the_score_leaves_more_gradient_than_pruning_against_it(examples):
    def left(sign):
        model = network("mlp")
        prune(model, sparsity=0.3, criterion=lambda weight, hessian_grad: sign * weight * hessian_grad, data=examples)
        return sum(value.square().sum() for value in gradient(model, *examples).values()).item()

    model = network("mlp")
    before = sum(value.square().sum() for value in gradient(model, *examples).values()).item()
    prune(model, sparsity=0.3, criterion="grasp", data=examples)
    after = sum(value.square().sum() for value in gradient(model, *examples).values()).item()
    assert after == left(1) > before > left(-1)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("statistics", ["hessian_grad", "flow_grad"])
def test_the_model_is_left_as_it_was(name, statistics, examples):
    model = network(name).float().train()
    data = examples[0].float(), examples[1]
    model[-1].bias.requires_grad_(False)
    F.cross_entropy(model(data[0]), data[1]).backward()
    model[-2].eval()
    before = snapshot(model), torch.random.get_rng_state()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # attention is not linear
        found = collect(model, [statistics], data)
        assert all(values[statistics].any() for values in found.values())
    assert all(values[statistics].dtype == torch.float32 for values in found.values())
    assert not any(values[statistics].requires_grad for values in found.values())
    assert same(before[0], snapshot(model))
    assert torch.equal(before[1], torch.random.get_rng_state())
    with pytest.raises(ValueError, match="loss must return one number"):
        hessian_grad(model, data, lambda outputs, y: outputs)
    with pytest.raises(RuntimeError):  # inputs of another shape
        flow_grad(model, torch.ones(2, 13))
    assert same(before[0], snapshot(model))


def test_batch_norms_use_the_batch_and_dropout_is_off(examples):
    model, other = network("dropout"), network("dropout")
    for tensor in (other[1].running_mean, other[1].running_var):
        tensor.mul_(3)
    close(hessian_grad(model, examples), hessian_grad(other, examples), rtol=0)
    assert model[1].track_running_stats
    with pytest.raises(ValueError, match="a batch with one sample"):
        hessian_grad(model, [(examples[0][:1], examples[1][:1])])


def test_zero_and_frozen_weights_count_like_any_other(mlp, batch):
    expected = hessian_grad(mlp, batch)
    close(hessian_grad(mlp.requires_grad_(False), batch), expected, rtol=0)
    mlp.fc2.weight.data[1] = 0  # a unit that is cut from its inputs still has gradients there
    assert hessian_grad(mlp, batch)["fc2.weight"].shape == mlp.fc2.weight.shape
    assert scores(mlp, "grasp", batch)["fc2.weight"][1].abs().max() == 0


def test_a_loss_without_curvature():
    model = nn.Sequential(nn.Linear(3, 2))
    found = hessian_grad(model, (torch.randn(5, 3), torch.randn(5, 2)), lambda outputs, y: (outputs * y).sum(1).mean())
    assert not found["0.weight"].any()


def test_what_grasp_cannot_use(mlp, batch):
    for temperature in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature must be a positive number, not"):
            hessian_grad(mlp, batch, cross_entropy, temperature)
    with pytest.raises(ValueError, match="empty: not one sample"):
        prune(mlp, sparsity=0.5, criterion="grasp", data=[])
    with pytest.raises(ValueError, match="data is needed to collect hessian_grad"):
        prune(mlp, sparsity=0.5, criterion="grasp")
    with pytest.raises(ValueError, match=r"must be \(x, y\)"):
        prune(mlp, sparsity=0.5, criterion="grasp", data=batch[0])


# ── SynFlow ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_score_is_a_sum_over_paths():
    """Every path from an input to an output, one by one; biases are there, and count nothing."""
    torch.manual_seed(0)
    model = models.mlp(3, 4, 3, 2)
    names = [f"fc{i}.weight" for i in (1, 2, 3)]
    weights = [model.get_parameter(name).detach().double().abs() for name in names]
    through = [torch.zeros_like(w) for w in weights]
    total = 0.0
    for units in itertools.product(range(3), range(4), range(3), range(2)):
        places = [(after, before) for before, after in itertools.pairwise(units)]
        strength = math.prod(w[place].item() for w, place in zip(weights, places, strict=True))
        total += strength
        for part, place in zip(through, places, strict=True):
            part[place] += strength
    expected = {name: part / total for name, part in zip(names, through, strict=True)}
    close(scores(model, "synflow"), expected)


class Doubled(nn.Module):
    """A weight that is used twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.c = nn.Linear(4, 2)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def chain():
    parts = [nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)]
    return nn.Sequential(*parts, nn.LeakyReLU(), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))


def used(make):
    """A model whose norms have seen something, and one input of ones."""
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            for tensor in (module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.2, 1.5)
    return model, torch.ones(1, 1, 7, 7)


def flow(model, x):
    """R, from a copy of the model with magnitudes for weights and zeros for whatever shifts."""
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                tensor.copy_(torch.zeros_like(tensor) if name in ("bias", "running_mean") else tensor.abs())
        return model(x.double()).sum().item()


@pytest.mark.parametrize("make", [chain, lambda: models.ResNet(1, 1, (2, 3))], ids=["chain", "resnet"])
def test_the_score_is_the_share_of_the_flow_that_goes_with_the_weight(make):
    """R is linear in each weight, so that what is gone without it is what went through it."""
    model, x = used(make)
    whole = flow(model, x)
    for layer, found in scores(model, "synflow", x).items():
        weight = model.get_parameter(layer).data
        for place in itertools.islice(itertools.product(*map(range, weight.shape)), 0, None, 5):
            old = weight[place].clone()
            weight[place] = 0
            assert math.isclose(found[place].item(), 1 - flow(model, x) / whole, rel_tol=1e-4, abs_tol=1e-12)
            weight[place] = old


def test_what_flows_in_flows_out():
    """The shares of every layer sum to 1, and for every hidden unit those that enter are those that leave."""
    model, x = used(chain)
    found = {name: s.double() for name, s in scores(model, "synflow", x).items()}
    for part in found.values():
        assert math.isclose(part.sum(), 1, rel_tol=1e-5)
    first, second, third, last = found.values()
    pairs = [(first.sum((1, 2, 3)), second.sum((0, 2, 3))), (third.sum(1), last.sum(0))]
    pairs += [(second.sum((1, 2, 3)), third.sum(0).view(4, 4).sum(1))]  # each channel has four positions
    for entering, leaving in pairs:
        torch.testing.assert_close(entering, leaving, rtol=1e-5, atol=0)
    model, x = used(lambda: models.ResNet(1, 1, (2, 3)))
    found = {name: s.sum().item() for name, s in scores(model, "synflow", x).items()}
    assert math.isclose(found["conv1.weight"], 1, rel_tol=1e-5)
    assert math.isclose(found["linear.weight"], 1, rel_tol=1e-5)
    for block in ("layer1.0", "layer2.0"):  # the rest goes around the block
        assert math.isclose(found[f"{block}.conv1.weight"], found[f"{block}.conv2.weight"], rel_tol=1e-5)
        assert 0.01 < found[f"{block}.conv1.weight"] < 0.99


@pytest.mark.parametrize("scale", [1e-2, 1e2])
def test_a_deep_network_neither_overflows_nor_vanishes(scale):
    torch.manual_seed(0)
    model = models.mlp(*[8] * 31)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= scale if name.endswith("weight") else 1
    assert not 1e-40 < flow(model, torch.ones(1, 8)) < 1e40  # float32 could not hold it
    for part in scores(model, "synflow").values():
        assert math.isclose(part.double().sum(), 1, rel_tol=1e-4)
    deeper = models.mlp(*[64] * 600)
    with pytest.raises(ValueError, match="is inf: a weight is not finite, or it is deeper than float64 reaches"):
        prune(deeper, sparsity=0.5, criterion="synflow")


def test_only_the_shape_of_an_input_is_looked_at(mlp):
    expected = flow_grad(mlp)
    nan, y = torch.full((4, 6), torch.nan), torch.zeros(4, dtype=torch.long)
    for data in (nan, (nan, y), [(nan, y)], iter([nan]), TensorDataset(nan, y), torch.ones(1, 6).bfloat16()):
        close(flow_grad(mlp, data), expected, rtol=0)
    writing = nn.Sequential(nn.ReLU(inplace=True), *mlp)
    assert torch.equal(flow_grad(writing, nan)["2.weight"], expected["fc1.weight"])
    low = {name: value.float() for name, value in flow_grad(copy.deepcopy(mlp).bfloat16()).items()}
    close(low, expected, rtol=0.1)


def test_a_shared_weight_and_an_input_by_name():
    torch.manual_seed(0)
    model = Doubled()
    found = scores(model, "synflow")
    assert math.isclose(found["a.weight"].double().sum(), 2, rel_tol=1e-5)  # all flow passes it twice
    close(flow_grad(model, [{"x": torch.zeros(5, 4)}]), flow_grad(model), rtol=0)


def test_what_synflow_cannot_use(mlp):
    with pytest.raises(ValueError, match=r"a Conv2d as the first layer does not tell: pass data="):
        prune(chain(), sparsity=0.5, criterion="synflow")
    with pytest.raises(ValueError, match=r"\(1, 6\), which the first layer takes, is not it: pass data="):
        prune(nn.Sequential(nn.Unflatten(1, (3, 4)), nn.Linear(6, 2)), sparsity=0.5, criterion="synflow")
    with pytest.raises(ValueError, match="empty: not one sample"):
        prune(mlp, sparsity=0.5, criterion="synflow", data=[])
    with pytest.raises(ValueError, match=r"real numbers, not torch\.int64"):
        prune(mlp, sparsity=0.5, criterion="synflow", data=torch.ones(3, 6).long())
    mlp.fc1.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="the flow through the model is nan: a weight is not finite"):
        prune(mlp, sparsity=0.5, criterion="synflow")


def test_a_network_that_does_not_conserve_the_flow_is_named():
    torch.manual_seed(0)
    normed = nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, 3))
    with pytest.warns(UserWarning, match="of the flow that comes out of the model, .*% went in"):
        flow_grad(normed)
    cut = models.mlp(6, 7, 3)
    cut.fc2.weight.data.zero_()
    with pytest.warns(UserWarning, match="nothing flows from inputs to outputs"):
        found = scores(cut, "synflow")
    assert not any(part.any() for part in found.values())


# ── pruning ───────────────────────────────────────────────────────────────────────────────────────────────────────


def in_rounds(model, density, rounds, **options):
    masks = None
    for r in range(1, rounds + 1):
        earlier = masks
        masks = prune(model, sparsity=1 - density ** (r / rounds), criterion="synflow", within=masks, **options)
        assert earlier is None or all((masks[name] <= earlier[name]).all() for name in masks)
    return masks


def test_in_rounds_no_layer_is_emptied_and_no_weight_is_idle():
    """The paper's point: 30 weights of 5 layers, which is hardly more than one path, and all lie on paths."""
    torch.manual_seed(0)
    model = models.mlp(20, 20, 20, 20, 20, 5)
    at_once, in_turn, x = copy.deepcopy(model), copy.deepcopy(model), torch.ones(1, 20)
    density = 30 / 1700
    prune(at_once, sparsity=1 - density, criterion="synflow")
    masks = in_rounds(in_turn, density, 50)
    assert masks.kept() == 30
    assert not empty_layers(in_turn)
    assert math.isclose(effective_sparsity(in_turn, x), 1 - density)
    assert effective_sparsity(at_once, x) == 1  # at once, nothing is left that connects inputs to outputs


@pytest.mark.parametrize("name", ["digits-mlp", "digits-cnn", "digits-resnet"])
@pytest.mark.parametrize("criterion", ["snip", "synflow", "grasp"])
def test_untrained_networks_of_the_tasks(name, criterion):
    home = task(name)
    model = home.model(0)
    masks = prune(model, sparsity=0.8, criterion=criterion, data=home.calibration(64))
    assert math.isclose(masks.sparsity(), 0.8, abs_tol=1e-3)
    again = home.model(0)
    assert masks == prune(again, sparsity=0.8, criterion=criterion, data=home.calibration(64))


# ── statistics with defaults ──────────────────────────────────────────────────────────────────────────────────────


def test_a_statistic_may_do_without_data_and_have_options(mlp, batch):
    @statistic
    def rows(model, data=None, scale=2.0):
        return {name: torch.full_like(p, scale * len(data[0]) if data else -1) for name, p in model.named_parameters()}

    assert STATISTICS["rows"].needs == ("model", "data")
    assert collect(mlp, ["rows"])["fc1.weight"]["rows"].unique().item() == -1
    assert collect(mlp, ["rows"], batch)["fc1.weight"]["rows"].unique().item() == 2 * len(batch[0])
