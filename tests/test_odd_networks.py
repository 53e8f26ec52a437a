"""Networks that people write, and that are easily cut wrongly: each is cut exactly, or refused with its reason."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from networks import Net
from torch import Tensor, nn

from pruninglab import prune, slim
from pruninglab.graph import GraphError, channel_groups
from pruninglab.measure import flops
from pruninglab.slimmed import rebind
from pruninglab.units import structure

attend = F.scaled_dot_product_attention


def attention(run):
    layers = {name: nn.Linear(32, 32) for name in "qkv"}
    return Net(run, i=nn.Linear(6, 32), o=nn.Linear(32, 3), **layers)


def siamese(s, x):
    y = s.a(*[s.i(x)] * 3)[0]
    return s.o(y + s.a(y, y, y)[0])


def one_for_both(s, x):
    h = s.i(x)
    q = s.q(h)
    return s.o(attend(q, q, s.v(h)))


def shuffle_in_groups():
    return nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1, groups=2), nn.ChannelShuffle(2), nn.Conv2d(16, 3, 1))


def shuffled(groups):
    def run(_self, x):
        return x.view(len(x), groups, x.shape[1] // groups, *x.shape[2:]).transpose(1, 2).reshape(x.shape)

    return Net(run)


def triple_shuffle():
    return nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=3), shuffled(3), nn.Conv2d(12, 24, 1, groups=3), shuffled(3),
        nn.Conv2d(24, 24, 1, groups=4), nn.Conv2d(24, 3, 1),
    )  # fmt: skip


def over_positions(s, x):
    return s.o(F.relu(s.A @ s.a(x)))


def transposed_weights():
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    for layer in (model[0], model[2]):
        layer.weight.data = layer.weight.data.t().contiguous().t()
    return model


def to_where_it_lies(s, x):
    h = s.b(s.a(x).relu())
    return h * s.t.exp().to(h.device)


def in_halves(s, x):
    h = s.i(x)
    assert torch.arange(x.shape[1], device=h.device).ge(0).all()
    return s.o(torch.cat([-h[..., h.shape[-1] // 2 :], h[..., : h.shape[-1] // 2]], -1))


PICTURE, WORDS = (2, 3, 8, 8), (2, 5, 6)
EXACT = {
    "an attention that runs twice": (
        lambda: Net(siamese, i=nn.Linear(6, 32), a=nn.MultiheadAttention(32, 4, batch_first=True), o=nn.Linear(32, 3)),
        WORDS,
    ),
    "queries that are the keys": (lambda: attention(one_for_both), WORDS),
    "nn.ChannelShuffle before groups": (shuffle_in_groups, PICTURE),
    "shuffles of three and four": (triple_shuffle, PICTURE),
    "a constant that mixes positions": (
        lambda: Net(over_positions, a=nn.Linear(6, 16), o=nn.Linear(16, 3), A=nn.Buffer(torch.randn(5, 5))),
        WORDS,
    ),
    "weights that lie transposed": (transposed_weights, (4, 6)),
    "a parameter that is taken where the rest is": (
        lambda: Net(to_where_it_lies, a=nn.Linear(6, 16), b=nn.Linear(16, 3), t=nn.Parameter(torch.ones(()))),
        WORDS,
    ),
    "what looks at numbers of its own": (lambda: Net(in_halves, i=nn.Linear(6, 16), o=nn.Linear(16, 3)), WORDS),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_cut_exactly(name, allocation):
    torch.manual_seed(1)
    make, shape = EXACT[name]
    model, x = make().double().eval(), torch.randn(shape, dtype=torch.float64)
    unit = structure("channel", multiple_of=1)
    masks = prune(model, unit=unit, example_inputs=x, sparsity=0.5, allocation=allocation)
    small = slim(model, masks, x)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    for inputs in (x, torch.randn(7, *shape[1:], dtype=torch.float64)):
        torch.testing.assert_close(small(inputs), model(inputs), rtol=1e-9, atol=1e-12)


def normalised(s, x):
    h = s.i(x)
    return s.o(attend(F.normalize(s.q(h), dim=-1), F.normalize(s.k(h), dim=-1), s.v(h)))


def queries_again(s, x):
    h = s.i(x)
    q = s.q(h)
    return s.o(q + attend(q, s.k(h), s.v(h)))


def similarity(s, x):
    q = s.q(x)
    return s.c(q) + (q * s.k(x)).sum(-1, keepdim=True) / math.sqrt(q.shape[-1])


def alpha(s, x):
    h = s.a(x)
    return s.o(torch.add(h, s.b(x).relu(), alpha=1 / h.shape[-1]))


def filled(s, x):
    h = s.a(x)
    return s.o(h * torch.full((5, 1), h.shape[-1] ** -0.5))


def grouped_by_width(s, x):
    h = s.a(x)
    return s.o(F.group_norm(h, h.shape[1] // 4))


def exponentials(s, x):
    h = s.a(x)
    return s.o(h) + h.softmax(1).amax(1, keepdim=True).sum(-1, keepdim=True)


def norms_of_half(s, x):
    h = s.a(x)
    return s.o(h) + h.sigmoid().norm(dim=1, keepdim=True).sum(-1, keepdim=True)


def through_a_view(s, x):
    h = s.a(x)
    h.view(-1).add_(1.0)
    return s.o(h) + h.sum(-1, keepdim=True)


def by_its_place(s, x):
    h = s.a(x)
    h[..., 5] = 0.0
    return s.o(h)


def by_its_largest(s, x):
    h = s.a(x)
    return s.o(h / h.abs().amax(1, keepdim=True))


def two(run):
    return lambda: Net(run, a=nn.Linear(6, 16), b=nn.Linear(6, 16), o=nn.Linear(16, 3))


REFUSED = {
    "queries and keys that are normalised": (lambda: attention(normalised), WORDS, "cannot make up for it"),
    "queries that are used again": (lambda: attention(queries_again), WORDS, "cannot make up for it"),
    "a product divided by the root of its width": (
        lambda: Net(similarity, q=nn.Linear(6, 32), k=nn.Linear(6, 32), c=nn.Linear(32, 3)),
        WORDS,
        "takes the number 4 instead of 5.65",
    ),
    "a named number": (two(alpha), WORDS, "add takes the number 0.125 instead of 0.0625"),
    "a tensor full of a number": (two(filled), WORDS, "full takes the number"),
    "groups by the width": (
        lambda: Net(grouped_by_width, a=nn.Conv2d(3, 16, 1), o=nn.Conv2d(16, 3, 1)),
        PICTURE,
        "native_group_norm takes the number 2 instead of 4",
    ),
    "a sum of exponentials": (two(exponentials), WORDS, "sum runs over channels"),
    "a sum of norms of what is not zero": (two(norms_of_half), WORDS, "sum runs over channels"),
    "a constant added through a view": (two(through_a_view), WORDS, "sum runs over channels"),
    "a write to a place": (two(by_its_place), WORDS, "named by their places: fill_"),
    "a division by what may be zero": (two(by_its_largest), WORDS, "is not finite"),
}


@pytest.mark.filterwarnings("ignore:example_inputs never reach")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_its_reason(name):
    torch.manual_seed(1)
    make, shape, words = REFUSED[name]
    model, x = make().eval(), torch.randn(shape)
    with pytest.raises(GraphError, match=words):
        slim(model, prune(model, unit="channel", example_inputs=x, sparsity=0.5, allocation="uniform"), x)


def lenet():
    """The tutorials' network, with their constant between pictures and rows."""

    def run(s, x):
        x = F.max_pool2d(F.relu(s.a(x)), 2)
        x = F.max_pool2d(F.relu(s.b(x)), 2).view(-1, 16 * 4 * 4)
        return s.e(F.relu(s.d(F.relu(s.c(x)))))

    linear = {"c": nn.Linear(256, 120), "d": nn.Linear(120, 84), "e": nn.Linear(84, 10)}
    return Net(run, a=nn.Conv2d(1, 6, 5), b=nn.Conv2d(6, 16, 5), **linear).double()


