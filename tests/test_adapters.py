"""Adapters: they begin as nothing, compute what their formulas say, merge without a loss, and leave no trace."""

import copy

import pytest
import torch
from helpers import close, normal, same, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import language
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pruninglab import Masks, prune
from pruninglab.adapters import KINDS, Adapted, training_only


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4, bias=False)).to(dtype).eval()


def pruned(sparsity=0.5, dtype=torch.float64, **options):
    model = network(dtype)
    return model, prune(model, sparsity=sparsity, **options)


@torch.no_grad()
def learned(student, seed=1, size=0.5):
    """An adapted model with other matrices than those it began with, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in student.adapters.parameters():
        parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))
    return student


X = normal(5, 6, seed=7)


# ── what they compute ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 3])
def test_they_begin_as_nothing(kind, rank):
    model, masks = pruned()
    assert torch.equal(Adapted(model, kind, masks=masks, rank=rank)(X), model(X))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_an_adapter_by_hand(kind):
    torch.manual_seed(3)
    layer = nn.Linear(4, 3).double()
    masks = prune(layer, sparsity=0.5)
    student = learned(Adapted(layer, kind, masks=masks, rank=2, alpha=5.0))
    (adapter,) = student.adapters
    assert (adapter.up.shape, adapter.down.shape) == ((3, 2), (2, 4))
    x = normal(4, seed=2)
    for o in range(3):
        total = float(layer.bias[o])
        for i in range(4):
            product = sum(float(adapter.up[o, r] * adapter.down[r, i]) for r in range(2))
            weight, keep = float(layer.weight[o, i]), float(masks["weight"][o, i])
            used = {"lora": weight + 2.5 * product, "mask": weight + 2.5 * keep * product, "scale": weight * product}
            total += used[kind] * float(x[i])
        assert float(student(x)[o]) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_against_that_of_the_weight(kind):
    """∇B and ∇A by the chain rule from G, the gradient of the weight that is used."""
    torch.manual_seed(0)
    layer = nn.Linear(5, 4, bias=False).double()
    masks = prune(layer, sparsity=0.4)
    student = learned(Adapted(layer, kind, masks=masks, rank=2, alpha=6.0))
    (adapter,) = student.adapters
    keep = masks["weight"].double()
    used = adapter.weight(layer.weight).detach().requires_grad_()
    x = normal(7, 5)
    (g,) = torch.autograd.grad(torch.sin(x @ used.T).sum(), used)
    torch.sin(student(x)).sum().backward()
    g = {"lora": 3 * g, "mask": 3 * keep * g, "scale": layer.weight.detach() * g}[kind]
    close(adapter.up.grad, g @ adapter.down.detach().T)
    close(adapter.down.grad, adapter.up.detach().T @ g)


class Shapes(TorchDispatchMode):
    """Notes the shapes of all tensors that are computed."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        views = ("aten::t", "aten::detach", "aten::alias", "aten::view", "aten::transpose", "aten::_unsafe_view")
        if not func.name().startswith(views):
            self.seen |= {tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        return result


@pytest.mark.parametrize("kind", KINDS)
def test_only_lora_makes_nothing_of_the_size_of_a_weight(kind):
    layer = nn.Linear(13, 11)
    student = learned(Adapted(layer, kind, masks=Masks({"weight": torch.ones(11, 13, dtype=torch.bool)}), rank=2))
    with training_only(layer), Shapes() as shapes:
        student(torch.randn(3, 13)).sum().backward()
    assert {(11, 2), (2, 13)} <= shapes.seen, "the gradients of B and A"
    assert bool(shapes.seen & {(11, 13), (13, 11)}) == (kind != "lora")
    assert layer.weight.grad is None


def test_the_whole_rank_is_used_by_scale():
    """Had all entries begun at 1 / √rank, as published, BA would keep rank 1 for ever; two checks in one."""
    target, layer = normal(6, 5, seed=4), nn.Linear(5, 6, bias=False).double()
    masks = Masks({"weight": torch.ones(6, 5, dtype=torch.bool)})
    ranks = {}
    for published in (True, False):
        student = Adapted(layer, "scale", masks=masks, rank=3)
        (adapter,) = student.adapters
        if published:
            with torch.no_grad():
                adapter.up.fill_(3**-0.5)
                adapter.down.fill_(3**-0.5)
        optimizer = torch.optim.Adam(student.adapters.parameters(), lr=0.05)
        for _ in range(50):
            optimizer.zero_grad()
            (student(torch.eye(5).double()) - target.T).square().sum().backward()
            optimizer.step()
        values = torch.linalg.svdvals((adapter.up @ adapter.down).detach())
        ranks[published] = int((values > 1e-9 * values[0]).sum())
    assert ranks == {True: 1, False: 3}


# ── merging ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["mask", "scale"])
def test_merging_loses_nothing(kind, dtype):
    model, masks = pruned(dtype=dtype)
    student, before = learned(Adapted(model, kind, masks=masks, rank=2)), model(X.to(dtype))
    told = student(X.to(dtype))
    student.merge()
    assert torch.equal(model(X.to(dtype)), told)
    assert not torch.equal(told, before)
    assert Masks.of(model) == masks
    assert all(parameter.dtype == dtype for parameter in model.parameters())
    assert all(p.dtype in (torch.float32, torch.float64) for p in student.adapters.parameters())
    assert torch.equal(student(X.to(dtype)), told), "the adapters begin anew, so that it counts once"


def test_merging_lora_under_masks_loses_what_it_says():
    model, masks = pruned()
    student = learned(Adapted(model, "lora", masks=masks, rank=2))
    told = student(X)
    wanted = {
        name: (student.layers[name].weight + adapter.scale * adapter.up @ adapter.down).detach() * masks[name]
        for name, adapter in student.by_name().items()
    }
    student.merge()
    assert (model(X) - told).abs().max() > 0.1
    assert Masks.of(model) == masks
    for name, weight in wanted.items():
        close(model.get_parameter(name).detach(), weight)


def test_merging_lora_without_masks_loses_nothing():
    model = network()
    student = learned(Adapted(model, "lora", rank=2))
    told = student(X)
    student.merge()
    close(model(X), told, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 6), st.floats(0, 0.95), st.integers(0, 1000))
