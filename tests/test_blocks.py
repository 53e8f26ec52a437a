"""Residual blocks and attention heads as units: which can go, which go first, and a network without them."""

import copy
import warnings

import pytest
import torch
from helpers import same, snapshot
from networks import Attention, Net, language, randomize, relative_error, vision
from torch import nn

from pruninglab import measure, prune
from pruninglab.allocation import BudgetError
from pruninglab.blocks import Bypass, bypass, removable
from pruninglab.graph import GraphError, call
from pruninglab.surgery import slim
from pruninglab.tasks.models import ResNet

EXACT = 1e-9


def network(blocks: int = 3):
    torch.manual_seed(0)
    model, x = ResNet(1, blocks, (8, 16)).double().eval(), torch.randn(6, 1, 8, 8).double()
    randomize(model, x)
    return model, x


BLOCKS = ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2"]  # layer2.0 changes the shape


def gone(masks) -> set[str]:
    """The blocks of which a mask leaves nothing; the others must be whole."""
    found = {}
    for name, mask in masks.items():
        block = ".".join(name.split(".")[:2])
        found.setdefault(block, set()).add((bool(mask.any()), bool(mask.all())))
    assert all(states in ({(True, True)}, {(False, False)}) for states in found.values()), "a block is whole or gone"
    return {block for block, states in found.items() if states == {(False, False)}}


# ── which can go ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_blocks_that_return_their_input():
    model, x = network()
    before = snapshot(model)
    assert removable(model, x) == BLOCKS
    assert same(before, snapshot(model)), "they were emptied to try, and filled again"


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet18", ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        ("gpt2", ["transformer.h.0", "transformer.h.1"]),
        ("llama", ["model.layers.0", "model.layers.1"]),
    ],
)
def test_blocks_of_known_networks(name, blocks):
    """Whole blocks, or the two residual parts of each (attention, then the layers after it), where these return x."""
    model, x = vision(name) if name == "resnet18" else language(name)
    found = removable(model, x)
    assert found
    assert {next((b for b in blocks if f"{f}.".startswith(f"{b}.")), f) for f in found} == set(blocks)


def test_no_block_in_a_network_of_norms_after_the_sum():
    """BERT: a norm follows each sum, so that no part of it returns its input."""
    model, x = language("bert")
    before = snapshot(model)
    with pytest.raises(GraphError, match="BertForSequenceClassification has no block that returns its input"):
        prune(model, unit="layer", sparsity=0.5, example_inputs=x)
    assert same(before, snapshot(model))


def test_no_block_in_a_chain():
    with pytest.raises(GraphError, match="Sequential has no block"):
        prune(
            nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)),
            unit="layer",
            sparsity=0.5,
            example_inputs=torch.randn(1, 3),
        )


def test_a_block_that_is_called_twice_stays():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.inner(x)

    model = Net(lambda s, x: s.out(s.once(s.twice(s.twice(x)))), once=Part(), twice=Part(), out=nn.Linear(4, 2))
    assert removable(model, torch.randn(3, 4)) == ["once"]


# ── which go first ────────────────────────────────────────────────────────────────────────────────────────────────


def influence(before, after):
    """1 − mean cosine between what goes into a block and what comes out, of each token (Men et al. 2024)."""
    dim = 1 if before.ndim == 4 else -1
    a, b = (t.movedim(dim, -1).reshape(-1, t.shape[dim]) for t in (before, after))
    values = [1 - (u @ v) / (u.norm() * v.norm()) for u, v in zip(a, b, strict=True) if u.norm() > 0 and v.norm() > 0]
    return float(sum(values) / len(values))


def test_block_influence_removes_what_changes_its_input_least():
    model, x = network()
    seen = {}
    copied = copy.deepcopy(model)
    for name in BLOCKS:
        copied.get_submodule(name).register_forward_hook(lambda _m, i, o, name=name: seen.update({name: (i[0], o)}))
    with torch.no_grad():
        copied(x)
    order = sorted(BLOCKS, key=lambda name: influence(*seen[name]))
    for n in range(6):
        masks = (
            prune(copy.deepcopy(model), unit="layer", sparsity=n / 5, criterion="block_influence", example_inputs=x)
            if n < 5
            else None
        )
        if masks is not None:
            assert gone(masks) == set(order[:n])


@pytest.mark.parametrize("criterion", ["block_influence", "random"])
def test_blocks_go_in_rounds(criterion):
    """What went stays away, and nothing inside an emptied block passes for a block."""
    model, x = network()
    options = {"unit": "layer", "criterion": criterion, "example_inputs": x}
    first = prune(model, sparsity=0.2, seed=1, **options)
    assert removable(model, x) == BLOCKS
    second = prune(model, sparsity=0.6, within=first, seed=2, **options)
    assert len(gone(first)) == 1
    assert gone(first) < gone(second)
    assert len(gone(second)) == 3
    assert gone(prune(model, sparsity=0.6, within=second, seed=3, **options)) == gone(second)


