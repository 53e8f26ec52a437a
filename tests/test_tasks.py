"""Tasks: data that do not leak, training that repeats itself to the bit, a cache that cannot lie."""

import copy
import itertools
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import blobs, make_task
from torch import nn

from pruninglab import Masks, files, prune, task
from pruninglab.tasks import TASKS, Training, data, models
from pruninglab.tasks.training import augmented, batch_index, evaluating, train

LOCAL = ["digits-mlp", "digits-cnn", "digits-resnet", "hard-digits-mlp", "hard-digits-cnn"]


def states_equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


# ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("load", "sizes", "side"), [(data.digits, (898, 180, 719), 8), (data.hard_digits, (3000, 500, 3000), 14)]
)
def test_shapes_and_scale(load, sizes, side):
    splits = load()
    assert list(splits) == ["train", "validation", "test"]
    for (x, y), n in zip(splits.values(), sizes, strict=True):
        assert x.shape == (n, 1, side, side)
        assert (x.dtype, y.dtype, y.shape) == (torch.float32, torch.int64, (n,))
        assert set(y.tolist()) == set(range(10))
    assert splits["train"][0].mean().abs() < 1e-4
    assert splits["train"][0].std() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("load", [data.digits, data.hard_digits])
def test_loading_twice_gives_the_same_and_touches_no_generator(load):
    before = torch.get_rng_state()
    one, other = load(), load()
    assert torch.equal(before, torch.get_rng_state())
    for name in one:
        assert torch.equal(one[name][0], other[name][0])
        assert torch.equal(one[name][1], other[name][1])


def test_digits_are_split_without_overlap_and_by_class():
    from sklearn.datasets import load_digits

    original = [tuple(image.flatten().tolist()) for image in torch.tensor(load_digits().images)]
    splits = data.digits()
    x = splits["train"][0]
    scale = 1 / (x[0].unique().diff().min() * 16)  # one grey level of 16 in standardised units
    zero = x.min()
    restored = {
        name: [tuple(image.flatten().round().tolist()) for image in (part - zero) * scale * 16]
        for name, (part, _) in splits.items()
    }
    assert sorted(itertools.chain(*restored.values())) == sorted(original), "each original exactly once"
    counts = {name: torch.bincount(y, minlength=10) / len(y) for name, (_, y) in splits.items()}
    for name in ("validation", "test"):
        assert (counts[name] - counts["train"]).abs().max() < 0.01


def test_hard_digits_of_different_splits_come_from_different_originals(monkeypatch):
    """With the distortion taken away, no original is in two splits."""
    numbered = torch.arange(1797.0).view(-1, 1, 1, 1).expand(-1, 1, 8, 8), torch.arange(1797) % 10
    monkeypatch.setattr(data, "_raw_digits", lambda: numbered)
    monkeypatch.setattr(data, "_distorted", lambda images, generator: images)
    monkeypatch.setattr(data, "_standardised", lambda splits: splits)
    seen = {name: set(x[:, 0, 0, 0].tolist()) for name, (x, _) in data.hard_digits().items()}
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other


def test_distortion_moves_pixels_but_keeps_the_digit_in_the_picture():
    images = torch.zeros(200, 1, 8, 8)
    images[:, :, 3:5, 3:5] = 1
    moved = data._distorted(images, torch.Generator().manual_seed(0))
    assert moved.shape == (200, 1, 14, 14)
    bright = moved.flatten(1).argmax(1)
    rows, columns = bright // 14, bright % 14
    assert ((rows - 6.5).abs() < 4).all()
    assert ((columns - 6.5).abs() < 4).all()
    assert len(bright.unique()) > 5
    corner = moved[:, :, :2, :2]
    assert corner.std() == pytest.approx(0.15, rel=0.1), "noise of 0.15"


