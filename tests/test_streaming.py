"""Pruning a checkpoint block by block: the result of `one_shot`, without ever holding the model."""

import gc
import json
import shutil
from itertools import pairwise

import pytest
import torch
import transformers
from language_models import FAMILIES, language_model, logits, plain, tokens
from safetensors.torch import load_file, save_file

from pruninglab import task
from pruninglab.language import one_shot, repaired, scored, streaming
from pruninglab.language.checkpoint import INDEX, Checkpoint
from pruninglab.language.streaming import stream

X = tokens(20)  # more than go through a block at a time
SMALL_FILES = "20KB"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family → a folder with a checkpoint in many files; made once."""
    made = {}

    def folder(family, **options):
        key = (family, *sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(family)
            dtype = options.pop("dtype", torch.float32)
            language_model(family, **options).to(dtype).save_pretrained(made[key], max_shard_size=SMALL_FILES)
        return made[key]

    return folder


@pytest.fixture
def source(folders):
    return folders("llama")


def tensors(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def at_once(folder, out, step, sparsity=0.5):
    """`one_shot` on the whole model, saved; and its masks."""
    home = task.from_pretrained(folder, tokenizer="bytes", length=24)
    model = home.trained()
    masks = one_shot(model, X, step, sparsity)
    home.save(model, out)
    return tensors(out), masks


@pytest.mark.parametrize(
    ("family", "step", "options"),
    [
        *((family, scored("wanda"), {}) for family in FAMILIES),
        *((family, repaired(), {}) for family in ("llama", "gpt2")),
        ("qwen2", scored("magnitude", unit="2:4"), {}),
        ("llama", repaired(), {"dtype": torch.bfloat16}),
        ("llama", scored("wanda"), {"tie_word_embeddings": True}),
    ],
)
def test_the_result_is_that_of_one_shot_on_the_whole_model(family, step, options, folders, tmp_path):
    folder = folders(family, **options)
    assert len(list(folder.glob("*.safetensors"))) > 2
    expected, masks = at_once(folder, tmp_path / "whole", step)
    zeros = stream(folder, tmp_path / "streamed", X, step, 0.5)
    assert equal(tensors(tmp_path / "streamed"), expected)
    assert torch.equal(logits(plain(tmp_path / "streamed"), X), logits(plain(tmp_path / "whole"), X))
    assert zeros.keys() == masks.keys()
    for name, mask in masks.items():
        assert zeros[name] >= 1 - mask.double().mean()
    assert {name: tensor.shape for name, tensor in expected.items()} == {
        name: tensor.shape for name, tensor in tensors(folder).items()
    }


def test_what_older_models_name_or_compute_in_their_own_way_is_known(tmp_path):
    """GPT-NeoX's files call the output layer otherwise; each block of GPT-J computes a buffer of its own."""
    sizes = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": None}
    for config in (
        transformers.GPTNeoXConfig(**sizes, **ends, intermediate_size=48),
        transformers.GPTJConfig(vocab_size=256, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4, **ends),
    ):
        folder, out = tmp_path / config.model_type, tmp_path / f"{config.model_type}-streamed"
        transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
        expected, _ = at_once(folder, tmp_path / f"{config.model_type}-whole", repaired())
        stream(folder, out, X, repaired(), 0.5)
        assert equal(tensors(out), expected)


def test_names_without_the_prefix_and_tensors_that_nobody_uses_are_understood(folders, tmp_path):
    """As in the first GPT-2 checkpoints."""
    published = language_model("gpt2")
    folder, out = tmp_path / "old", tmp_path / "out"
    published.save_pretrained(folder)
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors(folder).items()}
    mask = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(3)}
    save_file(old | mask, folder / "model.safetensors", {"format": "pt"})
    stream(folder, out, X, scored("wanda"), 0.5)
    stream(folders("gpt2"), tmp_path / "expected", X, scored("wanda"), 0.5)
    assert tensors(out).keys() == old.keys()
    assert torch.equal(logits(plain(out), X), logits(plain(tmp_path / "expected"), X))


def test_weights_are_of_the_dtype_that_the_configuration_says(folders, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(folders("gpt2"), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "float32"
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}), encoding="utf-8")
    expected, _ = at_once(folder, tmp_path / "whole", repaired())
    stream(folder, tmp_path / "out", X, repaired(), 0.5)
    assert equal(tensors(tmp_path / "out"), expected)
    assert {tensor.dtype for tensor in expected.values()} == {torch.bfloat16}
    del config["dtype"]  # then it is that of the files
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    stream(folder, tmp_path / "again", X, scored("wanda"), 0.5)
    assert {tensor.dtype for tensor in tensors(tmp_path / "again").values()} == {torch.float32}


