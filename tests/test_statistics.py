"""Each statistic against a slow, obvious computation: loops over samples, positions and kernel places."""

import copy
import itertools
from collections import OrderedDict, UserDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import same, snapshot
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pruninglab import collect, prune, statistic
from pruninglab.layers import like_weight
from pruninglab.statistics import STATISTICS

ALL = ("weight", "grad", "grad_norm", "fisher", "input_norm", "input_mean", "input_var", "hessian")
NUMPY_PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}

LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "linear without bias": (lambda: nn.Linear(5, 4, bias=False), (5,)),
    "linear on tokens": (lambda: nn.Linear(5, 4), (3, 5)),
    "linear on a grid": (lambda: nn.Linear(5, 4), (2, 3, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (4, 7)),
    "conv1d stride padding": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 8)),
    "conv1d groups dilation circular": (
        lambda: nn.Conv1d(4, 6, 3, padding=2, dilation=2, groups=2, padding_mode="circular"),
        (4, 8),
    ),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 4)),
    "conv2d 1x1": (lambda: nn.Conv2d(3, 4, 1), (3, 3, 3)),
    "conv2d one position": (lambda: nn.Conv2d(2, 3, 3), (2, 3, 3)),
    "conv2d stride padding": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 5, 5)),
    "conv2d unequal sides": (
        lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2), bias=False),
        (2, 6, 5),
    ),
    "conv2d groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 4, 3)),
    "conv2d depthwise": (lambda: nn.Conv2d(3, 6, 3, groups=3), (3, 4, 4)),
    "conv2d reflect": (lambda: nn.Conv2d(2, 2, 3, padding=(2, 1), padding_mode="reflect"), (2, 4, 4)),
    "conv2d replicate": (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="replicate"), (2, 4, 4)),
    "conv2d same": (lambda: nn.Conv2d(2, 3, (3, 5), padding="same", dilation=(2, 1)), (2, 4, 5)),
    "conv1d valid": (lambda: nn.Conv1d(2, 3, 2, padding="valid"), (2, 4)),
}


def squared_error(outputs, targets):
    return (outputs - targets).square().flatten(1).sum(1).mean()