@pytest.mark.parametrize("budget", [{"sparsity": 0.5}, {"params": 20_000}, {"flops": 6e5}])
def test_only_the_channels_stay_that_a_number_in_the_forward_fixes(budget):
    model, x = lenet(), torch.randn(2, 1, 28, 28, dtype=torch.float64)
    with pytest.warns(UserWarning, match="the channels of b.weight stay: .* view"):
        masks = prune(model, unit=structure(multiple_of=1), example_inputs=x, allocation="uniform", **budget)
    small = slim(model, masks, x)
    torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-12)
    assert len(small.b.weight) == 16
    assert len(small.a.weight) < 6
    assert len(small.c.weight) < 120
    if "sparsity" in budget:
        assert [len(layer.weight) for layer in (small.a, small.c, small.d)] == [3, 60, 42]
    if "flops" in budget:
        assert abs(flops(small, x) / budget["flops"] - 1) < 0.02


def test_only_the_channels_stay_whose_weights_cannot_make_up_for_a_number():
    def run(s, x):
        h = s.i(x)
        q, k, v = s.q(h), s.k(h), s.v(h)
        return s.o(h + s.p(attend(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v)) + s.n(F.gelu(s.m(h))))

    layers = {"i": nn.Linear(6, 32), "q": nn.Linear(32, 32), "k": nn.Linear(32, 32), "v": nn.Linear(32, 32)}
    layers |= {"p": nn.Linear(32, 32), "m": nn.Linear(32, 48), "n": nn.Linear(48, 32), "o": nn.Linear(32, 3)}
    model, x = Net(run, **layers).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    with pytest.warns(UserWarning, match="the channels of .* stay: .* cannot make up for it"):
        masks = prune(model, unit="channel", example_inputs=x, sparsity=0.5, allocation="uniform")
    small = slim(model, masks, x)
    torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-12)
    assert len(small.q.weight) == 32
    assert len(small.m.weight) == 24