# ── networks ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("digits-mlp", (1, 8, 8), 64 * 300 + 300 + 300 * 100 + 100 + 1000 + 10),
        ("hard-digits-mlp", (1, 14, 14), 196 * 300 + 300 + 300 * 100 + 100 + 1000 + 10),
        ("digits-cnn", (1, 8, 8), 160 + 16 * 32 * 9 + 32 + 128 * 64 + 64 + 650),
        ("digits-resnet", (1, 8, 8), None),
        ("hard-digits-cnn", (1, 14, 14), None),
        ("fashion-mnist-cnn", (1, 28, 28), None),
        ("cifar10-resnet20", (3, 32, 32), 269_722),  # He et al. 2015, table 6: 0.27 million
    ],
)
def test_each_network_fits_its_pictures(name, shape, parameters):
    model = task(name).model()
    assert not model.training
    assert model(torch.randn(2, *shape)).shape == (2, 10)
    if parameters is not None:
        assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_residual_path_has_no_parameters_and_carries_the_input():
    block = models.Block(4, 6, 2).eval()
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(3, 4, 6, 6)
    y = block(x)
    assert torch.equal(y[:, 1:5], x[:, :, ::2, ::2])
    assert not y[:, [0, 5]].any()


@pytest.mark.parametrize("name", LOCAL)
def test_the_same_seed_gives_the_same_weights_and_no_generator_is_touched(name):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (task(name).model(seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert states_equal(one, same)
    assert not states_equal(one, other)


# ── accuracy and calibration ──────────────────────────────────────────────────────────────────────────────────────


def test_accuracy_is_the_share_of_right_answers():
    task = make_task(norm=True)
    model = task.trained().train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    for split in ("train", "validation", "test"):
        x, y = task.data[split]
        with evaluating(model):
            right = [int(model(x[i : i + 1]).argmax()) == int(y[i]) for i in range(len(x))]
        assert task.accuracy(model, split) == sum(right) / len(right)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match=r"unknown split 'tset'\. Did you mean 'test'"):
        task.accuracy(model, "tset")


def test_the_loss_is_mean_cross_entropy(tiny):
    outputs, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    by_hand = -sum(float(o.log_softmax(0)[t]) for o, t in zip(outputs, y, strict=True)) / 5
    assert float(tiny.loss(outputs, y)) == pytest.approx(by_hand)


def test_calibration_draws_training_samples_without_replacement(tiny):
    x, y = tiny.data["train"]
    rows = {tuple(row.tolist()): int(label) for row, label in zip(x, y, strict=True)}
    drawn, labels = tiny.calibration(50, seed=1)
    assert drawn.shape == (50, 8)
    assert len({tuple(row.tolist()) for row in drawn}) == 50
    assert all(rows[tuple(row.tolist())] == int(label) for row, label in zip(drawn, labels, strict=True))
    again, other = tiny.calibration(50, seed=1)[0], tiny.calibration(50, seed=2)[0]
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)
    assert len(tiny.calibration(320)[0]) == 320


@pytest.mark.parametrize("n", [0, -1, 321])
def test_calibration_out_of_bounds(tiny, n):
    with pytest.raises(ValueError, match=rf"1 to 320 training samples, not {n}"):
        tiny.calibration(n)


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("n", "batch"), [(12, 4), (13, 4), (5, 8), (7, 1)])
def test_each_epoch_is_a_new_permutation(n, batch):
    per_epoch = max(n // batch, 1)
    epochs = []
    for epoch in range(3):
        steps = [batch_index(epoch * per_epoch + k, n, batch, seed=2).tolist() for k in range(per_epoch)]
        seen = list(itertools.chain(*steps))
        assert len(seen) == len(set(seen)) == per_epoch * min(batch, n)
        assert set(seen) <= set(range(n))
        if n % min(batch, n) == 0:
            assert sorted(seen) == list(range(n)), "each sample exactly once"
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]
    assert batch_index(0, n, batch, seed=3).tolist() != epochs[0][:batch]


def test_augmented_only_mirrors_and_shifts():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(300, 2, 9, 16, generator=generator) + 1
    out = augmented(images, generator)
    assert out.shape == images.shape
    reach, mirrored, shifts = 16 // 8, 0, set()
    for before, after in zip(images, out, strict=True):
        found = None
        for flip, down, right in itertools.product((False, True), range(-reach, reach + 1), range(-reach, reach + 1)):
            source = before.flip(2) if flip else before
            expected = source.roll((-down, -right), (1, 2))
            rows, columns = torch.arange(9) + down, torch.arange(16) + right
            expected[:, (rows < 0) | (rows >= 9)] = 0
            expected[:, :, (columns < 0) | (columns >= 16)] = 0
            if torch.equal(expected, after):
                found = flip, down, right
                break
        assert found is not None, "neither mirrored nor shifted, but something else"
        mirrored += found[0]
        shifts.add(found[1:])
        if len(shifts) == 25 and mirrored > 20:
            break
    assert len(shifts) > 15
    assert mirrored > 10