def test_zeros_stay_zeros(kind, rank, sparsity, seed):
    model = network(torch.float32)
    masks = prune(model, sparsity=sparsity, criterion="random", seed=seed)
    student = learned(Adapted(model, kind, masks=masks, rank=rank, seed=seed), seed)
    student.merge()
    for name, mask in masks.items():
        assert not model.get_parameter(name)[~mask].view(torch.int32).any(), "+0.0, to the bit"


def test_a_kept_weight_that_is_zero_can_move():
    """Masks say what is pruned, not zeros."""
    model, masks = pruned()
    with torch.no_grad():
        model[0].weight.zero_()
    student = learned(Adapted(model, "mask", masks=masks))
    student.merge()
    assert model[0].weight[masks["0.weight"]].all()


def test_masks_of_whole_rows_and_columns_hold_for_the_matrices():
    model = network()
    keep = torch.ones(9, 6, dtype=torch.bool)
    keep[[1, 4]] = False
    keep[:, 3] = False
    masks = Masks({"0.weight": keep, "2.weight": torch.ones(4, 9, dtype=torch.bool)})
    masks.apply(model)
    student = learned(Adapted(model, "lora", rank=2))
    held = student.factored(masks)
    held.apply(student)
    told = student(X)
    student.merge()
    close(model(X), told, rtol=1e-12)
    assert not model[0].weight[~keep].any()
    assert model[0].weight[keep].all()


def test_other_masks_have_no_matrices():
    model, masks = pruned()
    with pytest.raises(ValueError, match=r"mask of 0\.weight does not empty whole rows and columns"):
        Adapted(model, "lora").factored(masks)


