"""LoRAPrune: the stand-in for the gradient against autograd, the scores by brute force, the promises of a recipe."""

import copy
import dataclasses
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import close, normal, same, snapshot
from networks import DECODER, LANGUAGE, WORDS
from torch import nn
from torch.func import functional_call

from pruninglab.adapters import Adapted, training_only
from pruninglab.language.structures import find_parts
from pruninglab.recipes.loraprune import estimate, importance_of, loraprune, matrices, members, structure_scores
from pruninglab.surgery import slim
from pruninglab.tasks import LanguageTask, Training
from pruninglab.tasks.training import batch_at

RECIPE = sys.modules["pruninglab.recipes.loraprune"]  # the name is that of the function too


def text():
    """Windows of a text in which each word is the one before it times 3, with some noise."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(WORDS, (160, 17), generator=generator)
    for place in range(1, 17):
        noise = torch.rand(160, generator=generator) < 0.1
        words[:, place] = torch.where(noise, words[:, place], (3 * words[:, place - 1] + 1) % WORDS)
    x, y = words[:, :-1].contiguous(), words[:, 1:].contiguous()
    return {"train": (x[:120], y[:120]), "validation": (x[120:140], y[120:140]), "test": (x[140:], y[140:])}


def build(kind="llama", **config):
    import transformers

    if kind == "llama" and config:
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(DECODER | config)))
    return LANGUAGE[kind](transformers)


def make_task(kind="llama", **config):
    how = Training(30, 16, lr=1e-2, momentum=0.9, weight_decay=0.0, optimizer="adamw", clip=1.0)
    return LanguageTask("words", text, lambda: build(kind, **config), how)


@pytest.fixture(scope="module")
def learned():
    """A task and its network, trained for long enough to have something to lose."""
    task = make_task(num_key_value_heads=4)
    model = task.model(0)
    task.train(model, steps=120)
    return task, model


@pytest.fixture
def trained(learned):
    return learned[0], copy.deepcopy(learned[1])


# ── the stand-in for the gradient ─────────────────────────────────────────────────────────────────────────────────


def adapted(rank=3, alpha=6.0, seed=0):
    """A layer with an adapter that has learned something, its inputs, and a loss of its outputs."""
    torch.manual_seed(seed)
    layer = nn.Linear(5, 4).double()
    student = Adapted(layer, "lora", rank=rank, alpha=alpha, seed=seed)
    with torch.no_grad():
        student.adapters[0].up.copy_(0.5 * normal(4, rank, seed=1))
    return layer, student, student.adapters[0], normal(7, 5, seed=2)


def loss(outputs):
    return torch.sin(2 * outputs).sum() + outputs.square().mean()


def exact(layer, weight, x):
    """The gradient of the loss at a weight, by autograd."""
    weight = weight.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(F.linear(x, weight, layer.bias)), weight)[0]


def found(student, adapter, x):
    """The estimate from the adapter's gradients, with the layer's own weight frozen."""
    student.zero_grad()
    with training_only(student.model):
        loss(student(x)).backward()
    return estimate(adapter.up.detach(), adapter.down.detach(), adapter.up.grad, adapter.down.grad)


def test_the_estimate_in_terms_of_the_gradient():
    layer, student, adapter, x = adapted()
    a, b, s = adapter.down.detach(), adapter.up.detach(), 2.0
    g = exact(layer, layer.weight + s * b @ a, x)
    assert torch.autograd.gradcheck(lambda w: loss(F.linear(x, w, layer.bias)), layer.weight.detach().requires_grad_())
    close(found(student, adapter, x), s * (g @ a.T @ a + b @ b.T @ g) - s * s * g @ a.T @ b.T @ g)


def test_a_step_of_size_one_changes_ba_by_minus_the_estimate():
    _, student, adapter, x = adapted()
    wanted = found(student, adapter, x)
    before = (adapter.up @ adapter.down).detach()
    torch.optim.SGD(student.adapters.parameters(), lr=1.0).step()
    close((adapter.up @ adapter.down).detach() - before, -wanted)


def test_with_orthonormal_columns_and_no_b_it_is_the_gradient():
    """The exact statement for a full rank: A and B then leave no direction out."""
    layer, student, adapter, x = adapted(rank=5, alpha=5.0)
    with torch.no_grad():
        adapter.up.zero_()
        adapter.down.copy_(torch.linalg.qr(normal(5, 5, seed=3)).Q)
    close(found(student, adapter, x), exact(layer, layer.weight, x))


def test_with_many_random_rows_it_is_proportional_to_the_gradient():
    """E[AᵀA] = rank / (3 · inputs) · 1 for numbers between ± 1 / √inputs.

    Rows are drawn alike, so this is also the mean of what adapters of rank 1 say, over how they begin.
    """
    layer, x = adapted()[0], normal(7, 5, seed=2)
    g = exact(layer, layer.weight, x)
    error = {}
    for rank in (1, 100, 100_000):
        student = Adapted(layer, "lora", rank=rank, alpha=1.0)
        error[rank] = float((15 * found(student, student.adapters[0], x) - g).norm() / g.norm())
    assert error[100_000] < 0.02
    assert error[100] < 0.4
    assert error[1] > 1


# ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_scores_by_brute_force():
    """Of a Llama with 4 heads of 8 channels, and 64 neurons, structure by structure."""
    task = make_task(num_key_value_heads=4)
    model = task.model(0).double()
    x, y = task.calibration(8)
    graph, parts = find_parts(model, x[:1])
    names = [name for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    student = Adapted(model, "lora", layers=names, rank=4, alpha=8.0)
    with torch.no_grad():
        for i, adapter in enumerate(student.adapters):
            adapter.up.copy_(0.1 * normal(*adapter.up.shape, seed=i))
    with training_only(model):
        task.loss(student(x), y).backward()
    before = matrices(student)
    scores = structure_scores(student, before, parts, [members(graph, part, names) for part in parts])

    for part, score in zip(parts, scores, strict=True):
        size, count = (8, 4) if part.kind == "heads" else (1, 64)
        rows, column = (
            (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj")
            if part.kind == "heads"
            else (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
        )
        # Which structure of the part is which head: told by the columns that it has in its reader.
        order = [int(columns[0]) // size for columns in part.columns]
        assert sorted(order) == list(range(count))
        total = torch.zeros(count).double()
        for own in (*rows, column):
            name = f"{part.block}.{own}.weight"
            adapter, weight = student.by_name()[name], model.get_parameter(name).detach()
            a, b, da, db = (t.detach() for t in (adapter.down, adapter.up, adapter.down.grad, adapter.up.grad))
            importance = ((db @ a + b @ da - db @ da) * (weight + 2 * b @ a)) ** 2
            importance = importance.T if own == column else importance
            group = torch.stack([importance[h * size : (h + 1) * size].sum() for h in range(count)])
            total += group / group.norm()
        close(score, total[order])


def test_neurons_that_do_nothing_go_first(trained):
    """Their weights' gradients are zero, or the weights are, as long as LoRA has hardly learned."""
    task, model = trained
    dead = [3, 17, 40]
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, dead] = 0
    masks = loraprune(model, task, sparsity=3 / 64, steps=10, begin=0.1, end=0.5, every=1, lr=1e-6)
    gone = ~masks["model.layers.0.mlp.gate_proj.weight"].any(1)
    assert gone.nonzero().flatten().tolist() == dead


