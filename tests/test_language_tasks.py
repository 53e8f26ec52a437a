"""Language models as tasks: what they read, how they are measured, and how any model of transformers becomes one."""

import math
import random

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from language_models import FAMILIES, language_model, logits, plain, text, tokens
from torch import nn

from pruninglab import measure, task
from pruninglab.cli import main
from pruninglab.files import load_tensors
from pruninglab.language import one_shot, repaired, scored
from pruninglab.layers import prunable
from pruninglab.tasks import LanguageTask, Training
from pruninglab.tasks import text as reading
from pruninglab.tasks.language import SHIPPED
from pruninglab.tasks.linears import Experts, as_linear, as_published

TEXT = "\n\n".join(text())


def saved(tmp_path, family="llama", dtype=torch.float32, **options):
    """A folder with a model, and the model."""
    model = language_model(family, **options).to(dtype)
    model.save_pretrained(tmp_path / family)
    return tmp_path / family, model


def read(folder, **options) -> LanguageTask:
    return task.from_pretrained(folder, **{"text": TEXT, "tokenizer": "bytes", "length": 24} | options)


@pytest.fixture(scope="module")
def llama():
    return language_model("llama")


@pytest.fixture(scope="module")
def home(llama) -> LanguageTask:
    """A task whose model is `llama`."""
    splits = reading.splits(reading.split(TEXT), reading.as_bytes, 16)
    return LanguageTask("letters", lambda: splits, lambda: language_model("llama"), Training(steps=5, batch=4, lr=1e-3))


# ── text ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def by_split(text: str) -> dict[str, str]:
    """Paragraph → split."""
    return {paragraph: name for name, part in reading.split(text).items() for paragraph in part.split("\n\n")}


def test_each_paragraph_is_in_one_split_once_and_a_tenth_each_is_held_out():
    paragraphs = text(1000)
    parts = {name: part.split("\n\n") for name, part in reading.split("\n\n".join(paragraphs * 2)).items()}
    assert sorted(paragraph for part in parts.values() for paragraph in part) == sorted(paragraphs)
    assert all(70 <= len(parts[name]) <= 130 for name in ("validation", "test"))


def test_the_split_of_a_paragraph_depends_on_nothing_else():
    paragraphs = text()
    before = by_split("\n\n".join(paragraphs))
    shuffled = random.Random(0).sample(paragraphs, len(paragraphs))
    assert by_split("\n\n".join(shuffled)) == before
    edited = [p + "!" if i % 2 else p for i, p in enumerate(paragraphs)]
    after = by_split("\n\n".join(edited))
    assert all(after[p] == before[p] for p in paragraphs[::2])
    assert any(after[p + "!"] != before[p] for p in paragraphs[1::2])


@pytest.mark.parametrize("gap", ["\n\n\n", "\n \t\n", "\r\n\r\n"])
def test_what_is_between_paragraphs_does_not_matter(gap):
    assert reading.split(gap.join(text())) == reading.split(TEXT)


def test_paragraphs_keep_their_indentation_and_line_breaks():
    code = "    if x:\n        y = 1"
    assert any(code in part.split("\n\n") for part in reading.split(f"{TEXT}\n\n{code}\n\n{TEXT}").values())


def test_a_text_too_short_to_split_is_an_error():
    with pytest.raises(ValueError, match="too short: no paragraph of it is for"):
        reading.split("one paragraph")


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 30))
def test_windows_are_pieces_and_what_follows_each_token(length, stride, extra):
    x, y = reading.windows(range(length + 1 + extra), length, stride)
    starts = range(0, extra + 1, stride)
    assert x.tolist() == [[*range(s, s + length)] for s in starts]
    assert y.tolist() == [[*range(s + 1, s + length + 1)] for s in starts]


def test_windows_do_not_overlap_if_nothing_is_said_and_those_for_training_do():
    parts = reading.splits({"train": "abcdefghi", "test": "abcdefghi"}, reading.as_bytes, 4)
    assert [reading.from_bytes(row) for row in parts["test"][0]] == ["abcd", "efgh"]
    assert [reading.from_bytes(row) for row in parts["train"][0]] == ["abcd", "cdef", "efgh"]


