"""Choosing channels: what is asked is what is removed, under every comparison and budget; and what is refused."""

import copy
from functools import cache

import pytest
import torch
import torchvision
from helpers import same, snapshot
from networks import randomize, relative_error, slimmed
from torch import nn

from pruninglab import measure, prune, units
from pruninglab.allocation import BudgetError
from pruninglab.graph import GraphError, trace
from pruninglab.surgery import emptied, slim
from pruninglab.tasks.models import ResNet, cnn

PICTURES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
DIGITS = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6)
MAKE = {
    "resnet18": lambda: torchvision.models.resnet18(weights=None),
    "mobilenet": lambda: torchvision.models.mobilenet_v3_small(weights=None),
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(weights=None),
    "digits-resnet": lambda: ResNet(1, 2, (16, 32, 64)),
    "digits-cnn": lambda: cnn(16),
}


@cache
def _made(name):
    torch.manual_seed(0)
    model, x = MAKE[name]().eval(), DIGITS if name.startswith("digits") else PICTURES
    randomize(model, x)
    return model, trace(model, x), x


def made(name):
    """A network, its graph, and example inputs."""
    model, graph, x = _made(name)
    return copy.deepcopy(model), graph, x


def removed_by(model, graph, **options):
    masks = prune(model, unit=options.pop("unit", "channel"), example_inputs=graph, **options)
    return emptied(model, masks, graph) if not all(m.all() for m in masks.values()) else torch.zeros(graph.n).bool()


def removable(graph):
    return torch.cat([cell for family in graph.families for cell in family.cells])


def step(family, multiple_of):
    """How many channels go at a time: all cells lose one slot, or as many slots as a multiple asks for."""
    if family.uneven:
        return 1
    slots = max(1, multiple_of // family.multiple) if multiple_of > family.multiple else 1
    return slots * family.channels // family.slots


COMPARISONS = [("global", None), ("global", "mean"), ("global", "l2"), ("global", "max"), ("uniform", None)]
COMPARISONS += [("isomorphic", None), ("isomorphic", "max")]


# ── asked is achieved ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["resnet18", "mobilenet", "shufflenet"])
@pytest.mark.parametrize(("allocation", "normalize"), COMPARISONS)
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.filterwarnings("ignore:the channels of stage3")
def test_the_fraction_that_was_asked_for(name, allocation, normalize, sparsity):
    """Within one step. Also globally without normalizing, where one layer's scores may beat all others'."""
    model, graph, _ = made(name)
    unit = units.structure("channel", normalize=normalize)
    can = removable(graph)
    removed = removed_by(model, graph, unit=unit, allocation=allocation, sparsity=sparsity)
    assert int(removed.sum()) == int(removed[can].sum()), "what must stay stays"
    assert abs(int(removed.sum()) - sparsity * len(can)) <= max(step(family, 16) for family in graph.families)
    for family in graph.families:
        gone = int(sum(removed[cell].sum() for cell in family.cells))
        assert gone < family.channels, "something is left of each layer"
        for cell in family.cells if not family.uneven else ():
            assert int(removed[cell].sum()) * family.channels == gone * len(cell), "all cells lose one fraction"


def test_uniform_takes_the_same_fraction_of_each_layer():
    model, graph, _ = made("resnet18")
    removed = removed_by(model, graph, sparsity=0.5, allocation="uniform")
    for family in graph.families:
        gone = int(sum(removed[cell].sum() for cell in family.cells))
        assert abs(gone - family.channels / 2) <= step(family, 16)


def test_the_lowest_channels_go_by_hand():
    """Two layers of three: scores written into the weights, sums over what comes in and what goes out."""
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1], [5, 1], [1, 1]]))
        model[1].weight.copy_(torch.tensor([[1.0, 1, 9], [1, 1, 9], [1, 0, 1]]))
        model[2].weight.copy_(torch.tensor([[2.0, 9, 1]]))
    # outputs of 0: 2 + 3 = 5, 6 + 2 = 8, 2 + 19 = 21; outputs of 1: 11 + 2 = 13, 11 + 9 = 20, 2 + 1 = 3
    for sparsity, first, second in ((1 / 6, [], [2]), (2 / 6, [0], [2]), (3 / 6, [0, 1], [2]), (4 / 6, [0, 1], [0, 2])):
        masks = prune(copy.deepcopy(model), unit="channel", sparsity=sparsity, example_inputs=torch.randn(1, 2))
        rows = [(~masks[f"{i}.weight"].any(1)).nonzero().flatten().tolist() for i in (0, 1)]
        columns = [(~masks[f"{i}.weight"].any(0)).nonzero().flatten().tolist() for i in (1, 2)]
        assert rows == columns == [first, second]


