"""PERP: what is named is trained and nothing else; zeros stay; the model has its old structure whatever happens."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import make_task, same, snapshot
from networks import WORDS, language
from torch import nn

from pruninglab import Masks, prune
from pruninglab.language.one_shot import repaired
from pruninglab.perp import PARTS, perp, retraining, share
from pruninglab.recipes.perp import perp as recipe_perp
from pruninglab.recovery import RECOVERIES
from pruninglab.tasks import LanguageTask, Training, together
from pruninglab.tasks.linears import as_linear
from pruninglab.tasks.training import batch_at

LORAS = ("lora", "mask-lora", "scale-lora")
OWN = {
    "norms": {"1.weight", "1.bias"},
    "biases": {"0.bias", "3.bias", "5.bias"},
    "output": {"5.weight", "5.bias"},
    **{part: {"0.weight", "3.weight", "5.weight"} for part in LORAS},
}  # of the network that `make_task(norm=True)` builds


@pytest.fixture
def task():
    return make_task("perp", steps=40, norm=True)


@pytest.fixture
def pruned(task):
    model = task.trained()
    return model, prune(model, sparsity=0.7)


def values(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(model, before):
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


# ── what is trained ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("part", PARTS)
def test_what_is_named_is_trained_and_nothing_else(part, optimizer):
    """Also with weight decay, and where gradients of an earlier training lie about."""
    how = {"lr": 0.05, "weight_decay": 0.1, "clip": 1.0}
    task = make_task("perp", steps=10, norm=True, optimizer=optimizer, **how)
    model = task.model()
    masks = prune(model, sparsity=0.5)
    task.train(model, masks=masks)
    assert all(parameter.grad is not None for parameter in model.parameters())
    before = values(model)
    assert perp(model, masks, task, parts=part) == 5
    assert changed(model, before) == OWN[part]


def test_norms_alone_are_what_an_optimizer_of_theirs_would_make_of_them(task, pruned):
    model, masks = pruned
    twin = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(twin[1].parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for step in range(7):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / 7)).item())
        x, y = batch_at(step, task.data["train"], task.training, 5)
        optimizer.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        optimizer.step()
    perp(model, masks, task, parts="norms", steps=7, seed=4)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def test_several_parts_together(task, pruned):
    model, masks = pruned
    before = values(model)
    perp(model, masks, task, parts=("norms", "scale-lora"))
    assert changed(model, before) == OWN["norms"] | OWN["lora"]
    before = values(model)
    perp(model, masks, task, parts=["output", "mask-lora"])
    assert changed(model, before) == OWN["output"] | OWN["lora"]


def test_without_a_choice_it_is_all_that_is_small(task, pruned):
    model, masks = pruned
    before = values(model)
    perp(model, masks, task)
    assert changed(model, before) == OWN["norms"] | OWN["biases"] | OWN["lora"]
    bare = make_task("bare", steps=20)
    model = bare.trained()
    perp(model, prune(model, sparsity=0.5), bare)  # there are no norms in it


@pytest.mark.parametrize(("parts", "count"), [("norms", 32), ("biases", 31), ("output", 39), ("mask-lora", 134)])
def test_its_share_of_the_parameters(pruned, parts, count):
    """Layers 8 → 16 → 12 → 3: at rank 2 adapters have 2 · (24 + 28 + 15) numbers."""
    model, masks = pruned
    before = snapshot(model)
    total = 8 * 16 + 16 * 12 + 12 * 3 + 31 + 32
    assert share(model, masks, parts, rank=2) == pytest.approx(count / total)
    assert share(model, masks, ("norms", parts), rank=2) == pytest.approx((count + 32 * (parts != "norms")) / total)
    assert same(snapshot(model), before)


def test_a_layer_that_is_trained_itself_needs_no_adapter(pruned):
    model, masks = pruned
    with retraining(model, masks, ("output", "mask-lora")) as student:
        assert list(student.layers) == ["0.weight", "3.weight"]


# ── zeros, merging, structure ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("part", PARTS)
def test_zeros_stay_zeros_at_every_step_and_afterwards(task, pruned, part):
    model, masks = pruned
    seen = []
    perp(model, masks, task, parts=part, on_step=lambda step, _: seen.append((step, Masks.of(model) == masks)))
    assert seen == [(step, True) for step in range(1, 21)]
    for name, mask in masks.items():
        assert not model.get_parameter(name)[~mask].view(torch.int32).any()


@pytest.mark.parametrize("part", ["norms", "biases", "mask-lora"])
def test_masks_of_channels_hold_in_norms_and_biases_too(task, part):
    model = task.trained()
    masks = prune(model, unit="channel", sparsity=0.5, example_inputs=torch.zeros(2, 8))
    assert set(masks) > {"0.bias", "1.weight", "1.bias"}
    perp(model, masks, task, parts=part)
    for name, mask in masks.items():
        assert not model.get_parameter(name)[~mask].any()


@pytest.mark.parametrize("part", LORAS)
def test_what_merging_costs(task, pruned, part):
    model, masks = pruned
    x = task.data["test"][0]
    with retraining(model, masks, part) as student:
        task.train(student, masks=masks)
        told = student(x).detach()
    lost = float((model(x).detach() - told).abs().max() / told.abs().max())
    assert lost > 0.02 if part == "lora" else lost == 0


@pytest.mark.parametrize("end", [None, ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("part", PARTS)
def test_the_model_has_its_old_structure_whatever_happens(task, pruned, part, end):
    model, masks = pruned
    model[3].bias.requires_grad_(False)
    before, ids = snapshot(model), {name: id(parameter) for name, parameter in model.named_parameters()}

    def on_step(step, _optimizer):
        if end is not None and step == 3:
            raise end

    if end is None:
        perp(model, masks, task, parts=part)
    else:
        with pytest.raises(end):
            perp(model, masks, task, parts=part, on_step=on_step)
    after = snapshot(model)
    assert list(after["state"]) == list(before["state"])
    for kind in ("frozen", "mode", "hooks", "parameter hooks"):
        assert after[kind] == before[kind]
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == ids
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert Masks.of(model) == masks
    assert any(not torch.equal(after["state"][name], before["state"][name]) for name in OWN[part])


@pytest.mark.parametrize("part", PARTS)
def test_no_steps_change_nothing(task, pruned, part):
    model, masks = pruned
    before = values(model)
    assert perp(model, masks, task, parts=part, steps=0) == 0
    assert not changed(model, before)


# ── what it is for ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("part", [*PARTS, None])
def test_it_lowers_the_loss_that_pruning_raised(task, part):
    x, y = task.data["train"]
    model = task.trained()
    dense = F.cross_entropy(model(x), y)
    masks = prune(model, sparsity=0.6, criterion="random", allocation="erk")
    before = F.cross_entropy(model(x), y)
    perp(model, masks, task, parts=part, lr=0.03)
    assert before > 2 * dense
    assert F.cross_entropy(model(x), y) < 0.8 * before


def test_it_is_a_recovery_by_name(task, pruned):
    assert RECOVERIES["perp"] is perp


def test_side_by_side_it_is_as_alone(task):
    """Networks that train at the same time become one stack where all of their parameters train; not so here."""

    def run(part, seed):
        model = task.model(seed)
        masks = prune(model, sparsity=0.5)
        perp(model, masks, task, parts=part, seed=seed)
        return model

    for part in ("norms", "mask-lora"):
        alone = [run(part, seed) for seed in range(2)]
        beside = together([partial(run, part, seed) for seed in range(2)])
        for one, other in zip(alone, beside, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# ── the recipe ────────────────────────────────────────────────────────────────────────────────────────────────────


def words():
    """Windows of a text in which each word is three times the one before it, plus one."""
    x = torch.arange(WORDS).repeat(2)[:, None].expand(-1, 9).clone()
    for place in range(1, 9):
        x[:, place] = (3 * x[:, place - 1] + 1) % WORDS
    x, y = x[:, :-1].contiguous(), x[:, 1:].contiguous()
    return {"train": (x[:60], y[:60]), "validation": (x[60:80], y[60:80]), "test": (x[80:], y[80:])}


@pytest.fixture(scope="module")
def learned():
    """A small Llama that has learned its text."""
    how = Training(30, 16, lr=1e-2, momentum=0.9, weight_decay=0.0, optimizer="adamw", clip=1.0)
    task = LanguageTask("words", words, lambda: language("llama")[0].float(), how)
    model = task.model(0)
    task.train(model, steps=60)
    return task, model


def test_the_recipe_prunes_each_layer_by_magnitude_and_recovers(learned):
    task, model = learned[0], copy.deepcopy(learned[1])
    dense = copy.deepcopy(model)
    masks = recipe_perp(model, task, sparsity=0.75, samples=8, steps=30, parts=("norms", "mask-lora"))
    assert len(masks) == 2 * 7
    for name, mask in masks.items():
        weight = dense.get_parameter(name).abs()
        assert int((~mask).sum()) == 0.75 * mask.numel()
        assert weight[~mask].max() <= weight[mask].min()
    assert Masks.of(model, exclude="lm_head") == masks
    assert torch.equal(model.lm_head.weight, dense.lm_head.weight)
    pruned = copy.deepcopy(dense)
    masks.apply(pruned)
    loss = {name: task.nats(net) for name, net in (("dense", dense), ("pruned", pruned), ("recovered", model))}
    assert loss["recovered"] - loss["dense"] < 0.5 * (loss["pruned"] - loss["dense"])


def test_the_recipe_takes_any_step_and_is_repeatable(learned):
    task = learned[0]
    results = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(learned[1])
        masks = recipe_perp(model, task, sparsity=0.5, step=repaired(), samples=8, steps=3, seed=seed)
        results.append((masks, model.state_dict()))
    (one, state), (two, again), (_, other) = results
    assert one == two
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert any(not torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parts": "biases"}, "has no biases to retrain"),
        ({"sparsity": 1.5}, r"fraction removed, in \[0, 1\)"),
        ({"rank": 0}, "rank of an adapter"),
        ({"blocks": "layers"}, "no list of blocks 'layers'"),
    ],
)
def test_what_the_recipe_refuses_it_refuses_before_it_prunes(learned, options, words):
    task, model = learned
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        recipe_perp(model, task, **({"sparsity": 0.5, "steps": 2, "samples": 4} | options))
    assert same(snapshot(model), before)


# ── language models, errors ───────────────────────────────────────────────────────────────────────────────────────


def test_parts_of_language_models():
    llama, _ = language("llama")
    masks = prune(llama, sparsity=0.5, exclude="lm_head")
    total = sum(parameter.numel() for parameter in llama.parameters())
    assert share(llama, masks, "norms") == 5 * 32 / total
    assert share(llama, masks, "output") == 50 * 32 / total
    with pytest.raises(ValueError, match="this LlamaForCausalLM has no biases to retrain; it has norms, output, lora"):
        share(llama, masks, "biases")
    assert share(llama, masks, rank=1) == (5 * 32 + 2 * (2 * 64 + 2 * 48 + 3 * 96)) / total


def test_an_output_layer_that_is_the_embedding_counts_once():
    gpt2 = as_linear(language("gpt2")[0])
    assert gpt2.lm_head.weight is gpt2.transformer.wte.weight
    with retraining(gpt2, prune(gpt2, sparsity=0.5), "output"):
        assert [name for name, p in gpt2.named_parameters() if p.requires_grad] == ["transformer.wte.weight"]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("norm", r"unknown part 'norm'\. Did you mean 'norms'\?"),
        ((), "names nothing to retrain; known: norms, biases, output"),
        (("lora", "mask-lora"), "one adapter at most"),
        ("norms", "this Sequential has no norms to retrain; it has biases, output, lora, mask-lora, scale-lora"),
    ],
)
def test_what_cannot_be_trained(parts, words):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    masks = prune(copy.deepcopy(model), sparsity=0.5)
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        perp(model, masks, make_task(), parts=parts)
    assert same(snapshot(model), before)


def test_masks_without_a_linear_layer():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten())
    masks = prune(model, sparsity=0.5)
    with pytest.raises(ValueError, match="no pruned linear layers to retrain; it has nothing of all this"):
        share(model, masks, "mask-lora")
    with pytest.raises(ValueError, match="has no norms, no biases and no pruned linear layer"):
        share(model, masks)


class Attention(nn.Module):
    """PyTorch's attention reads the weight of its output layer itself, without calling the layer."""

    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        x = x[:, None]
        return self.last(self.attention(x, x, x)[0][:, 0])


def test_an_adapter_that_is_never_used_is_said():
    task = make_task("attention", steps=6)
    model = Attention()
    masks = prune(model, sparsity=0.5, exclude="attention.in_proj_weight")
    with pytest.warns(UserWarning, match=r"adapters of attention\.out_proj\.weight were never used"):
        perp(model, masks, task, parts="mask-lora", lr=0.01)