@pytest.mark.parametrize(("number", "length", "message"), [(8, 8, "has 8 tokens"), (8, 0, "at least 1 token")])
def test_windows_that_cannot_be_cut_are_an_error(number, length, message):
    with pytest.raises(ValueError, match=message):
        reading.windows(range(number), length, what="test text")


@pytest.mark.parametrize("text", ["", "a\r\n\x00", "naïve 中文 🙂"])
def test_bytes_give_the_text_again(text):
    assert reading.from_bytes(reading.as_bytes(text)) == text


# ── measuring and writing ─────────────────────────────────────────────────────────────────────────────────────────


def by_hand(model, x, y):
    """Cross-entropy of each token, one window at a time."""
    return torch.stack(
        [
            -logits(model, row[None])[0].log_softmax(1).gather(1, then[:, None])[:, 0]
            for row, then in zip(x, y, strict=True)
        ]
    )


def test_nats_perplexity_and_accuracy_are_those_of_a_plain_loop(home, llama, monkeypatch):
    monkeypatch.setattr("pruninglab.tasks.language.AT_A_TIME", 100)  # so that the pieces do not come out even
    x, y = home.data["test"]
    losses = by_hand(llama, x, y)
    assert home.nats(llama) == pytest.approx(losses.double().mean().item(), rel=1e-5)
    assert home.perplexity(llama) == pytest.approx(losses.double().mean().exp().item(), rel=1e-5)
    assert home.accuracy(llama) == (logits(llama, x).argmax(2) == y).double().mean().item()
    few = [0, len(x) // 2, len(x) - 1]
    assert len(x) % 2 == 1  # so that the middle one is in the middle
    assert home.nats(llama, n=3) == pytest.approx(losses[few].double().mean().item(), rel=1e-5)
    assert home.nats(llama, (x[:4], y[:4])) == pytest.approx(losses[:4].double().mean().item(), rel=1e-5)
    assert home.nats(llama, n=10**6) == home.nats(llama)


def test_bits_per_byte_count_bytes_and_not_tokens(home, llama):
    assert home.bits_per_byte(llama) == pytest.approx(home.nats(llama) / math.log(2))  # a token is a byte here
    pairs = LanguageTask("pairs", home.load, home.build, home.training, decode=lambda tokens: "ab" * len(tokens))
    assert pairs.bits_per_byte(llama) == pytest.approx(home.bits_per_byte(llama) / 2)
    assert pairs.bits_per_byte(llama, n=3) == pytest.approx(home.nats(llama, n=3) / math.log(2) / 2)


def test_what_the_test_text_leaves_open_is_counted_in_tokens(home, llama):
    p, error = measure.accuracy(llama, home)
    assert error == pytest.approx(math.sqrt(p * (1 - p) / home.data["test"][1].numel()))


def test_measuring_and_writing_leave_the_modes_of_a_model_alone(home, llama):
    llama.train()
    llama.model.layers[1].eval()
    modes = [module.training for module in llama.modules()]
    home.nats(llama, n=2)
    home.generate(llama, "abc", 2)
    assert [module.training for module in llama.modules()] == modes
    llama.eval()


def test_text_is_generated_as_transformers_does(home, llama):
    prompt = "first of all"
    read = torch.tensor([reading.as_bytes(prompt)])
    theirs = llama.generate(read, attention_mask=torch.ones_like(read), max_new_tokens=20, do_sample=False)
    assert home.generate(llama, prompt, 20) == reading.from_bytes(theirs[0])


def test_drawing_depends_on_the_seed_and_on_the_temperature(home, llama):
    drawn = [home.generate(llama, "ab", 20, temperature=2.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert home.generate(llama, "ab", 20, temperature=1e-4) == home.generate(llama, "ab", 20)


def test_the_model_looks_back_only_so_far(home, llama):
    one, other = (home.generate(llama, prompt, 5, memory=4)[-5:] for prompt in ("aaaasame", "bbbbsame"))
    assert one == other
    assert home.generate(llama, "aaaasame", 5) != home.generate(llama, "aaaasame", 5, memory=1)


def test_what_cannot_be_measured_is_an_error(home):
    few = language_model("llama", vocab_size=97)
    with pytest.raises(ValueError, match=r"token ids run from 0 to 96 in this model.*122"):
        home.perplexity(few)
    with pytest.raises(ValueError, match=r"token ids run .* in the prompt"):
        home.generate(few, "abc")
    with pytest.raises(ValueError, match="at least one token"):
        home.generate(few, "")
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        home.generate(few, "a", temperature=-1)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        home.nats(few, n=0)
    with pytest.raises(ValueError, match="unknown split 'tset'"):
        home.nats(few, "tset")


def test_training_lowers_the_loss(home):
    model = language_model("llama", initializer_range=0.02)
    losses = home.train(model, steps=30, lr=0.1)
    assert losses[-1] < losses[0] - 0.5
    assert home.nats(model, "validation") < losses[0] - 0.5


# ── any model of transformers ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_each_family_is_unpacked_pruned_packed_and_read_again(family, tmp_path):
    folder, published = saved(tmp_path, family)
    x, home = tokens(), read(folder)
    model = home.trained()
    torch.testing.assert_close(logits(model, x), logits(published, x), rtol=1e-4, atol=1e-4)
    inside = sum(layer.weight.numel() for layer in prunable(model).values())
    matrices = {id(p): p.numel() for name, p in published.named_parameters() if p.ndim > 1 and "emb" not in name}
    routers = sum(p.numel() for name, p in published.named_parameters() if name.endswith(".mlp.gate.weight"))
    embeddings = 0 if family != "gpt2" else published.transformer.wte.weight.numel() + 64 * 32
    assert inside == sum(matrices.values()) - routers - embeddings

    masks = one_shot(model, x, scored("magnitude"), 0.5)
    assert masks.sparsity() == pytest.approx(0.5, abs=0.01)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = logits(model, x)
    home.save(model, tmp_path / "pruned")
    again = plain(tmp_path / "pruned")
    torch.testing.assert_close(logits(again, x), expected, rtol=1e-4, atol=1e-4)
    assert again.config.use_cache
    assert again.state_dict().keys() == published.state_dict().keys()
    now = model.state_dict()  # the model itself stays unpacked and as it was
    assert before.keys() == now.keys()
    assert all(torch.equal(before[name], now[name]) for name in now)
    zeros = sum(int((p == 0).sum()) for p in again.parameters()) - sum(
        int((p == 0).sum()) for p in published.parameters()
    )
    assert zeros == sum(int((~mask).sum()) for mask in masks.values())


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_packing_undoes_unpacking(family, mode):
    packed = language_model(family)
    unpacked = as_linear(language_model(family).train(mode))
    assert all(module.training == mode for module in unpacked.modules())
    assert family == "gpt2" or unpacked.state_dict().keys() != packed.state_dict().keys()
    state = as_published(unpacked).state_dict()
    assert all(module.training == mode for module in unpacked.modules())
    assert state.keys() == packed.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in packed.state_dict().items())


def test_experts_do_in_half_precision_what_the_packed_ones_do():
    packed = language_model("mixtral", experts_implementation="eager").to(torch.bfloat16).model.layers[0].mlp.experts
    x = torch.randn(30, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights, index = torch.rand(30, 4, generator=torch.Generator().manual_seed(1)).topk(2)
    expected = packed(x, index, weights)
    torch.testing.assert_close(Experts(packed)(x, index, weights), expected)


def test_experts_of_another_kind_stay_packed_and_it_is_said():
    class Limited(type(language_model("mixtral").model.layers[0].mlp.experts)):
        def _apply_gate(self, gate_up):
            gate, up = gate_up.chunk(2, -1)
            return self.act_fn(gate.clamp(max=7)) * up

        def forward(self, x, index, weights):
            result = torch.zeros_like(x)
            for e in range(self.num_experts):
                token, place = torch.where(index == e)
                y = self._apply_gate(x[token] @ self.gate_up_proj[e].T) @ self.down_proj[e].T
                result.index_add_(0, token, y * weights[token, place, None])
            return result

    model = language_model("mixtral")
    limited = model.model.layers[1].mlp.experts
    limited.__class__ = Limited
    with pytest.warns(UserWarning, match="Limited packs its experts in a way that is not known"):
        as_linear(model)
    assert model.model.layers[1].mlp.experts is limited
    assert isinstance(model.model.layers[0].mlp.experts, Experts)


@pytest.mark.parametrize("step", [scored("wanda"), repaired()], ids=["wanda", "sparsegpt"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_half_precision_stays_half_precision(family, step, tmp_path):
    folder, _ = saved(tmp_path, family, torch.bfloat16)
    home = read(folder)
    model = home.trained()
    dense = home.perplexity(model, n=4)
    masks = one_shot(model, home.calibration(8)[0], step, 0.5)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert masks.sparsity() == pytest.approx(0.5, abs=0.01)
    assert math.isfinite(home.perplexity(model, n=4))
    assert home.perplexity(model, n=4) != dense
    home.save(model, tmp_path / "pruned")
    again = plain(tmp_path / "pruned")
    assert again.dtype == torch.bfloat16
    torch.testing.assert_close(logits(again, tokens()), logits(model, tokens()), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_tied_embeddings_are_not_pruned_and_stay_tied(family, tmp_path):
    folder, published = saved(tmp_path, family, tie_word_embeddings=True)
    model = read(folder).trained()
    masks = one_shot(model, tokens(), scored("wanda"), 0.5)
    assert not [name for name in masks if "head" in name or "wte" in name or "embed" in name]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, published.get_input_embeddings().weight)
    read(folder).save(model, tmp_path / "pruned")
    again = plain(tmp_path / "pruned")
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    torch.testing.assert_close(logits(again, tokens()), logits(model, tokens()), rtol=1e-4, atol=1e-4)


def test_each_trained_network_is_a_fresh_one_and_the_only_one(tmp_path):
    folder, published = saved(tmp_path)
    home = read(folder)
    first = home.trained()
    nn.init.zeros_(first.lm_head.weight)
    assert torch.equal(home.trained().lm_head.weight, published.lm_head.weight)
    assert not home.trained().config.use_cache
    with pytest.raises(ValueError, match="seed=0 and until=1 are all there is"):
        home.trained(1)
    with pytest.raises(ValueError, match="seed=0 and until=1 are all there is"):
        home.trained(0, until=0.5)
    untrained = home.model(3)
    assert untrained.state_dict().keys() == first.state_dict().keys()
    assert not torch.equal(untrained.lm_head.weight, published.lm_head.weight)


@pytest.fixture(scope="module")
def words():
    """A tokenizer of words, as transformers saves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    table = {"[UNK]": 0} | {f"{i}": i for i in range(1, 200)}
    made = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


def test_the_tokenizer_of_the_folder_is_taken_and_saved_again(words, tmp_path):
    folder, _ = saved(tmp_path)
    words.save_pretrained(folder)
    home = read(folder, tokenizer=None, length=4)
    paragraphs = reading.split(TEXT)["test"].split("\n\n")
    expected = [number for p in paragraphs for number in (0, int(p.split()[1]))][:4]
    assert home.data["test"][0][0].tolist() == expected
    home.save(home.trained(), tmp_path / "again")
    assert read(tmp_path / "again", tokenizer=None).encode("7 8 x") == [7, 8, 0]
    assert read(folder, tokenizer=words).encode("7 8 x") == [7, 8, 0]
    assert read(tmp_path / "again", tokenizer=str(folder)).encode("7 8 x") == [7, 8, 0]


def test_text_comes_from_a_string_a_file_or_split_by_split(tmp_path):
    folder, _ = saved(tmp_path)
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    own = {"train": "abc" * 50, "validation": "def" * 50, "test": "ghi" * 50}
    expected = read(folder).data
    for path in (tmp_path / "book.txt", str(tmp_path / "book.txt")):
        assert all(torch.equal(read(folder, text=path).data[name][0], x) for name, (x, _) in expected.items())
    assert reading.from_bytes(read(folder, text=own).data["test"][0][0]) == ("ghi" * 8)
    assert len(read(folder, text=None).data["test"][0]) > 1000  # Python's documentation


def test_windows_are_as_long_as_positions_allow(tmp_path):
    folder, _ = saved(tmp_path)
    assert read(folder, length=None).data["test"][0].shape[1] == 64
    with pytest.raises(ValueError, match=r"windows of 65 tokens are too long.*knows 64 positions"):
        read(folder, length=65)


def test_bad_input_is_refused_with_the_reason(tmp_path):
    folder, _ = saved(tmp_path)
    with pytest.raises(ValueError, match="has 6 tokens: too few for one window of 24"):
        read(folder, text={"train": "x" * 50, "validation": "x" * 50, "test": "ghi ij"}).data  # noqa: B018
    with pytest.raises(ValueError, match="needs train, validation and test; test, train missing"):
        read(folder, text={"validation": "x"})
    with pytest.raises(ValueError, match="neither a file nor a text of several paragraphs"):
        read(folder, text="nothing.txt" * 50)
    with pytest.raises(RuntimeError, match=r"tokenizer of .* cannot be had .* \(or tokenizer='bytes'\)"):
        read(folder, tokenizer=None)
    with pytest.raises(RuntimeError, match=r"model .* cannot be had .* needs config.json"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError, match=r"model .* cannot be had"):
        read(tmp_path / "empty")
    with pytest.raises(TypeError, match="only models of transformers"):
        read(folder).save(nn.Linear(2, 2), tmp_path / "linear")


def test_tokens_beyond_the_vocabulary_are_refused_when_the_text_is_read(tmp_path):
    folder, _ = saved(tmp_path, vocab_size=97)
    with pytest.raises(ValueError, match=r"from 0 to 96 in this model.*in the train text"):
        read(folder).data  # noqa: B018


def test_weights_that_would_have_to_be_unpickled_are_not_read(tmp_path):
    folder, model = saved(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(RuntimeError, match=r"model .* cannot be had"):
        read(folder).trained()


def test_a_broken_file_is_an_error_that_names_the_model(tmp_path):
    folder, _ = saved(tmp_path)
    (folder / "model.safetensors").write_bytes(b"\x10" * 100)
    with pytest.raises(RuntimeError, match=r"model .* cannot be had"):
        read(folder).trained()


def test_the_built_in_task_is_ready_and_bytes_are_its_tokens():
    home = task("tiny-llama")
    assert {name: x.shape[1] for name, (x, _) in home.data.items()} == dict.fromkeys(home.data, 128)
    assert home.decode(home.encode("naïve")) == "naïve"
    assert sum(p.numel() for p in home.model(0).parameters()) == pytest.approx(1.28e6, rel=0.01)


@pytest.mark.slow
def test_the_network_that_ships_can_be_made_again(tmp_path):
    home = task("tiny-llama")
    assert main(["tiny-llama", "--out", str(tmp_path / "again.safetensors")]) == 0
    again = home.model(0)
    again.load_state_dict(load_tensors(tmp_path / "again.safetensors")[0])
    assert home.perplexity(again) == pytest.approx(home.perplexity(home.trained()), rel=0.02)


def test_the_network_that_ships_is_a_trained_one_and_small():
    home = task("tiny-llama")
    assert SHIPPED.stat().st_size < 8e6
    assert home.bits_per_byte(home.trained(), n=64) < 1.8
    assert home.bits_per_byte(home.model(0), n=16) > 7