@pytest.mark.filterwarnings("ignore:the channels of")
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 24, "vdim": 16}, {"add_bias_kv": True}])
@pytest.mark.parametrize("weights", [False, True])
def test_attention_of_torch_with_fewer_channels_in_its_heads(options, weights):
    def run(s, x):
        h, keys, values = s.i(x), s.k(x), s.v(x)
        return s.o(h + s.a(h, keys, values, need_weights=weights)[0])

    attention = nn.MultiheadAttention(32, 4, batch_first=True, **options)
    layers = {"i": nn.Linear(6, 32), "k": nn.Linear(6, attention.kdim), "v": nn.Linear(6, attention.vdim)}
    model, x = Net(run, **layers, a=attention, o=nn.Linear(32, 3)).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    try:
        masks = prune(model, unit=structure(multiple_of=1), example_inputs=x, sparsity=0.5, allocation="uniform")
    except GraphError:
        assert attention.bias_k is not None
        return
    small = slim(model, masks, x)
    torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-12)
    assert small.a.head_dim == (8 if attention.in_proj_weight is None else 4)


def test_a_number_that_fixes_all_is_an_error():
    model = Net(lambda s, x: s.b(s.a(x).view(-1, 16)), a=nn.Linear(6, 16), b=nn.Linear(16, 3))
    with pytest.raises(GraphError, match="does not run: in Net, view"):
        prune(model, unit="channel", example_inputs=torch.randn(2, 6), sparsity=0.5)
    assert bool((model.a.weight != 0).all())


