"""Heads and neurons of language models: which there are, what they score, which go, and the model without them."""

import copy
import itertools

import pytest
import torch
from helpers import close
from hypothesis import given, settings
from hypothesis import strategies as st
from small_llama import language_task, llama, logits, tokens
from torch import nn

from pruninglab import slim
from pruninglab.allocation import BudgetError
from pruninglab.graph import GraphError
from pruninglab.language.published import fit_config
from pruninglab.language.structures import (
    RIVALS,
    Part,
    choose,
    coupled_scores,
    cut_parts,
    find_parts,
    reader_scores,
    standardized,
)
from pruninglab.recipes.llm_pruner import llm_pruner, taylor_mixed
from pruninglab.tasks.linears import as_linear

EXACT = 1e-10
KV = [4, 2]


def gpt2():
    import transformers

    small = {"vocab_size": 40, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False}
    torch.manual_seed(0)
    config = transformers.GPT2Config(**small, bos_token_id=None, eos_token_id=None)
    return as_linear(transformers.GPT2LMHeadModel(config)).double().eval()


def weights_of(model, part: Part, i: int):
    """Structure i of a part of a Llama, spelled out: weight → its rows or columns."""
    block = model.get_submodule(part.block)
    if part.kind == "neurons":
        layers = [(block.mlp.gate_proj, 0), (block.mlp.up_proj, 0), (block.mlp.down_proj, 1)]
        return [(layer.weight, dim, torch.tensor([i])) for layer, dim in layers]
    size, queries = 6, 4 // model.config.num_key_value_heads
    few, many = torch.arange(i * size, (i + 1) * size), torch.arange(i * queries * size, (i + 1) * queries * size)
    layers = [("q_proj", 0, many), ("k_proj", 0, few), ("v_proj", 0, few), ("o_proj", 1, many)]
    return [(getattr(block.self_attn, name).weight, dim, index) for name, dim, index in layers]


# ── which there are ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kv", KV)
def test_parts_of_a_llama(kv):
    model = llama(kv)
    _, parts = find_parts(model, tokens()[0][:1])
    assert [(part.block, part.kind) for part in parts] == [
        (f"model.layers.{b}", kind) for b in range(3) for kind in ("heads", "neurons")
    ]
    for part in parts:
        heads = part.kind == "heads"
        assert part.reader == f"{part.block}.{'self_attn.o_proj' if heads else 'mlp.down_proj'}.weight"
        assert torch.equal(part.columns, torch.arange(24 if heads else 20).view(kv if heads else 20, -1))
        own = sum(weight.select(dim, 0).numel() * len(index) for weight, dim, index in weights_of(model, part, 0))
        assert part.cost == own


def test_parts_of_a_gpt2():
    _, parts = find_parts(gpt2(), tokens()[0][:1])
    assert [(part.kind, len(part.cells), tuple(part.columns.shape)) for part in parts] == 2 * [
        ("heads", 4, (4, 6)),
        ("neurons", 96, (96, 1)),
    ]
    assert parts[0].cost == 6 * (3 * 25 + 24), "six rows of q, k and v with their biases, six columns of what reads"
    assert parts[1].cost == 25 + 24


def test_spared_blocks():
    x = tokens()[0][:1]
    _, parts = find_parts(llama(), x, spare=(1, 1))
    assert {part.block for part in parts} == {"model.layers.1"}
    with pytest.raises(ValueError, match=r"spare=\(2, 1\) leaves none of 3 blocks"):
        find_parts(llama(), x, spare=(2, 1))


def test_a_model_without_heads_or_neurons():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.inner(x)

    model = nn.ModuleDict({"blocks": nn.ModuleList([Block(), Block()])})
    model.forward = lambda x: model["blocks"][1](model["blocks"][0](x))
    with pytest.raises(GraphError, match="no head or neuron of this ModuleDict can be removed"):
        find_parts(model, torch.randn(1, 4))


def test_what_cannot_be_followed_is_said():
    """Experts choose their tokens as they run, which no graph can follow; their neurons it can."""
    model = as_linear(llama(2, kind="Mixtral", num_local_experts=2, num_hidden_layers=1))
    with pytest.warns(UserWarning, match="the heads of this MixtralForCausalLM stay: index_add cannot be followed"):
        _, parts = find_parts(model, tokens()[0][:1])
    assert [(part.kind, part.reader.split(".")[-3:]) for part in parts] == [
        ("neurons", ["down_proj", str(e), "weight"]) for e in range(2)
    ]


# ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────────


def by_hand(model, parts, score):
    """Sums of a weight's scores over all that goes with each structure."""
    table = {id(weight): score(weight) for weight in model.parameters()}
    return [
        torch.stack(
            [
                sum(table[id(w)].index_select(dim, index).sum() for w, dim, index in weights_of(model, part, i))
                for i in range(len(part.cells))
            ]
        )
        for part in parts
    ]


def gradients(model, x, y, loss):
    found = torch.autograd.grad(loss(model(x), y), list(model.parameters()))
    return {id(weight): grad for weight, grad in zip(model.parameters(), found, strict=True)}


@pytest.mark.parametrize("kv", KV)
def test_coupled_scores_are_sums_over_all_that_goes_together(kv):
    """LLM-Pruner's importance, with gradients from autograd and each row and column named."""
    model, (x, y), loss = llama(kv), tokens(), language_task().loss
    graph, parts = find_parts(model, x[:1])
    grads = gradients(model, x, y, loss)
    expected = by_hand(model, parts, lambda w: (w * grads[id(w)]).abs().detach())
    for found, wanted in zip(coupled_scores(model, graph, parts, "taylor", (x, y), loss=loss), expected, strict=True):
        close(found, wanted, rtol=1e-4)


def test_the_second_order_has_half_the_mean_square_of_each_samples_gradient():
    model, (x, y), task = llama(2), tokens(), language_task()

    def loss(outputs, targets):
        return 1e4 * task.loss(outputs, targets)  # so that the second order is not far below the first

    graph, parts = find_parts(model, x[:1])
    grads = gradients(model, x, y, loss)
    each = [gradients(model, x[n : n + 1], y[n : n + 1], loss) for n in range(len(x))]
    expected = by_hand(
        model,
        parts,
        lambda w: (w * grads[id(w)] - w**2 * sum(g[id(w)] ** 2 for g in each) / len(each) / 2).abs().detach(),
    )
    found = coupled_scores(model, graph, parts, taylor_mixed, (x, y), loss=loss)
    first = coupled_scores(model, graph, parts, "taylor", (x, y), loss=loss)
    assert all(bool(((a - b).abs() > 0.2 * b).any()) for a, b in zip(found, first, strict=True))
    for own, wanted in zip(found, expected, strict=True):
        close(own, wanted, rtol=1e-4)


def test_reader_scores_come_from_what_each_reader_gets():
    model, (x, _) = llama(2), tokens(20)
    _, parts = find_parts(model, x[:1])
    seen, watched = {}, copy.deepcopy(model)
    for part in parts:
        layer = watched.get_submodule(part.reader.removesuffix(".weight"))
        layer.register_forward_pre_hook(lambda _m, a, name=part.reader: seen.update({name: a[0].flatten(0, 1)}))
    logits(watched, x)

    def wanda(weight, input_norm):
        return weight.abs() * input_norm

    scores, found = reader_scores(model, parts, wanda, x, also=["input_mean"])
    for part, own in zip(parts, scores, strict=True):
        inputs, weight = seen[part.reader], model.get_parameter(part.reader).detach()
        close(own, (weight.abs() * inputs.norm(dim=0)).sum(0)[part.columns], rtol=1e-5)
        close(found[part.reader]["input_mean"].reshape(-1).double(), inputs.mean(0), rtol=1e-4, atol=1e-7)


def test_standardized():
    own = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    found = standardized(own)
    assert float(found.mean()) == pytest.approx(0, abs=1e-12)
    assert float(found.square().mean()) == pytest.approx(1)
    assert float((found[1, 1] - found[0, 0]) / (found[1, 0] - found[0, 0])) == pytest.approx(2.5)
    assert not standardized(torch.full((3, 2), 7.0)).any()


# ── which go ──────────────────────────────────────────────────────────────────────────────────────────────────────


def made_up(sizes, costs, blocks=2):
    """Parts of nothing, to choose among."""
    return [
        Part(f"block.{b}", kind, tuple(torch.arange(1) for _ in range(n)), f"block.{b}.{kind}", torch.zeros(n, 1), cost)
        for b in range(blocks)
        for kind, n, cost in zip(("heads", "neurons"), sizes, costs, strict=True)
    ]


