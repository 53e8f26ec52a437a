"""`Masks`: plain data, whole files, zeros in the model and nothing else there."""

import copy
import itertools
import pickle

import pytest
import torch
from helpers import same, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruninglab import Masks, prune
from pruninglab.files import save_tensors
from pruninglab.tasks import models


def bools(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.fixture
def masks(mlp):
    return Masks({f"fc{i}.weight": bools(*mlp.get_parameter(f"fc{i}.weight").shape, seed=i) for i in (2, 1, 3)})


# ── plain data ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_ordered_mapping():
    tensors = {"b": bools(2, 3), "a": bools(4)}
    masks = Masks(tensors)
    assert list(masks) == ["b", "a"]
    assert len(masks) == 2
    assert masks["a"] is tensors["a"]
    assert "c" not in masks
    with pytest.raises(KeyError):
        masks["c"]
    tensors["c"] = bools(1)
    assert len(masks) == 2, "a later change of the dict must not reach the masks"


@pytest.mark.parametrize("wrong", [torch.ones(2), torch.ones(2, dtype=torch.uint8), [True, False], None])
def test_a_mask_is_a_bool_tensor(wrong):
    with pytest.raises(TypeError, match=r"the mask of 'w' must be a bool tensor \(True = keep\)"):
        Masks({"w": wrong})


def test_no_mask_at_all():
    with pytest.raises(ValueError, match="at least one mask"):
        Masks({})


def test_counts_and_sparsity():
    masks = Masks({"a": torch.tensor([True, False, False]), "b": torch.tensor([[False, True]])})
    assert (masks.kept(), masks.total(), masks.sparsity()) == (2, 5, 0.6)
    assert repr(masks) == "Masks(2 layers, 2 of 5 weights kept, sparsity 0.6000)"
    table = masks.per_layer()
    assert table.to_dict("records") == [
        {"layer": "a", "shape": "3", "weights": 3, "kept": 1, "sparsity": pytest.approx(2 / 3)},
        {"layer": "b", "shape": "1×2", "weights": 2, "kept": 1, "sparsity": 0.5},
    ]


def test_and_or_equal():
    for values in itertools.product([False, True], repeat=4):
        a, b = torch.tensor(values[:2]), torch.tensor(values[2:])
        both = [x and y for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        either = [x or y for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        assert (Masks({"w": a}) & Masks({"w": b}))["w"].tolist() == both
        assert (Masks({"w": a}) | Masks({"w": b}))["w"].tolist() == either
        assert (Masks({"w": a}) == Masks({"w": b})) == (a.tolist() == b.tolist())


def test_what_is_not_equal():
    masks = Masks({"w": torch.tensor([True])})
    assert masks != Masks({"v": torch.tensor([True])})
    assert masks != Masks({"w": torch.tensor([[True]])})
    assert masks != {"w": torch.tensor([True])}
    with pytest.raises(TypeError, match="unhashable"):
        hash(masks)
    with pytest.raises(TypeError):
        masks & {"w": torch.tensor([True])}


def test_joining_masks_of_different_models_lists_every_difference():
    one = Masks({"a": bools(2), "b": bools(3), "c": bools(1)})
    other = Masks({"a": bools(2), "b": bools(4), "d": bools(5)})
    with pytest.raises(ValueError, match="do not fit") as error:
        one & other
    text = str(error.value)
    assert "b: (3,) here, (4,) there" in text
    assert "c: (1,) here, missing there" in text
    assert "d: missing here, (5,) there" in text
    assert "a:" not in text


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text("ab.1/", min_size=1, max_size=5), st.lists(st.integers(0, 4), max_size=3), min_size=1))
def test_saved_masks_come_back_the_same_and_in_order(tmp_path_factory, shapes):
    path = tmp_path_factory.mktemp("masks") / "masks.safetensors"
    masks = Masks({name: bools(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())})
    masks.save(path)
    loaded = Masks.load(path)
    assert loaded == masks
    assert list(loaded) == list(masks)


def test_order_is_kept_where_the_alphabet_has_another(tmp_path):
    masks = Masks({f"{i}.weight": bools(2, seed=i) for i in (0, 2, 10)})
    masks.save(tmp_path / "m")
    assert list(Masks.load(tmp_path / "m")) == ["0.weight", "2.weight", "10.weight"]


def test_one_tensor_under_two_names(tmp_path):
    mask = bools(3, 2)
    masks = Masks({"a": mask, "b": mask, "c": mask.T, "d": torch.ones(1, dtype=torch.bool).expand(4, 4)})
    masks.save(tmp_path / "m")
    assert Masks.load(tmp_path / "m") == masks


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        Masks.load(tmp_path / "nothing")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "folder"])
def test_loading_a_corrupt_file(tmp_path, masks, damage):
    path = tmp_path / "m"
    masks.save(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_text("not masks" if damage == "text" else "")
    with pytest.raises((ValueError, FileNotFoundError), match=r"not a whole safetensors file|no file"):
        Masks.load(path)


def test_loading_a_foreign_file(tmp_path, mlp):
    save_tensors(tmp_path / "weights", mlp.state_dict())
    save_tensors(tmp_path / "bools", {"w": bools(2)}, {"format": "pt"})
    for name in ("weights", "bools"):
        with pytest.raises(ValueError, match=r"not one that Masks\.save wrote"):
            Masks.load(tmp_path / name)


def test_an_error_while_writing_leaves_the_old_file(tmp_path, masks, monkeypatch):
    path = tmp_path / "m"
    masks.save(path)
    old = path.read_bytes()

    def half(tensors, to, metadata=None):
        with open(to, "wb") as file:
            file.write(b"half a fi")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", half)
    with pytest.raises(OSError, match="disk full"):
        (masks & masks).save(path)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["m"], "a temporary file was left behind"


# ── on a model ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_apply_writes_zeros_and_nothing_else(mlp, masks):
    before, dense = snapshot(mlp), copy.deepcopy(mlp)
    parameters = dict(mlp.named_parameters())
    assert masks.apply(mlp) is mlp
    after = snapshot(mlp)
    for name, parameter in mlp.named_parameters():
        assert parameter is parameters[name]
        expected = dense.get_parameter(name).detach().clone()
        if name in masks:
            expected[~masks[name]] = 0
        assert torch.equal(parameter, expected)
    after["state"] = before["state"]
    assert same(before, after)
    assert list(mlp.state_dict()) == list(dense.state_dict())
    assert vars(mlp.fc1).keys() == vars(dense.fc1).keys()


def test_applying_to_another_model_lists_every_difference_and_writes_nothing(masks):
    other = models.mlp(6, 7, 4, 3)
    other.fc3 = nn.Identity()
    before = snapshot(other)
    with pytest.raises(ValueError, match="these masks and this Sequential do not fit") as error:
        masks.apply(other)
    assert "fc2.weight: (5, 7) here, (4, 7) there" in str(error.value)
    assert "fc3.weight: (3, 5) here, missing there" in str(error.value)
    assert "fc1" not in str(error.value)
    assert same(before, snapshot(other))


def test_masks_of_a_part_of_the_model_may_be_applied(mlp):
    dense = mlp.fc2.weight.clone()
    Masks({"fc1.weight": torch.zeros(7, 6, dtype=torch.bool)}).apply(mlp)
    assert not mlp.fc1.weight.any()
    assert torch.equal(mlp.fc2.weight, dense)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_whatever_is_removed_becomes_plus_zero(dtype):
    layer = nn.Linear(4, 2, bias=False).to(dtype)
    odd = torch.tensor([[-1.0, torch.inf, -torch.inf, torch.nan], [-0.0, 1e-38, -1e-38, 3.0]]).to(dtype)
    layer.weight.data.copy_(odd)
    keep = torch.zeros(2, 4, dtype=torch.bool)
    Masks({"weight": keep}).apply(layer)
    assert layer.weight.detach().view(torch.uint8).count_nonzero() == 0

    layer.weight.data.copy_(odd)
    Masks({"weight": ~keep}).apply(layer)
    assert torch.equal(layer.weight.detach().view(torch.uint8), odd.view(torch.uint8)), "what is kept keeps its bits"


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "mask only", "strided"])
def test_weights_and_masks_that_are_not_contiguous(layout):
    conv, keep = nn.Conv2d(3, 4, 2), bools(4, 3, 2, 2)
    if layout == "channels_last":
        conv = conv.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        conv.weight = nn.Parameter(torch.randn(3, 4, 2, 2).transpose(0, 1))
    elif layout == "strided":
        conv.weight = nn.Parameter(torch.randn(4, 3, 2, 4)[..., ::2])
    else:
        keep = bools(3, 4, 2, 2).transpose(0, 1)
    expected = torch.where(keep, conv.weight.detach(), torch.zeros(()))
    stride = conv.weight.stride()
    Masks({"weight": keep}).apply(conv)
    assert torch.equal(conv.weight, expected)
    assert conv.weight.stride() == stride


