"""One-shot pruning of language models, block by block, against plain loops over blocks, layers and rows."""

import copy
import math
import shutil
from collections import UserDict

import pytest
import torch
import torch.nn.functional as F
from helpers import close, same, snapshot
from torch import nn
from torch.utils.data import DataLoader

from pruninglab import Masks, units
from pruninglab.language import factor, find_blocks, one_shot, repaired, scored, select, sparsegpt, walk
from pruninglab.language.one_shot import siblings

WORDS, WIDTH = 30, 16


class Decoder(nn.Module):
    """A block as decoders have it; queries, keys and values share their inputs, and so do gate and up."""

    def __init__(self, hidden=24):
        super().__init__()
        self.norm, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(WIDTH, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, WIDTH)

    def forward(self, hidden_states, mask=None):
        x = self.norm(hidden_states)
        x = hidden_states + self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), attn_mask=mask))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Router(nn.Module):
    """A block of four experts, of which each word goes to one; words below 15 never go to the last."""

    def __init__(self, hidden=40):
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(WIDTH, hidden, bias=False) for _ in range(4))
        self.down = nn.ModuleList(nn.Linear(hidden, WIDTH, bias=False) for _ in range(4))

    def forward(self, hidden_states):
        rows = hidden_states.flatten(0, 1)
        result = rows.clone()
        where = (rows[:, 0] > 0) + 2 * (rows[:, 1] > 0)
        for e, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            at = (where == e).nonzero().flatten()
            result = result.index_add(0, at, down(torch.relu(up(rows[at]))))
        return result.view_as(hidden_states)