def reference_training(task, seed, steps):
    """SGD with momentum, weight decay and a cosine, written out."""
    model = task.model(seed)
    (x, y), how = task.data["train"], task.training
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    model.train()
    for step in range(steps):
        index = batch_index(step, len(x), how.batch, seed)
        grads = torch.autograd.grad(F.cross_entropy(model(x[index]), y[index]), list(model.parameters()))
        rate = how.lr * (1 + torch.cos(torch.tensor(torch.pi * step / how.steps)).item()) / 2
        with torch.no_grad():
            for (name, p), g in zip(model.named_parameters(), grads, strict=True):
                velocity[name] = how.momentum * velocity[name] + g + how.weight_decay * p
                p -= rate * velocity[name]
    return model.eval()


def test_training_is_what_the_recipe_says(tiny):
    model = tiny.model(1)
    losses = tiny.train(model, seed=1)
    assert len(losses) == 30
    assert losses[-1] < losses[0] / 2
    expected = reference_training(tiny, 1, 30)
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_training_repeats_itself_to_the_bit_and_touches_no_generator(tiny):
    one, other = tiny.model(), tiny.model()
    before = torch.get_rng_state()
    first = tiny.train(one, seed=4)
    torch.manual_seed(99)
    second = tiny.train(other, seed=4)
    assert first == second
    assert states_equal(one, other)
    torch.set_rng_state(before)
    tiny.train(tiny.model(), seed=4)
    assert torch.equal(before, torch.get_rng_state())


def test_training_in_two_parts_without_momentum_is_training_in_one():
    task = make_task(momentum=0.0)
    one, other = task.model(), task.model()
    whole = task.train(one)
    parts = task.train(other, stop=13) + task.train(other, start=13)
    assert parts == whole
    assert states_equal(one, other)


def test_masks_are_held_during_training(tiny):
    model = tiny.trained()
    masks = prune(model, sparsity=0.7)
    seen = []
    tiny.train(model, masks=masks, on_step=lambda *_: seen.append(Masks.of(model) == masks), seed=2)
    assert seen == [True] * 30


def test_on_step_counts_from_one_and_gets_the_optimizer(tiny):
    seen = []
    tiny.train(tiny.model(), steps=4, on_step=lambda step, optimizer: seen.append((step, type(optimizer))))
    assert seen == [(step, torch.optim.SGD) for step in (1, 2, 3, 4)]


def test_the_learning_rate_falls_along_a_cosine(tiny):
    rates = []
    tiny.train(
        tiny.model(), steps=4, lr=0.4, on_step=lambda _, optimizer: rates.append(optimizer.param_groups[0]["lr"])
    )
    assert rates == pytest.approx([0.4, 0.4 * (2 + 2**0.5) / 4, 0.2, 0.4 * (2 - 2**0.5) / 4])


def test_training_without_data_or_beyond_its_steps(tiny):
    with pytest.raises(ValueError, match="no data to train on"):
        train(tiny.model(), (torch.zeros(0, 8), torch.zeros(0)), Training())
    for window in ({"start": -1}, {"stop": 31}, {"start": 5, "stop": 4}):
        with pytest.raises(ValueError, match="steps 0 to 30"):
            tiny.train(tiny.model(), **window)


# ── interruption ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def saving(monkeypatch):
    """A checkpoint after each step, and not only every few seconds."""
    import pruninglab.tasks.training as module

    monkeypatch.setattr(module, "SAVE_EVERY", -1.0)