@given(
    st.integers(0, 10_000),
    st.floats(0, 0.8),
    st.sampled_from(list(RIVALS)),
    st.tuples(st.integers(2, 5), st.integers(2, 12)),
    st.tuples(st.integers(1, 40), st.integers(1, 5)),
)
@settings(max_examples=60, deadline=None)
def test_the_lowest_go_and_the_cost_is_as_near_as_their_order_allows(seed, sparsity, allocation, sizes, costs):
    parts = made_up(sizes, costs)
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(len(part.cells), generator=generator) for part in parts]
    try:
        gone = choose(parts, scores, sparsity, allocation)
    except BudgetError:
        return
    rivals = {
        "uniform": [[0], [1], [2], [3]],
        "block": [[0, 1], [2, 3]],
        "isomorphic": [[0, 2], [1, 3]],
        "global": [[0, 1, 2, 3]],
    }[allocation]
    for group in rivals:
        free = [
            (float(scores[p][i]), parts[p].cost, bool(gone[p][i]))
            for p in group
            for i in range(len(scores[p]))
            if i != int(scores[p].argmax())
        ]
        free.sort()
        n = sum(out for *_, out in free)
        assert all(out for *_, out in free[:n]), "the lowest"
        goal = sparsity * sum(parts[p].cost * len(scores[p]) for p in group)
        reached = [0, *itertools.accumulate(cost for _, cost, _ in free)]
        assert abs(reached[n] - goal) == pytest.approx(min(abs(r - goal) for r in reached))
    assert all(not bool(own[int(score.argmax())]) for own, score in zip(gone, scores, strict=True)), "one always stays"


def test_a_share_for_each_reader_or_block():
    parts = made_up((4, 8), (10, 1))
    scores = [torch.arange(len(part.cells)).double() for part in parts]
    shares = {"block.0": 0.5, "block.1.heads": 0.25, "block.1.neurons": 0.0}
    assert [int(own.sum()) for own in choose(parts, scores, shares)] == [2, 4, 1, 0]
    with pytest.raises(ValueError, match=r"a share is needed for block\.1\.heads \(or for its block\)"):
        choose(parts, scores, {"block.0": 0.5})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsity": 1.0}, ValueError, r"in \[0, 1\)"),
        ({"sparsity": 20}, ValueError, r"For 20 %, write 0.2"),
        ({"sparsity": 0.5, "allocation": "gloabl"}, ValueError, "Did you mean 'global'"),
        ({"sparsity": 0.5, "nan": True}, ValueError, r"heads of block\.0 need 4 scores without NaN"),
    ],
)
def test_bad_choices(options, error, message):
    options = dict(options)
    parts = made_up((4, 8), (10, 10))
    scores = [torch.ones(len(part.cells)) for part in parts]
    if options.pop("nan", False):
        scores[0][1] = torch.nan
    with pytest.raises(error, match=message):
        choose(parts, scores, **options)


def test_one_of_each_part_must_stay():
    parts = made_up((2, 3), (10, 1))
    scores = [torch.ones(len(part.cells)) for part in parts]
    assert [int(own.sum()) for own in choose(parts, scores, 0.52, "global")] == [1, 2, 1, 2]
    with pytest.raises(BudgetError, match="less than one head and one neuron of each block"):
        choose(parts, scores, 0.8, "global")
    assert [int(own.sum()) for own in choose(parts, scores, 0.7)] == [1, 2, 1, 2]
    with pytest.raises(BudgetError, match="less than one head and one neuron of each block"):
        choose(parts, scores, 0.9)  # two of two heads would be nearer


# ── without them ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("allocation", list(RIVALS))
@pytest.mark.parametrize("kv", KV)
def test_slim_is_the_masked_model_and_as_small_as_was_paid_for(kv, allocation):
    model, (x, _) = llama(kv), tokens()
    before, count = logits(model, x), sum(p.numel() for p in model.parameters())
    graph, parts = find_parts(model, x[:1])
    scores = coupled_scores(model, graph, parts, "magnitude")
    gone = choose(parts, scores, 0.45, allocation)
    masks = cut_parts(model, graph, parts, scores, 0.45, allocation)
    for part, own in zip(parts, gone, strict=True):
        for i in range(len(own)):
            for weight, dim, index in weights_of(model, part, i):
                assert bool((weight.index_select(dim, index) == 0).all()) == bool(own[i])
    small = slim(model, masks, x[:1])
    close(logits(small, x), logits(model, x), rtol=EXACT, atol=EXACT)
    assert (logits(small, x) - before).abs().max() > 1e-3
    paid = sum(part.cost * int(own.sum()) for part, own in zip(parts, gone, strict=True))
    assert count - sum(p.numel() for p in small.parameters()) == paid > 0


