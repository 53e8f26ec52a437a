"""Measurements against counting by hand: paths one by one, multiply–adds on paper, bytes of a real file."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import make_task, same, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruninglab import Masks, measure, prune, report
from pruninglab.files import save_tensors
from pruninglab.storage import save_sparse
from pruninglab.tasks import models


def alive_in_mlp(weights: list[torch.Tensor]) -> int:
    """How many weights lie on a path from an input to an output, by walking every path."""
    widths = [weights[0].shape[1], *(w.shape[0] for w in weights)]
    used = set()
    for path in itertools.product(*map(range, widths)):
        steps = [(i, path[i + 1], path[i]) for i in range(len(weights))]
        if all(weights[i][o, d] != 0 for i, o, d in steps):
            used.update(steps)
    return len(used)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.2, 0.4, 0.6]),
    st.sampled_from([(3, 4, 2), (2, 3, 3, 2), (3, 2, 4, 1, 2)]),
)
def test_effective_sparsity_of_an_mlp(seed, density, widths):
    model = models.mlp(*widths)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(generator=generator)
                layer.weight.mul_(torch.rand(layer.weight.shape, generator=generator) < density)
    weights = [layer.weight.detach() for layer in model if isinstance(layer, nn.Linear)]
    total = sum(w.numel() for w in weights)
    found = measure.effective_sparsity(model, torch.randn(4, widths[0]))
    assert found == pytest.approx(1 - alive_in_mlp(weights) / total)
    assert found >= measure.sparsity(model) - 1e-12


class TinyResidual(nn.Module):
    """Convolution, norm, pooling, a residual branch of two convolutions, a linear layer."""

    def __init__(self, pool=nn.MaxPool2d):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 2, 2, bias=False), nn.BatchNorm2d(2)
        self.pool = pool(2)
        self.conv2, self.conv3 = nn.Conv2d(2, 2, 2, padding=1), nn.Conv2d(2, 2, 2)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        x = x + self.conv3(torch.relu(self.conv2(x)))
        return self.fc(x.flatten(1))


def edges_of_residual(model: TinyResidual):
    """The network on a 5×5 picture as a list of (from, to, weight) with weight None where there is none."""
    edges = []

    def conv(name, layer, source, target, size_in, pad):
        kernel = layer.kernel_size[0]
        out = size_in + 2 * pad - kernel + 1
        for o, c, i, j in itertools.product(*map(range, layer.weight.shape)):
            for r, s in itertools.product(range(out), repeat=2):
                row, column = r + i - pad, s + j - pad
                if 0 <= row < size_in and 0 <= column < size_in:
                    edges.append(((source, c, row, column), (target, o, r, s), (name, o, c, i, j)))
        return out

    size = conv("conv1", model.conv1, "x", "a", 5, 0)
    assert size == 4
    for c, r, s in itertools.product(range(2), range(4), range(4)):
        edges.append((("a", c, r, s), ("p", c, r // 2, s // 2), None))
    assert conv("conv2", model.conv2, "p", "b", 2, 1) == 3
    assert conv("conv3", model.conv3, "b", "sum", 3, 0) == 2
    for c, r, s in itertools.product(range(2), range(2), range(2)):
        edges.append((("p", c, r, s), ("sum", c, r, s), None))
        edges += [(("sum", c, r, s), ("y", o), ("fc", o, c * 4 + r * 2 + s)) for o in range(2)]
    return edges


def alive_in_residual(model: TinyResidual) -> int:
    """Weights with an edge that something reaches and that reaches an output: a search from both ends."""
    edges = [(a, b, w) for a, b, w in edges_of_residual(model) if w is None or getattr(model, w[0]).weight[w[1:]] != 0]

    def reached(start, step):
        seen, front = set(start), list(start)
        while front:
            node = front.pop()
            for other in step.get(node, ()):
                if other not in seen:
                    seen.add(other)
                    front.append(other)
        return seen

    forwards, backwards = {}, {}
    for a, b, _ in edges:
        forwards.setdefault(a, []).append(b)
        backwards.setdefault(b, []).append(a)
    from_input = reached([("x", 0, r, s) for r in range(5) for s in range(5)], forwards)
    to_output = reached([("y", o) for o in range(2)], backwards)
    return len({w for a, b, w in edges if w is not None and a in from_input and b in to_output})


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.25, 0.5]), st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]))
def test_effective_sparsity_of_a_residual_network_with_pooling(seed, density, pool):
    torch.manual_seed(seed)
    model = TinyResidual(pool)
    nn.init.normal_(model.bn1.running_mean)
    nn.init.normal_(model.bn1.weight)
    layers = [model.conv1, model.conv2, model.conv3, model.fc]
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(torch.rand(layer.weight.shape) < density)
    total = sum(layer.weight.numel() for layer in layers)
    before = snapshot(model)
    found = measure.effective_sparsity(model, torch.randn(2, 1, 5, 5))
    assert found == pytest.approx(1 - alive_in_residual(model) / total)
    assert same(before, snapshot(model))


def test_effective_sparsity_where_one_pooling_module_is_used_twice():
    """All but one corner of the receptive field cut: only the mean, never the maximum, sees each way in."""
    pool, relu = nn.MaxPool2d(2), nn.ReLU()
    model = nn.Sequential(nn.Conv2d(1, 1, 1), relu, pool, nn.Conv2d(1, 1, 1), relu, pool, nn.Flatten(), nn.Linear(4, 1))
    assert measure.effective_sparsity(model, torch.zeros(1, 1, 8, 8)) == 0
    model = nn.Sequential(nn.Conv2d(1, 1, 2, stride=2), pool, nn.Conv2d(1, 1, 2, padding=1), relu, pool, nn.Flatten())
    assert measure.effective_sparsity(model, torch.zeros(1, 1, 8, 8)) == 0


class Functional(nn.Module):
    """A network and a function of its output."""

    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x):
        return self.function(self.net(x))


ENDS = [
    nn.Softmax(-1), nn.LogSoftmax(-1), nn.Softmin(-1), nn.Sigmoid(), nn.Tanh(), nn.Hardtanh(), nn.ReLU6(),
    nn.ReLU6(inplace=True), nn.Hardsigmoid(), nn.LogSigmoid(),
    lambda x: F.softmax(x, -1), lambda x: F.log_softmax(x, dim=-1), lambda x: x.softmax(-1), torch.sigmoid, torch.tanh,
    lambda x: x.clamp(0, 1),
]  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_effective_sparsity_whatever_the_network_ends_in(end):
    torch.manual_seed(0)
    plain = models.mlp(6, 8, 5, 4)
    prune(plain, sparsity=0.7)
    x = torch.randn(1, 6)
    expected = measure.effective_sparsity(plain, x)
    assert 0.7 < expected < 1
    model = nn.Sequential(plain, end) if isinstance(end, nn.Module) else Functional(plain, end)
    assert measure.effective_sparsity(model, x) == expected


@pytest.mark.parametrize("bounded", [nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Sigmoid])
def test_effective_sparsity_where_many_paths_saturate_a_function(bounded):
    """Fifty signals arrive together, at a sum and then at a bounded function."""
    model = nn.Sequential(nn.Linear(3, 50), Functional(nn.Identity(), lambda x: x.sum(1, keepdim=True)), bounded())
    assert measure.effective_sparsity(model.append(nn.Linear(1, 2)), torch.randn(1, 3)) == 0


def test_effective_sparsity_without_gradients():
    model, x = models.mlp(6, 8, 4), torch.randn(1, 6)
    prune(model, sparsity=0.5)
    with torch.no_grad():
        found = measure.effective_sparsity(model, x)
    assert found == measure.effective_sparsity(model, x)


def test_effective_sparsity_behind_an_embedding_that_is_the_output_layer_too():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 9, bias=False))
    net[3].weight = net[0].weight
    assert measure.effective_sparsity(net, torch.randint(9, (2, 3))) == 0


def test_effective_sparsity_says_where_it_cannot_follow():
    model = Functional(nn.Linear(4, 3), lambda x: (x > 0) + 0 * x)
    with pytest.raises(ValueError, match="cannot follow Functional: it finds no path, pruned or not"):
        measure.effective_sparsity(model, torch.randn(1, 4))


def test_effective_sparsity_of_a_dense_and_of_a_severed_network():
    model = models.ResNet(1, 1, (4, 8))
    x = torch.zeros(1, 1, 8, 8)
    assert measure.effective_sparsity(model, x) == 0
    model.linear.weight.data.zero_()
    assert measure.sparsity(model) < 1
    assert measure.effective_sparsity(model, x) == 1


def test_sparsity_empty_layers_and_parameters():
    model = models.mlp(4, 3, 2)  # 12 + 3 + 6 + 2
    with torch.no_grad():
        model.fc1.weight.fill_(1)
        model.fc1.bias.fill_(1)
        model.fc2.bias.copy_(torch.tensor([0.0, 1.0]))
        model.fc2.weight.zero_()
        model.fc1.weight[0] = -0.0
    assert measure.sparsity(model) == pytest.approx(10 / 18)
    assert measure.sparsity(model, exclude="fc2") == pytest.approx(4 / 12)
    assert measure.empty_layers(model) == ["fc2.weight"]
    assert measure.parameters(model) == (23, 8 + 3 + 1)


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_stored_bytes_are_those_of_a_real_file(tmp_path):
    model = models.mlp(30, 40, 10)
    prune(model, sparsity=0.8)
    save_tensors(tmp_path / "dense", model.state_dict())
    save_sparse(model.state_dict(), tmp_path / "sparse")
    assert measure.stored_bytes(model) == len((tmp_path / "dense").read_bytes())
    assert measure.stored_bytes(model, sparse=True) == len((tmp_path / "sparse").read_bytes())


def test_zeros_cost_bytes_unless_they_are_left_out():
    dense, sparse = [], []
    for sparsity in (0, 0.3, 0.6, 0.9, 0.99):
        model = models.mlp(64, 300, 10)
        prune(model, sparsity=sparsity)
        dense.append(measure.stored_bytes(model))
        sparse.append(measure.stored_bytes(model, sparse=True))
    assert len(set(dense)) == 1
    assert sparse == sorted(sparse, reverse=True)
    assert len(set(sparse)) == len(sparse)
    assert sparse[0] == pytest.approx(dense[0], rel=0.01)
    weights = 64 * 300 + 300 * 10
    assert sparse[3] == pytest.approx(weights / 8 + 4 * weights * 0.1 + 4 * 310, rel=0.05)


def test_stored_bytes_of_tied_weights_and_of_nothing():
    net = nn.ModuleDict({"a": nn.Linear(40, 40, bias=False), "b": nn.Linear(40, 40, bias=False)})
    net["b"].weight = net["a"].weight
    assert 6400 < measure.stored_bytes(net) < 2 * 6400 + 500
    assert measure.stored_bytes(nn.ReLU()) < 100


# ── FLOPs and latency ─────────────────────────────────────────────────────────────────────────────────────────────


def test_flops_are_two_for_each_multiply_add():
    assert measure.flops(nn.Linear(5, 7), torch.randn(3, 5)) == 2 * 3 * 5 * 7
    conv = nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2)
    height, width = (8 + 2 - 3) // 2 + 1, (9 + 2 - 2) // 2 + 1
    assert measure.flops(conv, torch.randn(2, 4, 8, 9)) == 2 * 2 * height * width * 6 * (4 // 2) * 3 * 2
    cnn = models.cnn(8, (2, 3, 5), classes=4)
    by_hand = 64 * 2 * 9 + 16 * 3 * 2 * 9 + 5 * 3 * 4 + 4 * 5
    assert measure.flops(cnn, torch.randn(1, 1, 8, 8)) == 2 * by_hand


def test_zeros_save_no_flops_and_nothing_is_changed():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)).train()
    model[1].eval()
    x = torch.randn(3, 6)
    before, dense = snapshot(model), measure.flops(model, x)
    assert same(before, snapshot(model))
    prune(model, sparsity=0.9)
    assert measure.flops(model, x) == dense


def test_latency_has_a_median_between_quartiles():
    seen = []
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).train()
    model.register_forward_hook(
        lambda *_: seen.append((model.training, torch.is_grad_enabled(), torch.get_num_threads()))
    )
    found = measure.latency(model, torch.randn(2, 4), repeats=5, threads=2)
    assert 0 < found.low <= found.median <= found.high
    assert (found.repeats, found.threads) == (5, 2)
    assert seen == [(False, False, 2)] * (3 + 5)
    assert torch.get_num_threads() == 1
    assert model.training
    assert str(found) == (f"{found.median:.3f} ms ({found.low:.3f} to {found.high:.3f}, 5 calls, 2 threads)")


def test_latency_is_in_milliseconds(monkeypatch):
    """A clock of our own: the calls take 10, 20 and 30 ms; the first three do not count."""
    durations = iter([0.01, 0.02, 0.03])
    now = [0.0]
    calls = []

    def clock():
        return now[0]

    def run():
        calls.append(now[0])
        if len(calls) > 3:
            now[0] += next(durations)

    monkeypatch.setattr("pruninglab.measure.time.perf_counter", clock)
    found = measure.latency(run, repeats=3)
    assert found.median == pytest.approx(20)
    assert len(calls) == 6


def test_latency_mends_what_it_changed_after_an_error():
    model = nn.Linear(4, 4).train()
    with pytest.raises(RuntimeError, match="shapes"):
        measure.latency(model, torch.randn(2, 5), threads=2)
    assert model.training
    assert torch.get_num_threads() == 1
    with pytest.raises(ValueError, match="at least 3"):
        measure.latency(model, torch.randn(2, 4), repeats=2)


# ── accuracy and the report ───────────────────────────────────────────────────────────────────────────────────────


def test_accuracy_and_its_binomial_error(tiny):
    class Always(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return F.one_hot(torch.zeros(len(x), dtype=torch.long), 3) * self.one

    assert measure.accuracy(Always(), tiny) == (pytest.approx(1 / 3), pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 90)))
    assert measure.accuracy(Always(), tiny, "validation")[1] == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 60))


def test_a_report_is_one_row_of_all_of_it_and_changes_nothing():
    task = make_task(norm=True)
    model = task.trained()
    masks = prune(model, sparsity=0.6)
    model.train()
    model[1].eval()  # a frozen norm stays frozen
    before = snapshot(model)
    table = report(model, task)
    assert same(before, snapshot(model))
    assert len(table) == 1
    row, x = table.iloc[0], task.data["test"][0][:1]
    assert list(table) == [
        "accuracy", "accuracy_error", "sparsity", "effective_sparsity", "empty_layers", "parameters", "nonzero",
        "bytes_dense", "bytes_sparse", "flops", "latency_ms", "threads",
    ]  # fmt: skip
    assert row["sparsity"] == pytest.approx(masks.sparsity())
    assert row["effective_sparsity"] >= row["sparsity"]
    assert row["accuracy"] == task.accuracy(model)
    assert row["parameters"] - row["nonzero"] >= masks.total() - masks.kept()
    assert row["flops"] == 2 * (8 * 16 + 16 * 12 + 12 * 3) == measure.flops(model, x)
    assert row["bytes_sparse"] < row["bytes_dense"] == measure.stored_bytes(model)
    assert row["latency_ms"] > 0
    assert Masks.of(model) == masks