class Interrupt:
    """Raises KeyboardInterrupt at the n-th call."""

    def __init__(self, at, inner=None):
        self.at, self.calls, self.inner = at, 0, inner

    def __call__(self, *args):
        self.calls += 1
        value = None if self.inner is None else self.inner(*args)
        if self.calls == self.at:
            raise KeyboardInterrupt
        return value


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("where", ["objective", "on_step"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_interrupted_training_goes_on_to_the_bit(tmp_path, saving, norm, where, optimizer):
    recipe = {} if optimizer == "sgd" else {"optimizer": "adam", "lr": 0.01}
    task = make_task(norm=norm, **recipe)
    whole = task.model()
    losses = task.train(whole)

    path = tmp_path / "training.partial"
    broken = task.model()
    interrupt = {
        "objective": {"objective": Interrupt(12, lambda model, x, y: F.cross_entropy(model(x), y))},
        "on_step": {"on_step": Interrupt(11)},
    }[where]
    with pytest.raises(KeyboardInterrupt):
        task.train(broken, checkpoint=path, **interrupt)
    assert not broken.training
    resumed = task.model()
    done = {"objective": 11, "on_step": 10}[where]  # a step is saved after `on_step`, which may change the weights
    assert task.train(resumed, checkpoint=path) == losses[done:], "only what was left to do"
    assert states_equal(resumed, whole)


def test_an_interruption_in_the_middle_of_a_step_is_not_saved(tmp_path, tiny, saving, monkeypatch):
    whole = tiny.model()
    tiny.train(whole)
    path, step = tmp_path / "training.partial", torch.optim.SGD.step
    torn = Interrupt(9, lambda *_: None)

    def half_a_step(self, *args, **kwargs):
        weight = self.param_groups[0]["params"][0].data
        before = weight.clone()
        weight.add_(1)
        torn()
        weight.copy_(before)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", half_a_step)
        with pytest.raises(KeyboardInterrupt):
            tiny.train(tiny.model(), checkpoint=path)
    resumed = tiny.model()
    tiny.train(resumed, checkpoint=path)
    assert states_equal(resumed, whole)


def test_trained_goes_on_after_an_interruption(data_folder, saving, monkeypatch):
    expected = make_task("undisturbed").trained()
    task = make_task("interrupted")
    interrupted = Interrupt(8, F.cross_entropy)
    with monkeypatch.context() as patch:
        patch.setattr(F, "cross_entropy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            task.trained()
    folder = data_folder / "cache" / "models"
    assert [path.suffix for path in folder.glob("interrupted*")] == [".partial"]
    counted = Interrupt(None, F.cross_entropy)
    with monkeypatch.context() as patch:
        patch.setattr(F, "cross_entropy", counted)
        model = task.trained()
    assert counted.calls == 30 - 7
    assert states_equal(model, expected)
    assert [path.suffix for path in folder.glob("interrupted*")] == [".safetensors"]


def test_a_broken_checkpoint_is_thrown_away(tmp_path, tiny, saving):
    whole = tiny.model()
    tiny.train(whole)
    path = tmp_path / "training.partial"
    for content in (b"", b"rubbish", None):
        if content is None:  # whole, but of another network
            with pytest.raises(KeyboardInterrupt):
                make_task(norm=True).train(make_task(norm=True).model(), checkpoint=path, on_step=Interrupt(3))
        else:
            path.write_bytes(content)
        model = tiny.model()
        assert len(tiny.train(model, checkpoint=path)) == 30
        assert states_equal(model, whole)


def test_checkpoints_are_written_while_training(tmp_path, tiny, saving):
    """A killed process leaves no chance to save at the end: what was saved on the way is what there is."""
    path, found = tmp_path / "training.partial", []

    def look(step, _):
        found.append(path.exists())
        if step == 20:
            (tmp_path / "copy.partial").write_bytes(path.read_bytes())

    tiny.train(tiny.model(), checkpoint=path, on_step=look)
    assert found == [False] + [True] * 29
    whole, resumed = tiny.model(), tiny.model()
    losses = tiny.train(whole)
    assert tiny.train(resumed, checkpoint=tmp_path / "copy.partial") == losses[19:]
    assert states_equal(resumed, whole)


# ── the cache ─────────────────────────────────────────────────────────────────────────────────────────────────────


def spy_on_training(monkeypatch):
    import pruninglab.tasks.base as module

    calls = []
    true = module.train
    monkeypatch.setattr(module, "train", lambda *args, **options: calls.append(1) or true(*args, **options))
    return calls


def test_trained_trains_once(data_folder, monkeypatch):
    calls = spy_on_training(monkeypatch)
    one, other = make_task().trained(), make_task().trained()
    assert len(calls) == 1
    assert states_equal(one, other)
    assert one is not other
    assert not other.training
    by_hand = make_task().model()
    make_task().train(by_hand)
    assert states_equal(one, by_hand)


def test_whatever_makes_the_network_is_part_of_the_key(data_folder, monkeypatch):
    calls = spy_on_training(monkeypatch)
    changed = blobs()
    changed["train"][0][0, 0] += 1
    variants = [make_task(), make_task(lr=0.05), make_task(steps=29), make_task(norm=True), make_task(splits=changed)]
    for variant in variants:
        variant.trained()
    make_task().trained(1)
    make_task().trained(until=0.5)
    assert len(calls) == len(variants) + 2
    make_task().trained(until=0.5)
    assert len(calls) == len(variants) + 2


def test_trained_until(data_folder):
    task = make_task()
    assert states_equal(task.trained(until=0), task.model())
    halfway = task.model()
    task.train(halfway, stop=15)
    assert states_equal(task.trained(until=0.5), halfway)
    assert states_equal(task.trained(until=1), task.trained())
    for until in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"until is a fraction of training, in \[0, 1\]"):
            task.trained(until=until)


@pytest.mark.parametrize("damage", ["empty", "rubbish", "truncated", "another network"])
def test_a_corrupt_cache_file_is_made_again_with_a_warning(data_folder, damage):
    task = make_task()
    expected = task.trained()
    (path,) = (data_folder / "cache" / "models").iterdir()
    whole = path.read_bytes()
    if damage == "another network":
        from pruninglab.files import save_tensors

        save_tensors(path, models.mlp(3, 2).state_dict())
    else:
        path.write_bytes({"empty": b"", "rubbish": b"x" * 100, "truncated": whole[:-10]}[damage])
    with pytest.warns(UserWarning, match=r"cached network tiny-seed0.* is broken and is made again"):
        again = task.trained()
    assert states_equal(again, expected)
    assert path.read_bytes() == whole


def test_a_network_that_cannot_be_cached_is_trained_all_the_same(data_folder, monkeypatch):
    expected = make_task().trained()
    (data_folder / "file").write_text("")
    monkeypatch.setenv("PRUNINGLAB_DATA", str(data_folder / "file" / "data"))
    with pytest.warns(UserWarning, match="could not be cached in .*; set PRUNINGLAB_DATA") as told:
        model = make_task().trained()
    assert len(told) == 1
    assert states_equal(model, expected)


def test_two_processes_that_train_the_same(data_folder, saving, monkeypatch):
    """The other one is done first, and its checkpoint vanishes between looking and loading."""
    import pruninglab.tasks.training as module

    expected = make_task().trained()
    (path,) = (data_folder / "cache" / "models").iterdir()
    path.unlink()
    partial, true = path.with_suffix(".partial"), module.load_tensors
    partial.write_bytes(b"of the other process")
    monkeypatch.setattr(module, "load_tensors", lambda place: partial.unlink() or true(place))
    assert states_equal(make_task().trained(), expected)


def test_numpys_seeds_are_seeds(data_folder, monkeypatch):
    calls, tiny = spy_on_training(monkeypatch), make_task()
    one, other = tiny.trained(1), tiny.trained(np.int64(1))
    assert len(calls) == 1
    assert states_equal(one, other)
    assert states_equal(tiny.model(2), tiny.model(np.int32(2)))
    tiny.train(one, seed=np.int64(3), steps=2)
    tiny.train(other, seed=3, steps=2)
    assert states_equal(one, other)
    assert torch.equal(tiny.calibration(np.int64(9), np.int64(1))[0], tiny.calibration(9, 1)[0])
    for wrong in (0.5, "0", None):
        with pytest.raises(TypeError, match="seed must be a whole number, not"):
            tiny.trained(wrong)


def test_the_data_folder_of_an_installed_package_is_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("PRUNINGLAB_DATA")
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "pruninglab")
    assert files.data_dir() == Path.home() / ".cache" / "pruninglab"
    (tmp_path / "pyproject.toml").write_text("")
    assert files.data_dir() == tmp_path / "data"


def test_changing_a_trained_network_does_not_change_the_cache(data_folder):
    task = make_task()
    model = task.trained()
    before = copy.deepcopy(model)
    prune(model, sparsity=0.9)
    assert states_equal(task.trained(), before)


def test_digits_are_learnt():
    """The default recipe of the smallest real task, from nothing."""
    home = task("digits-mlp")
    model = home.trained()
    assert home.accuracy(model) > 0.93
    assert home.accuracy(model, "train") > 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("digits-cnn", 0.95), ("digits-resnet", 0.95), ("hard-digits-cnn", 0.85)])