# ── no trace ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_as_it_was_until_merging(kind):
    model, masks = pruned()
    model[0].weight.requires_grad_(False)
    before = snapshot(model)
    student = learned(Adapted(model, kind, masks=masks))
    with torch.no_grad():
        student(X)
    assert same(snapshot(model), before)
    assert all("forward" not in module.__dict__ for module in model.modules())
    student.merge()
    assert snapshot(model)["frozen"] == before["frozen"]
    assert list(model.state_dict()) == list(before["state"])


def test_an_error_in_the_model_leaves_nothing_behind():
    model, masks = pruned()
    student = learned(Adapted(model, masks=masks))
    expected = model(X)
    with pytest.raises(RuntimeError, match="shapes"):
        student(X[:, :3])
    assert torch.equal(model(X), expected)


def test_a_layer_whose_forward_was_replaced_gets_that_back():
    model, masks = pruned()
    layer, calls = model[0], []
    layer.forward = lambda x: calls.append(1) or nn.functional.linear(x, layer.weight, layer.bias)
    mine = layer.forward
    learned(Adapted(model, masks=masks))(X)
    assert layer.forward is mine


def test_hooks_of_layers_go_on_working():
    model, masks = pruned()
    seen = []
    model[0].register_forward_hook(lambda _module, _args, output: seen.append(output))
    student = learned(Adapted(model, masks=masks))
    student(X)
    close(seen[0], X @ student.adapters[0].weight(model[0].weight).T + model[0].bias)


def test_training_only():
    model = network()
    model[2].weight.requires_grad_(False)
    with training_only(model, [model[2].weight]):
        assert [name for name, p in model.named_parameters() if p.requires_grad] == ["2.weight"]
    with pytest.raises(RuntimeError, match="does not require grad"), training_only(model):
        model(X).sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["0.weight", "0.bias"]


@pytest.mark.parametrize("kind", ["mask", "scale"])
def test_layers_that_share_a_weight_share_the_adapter(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    model[2].weight = model[0].weight
    student = learned(Adapted(model, kind, masks=prune(model, sparsity=0.5)))
    told = student(X)
    student.merge()
    assert len(student.layers) == 1
    assert torch.equal(model(X), told)


# ── which layers, and errors ──────────────────────────────────────────────────────────────────────────────────────


def test_the_seed_decides_how_they_begin():
    model, masks = pruned()
    one, two, other = (Adapted(model, masks=masks, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["adapters.0.down"], other["adapters.0.down"])
    assert one["adapters.0.down"].abs().max() <= 6**-0.5


def test_layers_by_name_and_by_masks():
    model, masks = pruned(exclude="0")
    assert list(Adapted(model, masks=masks).layers) == ["2.weight"]
    assert list(Adapted(model, "lora").layers) == ["0.weight", "2.weight"]
    assert list(Adapted(model, "lora", layers=["0.weight"]).layers) == ["0.weight"]


def test_a_language_model_and_a_copy_of_it():
    model, x = language("llama")
    masks = prune(model, sparsity=0.6, exclude="lm_head")
    student = learned(Adapted(model, masks=masks, rank=2), size=0.1)
    assert len(student.layers) == 2 * 7
    twin = copy.deepcopy(student)
    told = student(**x).logits
    student.merge()
    close(model(**x).logits, told)
    close(twin(**x).logits, told)
    assert Masks.of(model, exclude="lm_head") == masks


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "lara"}, r"unknown kind of adapter 'lara'\. Did you mean 'lora'\?"),
        ({"kind": "mask"}, r"need the mask of each layer; there is none for '0\.weight'"),
        ({"kind": "lora", "rank": 0}, "rank of an adapter is at least 1, not 0"),
        ({"kind": "lora", "layers": ["1.weight"]}, r"'1\.weight' is not the weight of a linear layer; those are 0\.w"),
        ({"kind": "lora", "masks": Masks({"0.bias": torch.ones(9) > 0})}, "none among the masks' layers"),
    ],
)
def test_what_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        Adapted(network(), **options)


def test_convolutions_have_no_adapters():
    with pytest.raises(ValueError, match="none among this Sequential"):
        Adapted(nn.Sequential(nn.Conv2d(1, 2, 3)), "lora")
