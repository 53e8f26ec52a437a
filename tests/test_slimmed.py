"""What a smaller model needs around it: an optimizer, statistics, a file."""

import copy
import json

import pytest
import torch
from helpers import same, snapshot
from networks import LANGUAGE, Net, language, randomize, slimmed, vision
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from pruninglab import prune
from pruninglab.graph import call
from pruninglab.slimmed import load_slim, rebind, recalibrate, save_slim
from pruninglab.surgery import slim
from pruninglab.tasks.models import ResNet


def network():
    torch.manual_seed(0)
    return ResNet(1, 2, (8, 16)).eval()


X = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 10


def step(model, optimizer):
    model.train()
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(X), Y)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4),
    "plain SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
}


# ── rebind ────────────────────────────────────────────────────────────────────────────────────────────────────────


def rows_left(mask):
    """Along each dimension, the places where something of a mask is left."""
    dims = range(mask.ndim)
    return [mask.any(tuple(d for d in dims if d != dim)) if mask.ndim > 1 else mask for dim in dims]


def sliced(tensor, mask):
    for dim, rows in enumerate(rows_left(mask)):
        tensor = tensor.index_select(dim, rows.nonzero().reshape(-1))
    return tensor


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_with_the_smaller_model(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(3):
        step(model, optimizer)
    masks = prune(model, unit="channel", sparsity=0.5, example_inputs=X)
    old = {n: {k: v.clone() for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)}
           for n, p in model.named_parameters()}  # fmt: skip
    settings = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    small = slim(model, masks, X)
    rebind(optimizer, model, small, masks)

    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert held == [id(p) for p in small.parameters()], "all that live, in the same order"
    assert {id(p) for p in optimizer.state} <= set(held), "nothing of the large model is left"
    assert {key: value for key, value in optimizer.param_groups[0].items() if key != "params"} == settings
    for n, p in small.named_parameters():
        new = {k: v for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)}
        assert new.keys() == old[n].keys()
        for key, moment in new.items():
            whole = old[n][key]
            assert torch.equal(moment, whole if whole.ndim == 0 else sliced(whole, masks[n]))
    before = snapshot(small)
    losses = [step(small, optimizer) for _ in range(8)]
    assert losses[-1] < losses[0]
    after = snapshot(small)
    assert all(not torch.equal(before["state"][n], after["state"][n]) for n, _ in small.named_parameters())


def test_one_step_of_the_smaller_model_is_the_masked_step_of_the_large_one():
    """With moments sliced rightly, both go on alike; batch norms in evaluation, so that both see one function."""
    model, x = network().double(), X.double()
    randomize(model, x)

    def frozen_step(net, optimizer, masks=None):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net.eval()(x), Y).backward()
        optimizer.step()
        if masks is not None:
            masks.apply(net)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(2):
        frozen_step(model, optimizer)
    masks = prune(model, unit="channel", sparsity=0.5, example_inputs=x)
    small = slim(model, masks, x)
    large, their_optimizer = copy.deepcopy((model, optimizer))
    rebind(optimizer, model, small, masks)
    for _ in range(3):
        frozen_step(small, optimizer)
        frozen_step(large, their_optimizer, masks)
    assert small(x).isfinite().all()
    assert torch.allclose(small(x), large(x), rtol=1e-9)


def test_without_blocks_their_parameters_are_let_go():
    model = network()
    optimizer = OPTIMIZERS["Adam"](model.parameters())
    step(model, optimizer)
    masks = prune(model.eval(), unit="layer", sparsity=0.5, example_inputs=X)
    small = slim(model, masks, X)
    rebind(optimizer, model, small, masks)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert held == [id(p) for p in small.parameters()]
    assert len(optimizer.state) == len(held) < len(list(model.parameters()))
    step(small, optimizer)


def test_groups_of_parameters_stay_apart():
    model = network()
    norms = [p for n, p in model.named_parameters() if "bn" in n]
    others = [p for n, p in model.named_parameters() if "bn" not in n]
    optimizer = torch.optim.SGD([{"params": norms, "lr": 0.5}, {"params": others}], lr=0.1)
    masks = prune(model, unit="channel", sparsity=0.5, example_inputs=X)
    small = slim(model, masks, X)
    rebind(optimizer, model, small, masks)
    names = {id(p): n for n, p in small.named_parameters()}
    assert [all("bn" in names[id(p)] for p in group["params"]) for group in optimizer.param_groups] == [True, False]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]