def test_a_score_of_blocks_is_the_mean_over_the_samples_of_all_batches():
    model, x = network()
    parts, inputs = [x[:4], -3 * x[4:]], {name: [] for name in BLOCKS}
    copied = copy.deepcopy(model)
    for name in BLOCKS:
        copied.get_submodule(name).register_forward_pre_hook(lambda _m, a, name=name: inputs[name].append(a[0]))
    with torch.no_grad():
        for part in parts:
            copied(part)
    expected = {name: float(torch.cat(found).square().mean()) for name, found in inputs.items()}
    data = [(part, torch.zeros(len(part))) for part in parts]
    masks = prune(
        model, unit="layer", sparsity=0.4, criterion=lambda block_input: block_input.square().mean(), data=data
    )
    assert gone(masks) == set(sorted(expected, key=expected.get)[:2])


def test_a_criterion_of_blocks_may_draw_but_gives_a_number():
    model, x = network()

    def drawn(block_input, generator):
        return torch.rand((), generator=generator)

    def of_weights(block_input, weight):
        return weight

    one, other, again = (
        gone(prune(copy.deepcopy(model), unit="layer", sparsity=0.6, criterion=drawn, example_inputs=x, seed=seed))
        for seed in (0, 1, 0)
    )
    assert one == again != other
    with pytest.raises(ValueError, match="criterion 'of_weights' asks for weight, which is of weights"):
        prune(model, unit="layer", sparsity=0.4, criterion=of_weights, example_inputs=x)
    with pytest.raises(ValueError, match="criterion 'nan' gave NaN for block"):
        prune(model, unit="layer", sparsity=0.4, criterion=nan, example_inputs=x)


def nan(block_input):
    return block_input.sum() * torch.nan


def test_another_criterion_speaks_with_the_mean_of_its_weights():
    model, x = network()
    for name, factor in zip(BLOCKS, (3.0, 0.1, 1.0, 0.2, 5.0), strict=True):
        for parameter in model.get_submodule(name).parameters():
            parameter.data.mul_(factor)
    mean = {
        name: float(
            torch.cat([p.detach().abs().flatten() for p in model.get_submodule(name).parameters() if p.ndim > 1]).mean()
        )
        for name in BLOCKS
    }
    masks = prune(model, unit="layer", sparsity=0.4, criterion="magnitude", example_inputs=x)
    assert gone(masks) == set(sorted(BLOCKS, key=mean.__getitem__)[:2])


def test_a_criterion_that_needs_data():
    model, x = network()
    labels = torch.arange(6) % 10
    masks = prune(model.float(), unit="layer", sparsity=0.4, criterion="taylor", data=(x.float(), labels))
    assert len(gone(masks)) == 2


def test_excluded_blocks_stay():
    model, x = network()
    masks = prune(model, unit="layer", sparsity=0.5, exclude="layer1.*", example_inputs=x)
    assert gone(masks) <= {"layer2.1", "layer2.2"}
    assert len(gone(masks)) == 1


# ── without them ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sparsity", [0.2, 0.6, 0.9])
def test_slim_is_the_masked_model(sparsity):
    model, x = network()
    dense = model(x)
    masks = prune(model, unit="layer", sparsity=sparsity, example_inputs=x)
    removed = gone(masks)
    assert len(removed) == 5 - int(5 * (1 - sparsity) + 0.5)
    small = slim(model, masks, x)
    assert relative_error(model(x), small(x)) <= EXACT
    assert relative_error(dense, small(x)) > 1e-6
    ways = {f"{name}." for name, module in small.named_modules() if isinstance(module, Bypass)}
    assert {block for block in BLOCKS if f"{block}.".startswith(tuple(ways))} == removed, "alone, or a stage at once"
    assert not any(name.startswith(tuple(f"{block}." for block in removed)) for name in small.state_dict())
    small.train()(x).sum().backward()
    assert torch.allclose(copy.deepcopy(small)(x), small(x))


@pytest.mark.parametrize("name", ["gpt2", "llama", "vision transformer", "vit", "swin", "resnet18"])
def test_slim_is_the_masked_model_of_known_networks(name):
    language_model = name in ("gpt2", "llama", "vit")
    model, x = language(name) if language_model else vision(name)
    before = sum(p.numel() for p in model.parameters())
    masks = prune(model, unit="layer", sparsity=0.5, example_inputs=x)
    small = slim(model, masks, x)
    assert relative_error(call(model, x), call(small, x)) <= EXACT
    assert sum(p.numel() for p in small.parameters()) == before - int(sum((~m).sum() for m in masks.values()))


