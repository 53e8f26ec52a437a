"""The exercises of chapter 3: cutting out a filter, merging colours, the geometric median, batch-norm statistics.

As in `answers`: the library's answer, and the properties that every right one has, from the plain to the subtle.
"""

import copy
import math
from collections.abc import Callable
from itertools import pairwise, permutations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruninglab.notebook.exercises import exercise

Function = Callable[..., Any]
Triple = tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and batch-norm statistics that are all different, so that none can be taken for another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return model.eval()


# ── remove_filter ─────────────────────────────────────────────────────────────────────────────────────────────────


def _remove_filter(conv: nn.Conv2d, norm: nn.BatchNorm2d, following: nn.Conv2d, k: int) -> Triple:
    conv, norm, following = copy.deepcopy(conv), copy.deepcopy(norm), copy.deepcopy(following)
    left = [i for i in range(conv.out_channels) if i != k]
    conv.weight.data = conv.weight.data[left]
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        tensor.data = tensor.data[left]
    following.weight.data = following.weight.data[:, left]
    conv.out_channels = norm.num_features = following.in_channels = len(left)
    return conv, norm, following


remove_filter = exercise("remove_filter", _remove_filter)


def _three_layers() -> Triple:
    conv, norm = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)
    following = nn.Conv2d(6, 4, 3, padding=1)
    _randomised(nn.Sequential(conv, norm, following))
    return conv, norm, following