def slow_rows(layer: nn.Module, x: torch.Tensor) -> np.ndarray:
    """(g, n, t, d): what each weight is multiplied with, by loops."""
    x = x.double().numpy()
    if isinstance(layer, nn.Linear):
        return np.stack([sample.reshape(-1, sample.shape[-1]) for sample in x])[None]
    dims = len(layer.kernel_size)
    spans = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    if layer.padding == "same":
        pads = [(span // 2, span - span // 2) for span in spans]
    elif layer.padding == "valid":
        pads = [(0, 0)] * dims
    else:
        pads = [(p, p) for p in layer.padding]
    x = np.pad(x, [(0, 0), (0, 0), *pads], mode=NUMPY_PAD[layer.padding_mode])
    n, channels = x.shape[:2]
    sizes = [(x.shape[2 + i] - spans[i] - 1) // layer.stride[i] + 1 for i in range(dims)]
    width = channels // layer.groups
    rows = []
    for g, sample in itertools.product(range(layer.groups), range(n)):
        for position in itertools.product(*map(range, sizes)):
            row = []
            for c in range(width):
                for place in itertools.product(*map(range, layer.kernel_size)):
                    at = [
                        p * s + k * d for p, s, k, d in zip(position, layer.stride, place, layer.dilation, strict=True)
                    ]
                    row.append(x[(sample, g * width + c, *at)])
            rows.append(row)
    return np.array(rows).reshape(layer.groups, n, -1, len(rows[0]))


def sample_grads(model: nn.Module, x, y, loss, parameter: nn.Parameter) -> torch.Tensor:
    """(n, *weight): each sample's own gradient, by one backward pass for each."""
    grads = []
    for i in range(len(x)):
        value = loss(model(x[i : i + 1]), y[i : i + 1])
        grads.append(torch.autograd.grad(value, parameter, allow_unused=True)[0])
    return torch.stack([torch.zeros_like(parameter) if g is None else g for g in grads])


def by_weight(layer, values: np.ndarray) -> torch.Tensor:
    """Values of inputs (g, d) at the place of every weight that meets them, by loops."""
    out = torch.empty(layer.weight.shape, dtype=torch.float64)
    per_group = len(out) // len(values)
    for o in range(len(out)):
        out[o] = torch.tensor(values[o // per_group]).view(out.shape[1:])
    return out


def close(found, expected, rtol=2e-5, atol=1e-6):
    torch.testing.assert_close(found.double(), torch.as_tensor(expected).double(), rtol=rtol, atol=atol)


@pytest.fixture(params=LAYERS, ids=lambda name: name.replace(" ", "-"))
def case(request):
    make, shape = LAYERS[request.param]
    torch.manual_seed(3)
    model = nn.Sequential(make())
    x = torch.randn(6, *shape) + 0.5
    y = torch.randn_like(model(x))
    return model, model[0], x, y


def test_the_slow_rows_are_the_layers_inputs(case):
    """The reference itself is tied to what the layer computes."""
    model, layer, x, _ = case
    rows = slow_rows(layer, x)
    weight = layer.weight.detach().double().numpy().reshape(len(rows), -1, rows.shape[-1])
    outputs = np.einsum("gntd,god->ngot", rows, weight).reshape(len(x), len(layer.weight), -1)
    if layer.bias is not None:
        outputs += layer.bias.detach().double().numpy()[None, :, None]
    true = model(x).detach()
    if isinstance(layer, nn.Linear):
        true = true.reshape(len(x), -1, true.shape[-1]).mT
    close(torch.tensor(outputs), true.reshape(outputs.shape), rtol=1e-4, atol=1e-5)


def test_every_statistic_of_every_kind_of_layer(case):
    model, layer, x, y = case
    found = collect(model, ALL, (x, y), loss=squared_error)["0.weight"]
    assert set(found) == set(ALL)
    rows = slow_rows(layer, x)
    grads = sample_grads(model, x, y, squared_error, layer.weight).double()

    close(found["weight"], layer.weight.detach())
    close(found["grad"], grads.mean(0))
    close(found["grad_norm"], grads.square().sum(0).sqrt())
    close(found["fisher"], grads.square().mean(0))

    flat = rows.reshape(len(rows), -1, rows.shape[-1])
    for name, values in (
        ("input_norm", np.sqrt((flat**2).sum(1))),
        ("input_mean", flat.mean(1)),
        ("input_var", flat.var(1)),
    ):
        close(found[name].expand(layer.weight.shape), by_weight(layer, values), atol=1e-5)
    hessian = np.stack([sum(np.outer(row, row) for row in group) for group in flat])
    close(found["hessian"], hessian if len(hessian) > 1 else hessian[0], atol=1e-4)


def test_results_are_at_least_float32_and_detached(case):
    model, _, x, y = case
    for value in collect(model, ALL, (x, y), loss=squared_error)["0.weight"].values():
        assert value.dtype == torch.float32
        assert not value.requires_grad


def test_initial_weight_from_a_model_or_its_state(mlp):
    before = {name: value.clone() for name, value in mlp.state_dict().items()}
    untrained = copy.deepcopy(mlp)
    with torch.no_grad():
        mlp.fc1.weight.add_(1)
    for initial in (before, untrained):
        found = collect(mlp, ["initial_weight", "weight"], initial=initial)["fc1.weight"]
        assert torch.equal(found["initial_weight"], before["fc1.weight"])
        assert torch.equal(found["weight"], mlp.fc1.weight)


def test_initial_weight_errors(mlp):
    with pytest.raises(ValueError, match="pass initial="):
        collect(mlp, ["initial_weight"])
    with pytest.raises(ValueError, match=r"fc1\.weight.*missing there"):
        collect(mlp, ["initial_weight"], initial={})
    with pytest.raises(ValueError, match=r"fc1\.weight is \(7, 6\) here, \(2, 2\) there"):
        collect(mlp, ["initial_weight"], initial={"fc1.weight": torch.zeros(2, 2)})


def test_batches_of_unequal_size_equal_one_batch(mlp, batch):
    x, y = batch
    whole = collect(mlp, ALL, (x, y))
    parts = collect(mlp, ALL, [(x[:1], y[:1]), (x[1:7], y[1:7]), (x[7:7], y[7:7]), (x[7:], y[7:])])
    for layer in whole:
        for name in ALL:
            close(parts[layer][name], whole[layer][name])


def test_more_samples_than_a_batch_holds(mlp):
    x, y = torch.randn(300, 6), torch.randint(3, (300,))
    grads = sample_grads(mlp, x, y, F.cross_entropy, mlp.fc2.weight)
    found = collect(mlp, ["fisher", "grad", "input_norm"], (x, y))
    close(found["fc2.weight"]["fisher"], grads.square().mean(0), rtol=1e-4)
    close(found["fc2.weight"]["grad"], grads.mean(0), rtol=1e-3)
    close(found["fc1.weight"]["input_norm"][0], x.norm(dim=0))


def test_samples_are_cut_into_pieces_where_memory_is_short(monkeypatch):
    import pruninglab.statistics as module

    conv, x, y = nn.Sequential(nn.Conv2d(2, 3, 3)), torch.randn(7, 2, 5, 5), torch.randn(7, 3, 3, 3)
    expected = sample_grads(conv, x, y, squared_error, conv[0].weight).square().mean(0)
    monkeypatch.setattr(module, "PIECE", 2 * conv[0].weight.numel())
    close(collect(conv, ["fisher"], (x, y), loss=squared_error)["0.weight"]["fisher"], expected)


class Twice(nn.Module):
    """One layer, called twice."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x):
        return self.fc(torch.tanh(self.fc(x)))


class Tied(nn.Module):
    """Two layers that share a weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize("kind", [Twice, Tied])
def test_a_shared_weight_gets_its_whole_gradient(kind):
    model, x, y = kind(), torch.randn(6, 5), torch.randn(6, 5)
    found = collect(model, ALL, (x, y), loss=squared_error)
    assert list(found) == ["fc.weight" if kind is Twice else "a.weight"]
    (found,) = found.values()
    first, weight = (model.fc, model.fc.weight) if kind is Twice else (model.a, model.a.weight)
    grads = sample_grads(model, x, y, squared_error, weight)
    close(found["grad"], grads.mean(0))
    close(found["fisher"], grads.square().mean(0))
    both = torch.cat([x, torch.tanh(first(x)).detach()])
    close(found["input_norm"][0], both.norm(dim=0))
    close(found["input_mean"][0], both.mean(0))
    close(found["input_var"][0], both.var(0, unbiased=False))
    close(found["hessian"], both.T @ both)


def test_convolutions_that_share_a_weight_but_not_their_geometry():
    class Trident(nn.Module):
        def __init__(self):
            super().__init__()
            self.near = nn.Conv2d(2, 3, 3, padding=1)
            self.far = nn.Conv2d(2, 3, 3, padding=2, dilation=2)
            self.far.weight = self.near.weight

        def forward(self, x):
            return self.near(x) + self.far(x)

    model, x, y = Trident(), torch.randn(4, 2, 5, 5), torch.randn(4, 3, 5, 5)
    found = collect(model, ["fisher", "input_norm"], (x, y), loss=squared_error)["near.weight"]
    grads = sample_grads(model, x, y, squared_error, model.near.weight)
    close(found["fisher"], grads.square().mean(0))
    squares = sum((slow_rows(layer, x) ** 2).sum((1, 2)) for layer in (model.near, model.far))
    close(found["input_norm"].expand(3, 2, 3, 3), by_weight(model.near, np.sqrt(squares)))


def test_an_embedding_tied_to_the_output_layer_is_left_alone():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix = nn.Embedding(9, 4), nn.Linear(4, 4)
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.mix(self.embed(tokens))).mean(1)

    model, x, y = Language(), torch.randint(9, (6, 3)), torch.randint(9, (6,))
    found = collect(model, ["grad", "input_norm"], (x, y))
    assert list(found) == ["mix.weight"]
    close(found["mix.weight"]["grad"], torch.autograd.grad(F.cross_entropy(model(x), y), model.mix.weight)[0])
    close(found["mix.weight"]["input_norm"][0], model.embed(x).detach().flatten(0, 1).norm(dim=0))


class Named(nn.Module):
    """Takes its input by name, and calls its layer by name too."""

    def __init__(self, fc):
        super().__init__()
        self.fc = fc

    def forward(self, *, x, scale=None):
        return self.fc(input=x if scale is None else x * scale)


@pytest.mark.parametrize("mapping", [dict, OrderedDict, UserDict])
def test_inputs_by_name(mapping):
    """A UserDict is what tokenizers of Hugging Face return."""
    model, x, y = Named(nn.Linear(6, 3)), torch.randn(11, 6), torch.randint(3, (11,))
    expected = collect(model.fc, ALL, (x, y))["weight"]
    ones = torch.ones(11, 1)
    for data in (
        [(mapping(x=x), y)],
        [(mapping(x=x[:4]), y[:4]), (mapping(x=x[4:], scale=ones[4:]), y[4:])],
        DataLoader([({"x": a, "scale": torch.ones(1)}, b) for a, b in zip(x, y, strict=True)], batch_size=3),
    ):
        found = collect(model, ALL, data)["fc.weight"]
        for name in ALL:
            close(found[name], expected[name])
    close(collect(model, "input_norm", [mapping(x=x)])["fc.weight"]["input_norm"], expected["input_norm"])


def test_inputs_and_targets_of_several_tensors():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, pair):
            return self.fc(pair[0] + pair[1])

    model, x, y = Pair(), torch.randn(2, 11, 6), torch.randint(3, (11,))
    found = collect(
        model, ["fisher"], [((x[0], x[1]), {"y": y})], loss=lambda outputs, t: F.cross_entropy(outputs, t["y"])
    )
    close(found["fc.weight"]["fisher"], collect(model.fc, ["fisher"], (x.sum(0), y))["weight"]["fisher"])


def test_everything_of_a_batch_goes_to_the_models_device():
    """The device "meta" computes nothing, but refuses tensors of other devices."""
    model = Named(nn.Linear(6, 3)).to("meta")
    data = [({"x": torch.randn(4, 6), "scale": torch.ones(4, 1)}, {"y": torch.zeros(4, dtype=torch.long)})]
    found = collect(model, ["fisher"], data, loss=lambda outputs, t: F.cross_entropy(outputs, t["y"]))
    assert found["fc.weight"]["fisher"].is_meta


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.token(x.transpose(0, 1))).mean(0))


def test_layers_that_see_the_sequence_first():
    model, x, y = SequenceFirst(), torch.randn(4, 7, 5), torch.randint(3, (4,))
    with pytest.raises(ValueError, match=r"token\.weight saw inputs of shape \(7, 4, 5\) in a batch of 4 samples"):
        collect(model, ["fisher"], (x, y))
    found = collect(model, ["grad", "input_norm", "input_mean"], (x, y))  # these do not mind
    close(found["token.weight"]["grad"], torch.autograd.grad(F.cross_entropy(model(x), y), model.token.weight)[0])
    close(found["token.weight"]["input_norm"][0], x.flatten(0, 1).norm(dim=0))
    close(found["token.weight"]["input_mean"][0], x.mean((0, 1)))


@pytest.mark.parametrize("names", [["input_norm"], ["fisher"]])
def test_an_input_that_is_written_into_after_the_layer(names):
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = self.first(x)
            out = self.second(h)
            h.zero_()
            return out

    error = (
        "into the input of second.weight in place" if names == ["input_norm"] else "inplace operation"
    )  # torch's own
    with pytest.raises(RuntimeError, match=error):
        collect(Careless(), names, (torch.randn(5, 4), torch.randint(3, (5,))))


def test_inputs_of_inference_mode(mlp):
    """Such tensors do not count what is written into them."""
    x = torch.randn(5, 6)
    expected = collect(mlp, ["input_norm"], x)
    with torch.inference_mode():
        found = collect(mlp, ["input_norm"], x.clone())
    assert torch.equal(found["fc2.weight"]["input_norm"], expected["fc2.weight"]["input_norm"])


@pytest.mark.parametrize("how", ["outside", "in place", "a part"])
def test_a_compiled_model(mlp, batch, how):
    """Compiled code passes hooks by, so the pass runs without it; names are those of the caller's model."""
    expected, compiled = collect(mlp, ALL, batch), mlp
    if how == "outside":
        compiled = torch.compile(mlp, backend="eager")
    elif how == "in place":
        mlp.compile(backend="eager")
    else:
        mlp.fc2 = torch.compile(mlp.fc2, backend="eager")
    compiled(batch[0])
    found = collect(compiled, ALL, batch)
    names = [name for name, parameter in compiled.named_parameters() if parameter.ndim == 2]
    assert list(found) == names
    for layer, name in itertools.product(range(3), ALL):
        close(list(found.values())[layer][name], list(expected.values())[layer][name])


def test_rows_merged_into_the_batch_are_positions_of_their_sample():
    class Merging(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            tokens = torch.tanh(self.token(x.flatten(0, 1)))
            return self.head(tokens.unflatten(0, (len(x), -1)).mean(1))

    model, x, y = Merging(), torch.randn(4, 3, 5), torch.randint(3, (4,))
    found = collect(model, ("fisher", "grad_norm", "input_mean"), (x, y))
    for name, weight in (("token.weight", model.token.weight), ("head.weight", model.head.weight)):
        grads = sample_grads(model, x, y, F.cross_entropy, weight)
        close(found[name]["fisher"], grads.square().mean(0))
        close(found[name]["grad_norm"], grads.square().sum(0).sqrt())
    close(found["token.weight"]["input_mean"][0], x.mean((0, 1)))


def test_a_call_that_the_loss_does_not_depend_on():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            self.idle(x)
            return self.used(x)

    model, x, y = Idle(), torch.randn(5, 4), torch.randint(3, (5,))
    found = collect(model, ("grad", "fisher", "input_norm"), (x, y))["idle.weight"]
    assert not found["grad"].any()
    assert not found["fisher"].any()
    close(found["input_norm"][0], x.norm(dim=0))


def awkward() -> nn.Module:
    """A network with everything that a pass could disturb: modes, frozen parameters, gradients, hooks."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 3)
    ).train()
    model[1](torch.randn(20, 8) * 3 + 1)  # running statistics that are not those of the batch
    model[3].eval()
    model[0].weight.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    model[4].weight.grad = torch.full_like(model[4].weight, 7)
    model[0].register_forward_hook(lambda *_: None)
    return model


def test_a_pass_leaves_no_trace(batch):
    model = awkward()
    before, grad = snapshot(model), model[4].weight.grad
    collect(model, ALL, batch)
    assert same(before, snapshot(model))
    assert model[4].weight.grad is grad


def test_a_failing_pass_leaves_no_trace_either(batch):
    model = awkward()
    before = snapshot(model)

    def broken(outputs, targets):
        raise ArithmeticError("on purpose")

    with pytest.raises(ArithmeticError, match="on purpose"):
        collect(model, ALL, batch, loss=broken)
    assert same(before, snapshot(model))


def test_batch_norm_and_dropout_are_in_evaluation_mode(batch):
    model = awkward()
    x, y = batch
    found = collect(model, ["fisher"], (x, y))
    model.eval()
    model[0].weight.requires_grad_(True)
    for name, layer in (("0.weight", model[0]), ("4.weight", model[4])):
        grads = sample_grads(model, x, y, F.cross_entropy, layer.weight)
        close(found[name]["fisher"], grads.square().mean(0))


def test_a_frozen_weight_gets_its_gradient(mlp, batch):
    expected = collect(mlp, ["grad", "fisher"], batch)
    for parameter in mlp.parameters():
        parameter.requires_grad_(False)
    found = collect(mlp, ["grad", "fisher"], batch)
    for layer in expected:
        for name in expected[layer]:
            assert torch.equal(found[layer][name], expected[layer][name])
            assert found[layer][name].any()


def test_works_inside_no_grad(mlp, batch):
    with torch.no_grad():
        found = collect(mlp, ["grad"], batch)
    x, y = batch
    close(found["fc1.weight"]["grad"], torch.autograd.grad(F.cross_entropy(mlp(x), y), mlp.fc1.weight)[0])


@pytest.mark.parametrize(("names", "backward"), [(ALL, 3), (("weight", "input_norm", "hessian"), 0)])
def test_one_forward_and_at_most_one_backward_pass_for_each_batch(mlp, names, backward, monkeypatch):
    x, y = torch.randn(9, 6), torch.randint(3, (9,))
    passes = {"forward": 0, "backward": 0}
    forward, grad = mlp.forward, torch.autograd.grad

    def counted_forward(inputs):
        passes["forward"] += 1
        return forward(inputs)

    def counted_grad(*args, **kwargs):
        passes["backward"] += 1
        return grad(*args, **kwargs)

    def never(*_args, **_kwargs):
        raise AssertionError("a second way to run backwards")

    mlp.forward = counted_forward
    monkeypatch.setattr(torch.autograd, "grad", counted_grad)
    monkeypatch.setattr(torch.Tensor, "backward", never)
    collect(mlp, names, DataLoader(TensorDataset(x, y), batch_size=4))
    assert passes == {"forward": 3, "backward": backward}


def test_weights_alone_need_no_pass(mlp):
    mlp.forward = None  # cannot be called
    assert torch.equal(collect(mlp, ["weight"])["fc1.weight"]["weight"], mlp.fc1.weight)


def test_data_of_every_kind_give_the_same(mlp, batch):
    x, y = batch
    expected = collect(mlp, ["grad", "input_norm"], (x, y))
    kinds = {
        "a loader": DataLoader(TensorDataset(x, y), batch_size=4),
        "a dataset": TensorDataset(x, y),
        "a generator": ((x[i : i + 3], y[i : i + 3]) for i in range(0, 11, 3)),
        "a list of lists": [[x[:5], y[:5]], [x[5:], y[5:]]],
    }
    for data in kinds.values():
        found = collect(mlp, ["grad", "input_norm"], data)
        for layer, statistics in expected.items():
            for name, value in statistics.items():
                close(found[layer][name], value)
    unlabelled = {
        "a tensor": x,
        "batches": [x[:4], x[4:]],
        "a generator": (part for part in x.split(2)),
        "a loader": DataLoader(TensorDataset(x), batch_size=4),  # its batches are lists of one
    }
    for data in unlabelled.values():
        found = collect(mlp, "input_norm", data)
        close(found["fc1.weight"]["input_norm"], expected["fc1.weight"]["input_norm"])


def test_a_bfloat16_model_is_summed_in_more_than_bfloat16():
    """Sums over many batches would stand still in bfloat16: from 256 equal terms on, one more changes nothing."""
    torch.manual_seed(0)
    for make, shape in ((lambda: nn.Linear(4, 3), (4,)), (lambda: nn.Conv1d(2, 3, 2), (2, 5))):
        model = nn.Sequential(make()).bfloat16()
        x = torch.randn(1, *shape).bfloat16()
        y = torch.randn_like(model(x)).detach()
        one = collect(model, ALL, [(x, y)], loss=squared_error)["0.weight"]
        many = collect(model, ALL, [(x, y)] * 600, loss=squared_error)["0.weight"]
        for name in ("grad", "fisher", "input_mean"):
            assert many[name].dtype == torch.float32
            close(many[name], one[name], rtol=1e-2, atol=1e-4)
        close(many["grad_norm"], one["grad_norm"] * 600**0.5, rtol=1e-2, atol=1e-3)
        close(many["hessian"], one["hessian"] * 600, rtol=1e-3, atol=1e-2)


def test_exclude_leaves_layers_out(mlp, batch):
    assert list(collect(mlp, ["grad"], batch, exclude=["fc1", "fc3"])) == ["fc2.weight"]


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_statistic_is_answered_with_the_nearest(mlp, batch):
    with pytest.raises(ValueError, match=r"'input_nrom'.*Did you mean 'input_norm'\?.*Known:.*hessian"):
        collect(mlp, ["input_nrom"], batch)


@pytest.mark.parametrize("data", [[], (torch.zeros(0, 6), torch.zeros(0, dtype=torch.long)), torch.zeros(0, 6)])
def test_empty_data(mlp, data):
    with pytest.raises(ValueError, match="calibration data are empty"):
        collect(mlp, ["input_norm"], data)


def test_missing_data_says_what_needs_them(mlp):
    with pytest.raises(ValueError, match=r"data is needed to collect input_norm, hessian: pass data="):
        collect(mlp, ["weight", "input_norm", "hessian"])


@pytest.mark.parametrize("data", [torch.zeros(4, 6), [torch.zeros(4, 6)]])
def test_missing_labels(mlp, data):
    with pytest.raises(ValueError, match=r"each batch of data must be \(x, y\)"):
        collect(mlp, ["fisher"], data)


def test_batches_of_three(mlp):
    with pytest.raises(ValueError, match=r"\(x, y\) or x alone, not 3 things"):
        collect(mlp, ["input_norm"], [(torch.zeros(4, 6),) * 3])


def test_unequal_numbers_of_inputs_and_labels(mlp):
    x, y = torch.zeros(4, 6), torch.zeros(3, dtype=torch.long)
    for data in ((x, y), [(x, y)], [({"x": x}, y)]):
        with pytest.raises(ValueError, match="4 inputs but 3 labels"):
            collect(mlp, ["grad"], data)


def test_labels_and_inputs_that_cannot_be_counted(mlp):
    x = torch.zeros(4, 6)
    for y in (torch.tensor(3), 3, [1, 2, 0, 1]):
        with pytest.raises(ValueError, match="labels of a batch must be a tensor with the samples first"):
            collect(mlp, ["grad"], [(x, y)])
    with pytest.raises(ValueError, match="inputs of a batch must be a tensor"):
        collect(mlp, ["input_norm"], [x.numpy()])


def test_a_loss_that_is_not_one_number(mlp, batch):
    with pytest.raises(ValueError, match=r"loss must return one number.*it returned shape \(11,\)"):
        collect(mlp, ["grad"], batch, loss=lambda outputs, y: F.cross_entropy(outputs, y, reduction="none"))
    with pytest.raises(ValueError, match=r"loss must return one number.*it returned 0\.5"):
        collect(mlp, ["grad"], batch, loss=lambda outputs, y: 0.5)


def test_outputs_that_need_a_loss_of_their_own(mlp, batch):
    class Answer(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp

        def forward(self, x):
            return {"logits": self.net(x)}

    with pytest.raises(ValueError, match=r"returns a dict, not logits: pass loss="):
        collect(Answer(), ["grad"], batch)
    found = collect(Answer(), ["grad"], batch, loss=lambda outputs, y: F.cross_entropy(outputs["logits"], y))
    close(found["net.fc1.weight"]["grad"], collect(mlp, ["grad"], batch)["fc1.weight"]["grad"])


def test_layers_that_are_never_called():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.spare, self.idle = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(2, 2)

        def forward(self, x):
            return F.linear(self.fc(x), self.spare.weight[:, :3])

    model, data = Unused(), torch.randn(5, 4)
    with pytest.raises(ValueError, match=r"never called.*exclude=\['spare\.weight', 'idle\.weight'\]"):
        collect(model, ["input_norm"], data)
    assert list(collect(model, ["input_norm"], data, exclude=["spare.weight", "idle.weight"])) == ["fc.weight"]


def test_no_input_statistics_for_conv3d():
    with pytest.raises(TypeError, match="Linear, Conv1d and Conv2d, not Conv3d"):
        collect(nn.Conv3d(1, 1, 2), ["input_norm"], torch.randn(2, 1, 3, 3, 3))


# ── one's own statistic ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_statistic_of_ones_own(mlp, batch):
    @statistic(finish=lambda total, positions: total / positions)
    def active_fraction(inputs, layer):
        return like_weight(layer, (inputs > 0).sum((1, 2)))

    x, y = batch
    found = collect(mlp, ["active_fraction"], [(x[:4], y[:4]), (x[4:], y[4:])])
    close(found["fc1.weight"]["active_fraction"][0], (x > 0).float().mean(0))
    hidden = torch.relu(mlp.fc1(x))
    close(found["fc2.weight"]["active_fraction"][0], (hidden > 0).float().mean(0))

    masks = prune(
        mlp, sparsity=0.5, criterion=lambda weight, active_fraction: active_fraction.expand_as(weight), data=x
    )
    assert masks.kept() == round(masks.total() / 2)


def test_finish_may_ask_for_samples_and_layer(mlp, batch):
    @statistic(finish=lambda total, samples, layer: total / samples + layer.weight)
    def shifted(batch_grad, batch_size):
        return batch_grad * batch_size

    found = collect(mlp, ["shifted", "grad"], batch)["fc1.weight"]
    close(found["shifted"], found["grad"] + mlp.fc1.weight.detach())


def test_the_decorator_gives_the_function_back():
    def doubled(weight):
        return 2 * weight

    assert statistic(doubled) is doubled
    assert "doubled" in STATISTICS


def test_a_statistic_that_asks_for_what_is_not_there():
    with pytest.raises(ValueError, match=r"statistic 'wrong'.*'inptus'.*Did you mean 'inputs'"):

        @statistic
        def wrong(inptus):
            return inptus

    with pytest.raises(ValueError, match=r"finish in statistic 'also_wrong'.*'sample'.*Did you mean 'samples'"):

        @statistic(finish=lambda total, sample: total / sample)
        def also_wrong(inputs):
            return inputs

    true = STATISTICS["input_norm"]
    with pytest.raises(ValueError, match="'input_norm' is a built-in statistic: give yours a name of its own"):

        @statistic
        def input_norm(inputs):
            return inputs

    assert STATISTICS["input_norm"] is true, "so that every criterion gets what it was written for"
    assert not {"wrong", "also_wrong"} & set(STATISTICS)