@pytest.mark.parametrize(
    ("combine", "expected"),
    [("sum", [5.0, 8.0, 21.0]), ("mean", [2.5, 4.0, 10.5]), ("l2", [13**0.5, 40**0.5, 365**0.5])],
)
def test_scores_are_combined_over_members(combine, expected):
    from pruninglab.channels import channel_scores
    from pruninglab.criteria import Scores

    model, x = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)), torch.randn(1, 2)
    graph = trace(model, x)
    first, second = torch.tensor([[1.0, 1], [5, 1], [1, 1]]), torch.tensor([[1.0, 1, 10], [2, 1, 9]])
    scores = {"0.weight": Scores.of("0.weight", first), "1.weight": Scores.of("1.weight", second)}
    found = channel_scores(graph, scores, units.structure(combine=combine))[graph.outputs("0.weight")]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("allocation", ["global", "uniform", "isomorphic"])
@pytest.mark.parametrize("name", ["resnet18", "digits-resnet", "digits-cnn"])
def test_never_an_empty_layer(name, allocation):
    model, _, x = made(name)
    unit = units.structure("channel", multiple_of=1)
    small, *_ = slimmed(model, x, unit=unit, sparsity=0.95, allocation=allocation)
    assert all(size > 0 for p in small.parameters() for size in p.shape)
    assert small(x).isfinite().all()
    wide = {module.out_channels for module in small.modules() if isinstance(module, nn.Conv2d)}
    assert min(wide) < 8


@pytest.mark.parametrize("name", ["resnet18", "digits-resnet", "digits-cnn"])
def test_what_would_leave_an_empty_layer_is_refused(name):
    """Rounded to steps, the least of each layer is more than one channel."""
    model, graph, _ = made(name)
    before = snapshot(model)
    with pytest.raises(
        BudgetError, match=r"\d+ channels were to stay, but at least \d+ must, so that no layer is empty"
    ):
        prune(model, unit="channel", sparsity=0.999, example_inputs=graph)
    assert same(before, snapshot(model))


def test_a_floor():
    model, graph, x = made("digits-resnet")
    unit = units.structure("channel", floor=6, multiple_of=1)
    masks = prune(model, unit=unit, sparsity=0.6, allocation="global", example_inputs=graph)
    small = slim(model, masks, graph)
    widths = [module.out_channels for module in small.modules() if isinstance(module, nn.Conv2d)]
    assert min(widths) == 6
    with pytest.raises(BudgetError, match=r"at least \d+ must"):
        prune(made("digits-resnet")[0], unit=units.structure("channel", floor=12), sparsity=0.9, example_inputs=x)


@pytest.mark.parametrize("multiple_of", [1, 8])
@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_widths_are_multiples(multiple_of, sparsity):
    model, graph, _ = made("resnet18")
    unit = units.structure("channel", multiple_of=multiple_of)
    masks = prune(model, unit=unit, sparsity=sparsity, allocation="global", example_inputs=graph)
    small = slim(model, masks, graph)
    widths = {module.out_channels for module in small.modules() if isinstance(module, nn.Conv2d)}
    can = removable(graph)
    assert all(width % multiple_of == 0 for width in widths)
    assert abs(int(emptied(model, masks, graph).sum()) - sparsity * len(can)) <= multiple_of
    if multiple_of == 1:
        assert any(width % 8 for width in widths)


def test_widths_are_multiples_of_sixteen_if_nothing_is_said():
    model, graph, _ = made("resnet18")
    small = slim(model, prune(model, unit="channel", sparsity=0.4, example_inputs=graph), graph)
    assert all(module.out_channels % 16 == 0 for module in small.modules() if isinstance(module, nn.Conv2d))


# ── budgets ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["resnet18", "digits-resnet", "digits-cnn"])
@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("share", [0.25, 0.6])
def test_budgets_are_met(name, allocation, share):
    model, graph, x = made(name)
    params, flops = sum(p.numel() for p in model.parameters()), measure.flops(model, x)
    for budget, cost in (
        ({"params": int(share * params)}, lambda net: sum(p.numel() for p in net.parameters())),
        ({"flops": share * flops}, lambda net: measure.flops(net, x)),
    ):
        pruned = copy.deepcopy(model)
        masks = prune(pruned, unit="channel", allocation=allocation, example_inputs=graph, **budget)
        (asked,) = budget.values()
        assert abs(cost(slim(pruned, masks, graph)) - asked) <= 0.02 * asked