def test_an_expert_that_no_token_went_to_counts_nothing():
    layers = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})
    layers.forward = lambda x: layers["used"](x)
    student = Adapted(layers, "lora")
    student(torch.ones(1, 3)).sum().backward()
    assert not importance_of(student, matrices(student), "unused.weight").any()
    assert importance_of(student, matrices(student), "used.weight").any()


# ── the recipe ────────────────────────────────────────────────────────────────────────────────────────────────────


class Spied:
    """A task that looks at the model after each step of training."""

    def __init__(self, task, look):
        self.task, self.look = task, look

    def __getattr__(self, name):
        return getattr(self.task, name)

    def train(self, student, **options):
        then = options.pop("on_step")

        def on_step(step, optimizer):
            then(step, optimizer)
            self.look(step, student)

        return self.task.train(student, on_step=on_step, **options)


def test_no_weight_of_the_model_needs_a_gradient_at_any_time(trained):
    task, model = trained
    for parameter in model.parameters():
        parameter.grad = None
    seen = []

    def look(step, student):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert sum(parameter.grad is not None for parameter in student.adapters.parameters()) == 2 * 14
        seen.append(step)

    loraprune(model, Spied(task, look), sparsity=0.5, steps=20, every=2)
    assert seen == list(range(1, 21))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_importances_are_a_running_mean(trained, monkeypatch):
    """With planted scores: 0.9 of what was, 0.1 of what is. The last scores alone would say otherwise."""
    task, model = trained
    said = []

    def planted(student, before, parts, groups):
        said.append([torch.rand(len(p.cells), generator=generator).double() for p in parts])
        return said[-1]

    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(RECIPE, "structure_scores", planted)
    _, parts = find_parts(model, task.data["train"][0][:1])
    masks = loraprune(model, task, sparsity=0.5, steps=8, begin=0.0, end=0.75, every=6)  # prunes once, after step 6
    for i, part in enumerate(parts):
        score = sum(0.1 * 0.9 ** (5 - k) * said[k][i] for k in range(6))
        columns = masks[part.reader].any(0)[part.columns].all(1)
        count = len(part.cells) // 2
        assert columns.tolist() == (score >= score.sort().values[count]).tolist()
        assert columns.tolist() != (said[5][i] >= said[5][i].sort().values[count]).tolist()


