"""FLAP: fluctuations and who goes by them, worked out again with hooks; a bias that makes up for a mean, exactly."""

import copy

import numpy as np
import pytest
import torch
from helpers import close
from small_llama import SIZES, language_task, llama, logits, tokens
from torch import nn

from pruninglab import slim
from pruninglab.language.flap import compensate, fluctuation, head_scores
from pruninglab.language.structures import choose, cut_parts, find_parts, reader_scores
from pruninglab.recipes.flap import flap

KV = [4, 2]
EXACT = 1e-10


def inputs_of(model, x):
    """Reader → all rows that it gets, (tokens, inputs), of a run of the whole model."""
    seen, watched = {}, copy.deepcopy(model)
    for name, module in watched.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            module.register_forward_pre_hook(
                lambda _m, a, name=name: seen.update({f"{name}.weight": a[0].flatten(0, 1)})
            )
    logits(watched, x)
    return {name: rows.numpy() for name, rows in seen.items()}


def scores_by_hand(model, parts, x):
    """The paper's scores: variance times squared norm, standardised over a layer, averaged over a head."""
    rows, found = inputs_of(model, x), []
    for part in parts:
        weight = model.get_parameter(part.reader).detach().numpy()
        score = rows[part.reader].var(axis=0) * (weight**2).sum(axis=0)
        score = (score - score.mean()) / score.std()
        size = len(score) // len(part.cells)
        found.append(torch.from_numpy(score.reshape(len(part.cells), size).mean(axis=1)))
    return found


# ── the score ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kv", KV)
def test_scores_are_those_of_the_paper(kv):
    model, (x, _) = llama(kv), tokens(20)  # more sequences than go through a block at a time
    _, parts = find_parts(model, x[:1])
    columns, _ = reader_scores(model, parts, fluctuation, x)
    for found, expected in zip(head_scores(columns), scores_by_hand(model, parts, x), strict=True):
        close(found, expected, rtol=1e-4, atol=1e-5)


def test_fluctuation_is_what_an_output_loses_when_an_input_keeps_only_its_mean():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 4, generator=generator).double() + torch.tensor([0.0, 5.0, -3.0, 1.0])
    weight = torch.randn(3, 4, generator=generator).double()
    scores = fluctuation(weight, x.var(0, unbiased=False)).sum(0)
    for j in range(4):
        still = x.clone()
        still[:, j] = x[:, j].mean()
        close(scores[j], ((x - still) @ weight.T).square().sum(1).mean())


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_who_goes(kv, allocation):
    task = language_task(kv)
    model, (x, _) = task.model(0), task.calibration(20, 3)
    _, parts = find_parts(model, x[:1])
    expected = choose(parts, scores_by_hand(model, parts, x), 0.4, allocation)
    masks = flap(model, task, sparsity=0.4, seed=3, samples=20, allocation=allocation)
    for part, gone in zip(parts, expected, strict=True):
        for i in range(len(gone)):
            assert bool(masks[part.reader][:, part.columns[i]].any()) != bool(gone[i])


def test_a_head_pays_for_all_its_weights():
    """Global: what goes comes to the share asked for, to within one head, wherever it is taken from."""
    task = language_task()
    model = task.model(0)
    _, parts = find_parts(model, task.calibration(1)[0])
    total, head = sum(part.cost * len(part.cells) for part in parts), parts[0].cost
    assert (head, parts[1].cost) == (4 * 6 * 24, 3 * 24), "4 d d_h and 3 d weights"
    for sparsity in (0.2, 0.5):
        pruned = task.model(0)
        masks = flap(pruned, task, sparsity=sparsity, samples=8)
        gone = sum(
            part.cost * sum(not bool(masks[part.reader][:, columns].any()) for columns in part.columns)
            for part in parts
        )
        assert abs(gone - sparsity * total) <= head / 2


# ── the bias ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kv", KV)
def test_the_bias_is_the_mean_of_what_goes(kv):
    task = language_task(kv)
    model, (x, _) = task.model(0), task.calibration(20, 1)
    before, rows = copy.deepcopy(model), inputs_of(model, x)
    masks = flap(model, task, sparsity=0.4, seed=1, samples=20)
    for name, own in rows.items():
        weight = before.get_parameter(name).detach().numpy()
        gone = ~masks[name].numpy().any(axis=0)
        bias = model.get_parameter(name.replace("weight", "bias")).detach()
        close(bias, torch.from_numpy(weight[:, gone] @ own.mean(axis=0)[gone]), rtol=1e-4, atol=1e-6)
    without = copy.deepcopy(before)
    assert flap(without, task, sparsity=0.4, seed=1, samples=20, bias=False) == masks
    assert without.state_dict().keys() == before.state_dict().keys(), "and no biases, if none are wanted"


