import torch
from torch import nn

from pruninglab import prune, slim
from pruninglab.graph import trace
from pruninglab.latency import LatencyTable, _resized
from pruninglab.measure import flops
from pruninglab.widths import widths


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.Conv2d(32, 64, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


X = torch.randn(4, 3, 24, 24)


def test_a_table_adds_up_to_the_whole_network():
    graph = trace(network(), X)
    table = LatencyTable(network(), graph)
    nothing = torch.zeros(graph.n, dtype=torch.bool)
    inside = sum(float(timed((1.0, 1.0))) for timed in table.layers.values())
    assert len(table.layers) == 4
    assert abs(table.predict(nothing) - max(table.whole, inside)) < 1e-9


def test_the_table_looks_up_the_fraction_of_inputs_and_outputs_that_is_left():
    graph = trace(network(), X)
    table = LatencyTable(network(), graph)
    asked = {}
    for name in table.layers:
        table.layers[name] = lambda point, name=name: asked.update({name: point}) or 0.0
    removed = torch.zeros(graph.n, dtype=torch.bool)
    removed[graph.births["0.weight", 0][:8]] = True  # a quarter of the first layer's channels
    removed[graph.births["3.weight", 0][:32]] = True  # half of the third's
    table.predict(removed)
    assert asked == {"0": (1.0, 0.75), "2": (1.0, 0.75), "3": (0.75, 0.5), "7": (0.5, 1.0)}


def test_layers_are_timed_in_their_own_precision_and_padding():
    linear, x = _resized(nn.Linear(8, 8).double(), torch.Size([2, 8]), 0.5, 0.5)
    assert linear.weight.dtype == x.dtype == torch.float64
    conv, x = _resized(
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular").bfloat16(), torch.Size([2, 4, 8, 8]), 1, 1
    )
    assert (conv.padding_mode, conv.weight.dtype, x.dtype) == ("circular", torch.bfloat16, torch.bfloat16)


def test_layers_are_timed_at_the_widths_that_were_asked_for():
    conv, x = _resized(nn.Conv2d(32, 64, 3, stride=2, padding=1), X.expand(4, 3, 24, 24).shape, 0.25, 0.5)
    assert (conv.in_channels, conv.out_channels, conv.stride) == (8, 32, (2, 2))
    assert conv(x).shape == (4, 32, 12, 12)
    depthwise, x = _resized(nn.Conv2d(32, 32, 3, groups=32), X.shape, 1.0, 0.5)
    assert depthwise.groups == depthwise.in_channels == 16
    grouped, x = _resized(nn.Conv2d(32, 64, 3, groups=4), X.shape, 0.5, 0.5)
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (16, 32, 4)
    linear, x = _resized(nn.Linear(64, 10, bias=False), torch.Size([4, 64]), 0.5, 1.0)
    assert x.shape == (4, 32)
    assert linear(x).shape == (4, 10)
    assert linear.bias is None


def test_a_budget_in_milliseconds_is_met(counted_time):
    model = network()
    whole = LatencyTable(model, trace(model, X)).whole
    assert whole == flops(model, X) / 1e6
    masks = prune(model, unit="channel", latency_ms=0.6 * whole, example_inputs=X, allocation="uniform")
    assert abs(flops(slim(model, masks, X), X) / 1e6 - 0.6 * whole) < 0.02 * 0.6 * whole


def test_widths_tell_what_is_left_and_why_the_rest_stays():
    model = network()
    table = widths(model, X).set_index("layer")
    assert list(table.index) == ["0.weight", "3.weight", "7.weight"]  # a depthwise layer makes no channels
    assert list(table["outputs"]) == list(table["left"]) == [32, 64, 10]
    assert list(table["kept_because"]) == ["", "", "the model's output"]
    masks = prune(model, unit="channel", sparsity=0.5, example_inputs=X, allocation="uniform")
    assert list(widths(model, X, masks)["left"]) == [16, 32, 10]
