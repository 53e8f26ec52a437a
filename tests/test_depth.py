"""Whole blocks that go: who turns the stream least, what a removal really does, and a model that is shorter."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import close, same, snapshot
from small_llama import language_task, llama, logits, tokens

from pruninglab import prune, slim
from pruninglab.graph import GraphError
from pruninglab.language.depth import _shortened, distances, drop_blocks, influences, removal_losses, shorten
from pruninglab.language.published import fit_config
from pruninglab.recipes.minitron import minitron
from pruninglab.recipes.shortgpt import shortgpt

NAMES = [f"model.layers.{b}" for b in range(6)]
EXACT = 1e-10


def deep(**sizes):
    return llama(2, **{"num_hidden_layers": 6} | sizes)


def stream(model, x):
    """What enters each block, and what leaves the last: (blocks + 1, sequences, tokens, width)."""
    states, watched = [], copy.deepcopy(model)
    for block in watched.model.layers:
        block.register_forward_pre_hook(lambda _m, a: states.append(a[0]))
    watched.model.norm.register_forward_pre_hook(lambda _m, a: states.append(a[0]))
    logits(watched, x)
    return torch.stack(states)


@torch.no_grad()
def without(model, gone):
    """The model with blocks left out by hand."""
    model = copy.deepcopy(model)
    kept = [block for b, block in enumerate(model.model.layers) if f"model.layers.{b}" not in gone]
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    return model


@torch.no_grad()
def redundant(model, *places, scale=1e-3):
    """Make some blocks add next to nothing."""
    for place in places:
        block = model.model.layers[place]
        block.self_attn.o_proj.weight.mul_(scale)
        block.mlp.down_proj.weight.mul_(scale)
    return model


# ── who turns the stream least ────────────────────────────────────────────────────────────────────────────────────


def test_influence_is_that_of_each_token_on_its_own():
    model, (x, _) = deep(), tokens(20)  # more than go through a block at a time
    states = stream(model, x)
    found = influences(model, x)
    assert list(found) == NAMES
    for b, value in enumerate(found.values()):
        pairs = zip(states[b].reshape(-1, 24), states[b + 1].reshape(-1, 24), strict=True)
        cosines = [float(u @ v / (u.norm() * v.norm())) for u, v in pairs]
        assert value == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-9)


def test_the_least_influence_is_what_prune_removes():
    model, (x, _) = deep(), tokens(20)
    found = influences(model, x)
    masks = prune(copy.deepcopy(model), unit="layer", sparsity=0.5, criterion="block_influence", data=x)
    gone = {name for name in NAMES if not masks[f"{name}.mlp.up_proj.weight"].any()}
    assert gone == set(sorted(found, key=found.get)[:3])


@pytest.mark.parametrize("span", [1, 2, 5])
@pytest.mark.parametrize("last", [True, False])
def test_distances_are_angles(span, last):
    model, (x, _) = deep(), tokens(20)
    states = stream(model, x)
    found = distances(model, x, span, last=last)
    assert list(found) == NAMES[: 7 - span]
    for b, value in enumerate(found.values()):
        one, two = (s[:, -1:] if last else s for s in (states[b], states[b + span]))
        # The angle from the sides of a triangle, which needs no cosine.
        one, two = F.normalize(one, dim=-1), F.normalize(two, dim=-1)
        angle = 2 * torch.atan2((one - two).norm(dim=-1), (one + two).norm(dim=-1))
        assert value == pytest.approx(float(angle.mean()) / math.pi, abs=1e-7)


def test_a_planted_block_that_does_next_to_nothing_is_found():
    task, model = language_task(2, num_hidden_layers=6), redundant(deep(), 4)
    masks = shortgpt(model, task, sparsity=1 / 6, samples=8)
    assert not masks["model.layers.4.mlp.up_proj.weight"].any()
    assert all(bool(mask.all()) for name, mask in masks.items() if not name.startswith("model.layers.4."))


def test_two_blocks_in_a_row_are_found_where_two_apart_turn_less():
    """Blocks 1 and 4 do nothing; 2 and 3 together turn the stream and back, which only the contiguous rule can see."""
    task, model = language_task(2, num_hidden_layers=6), redundant(deep(), 1, 4)
    with torch.no_grad():
        for name in ("o_proj", "down_proj"):
            for b in (2, 3):
                part = model.model.layers[b].self_attn if name == "o_proj" else model.model.layers[b].mlp
                getattr(part, name).weight.zero_()
        for b, sign in ((2, 1.0), (3, -1.0)):  # a constant is added to the stream, and taken away again
            model.model.layers[b].mlp.down_proj.bias = torch.nn.Parameter(torch.full((24,), 2 * sign).double())
    gone = {}
    for contiguous in (False, True):
        masks = shortgpt(copy.deepcopy(model), task, sparsity=2 / 6, samples=8, contiguous=contiguous)
        gone[contiguous] = [b for b, name in enumerate(NAMES) if not masks[f"{name}.mlp.up_proj.weight"].any()]
    assert gone == {False: [1, 4], True: [2, 3]}


# ── what a removal really does ────────────────────────────────────────────────────────────────────────────────────


def test_removal_losses_are_those_of_the_model_without_a_block():
    model, (x, y) = deep(), tokens(20)
    before = snapshot(model)
    loss = language_task().loss
    found = removal_losses(model, (x, y), loss)
    for name, value in found.items():
        expected = F.cross_entropy(logits(without(model, {name}), x).flatten(0, 1), y.flatten())
        assert value == pytest.approx(float(expected), rel=1e-9)
    assert same(before, snapshot(model)), "each block is back in its place"


# ── shorter ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize(("sparsity", "left"), [(0, 6), (1 / 6, 5), (0.5, 3), (5 / 6, 1)])
def test_a_short_model_is_the_model_without_those_blocks(sparsity, left, contiguous, tmp_path):
    task, model = language_task(2, num_hidden_layers=6), deep()
    dense, (x, _) = copy.deepcopy(model), tokens()
    masks = shortgpt(model, task, sparsity=sparsity, samples=8, contiguous=contiguous)
    gone = {name for name in NAMES if not masks[f"{name}.mlp.up_proj.weight"].any()}
    small = shorten(slim(model, masks, x[:1]))
    assert len(small.model.layers) == small.config.num_hidden_layers == left == 6 - len(gone)
    assert [block.self_attn.layer_idx for block in small.model.layers] == list(range(left))
    close(logits(small, x), logits(model, x), rtol=EXACT, atol=EXACT)
    close(logits(small, x), logits(without(dense, gone), x), rtol=EXACT, atol=EXACT)
    small.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(logits(loaded.eval(), x), logits(small, x))


def test_a_short_model_writes_with_a_cache():
    task, model = language_task(2, num_hidden_layers=6), deep()
    x = tokens(1)[0]
    small = shorten(slim(model, shortgpt(model, task, sparsity=0.5, samples=8), x))
    written = [small.generate(x, max_new_tokens=5, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*written)


def test_one_entry_for_each_block_stays_with_its_block():
    kinds = ["sliding_attention", "full_attention"] * 3
    model = llama(2, kind="Qwen2", num_hidden_layers=6, layer_types=kinds, use_sliding_window=True, sliding_window=3)
    x = tokens()[0]
    masks = drop_blocks(model, [NAMES[0], NAMES[3]], x[:1])
    small = shorten(slim(model, masks, x[:1]))
    assert small.config.layer_types == [kinds[b] for b in (1, 2, 4, 5)]
    close(logits(small, x), logits(model, x), rtol=EXACT, atol=EXACT)


def test_bad_input():
    task, model = language_task(2, num_hidden_layers=6), deep()
    x, before = tokens()[0], snapshot(model)
    with pytest.raises(ValueError, match=r"sparsity=0\.95 leaves none of 6 blocks"):
        shortgpt(model, task, sparsity=0.95, samples=4)
    with pytest.raises(ValueError, match="span is a number of blocks from 1 to 5, not 6"):
        distances(model, x, 6)
    with pytest.raises(ValueError, match=r"no blocks of this LlamaForCausalLM: layers\.7"):
        drop_blocks(model, ["layers.7"], x[:1])
    with pytest.raises(ValueError, match="all 6 blocks would go"):
        drop_blocks(model, NAMES, x[:1])
    assert same(before, snapshot(model))


def test_blocks_may_go_one_after_the_other():
    model, x = deep(), tokens(2)
    drop_blocks(model, NAMES[3:4], x[:1])
    masks = drop_blocks(model, NAMES[3:5], x[:1])
    left = shorten(slim(model, masks, x[:1]))
    assert len(left.model.layers) == 4


def test_blocks_that_return_more_than_the_stream():
    """Bloom's return tuples."""
    config = transformers.BloomConfig(vocab_size=32, hidden_size=16, n_layer=4, n_head=2)
    torch.manual_seed(0)
    model, x = transformers.BloomForCausalLM(config).double().eval(), tokens(3)[0] % 32
    states, names = [], [f"transformer.h.{b}" for b in range(4)]

    def note(_block, args, named, out):
        states.append((args[0] if args else next(iter(named.values())), out))

    for block in model.transformer.h:
        block.register_forward_hook(note, with_kwargs=True)
    logits(model, x)
    seen = dict(zip(names, states, strict=True))
    cosine = {n: F.cosine_similarity(one, other[0], dim=-1) for n, (one, other) in seen.items()}
    assert influences(model, x) == pytest.approx({name: 1 - float(value.mean()) for name, value in cosine.items()})
    angles = distances(model, x, span=1, last=False)
    assert angles == pytest.approx(
        {n: float(value.clamp(-1, 1).arccos().mean()) / math.pi for n, value in cosine.items()}
    )
    found = removal_losses(model, (x, x), lambda out, y: F.cross_entropy(out.logits.flatten(0, 1), y.flatten()))
    assert list(found) == names
    assert len(set(found.values())) == 4