class Language(nn.Module):
    """Words in, the logits of the next words out."""

    def __init__(self, block=Decoder, depth=3):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(block() for _ in range(depth))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def make(block=Decoder, depth=3, seed=0):
    """A model in float64 whose norms have gains of their own, and text for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Language(block, depth).double().eval()
        for module in model.modules():
            if isinstance(module, nn.RMSNorm):
                nn.init.uniform_(module.weight, 0.2, 3.0)
        return model, torch.randint(WORDS, (40, 9))


def plainly(model, x, prune):
    """Block by block with all text at once; `prune(layer, inputs)` changes a layer; inputs: (tokens, width)."""
    masks, hidden = {}, model.embed(x)
    for place, block in enumerate(model.layers):
        inputs = {}

        def hear(layer, args, _output, inputs=inputs):
            inputs[layer] = args[0].flatten(0, -2)

        layers = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
        hooks = [layer.register_forward_hook(hear) for layer in layers.values()]
        block(hidden)
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            full = f"layers.{place}.{name}.weight"
            masks[full] = prune(layer, inputs[layer])
        hidden = block(hidden)
    return Masks(masks)


def identical(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ── what is done ──────────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
@pytest.mark.parametrize("sparsity", [0.5, 0.4, 0.77])
def test_wanda_is_a_loop_over_rows(sparsity):
    model, x = make()
    other = copy.deepcopy(model)
    masks = one_shot(model, x, scored("wanda"), sparsity)

    def prune(layer, inputs):
        keep, done = torch.ones_like(layer.weight, dtype=torch.bool), 0
        for r, row in enumerate(layer.weight):
            end = math.floor((r + 1) * len(row) * sparsity + 0.5)
            order = sorted(range(len(row)), key=lambda j: float(row[j].abs() * inputs[:, j].norm()))
            keep[r, order[: end - done]] = False
            done = end
        layer.weight *= keep
        return keep

    assert masks == plainly(other, x, prune)
    assert identical(model.state_dict(), other.state_dict())
    assert not torch.equal(model(x), make()[0](x))


@torch.no_grad()
@pytest.mark.parametrize(("criterion", "group"), [("wanda", "layer"), ("magnitude", "layer"), ("magnitude", "row")])
def test_other_groups_and_criteria(criterion, group):
    model, x = make()
    other = copy.deepcopy(model)
    masks = one_shot(model, (x, x), scored(criterion, group), 0.5)

    def prune(layer, inputs):
        scores = layer.weight.abs() * (inputs.norm(dim=0) if criterion == "wanda" else 1)
        edge = scores.median(1, keepdim=True).values if group == "row" else scores.median()
        layer.weight *= scores > edge  # widths are even, so the lower median is the last to go
        return scores > edge

    assert masks == plainly(other, x, prune)


@torch.no_grad()
@pytest.mark.parametrize("unit", [None, "2:4"])
@pytest.mark.parametrize("block", [Decoder, Router])
def test_sparsegpt_is_a_loop_over_layers(block, unit):
    """For the router the Hessians together are larger than the block, so they come in several passes."""
    model, x = make(block)
    other = copy.deepcopy(model)
    masks = one_shot(model, x, repaired(0.02, unit), 0.6)

    def prune(layer, inputs):
        m = factor(inputs.T @ inputs, 0.02)
        fresh, keep = sparsegpt(layer.weight, m, 0.6, unit and units.find(unit))
        layer.weight.copy_(fresh)
        return keep

    assert masks == plainly(other, x, prune)
    for name, value in model.state_dict().items():
        close(value, other.state_dict()[name], rtol=1e-7, atol=1e-9)


@torch.no_grad()
def test_the_repair_is_worth_it():
    model, x = make()
    dense, changes = model(x), {}
    for name, step in {"magnitude": scored("magnitude"), "wanda": scored(), "sparsegpt": repaired()}.items():
        pruned = copy.deepcopy(model)
        one_shot(pruned, x, step, 0.5)
        changes[name] = float((pruned(x) - dense).square().mean())
    assert changes["sparsegpt"] < changes["wanda"] < changes["magnitude"]


def test_each_layer_loses_its_share_and_nothing_else_changes():
    model, x = make()
    before = snapshot(model.train())
    names = [
        f"{name}.{own}.weight" for name in find_blocks(model) for own in ("q", "k", "v", "o", "gate", "up", "down")
    ]
    shares = {name: 0.05 * (i % 19) for i, name in enumerate(names)}
    for step in (scored(), scored("magnitude", "layer"), repaired()):
        pruned = copy.deepcopy(model)
        masks = one_shot(pruned, x, step, shares)
        assert list(masks) == names
        for name, mask in masks.items():
            assert int((~mask).sum()) == math.floor(mask.numel() * shares[name] + 0.5)
            assert not bool(pruned.get_parameter(name)[~mask].any())
        after = snapshot(pruned)
        for name in names:
            del after["state"][name]
        assert same({"state": {n: v for n, v in before["state"].items() if n not in names}}, {"state": after["state"]})
        assert same({k: v for k, v in before.items() if k != "state"}, {k: after[k] for k in before if k != "state"})
    assert same(before, snapshot(model))


@torch.no_grad()
@pytest.mark.parametrize(("step", "sparsity"), [(scored(unit="1:4"), 0.75), (repaired(unit="4:8"), 0.5)])
def test_n_of_m_holds_in_every_layer(step, sparsity):
    model, x = make()
    masks = one_shot(model, x, step, 0.1)
    assert masks.sparsity() == sparsity
    m = 4 if sparsity == 0.75 else 8
    assert all(bool((mask.view(-1, m).sum(1) == round(m * (1 - sparsity))).all()) for mask in masks.values())


@torch.no_grad()
def test_wanda_does_not_see_how_inputs_are_scaled():
    """Norms times powers of two, the layers after them divided: the same function, to the bit, and the same choice."""
    model, x = make()
    other = copy.deepcopy(model)
    gains = 2.0 ** torch.randint(-3, 4, (WIDTH,), generator=torch.Generator().manual_seed(0))
    for block in other.layers:
        for norm, layers in ((block.norm, (block.q, block.k, block.v)), (block.norm2, (block.gate, block.up))):
            norm.weight *= gains
            for layer in layers:
                layer.weight /= gains
    assert torch.equal(model(x), other(x))
    for step, invariant in ((scored("wanda"), True), (scored("magnitude"), False)):
        one, two = copy.deepcopy(model), copy.deepcopy(other)
        assert (one_shot(one, x, step, 0.5) == one_shot(two, x, step, 0.5)) is invariant
        assert torch.equal(one(x), two(x)) is invariant


@torch.no_grad()
def test_layers_with_the_same_inputs_share_them():
    model, x = make()
    first = next(walk(model, x))
    assert siblings(first) == [[f"{name}.weight" for name in names] for names in ("qkv", "o", ("gate", "up"), ["down"])]
    model, x = make(Router)
    first = next(walk(model, x))
    assert siblings(first) == [[name] for name in first.layers()]


@torch.no_grad()
def test_experts_without_a_token_are_pruned_all_the_same():
    model, x = make(Router, depth=1)
    model.embed.weight[:, :2] = model.embed.weight[:, :2].abs()  # all go to the last
    old = copy.deepcopy(model)
    masks = one_shot(model, x, repaired(), 0.5)
    for name in ("layers.0.up.0.weight", "layers.0.down.2.weight"):
        weight = old.get_parameter(name)
        assert torch.equal(masks[name], select(weight.abs(), 0.5, "layer"))
        assert torch.equal(model.get_parameter(name), weight * masks[name])
    assert one_shot(old, x, scored(), 0.5).sparsity() == 0.5


@pytest.mark.parametrize("step", [scored(), repaired()])
def test_a_llama_in_half_precision(step):
    transformers = pytest.importorskip("transformers")
    small = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = transformers.LlamaConfig(**small, num_key_value_heads=2, tie_word_embeddings=True)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).bfloat16()
    x = torch.randint(50, (20, 12))
    masks = one_shot(model, x, step, 0.6)
    assert len(masks) == 14
    assert masks.sparsity() == pytest.approx(0.6, abs=1e-3)
    assert Masks.of(model) == masks
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert model.config.use_cache
    assert bool(model.eval()(x).logits.isfinite().all())


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: one_shot(m, x, scored(), 1.0), r"layers\.0\.q\.weight: sparsity is the fraction removed"),
        (lambda m, x: one_shot(m, x, scored(), -0.1), r"in \[0, 1\), not -0\.1"),
        (lambda m, x: one_shot(m, x, scored(), math.nan), r"in \[0, 1\), not nan"),
        (lambda m, x: one_shot(m, x, scored(), {"layers.0.q.weight": 0.5}), "a share is needed for each layer"),
        (lambda m, x: one_shot(m, x, scored(unit="3:5"), 0.5), r"3:5 does not fit layer 'layers\.0\.q\.weight'"),
        (lambda m, x: one_shot(m, x, repaired(unit="3:5"), 0.5), r"the 16 inputs of layers\.0\.q\.weight cannot be"),
        (lambda m, x: one_shot(m, x[:0], scored(), 0.5), "calibration data are empty"),
        (lambda m, x: one_shot(m, x + 25, scored(), 0.5), "29"),
        (lambda m, x: one_shot(m, x, scored(), 0.5, blocks="head"), r"no list of blocks 'head'"),
        (lambda m, x: scored("wandaa"), "unknown criterion 'wandaa'. Did you mean 'wanda'"),
        (lambda m, x: scored("snip"), "criterion 'snip' asks for gradients"),
        (lambda m, x: scored(group="column"), "unknown group 'column'"),
        (lambda m, x: scored(unit="2.4"), "unknown unit '2.4'"),
        (lambda m, x: scored(unit="channel"), r"weight by weight or N:M, not by 'channel'"),
        (lambda m, x: repaired(unit="n:4"), r"weight by weight or N:M, not by 'n:4'"),
        (lambda m, x: repaired(0), "damping must be positive"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_pruned(call, message):
    model, x = make()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        call(model, x)
    assert same(before, snapshot(model))


@pytest.mark.parametrize("step", [scored(), repaired()])
@pytest.mark.parametrize("where", ["embed", "layers.1.k", "layers.1.norm2"])
def test_numbers_that_are_not_finite_are_named_and_leave_their_block_alone(step, where):
    model, x = make()
    with torch.no_grad():
        model.get_submodule(where).weight[2] = math.nan
    model.train()
    before = snapshot(model)
    with pytest.raises(ValueError, match="NaN") as told:
        one_shot(model, x, step, 0.5)
    if where == "embed":
        assert "the hidden states that reach layers.0 are NaN" in str(told.value)
    else:
        assert told.value.__notes__ == ["while layers.1 was pruned, which is again as it was before"]
        assert not same(before, snapshot(model))
        for name in [name for name in before["state"] if name.startswith("layers.0")]:
            del before["state"][name]
    after = snapshot(model)
    after["state"] = {name: after["state"][name] for name in before["state"]}
    assert same(before, after)


# ── interruptions ─────────────────────────────────────────────────────────────────────────────────────────────────────


def interrupted(step, at, after=False):
    """The step, broken off in the middle of block `at`, or when that is done."""

    def broken(block, shares):
        if block.name == f"layers.{at}":
            if after:
                step(block, shares)
            else:
                with torch.no_grad():
                    block.module.q.weight.zero_()
            raise KeyboardInterrupt
        return step(block, shares)

    broken.__name__ = step.__name__
    return broken


@pytest.mark.parametrize("step", [scored(), repaired()])
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path, step, at, fresh, after):
    model, x = make()
    whole = copy.deepcopy(model)
    expected = one_shot(whole, x, step, 0.5)
    started = copy.deepcopy(model)
    with pytest.raises(KeyboardInterrupt):
        one_shot(started, x, interrupted(step, at, after), 0.5, resume=tmp_path)
    assert len(list(tmp_path.iterdir())) == at
    for name, value in started.state_dict().items():
        done = any(name.startswith(f"layers.{i}.") for i in range(at))
        assert torch.equal(value, (whole if done else model).state_dict()[name])
    second, seen = model if fresh else started, []

    def counted(block, shares):
        seen.append(block.name)
        return step(block, shares)

    counted.__name__ = step.__name__
    assert one_shot(second, x, counted, 0.5, resume=tmp_path) == expected
    assert seen == [f"layers.{i}" for i in range(at, 3)]
    assert identical(second.state_dict(), whole.state_dict())
    assert one_shot(second, x, counted, 0.5, resume=tmp_path) == expected  # all is there
    assert len(seen) == 3 - at


def test_a_folder_of_another_run_is_refused(tmp_path):
    model, x = make()
    pruned = copy.deepcopy(model)
    one_shot(pruned, x, scored(), 0.5, resume=tmp_path)
    other = make(seed=1)[0]
    for again, data, step, sparsity in (
        (model, x, scored(), 0.6),
        (pruned, x, scored(), 0.6),
        (pruned, x, scored(group="layer"), 0.5),
        (model, x, scored("magnitude"), 0.5),
        (model, x, repaired(), 0.5),
        (model, x.roll(1, 0), scored(), 0.5),
        (other, x, scored(), 0.5),
    ):
        before = snapshot(again)
        with pytest.raises(ValueError, match="is of another run"):
            one_shot(again, data, step, sparsity, resume=tmp_path)
        assert same(before, snapshot(again))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        one_shot(model, x, scored(), 0.5, resume=tmp_path)
    shutil.rmtree(tmp_path)
    assert one_shot(model, list(x.split(7)), scored(), 0.5, resume=tmp_path).sparsity() == 0.5


FORMS = {
    "mappings": lambda x: [UserDict(input_ids=part) for part in x.split(8)],
    "iterator": lambda x: iter(x.split(8)),
    "loader": lambda x: DataLoader(x, 8),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_knows_data_of_every_form(form, tmp_path):
    model, x = make()
    first = one_shot(copy.deepcopy(model), FORMS[form](x), scored(), 0.5, resume=tmp_path)
    assert first == one_shot(copy.deepcopy(model), x, scored(), 0.5)
    assert one_shot(copy.deepcopy(model), FORMS[form](x), scored(), 0.5, resume=tmp_path) == first
    with pytest.raises(ValueError, match="is of another run"):
        one_shot(model, FORMS[form](x.flip(1)), scored(), 0.5, resume=tmp_path)


def test_modes_and_caches_are_restored_at_once_when_a_run_breaks_off():
    model, x = make()
    model.train()
    with pytest.raises(KeyboardInterrupt) as held:  # the traceback is still there, and with it all frames
        one_shot(model, x, interrupted(scored(), 1), 0.5)
    assert model.training
    assert all(module.training for module in model.modules())
    assert held.value.__notes__