def test_a_bias_that_was_there_stays():
    model, (x, _) = llama(attention_bias=True, mlp_bias=True), tokens()
    _, parts = find_parts(model, x[:1])
    old = {part.reader: model.get_parameter(part.reader.replace("weight", "bias")).detach().clone() for part in parts}
    gone = [torch.zeros(len(part.cells), dtype=torch.bool) for part in parts]
    gone[0][1] = True
    added = compensate(model, parts, gone, {part.reader: torch.ones(part.columns.numel()) for part in parts})
    expected = model.get_parameter(parts[0].reader).detach()[:, parts[0].columns[1]].sum(1)
    for part in parts:
        new = model.get_parameter(part.reader.replace("weight", "bias")).detach()
        close(new - old[part.reader], expected if part is parts[0] else torch.zeros(24).double())
    close(added[parts[0].reader], expected)


@torch.no_grad()
def planted(model, c):
    """Give the values of every layer a mean, and take what it does away again behind: the function is the same.

    Attention's weights add up to 1, so a constant in the values comes out as it is.
    """
    model = copy.deepcopy(model)
    for block in model.model.layers:
        attention = block.self_attn
        queries = attention.q_proj.out_features // attention.v_proj.out_features
        attention.v_proj.bias += c
        out = c.view(-1, attention.head_dim).repeat_interleave(queries, 0).flatten()
        attention.o_proj.bias -= attention.o_proj.weight @ out
    return model


@pytest.mark.parametrize("kv", KV)
def test_a_planted_mean_does_nothing_with_the_bias_and_everything_without(kv):
    """Exact: whatever c is, one head less of each block leaves the same model if what it said on average stays."""
    model, (x, _) = llama(kv, attention_bias=True), tokens()
    results = {True: [], False: []}
    for seed in range(3):
        c = seed * torch.randn(kv * 6, generator=torch.Generator().manual_seed(seed)).double()
        other = planted(model, c)
        close(logits(other, x), logits(model, x), rtol=1e-8, atol=1e-8)
        for bias in (True, False):
            pruned = copy.deepcopy(other)
            graph, parts = find_parts(pruned, x[:1])
            parts = [part for part in parts if part.kind == "heads"]
            scores = [torch.arange(kv).double() for _ in parts]  # the first head of each block goes
            if bias:
                _, found = reader_scores(pruned, parts, fluctuation, x, also=["input_mean"])
                means = {name: own["input_mean"] for name, own in found.items()}
                compensate(pruned, parts, choose(parts, scores, 1 / kv), means)
            cut_parts(pruned, graph, parts, scores, 1 / kv)
            results[bias].append(logits(pruned, x))
    for other in results[True][1:]:
        close(other, results[True][0], rtol=1e-4, atol=1e-4)  # means are held in single precision
    for other in results[False][1:]:
        assert (other - results[False][0]).abs().max() > 0.1


def test_a_planted_mean_does_not_change_who_goes():
    model, (x, _) = llama(2, attention_bias=True), tokens()
    other = planted(model, 3 * torch.ones(12).double())
    _, parts = find_parts(model, x[:1])
    for one, two in zip(*(reader_scores(m, parts, fluctuation, x)[0] for m in (model, other)), strict=True):
        close(one, two, rtol=1e-3, atol=1e-6)


# ── the recipe ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("allocation", ["uniform", "block", "isomorphic", "global"])
def test_slim_is_the_pruned_model(kv, allocation):
    task = language_task(kv)
    model, (x, _) = task.model(0), tokens()
    masks = flap(model, task, sparsity=0.3, samples=8, allocation=allocation)
    small = slim(model, masks, x[:1])
    close(logits(small, x), logits(model, x), rtol=EXACT, atol=EXACT)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    biases = [
        m.bias for n, m in small.named_modules() if isinstance(m, nn.Linear) and n.endswith(("o_proj", "down_proj"))
    ]
    assert len(biases) == 2 * SIZES["num_hidden_layers"]
    assert all(np.isfinite(bias.detach().numpy()).all() for bias in biases)


def test_the_same_seed_gives_the_same_model():
    task = language_task()
    one, two, three = (task.model(0) for _ in range(3))
    masks = flap(one, task, sparsity=0.4, samples=4, seed=1)
    assert flap(two, task, sparsity=0.4, samples=4, seed=1) == masks
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    flap(three, task, sparsity=0.4, samples=4, seed=2)
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), three.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"), [({"sparsity": 1}, "in \\[0, 1\\)"), ({"allocation": "al-am"}, "unknown allocation")]
)
def test_bad_input_leaves_the_model_alone(options, message):
    task = language_task()
    model = task.model(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        flap(model, task, **{"sparsity": 0.5, "samples": 4} | options)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
