"""Which layers are prunable, what `exclude` leaves out, and its errors."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from pruninglab.layers import like_weight, outputs_by_position, patches, prunable, warn_of_unprunable
from pruninglab.tasks import models


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.embed = nn.Embedding(5, 4)
        self.seq = nn.Conv1d(4, 4, 1)
        self.head = nn.Linear(4, 2)


NAMES = ["stem.weight", "block.0.weight", "block.2.weight", "seq.weight", "head.weight"]


def test_prunable_are_linear_and_convolution_weights_in_the_order_of_the_model():
    net = Net()
    found = prunable(net)
    assert list(found) == NAMES
    assert found["block.2.weight"] is net.block[2]
    parameters = dict(net.named_parameters())
    assert all(parameters[name] is layer.weight for name, layer in found.items())


def test_a_lone_layer():
    layer = nn.Linear(2, 2)
    assert prunable(layer) == {"weight": layer}


def test_a_shared_weight_appears_once():
    net = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    net["c"].weight = net["a"].weight
    assert list(prunable(net)) == ["a.weight", "b.weight"]
    twice = nn.Sequential(net["b"], nn.ReLU(), net["b"])
    assert list(prunable(twice)) == ["0.weight"]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("stem", NAMES[1:]),
        ("stem.weight", NAMES[1:]),
        (["head", "stem"], NAMES[1:4]),
        ("block", ["stem.weight", "seq.weight", "head.weight"]),  # a module is all inside it
        ("block.*", ["stem.weight", "seq.weight", "head.weight"]),
        ("*0*", ["stem.weight", "block.2.weight", "seq.weight", "head.weight"]),
        (nn.Conv2d, ["seq.weight", "head.weight"]),
        ((nn.Conv2d, nn.Conv1d), ["head.weight"]),
        ([nn.Conv2d, "block.0"], ["seq.weight", "head.weight"]),  # already out: no error
        (nn.BatchNorm2d, NAMES),  # never prunable: no error
        ((), NAMES),
    ],
)
def test_exclude(exclude, left):
    assert list(prunable(Net(), exclude)) == left


def test_exclude_a_module_and_all_inside_it():
    net = Net()
    assert list(prunable(net, net.block)) == ["stem.weight", "seq.weight", "head.weight"]
    assert list(prunable(net, [net.head, net.stem])) == NAMES[1:4]


@pytest.mark.parametrize("how", ["a", "b", "b.weight", "module"])
def test_a_shared_weight_is_left_out_under_each_of_its_names(how):
    net = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    net["b"].weight = net["a"].weight
    assert list(prunable(net, net["b"] if how == "module" else how)) == ["c.weight"]


@pytest.mark.parametrize("order", [("embed", "a", "c"), ("a", "c", "embed")])
@pytest.mark.parametrize("embedding", [nn.Embedding, nn.EmbeddingBag])
def test_a_weight_shared_with_an_embedding_is_left_alone(order, embedding):
    parts = {"embed": embedding(3, 3), "a": nn.Linear(3, 3), "c": nn.Linear(3, 3)}
    parts["a"].weight = parts["embed"].weight
    net = nn.ModuleDict({name: parts[name] for name in order})
    for exclude in ((), "embed", "a", embedding, net["embed"]):
        assert list(prunable(net, exclude)) == ["c.weight"]
    del net["c"]
    with pytest.raises(ValueError, match="no prunable layer"):
        prunable(net)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_empty_weights_are_left_out():
    assert list(prunable(nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 2), nn.Linear(2, 0)))) == ["1.weight"]


def attention_and_lstm() -> nn.ModuleDict:
    return nn.ModuleDict({"attend": nn.MultiheadAttention(8, 2), "lstm": nn.LSTM(8, 8), "head": nn.Linear(8, 8)})


def test_what_is_large_and_not_prunable_is_warned_of():
    """192 of attention, 256 + 256 of the LSTM; of 984 parameters in all."""
    net = attention_and_lstm()
    total = sum(p.numel() for p in net.parameters())
    share = f"{(192 + 512) / total:.0%}"
    with pytest.warns(
        UserWarning, match=rf"^{share} .*: attend\.in_proj_weight, lstm\.weight_ih_l0, lstm\.weight_hh_l0\."
    ):
        warn_of_unprunable(net)
    net["more"] = nn.ModuleList([nn.ConvTranspose1d(8, 8, 2), nn.Bilinear(4, 4, 4)])
    with pytest.warns(UserWarning, match=r"weight_hh_l0 and 2 more\."):
        warn_of_unprunable(net)
    with pytest.warns(UserWarning, match=r"are: more\.0\.weight, more\.1\.weight\."):
        warn_of_unprunable(net, (nn.LSTM, "attend"))


def test_nothing_is_warned_of_without_need(recwarn):
    net = attention_and_lstm()
    named = ["attend.in_proj_weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0"]  # as the warning says
    for exclude in (["attend", net["lstm"]], ["*.in_proj_weight", nn.LSTM], named):
        warn_of_unprunable(net, exclude)
        assert "head.weight" in prunable(net, exclude)
    net["large"] = nn.Linear(100, 80)  # what is left is less than a tenth now
    warn_of_unprunable(net)
    warn_of_unprunable(nn.ModuleDict({"embed": nn.Embedding(900, 8), "head": nn.Linear(8, 2)}))
    for model in (Net(), models.mlp(6, 7, 3), models.cnn(8), models.ResNet(1, 1, (4, 8))):
        warn_of_unprunable(model)
    assert not list(recwarn)


def test_a_module_that_is_there_twice():
    layer = nn.Linear(3, 3)
    net = nn.ModuleDict({"a": layer, "b": layer, "c": nn.Linear(3, 3)})
    assert list(prunable(net)) == ["a.weight", "c.weight"]
    assert list(prunable(net, "b")) == ["c.weight"]


@pytest.mark.parametrize("exclude", ["haed", "stem.bias", "blo", nn.Conv3d, nn.Linear(2, 2)])
def test_an_exclude_that_matches_nothing(exclude):
    with pytest.raises(ValueError, match=r"matches no layer\. Prunable here: stem\.weight, block"):
        prunable(Net(), exclude)


def test_an_exclude_that_leaves_nothing():
    with pytest.raises(ValueError, match="leaves no prunable layer"):
        prunable(Net(), "*")


def test_an_exclude_of_another_kind():
    with pytest.raises(TypeError, match="names, globs, module types and modules, not 3"):
        prunable(Net(), [3])


@pytest.mark.parametrize("exclude", [None, 3, [None]])
def test_an_exclude_that_is_nothing(exclude):
    for function in (prunable, warn_of_unprunable):
        with pytest.raises(TypeError, match=r"exclude takes names, globs, module types and modules, not (None|3)"):
            function(Net(), exclude)


def test_no_prunable_layer():
    with pytest.raises(ValueError, match="Sequential has no prunable layer: no Linear, Conv1d"):
        prunable(nn.Sequential(nn.ReLU(), nn.LayerNorm(3)))


def test_weights_that_are_not_plain_parameters():
    masked = nn.Sequential(nn.Linear(3, 3))
    torch_prune.l1_unstructured(masked[0], "weight", 0.5)
    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)))
    for net in (masked, normed):
        with pytest.raises(ValueError, match="'0' is not a plain parameter"):
            prunable(net)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 6), (4,)),
        (nn.Linear(4, 6), (3, 4)),
        (nn.Conv1d(4, 6, 2, stride=2, groups=2), (4, 5)),
        (nn.Conv2d(4, 6, (2, 3), padding=(1, 2), dilation=(1, 2), groups=2), (4, 5, 6)),
    ],
)
def test_a_layer_is_a_product_of_patches_and_weight(layer, shape):
    """What `patches` promises: Y = X Wᵀ for each group."""
    layer.bias = None
    x = torch.randn(5, *shape)
    rows, y = patches(layer, x), outputs_by_position(layer, layer(x))
    groups, _, _, width = rows.shape
    weight = layer.weight.view(groups, -1, width)
    torch.testing.assert_close(torch.einsum("gntd,god->gnto", rows, weight), y)


def test_values_of_inputs_are_laid_out_like_the_weight():
    conv = nn.Conv2d(4, 6, (1, 2), groups=2)
    values = torch.arange(8.0).view(2, 4)  # group 0: inputs 0 and 1 at two places; group 1: inputs 2 and 3
    laid = like_weight(conv, values).expand(conv.weight.shape)
    assert laid[0].flatten().tolist() == [0, 1, 2, 3]
    assert laid[2].flatten().tolist() == [0, 1, 2, 3]
    assert laid[3].flatten().tolist() == [4, 5, 6, 7]
    assert like_weight(nn.Linear(3, 2), torch.arange(3.0).view(1, 3)).tolist() == [[0, 1, 2]]