def test_an_optimizer_of_another_model():
    model = network()
    masks = prune(model, unit="channel", sparsity=0.5, example_inputs=X)
    small = slim(model, masks, X)
    other = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"holds 2 parameters that are not the model's: \[\(2, 3\), \(2,\)\]"):
        rebind(other, model, small, masks)


# ── recalibrate ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_statistics_are_the_mean_and_variance_of_what_arrives():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    model.eval().double()
    model[1].momentum = 0.3
    model[1].weight.data.uniform_(0.5, 2)
    x = X.double()
    model[4].running_mean.fill_(77)
    assert recalibrate(model, (x, Y)) is model

    def by_hand(values):  # (n, channels, h, w) → per channel
        flat = values.transpose(0, 1).flatten(1)
        return flat.mean(1), ((flat - flat.mean(1, keepdim=True)) ** 2).sum(1) / (flat.shape[1] - 1)

    with torch.no_grad():
        first = model[0](x)
        mean, variance = by_hand(first)
        assert torch.allclose(model[1].running_mean, mean)
        assert torch.allclose(model[1].running_var, variance)
        wide = [1, -1, 1, 1]
        normal = (first - mean.view(wide)) / (by_hand(first)[1] * (288 - 1) / 288 + 1e-5).sqrt().view(wide)
        assert first.numel() == 3 * 288
        arriving = model[3](torch.relu(normal * model[1].weight.view(wide) + model[1].bias.view(wide)))
        mean, variance = by_hand(arriving)
    assert torch.allclose(model[4].running_mean, mean)
    assert torch.allclose(model[4].running_var, variance)
    assert model[1].momentum == 0.3
    assert not any(module.training for module in model.modules())


def test_several_batches_are_averaged():
    model = nn.Sequential(nn.BatchNorm2d(1)).train()
    recalibrate(model, [(X[:4], Y[:4]), (X[4:], Y[4:])])
    assert torch.allclose(model[0].running_mean, (X[:4].mean() + X[4:].mean()).view(1) / 2)
    assert torch.allclose(model[0].running_var, (X[:4].var() + X[4:].var()).view(1) / 2)
    assert model.training
    assert model[0].training


def test_samples_count_alike_in_batches_of_any_length():
    model = nn.Sequential(nn.BatchNorm2d(1))
    x = torch.randn(129, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x[128] += 50
    for data in (x, [x[:128], x[128:]]):
        recalibrate(model, data)
        torch.testing.assert_close(model[0].running_mean, x.mean().view(1))
    alone = nn.Sequential(nn.BatchNorm1d(3))
    recalibrate(alone, x.flatten(1)[:, :3])  # a last batch of one has no variance


def test_after_an_error_the_statistics_are_as_before():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    recalibrate(model, torch.randn(20, 3) + 4)
    before = snapshot(model)
    for data in (torch.randn(10, 5), [torch.randn(4, 3), torch.randn(4, 5)], []):
        with pytest.raises((RuntimeError, ValueError)):
            recalibrate(model, data)
        assert same(before, snapshot(model))


def test_slim_can_recalibrate():
    model = network()
    masks = prune(model, unit="channel", sparsity=0.5, example_inputs=X)
    before = snapshot(model)
    plain, measured = slim(model, masks, X), slim(model, masks, X, recalibrate=(X, Y))
    assert same(before, snapshot(model))
    assert not torch.equal(plain.bn1.running_mean, measured.bn1.running_mean)
    assert same(snapshot(recalibrate(plain, (X, Y))), snapshot(measured))


def test_dropout_and_frozen_norms_are_as_in_evaluation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(1), nn.BatchNorm2d(1, track_running_stats=False)).train()
    recalibrate(model, (X, Y))
    assert torch.allclose(model[1].running_mean, X.mean().view(1))
    assert all(module.training for module in model.modules())