def test_the_other_local_tasks_are_learnt(name, least):
    assert task(name).accuracy(task(name).trained()) > least


def test_every_task_has_its_own_name():
    others = {"fashion-mnist-cnn", "cifar10-resnet20", "tiny-llama"}
    assert {made.name for made in TASKS.values()} == set(TASKS) == {*LOCAL, *others}


# ── torchvision ───────────────────────────────────────────────────────────────────────────────────────────────────

NMS = "operator torchvision::nms does not exist"


class Broken:
    """An import hook under which torchvision fails to import in a given way."""

    def __init__(self, error):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError(NMS), ModuleNotFoundError("No module named 'torchvision'")])
def test_a_torchvision_that_cannot_be_imported(monkeypatch, data_folder, error):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(error), *sys.meta_path])
    for attempt in (data.import_torchvision, lambda: task("fashion-mnist-cnn").load()):
        with pytest.raises(RuntimeError) as found:
            attempt()
        text = str(found.value)
        assert f"{type(error).__name__}: {error}" in text
        assert torch.__version__ in text
        assert "pip install --upgrade --force-reinstall torch torchvision" in text
        assert "task('digits-cnn')" in text
        assert found.value.__cause__ is error
    assert task("digits-cnn").data["train"][0].shape[0] == 898, "everything else goes on working"