@pytest.mark.parametrize(
    "make", [gpt2, lambda: llama(2, kind="Qwen2"), lambda: llama(2, kind="Qwen3"), lambda: llama(2, kind="Mistral")]
)
def test_other_families(make):
    model, (x, _) = make(), tokens()
    graph, parts = find_parts(model, x[:1])
    masks = cut_parts(model, graph, parts, coupled_scores(model, graph, parts, "random"), 0.5, "isomorphic")
    small = slim(model, masks, x[:1])
    close(logits(small, x), logits(model, x), rtol=EXACT, atol=EXACT)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kv", KV)
def test_a_slim_model_is_saved_and_loaded_by_transformers(kv, tmp_path):
    import transformers

    model, (x, _) = llama(kv), tokens()
    graph, parts = find_parts(model, x[:1])
    with torch.no_grad():
        for part in parts:
            model.get_submodule(part.reader.removesuffix(".weight")).bias = nn.Parameter(torch.randn(24).double())
    small = slim(model, cut_parts(model, graph, parts, coupled_scores(model, graph, parts, "magnitude"), 0.5), x[:1])
    fit_config(small)
    assert (small.config.num_attention_heads, small.config.num_key_value_heads) == (2, kv // 2)
    assert (small.config.intermediate_size, small.config.attention_bias, small.config.mlp_bias) == (10, True, True)
    small.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert torch.equal(logits(loaded, x), logits(small, x))
    close(logits(loaded, x), logits(model, x), rtol=EXACT, atol=EXACT)


def test_blocks_of_unlike_width_have_no_config():
    model, (x, _) = llama(), tokens()
    graph, parts = find_parts(model, x[:1])
    shares = {"model.layers.0": 0.5, "model.layers.1": 0.25, "model.layers.2": 0.25}
    small = slim(model, cut_parts(model, graph, parts, coupled_scores(model, graph, parts, "magnitude"), shares), x[:1])
    before = vars(copy.deepcopy(small.config))
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.down_proj.weight \(24×15, not 24×10\)"):
        fit_config(small)
    assert vars(small.config) == before
    with pytest.raises(ValueError, match="is not of Llama's kind"):
        fit_config(gpt2())


# ── LLM-Pruner ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_llm_pruner_removes_what_matters_least_to_the_loss_from_each_block_that_is_not_spared():
    task = language_task(2)
    model, (x, y) = task.model(0), task.calibration(10, 0)
    grads, (_, parts) = gradients(model, x, y, task.loss), find_parts(model, x[:1])
    expected = by_hand(model, parts, lambda w: (w * grads[id(w)]).abs().detach())
    masks = llm_pruner(model, task, sparsity=0.5, spare=(1, 0))
    for part, scores in zip(parts, expected, strict=True):
        n = 0 if part.block == "model.layers.0" else len(scores) // 2
        gone = {i for i in range(len(scores)) if not masks[part.reader][:, part.columns[i]].any()}
        assert gone == set(scores.argsort()[:n].tolist())
    assert all(bool((model.get_parameter(name)[~mask] == 0).all()) for name, mask in masks.items())


def test_llm_pruner_recovers_under_its_masks():
    task = language_task()
    model, called = task.model(0), []

    def recovery(given, masks, own_task, *, seed):
        called.append((given is model, own_task is task, seed))
        return len(own_task.train(given, masks=masks, steps=3, seed=seed))

    masks = llm_pruner(model, task, sparsity=0.5, seed=4, recovery=recovery)
    assert called == [(True, True, 4)]
    assert all(bool((model.get_parameter(name)[~mask] == 0).all()) for name, mask in masks.items())
    with pytest.raises(ValueError, match="unknown recovery 'lora'"):
        llm_pruner(task.model(0), task, sparsity=0.5, recovery="lora")