def test_no_data():
    with pytest.raises(ValueError, match=r"empty|no data|no batch"):
        recalibrate(network(), [])


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("unit", ["channel", "layer"])
def test_a_file_brings_back_the_same_model(tmp_path, unit):
    model = network()
    randomize(model, X)
    masks = prune(model, unit=unit, sparsity=0.5, example_inputs=X)
    small = slim(model, masks, X)
    save_slim(small, tmp_path / "small.safetensors", model)
    again = load_slim(tmp_path / "small.safetensors", lambda: ResNet(1, 2, (8, 16))).eval()
    assert torch.equal(again(X), small(X))
    assert same({"state": snapshot(again)["state"]}, {"state": snapshot(small)["state"]})
    for name, module in small.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            assert str(again.get_submodule(name)) == str(module)
    again(X).sum().backward()


@pytest.mark.parametrize("name", [*LANGUAGE, "swin", "vision transformer", "maxvit", "shufflenet_v2_x0_5"])
def test_numbers_that_a_forward_reads_are_in_the_file(tmp_path, name):
    model, x = language(name) if name in LANGUAGE else vision(name)
    fresh = copy.deepcopy(model)
    small, *_ = slimmed(model, x)
    save_slim(small, tmp_path / "small", model)
    again = load_slim(tmp_path / "small", lambda: fresh).eval()
    one, other = (getattr(out, "logits", out) for out in (call(again, x), call(small, x)))
    assert torch.equal(one, other)


def test_heads_in_a_file(tmp_path):
    model, x = language("llama")
    fresh = copy.deepcopy(model)
    small, *_ = slimmed(model, x, unit="head")
    save_slim(small, tmp_path / "small", model)
    assert torch.equal(load_slim(tmp_path / "small", lambda: fresh).eval()(**x).logits, small(**x).logits)


def test_the_file_is_a_recipe_and_tensors(tmp_path):
    model = network()
    small, *_ = slimmed(model, X)
    save_slim(small, tmp_path / "small", model)
    with safe_open(tmp_path / "small", "pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
        assert set(file.keys()) == set(model.state_dict())
    assert recipe["numbers"]["layer1.0.conv1/out_channels"] == small.layer1[0].conv1.out_channels


def test_files_that_are_none_of_these(tmp_path):
    model = network()
    small, *_ = slimmed(model, X)
    path = tmp_path / "small"
    with pytest.raises(FileNotFoundError):
        load_slim(path, network)
    save_slim(small, path, model)
    with pytest.raises(ValueError, match=r"not of a Linear.*differ"):
        load_slim(path, lambda: nn.Linear(2, 2))
    with pytest.raises(ValueError, match="differ"):
        load_slim(path, lambda: ResNet(1, 3, (8, 16)))
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"\x00" * 100, whole[:50]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="small"):
            load_slim(path, network)
    save_file(small.state_dict(), path)
    with pytest.raises(ValueError, match="not one that save_slim wrote"):
        load_slim(path, network)


def test_a_model_of_the_same_names_and_other_widths_gets_those_of_the_file(tmp_path):
    """Only names tell the models apart; what the file says of widths must then hold wherever it is loaded."""
    model = network()
    small, *_ = slimmed(model, X)
    save_slim(small, tmp_path / "small", model)
    try:
        other = load_slim(tmp_path / "small", lambda: ResNet(1, 2, (10, 20))).eval()
    except ValueError:
        return
    assert other.layer1[0].conv1.out_channels == len(other.layer1[0].conv1.weight)


def test_tied_weights_are_tied_again(tmp_path):
    model, x = language("gpt2")
    fresh = copy.deepcopy(model)
    small, *_ = slimmed(model, x)
    save_slim(small, tmp_path / "small", model)
    again = load_slim(tmp_path / "small", lambda: fresh)
    assert again.lm_head.weight is again.transformer.wte.weight


def test_shared_modules_go_through_slim_and_a_file(tmp_path):
    def make():
        torch.manual_seed(0)
        return Net(
            lambda s, x: s.out(s.twice(torch.relu(s.twice(s.a(x))))),
            a=nn.Linear(2, 6), twice=nn.Linear(6, 6), out=nn.Linear(6, 2),
        )  # fmt: skip

    model, x = make(), torch.randn(4, 2)
    small, *_ = slimmed(model, x)
    assert small.twice.weight.shape == (3, 3)
    assert torch.allclose(small(x), model(x), atol=1e-6)
    save_slim(small, tmp_path / "small", model)
    assert torch.equal(load_slim(tmp_path / "small", make)(x), small(x))