def test_each_layer_may_lose_another_share(source, tmp_path):
    model = plain(source)
    names = [name for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    shares = {name: (i % 4) / 4 for i, name in enumerate(names)}
    zeros = stream(source, tmp_path / "out", X, scored("magnitude"), shares)
    assert zeros == pytest.approx(shares, abs=0.01)
    written = tensors(tmp_path / "out")
    assert {name: float((written[name] == 0).double().mean()) for name in names} == zeros


def test_what_belongs_to_the_model_is_copied_and_the_source_stays_as_it_is(folders, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(folders("llama"), folder)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    (folder / "notes.pdf").write_bytes(b"x")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    stream(folder, tmp_path / "out", X, scored("magnitude"), 0.5)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    out = {path.name for path in (tmp_path / "out").iterdir()}
    shards = {f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)}
    assert out == shards | {INDEX, "config.json", "generation_config.json", "tokenizer.json"}
    index = json.loads((tmp_path / "out" / INDEX).read_text(encoding="utf-8"))
    written = tensors(tmp_path / "out")
    assert index["weight_map"].keys() == written.keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in written.values())
    assert (tmp_path / "out" / "config.json").read_bytes() == before["config.json"]


# ── interruptions ─────────────────────────────────────────────────────────────────────────────────────────────────


def counted(step, stop_at=None):
    """The step, which notes what it was called with, and may be interrupted after a block is done halfway."""
    called = []

    def again(block, shares):
        called.append(block.name)
        result = step(block, shares)
        if len(called) == stop_at:
            raise KeyboardInterrupt
        return result

    again.__name__ = step.__name__
    return again, called


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_an_interrupted_run_goes_on_where_it_was(source, tmp_path, stop_at):
    step = repaired()
    stream(source, tmp_path / "expected", X, step, 0.5)
    interrupted, first = counted(step, stop_at)
    with pytest.raises(KeyboardInterrupt):
        stream(source, tmp_path / "out", X, interrupted, 0.5)
    shards = list((tmp_path / "out").iterdir())
    assert len(first) == len(shards) == stop_at  # those before, and what is outside the blocks
    with pytest.raises(ValueError, match="Unrecognized model"):
        plain(tmp_path / "out")
    times = {path.name: path.stat().st_mtime_ns for path in shards}
    again, second = counted(step)
    zeros = stream(source, tmp_path / "out", X, again, 0.5)
    assert [*first[:-1], *second] == [f"model.layers.{i}" for i in range(3)]
    assert equal(tensors(tmp_path / "out"), tensors(tmp_path / "expected"))
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in times} == times
    once_more, third = counted(step)
    assert stream(source, tmp_path / "out", X, once_more, 0.5) == zeros
    assert not third


def test_a_file_is_written_whole_or_not_at_all(source, tmp_path, monkeypatch):
    import safetensors.torch

    write = safetensors.torch.save_file

    def broken(tensors, path, metadata=None):
        write(tensors, path, metadata=metadata)
        if any("layers.1" in name for name in tensors):
            path.write_bytes(path.read_bytes()[:100])
            raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", broken)
    with pytest.raises(OSError, match="no space left"):
        stream(source, tmp_path / "out", X, scored("wanda"), 0.5)
    monkeypatch.undo()
    assert len(list((tmp_path / "out").iterdir())) == 2
    stream(source, tmp_path / "out", X, scored("wanda"), 0.5)
    stream(source, tmp_path / "expected", X, scored("wanda"), 0.5)
    assert equal(tensors(tmp_path / "out"), tensors(tmp_path / "expected"))


def test_what_another_run_has_left_is_not_mixed_with_this_one(source, folders, tmp_path):
    out = tmp_path / "out"
    stream(source, out, X, scored("wanda"), 0.5)
    before = tensors(out)
    other = tmp_path / "other"
    language_model("llama", seed=1).save_pretrained(other, max_shard_size=SMALL_FILES)
    for changed in (
        (source, out, X, scored("wanda"), 0.6),
        (source, out, X, scored("magnitude"), 0.5),
        (source, out, tokens(20, seed=2), scored("wanda"), 0.5),
        (other, out, X, scored("wanda"), 0.5),
    ):
        with pytest.raises(ValueError, match=r"holds model-0000.*, which another run has made"):
            stream(*changed)
    assert equal(tensors(out), before)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "model.safetensors").write_bytes(b"no such file")
    with pytest.raises(ValueError, match=r"holds model.safetensors, which another run has made"):
        stream(source, tmp_path / "foreign", X, scored("wanda"), 0.5)


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────────


def held() -> int:
    """Bytes of all tensors that are alive, whoever holds them, but for what `fresh` does not look at."""
    alive = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor) and not thing.is_meta]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}.values())