def test_a_block_that_does_more_than_add_cannot_go():
    class Doubling(torch.nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, hidden_states, **given):
            return 2 * self.block(hidden_states, **given)

    model, x = deep(), tokens()[0]
    model.model.layers[2] = Doubling(model.model.layers[2])
    with pytest.raises(GraphError, match=r"model\.layers\.2 cannot go"):
        drop_blocks(model, ["model.layers.2"], x[:1])


# ── Minitron ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kv", [4, 2])
def test_minitron_removes_the_least_active(kv):
    """Mean of |x| over tokens, ℓ2 over sequences and over a head's channels: what a reader gets, worked out again."""
    task = language_task(kv)
    model, (x, _) = task.model(0), task.calibration(20, 2)
    seen, watched = {}, copy.deepcopy(model)
    for name, module in watched.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            module.register_forward_pre_hook(lambda _m, a, name=name: seen.update({f"{name}.weight": a[0].numpy()}))
    logits(watched, x)
    masks = minitron(model, task, sparsity=0.5, seed=2, samples=20, steps=0)
    for name, inputs in seen.items():
        structures = kv if "o_proj" in name else 20
        each = (abs(inputs).mean(axis=1) ** 2).sum(axis=0).reshape(structures, -1).sum(axis=1) ** 0.5
        columns = masks[name].any(0).view(structures, -1)
        assert {i for i in range(structures) if not columns[i].any()} == set(each.argsort()[: structures // 2].tolist())


def test_minitron_in_depth_and_width_makes_an_ordinary_model(tmp_path):
    task = language_task(2, num_hidden_layers=6)
    model = redundant(task.model(0), 1, 3)
    x = tokens()[0]
    masks = minitron(model, task, sparsity=0.5, depth=2, steps=0, samples=8)
    small = fit_config(shorten(slim(model, masks, x[:1])))
    close(logits(small, x), logits(model, x), rtol=EXACT, atol=EXACT)
    config = small.config
    sizes = (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads, config.intermediate_size)
    assert sizes == (4, 2, 1, 10)
    assert not masks["model.layers.1.mlp.up_proj.weight"].any()
    assert not masks["model.layers.3.input_layernorm.weight"].any()
    small.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(logits(loaded.eval(), x), logits(small, x))


def test_minitron_learns_from_the_model_before():
    """Its recovery imitates the whole model: afterwards the outputs are nearer to those than without it."""
    task = language_task(2)
    dense, (x, _) = task.model(0), task.data["train"]
    wanted = logits(dense, x).log_softmax(-1)

    def divergence(model):
        return float(F.kl_div(logits(model, x).log_softmax(-1), wanted, log_target=True, reduction="batchmean"))

    left, taught = task.model(0), task.model(0)
    masks = minitron(left, task, sparsity=0.5, samples=8, steps=0)
    assert masks.weights().keys() == masks.keys(), "applied to this model"
    assert minitron(taught, task, sparsity=0.5, samples=8, steps=30, lr=1e-2) == masks
    assert divergence(taught) < 0.8 * divergence(left)
    assert all(bool((taught.get_parameter(name)[~mask] == 0).all()) for name, mask in masks.items())


def test_minitron_takes_another_recovery():
    task, called = language_task(), []
    model = task.model(0)
    masks = minitron(model, task, sparsity=0.5, samples=4, seed=3, recovery=lambda *a, **k: called.append((a, k)) or 0)
    (((given, found, own_task), options),) = called
    assert given is model
    assert found == masks
    assert (own_task, options) == (task, {"seed": 3})
    with pytest.raises(ValueError, match="depth is how many blocks go, from 0 to 2, not 3"):
        minitron(model, task, sparsity=0.5, depth=3)


# ── caches and configs ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sizes", [{"attn_implementation": "eager"}, {"kind": "Mistral", "sliding_window": 4}])
def test_blocks_go_whether_the_model_keeps_a_cache_or_not(sizes):
    (x, _), masks = tokens(1, 12), []
    for use_cache in (True, False):
        model = deep(use_cache=use_cache, **sizes)
        masks.append(drop_blocks(model, NAMES[1:2], x))
        assert model.config.use_cache == use_cache
    assert masks[0] == masks[1]


@pytest.mark.parametrize("gone", [NAMES[:1], NAMES[:2], NAMES[2:3]])
def test_a_slim_model_writes_the_same_with_a_cache(gone):
    model = deep(use_cache=True)
    x = tokens(2, 7)[0]
    small = slim(model, drop_blocks(model, gone, x[:1]), x[:1])
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(x, use_cache=False, **how)
    assert torch.equal(small.generate(x, use_cache=True, **how), expected)
    assert torch.equal(shorten(small).generate(x, use_cache=True, **how), expected)


def test_every_list_of_the_config_is_shortened(tmp_path):
    torch.manual_seed(0)
    model = llama(2, kind="SmolLM3", num_hidden_layers=6, no_rope_layers=[1, 1, 0, 1, 0, 1], pad_token_id=None)
    x = tokens()[0]
    small = shorten(slim(model, drop_blocks(model, NAMES[1:2], x[:1]), x[:1]))
    assert small.config.no_rope_layers == [1, 0, 1, 0, 1]
    small.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    close(logits(again, x), logits(small, x))


def test_lists_of_places_are_shortened_too():
    assert _shortened([2, 4], [0, 2, 3, 4], 5) == [1, 3]
    assert _shortened([0, 1, 2], [0, 2], 3) == [0, 1]
    assert _shortened([1, 0, 1], [0, 2], 3) == [1, 1]
    assert _shortened([], [0, 2], 3) == []
    assert _shortened([-2], [0, 2], 3) == [-2]
