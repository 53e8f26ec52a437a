"""`slim` gives what the masked model gives, computed without surgery; and leaves everything else as it was."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import same, snapshot
from networks import LANGUAGE, VISION, Net, language, randomize, relative_error, slimmed, slimmed_or_refused, vision
from reference import masked_outputs, zero
from torch import nn
from torch.utils._pytree import tree_leaves

from pruninglab import Masks, prune
from pruninglab.batches import call
from pruninglab.graph import GraphError, trace
from pruninglab.surgery import cut, emptied, slim
from pruninglab.tasks.models import ResNet, cnn

EXACT = 1e-9
STEP = 16  # channels: what `prune` rounds widths to
IN_FLOAT32 = {"llama", "qwen3", "t5"}  # their norms compute in float32 even in a model of float64


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def trains(small, x):
    """A backward pass in training mode, of all outputs."""
    parts = [leaf for leaf in tree_leaves(call(small.train(), x)) if isinstance(leaf, torch.Tensor)]
    sum(part.square().mean() for part in parts).backward()
    return all(p.grad is not None and bool(p.grad.isfinite().all()) for p in small.parameters() if p.requires_grad)


# ── exactness ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", VISION)
def test_slim_is_the_masked_model(name):
    model, x = vision(name)
    before = size(model)
    small, graph, removed, _ = slimmed(model, x)
    assert type(small) is type(model)
    assert not small.training
    assert relative_error(masked_outputs(model, graph, removed, x), call(small, x)) <= EXACT
    channels = sum(family.channels for family in graph.families)
    assert abs(int(removed.sum()) - channels / 2) <= STEP
    for family in graph.families:
        for cell in family.cells if not family.uneven else ():
            assert 0 < int(removed[cell].sum()) < len(cell), "each layer loses channels, and keeps some"
    assert size(small) < 0.5 * before
    assert trains(small, x)


@pytest.mark.parametrize("name", LANGUAGE)
def test_slim_is_the_masked_model_of_transformers(name):
    model, x = language(name)
    small, graph, removed, _ = slimmed(model, x)
    wanted, given = masked_outputs(model, graph, removed, x), call(small, x)
    assert relative_error(wanted, given) <= (1e-6 if name in IN_FLOAT32 else EXACT)
    assert size(small) < 0.7 * size(model)


@pytest.mark.parametrize("name", LANGUAGE)
def test_without_heads_slim_is_the_masked_model_as_it_runs(name):
    model, x = language(name)
    before = size(model)
    masks = prune(model, unit="head", sparsity=0.5, allocation="uniform", example_inputs=x)
    small = slim(model, masks, x)
    assert relative_error(call(model, x), call(small, x)) <= (1e-6 if name in IN_FLOAT32 else EXACT)
    assert size(small) == before - int(sum((~mask).sum() for mask in masks.values())) < before


@pytest.mark.parametrize("sparsity", [0.2, 0.8])
@pytest.mark.parametrize("allocation", ["global", "isomorphic"])
@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "squeezenet1_0", "swin", "gpt2"])
def test_other_shares(name, allocation, sparsity):
    model, x = language(name) if name in LANGUAGE else vision(name)
    small, graph, removed, _ = slimmed(model, x, sparsity=sparsity, allocation=allocation, criterion="random")
    assert relative_error(masked_outputs(model, graph, removed, x), call(small, x)) <= EXACT


@pytest.mark.parametrize("make", [lambda: ResNet(1, 2, (8, 16, 32)), lambda: cnn(16)])
def test_the_networks_of_the_tasks(make):
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(4, 1, 16, 16).double()
    randomize(model, x)
    small, graph, removed, _ = slimmed(model, x[:1], sparsity=0.6, allocation="global")
    assert relative_error(masked_outputs(model, graph, removed, x), small(x)) <= EXACT
    assert relative_error(model(x), small(x)) <= EXACT, "here no norm looks over channels, so it is as it runs"


@pytest.mark.parametrize("name", ["resnet18", "swin", "gpt2", "vit"])
def test_a_wrong_channel_would_be_noticed(name):
    """The control of the tests above: one channel that was removed stays, and one that stayed goes in its place."""
    model, x = language(name) if name in LANGUAGE else vision(name)
    small, graph, removed, _ = slimmed(model, x)
    wanted = masked_outputs(model, graph, removed, x)
    assert relative_error(wanted, call(small, x)) <= EXACT
    cell = max((cell for family in graph.families for cell in family.cells), key=lambda cell: int(removed[cell].sum()))
    wrong = removed.clone()
    wrong[cell[removed[cell]][0]], wrong[cell[~removed[cell]][0]] = False, True
    assert relative_error(wanted, call(cut(model, graph, wrong, x), x)) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_network_of_torchvision(name):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).double().eval()
    pixels = 299 if name == "inception_v3" else 224
    x = torch.randn(2, 3, pixels, pixels).double()
    randomize(model, x)
    small, graph, removed, masks = slimmed(model, x[:1])
    del masks
    assert relative_error(masked_outputs(model, graph, removed, x), call(small, x)) <= EXACT
    assert all(int(removed[cell].sum()) for family in graph.families for cell in family.cells)
    del model
    if size(small) < 120e6:  # for want of memory
        assert trains(small, x)


# ── never wrong without a word ────────────────────────────────────────────────────────────────────────────────────


HARD = {
    "a sum over channels of what is not 0 at 0": lambda s, h: s.c(h) + h.exp().sum(-1, keepdim=True),
    "attention with elu + 1 (linear attention)": lambda s, h: s.c((F.elu(h) + 1) @ (F.elu(s.k(h)) + 1).mT @ h),
    "a factor of the width, beside which it is used again": lambda s, h: s.c(h / h.shape[-1] ** 0.5) + s.d(h),
    "a factor of the width, after what is not linear": lambda s, h: s.c(torch.tanh(h) / h.shape[-1] ** 0.5),
    "the width itself": lambda s, h: s.c(h + h.shape[-1]),
    "a factor of the width": lambda s, h: s.c(h / h.shape[-1] ** 0.5),
    "what is not 0 at 0 before a layer": lambda s, h: s.c(torch.sigmoid(h)),
    "the largest channel": lambda s, h: s.c(h) + h.amax(-1, keepdim=True),
    "the first half": lambda s, h: s.c(torch.cat([h[..., :8], h[..., 8:].tanh()], -1)),
}


@pytest.mark.parametrize("case", HARD)
def test_right_or_refused(case):
    """Either the smaller model gives what the masked one gives, or there is an error, or the channels stay."""
    torch.manual_seed(0)
    a, b, k = nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(16, 16)
    model = Net(lambda s, x: HARD[case](s, s.b(s.a(x))), a=a, b=b, k=k, c=nn.Linear(16, 2), d=nn.Linear(16, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    small = slimmed_or_refused(model, x)
    if small is not None:
        assert relative_error(model(x), small(x)) <= EXACT


# ── what is left as it was ────────────────────────────────────────────────────────────────────────────────────────


def bottleneck():
    torch.manual_seed(0)
    model, x = ResNet(1, 2, (8, 16)), torch.randn(4, 1, 8, 8)
    randomize(model.eval(), x)
    return model, x


@pytest.mark.parametrize("unit", ["channel", "layer"])
def test_prune_and_slim_leave_modes_gradients_and_hooks(unit):
    model, x = bottleneck()
    model.train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    calls = []
    model.layer2.register_forward_hook(lambda *_: calls.append("module"))
    model.linear.weight.register_hook(lambda grad: calls.append("parameter"))
    model(x).sum().backward()
    before = snapshot(model)
    masks = prune(model, unit=unit, sparsity=0.5, example_inputs=x)
    after = snapshot(model)
    assert {kind: after[kind] for kind in after if kind != "state"}.keys() == before.keys() - {"state"}
    changed = {"state": after["state"]}
    assert same(before | changed, after)
    assert not same(before, after), "the weights have zeros now"

    small = slim(model, masks, x)
    assert same(after, snapshot(model)), "slim does not touch the model"
    assert all(p.grad is None for p in small.parameters())
    kept = dict(small.named_modules())
    assert all(kept[name].training == module.training for name, module in model.named_modules() if name in kept)
    assert {n for n, p in small.named_parameters() if not p.requires_grad} == {"conv1.weight"}
    assert not torch.nn.modules.module._global_forward_hooks
    calls.clear()
    small(x)
    assert calls == ["module"], "hooks of modules go along"


def test_no_storage_is_shared():
    model, x = bottleneck()
    small, *_ = slimmed(model, x)
    mine = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    assert not mine & {p.untyped_storage().data_ptr() for p in [*small.parameters(), *small.buffers()]}


def test_nothing_removed_gives_a_copy():
    model, x = bottleneck()
    small = slim(model, prune(model, unit="channel", sparsity=0, example_inputs=x), x)
    assert small is not model
    assert torch.equal(small(x), model(x))
    assert same(snapshot(model), snapshot(small))


def test_twice():
    model, x = bottleneck()
    model.double()
    once, *_ = slimmed(model, x.double(), sparsity=0.3)
    twice, graph, removed, _ = slimmed(once, x.double(), sparsity=0.3)
    assert size(twice) < size(once) < size(model)
    assert relative_error(masked_outputs(once, graph, removed, x.double()), twice(x.double())) <= EXACT


def test_tied_weights_stay_tied():
    model, x = language("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    small, *_ = slimmed(model, x)
    assert small.lm_head.weight is small.transformer.wte.weight
    assert small.lm_head.weight.shape[1] < model.lm_head.weight.shape[1]


def test_a_traced_graph_will_do_for_inputs():
    model, x = bottleneck()
    masks = prune(model, unit="channel", sparsity=0.5, example_inputs=x)
    assert same(snapshot(slim(model, masks, x)), snapshot(slim(model, masks, trace(model, x))))


# ── an ordinary module ────────────────────────────────────────────────────────────────────────────────────────────


def test_copies_and_state_dicts():
    model, x = bottleneck()
    small, *_ = slimmed(model, x)
    assert list(small.state_dict()) == list(model.state_dict())
    again = copy.deepcopy(small)
    for parameter in again.parameters():
        nn.init.normal_(parameter)
    assert not torch.equal(again(x), small(x))
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), small(x))
    for name, module in small.named_modules():  # the numbers of the layers say what they are
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups), name
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features), name
        elif isinstance(module, nn.BatchNorm2d):
            assert len(module.running_mean) == module.num_features == len(module.weight), name


def test_export():
    model, x = vision("resnet18")
    model.float()
    small, *_ = slimmed(model, x.float())
    exported = torch.export.export(small, (x.float(),))
    assert torch.allclose(exported.module()(x.float()), small(x.float()), atol=1e-5)


# ── masks that do not fit ─────────────────────────────────────────────────────────────────────────────────────────


def test_masks_of_another_model():
    model, x = bottleneck()
    other = ResNet(1, 2, (8, 12)).eval()
    masks = prune(other, unit="channel", sparsity=0.5, example_inputs=x)
    with pytest.raises(ValueError, match=r"not of this model: layer2.0.conv1.weight is \(12, 8.*\(16, 8"):
        slim(model, masks, x)
    with pytest.raises(ValueError, match=r"not of this model: conv1.weight.*missing"):
        slim(nn.Linear(2, 2), masks, torch.randn(1, 2))


def test_masks_of_single_weights():
    model, x = bottleneck()
    masks = prune(model, sparsity=0.5)
    with pytest.raises(ValueError, match="empty no whole channel: prune with unit='channel'"):
        slim(model, masks, x)


def by_hand(model, x, removed):
    """Masks that empty some channels of `graph`, whether that fits or not."""
    graph = trace(model, x)
    alive = graph.alive(removed(graph))
    parameters = dict(model.named_parameters())
    masks = {
        n: alive.get(n, torch.tensor(True)).expand(p.shape).contiguous()
        for n, p in parameters.items()
        if n in graph.cuts
    }
    zero(model, graph, removed(graph))
    return Masks(masks)


def test_masks_made_by_hand():
    model, x = bottleneck()
    model, x = model.double(), x.double()

    def removed(graph):
        going = torch.zeros(graph.n, dtype=torch.bool)
        going[graph.outputs("layer1.0.conv1.weight")[[1, 3, 6]]] = True
        return going

    masks = by_hand(model, x, removed)
    small = slim(model, masks, x)
    assert small.layer1[0].conv1.out_channels == small.layer1[0].conv2.in_channels == 5
    assert relative_error(model(x), small(x)) <= EXACT


def test_parts_that_lose_different_numbers():
    """Four channels in two groups of a grouped convolution: one of them cannot lose more than the other."""
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(4, 1, 1)).eval(),
        torch.randn(1, 2, 4, 4),
    )

    def removed(graph):
        going = torch.zeros(graph.n, dtype=torch.bool)
        going[graph.outputs("0.weight")[[0, 1, 5]]] = True
        return going

    masks = by_hand(model, x, removed)
    before = snapshot(model)
    with pytest.raises(GraphError, match=r"in 1, convolution"):
        slim(model, masks, x)
    assert same(before, snapshot(model))


def test_heads_that_lose_different_numbers():
    torch.manual_seed(0)
    model, x = vision("vision transformer")

    def removed(graph):
        going = torch.zeros(graph.n, dtype=torch.bool)
        name = next(n for n, _ in graph.births if n.endswith("in_proj_weight"))
        going[graph.outputs(name)[[0, 1, 2]]] = True
        return going

    masks = by_hand(model, x, removed)
    with pytest.raises(GraphError, match="encoder_layer_0"):
        slim(model, masks, x)


def test_emptied_counts_a_channel_only_if_nothing_is_left():
    model, x = bottleneck()
    masks = prune(model, unit="channel", sparsity=0.5, example_inputs=x)
    graph = trace(model, x)
    removed = emptied(model, masks, graph)
    name = "layer1.0.conv1.weight"
    row = int((~masks[name].flatten(1).any(1)).nonzero()[0])
    revived = {key: mask.clone() for key, mask in masks.items()}
    revived[name][row, 0, 1, 1] = True
    less = emptied(model, Masks(revived), graph)
    assert int(removed.sum()) - int(less.sum()) == 1
    assert not less[graph.outputs(name)[row]]
    assert math.isclose(int(removed.sum()), sum(f.channels for f in graph.families) / 2, abs_tol=8)