def _through(conv: nn.Module, norm: nn.Module, following: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = following(torch.relu(norm(conv(x))))
    return out


@remove_filter.holds("it gives a convolution, a batch norm and a convolution")
def _(f: Function) -> None:
    got = f(*_three_layers(), 2)
    assert isinstance(got, (tuple, list)), f"it gave a {type(got).__name__}, not three layers"
    kinds = [type(layer) for layer in got]
    wanted = [nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]
    assert kinds == wanted, f"it gave {', '.join(kind.__name__ for kind in kinds)}; return conv, norm, following"


@remove_filter.holds("one filter of six is gone, and with it one input of the following layer")
def _(f: Function) -> None:
    conv, norm, following = f(*_three_layers(), 2)
    for name, tensor, wanted in (
        ("the convolution's weight", conv.weight, (5, 3, 3, 3)),
        ("the norm's weight", norm.weight, (5,)),
        ("the norm's bias", norm.bias, (5,)),
        ("the norm's running_mean", norm.running_mean, (5,)),
        ("the norm's running_var", norm.running_var, (5,)),
        ("the following weight", following.weight, (4, 5, 3, 3)),
    ):
        assert tuple(tensor.shape) == wanted, f"{name} has the shape {tuple(tensor.shape)}, not {wanted}"


@remove_filter.holds("the layers say of themselves how wide they are")
def _(f: Function) -> None:
    conv, norm, following = f(*_three_layers(), 2)
    said = (conv.out_channels, norm.num_features, following.in_channels)
    assert said == (5, 5, 5), f"out_channels, num_features and in_channels are {said}, not (5, 5, 5)"


@remove_filter.holds("the layers that were given are not changed")
def _(f: Function) -> None:
    given = _three_layers()
    before = [{name: tensor.clone() for name, tensor in layer.state_dict().items()} for layer in given]
    widths = (given[0].out_channels, given[1].num_features, given[2].in_channels)
    f(*given, 2)
    for layer, old in zip(given, before, strict=True):
        for name, tensor in layer.state_dict().items():
            same = tensor.shape == old[name].shape and torch.equal(tensor, old[name])
            assert same, f"{name} of the given {type(layer).__name__} was changed; work on a copy.deepcopy"
    now = (given[0].out_channels, given[1].num_features, given[2].in_channels)
    assert now == widths, "a number of a given layer, such as out_channels, was changed"


@remove_filter.holds("what comes out is what comes out if the filter's channel is held at zero")
def _(f: Function) -> None:
    x = _draw(2, 3, 8, 8, seed=1)
    for k in (2, 0, 5):
        conv, norm, following = _three_layers()
        first, middle, last = f(conv, norm, following, k)
        small = _through(first, middle, last, x)
        following.weight.data[:, k] = 0
        wanted = _through(conv, norm, following, x)
        assert small.shape == wanted.shape, f"the output is {tuple(small.shape)}, not {tuple(wanted.shape)}"
        apart = float((small - wanted).abs().max())
        assert apart < 1e-4, f"without filter {k} the output is off by {apart:.2g}. Did each tensor lose entry {k}?"


# ── merge_colours ─────────────────────────────────────────────────────────────────────────────────────────────────


def _merge_colours(n: int, pairs: list[tuple[int, int]]) -> list[int]:
    parent = list(range(n))

    def root(colour: int) -> int:
        while parent[colour] != colour:
            colour = parent[colour]
        return colour

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return [root(colour) for colour in range(n)]


merge_colours = exercise("merge_colours", _merge_colours)


def _merged(f: Function, n: int, pairs: list[tuple[int, int]]) -> list[int]:
    got = f(n, list(pairs))
    assert isinstance(got, list), f"it gave a {type(got).__name__}, not a list"
    assert len(got) == n, f"for {n} colours it gave {len(got)} answers"
    return got


@merge_colours.holds("where nothing meets, every colour stays what it was")
def _(f: Function) -> None:
    got = _merged(f, 4, [])
    assert got == [0, 1, 2, 3], f"merge_colours(4, []) gave {got}"


@merge_colours.holds("two that meet become the smaller of the two")
def _(f: Function) -> None:
    for pair in ((1, 3), (3, 1)):
        got = _merged(f, 4, [pair])
        assert got == [0, 1, 2, 1], f"merge_colours(4, [{pair}]) gave {got}, not [0, 1, 2, 1]"


@merge_colours.holds("a colour that meets itself stays")
def _(f: Function) -> None:
    got = _merged(f, 3, [(1, 1)])
    assert got == [0, 1, 2], f"merge_colours(3, [(1, 1)]) gave {got}"


@merge_colours.holds("a chain is one colour, in whichever order its links come")
def _(f: Function) -> None:
    for links in permutations(pairwise([4, 2, 1, 3, 0])):
        got = _merged(f, 6, list(links))
        assert got == [0, 0, 0, 0, 0, 5], f"the links {list(links)} gave {got}; all but 5 hang together"


@merge_colours.holds("two groups that meet late become one")
def _(f: Function) -> None:
    got = _merged(f, 6, [(0, 1), (2, 3), (4, 5), (3, 5), (1, 4)])
    assert got == [0] * 6, f"three pairs, joined by (3, 5) and (1, 4), gave {got}; all six hang together"


@merge_colours.holds("it does so for many colours and meetings")
def _(f: Function) -> None:
    ends = torch.randint(60, (45, 2), generator=torch.Generator().manual_seed(0)).tolist()
    pairs = [(a, b) for a, b in ends]
    got, wanted = _merged(f, 60, pairs), _merge_colours(60, pairs)
    wrong = sum(a != b for a, b in zip(got, wanted, strict=True))
    assert not wrong, f"of 60 colours with 45 random meetings, {wrong} come out wrong"


# ── fpgm_scores ───────────────────────────────────────────────────────────────────────────────────────────────────


def _fpgm_scores(weight: Tensor) -> Tensor:
    flat = weight.flatten(1)
    return torch.stack([(flat - one).norm(dim=1).sum() for one in flat])


fpgm_scores = exercise("fpgm_scores", _fpgm_scores)


@fpgm_scores.holds("it gives one number for each filter")
def _(f: Function) -> None:
    got = f(_draw(6, 3, 3, 3))
    assert isinstance(got, Tensor), f"it gave a {type(got).__name__}, not a tensor"
    assert got.shape == (6,), f"for six filters of 3×3×3 it gave the shape {tuple(got.shape)}, not (6,)"


@fpgm_scores.holds("the filter that the others surround scores lowest")
def _(f: Function) -> None:
    got = f(torch.tensor([[0.0, 0.0], [3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]]))
    assert int(got.argmin()) == 0, f"the first of five filters lies in the middle; the scores are {got.tolist()}"


@fpgm_scores.holds("distances are Euclidean, and are added up")
def _(f: Function) -> None:
    got = f(torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])).tolist()
    wanted = [15.0, 10.0, 15.0]  # 5 + 10, 5 + 5, 10 + 5
    close = all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(got, wanted, strict=True))
    assert close, f"filters (0, 0), (3, 4) and (6, 8) gave {[round(v, 3) for v in got]}, not {wanted}"


