"""Curvature against brute force: autograd's own Hessian, gradients sample by sample, least squares, all choices."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import same, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap

from pruninglab import collect
from pruninglab.criteria import obs, woodfisher
from pruninglab.curvature import (
    Quadratic,
    anneal,
    cbs_select,
    cbs_update,
    exhaustive,
    fisher_inverse,
    fisher_of,
    gradients,
    hvp,
    inverse_of,
    obs_layer,
    obs_prune,
    obs_step,
    quadratic,
    sample_grads,
    swap_search,
)

SEEDS = st.integers(0, 10_000)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(n, seed=0):
    """A Hessian whose weights have much to do with each other."""
    a = normal(n, n, seed=seed)
    return a @ a.T / n + 0.05 * torch.eye(n, dtype=torch.float64)


def close(found, expected, **tolerance):
    torch.testing.assert_close(found, expected, **({"rtol": 1e-6, "atol": 1e-9} | tolerance))


# ── gradients of single samples ───────────────────────────────────────────────────────────────────────────────────


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


# ── the inverse of a Fisher ───────────────────────────────────────────────────────────────────────────────────────


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


# ── Hessian–vector products ───────────────────────────────────────────────────────────────────────────────────────


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


# ── optimal brain surgeon ─────────────────────────────────────────────────────────────────────────────────────────


def cheapest(weights, hessian, gone):
    """The least ½ δᵀHδ with these weights gone, by least squares on a square root of H; and what is left then."""
    root = torch.linalg.cholesky(hessian).T
    stay = [i for i in range(len(weights)) if i not in gone]
    target, left = root @ weights, torch.zeros_like(weights)
    if stay:
        left[stay] = torch.linalg.lstsq(root[:, stay], target).solution
    return 0.5 * float((root @ left - target).square().sum()), left


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_each_step_of_the_surgeon_is_the_best_of_all(seed):
    weights, hessian = normal(6, seed=seed), positive(6, seed + 1)
    found = obs_prune(weights, hessian, 6)
    gone, total = [], 0.0
    for q, loss in zip(found.order.tolist(), found.losses.tolist(), strict=True):
        costs = {i: cheapest(weights, hessian, [*gone, i])[0] for i in range(6) if i not in gone}
        assert costs[q] == pytest.approx(min(costs.values()), rel=1e-6)
        gone.append(q)
        total += loss
        assert total == pytest.approx(costs[q], rel=1e-6)
    for n in range(7):
        some = obs_prune(weights, hessian, n)
        assert some.order.tolist() == gone[:n]
        close(some.weights, cheapest(weights, hessian, gone[:n])[1], rtol=1e-5, atol=1e-8)
        assert (some.weights[some.order] == 0).all()


def test_one_step_leaves_the_others_where_least_squares_puts_them():
    weights, hessian = normal(5), positive(5, 1)
    inverse = torch.linalg.inv(hessian)
    for q in range(5):
        delta, saliency = obs_step(weights, inverse, q)
        expected, left = cheapest(weights, hessian, [q])
        close(weights + delta, left)
        assert saliency == pytest.approx(expected)
        assert 0.5 * float(delta @ hessian @ delta) == pytest.approx(expected)


def test_what_the_surgeon_refuses():
    weights = normal(4)
    rank_two = normal(4, 2) @ normal(4, 2).T
    for hessian, words in (
        (rank_two, "of 4 weights is singular or not positive definite.*add damping"),
        (-torch.eye(4), "not positive definite"),
        (torch.full((4, 4), torch.nan), "not finite"),
        (torch.eye(3), r"weights \(4,\) do not fit a Hessian of shape \(3, 3\)"),
    ):
        with pytest.raises(ValueError, match=words):
            obs_prune(weights, hessian, 1)
    with pytest.raises(ValueError, match="n must be 0 to 4 weights, not 5"):
        obs_prune(weights, torch.eye(4), 5)
    with pytest.raises(ValueError, match=r"a square matrix, not \(2, 3\)"):
        inverse_of(torch.ones(2, 3))
    close(inverse_of(positive(7)), torch.linalg.inv(positive(7)))


def layer_problem(outputs=3, d=5, n=30, seed=0):
    x = normal(n, d, seed=seed) @ normal(d, d, seed=seed + 1)
    return x, normal(outputs, d, seed=seed + 2)


@pytest.mark.parametrize("seed", range(4))
def test_a_layer_loses_the_weight_that_its_row_makes_up_for_best(seed):
    x, weight = layer_problem(seed=10 * seed)
    y = x @ weight.T

    def error(row, stay):
        if not stay:
            return float(y[:, row].square().sum())
        return float((x[:, stay] @ torch.linalg.lstsq(x[:, stay], y[:, row]).solution - y[:, row]).square().sum())

    kept = [list(range(5)) for _ in range(3)]
    for removed in range(15):
        found, mask = obs_layer(weight, x.T @ x, removed / 15, damp=0)
        assert [row.nonzero().flatten().tolist() for row in mask] == kept
        for row, stay in enumerate(kept):
            expected = torch.zeros(5, dtype=torch.float64)
            if stay:
                expected[stay] = torch.linalg.lstsq(x[:, stay], y[:, row]).solution
            close(found[row], expected, rtol=1e-5, atol=1e-8)
        rise = {
            (row, i): error(row, [k for k in stay if k != i]) - error(row, stay)
            for row, stay in enumerate(kept)
            for i in stay
        }
        row, i = min(rise, key=rise.__getitem__)
        kept[row].remove(i)


def test_rows_that_are_traced_apart_are_traced_alike(monkeypatch):
    x, weight = layer_problem(outputs=9, d=6)
    expected = obs_layer(weight, x.T @ x, 0.6)
    monkeypatch.setattr("pruninglab.curvature.obs.PIECE", 80)  # two rows at a time
    for one, other in zip(obs_layer(weight, x.T @ x, 0.6), expected, strict=True):
        assert torch.equal(one, other)


def test_a_layer_keeps_its_type_and_needs_damping_where_inputs_are_dead():
    x, weight = layer_problem()
    x[:, 2] = 0
    with pytest.raises(ValueError, match="add damping"):
        obs_layer(weight, x.T @ x, 0.5, damp=0)
    found, mask = obs_layer(weight.float(), x.T @ x, 0.2, damp=1e-9)
    assert found.dtype == torch.float32
    assert not mask[:, 2].any()  # the input that is always 0 costs nothing to lose
    assert (found[~mask] == 0).all()
    close(found[mask], weight.float()[mask], rtol=1e-4)
    for options, words in (
        ({"sparsity": 1.0}, r"in \[0, 1\), not 1.0"),
        ({"sparsity": 0.5, "damp": -1.0}, "damp must be 0 or more"),
    ):
        with pytest.raises(ValueError, match=words):
            obs_layer(weight, x.T @ x, **options)
    with pytest.raises(ValueError, match=r"\(3, 5\) does not fit a Hessian of \(4, 4\)"):
        obs_layer(weight, torch.eye(4), 0.5)


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(4, 4, 2, groups=2)])
def test_the_obs_score_is_what_the_layers_error_grows_by(layer):
    model = nn.Sequential(layer).double()
    x = normal(20, 4) if isinstance(layer, nn.Linear) else normal(6, 4, 4, 4)
    scores = obs(layer.weight.detach(), collect(model, ["hessian"], x)["0.weight"]["hessian"], damping=0.0)
    rows = x[None] if x.ndim == 2 else F.unfold(x, 2).unflatten(1, (2, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    width = len(layer.weight) // len(rows)
    for row, weights in enumerate(layer.weight.detach().flatten(1)):
        inputs = rows[row // width]
        for i in range(len(weights)):
            stay = [k for k in range(len(weights)) if k != i]
            left = torch.linalg.lstsq(inputs[:, stay], inputs @ weights).solution
            rise = float((inputs[:, stay] @ left - inputs @ weights).square().sum())
            assert float(scores.flatten(1)[row, i]) == pytest.approx(rise, rel=1e-5)
    dead = torch.zeros_like(x)
    singular = collect(model, ["hessian"], dead)["0.weight"]["hessian"]
    with pytest.raises(ValueError, match="add damping"):
        partial(obs, damping=0.0)(layer.weight, singular)
    assert torch.isfinite(obs(layer.weight.detach(), singular)).all()


# ── the quadratic of a block ──────────────────────────────────────────────────────────────────────────────────────


def block(n=9, seed=0, samples=5):
    """Old weights, their change, a Fisher of low rank and a gradient; some weights are gone."""
    old, gone = normal(n, seed=seed), normal(n, seed=seed + 1) > 0
    g = normal(samples, n, seed=seed + 2)
    return old, torch.where(gone, -old, 0.0), fisher_of(g), g.mean(0)


@given(SEEDS, st.floats(0, 2), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_the_quadratic_is_the_change_of_the_loss(seed, gamma, ridge):
    old, change, hessian, g = block(seed=seed)
    problem = quadratic(old, change, hessian, g, gamma=gamma, ridge=ridge)
    states = normal(6, 9, seed=seed + 3) > 0
    for x, energy in zip(states, problem.energy(states), strict=True):
        current, new = old + change, torch.where(x, 0.0, old)
        delta = new - current
        expected = gamma * g @ delta + 0.5 * delta @ hessian @ delta + ridge * delta @ delta
        assert float(energy) == pytest.approx(float(expected), rel=1e-9, abs=1e-10)
    stay = old + change == 0
    assert float(problem.energy(stay)) == pytest.approx(0, abs=1e-10)  # as it is now, nothing changes


def test_field_flips_and_clipping_are_what_they_say():
    problem = quadratic(*block())
    x = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 0], dtype=torch.bool)
    close(problem.field(x), problem.matrix @ x.double())
    for i, energy in enumerate(problem.flips(x)):
        other = x.clone()
        other[i] = ~other[i]
        close(energy, problem.energy(other))
    clipped = problem.clipped()
    assert (problem.matrix < 0).any()
    for found, entry in zip(clipped.matrix.flatten(), problem.matrix.flatten(), strict=True):
        assert float(found) == max(float(entry), 0.0)
    close(problem.matrix, problem.matrix.T)
    assert len(problem) == 9


def test_a_quadratic_that_does_not_fit():
    old, change, hessian, g = block()
    with pytest.raises(ValueError, match=r"must be \(n,\), \(n,\), \(n,\), \(n, n\)"):
        quadratic(old, change[:3], hessian, g)
    with pytest.raises(ValueError, match="not finite"):
        quadratic(old, change, hessian, g * torch.nan)
    with pytest.raises(ValueError, match=r"x has shape \(4,\), the quadratic is of 9 weights"):
        quadratic(old, change, hessian, g).energy(torch.ones(4))
    with pytest.raises(ValueError, match=r"square matrix, not \(2, 3\)"):
        Quadratic(torch.ones(2, 3))


# ── solvers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def brute(problem, ones):
    """The lowest energy of all choices, one by one, from the definition."""
    matrix = problem.matrix.tolist()
    return problem.constant + min(
        sum(matrix[i][j] for i in some for j in some) for some in itertools.combinations(range(len(matrix)), ones)
    )


@pytest.mark.parametrize("ones", [0, 1, 4, 9])
def test_exhaustive_search_finds_the_best_of_all(ones):
    problem = quadratic(*block())
    x = exhaustive(problem, ones)
    assert int(x.sum()) == ones
    assert float(problem.energy(x)) == pytest.approx(brute(problem, ones))


@pytest.mark.parametrize("seed", range(6))
def test_swaps_with_restarts_reach_the_optimum_of_14_weights(seed):
    problem = quadratic(*block(n=14, seed=seed))
    best = float(problem.energy(exhaustive(problem, 7)))
    start = torch.arange(14) < 7
    assert float(problem.energy(swap_search(problem, start, restarts=10))) == pytest.approx(best)
    assert float(problem.energy(anneal(problem, start, seed=seed, restarts=2))) == pytest.approx(best)


@given(SEEDS, st.integers(0, 40))
@settings(max_examples=20, deadline=None)
def test_a_swap_search_ends_where_no_exchange_helps(seed, ones):
    problem = quadratic(*block(n=40, seed=seed, samples=12))
    start = torch.zeros(40, dtype=torch.bool)
    start[torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:ones]] = True
    given_ = start.clone()
    end = swap_search(problem, start)
    assert torch.equal(start, given_)
    assert int(end.sum()) == ones
    energy = float(problem.energy(end))
    assert energy <= float(problem.energy(start)) + 1e-12
    for i, j in itertools.product(end.nonzero().flatten(), (~end).nonzero().flatten()):
        other = end.clone()
        other[i], other[j] = False, True
        assert float(problem.energy(other)) >= energy - 1e-8


def test_the_first_exchange_is_the_best_of_all():
    """A start from which one exchange leads to the optimum, so that the search has to find just that one."""
    problem = quadratic(*block(n=10, seed=5))
    end = exhaustive(problem, 5)
    starts = [end.clone() for _ in range(25)]
    for start, (i, j) in zip(starts, itertools.product(end.nonzero(), (~end).nonzero()), strict=True):
        start[i], start[j] = False, True
        assert torch.equal(swap_search(problem, start), end)


def test_annealing_keeps_the_number_of_ones_and_depends_on_the_seed_alone():
    problem = quadratic(*block(n=60, samples=20))
    start = torch.arange(60) < 20
    one, again, other = (anneal(problem, start, seed=seed, temperatures=10, cold=10.0) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert int(one.sum()) == int(other.sum()) == 20
    before = float(problem.energy(start))
    swapped, annealed = (
        before - float(problem.energy(end)) for end in (swap_search(problem, start), anneal(problem, start))
    )
    assert swapped > 0
    assert annealed == pytest.approx(swapped, rel=0.1)


def test_what_solvers_refuse():
    problem = quadratic(*block(n=17))
    with pytest.raises(ValueError, match="16 weights at most, not 17"):
        exhaustive(problem, 3)
    with pytest.raises(ValueError, match="ones must be 0 to 9, not 10"):
        exhaustive(quadratic(*block()), 10)
    start = torch.arange(17) < 4
    for solve in (swap_search, anneal):
        with pytest.raises(ValueError, match="17 weights"):
            solve(problem, start[:5])
        with pytest.raises(ValueError, match="has other numbers"):
            solve(problem, 0.5 * start)
        with pytest.raises(ValueError, match="a vector of zeros and ones"):
            solve(problem, start[None])
        with pytest.raises(ValueError, match="restarts must be 0 or more"):
            solve(problem, start, restarts=-1)
    for options in ({"temperatures": 0}, {"hot": 0.0}, {"cold": -1.0}):
        with pytest.raises(ValueError, match="positive temperatures"):
            anneal(problem, start, **options)


# ── combinatorial brain surgeon ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(5))
def test_cbs_finds_the_best_choice_where_magnitude_does_not(seed):
    weights, hessian = normal(10, seed=seed), positive(10, seed + 1)

    def loss(gone):
        moved = torch.zeros_like(weights)
        moved[list(gone)] = -weights[list(gone)]
        return 0.5 * float(moved @ hessian @ moved)

    chosen = cbs_select(weights, hessian, 5, restarts=10)
    assert int(chosen.sum()) == 5
    best = min(loss(some) for some in itertools.combinations(range(10), 5))
    assert loss(chosen.nonzero().flatten().tolist()) == pytest.approx(best)
    magnitude = loss(weights.abs().argsort()[:5].tolist())
    alone = loss(cbs_select(weights, hessian, 5).nonzero().flatten().tolist())
    assert best <= alone + 1e-12 <= magnitude + 1e-9


def test_a_pair_that_cancels_goes_together():
    """Two inputs that are the same with weights 1 and −1 do nothing: both can go, though each alone is missed.

    From the magnitudes no single exchange leads there: that is what restarts are for.
    """
    hessian = torch.tensor([[2.0, 2.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    weights = torch.tensor([1.0, -1.0, 0.5, -0.5])
    assert cbs_select(weights, hessian, 2, restarts=10).tolist() == [True, True, False, False]
    assert cbs_select(weights, hessian, 2).tolist() == [False, False, True, True]
    assert cbs_select(weights, hessian.diagonal().diag(), 2, restarts=10).tolist() == [False, False, True, True]


@pytest.mark.parametrize("gone", [(0,), (1, 4), (0, 1, 2, 3, 5)])
def test_the_update_of_cbs_is_least_squares(gone):
    weights, hessian = normal(6), positive(6, 1)
    mask = torch.zeros(6, dtype=torch.bool)
    mask[list(gone)] = True
    close(cbs_update(weights, hessian, mask), cheapest(weights, hessian, gone)[1])


def test_what_cbs_refuses():
    with pytest.raises(ValueError, match="n must be 0 to 3 weights, not 4"):
        cbs_select(torch.ones(3), torch.eye(3), 4)
    with pytest.raises(ValueError, match="do not fit"):
        cbs_update(torch.ones(3), torch.eye(3), torch.ones(3))
    with pytest.raises(ValueError, match="do not fit"):
        cbs_update(torch.ones(3), torch.eye(2), torch.ones(3, dtype=torch.bool))