def test_what_is_gone_stays_gone_whatever_the_scores_say_later(trained, monkeypatch):
    """With planted scores that turn round after the first pruning."""
    task, model = trained
    counted = []

    def planted(student, before, parts, groups):
        counted.append(1)
        rising = [torch.arange(1.0, len(part.cells) + 1).double() for part in parts]
        return rising if len(counted) < 3 else [1000 * score.flip(0) for score in rising]

    monkeypatch.setattr(RECIPE, "structure_scores", planted)
    _, parts = find_parts(model, task.data["train"][0][:1])
    masks = loraprune(model, task, sparsity=0.5, steps=4, begin=0.0, end=1.0, every=2)  # after steps 2 and 4
    for part in parts:
        gone = ~masks[part.reader].any(0)[part.columns].any(1)
        first = round(len(part.cells) * (0.5 - 0.5 * 0.5**3))
        half = len(part.cells) // 2
        assert gone.nonzero().flatten().tolist() == [*range(first), *range(len(gone) - (half - first), len(gone))]


def test_gradients_and_matrices_belong_to_the_same_step(trained, monkeypatch):
    """What scores are made of, against autograd at the matrices of that step on the batch of that step."""
    task, model = trained
    task = dataclasses.replace(task, training=dataclasses.replace(task.training, clip=None))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen = []

    def spy(student, before, parts, groups):
        grads = {n: (a.up.grad.clone(), a.down.grad.clone()) for n, a in student.by_name().items()}
        seen.append((before, grads))
        return structure_scores(student, before, parts, groups)

    monkeypatch.setattr(RECIPE, "structure_scores", spy)
    loraprune(model, task, sparsity=0.5, steps=6, begin=0.5, end=1.0, every=1, seed=3, rank=2, alpha=10.0)
    assert len(seen) == 6
    for step, (before, grads) in enumerate(seen[:4]):  # nothing is pruned yet
        leaves = {n: (b.clone().requires_grad_(), a.clone().requires_grad_()) for n, (b, a) in before.items()}
        used = weights | {name: weights[name] + 5 * b @ a for name, (b, a) in leaves.items()}
        x, y = batch_at(step, task.data["train"], task.training, 4)
        task.loss(functional_call(model, used, (x,)), y).backward()
        for name, (b, a) in leaves.items():
            close(grads[name][0], b.grad, rtol=1e-3, atol=1e-6)
            close(grads[name][1], a.grad, rtol=1e-3, atol=1e-6)


def test_every_block_loses_the_same_along_the_cubic_curve_and_never_gets_it_back(trained):
    task, model = trained
    neurons, heads, before = [], [], {}

    def look(step, student):
        neurons.append([int((~layer.mlp.gate_proj.weight.any(1)).sum()) for layer in model.model.layers])
        heads.append([int((~layer.self_attn.o_proj.weight.any(0)).sum()) / 8 for layer in model.model.layers])
        for name, layer in student.layers.items():
            gone = before[name] = ~layer.weight.bool() | before.get(name, torch.zeros_like(layer.weight) > 0)
            assert not layer.weight[gone].any()
            assert not (student.by_name()[name].up @ student.by_name()[name].down)[gone].any()

    loraprune(model, Spied(task, look), sparsity=0.5, steps=40, begin=0.25, end=0.75, every=5)
    for step in range(1, 41):
        t = max(0, min(step, 30) - 10) // 5 * 5 / 20
        share = 0.5 - 0.5 * (1 - t) ** 3
        assert neurons[step - 1] == [pytest.approx(64 * share, abs=0.5)] * 2, step
        assert heads[step - 1] == [pytest.approx(4 * share, abs=0.5)] * 2, step


