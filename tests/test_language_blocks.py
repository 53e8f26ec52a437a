"""Walking the blocks of a language model: each sees what the model would have given it."""

import copy

import pytest
import torch
import transformers
from helpers import same, snapshot
from language_models import FAMILIES, block_names, language_model, logits, tokens
from torch import nn

from pruninglab.language import blocks as walking
from pruninglab.language import find_blocks, walk
from pruninglab.tasks.linears import as_linear

LAST = {"opt": "model.decoder.final_layer_norm", "gpt2": "transformer.ln_f"}  # what follows the blocks


def hidden(given):
    return next(iter(given.values()))


def seen_by(model, x, names):
    """What modules get while the whole model runs: name → (hidden states, all else by name)."""
    seen = {}

    def note(name):
        def hook(module, args, kwargs):
            first, rest = (args[0], kwargs) if args else (kwargs["hidden_states"], kwargs)
            seen[name] = (first.clone(), {key: value for key, value in rest.items() if key != "hidden_states"})

        return hook

    handles = [model.get_submodule(n).register_forward_pre_hook(note(n), with_kwargs=True) for n in names]
    with torch.no_grad():
        model(x, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_each_block_gets_what_it_gets_in_the_whole_model(family):
    model, x = as_linear(language_model(family)), tokens()
    assert model.config.use_cache  # although walking must not use one
    names, last = block_names(model), LAST.get(family, "model.norm")
    expected = seen_by(model, x, [*names, last])
    visited = []
    for block in walk(model, x):
        (given,) = block.inputs
        there, others = expected[block.name]
        assert torch.equal(hidden(given), there)
        for key, value in others.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(given[key], value), key
        visited.append(block.name)
        final = block.output(given)
    assert visited == names
    assert torch.equal(final, expected[last][0])
    assert model.config.use_cache


def test_each_block_has_a_mask_of_its_own():
    """Qwen2 with a sliding window on some layers, and sequences longer than the window."""
    model, x = language_model("qwen2"), tokens()
    assert model.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    masks = [block.inputs[0]["attention_mask"] for block in walk(model, x)]
    assert masks[0] is None or not torch.equal(masks[0], masks[1])
    far = masks[1][0, 0, -1] if masks[1].dtype == torch.bool else masks[1][0, 0, -1] == 0
    assert far.tolist() == [False] * 16 + [True] * 8  # a token sees itself and the seven before it


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_done_to_a_block_is_seen_by_those_after_it(family):
    model, x = as_linear(language_model(family)), tokens()
    untouched = {block.name: hidden(block.inputs[0]) for block in walk(model, x)}
    changed = copy.deepcopy(model)
    names = block_names(model)
    with torch.no_grad():
        for layer in find_blocks(changed)[names[1]].modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(0.5)
    expected = {name: first for name, (first, _) in seen_by(changed, x, names).items()}
    for block in walk(model, x):
        found = hidden(block.inputs[0])
        assert torch.equal(found, expected[block.name])
        assert torch.equal(found, untouched[block.name]) == (block.name != names[2])
        if block.name == names[1]:
            for layer in block.layers().values():
                layer.weight.data.mul_(0.5)


def test_calibration_data_come_in_every_form_and_any_number(monkeypatch):
    model, x = language_model("llama"), tokens(7)
    expected = torch.cat([hidden(given) for given in last_inputs(model, x)])
    monkeypatch.setattr(walking, "CHUNK", 3)
    assert [len(hidden(given)) for given in last_inputs(model, x)] == [3, 3, 1]
    mask = torch.ones_like(x)
    for data in (x, (x, x), [x[:4], x[4:]], [(x, x)], [{"input_ids": x, "attention_mask": mask}]):
        found = torch.cat([hidden(given) for given in last_inputs(model, data)])
        torch.testing.assert_close(found, expected)


def test_padding_is_hidden_from_the_blocks():
    model, x = language_model("llama"), tokens(2)
    mask = torch.ones_like(x)
    mask[1, :6] = 0
    batch = {"input_ids": x, "attention_mask": mask}
    found = [hidden(given) for given in last_inputs(model, [batch])]
    with torch.no_grad():
        expected = model.model(**batch, output_hidden_states=True).hidden_states[2]
    assert torch.equal(found[0], expected)


def last_inputs(model, data):
    *_, last = ((list(map(dict, block.inputs))) for block in walk(model, data))
    return last


def test_only_the_hidden_states_of_one_block_are_held():
    model, x = language_model("llama"), tokens()
    calls = walking.arguments(model, find_blocks(model), x)
    assert [hidden(given) is None for given in calls[0]] == [False, True, True]
    before = []
    for block in walk(model, x):
        assert all(not given for given in before)
        before = block.inputs


def test_a_block_can_be_made_ready_before_its_visit_and_let_go_after_its_outputs_are_known():
    model, x = language_model("llama"), tokens()
    expected = {block.name: hidden(block.inputs[0]) for block in walk(model, x)}
    there, events = {name: copy.deepcopy(block.state_dict()) for name, block in find_blocks(model).items()}, []

    class Around:
        def __init__(self, name, module):
            self.name, self.module = name, module

        def __enter__(self):
            events.append(f"{self.name} in")
            self.module.to_empty(device="cpu")
            self.module.load_state_dict(there[self.name])

        def __exit__(self, *error):
            events.append(f"{self.name} out")
            self.module.to("meta")

    for block in find_blocks(model).values():
        block.to("meta")
    for block in walk(model, x, around=Around):
        events.append(block.name)
        assert torch.equal(hidden(block.inputs[0]), expected[block.name])
    assert events == [f"{name}{what}" for name in block_names(model) for what in (" in", "", " out")]


# ── which blocks ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers"),
        ("opt", "model.decoder.layers"),
        ("gpt2", "transformer.h"),
        ("mixtral", "model.layers"),
    ],
)
def test_the_blocks_are_found_by_their_weights(family, name):
    model = as_linear(language_model(family))
    assert list(find_blocks(model)) == [f"{name}.{i}" for i in range(3)]
    assert list(find_blocks(model, name)) == list(find_blocks(model))