def test_blocks_then_channels():
    model, x = network()
    without = slim(model, prune(model, unit="layer", sparsity=0.4, example_inputs=x), x)
    masks = prune(without, unit="channel", sparsity=0.5, example_inputs=x)
    small = slim(without, masks, x)
    assert relative_error(without(x), small(x)) <= EXACT
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in without.parameters())


def test_nothing_removed():
    model, x = network()
    masks = prune(model, unit="layer", sparsity=0, example_inputs=x)
    assert not gone(masks)
    assert torch.equal(slim(model, masks, x)(x), model(x))


# ── budgets ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_budgets_keep_as_many_blocks_as_they_can():
    model, x = network()
    whole = sum(p.numel() for p in model.parameters())
    cost = {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in BLOCKS}
    masks = prune(copy.deepcopy(model), unit="layer", params=whole - 1, example_inputs=x)
    assert len(gone(masks)) == 1
    masks = prune(copy.deepcopy(model), unit="layer", params=whole - sum(cost.values()), example_inputs=x)
    assert gone(masks) == set(BLOCKS)
    masks = prune(copy.deepcopy(model), unit="layer", params=whole, example_inputs=x)
    assert not gone(masks)

    flops = measure.flops(model, x)
    masks = prune(model, unit="layer", flops=0.7 * flops, example_inputs=x)
    small = slim(model, masks, x)
    assert measure.flops(small, x) <= 0.7 * flops
    fewer = bypass(model, sorted(gone(masks))[1:])
    assert measure.flops(fewer, x) > 0.5 * flops


def test_a_budget_below_what_is_left_without_any_block():
    model, x = network()
    before = snapshot(model)
    with pytest.raises(BudgetError, match="params=10 is not possible: without any block it still is"):
        prune(model, unit="layer", params=10, example_inputs=x)
    assert same(before, snapshot(model))


def test_modes_gradients_and_hooks_stay():
    model, x = network()
    model.train().layer1.eval()
    model(x).sum().backward()
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = prune(model, unit="layer", sparsity=0.4, example_inputs=x)
    after = snapshot(model)
    assert same(before | {"state": after["state"]}, after)
    small = slim(model, masks, x)
    assert same(after, snapshot(model))
    assert small.training
    assert not small.layer1.training


# ── heads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def heads(keys):
    torch.manual_seed(0)
    at = Attention(8, 4, keys, 4)
    return Net(lambda s, x: s.out(x + s.at(x)), at=at, out=nn.Linear(8, 2)).double().eval(), torch.randn(
        2, 3, 8
    ).double()


@pytest.mark.parametrize("keys", [4, 2, 1])
def test_whole_heads_go(keys):
    """Those of queries that share keys and values go together; one head always stays."""
    model, x = heads(keys)
    if keys == 1:  # there is but one
        with pytest.raises(GraphError, match="no head of this Net can be removed: they only go all together"):
            prune(model, unit="head", sparsity=0.9, example_inputs=x)
        return
    masks = prune(model, unit="head", sparsity=0.5, example_inputs=x)
    queries = masks["at.q.weight"].view(4, 4, 8).flatten(1)
    assert all(bool(head.all()) or not bool(head.any()) for head in queries)
    alive = queries.any(1)
    assert int(alive.sum()) == 2
    shared = alive.view(keys, -1)
    assert torch.equal(masks["at.v.weight"].view(keys, 4, 8).flatten(1).any(1), shared.any(1))
    assert bool((shared.all(1) | ~shared.any(1)).all())
    assert torch.equal(masks["at.o.weight"].view(8, 4, 4).any(-1).any(0), alive)
    small = slim(model, masks, x)
    assert small.at.q.weight.shape == (8, 8)
    assert small.at.v.weight.shape == (keys * 2, 8)
    assert relative_error(model(x), small(x)) <= 1e-9


def test_the_weakest_head_goes_first():
    model, x = heads(4)
    with torch.no_grad():
        model.at.v.weight[8:12] *= 1e-3
        for part in (model.at.q, model.at.k):
            part.weight[8:12] *= 1e-3
        model.at.o.weight[:, 8:12] *= 1e-3
    masks = prune(model, unit="head", sparsity=0.25, example_inputs=x)
    assert masks["at.q.weight"].view(4, -1).any(1).tolist() == [True, True, False, True]


def test_one_head_of_each_layer_stays():
    model, x = language("vit")
    masks = prune(model, unit="head", sparsity=0.7, allocation="global", example_inputs=x)
    for name, mask in masks.items():
        if name.endswith(("query.weight", "q_proj.weight")):
            assert mask.any()