def test_what_is_left_can_be_cut_out_and_speaks_as_well(trained):
    task, model = trained
    before = snapshot(model)
    dense = task.perplexity(model)
    masks = loraprune(model, task, sparsity=0.5, steps=40)
    after = snapshot(model)
    assert list(after["state"]) == list(before["state"])
    assert all(after[kind] == before[kind] for kind in ("frozen", "mode", "hooks", "parameter hooks"))
    small = slim(model, masks, task.data["test"][0][:1])
    config = [small.model.layers[0].mlp.gate_proj.out_features, small.model.layers[1].self_attn.o_proj.in_features]
    assert config == [32, 16]
    x = task.data["test"][0]
    with torch.no_grad():
        close(small(x).logits, model(x).logits, rtol=1e-3, atol=1e-4)
    assert task.perplexity(model) < 1.2 * dense


def test_the_same_call_gives_the_same(trained):
    task, model = trained
    results = []
    for seed in (0, 0, 1):
        twin = copy.deepcopy(model)
        masks = loraprune(twin, task, sparsity=0.4, steps=10, every=2, seed=seed)
        results.append((masks, twin.state_dict()))
    (one, state), (two, again), (_, other) = results
    assert one == two
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert any(not torch.equal(state[name], other[name]) for name in state)


def test_blocks_can_be_spared(trained):
    task, model = trained
    masks = loraprune(model, task, sparsity=0.5, steps=10, every=2, spare=(0, 1))
    assert all(masks[name].all() for name in masks if "layers.1." in name)
    assert not masks["model.layers.0.mlp.down_proj.weight"].all()


@pytest.mark.parametrize(("kind", "queries"), [("llama", 2), ("gpt2", 4)])
def test_other_models(kind, queries):
    """Queries that share keys and values go together; GPT-2 has q, k and v in one layer, biases, and no gate."""
    from pruninglab.tasks.linears import as_linear

    task = make_task(kind)
    model = as_linear(task.model(0))
    masks = loraprune(model, task, sparsity=0.5, steps=10, every=2)
    x = task.data["test"][0]
    small = slim(model, masks, x[:1])
    sizes = [parameter.numel() for parameter in model.parameters()]
    assert sum(parameter.numel() for parameter in small.parameters()) < 0.8 * sum(sizes)
    with torch.no_grad():
        close(small(x).logits, model(x).logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("end", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_run_leaves_the_old_structure(trained, end):
    task, model = trained
    before = snapshot(model)

    def look(step, _student):
        if step == 8:
            raise end

    with pytest.raises(end):
        loraprune(model, Spied(task, look), sparsity=0.5, steps=10, every=2)
    after = snapshot(model)
    assert all(after[kind] == before[kind] for kind in ("frozen", "mode", "hooks", "parameter hooks"))
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert not model.model.layers[0].mlp.gate_proj.weight.any(1).all(), "what was removed until then stays zero"


def test_gradients_that_are_not_finite(trained):
    task, model = trained
    with torch.no_grad():
        model.model.norm.weight[0] = torch.inf
    with pytest.raises(ValueError, match=r"gradients of the adapters of model\.layers\.0\.\S+ are NaN or infinite"):
        loraprune(model, task, sparsity=0.5, steps=10, every=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": 1.0}, r"fraction removed, in \[0, 1\)"),
        ({"sparsity": 0.5, "begin": 0.5, "end": 0.4}, "0 ≤ begin < end ≤ 1"),
        ({"sparsity": 0.5, "every": 50}, "every=50 steps does not fit"),
        ({"sparsity": 0.5, "rank": 0}, "rank of an adapter is at least 1"),
        ({"sparsity": 0.5, "spare": (1, 1)}, "leaves none of 2 blocks"),
        ({"sparsity": 0.5, "blocks": "layers"}, "has no list of blocks 'layers'"),
    ],
)
def test_numbers_out_of_range_change_nothing(trained, options, words):
    task, model = trained
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        loraprune(model, task, steps=10, **options)
    assert same(snapshot(model), before)
