"""SliceGPT: turning changes nothing, slicing is a projection of the stream, principal components are the right ones."""

import copy

import pytest
import torch
from helpers import close
from small_llama import SIZES, WORDS, language_task, llama, logits, tokens
from torch import nn

from pruninglab import slim
from pruninglab.language.slicegpt import Length, arbitrary, principal, slice_stream, turning
from pruninglab.recipes.slicegpt import slicegpt
from pruninglab.slimmed import load_slim, save_slim
from pruninglab.tasks.linears import as_linear

KV = [4, 2]
FULL = SIZES["hidden_size"]
EXACT = 1e-9
ROUNDED = {"rtol": 0, "atol": 5e-6}  # the norms of transformers compute in single precision whatever they get


def count(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ── nothing changes ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("basis", ["pca", "random"])
def test_a_turned_model_computes_the_same(kv, basis):
    model, (x, _) = llama(kv, attention_bias=True, mlp_bias=True), tokens()
    before, weights = logits(model, x), {name: p.clone() for name, p in model.named_parameters()}
    masks = slice_stream(model, x, FULL, basis=basis)
    close(logits(model, x), before, **ROUNDED)
    assert masks.kept() == masks.total()
    changed = [n for n, p in model.named_parameters() if n in weights and not torch.allclose(p, weights[n])]
    assert len(changed) >= 3 * 7, "but its weights are others"


@pytest.mark.parametrize("kind", ["Mistral", "Qwen2", "Qwen3"])
def test_other_families(kind):
    model, (x, _) = llama(2, kind=kind), tokens()
    before = logits(model, x)
    slice_stream(copy_of := copy.deepcopy(model), x, FULL)
    close(logits(copy_of, x), before, **ROUNDED)
    masks = slice_stream(model, x, 16)
    close(logits(slim(model, masks, x[:1]), x), logits(model, x), rtol=EXACT, atol=EXACT)


def test_tied_embeddings_turn_alone():
    model, (x, _) = llama(tie_word_embeddings=True), tokens()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    before, head = logits(model, x), model.lm_head.weight.detach().clone()
    slice_stream(model, x, FULL)
    close(logits(model, x), before, **ROUNDED)
    assert torch.equal(model.lm_head.weight, head)
    assert not torch.allclose(model.model.embed_tokens.weight, head)
    assert not model.config.tie_word_embeddings


def test_length_is_a_norm_that_remembers_its_width():
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)).double()
    norm = nn.RMSNorm(12, eps=1e-3, elementwise_affine=False)
    close(Length(12, 1e-3)(x), norm(x))
    padded = torch.cat([x[:, :7], torch.zeros(5, 5).double()], 1)
    close(Length(12, 1e-3)(x[:, :7]), norm(padded)[:, :7])
    low = Length(12, 1e-6)(x.bfloat16())
    assert low.dtype == torch.bfloat16
    close(low.double(), Length(12, 1e-6)(x.bfloat16().double()), rtol=1e-2)


# ── which directions ──────────────────────────────────────────────────────────────────────────────────────────────