def test_a_layer_larger_than_a_chunk():
    from pruninglab.masks import CHUNK

    layer = nn.Linear(CHUNK // 2 + 1, 3, bias=False)
    expected, keep = layer.weight.detach().clone(), bools(3, CHUNK // 2 + 1)
    expected[~keep] = 0
    Masks({"weight": keep}).apply(layer)
    assert torch.equal(layer.weight, expected)


def test_masks_of_a_model_are_read_from_its_zeros(mlp, masks):
    with torch.no_grad():
        mlp.fc1.bias.zero_()
    assert Masks.of(mlp).sparsity() == 0
    masks.apply(mlp)
    assert Masks.of(mlp) == masks
    assert list(Masks.of(mlp, exclude="fc1")) == ["fc2.weight", "fc3.weight"]
    mlp.fc1.weight.data[~masks["fc1.weight"]] = -0.0
    assert Masks.of(mlp) == masks


def test_copies_and_state_dicts_carry_the_zeros(mlp, masks):
    masks.apply(mlp)
    twin = copy.deepcopy(mlp)
    assert Masks.of(twin) == masks
    fresh = models.mlp(6, 7, 5, 3)
    assert fresh.load_state_dict(mlp.state_dict(), strict=True)
    assert Masks.of(fresh) == masks
    masks.apply(twin)
    masks.apply(fresh)
    assert copy.deepcopy(masks) == masks
    sent = pickle.loads(pickle.dumps(masks))  # to another process
    assert sent == masks
    assert list(sent) == list(masks)


def test_tied_weights_stay_tied():
    net = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    net["b"].weight = net["a"].weight
    masks = prune(net, sparsity=0.5)
    assert list(masks) == ["a.weight"]
    assert net["a"].weight is net["b"].weight
    assert net["b"].weight.count_nonzero() == 8
    Masks({"b.weight": torch.zeros(4, 4, dtype=torch.bool)}).apply(net)  # under its other name too
    assert not net["a"].weight.any()


def test_a_pruned_model_can_be_exported(mlp, masks, batch):
    masks.apply(mlp)
    exported = torch.export.export(mlp, (batch[0],))
    torch.testing.assert_close(exported.module()(batch[0]), mlp(batch[0]))
    kept = [value for name, value in exported.state_dict.items() if name == "fc1.weight"]
    assert torch.equal(kept[0] != 0, masks["fc1.weight"])


# ── while an optimizer runs ───────────────────────────────────────────────────────────────────────────────────────

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd momentum decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def step(model, optimizer, batch):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_enforced_holds_the_zeros_and_is_off_afterwards(mlp, masks, batch, kind):
    optimizer = OPTIMIZERS[kind](mlp.parameters())
    for _ in range(3):
        step(mlp, optimizer, batch)  # momentum that would carry removed weights away from zero
    masks.apply(mlp)
    before = {name: p.detach().clone() for name, p in mlp.named_parameters()}
    with masks.enforced(optimizer):
        for _ in range(3):
            step(mlp, optimizer, batch)
            assert Masks.of(mlp) == masks
    for name, parameter in mlp.named_parameters():
        free = masks[name] if name in masks else torch.ones_like(parameter, dtype=torch.bool)
        assert (parameter != before[name])[free].float().mean() > 0.5, "what is kept must go on learning"
    step(mlp, optimizer, batch)
    assert Masks.of(mlp).sparsity() < masks.sparsity() / 2
    assert not optimizer._optimizer_step_post_hooks


def test_enforced_is_off_after_an_error_too(mlp, masks):
    optimizer = OPTIMIZERS["sgd"](mlp.parameters())
    masks.apply(mlp)
    with pytest.raises(ArithmeticError), masks.enforced(optimizer):
        raise ArithmeticError
    assert not optimizer._optimizer_step_post_hooks


def test_enforced_writes_zeros_that_were_lost_before(mlp, masks):
    masks.apply(mlp)
    with torch.no_grad():
        mlp.fc1.weight.fill_(1)
    with masks.enforced(OPTIMIZERS["sgd"](mlp.parameters())):
        assert torch.equal(mlp.fc1.weight != 0, masks["fc1.weight"])


def test_enforced_holds_what_the_optimizer_holds(mlp, masks, batch):
    masks.apply(mlp)
    optimizer = OPTIMIZERS["sgd"]([{"params": mlp.fc2.parameters()}, {"params": mlp.fc3.parameters()}])
    with masks.enforced(optimizer):
        step(mlp, optimizer, batch)
    assert Masks.of(mlp) == masks


def test_enforced_follows_the_model_last_applied_to(mlp, masks, batch):
    twin = copy.deepcopy(mlp)
    masks.apply(mlp)
    masks.apply(twin)
    optimizer = OPTIMIZERS["sgd"](twin.parameters())
    with masks.enforced(optimizer):
        step(twin, optimizer, batch)
        assert Masks.of(twin) == masks
    with (
        pytest.raises(RuntimeError, match="holds none of the parameters"),
        masks.enforced(OPTIMIZERS["sgd"](mlp.parameters())),
    ):
        pass


def test_enforced_wants_the_optimizer(mlp, masks):
    masks.apply(mlp)
    with pytest.raises(TypeError, match="takes the optimizer that steps, not Sequential"), masks.enforced(mlp):
        pass


def test_enforced_in_bfloat16(masks, batch, mlp):
    mlp.bfloat16()
    masks.apply(mlp)
    optimizer = OPTIMIZERS["sgd momentum decay"](mlp.parameters())
    with masks.enforced(optimizer):
        step(mlp, optimizer, (batch[0].bfloat16(), batch[1]))
    assert Masks.of(mlp) == masks


def test_enforcing_masks_that_were_never_applied(mlp, masks):
    with (
        pytest.raises(RuntimeError, match=r"call masks\.apply\(model\) first: whose weights are meant"),
        masks.enforced(OPTIMIZERS["sgd"](mlp.parameters())),
    ):
        pass


def test_masks_do_not_keep_a_model_alive(mlp, masks):
    other = models.mlp(6, 7, 5, 3)
    masks.apply(other)
    optimizer = OPTIMIZERS["sgd"](mlp.parameters())
    del other
    with pytest.raises(RuntimeError, match=r"no longer exist"), masks.enforced(optimizer):
        pass


def test_enforced_names_a_parameter_that_was_replaced():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    masks = prune(model, sparsity=0.5)
    model[0] = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match=r"0\.weight no longer exist"), masks.enforced(optimizer):
        pass


# ── whose weights ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_weights_are_the_parameters_last_applied_to(mlp, masks):
    with pytest.raises(RuntimeError, match=r"call masks\.apply\(model\) first"):
        masks.weights()
    twin = copy.deepcopy(mlp)
    masks.apply(twin)
    masks.apply(mlp)
    found = masks.weights()
    assert list(found) == list(masks)
    assert all(found[name] is mlp.get_parameter(name) for name in masks)
    with pytest.raises(RuntimeError, match=r"call masks\.apply\(model\) first"):
        copy.deepcopy(masks).weights()


def test_apply_to_is_apply_for_the_weights_of_other_masks(mlp, masks):
    before = copy.deepcopy(mlp)
    masks.apply(mlp)
    inner = Masks({name: mask & bools(*mask.shape, seed=9) for name, mask in masks.items()})
    inner.apply_to(masks.weights())
    assert Masks.of(mlp) == inner
    assert all(inner.weights()[name] is mlp.get_parameter(name) for name in masks)
    for name, mask in inner.items():
        assert torch.equal(mlp.get_parameter(name)[mask], before.get_parameter(name)[mask])
    assert torch.equal(mlp.fc1.bias, before.fc1.bias)


# ── the same number elsewhere ─────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3), min_size=1, max_size=3), st.integers(0, 2**20))
def test_shuffled_masks_keep_the_count_of_each_layer(shapes, seed):
    masks = Masks({f"w{i}": bools(*shape, seed=i) for i, shape in enumerate(shapes)})
    before = {name: mask.clone() for name, mask in masks.items()}
    shuffled = masks.shuffled(seed)
    assert list(shuffled) == list(masks)
    for name, mask in shuffled.items():
        assert mask.shape == masks[name].shape
        assert mask.dtype == torch.bool
        assert int(mask.sum()) == int(masks[name].sum())
        assert torch.equal(masks[name], before[name])
    assert shuffled == masks.shuffled(seed)


def test_another_seed_shuffles_otherwise_and_touches_no_other_randomness(masks):
    state = torch.random.get_rng_state()
    assert masks.shuffled() == masks.shuffled(0)
    assert len({tuple(masks.shuffled(seed)["fc1.weight"].flatten().tolist()) for seed in range(20)}) == 20
    assert masks.shuffled(0) != masks
    assert torch.equal(state, torch.random.get_rng_state())


def test_shuffled_places_are_uniform_and_layers_are_shuffled_each_in_its_own_way():
    first = torch.zeros(4, 6, dtype=torch.bool)
    first[0] = True  # six of 24
    masks = Masks({"a": first, "b": first.clone()})
    n = 800
    drawn = [masks.shuffled(seed) for seed in range(n)]
    for name in masks:
        times = sum(found[name].float() for found in drawn)
        # Each place is kept Binomial(n, ¼) times; the counts' sum is fixed, so this is χ² with 23 degrees of freedom.
        chi2 = float(((times - n / 4) ** 2 / (n * 3 / 16)).sum()) * 23 / 24
        assert 7.5 < chi2 < 49.8, "99.9 % of all seeds lie within"
    both = sum(int((found["a"] & found["b"]).sum()) for found in drawn) / n
    assert both == pytest.approx(6 * 6 / 24, abs=0.15), "two layers that share nothing meet by chance"


@pytest.mark.parametrize("seed", [0, 3])
def test_a_random_mask_and_its_shuffle_of_the_same_seed_share_no_more_than_chance(seed):
    model = nn.Sequential(nn.Linear(60, 50))
    masks = prune(model, sparsity=0.8, criterion="random", seed=seed)
    both = int((masks["0.weight"] & masks.shuffled(seed)["0.weight"]).sum())
    assert abs(both - 3000 * 0.2**2) < 4 * (3000 * 0.2**2 * 0.8**2) ** 0.5
