"""The run on colours: what moves them, what ends them, what keeps them; and every way to cut, tried."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from networks import Net, slimmed_or_refused
from torch import nn

from pruninglab.colours import Colouring
from pruninglab.graph import channel_groups


def written(group) -> frozenset:
    return frozenset(f"{m.parameter}/{m.dimension}:{','.join(map(str, m.indices))}" for m in group.members)


# ── operations that only move numbers ─────────────────────────────────────────────────────────────────────────────

MOVES = {
    "permute": lambda x: x.permute(2, 0, 1),
    "view": lambda x: x.view(2, 3, 2, 4),
    "flatten": lambda x: x.flatten(1),
    "split and transpose": lambda x: x.view(2, 3, 2, 4).transpose(1, 2),
    "chunk": lambda x: x.chunk(2, -1)[1],
    "split": lambda x: x.split([3, 5], -1)[1],
    "unbind": lambda x: x.unbind(1)[2],
    "stack": lambda x: torch.stack([x, x.flip(-1)], 1),
    "cat": lambda x: torch.cat([x[..., 4:], x[..., :2]], -1),
    "roll": lambda x: x.roll(3, -1),
    "roll of positions": lambda x: x.roll(1, 1),
    "flip": lambda x: x.flip(-1),
    "index": lambda x: x[..., torch.tensor([5, 0, 0, 7])],
    "index of positions": lambda x: x[:, torch.tensor([2, 0])],
    "index_select": lambda x: x.index_select(-1, torch.tensor([1, 6])),
    "repeat": lambda x: x.repeat(1, 2, 2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, -1),
    "expand": lambda x: x[:, None].expand(2, 4, 3, 8),
    "unfold": lambda x: x.unfold(-1, 4, 2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.transpose(1, 2)[..., None], 2),
    "unflatten": lambda x: x.unflatten(-1, (4, 2))[..., 1],
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "strided": lambda x: x[..., 1::2],
    "select": lambda x: x[:, 1],
    "diagonal": lambda x: x[:, :, :3].diagonal(dim1=1, dim2=2),
    "contiguous and clone": lambda x: x.transpose(1, 2).contiguous().clone(),
    "zeros around positions": lambda x: F.pad(x, (0, 0, 1, 2)),
    "zeros around channels": lambda x: F.pad(x, (2, 1)),
    "tril": lambda x: x.tril(),
    "relu, dropout, scale": lambda x: 3 * F.dropout(torch.relu(x), 0.0) / 3,
    "largest of positions": lambda x: x.amax(1),
    "mean of positions": lambda x: x.mean(1, keepdim=True),
    "pool": lambda x: F.max_pool1d(x.transpose(1, 2), 2),
    "einops-like shuffle": lambda x: x.view(2, 3, 4, 2).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("move", MOVES)
def test_shadows_say_where_each_number_came_from(move):
    """Channel i gives the number i + 1 everywhere, so that the numbers themselves tell the same."""
    model = Net(lambda s, x: MOVES[move](s.layer(x)), layer=nn.Linear(2, 8))
    with torch.no_grad():
        model.layer.weight.zero_()
        model.layer.bias.copy_(torch.arange(1, 9))
        colouring = Colouring(model)
        with colouring:
            out = model(torch.randn(2, 3, 2))
    shadow = colouring.root(colouring.shadow(out).expand(out.shape).contiguous())
    born = colouring.root(colouring.births["layer.weight", 0])
    assert len(set(born.tolist())) == 8, "a move unites no channels"
    places = out.round().long()
    assert torch.equal(shadow[places > 0], born[places[places > 0] - 1])
    if "positions" not in move and move != "tril":  # a zero beside a position is of the channel that it stands in
        assert not torch.isin(shadow[places == 0], born).any()


# ── what meets ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "join",
    [torch.add, torch.mul, torch.sub, torch.maximum, lambda a, b: torch.where(a > 0, a, b), lambda a, b: a.add_(b)],
)
def test_channels_that_meet_become_one(join):
    model = Net(
        lambda s, x: s.out(join(s.a(x), s.b(x).flip(-1))), a=nn.Linear(2, 3), b=nn.Linear(2, 3), out=nn.Linear(3, 1)
    )
    groups = [group for group in channel_groups(model, torch.randn(1, 2)) if not group.kept_because]
    assert sorted(map(sorted, map(written, groups))) == sorted(
        sorted([f"a.weight/0:{i}", f"a.bias/0:{i}", f"b.weight/0:{2 - i}", f"b.bias/0:{2 - i}", f"out.weight/1:{i}"])
        for i in range(3)
    )


# ── what stays, and why ───────────────────────────────────────────────────────────────────────────────────────────


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.into = nn.Linear(3, 5), nn.Linear(5, 4)
        self.cell, self.out = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.cell(self.into(self.before(x)))[0])


def reasons(model, x):
    """layer → why its outputs stay."""
    found = {}
    for group in channel_groups(model, x):
        for member in group.members:
            if member.dimension == 0 and member.parameter.endswith("weight"):
                found.setdefault(member.parameter, set()).add(group.kept_because)
    return found


def test_what_an_unknown_operation_reads_is_kept():
    found = reasons(Recurrent(), torch.randn(1, 3, 3))
    assert found["before.weight"] == {""}
    assert all("cannot be followed in cell" in why for why in found["into.weight"])
    assert found["out.weight"] == {"the model's output"}


@pytest.mark.parametrize(
    ("operation", "why"),
    [
        (lambda x: x.sort(-1)[0], "sort cannot be followed"),
        (lambda x: torch.fft.fft(x).real, "cannot be followed"),
        (lambda x: x.softmax(-1), "_softmax runs over channels"),
        (lambda x: x.cumsum(-1), "cumsum runs over channels"),
        (lambda x: x * x.amax(-1, keepdim=True), "runs over channels"),
        (lambda x: x * x[..., :1], "one channel acts on many"),
    ],
)
def test_what_mixes_channels_keeps_them_and_says_why(operation, why):
    model = Net(lambda s, x: s.c(operation(s.b(s.a(x)))), a=nn.Linear(2, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 2))
    found = reasons(model, torch.randn(1, 2))
    assert found["a.weight"] == {""}
    assert "" not in found["b.weight"]
    assert any(why in text for text in found["b.weight"])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.c(torch.relu(h := s.b(s.a(x)))) + h[h > 0].sum(),
        lambda s, x: s.c(torch.relu(h := s.b(s.a(x)))) + h[h > 0.3].exp().sum(),
        lambda s, x: s.c(torch.relu(h := s.b(s.a(x)))) + h[h > -0.3].exp().sum(),  # zeros are chosen too
        lambda s, x: s.c((h := s.b(s.a(x))) * len(h.nonzero())),
    ],
)
def test_a_shape_that_depends_on_the_data_is_never_cut_wrongly(forward, seed):
    torch.manual_seed(seed)
    model = Net(forward, a=nn.Linear(3, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    small = slimmed_or_refused(model, x)
    if small is not None:
        assert torch.allclose(small(x), model(x), atol=1e-12)


def test_a_batch_norm_in_training_mode_is_followed_as_in_evaluation():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).train()
    x, before = torch.randn(1, 2), model[1].running_mean.clone()  # one sample, with which training would fail
    groups = [group for group in channel_groups(model, x) if not group.kept_because]
    assert len(groups) == 3
    assert all(f"1.running_var/0:{i}" in written(group) for i, group in enumerate(groups))
    assert torch.equal(model[1].running_mean, before)
    assert model[1].training


def test_a_head_that_only_runs_in_training_is_followed_too():
    def forward(s, x):
        x = s.a(x)
        return (s.out(x), s.aux(x)) if s.training else s.out(x)

    model = Net(forward, a=nn.Linear(2, 3), out=nn.Linear(3, 1), aux=nn.Linear(3, 1)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it would say that the inputs never reach it
        groups = [written(group) for group in channel_groups(model, torch.randn(1, 2))]
    assert all({f"aux.weight/1:{i}", f"out.weight/1:{i}"} <= groups[i] for i in range(3))


# ── every way to cut, tried ───────────────────────────────────────────────────────────────────────────────────────


def runs(forward, parts, x):
    try:
        return forward(parts, x)
    except RuntimeError:
        return None


def only_way(forward, parts, cuttable, first, x):
    """The least set of slices with which `first` = (name, dimension, index) can go, found by trying them all.

    A way is right if the smaller tensors still fit each other and give what the large ones with zeros give.
    `cuttable` lists (name, dimension, how many indices go together): what may be cut; no rule says what must.
    """
    name, dim, index = first
    places = [(n, d, [(), *itertools.combinations(range(parts[n].shape[d]), k)]) for n, d, k in cuttable]
    ways = []
    for chosen in itertools.product(*(choices for _, _, choices in places)):
        cuts = {(name, dim): (index,)}
        cuts |= {(n, d): indices for (n, d, _), indices in zip(places, chosen, strict=True) if indices}
        small, zeroed = dict(parts), {n: p.clone() for n, p in parts.items()}
        for (n, d), indices in cuts.items():
            left = [i for i in range(parts[n].shape[d]) if i not in indices]
            small[n] = small[n].index_select(d, torch.tensor(left))
            zeroed[n].index_fill_(d, torch.tensor(indices), 0)
        output = runs(forward, small, x)
        if output is not None:
            wanted = forward(zeroed, x)
            if output.shape == wanted.shape and torch.allclose(output, wanted, atol=1e-10):
                ways.append(frozenset(f"{n}/{d}:{','.join(map(str, i))}" for (n, d), i in cuts.items()))
    least = [way for way in ways if not any(other < way for other in ways)]
    assert len(least) == 1, least
    return least[0]


def chain_(p, x):
    x = F.conv2d(x, p["a.weight"], p["a.bias"])
    x = F.batch_norm(x, p["n.running_mean"], p["n.running_var"], p["n.weight"], p["n.bias"])
    return F.conv2d(torch.relu(x), p["c.weight"])


def residual_(p, x):
    x = F.conv2d(x, p["a.weight"])
    return F.conv2d(x + F.conv2d(x, p["b.weight"]), p["c.weight"])


def cat_(p, x):
    x = torch.cat([F.conv2d(x, p["a.weight"]), F.conv2d(x, p["b.weight"])], 1)
    return F.conv2d(x, p["c.weight"])


def depthwise_(p, x):
    x = F.conv2d(x, p["a.weight"])
    return F.conv2d(F.conv2d(x, p["d.weight"], p["d.bias"], groups=x.shape[1]), p["c.weight"])


def flatten_(p, x):
    return F.linear(F.conv2d(x, p["a.weight"]).flatten(1), p["c.weight"])


def gate_(p, x):
    x = F.conv2d(x, p["a.weight"])
    gate = F.conv2d(torch.relu(F.conv2d(x.mean((2, 3), keepdim=True), p["down.weight"])), p["up.weight"])
    return F.conv2d(x * torch.sigmoid(gate), p["out.weight"])


def transposed_(p, x):
    return F.conv_transpose2d(F.conv_transpose2d(x, p["a.weight"], p["a.bias"]), p["c.weight"])


class Written(nn.Module):
    """A forward that is a function of tensors by name."""

    def __init__(self, forward, shapes) -> None:
        super().__init__()
        self.run = forward
        for name, shape in shapes.items():
            owner, own = name.split(".")
            if not hasattr(self, owner):
                setattr(self, owner, nn.Module())
            value = torch.rand(shape, dtype=torch.float64) + 0.5
            getattr(self, owner).register_parameter(own, nn.Parameter(value, requires_grad=False))

    def forward(self, x):
        return self.run(dict(self.named_parameters()), x)


BRUTE = {
    "chain": (
        chain_,
        {"a.weight": (3, 2, 1, 1), "a.bias": 3, "n.running_mean": 3, "n.running_var": 3, "n.weight": 3, "n.bias": 3,
         "c.weight": (2, 3, 1, 1)},
        [("a.bias", 0, 1), ("n.running_mean", 0, 1), ("n.running_var", 0, 1), ("n.weight", 0, 1), ("n.bias", 0, 1),
         ("c.weight", 1, 1)],
    ),
    "residual": (
        residual_,
        {"a.weight": (3, 2, 1, 1), "b.weight": (3, 3, 1, 1), "c.weight": (2, 3, 1, 1)},
        [("b.weight", 0, 1), ("b.weight", 1, 1), ("c.weight", 1, 1)],
    ),
    "concatenation": (
        cat_,
        {"a.weight": (3, 2, 1, 1), "b.weight": (2, 2, 1, 1), "c.weight": (2, 5, 1, 1)},
        [("b.weight", 0, 1), ("b.weight", 1, 1), ("c.weight", 1, 1)],
    ),
    "depthwise": (
        depthwise_,
        {"a.weight": (3, 2, 1, 1), "d.weight": (3, 1, 2, 2), "d.bias": 3, "c.weight": (2, 3, 1, 1)},
        [("d.weight", 0, 1), ("d.bias", 0, 1), ("c.weight", 1, 1)],
    ),
    "flatten": (
        flatten_,
        {"a.weight": (3, 2, 4, 3), "c.weight": (2, 6)},  # 1 × 2 positions are left
        [("c.weight", 1, 2)],
    ),
    "gate": (
        gate_,
        {"a.weight": (3, 2, 1, 1), "down.weight": (4, 3, 1, 1), "up.weight": (3, 4, 1, 1), "out.weight": (2, 3, 1, 1)},
        [("down.weight", 1, 1), ("down.weight", 0, 1), ("up.weight", 1, 1), ("up.weight", 0, 1), ("out.weight", 1, 1)],
    ),
    "transposed convolution": (
        transposed_,
        {"a.weight": (2, 3, 2, 2), "a.bias": 3, "c.weight": (3, 2, 1, 1)},
        [("a.bias", 0, 1), ("c.weight", 0, 1)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BRUTE)
def test_the_only_way_that_a_cut_can_be_made(case):
    forward, shapes, cuttable = BRUTE[case]
    torch.manual_seed(0)
    model, x = Written(forward, shapes), torch.rand(3, 2, 4, 4, dtype=torch.float64)
    dim = 1 if case == "transposed convolution" else 0
    parts = {name: p.detach() for name, p in model.named_parameters()}
    way = only_way(forward, parts, cuttable, ("a.weight", dim, 1), x)
    groups = channel_groups(model, x)
    (mine,) = (group for group in groups if "a.weight" in str(group) and f"a.weight/{dim}:1" in written(group))
    assert written(mine) == way
    assert not mine.kept_because