def stand_in(monkeypatch, make):
    datasets = types.SimpleNamespace(FashionMNIST=make, CIFAR10=make)
    monkeypatch.setattr(data, "import_torchvision", lambda: types.SimpleNamespace(datasets=datasets))


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("Dataset not found or corrupted")])
def test_a_download_that_fails(monkeypatch, data_folder, error):
    def make(root, train, download):
        raise error

    stand_in(monkeypatch, make)
    for name, dataset in (("fashion-mnist-cnn", "FashionMNIST"), ("cifar10-resnet20", "CIFAR10")):
        with pytest.raises(RuntimeError) as found:
            task(name).load()
        text = str(found.value)
        assert text.startswith(f"{dataset} is not in")
        assert f"{type(error).__name__}: {error}" in text
        assert "task('digits-cnn')" in text


def test_downloaded_photographs_become_splits(monkeypatch, data_folder):
    """With a stand-in for the data sets in torchvision's own layout: HWC bytes and a list of labels."""

    def make(root, train, download):
        assert download
        assert root == data_folder / "downloads"
        n = 6000 if train else 50
        generator = torch.Generator().manual_seed(int(train))
        pixels = torch.randint(256, (n, 4, 5, 3), generator=generator, dtype=torch.uint8)
        pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = torch.arange(n) % 256, torch.arange(n) // 256
        return types.SimpleNamespace(data=pixels.numpy(), targets=[i % 10 for i in range(n)])

    stand_in(monkeypatch, make)
    splits = data.cifar10()
    assert {name: tuple(x.shape) for name, (x, _) in splits.items()} == {
        "train": (1000, 3, 4, 5), "validation": (5000, 3, 4, 5), "test": (50, 3, 4, 5)
    }  # fmt: skip
    assert splits["train"][0].mean().abs() < 1e-3
    low = min(float(x.min()) for x, _ in splits.values())
    unit = (max(float(x.max()) for x, _ in splits.values()) - low) / 255  # one grey level
    numbers = []
    for name in ("train", "validation"):
        x, y = splits[name]
        grey = ((x[:, :2, 0, 0] - low) / unit).round().long()
        found = grey[:, 0] + 256 * grey[:, 1]
        assert torch.equal(found % 10, y), "labels stay with their pictures"
        numbers += found.tolist()
    assert sorted(numbers) == list(range(6000))


def test_importing_the_tasks_needs_no_torchvision_at_all():
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from pruninglab import task\n"
        "print(len(task('digits-mlp').data['test'][1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "719", done.stderr
