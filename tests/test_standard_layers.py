"""Layers of torch that are more than one product: cut exactly, kept with a reason, or refused while nothing is lost."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import same, snapshot
from networks import Net, randomize, relative_error, slimmed, vision
from reference import masked_outputs
from torch import nn
from torch.utils._pytree import tree_map

from pruninglab import prune
from pruninglab.batches import call
from pruninglab.graph import GraphError, channel_groups, trace
from pruninglab.widths import widths

EXACT = 1e-9


def double(model, x):
    """In float64 and evaluation mode, with nothing right by chance."""
    model = model.double().eval()
    x = tree_map(lambda t: t.double() if t.is_floating_point() else t, x)
    randomize(model, x)
    return model, x


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def padding():
    """Four sentences of five words; of all but one the last two are none."""
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[1:, 3:] = True
    return mask


# ── cut ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def instance_norms(**options):
    norms = [nn.InstanceNorm2d(16, **options) for _ in range(2)]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), norms[0], nn.ReLU(), nn.Conv2d(16, 16, 3), norms[1], nn.Sigmoid(), nn.Flatten(),
        nn.Linear(16 * 64, 3),
    ), noise(4, 3, 12, 12)  # fmt: skip


def encoder(norm_first):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first)
    enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(s, x, mask):
        return s.out(s.enc(s.words(x), src_key_padding_mask=mask)[:, 0])

    return Net(forward, words=nn.Linear(3, 16), enc=enc, out=nn.Linear(16, 3)), (noise(4, 5, 3), padding())


def transformer():
    def forward(s, x, y, mask):
        later = nn.Transformer.generate_square_subsequent_mask(y.shape[1]).to(x.dtype)
        x, y = s.i(x), s.j(y)
        return s.out(s.t(x, y, src_key_padding_mask=mask, memory_key_padding_mask=mask, tgt_mask=later))

    whole = nn.Transformer(16, 4, 1, 1, 32, batch_first=True)
    parts = {"i": nn.Linear(3, 16), "j": nn.Linear(3, 16), "t": whole, "out": nn.Linear(16, 3)}
    return Net(forward, **parts), (noise(4, 5, 3), noise(4, 6, 3), padding())


def gated(size):
    if size == 1:
        return nn.Sequential(nn.Linear(3, 16), nn.GLU(), nn.Linear(8, 3)), noise(4, 3)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GLU(1), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3)
    ), noise(4, 3, 8, 8)


def windows():
    """A convolution as F.unfold writes it, and back by F.fold."""

    def forward(s, x):
        x = F.unfold(torch.relu(s.a(x)), 3, padding=1).transpose(1, 2)
        x = F.fold(s.b(x).transpose(1, 2), (9, 9), 2)
        return s.c(x.sigmoid().flatten(1))

    return Net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Linear(72, 32), c=nn.Linear(8 * 81, 3)), noise(4, 3, 8, 8)


def memory():
    """Attention whose keys and values come from what has no channels."""

    def forward(s, x, y):
        return s.out(s.at(s.i(x), y, y)[0])

    at = nn.MultiheadAttention(16, 4, kdim=3, vdim=3, batch_first=True)
    return Net(forward, i=nn.Linear(3, 16), at=at, out=nn.Linear(16, 3)), (noise(4, 5, 3), noise(4, 6, 3))


CUT = {
    "instance norm": lambda: instance_norms(),
    "instance norm with parameters": lambda: instance_norms(affine=True),
    "instance norm with statistics": lambda: instance_norms(affine=True, track_running_stats=True),
    "encoder": lambda: encoder(False),
    "encoder, norm first": lambda: encoder(True),
    "transformer": transformer,
    "gated linear unit": lambda: gated(1),
    "gated linear unit of pictures": lambda: gated(2),
    "unfold and fold": windows,
}


@pytest.mark.parametrize("case", CUT)
def test_cut_exactly(case):
    torch.manual_seed(0)
    model, x = double(*CUT[case]())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small, graph, removed, _ = slimmed(model, x)
        given = call(small, x)
    assert relative_error(masked_outputs(model, graph, removed, x), given) <= EXACT
    assert set(graph.kept.values()) == {"the model's output"}, "all else can go"
    for family in graph.families:
        for cell in family.cells:
            assert int(removed[cell].sum()) == len(cell) // 2
    for module in small.modules():
        if isinstance(module, nn.InstanceNorm2d):
            assert module.num_features == 8


# ── kept, with a reason ───────────────────────────────────────────────────────────────────────────────────────────


class Mixer(nn.Module):
    def __init__(self, channels=16, tokens=9) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.tokens = nn.Sequential(nn.Linear(tokens, 24), nn.GELU(), nn.Linear(24, tokens))
        self.channels = nn.Sequential(nn.Linear(channels, 32), nn.GELU(), nn.Linear(32, channels))

    def forward(self, x):
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))


def mixing():
    def forward(s, x):
        return s.out(s.blocks(s.i(x).flatten(2).transpose(1, 2)).mean(1))

    blocks = nn.Sequential(Mixer(), Mixer())
    return Net(forward, i=nn.Conv2d(3, 16, 4, stride=4), blocks=blocks, out=nn.Linear(16, 3)), noise(4, 3, 12, 12)


def recurrent(kind):
    def forward(s, x):
        return s.out(s.cell(s.i(x))[0][:, -1])

    cell = getattr(nn, kind)(16, 16, 2, batch_first=True)
    return Net(forward, i=nn.Linear(3, 16), cell=cell, out=nn.Linear(16, 3)), noise(4, 5, 3)


def raw_attention():
    def forward(s, x):
        return s.out(s.at(x, x, x)[0])

    return Net(forward, at=nn.MultiheadAttention(16, 4, batch_first=True), out=nn.Linear(16, 3)), noise(4, 5, 16)


KEPT = {
    "mixer: its layers over positions": (mixing, "blocks.0.tokens.0.weight", "mixes positions while channels lie acr"),
    "LSTM": (lambda: recurrent("LSTM"), "cell.weight_hh_l0", "in cell"),
    "GRU": (lambda: recurrent("GRU"), "cell.weight_hh_l1", "in cell"),
    "attention over the inputs": (
        raw_attention,
        "at.in_proj_weight",
        "as wide as the stream that it reads, which stays",
    ),
    "attention over the inputs of another": (memory, "at.v_proj_weight", "which stays"),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept_with_a_reason_and_the_rest_is_cut_exactly(case):
    torch.manual_seed(0)
    make, name, why = KEPT[case]
    model, x = double(*make())
    small, graph, removed, _ = slimmed(model, x)
    assert relative_error(masked_outputs(model, graph, removed, x), call(small, x)) <= EXACT
    assert all(why in graph.kept[channel] for channel in graph.outputs(name).tolist())
    table = widths(model, graph).set_index("layer")
    assert why in table.kept_because[name]
    assert removed.any()
    assert small.get_parameter(name).shape[0] == model.get_parameter(name).shape[0]


def test_the_stream_of_a_mixer_is_cut():
    torch.manual_seed(0)
    model, x = double(*mixing())
    small, *_ = slimmed(model, x)
    assert small.i.weight.shape[0] == small.blocks[1].channels[2].weight.shape[0] == 8
    assert small.blocks[0].channels[0].weight.shape == (16, 8)
    assert small.blocks[0].tokens[0].weight.shape == (24, 9)


def test_what_is_never_reached_is_named():
    def forward(s, x):
        x = s.a(x)
        return s.out(s.rare(x) if len(x) > 100 else x)

    model = Net(forward, a=nn.Linear(3, 16), rare=nn.Linear(16, 16), out=nn.Linear(16, 3))
    with pytest.warns(UserWarning, match="never reach rare: nothing is known"):
        channel_groups(model, noise(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        channel_groups(model, noise(101, 3))


# ── refused, before a zero is written ─────────────────────────────────────────────────────────────────────────────


COMPUTED = {
    "weight norm": nn.utils.parametrizations.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "torch.nn.utils.prune": lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("case", COMPUTED)
def test_computed_weights_are_refused_by_name(case):
    import torch.nn.utils.prune  # noqa: F401  (it is no part of torch.nn otherwise)

    model = nn.Sequential(nn.Linear(3, 8), COMPUTED[case](nn.Linear(8, 8)), nn.Linear(8, 2))
    before = snapshot(model)
    with pytest.raises(GraphError, match="the weight of '1' is not a plain parameter"):
        prune(model, unit="channel", sparsity=0.5, example_inputs=noise(1, 3))
    assert same(before, snapshot(model))


@pytest.mark.parametrize(
    ("name", "where"),
    [("vision transformer", "encoder_layer_0.self_attention"), ("swin", "features.1.0.attn"), ("maxvit", "attn_layer")],
)
def test_heads_that_are_as_wide_as_the_stream_by_code_are_refused(name, where):
    """These forwards take the width of all heads from that of their input, so that no head can go alone."""
    model, x = vision(name)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(GraphError, match=where):
        prune(model, unit="head", sparsity=0.5, example_inputs=x)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_width_that_a_forward_names_is_refused_before_a_zero_is_written():
    model = Net(lambda s, x: s.b(s.a(x).view(-1, 16)), a=nn.Linear(3, 16), b=nn.Linear(16, 2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(GraphError, match="does not run: in Net, view"):
        prune(model, unit="channel", sparsity=0.5, example_inputs=noise(4, 3))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


# ── followed for shapes alone, and for real where that does not do ────────────────────────────────────────────────


def test_a_network_that_asks_for_numbers_is_run_as_it_is():
    def forward(s, x):
        x = torch.relu(s.a(x))
        return s.b(x) * 2 if x.sum() > 0 else s.b(x)

    torch.manual_seed(0)
    model, x = double(Net(forward, a=nn.Linear(3, 16), b=nn.Linear(16, 2)), noise(4, 3))
    assert not trace(model, x).colouring.light
    small, graph, removed, _ = slimmed(model, x)
    assert relative_error(masked_outputs(model, graph, removed, x), small(x)) <= EXACT
    assert small.a.weight.shape[0] == 8


def test_otherwise_no_product_is_computed():
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
    seen = []
    model[1].register_forward_hook(lambda _module, _inputs, output: seen.append(output.device.type))
    slimmed(model, noise(4, 3))
    assert set(seen) == {"meta"}


# ── what a forward computes beside its layers ─────────────────────────────────────────────────────────────────────


def attention(scaled):
    def forward(s, x):
        x = s.i(x)
        q, k, v = s.q(x), s.k(x), s.v(x)
        return s.o(scaled(q @ k.transpose(1, 2), torch.tensor(k.shape[-1], dtype=x.dtype)).softmax(-1) @ v)

    return Net(forward, **{name: nn.Linear(16, 16) for name in "iqkv"}, o=nn.Linear(16, 2))


@pytest.mark.parametrize(
    "scaled",
    [
        lambda scores, d: scores / d.sqrt(),
        lambda scores, d: scores * d**-0.5,
        lambda scores, d: d.rsqrt() * scores,
        lambda scores, d: scores / math.sqrt(float(d)),
    ],
)
def test_the_scale_of_attention_may_be_a_tensor(scaled):
    torch.manual_seed(0)
    model, x = double(attention(scaled), noise(4, 3, 16))
    small, graph, removed, _ = slimmed(model, x)
    assert small.q.weight.shape[0] == 8
    assert relative_error(masked_outputs(model, graph, removed, x), small(x)) <= EXACT


def test_elsewhere_a_number_that_depends_on_a_width_is_refused():
    def forward(s, x):
        h = s.a(x).relu()
        return s.b(h * torch.tensor(h.shape[-1]).rsqrt())

    model = Net(forward, a=nn.Linear(16, 8), b=nn.Linear(8, 2))
    before = snapshot(model)
    with pytest.raises(GraphError, match=r"mul takes the number 0\.5 instead of 0\.353553, which depends on a width"):
        prune(model, unit="channel", sparsity=0.5, example_inputs=noise(4, 16))
    assert same(before, snapshot(model))


SPOILING = {
    "hardtanh above zero": lambda h: F.hardtanh(h, 1, 6),
    "threshold to two": lambda h: F.threshold(h, 0.5, 2.0),
    "a power of two": lambda h: 2**h,
    "a quotient": lambda h: 1 / (h.abs() + 1),
    "to the power of zero": lambda h: h**0,
    "batch norm without parameters": lambda h: F.batch_norm(h, *torch.ones(2, 8).to(h)),
    "padding with ones": lambda h: F.pad(h[..., None], (0, 1), value=1.0).sum(-1),
}
SPARING = {
    "hardtanh": lambda h: F.hardtanh(h, -1, 6),
    "threshold to zero": lambda h: F.threshold(h, 0.5, 0.0),
    "a power": lambda h: h**3,
    "gelu": lambda h: F.gelu(h, approximate="tanh"),
    "clamp": lambda h: h.clamp(-1, 1),
    "padding": lambda h: F.pad(h[..., None], (0, 1)).sum(-1),
}


@pytest.mark.parametrize("case", SPOILING | SPARING)
def test_channels_are_summed_as_they_are_only_if_masked_ones_are_zero(case):
    def forward(s, x):
        h = (SPOILING | SPARING)[case](s.a(x))
        return s.b(h) + h.sum(-1, keepdim=True)

    torch.manual_seed(0)
    model, x = double(Net(forward, a=nn.Linear(16, 8), b=nn.Linear(8, 2)), noise(4, 16))
    if case in SPOILING:
        with pytest.raises(GraphError, match="sum runs over channels"):
            prune(model, unit="channel", sparsity=0.5, example_inputs=x)
        return
    small, graph, removed, _ = slimmed(model, x)
    assert relative_error(masked_outputs(model, graph, removed, x), small(x)) <= EXACT


def test_channels_that_only_go_all_together_cannot_go():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LocalResponseNorm(3), nn.Conv2d(8, 2, 3))
    with pytest.raises(GraphError, match="they only go all together"):
        prune(model, unit="channel", sparsity=0.5, example_inputs=noise(1, 3, 8, 8))


class Remembering(nn.Module):
    """Fills a cache when it is first called, counts its calls in training, and has a head for training alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.extra = nn.Linear(16, 8), nn.Linear(8, 2), nn.Linear(8, 2)
        self.register_buffer("rates", torch.rand(16))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", None)
        self.table = self.last = None

    def forward(self, x):
        if self.table is None:
            self.table = (torch.arange(float(len(x)))[:, None] * self.rates).cos()
        if self.training:
            self.calls += 1
            self.mean = x.mean()
        self.last = self.a(x + self.table[: len(x)])
        return (self.b(self.last), self.extra(self.last)) if self.training else self.b(self.last)


def test_what_a_forward_remembers_is_as_before():
    model, x = Remembering().eval(), noise(4, 16)
    before = snapshot(model)
    channel_groups(model, x)
    assert same(before, snapshot(model))
    assert model.table is model.last is model.mean is None
    prune(model, unit="channel", sparsity=0.5, example_inputs=x)
    assert model.table is model.last is model.mean is None
    assert int(model.calls) == 0
    assert model(x).isfinite().all()