def test_all_of_it_is_a_budget_too():
    model, graph, x = made("digits-cnn")
    assert not removed_by(model, graph, flops=measure.flops(model, x)).any()


def test_a_budget_of_time(counted_time):
    model, graph, x = made("resnet18")
    before = measure.latency(lambda: model(x)).low
    masks = prune(model, unit="channel", latency_ms=0.5 * before, example_inputs=graph)
    removed = emptied(model, masks, graph)
    small = slim(model, masks, graph)
    assert 0 < int(removed.sum()) < len(removable(graph))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert abs(measure.flops(small, x) / measure.flops(model, x) - 0.5) < 0.02
    assert not small.training


@pytest.mark.parametrize("budget", [{"params": 10}, {"flops": 10.0}, {"params": 10**9}, {"flops": 1e15}])
def test_a_budget_that_cannot_be_met(budget):
    model, graph, _ = made("digits-cnn")
    before = snapshot(model)
    with pytest.raises(BudgetError, match="is not possible: this network can cost"):
        prune(model, unit="channel", example_inputs=graph, **budget)
    assert same(before, snapshot(model))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "exactly one budget.*got none"),
        ({"sparsity": 0.5, "flops": 1e6}, "exactly one budget.*got sparsity, flops"),
        ({"flops": 0}, "flops=0 is no budget"),
        ({"params": -3}, "params=-3 is no budget"),
        ({"latency_ms": 0.0}, "latency_ms=0.0 is no budget"),
        ({"flops": True}, "flops=True is no budget"),
        ({"params": "x"}, "params='x' is no budget"),
        ({"sparsity": 50}, r"in \[0, 1\)"),
        ({"sparsity": -0.1}, r"in \[0, 1\)"),
    ],
)
def test_budgets_that_are_none(budget, message):
    model, graph, _ = made("digits-cnn")
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        prune(model, unit="channel", example_inputs=graph, **budget)
    assert same(before, snapshot(model))


# ── what stays ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_classifier_keeps_its_outputs():
    model, x = made("resnet18")[::2]
    small, *_ = slimmed(model, x, sparsity=0.9)
    assert small.fc.out_features == len(small.fc.bias) == 1000
    assert small.fc.in_features < 512
    assert small(x).shape == (2, 1000)


@pytest.mark.parametrize("exclude", ["layer1.0.conv1", "layer1.*", ["layer1.0.conv1", "layer2.*"]])
def test_excluded_layers_keep_their_outputs(exclude):
    model, _, x = made("digits-resnet")
    before = dict(copy.deepcopy(model).named_modules())
    masks = prune(model, unit="channel", sparsity=0.5, exclude=exclude, example_inputs=x)
    small = slim(model, masks, x)
    spared = {"layer1.0.conv1"} if exclude == "layer1.0.conv1" else {"layer1.0.conv1", "layer1.1.conv2"}
    spared = {"layer1.0.conv1", "layer2.0.conv1", "layer2.1.conv2"} if isinstance(exclude, list) else spared
    for name in spared:
        assert small.get_submodule(name).out_channels == before[name].out_channels
    assert small.layer3[0].conv1.out_channels < 64
    assert relative_error(model(x), small(x)) < 1e-4