@pytest.fixture
def fresh():
    """Whatever exists now is not looked at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_at_most_a_quarter_of_a_model_of_24_blocks_is_held(tmp_path, monkeypatch, fresh):
    deep = {"num_hidden_layers": 24, "hidden_size": 128, "intermediate_size": 352, "num_key_value_heads": 4}
    model = language_model("llama", **deep)
    model.save_pretrained(tmp_path / "deep")
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    block = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())
    outside = size - 24 * block
    assert size > 18e6
    assert held() >= size
    del model
    seen = []

    def look(function, *args):
        seen.append(held())
        result = function(*args)
        seen.append(held())
        return result

    step = scored("wanda")

    def watched(*args):
        return look(step, *args)

    load, save = Checkpoint.load, streaming.save_tensors
    monkeypatch.setattr(Checkpoint, "load", lambda *args: look(load, *args))
    monkeypatch.setattr(streaming, "save_tensors", lambda *args: look(save, *args))
    stream(tmp_path / "deep", tmp_path / "out", tokens(4), watched, 0.5)
    assert len(seen) == 2 * (2 * 25 + 24)
    assert max(seen) <= 0.25 * size
    assert block + outside <= max(seen) <= 1.5 * block + outside  # and it is what is meant to be held
    steps = [now for now in seen if now >= block + outside]
    assert len(steps) >= 3 * 24
    assert all(abs(one - other) < 0.6 * block for one, other in pairwise(steps))  # it does not grow
    assert held() < 0.1 * block  # nothing stays


def test_a_model_without_weights_knows_its_shapes_and_computes_its_buffers(folders, fresh):
    folder = folders("mixtral")
    checkpoint = Checkpoint(folder)
    assert all(parameter.is_meta for parameter in checkpoint.model.parameters())
    assert held() < 10_000  # buffers
    published = plain(folder)
    assert sum(p.numel() for p in checkpoint.model.parameters()) == sum(p.numel() for p in published.parameters())
    buffers = dict(published.named_buffers())
    assert equal(dict(checkpoint.model.named_buffers()), buffers)
    assert not torch.nn.Linear(2, 2).weight.is_meta


# ── what cannot be done ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_source_that_is_not_a_whole_checkpoint_is_refused(folders, tmp_path):
    args = (tmp_path / "out", X, scored("wanda"), 0.5)
    with pytest.raises(FileNotFoundError, match=r"needs config.json, and model.safetensors or"):
        stream(tmp_path / "nowhere", *args)
    with pytest.raises(ValueError, match="source and target are one folder"):
        stream(folders("llama"), folders("llama"), *args[1:])
    folder = tmp_path / "partial"
    language_model("llama").save_pretrained(folder)
    whole = load_file(folder / "model.safetensors")
    lacking = {name: tensor for name, tensor in whole.items() if name != "model.layers.1.mlp.up_proj.weight"}
    save_file(lacking, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"nothing in the checkpoint is known to be model.layers.1.mlp.up_proj.weight"):
        stream(folder, *args)
    short = whole | {"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 32)}
    save_file(short, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"up_proj.weight has shape \(3, 32\), but \(48, 32\) in the configuration"):
        stream(folder, *args)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="is quantised: prune first"):
        stream(folder, *args)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"in \[0, 1\), not 1.0"),
        ({"sparsity": {"model.layers.0": 0.5}}, "a share is needed for each layer"),
        ({"blocks": "layers"}, "no list of blocks 'layers'"),
        ({"data": torch.full((1, 8), 256)}, "token ids run from 0 to 255"),
        ({"data": tokens(0)}, "the calibration data are empty"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_pruned(source, tmp_path, options, message):
    step, called = counted(scored("wanda"))
    given = {"data": X, "step": step, "sparsity": 0.5} | options
    with pytest.raises(ValueError, match=message):
        stream(source, tmp_path / "out", **given)
    assert not called


def test_weights_that_blocks_share_are_refused(source, tmp_path, monkeypatch):
    load = Checkpoint.__init__

    def shared(self, *args):
        load(self, *args)
        self.also["model.layers.0.mlp.up_proj.weight"] = ["model.layers.1.mlp.up_proj.weight"]

    monkeypatch.setattr(Checkpoint, "__init__", shared)
    with pytest.raises(ValueError, match="are one tensor: prune the whole model at once"):
        stream(source, tmp_path / "out", X, scored("wanda"), 0.5)


def test_hidden_states_that_are_not_numbers_are_refused(folders, tmp_path):
    folder = tmp_path / "broken"
    model = language_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = torch.nan
    model.save_pretrained(folder)
    for step in (scored("wanda"), scored("magnitude")):
        with pytest.raises(ValueError, match="NaN"):
            stream(folder, tmp_path / "out", X, step, 0.5)
        assert not (tmp_path / "out" / INDEX).exists()
        shutil.rmtree(tmp_path / "out")