PICKS = {
    "a slice": lambda table, n: table[:n],
    "a later slice": lambda table, n: table[3 : 3 + n],
    "an index": lambda table, n: table[torch.arange(n)],
}


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize("embedding", [False, True])
def test_a_table_of_positions_of_which_the_example_reads_a_part(pick, embedding):
    def run(s, x):
        table = s.t.weight if embedding else s.t
        return s.o(F.relu(s.a(x) + PICKS[pick](table, x.shape[1])))

    table = nn.Embedding(20, 16) if embedding else nn.Parameter(torch.randn(20, 16))
    model = Net(run, a=nn.Linear(6, 16), o=nn.Linear(16, 3), t=table).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    small = slim(model, prune(model, unit="channel", example_inputs=x, sparsity=0.5), x)
    assert (small.t.weight if embedding else small.t).shape == (20, 8)
    for length in (2, 5, 17):
        longer = torch.randn(2, length, 6, dtype=torch.float64)
        torch.testing.assert_close(small(longer), model(longer), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("heads_first", [False, True])
def test_a_bias_for_each_head_of_which_the_example_reads_a_part(heads_first):
    def run(s, x):
        i = torch.arange(x.shape[1])
        i = i[:, None] - i + 11
        bias = s.t[:, i] if heads_first else s.t[i].permute(2, 0, 1)
        q, k, v = (layer(x).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (s.q, s.k, s.v))
        return s.o(((q @ k.mT + bias).softmax(-1) @ v).transpose(1, 2).flatten(2))

    table = nn.Parameter(torch.randn((4, 23) if heads_first else (23, 4)))
    layers = {name: nn.Linear(6, 32) for name in "qkv"}
    model = Net(run, **layers, o=nn.Linear(32, 3), t=table).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    small = slim(model, prune(model, unit="head", example_inputs=x, sparsity=0.5), x)
    assert small.t.shape == ((2, 23) if heads_first else (23, 2))
    for length in (2, 5, 12):
        longer = torch.randn(2, length, 6, dtype=torch.float64)
        torch.testing.assert_close(small(longer), model(longer), rtol=1e-9, atol=1e-12)


@dataclass
class Prediction:
    """Not a tensor, nor a list of some."""

    values: Tensor


def test_what_a_model_returns_in_an_object_stays():
    model = Net(lambda s, x: Prediction(s.b(s.a(x).relu())), a=nn.Linear(6, 16), b=nn.Linear(16, 3))
    masks = prune(model, unit="channel", example_inputs=torch.randn(4, 6), sparsity=0.5)
    assert slim(model, masks, torch.randn(4, 6))(torch.randn(4, 6)).values.shape == (4, 3)


def test_a_norm_without_weights_knows_its_width():
    model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 3))
    x = torch.randn(4, 6)
    small = slim(model, prune(model, unit="channel", example_inputs=x, sparsity=0.5), x)
    assert small[1].normalized_shape == (len(small[0].weight),)
    assert small(x).shape == (4, 3)


def test_scripted_parts_stay_as_they_are():
    model = nn.Sequential(nn.Linear(6, 16), torch.jit.script(nn.ReLU()), nn.Linear(16, 3))
    x = torch.randn(4, 6)
    masks = prune(model, unit="channel", example_inputs=x, sparsity=0.5)
    torch.testing.assert_close(slim(model, masks, x)(x), model(x))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.Adafactor])
def test_optimizers_of_models_with_one_weight_in_two_places(optimizer):
    model = Net(
        lambda s, x: s.out(s.b(s.a(s.e(x)).relu())), e=nn.Embedding(9, 8), a=nn.Linear(8, 16), b=nn.Linear(16, 8)
    )
    model.out = nn.Linear(8, 9, bias=False)
    model.out.weight = model.e.weight
    x = torch.randint(9, (2, 5))
    steps = optimizer(model.parameters(), lr=1e-3)
    model(x).sum().backward()
    steps.step()
    masks = prune(model, unit="channel", example_inputs=x, sparsity=0.5)
    small = slim(model, masks, x)
    rebind(steps, model, small, masks)
    small(x).square().sum().backward()
    steps.step()
    assert {id(p) for group in steps.param_groups for p in group["params"]} == {id(p) for p in small.parameters()}


def test_groups_are_found_however_weights_lie():
    x = torch.randn(2, 6)
    plain = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    assert len(channel_groups(transposed_weights(), x)) == len(channel_groups(plain, x)) > 0


class Bent(nn.Module):
    """Attention whose queries are bent before they are divided by √d: no weight can make up for another d."""

    def __init__(self, bend):
        super().__init__()
        self.bend = bend
        self.stem, self.out = nn.Linear(40, 64), nn.Linear(64, 5)
        self.q, self.k, self.v, self.o = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        q, k, v = (f(x).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        q = torch.tanh(q) if self.bend else q
        a = ((q @ k.mT) * q.shape[-1] ** -0.5).softmax(-1)
        return self.out(self.o((a @ v).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bend", [False, True])
@pytest.mark.filterwarnings("ignore:the channels of")
def test_numbers_that_weights_cannot_make_up_for_are_seen_in_half_precision(bend, dtype):
    torch.manual_seed(0)
    model, x = Bent(bend), torch.randn(2, 6, 40)
    for layer in (model.q, model.k):
        layer.weight.data *= 8
    model.to(dtype)
    masks = prune(model, sparsity=0.5, unit="channel", example_inputs=x.to(dtype))
    small = slim(model, masks, x.to(dtype))
    assert (len(small.q.weight) == 64) == bend
    there, here = model.float()(x), small.float()(x)
    assert (here - there).abs().max() < (1e-4 if bend or dtype == torch.float32 else 0.02) * there.abs().max()
