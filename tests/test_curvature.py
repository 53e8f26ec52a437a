"""Gradients, Fishers and Hessians against autograd's own, sample by sample."""

import pytest
import torch
import torch.nn.functional as F
from helpers import close, normal, same, snapshot
from torch import nn
from torch.func import functional_call, grad, vmap

from pruninglab import collect
from pruninglab.criteria import woodfisher
from pruninglab.curvature import fisher_inverse, fisher_of, gradients, hvp, sample_grads

# ── gradients of single samples ───────────────────────────────────────────────────────────────────────────────────────


class Twice(nn.Module):
    """A layer that is called two times."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.outer(self.inner(torch.tanh(self.inner(x))))


class Tokens(nn.Module):
    """Layers with several positions to a sample."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x))).mean(1)


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(4, 6, 2, groups=2), nn.Tanh(), nn.Flatten(),
        nn.Linear(24, 3),
    )  # fmt: skip


NETWORKS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), (4,)),
    "twice": (Twice, (4,)),
    "tokens": (Tokens, (5, 4)),
    "convolutions": (convolutions, (2, 6, 6)),
}


def network(kind, samples=9):
    build, shape = NETWORKS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().double()
    return model, (normal(samples, *shape, seed=1), torch.arange(samples) % 3)


def by_torch_func(model, data):
    """Parameter name → (samples, weights), one sample at a time."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x, y):
        return F.cross_entropy(functional_call(model, parameters, (x[None],)), y[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, *data)
    return {name: value.flatten(1) for name, value in found.items() if name.endswith("weight")}


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_of_single_samples_are_those_of_torch_func(kind):
    model, data = network(kind)
    before = snapshot(model)
    expected = by_torch_func(model, data)
    blocks = {
        name: torch.randperm(value.shape[1], generator=torch.Generator().manual_seed(3))[:11]
        for name, value in expected.items()
    }
    found = sample_grads(model, data, blocks)
    for name, index in blocks.items():
        close(found[name], expected[name][:, index])
    whole = gradients(model, [tuple(part[:4] for part in data), tuple(part[4:] for part in data)])  # unequal batches
    assert whole.samples == 9
    for name, value in expected.items():
        close(whole.mean[name].flatten(), value.mean(0))
        close(whole.of(name, torch.arange(value.shape[1])), value)
        close(fisher_of(whole.of(name, blocks[name])), value[:, blocks[name]].T @ value[:, blocks[name]] / 9)
    assert same(before, snapshot(model))


def test_only_the_layers_that_are_asked_for_are_looked_at(mlp, batch):
    found = gradients(mlp, batch, only=["fc2.weight"])
    assert list(found.mean) == ["fc2.weight"]
    with pytest.raises(ValueError, match=r"unknown layer 'fc1\.weight'"):
        found.of("fc1.weight", torch.tensor([0]))
    close(found.mean["fc2.weight"], gradients(mlp, batch).mean["fc2.weight"])
    assert found.of("fc2.weight", torch.tensor([], dtype=torch.int64)).shape == (11, 0)


def test_frozen_weights_have_gradients_too_and_stay_frozen(mlp, batch):
    expected = gradients(mlp, batch).mean
    mlp.train().requires_grad_(False)
    before = snapshot(mlp)
    for name, value in gradients(mlp, batch).mean.items():
        close(value, expected[name], rtol=0, atol=0)
    assert same(before, snapshot(mlp))


def test_a_model_that_fails_half_way_is_as_before(mlp, batch):
    x, y = batch
    broken = [(x, y), (x[:, :3], y)]  # the second batch does not fit
    v = {"fc1.weight": torch.ones_like(mlp.fc1.weight)}
    before = snapshot(mlp.train())
    for measure in (
        lambda: gradients(mlp, broken),
        lambda: hvp(mlp, broken, v),
        lambda: collect(mlp, ["fisher_inverse_diagonal"], broken),
    ):
        with pytest.raises(RuntimeError):
            measure()
        assert same(before, snapshot(mlp))


@pytest.mark.parametrize(
    ("data", "blocks", "words"),
    [
        (None, {"fc9.weight": [0]}, r"unknown layer 'fc9\.weight'\. .* Known: fc1\.weight, fc2\.weight, fc3\.weight"),
        (None, {"fc1.weight": [0, 42]}, "index runs from 0 to 42; fc1.weight has 42 weights"),
        (None, {"fc1.weight": [-1]}, "index runs from -1"),
        (None, {"fc1.weight": [[1]]}, r"a vector of whole numbers, not torch.int64 of shape \(1, 1\)"),
        (None, {"fc1.weight": [1.0]}, "a vector of whole numbers, not torch.float32"),
        ([], {"fc1.weight": [0]}, "empty: not one sample"),
        (torch.zeros(3, 6), {"fc1.weight": [0]}, r"must be \(x, y\)"),
    ],
)
def test_bad_blocks_and_data_are_refused(mlp, batch, data, blocks, words):
    before = snapshot(mlp)
    with pytest.raises(ValueError, match=words):
        sample_grads(mlp, batch if data is None else data, {name: torch.tensor(i) for name, i in blocks.items()})
    assert same(before, snapshot(mlp))


def test_a_layer_that_is_never_called_is_named(mlp, batch):
    mlp.add_module("idle", nn.Linear(3, 3))
    mlp.forward = lambda x: mlp.fc3(torch.relu(mlp.fc2(torch.relu(mlp.fc1(x)))))
    with pytest.raises(ValueError, match=r"never called .*idle\.weight"):
        gradients(mlp, batch)


# ── the inverse of a Fisher ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("samples", "n"), [(5, 12), (40, 12), (1, 3)])
@pytest.mark.parametrize("damp", [1e-3, 1e-1, 2.0])
def test_the_rank_one_recursion_is_the_inverse(samples, n, damp):
    g = 1e-3 * normal(samples, n)
    ridge = damp * float(g.square().mean()) * torch.eye(n, dtype=torch.float64)
    close(fisher_inverse(g, damp), torch.linalg.inv(g.T @ g / samples + ridge), rtol=1e-5)


def test_without_damping_a_fisher_needs_a_full_rank():
    g = normal(30, 6)
    close(fisher_inverse(g, 0), torch.linalg.inv(g.T @ g / 30))
    with pytest.raises(ValueError, match=r"of 6 weights from 4 samples has rank 4: it is singular .* without damping"):
        fisher_inverse(g[:4], 0)
    g[:, 2] = g[:, 1]
    with pytest.raises(ValueError, match="rank 5"):
        fisher_inverse(g, 0)
    close(fisher_inverse(torch.zeros(3, 2), 0.5), 2 * torch.eye(2, dtype=torch.float64))
    for bad in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="damp must be 0 or more"):
            fisher_inverse(g, bad)
    with pytest.raises(ValueError, match=r"\(samples, weights\), not \(0, 4\)"):
        fisher_inverse(g[:0, :4])


@pytest.mark.parametrize("kind", ["wide", "convolutions", "tokens"])
def test_woodfisher_divides_by_the_inverse_of_each_block_of_64_in_a_row(kind):
    """`wide` has rows of 70 weights: a block of 64 and one of 6."""
    if kind == "wide":
        model, data = nn.Sequential(nn.Linear(70, 3)).double(), (normal(9, 70), torch.arange(9) % 3)
    else:
        model, data = network(kind)
    for name, g in by_torch_func(model, data).items():
        weight = model.get_parameter(name).detach()
        ridge = 1e-2 * g.square().mean()
        expected = torch.zeros_like(weight).flatten()
        width = weight[0].numel()
        for row in range(len(weight)):
            for places in torch.arange(row * width, (row + 1) * width).split(64):
                block = g[:, places].T @ g[:, places] / len(g) + ridge * torch.eye(len(places), dtype=g.dtype)
                expected[places] = weight.flatten()[places] ** 2 / 2 / torch.linalg.inv(block).diagonal()
        statistic = collect(model, ["fisher_inverse_diagonal"], data)[name]["fisher_inverse_diagonal"]
        close(woodfisher(weight, statistic), expected.view_as(weight))


def test_a_block_without_any_gradient_is_damped_by_a_number():
    model = nn.Linear(3, 2).double()
    found = collect(model, ["fisher_inverse_diagonal"], (torch.zeros(4, 3).double(), torch.zeros(4, dtype=torch.int64)))
    close(found["weight"]["fisher_inverse_diagonal"], torch.full((2, 3), 100.0, dtype=torch.float64))


# ── Hessian–vector products ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_hessian_vector_product_is_the_product_with_the_hessian():
    model, (x, y) = network("mlp")
    before = snapshot(model)
    names = ["0.weight", "2.bias"]
    values = [model.get_parameter(name).detach() for name in names]

    def loss(*parameters):
        return F.cross_entropy(functional_call(model, dict(zip(names, parameters, strict=True)), (x,)), y)

    hessian = torch.autograd.functional.hessian(loss, tuple(values))
    v = [normal(*value.shape, seed=i) for i, value in enumerate(values)]
    found = hvp(model, [(x[:2], y[:2]), (x[2:], y[2:])], dict(zip(names, v, strict=True)))
    for i, name in enumerate(names):
        expected = sum(torch.tensordot(hessian[i][j], v[j], v[j].ndim) for j in range(2))
        close(found[name], expected)
    assert same(before, snapshot(model))


def test_a_direction_that_does_not_fit(mlp, batch):
    with pytest.raises(ValueError, match="names no parameter"):
        hvp(mlp, batch, {})
    with pytest.raises(ValueError, match=r"unknown parameter 'fc1\.weigth'"):
        hvp(mlp, batch, {"fc1.weigth": torch.ones(7, 6)})
    with pytest.raises(ValueError, match=r"'fc1\.weight' has shape \(6, 7\), the parameter \(7, 6\)"):
        hvp(mlp, batch, {"fc1.weight": torch.ones(6, 7)})