@fpgm_scores.holds("moving all filters by the same amount changes nothing: only distances count")
def _(f: Function) -> None:
    weight = _draw(7, 2, 3, 3)
    assert torch.allclose(f(weight), f(weight + 1), atol=1e-3), "adding 1 to every weight changed the scores"


@fpgm_scores.holds("it is right for a convolution's filters, and leaves them as they are")
def _(f: Function) -> None:
    weight = _draw(8, 4, 3, 3, seed=2)
    before = weight.clone()
    got, wanted = f(weight), _fpgm_scores(before)
    assert torch.equal(weight, before), "your function wrote into its input"
    assert torch.allclose(got, wanted, atol=1e-2), f"for 8×4×3×3 the first score is {got[0]:.3f}, not {wanted[0]:.3f}"


# ── recalibrate ───────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def _recalibrate(model: nn.Module, x: Tensor) -> nn.Module:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    model(x)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.eval()
    return model


recalibrate = exercise("recalibrate", _recalibrate)


def _two_norms(dropout: float = 0.0) -> nn.Sequential:
    """Two convolutions, each with a norm (modules 1 and 5), and dropout before the second."""
    conv = nn.Conv2d(1, 3, 3, padding=1, bias=False)
    rest = (nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(3, 2, 3, padding=1), nn.BatchNorm2d(2))
    model = nn.Sequential(conv, nn.BatchNorm2d(3), *rest)
    _randomised(model, seed=3)
    return model


@torch.no_grad()
def _right_statistics(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance before each norm of `_two_norms`, worked out from its tensors."""
    model: Any = _two_norms()
    first = F.conv2d(x, model[0].weight, padding=1)
    mean, var = first.mean((0, 2, 3)), first.var((0, 2, 3))
    shown = [t.view(1, -1, 1, 1) for t in (mean, first.var((0, 2, 3), correction=0), model[1].weight, model[1].bias)]
    second = torch.relu((first - shown[0]) / (shown[1] + model[1].eps).sqrt() * shown[2] + shown[3])
    second = F.conv2d(second, model[4].weight, model[4].bias, padding=1)
    return [(mean, var), (second.mean((0, 2, 3)), second.var((0, 2, 3)))]


@recalibrate.holds("it gives back the model, in evaluation mode")
def _(f: Function) -> None:
    model = _two_norms()
    got = f(model, _draw(16, 1, 8, 8))
    assert got is model, f"it gave {type(got).__name__}; return the model that was given"
    training = [type(part).__name__ for part in model.modules() if part.training]
    assert not training, f"still in training mode afterwards: {', '.join(training)}"


@recalibrate.holds("the statistics of the first norm are those of the pictures it was given")
def _(f: Function) -> None:
    x = _draw(16, 1, 8, 8)
    norm: Any = f(_two_norms(), x)[1]
    mean, var = _right_statistics(x)[0]
    off = float((norm.running_mean - mean).abs().max())
    assert off < 1e-4, f"running_mean is off by {off:.2g}. Are the old statistics forgotten, and momentum None?"
    off = float((norm.running_var - var).abs().max())
    assert off < 1e-3, f"running_var is off by {off:.2g}"


@recalibrate.holds("and so are those of the second, for what the first now lets through")
def _(f: Function) -> None:
    x = _draw(16, 1, 8, 8)
    norm: Any = f(_two_norms(), x)[5]
    mean, _var = _right_statistics(x)[1]
    off = float((norm.running_mean - mean).abs().max())
    assert off < 1e-3, f"running_mean of the second norm is off by {off:.2g}"


@recalibrate.holds("nothing but the statistics changes: no weight, and momentum is what it was")
def _(f: Function) -> None:
    model: Any = _two_norms()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    f(model, _draw(16, 1, 8, 8))
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert not changed, f"these parameters were changed: {', '.join(changed)}"
    momenta = [model[1].momentum, model[5].momentum]
    assert momenta == [0.1, 0.1], f"momentum was 0.1 before, and is {momenta} now: training on would average for ever"


@recalibrate.holds("only the norms go into training mode: dropout stays off")
def _(f: Function) -> None:
    x = _draw(16, 1, 8, 8)
    norm: Any = f(_two_norms(dropout=0.5), x)[5]
    mean, _var = _right_statistics(x)[1]
    off = float((norm.running_mean - mean).abs().max())
    assert off < 1e-3, "with a dropout layer the statistics differ: put the norms into training mode, not the model"