# ── criteria ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_criterion_with_one_number_for_each_output():
    """It alone speaks for the channels that begin there: the later a filter, the better."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)).eval()

    def later(weight):
        return torch.arange(len(weight), dtype=torch.float32)

    unit = units.structure("channel", multiple_of=1)
    masks = prune(model, unit=unit, sparsity=0.5, criterion=later, example_inputs=DIGITS)
    for name in ("0.weight", "2.weight"):
        assert masks[name].flatten(1).any(1).tolist() == [False] * 4 + [True] * 4
    assert not masks["2.weight"][:, :4].any()
    assert masks["4.weight"][:, 4:].all()


@pytest.mark.parametrize("criterion", ["magnitude", "random", "taylor", "snip", "fisher", "wanda"])
def test_any_criterion(criterion):
    model, graph, x = made("digits-cnn")
    masks = prune(model, unit="channel", sparsity=0.5, criterion=criterion, data=(x, LABELS), example_inputs=graph)
    assert abs(int(emptied(model, masks, graph).sum()) - len(removable(graph)) / 2) <= 16
    assert relative_error(model(x), slim(model, masks, graph)(x)) < 1e-4


def test_data_will_do_for_example_inputs():
    model, graph, x = made("digits-cnn")
    one = prune(copy.deepcopy(model), unit="channel", sparsity=0.5, criterion="taylor", data=(x, LABELS))
    other = prune(
        copy.deepcopy(model), unit="channel", sparsity=0.5, criterion="taylor", data=(x, LABELS), example_inputs=graph
    )
    assert one == other


def test_seeds():
    model, graph, _ = made("digits-cnn")
    options = {"unit": "channel", "sparsity": 0.5, "criterion": "random", "example_inputs": graph}
    one, same_seed, other = (prune(copy.deepcopy(model), seed=seed, **options) for seed in (0, 0, 1))
    assert one == same_seed
    assert one != other


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────


def refused(model, error, message, **options):
    before = snapshot(model)
    with pytest.raises(error, match=message):
        prune(model, **{"unit": "channel", "sparsity": 0.5} | options)
    assert same(before, snapshot(model))


def test_no_example_inputs_and_no_data():
    refused(cnn(16), GraphError, "example_inputs= is needed")
    refused(cnn(16), GraphError, "example_inputs= is needed", unit="head")
    refused(cnn(16), GraphError, "example_inputs= is needed", unit="layer")


@pytest.mark.parametrize("unit", ["channel", "head"])
def test_a_model_that_fails(unit):
    refused(
        cnn(16), GraphError, r"fails on example_inputs, in fc1: RuntimeError", example_inputs=DIGITS[..., :8], unit=unit
    )


def test_a_model_that_fails_without_blocks():
    refused(cnn(16), GraphError, r"fails on example_inputs", example_inputs=DIGITS[..., :8], unit="layer")


def test_budgets_of_speed_need_a_structure():
    for budget in ({"flops": 1e6}, {"latency_ms": 1.0}):
        with pytest.raises(ValueError, match="zeros make nothing faster"):
            prune(cnn(16), unit="weight", example_inputs=DIGITS, **budget)


def test_heads_where_there_are_none():
    refused(cnn(16), GraphError, "no head of this Sequential can be removed", unit="head", example_inputs=DIGITS)


def test_channels_where_all_must_stay():
    refused(
        nn.Linear(3, 2),
        GraphError,
        r"no channel of this Linear can be removed: .*output",
        example_inputs=torch.randn(1, 3),
    )
    model = nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 2))
    refused(model, GraphError, r"_softmax runs over channels in 1 \(4 channels\)", example_inputs=torch.randn(1, 3))


def test_a_criterion_that_returns_nan():
    model, graph, _ = made("digits-cnn")
    refused(model, ValueError, "NaN", criterion=lambda weight: weight * torch.nan, example_inputs=graph)


# ── data, and what was removed before ─────────────────────────────────────────────────────────────────────────────


def small():
    torch.manual_seed(0)
    return cnn(16).eval()


@pytest.mark.parametrize("unit", ["channel", "layer"])
def test_what_can_be_read_once_is_read_once(unit):
    data = [(DIGITS[:2], LABELS[:2]), (DIGITS[2:], LABELS[2:])]
    model = small() if unit == "channel" else ResNet(1, 2, (8, 16)).eval()
    of_list, of_iterator = (
        prune(copy.deepcopy(model), sparsity=0.5, unit=unit, criterion="taylor", data=some)
        for some in (data, iter(data))
    )
    assert of_list == of_iterator


def test_empty_data_are_told():
    with pytest.raises(ValueError, match="empty"):
        prune(small(), sparsity=0.5, unit="channel", data=[])


@pytest.mark.parametrize("unit", ["channel", "layer"])
def test_single_weights_that_were_removed_stay_removed(unit):
    torch.manual_seed(0)
    model = ResNet(1, 2, (8, 16)).eval()
    before = prune(model, sparsity=0.5)
    masks = prune(model, sparsity=0.4, unit=unit, within=before, example_inputs=DIGITS)
    assert not any(bool((masks[name] & ~before[name]).any()) for name in before)
    assert all(bool((model.get_parameter(name)[~mask] == 0).all()) for name, mask in masks.items())
    small = slim(model, masks, DIGITS)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert relative_error(small(DIGITS), model(DIGITS)) < 1e-5


def test_blocks_that_are_gone_do_not_come_back():
    torch.manual_seed(0)
    model = ResNet(1, 2, (8, 16)).eval()
    before = prune(model, sparsity=0.75, unit="layer", example_inputs=DIGITS)
    with pytest.raises(BudgetError, match="`within` has only 1 left"):
        prune(model, sparsity=0.25, unit="layer", within=before, example_inputs=DIGITS)