def test_another_list_can_be_named():
    model = as_linear(language_model("mixtral"))
    name = "model.layers.1.mlp.experts.up_proj"
    assert list(find_blocks(model, name)) == [f"{name}.{i}" for i in range(4)]


def test_a_list_that_is_not_there_is_an_error_that_names_those_that_are():
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no list of blocks 'layers'.* in them: 'model.layers'"):
        find_blocks(language_model("llama"), "layers")
    with pytest.raises(ValueError, match=r"Sequential has no list of blocks: .* in them: none"):
        find_blocks(nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.ReLU()])))
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel has no list of blocks: .*tasks.linears.as_linear"):
        find_blocks(language_model("gpt2"))


# ── what goes wrong ───────────────────────────────────────────────────────────────────────────────────────────────


class Stack(nn.Module):
    """Blocks, and how to get from one to the next."""

    def __init__(self, between, kind=nn.Linear):
        super().__init__()
        self.blocks, self.between = nn.ModuleList(kind(4, 4) for _ in range(3)), between

    def forward(self, x):
        return self.between(self, x)


class Pair(nn.Linear):
    """As blocks of older versions of transformers, which return tuples."""

    def forward(self, x):
        return super().forward(x), "weights"


def the_first_of_two(self, x):
    for block in self.blocks:
        x = block(x)[0]
    return x


def one_after_the_other(self, x):
    for block in self.blocks:
        x = block(x)
    return x


def doubled(self, x):
    for block in self.blocks:
        x = 2 * block(x)
    return x


def two_at_once(self, x):
    for block in self.blocks:
        x, _ = block(x)
    return x


def first_twice(self, x):
    return one_after_the_other(self, self.blocks[0](x))


def without_the_second(self, x):
    return self.blocks[2](self.blocks[0](x))


@pytest.mark.parametrize(
    "model", [Stack(one_after_the_other), Stack(the_first_of_two, Pair)], ids=["tensors", "tuples"]
)
def test_any_stack_of_blocks_is_walked(model):
    x = torch.randn(2, 3, 4)
    *_, (block, given) = ((block, dict(block.inputs[0])) for block in walk(model, x))
    assert torch.equal(block.output(given), model(x))


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (doubled, "does more between its blocks than to hand the hidden states on"),
        (two_at_once, "does more between its blocks than to hand the hidden states on"),
        (first_twice, "does not call its 3 blocks one after the other, each once"),
        (without_the_second, "does not call its 3 blocks one after the other, each once"),
    ],
)
def test_a_model_that_does_something_else_with_its_blocks_is_refused(between, message):
    with pytest.raises(ValueError, match=message):
        next(walk(Stack(between), torch.randn(3, 3, 4)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(0, 8, dtype=torch.int64), "the calibration data are empty"),
        (torch.full((1, 8), 256), "token ids run from 0 to 255 in this model, and from 256 to 256 in the data"),
        (torch.full((1, 8), -1), "token ids run from 0 to 255"),
        ([{"input_ids": torch.full((1, 8), 300)}], "token ids run from 0 to 255"),
    ],
)
def test_data_that_the_model_cannot_read_are_refused(data, message):
    model = language_model("llama")
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        next(walk(model, data))
    assert unchanged(model, before)


def test_an_error_of_the_model_itself_is_not_hidden():
    with pytest.raises(IndexError):  # GPT-2 has no more than 64 positions
        next(walk(as_linear(language_model("gpt2")), tokens(1, 65)))


def state_of(model):
    forwards = {name: module.__dict__.get("forward") for name, module in model.named_modules()}
    return snapshot(model), forwards, model.config.use_cache


def unchanged(model, before):
    now = state_of(model)
    return same(now[0], before[0]) and now[1:] == before[1:]


@pytest.mark.parametrize("place", range(3))
def test_after_an_exception_the_model_is_as_it_was(place):
    model = language_model("llama").train()
    model.model.layers[1].eval()
    model.lm_head.weight.requires_grad_(False)
    before, names = state_of(model), block_names(model)

    def visit():
        for block in walk(model, tokens()):
            assert not any(module.training for module in model.modules())
            assert not model.config.use_cache
            if block.name == names[place]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        visit()
    assert unchanged(model, before)


def test_after_an_exception_while_arguments_are_noted_the_model_is_as_it_was(monkeypatch):
    model = language_model("llama").train()
    before = state_of(model)
    monkeypatch.setattr(model.model.rotary_emb, "forward", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(walk(model, tokens()))
    monkeypatch.undo()
    assert unchanged(model, before)


def test_somebody_elses_forward_stays_in_place():
    """As libraries that move layers between devices put one there."""
    model, x = language_model("llama"), tokens()
    block, calls = model.model.layers[1], []
    original = block.forward

    def moved(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    block.forward = moved
    found = last_inputs(model, x)
    assert block.__dict__["forward"] is moved
    assert len(calls) == 1
    del block.forward
    assert torch.equal(hidden(found[0]), hidden(last_inputs(model, x)[0]))


def test_the_model_says_the_same_after_a_walk():
    model, x = language_model("llama"), tokens()
    before = logits(model, x)
    assert sum(1 for _ in walk(model, x)) == 3
    assert torch.equal(logits(model, x), before)
    assert isinstance(model, transformers.LlamaForCausalLM)