def test_principal_components_lose_least():
    """No projection to k directions leaves more of the sum of squares (Eckart and Young)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator).double() @ torch.randn(6, 6, generator=generator).double()
    q = principal(x.T @ x, generator)
    close(q.T @ q, torch.eye(6).double())
    values = torch.linalg.svdvals(x).square()
    for k in range(1, 7):
        close((x @ q[:, :k]).square().sum(), values[:k].sum())
        other = arbitrary(x.T @ x, generator)
        close(other.T @ other, torch.eye(6).double())
        assert (x @ other[:, :k]).square().sum() <= values[:k].sum() * (1 + 1e-9)


# ── a projection ──────────────────────────────────────────────────────────────────────────────────────────────────


class Projecting(nn.Module):
    """A Llama block, its weights as they were, that projects the stream before attention and before what follows."""

    def __init__(self, block):
        super().__init__()
        self.block, self.before, self.between = block, None, None

    def forward(self, x, **given):
        b = self.block
        x = x @ self.before
        x = x + b.self_attn(hidden_states=b.input_layernorm(x), **given)[0]
        x = x @ self.between
        return x + b.mlp(b.post_attention_layernorm(x))


@torch.no_grad()
def projected(model, x, width):
    """The published procedure without a single rotation: each stretch is projected to its principal components."""
    model = copy.deepcopy(model)
    blocks = model.model.layers
    for i, block in enumerate(blocks):
        blocks[i] = Projecting(block)
        blocks[i].before = blocks[i].between = torch.eye(FULL).double()
    for block in blocks:
        for place in ("before", "between"):
            seen = []
            watched = block if place == "before" else block.block.post_attention_layernorm
            hook = watched.register_forward_pre_hook(lambda _m, a, seen=seen: seen.append(a[0].flatten(0, 1)))
            model(x)
            hook.remove()
            _, _, v = torch.linalg.svd(torch.cat(seen))
            setattr(block, place, v[:width].T @ v[:width])
    return model


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("width", [16, 5])
def test_slicing_is_projecting_each_stretch_of_the_stream(kv, width):
    """Rotations, shortcuts and folded norms, against a model that has none of them."""
    model, (x, _) = llama(kv, attention_bias=True, mlp_bias=True), tokens(12, 11)
    before, expected = logits(model, x), logits(projected(model, x, width), x)
    masks = slice_stream(model, x, width)
    close(logits(model, x), expected, **ROUNDED)
    assert (expected - before).abs().max() > 0.1
    assert all(bool((model.get_parameter(name)[~mask] == 0).all()) for name, mask in masks.items())


@pytest.mark.parametrize("kv", KV)
def test_slim_is_the_masked_model_and_every_matrix_is_narrower(kv):
    model, (x, _) = llama(kv), tokens()
    weights = count(model)
    masks = slice_stream(model, x, 16)
    small = slim(model, masks, x[:1])
    close(logits(small, x), logits(model, x), rtol=EXACT, atol=EXACT)
    d, k, inner, blocks = FULL, 16, SIZES["intermediate_size"], SIZES["num_hidden_layers"]
    heads = 24 + 2 * 6 * kv  # rows of q, k and v
    each = heads * k + k * 24 + 3 * inner * k + 2 * k * k
    last = inner * (d - k) + k * (d - k)  # whose output is whole, for the output layer
    assert count(small) == 2 * WORDS * d - WORDS * (d - k) + blocks * each + last + d
    without_shortcuts = weights - WORDS * (d - k) - blocks * (heads + 24 + 3 * inner) * (d - k)
    assert count(small) > without_shortcuts - 2 * blocks * d, "the shortcuts cost something"


@pytest.mark.parametrize("rank", [6])
def test_a_stream_of_low_rank_is_sliced_to_it_without_loss_and_not_by_chance(rank):
    model, (x, _) = llama(2), tokens(12, 11)
    basis = torch.linalg.qr(torch.randn(FULL, rank, generator=torch.Generator().manual_seed(5)).double()).Q
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ basis @ basis.T)
        for block in model.model.layers:
            for writer in (block.self_attn.o_proj, block.mlp.down_proj):
                writer.weight.copy_(basis @ basis.T @ writer.weight)
    before = logits(model, x)
    found = {}
    for name in ("pca", "random"):
        sliced = copy.deepcopy(model)
        slice_stream(sliced, x, rank, basis=name)
        found[name] = float((logits(sliced, x) - before).abs().max())
    assert found["pca"] < 2e-5 < 0.1 < found["random"]


# ── the recipe ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("sparsity", "multiple", "width"), [(0, 8, 24), (0.1, 8, 16), (0.1, 1, 21), (0.5, 4, 12), (0.34, 5, 15)]
)
def test_widths(sparsity, multiple, width):
    task = language_task()
    model = task.model(0)
    masks = slicegpt(model, task, sparsity=sparsity, samples=8, multiple_of=multiple)
    assert int(masks["model.embed_tokens.weight"][0].sum()) == width
    assert int(masks["model.layers.1.mlp.down_proj.weight"][:, 0].sum()) == width
    assert bool(masks["model.layers.2.mlp_shortcut.weight"][:, 0].all()), "the last stretch stays whole"


def test_training_goes_on_under_the_masks():
    task = language_task()
    model, (x, _) = task.model(0).float(), tokens()
    masks = slicegpt(model, task, sparsity=0.3, samples=8)
    task.train(model, masks=masks, steps=3)
    close(logits(slim(model, masks, x[:1]), x), logits(model, x), rtol=1e-4, atol=1e-4)


def test_saved_and_loaded(tmp_path):
    task = language_task()
    model, (x, _) = task.model(0), tokens()
    small = slim(model, slicegpt(model, task, sparsity=0.3, samples=8), x[:1])
    save_slim(small, tmp_path / "small.safetensors", turning(task.model(0)))
    loaded = load_slim(tmp_path / "small.safetensors", lambda: turning(task.model(1)))
    assert torch.equal(logits(loaded.eval(), x), logits(small, x))


def test_bad_input():
    task = language_task()
    model, (x, _) = task.model(0), tokens()
    before = logits(model, x)
    with pytest.raises(ValueError, match="width is how many of the stream's 24 directions stay, from 1, not 25"):
        slice_stream(model, x, 25)
    with pytest.raises(ValueError, match="unknown basis 'pce'"):
        slice_stream(model, x, 8, basis="pce")
    with pytest.raises(ValueError, match=r"sparsity=0.9 leaves less than 8 of the stream's 24 directions"):
        slicegpt(model, task, sparsity=0.9, samples=8)
    assert torch.equal(logits(model, x), before)
    with torch.no_grad():
        model.model.embed_tokens.weight[int(x[0, 0])] = torch.nan
    with pytest.raises(ValueError, match="the stream is NaN or infinite"):
        slice_stream(model, x, 8)
    assert isinstance(model.model.layers[0].input_layernorm, type(llama().model.norm)), "nothing was turned"


def test_blocks_of_another_kind():
    import transformers

    small = {"vocab_size": WORDS, "n_embd": 24, "n_layer": 1, "n_head": 4, "n_positions": 32}
    config = transformers.GPT2Config(**small, bos_token_id=None, eos_token_id=None)
    gpt2 = as_linear(transformers.GPT2LMHeadModel(config))
    with pytest.raises(ValueError, match=r"transformer\.h\.0 cannot be turned: it needs self_attn"):
        turning(gpt2)
    model = llama()
    model.model.layers[1].post_attention_layernorm = nn.LayerNorm(24).double()
    with pytest.raises(ValueError, match=r"layers\.1 cannot be turned: post_attention_layernorm must be an RMS norm"):
        turning(model)
    model.model.layers[1].post_attention_layernorm = nn.LayerNorm(24, bias=False).double()
    with pytest.raises(ValueError, match="a LayerNorm, is no RMS norm"):
        turning(model)
    gemma = llama(2, kind="Gemma2", query_pre_attn_scalar=6)
    with pytest.raises(ValueError, match="cannot be turned"):
        turning(gemma)


def test_blocks_that_scale_what_they_add_are_refused():
    model = llama(kind="Granite", residual_multiplier=0.22)
    before, (x, _) = {name: p.clone() for name, p in model.named_parameters()}, tokens()
    with pytest.raises(ValueError, match="more than add"):
        slice_stream(model, x, FULL // 2)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
