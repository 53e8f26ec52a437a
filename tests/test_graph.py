"""`channel_groups` against groups written out by hand; `test_colours` tries every way to cut."""

import pytest
import torch
from helpers import same, snapshot
from networks import Attention, Net
from torch import nn

from pruninglab.graph import GraphError, channel_groups, trace
from pruninglab.tasks.models import ResNet


def conv(inputs, outputs, size=1, **options):
    return nn.Conv2d(inputs, outputs, size, bias=False, **options)


def written(member) -> str:
    """`name/dimension:indices`, and `@rows` where only those rows are meant."""
    text = f"{member.parameter}/{member.dimension}:{','.join(map(str, member.indices))}"
    return text if member.within is None else f"{text}@{','.join(map(str, member.within))}"


def found(model, x, **options):
    """The groups that can be removed, as sets of strings; and those that cannot, likewise → why."""
    groups = channel_groups(model, x, **options)
    as_set = {group: frozenset(map(written, group.members)) for group in groups}
    assert len(set(as_set.values())) == len(groups)
    assert all((group.family == -1) == bool(group.kept_because) for group in groups)
    return (
        {as_set[group] for group in groups if not group.kept_because},
        {as_set[group]: group.kept_because for group in groups if group.kept_because},
    )


def groups_of(*texts) -> set:
    return {frozenset(text.split()) for text in texts}


NORM = "{n}.weight/0:{i} {n}.bias/0:{i} {n}.running_mean/0:{i} {n}.running_var/0:{i}"


def norm(name, i):
    return NORM.format(n=name, i=i)


def residual(s, x):
    x = s.a(x)
    return s.c(x + s.b(x))


def gated(s, x):
    x = s.a(x)
    return s.out(x * torch.sigmoid(s.up(torch.relu(s.down(x.mean((2, 3), keepdim=True))))))


def shuffled(s, x):
    x = s.a(x)
    n, c, h, w = x.shape
    return s.b(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class Tokens(nn.Module):
    """A picture as words, before them a class token; positions are added."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = conv(2, 3, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 3))
        self.place = nn.Parameter(torch.randn(1, 5, 3))
        self.norm, self.out = nn.LayerNorm(3), nn.Linear(3, 2)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        return self.out(self.norm(x)[:, 0])


class Tied(nn.Module):
    """Words in and out share one table."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner, self.out = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x):
        return self.out(self.inner(self.words(x)))


PICTURE = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
CASES = {
    "chain": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 2)),
        groups_of(*(f"0.weight/0:{i} 0.bias/0:{i} {norm(1, i)} 3.weight/1:{i}" for i in range(3))),
    ),
    "flatten: each channel owns 2 × 2 columns": (
        lambda: nn.Sequential(conv(2, 2, 3), nn.Flatten(), nn.Linear(8, 2)),
        groups_of("0.weight/0:0 2.weight/1:0,1,2,3", "0.weight/0:1 2.weight/1:4,5,6,7"),
    ),
    "residual": (
        lambda: Net(residual, a=conv(2, 2), b=conv(2, 2), c=conv(2, 1)),
        groups_of(*(f"a.weight/0:{i} b.weight/1:{i} b.weight/0:{i} c.weight/1:{i}" for i in range(2))),
    ),
    "concatenation": (
        lambda: Net(lambda s, x: s.c(torch.cat([s.a(x), s.b(x)], 1)), a=conv(2, 2), b=conv(2, 1), c=conv(3, 1)),
        groups_of("a.weight/0:0 c.weight/1:0", "a.weight/0:1 c.weight/1:1", "b.weight/0:0 c.weight/1:2"),
    ),
    "depthwise": (
        lambda: nn.Sequential(conv(2, 3), nn.Conv2d(3, 3, 3, padding=1, groups=3), conv(3, 1)),
        groups_of(*(f"0.weight/0:{i} 1.weight/0:{i} 1.bias/0:{i} 2.weight/1:{i}" for i in range(3))),
    ),
    "depthwise that doubles": (
        lambda: nn.Sequential(conv(2, 2), conv(2, 4, 3, groups=2), conv(4, 1)),
        groups_of("0.weight/0:0 1.weight/0:0,1 2.weight/1:0,1", "0.weight/0:1 1.weight/0:2,3 2.weight/1:2,3"),
    ),
    "grouped: the same column in other rows is another channel": (
        lambda: nn.Sequential(conv(2, 4), conv(4, 4, groups=2), conv(4, 1)),
        groups_of(
            "0.weight/0:0 1.weight/1:0@0,1", "0.weight/0:1 1.weight/1:1@0,1",
            "0.weight/0:2 1.weight/1:0@2,3", "0.weight/0:3 1.weight/1:1@2,3",
            *(f"1.weight/0:{i} 2.weight/1:{i}" for i in range(4)),
        ),
    ),
    "shuffle by view: the two that stand at one place of both halves": (
        lambda: Net(shuffled, a=conv(2, 4), b=conv(4, 1)),
        groups_of("a.weight/0:0,2 b.weight/1:0,1", "a.weight/0:1,3 b.weight/1:2,3"),
    ),
    "nn.ChannelShuffle": (
        lambda: nn.Sequential(conv(2, 4), nn.ChannelShuffle(2), conv(4, 1)),
        groups_of("0.weight/0:0,2 2.weight/1:0,1", "0.weight/0:1,3 2.weight/1:2,3"),
    ),
    "gate": (
        lambda: Net(gated, a=conv(2, 2), down=nn.Conv2d(2, 3, 1), up=nn.Conv2d(3, 2, 1), out=conv(2, 1)),
        groups_of(
            *(f"a.weight/0:{i} down.weight/1:{i} up.weight/0:{i} up.bias/0:{i} out.weight/1:{i}" for i in range(2)),
            *(f"down.weight/0:{i} down.bias/0:{i} up.weight/1:{i}" for i in range(3)),
        ),
    ),
    "class token and positions": (
        Tokens,
        groups_of(
            *(
                f"patch.weight/0:{i} token/2:{i} place/2:{i} norm.weight/0:{i} norm.bias/0:{i} out.weight/1:{i}"
                for i in range(3)
            )
        ),
    ),
    "transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 2, 2)),
        groups_of(*(f"0.weight/1:{i} 0.bias/0:{i} {norm(1, i)} 2.weight/0:{i}" for i in range(3))),
    ),
    "pixel shuffle": (
        lambda: nn.Sequential(conv(2, 8), nn.PixelShuffle(2), conv(2, 1)),
        groups_of("0.weight/0:0,1,2,3 2.weight/1:0", "0.weight/0:4,5,6,7 2.weight/1:1"),
    ),
    "a module that is called twice": (
        lambda: Net(lambda s, x: s.o(s.l(s.l(s.i(x)))), i=conv(2, 2), l=conv(2, 2), o=conv(2, 1)),
        groups_of(*(f"i.weight/0:{i} l.weight/1:{i} l.weight/0:{i} o.weight/1:{i}" for i in range(2))),
    ),
    "group norm": (
        lambda: nn.Sequential(conv(2, 4), nn.GroupNorm(2, 4), conv(4, 1)),
        groups_of(*(f"0.weight/0:{i} 1.weight/0:{i} 1.bias/0:{i} 2.weight/1:{i}" for i in range(4))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_groups_written_out_by_hand(case):
    make, expected = CASES[case]
    torch.manual_seed(0)
    model = make()
    free, kept = found(model, PICTURE)
    assert free == expected
    outputs = list(model.parameters())[-1].shape[0] if case != "transposed convolution" else 2
    assert len(kept) == outputs, "the outputs stay"
    assert all("the model's output" in why for why in kept.values())


def test_a_table_of_words_that_is_tied_to_the_outputs():
    free, kept = found(Tied(), torch.tensor([[1, 2, 0]]))
    columns = "words.weight/1:{i} inner.weight/1:{i} inner.weight/0:{i} inner.bias/0:{i}"
    assert free == groups_of(*(columns.format(i=i) for i in range(3)))
    assert kept.keys() == groups_of(*(f"words.weight/0:{i}" for i in range(5))), "its rows are the classes"


STREAM = "i.weight/0:{i} at.q.weight/1:{i} at.k.weight/1:{i} at.v.weight/1:{i} at.o.weight/0:{i} out.weight/1:{i}"


def attending(width, heads, keys, size):
    def forward(s, x):
        x = s.i(x)
        return s.out(x + s.at(x))

    at = Attention(width, heads, keys, size)
    return Net(forward, i=nn.Linear(3, width, bias=False), at=at, out=nn.Linear(width, 1, bias=False))


def test_attention_ties_queries_to_keys_and_values_to_the_projection():
    model, x = attending(4, 2, 2, 2), torch.randn(1, 3, 3)
    free, _ = found(model, x)
    assert free == groups_of(
        *(STREAM.format(i=i) for i in range(4)),
        *(f"at.q.weight/0:{i} at.k.weight/0:{i}" for i in range(4)),
        *(f"at.v.weight/0:{i} at.o.weight/1:{i}" for i in range(4)),
    )
    (family,) = trace(model, x).families
    # of every head equally many: each cell is what one head has of one kind, and the stream
    number = {frozenset(map(written, group.members)): i for i, group in enumerate(channel_groups(model, x))}
    cells = {frozenset(cell.tolist()) for cell in family.cells}
    for head in ((0, 1), (2, 3)):
        for one, other in (("q.weight/0", "k.weight/0"), ("v.weight/0", "o.weight/1")):
            channels = {number[frozenset([f"at.{one}:{i}", f"at.{other}:{i}"])] for i in head}
            assert channels in cells
    assert family.slots == 2


def test_queries_that_share_keys_go_with_them():
    """Four heads of queries, two of keys: heads 0 and 1 read keys 0, heads 2 and 3 keys 1."""
    free, _ = found(attending(8, 4, 2, 2), torch.randn(1, 3, 3))
    assert free == groups_of(
        *(STREAM.format(i=i) for i in range(8)),
        *(f"at.q.weight/0:{q},{q + 2} at.k.weight/0:{k}" for q, k in ((0, 0), (1, 1), (4, 2), (5, 3))),
        *(f"at.v.weight/0:{v} at.o.weight/1:{o},{o + 2}" for v, o in ((0, 0), (1, 1), (2, 4), (3, 5))),
    )


def test_multihead_attention_of_torch():
    def forward(s, x):
        x = s.i(x)
        return s.out(s.at(x, x, x)[0])

    at = nn.MultiheadAttention(4, 2, batch_first=True)
    model = Net(forward, i=nn.Linear(3, 4, bias=False), at=at, out=nn.Linear(4, 1, bias=False))
    free, _ = found(model, torch.randn(1, 3, 3))
    into, bias = "at.in_proj_weight/{d}:{i}", "at.in_proj_bias/0:{i}"
    assert free == groups_of(
        *(f"i.weight/0:{i} {into.format(d=1, i=i)}" for i in range(4)),
        *(f"{into.format(d=0, i=f'{i},{i + 4}')} {bias.format(i=f'{i},{i + 4}')}" for i in range(4)),
        *(f"{into.format(d=0, i=i + 8)} {bias.format(i=i + 8)} at.out_proj.weight/1:{i}" for i in range(4)),
        *(f"at.out_proj.weight/0:{i} at.out_proj.bias/0:{i} out.weight/1:{i}" for i in range(4)),
    )


def test_a_way_around_that_fills_new_channels_with_zeros():
    """Widths 2 and 6: the two of the first stage meet 2 and 3 of the second, beside which stand two zeros each."""
    free, _ = found(ResNet(1, 1, (2, 6)), torch.randn(1, 1, 8, 8))
    stage1, stage2 = "layer1.0", "layer2.0"
    wide = f"{stage2}.conv2.weight/0:{{i}} {NORM.format(n=stage2 + '.bn2', i='{i}')} linear.weight/1:{{i}}"
    expected = [
        f"conv1.weight/0:{i} {norm('bn1', i)} {stage1}.conv1.weight/1:{i} {stage1}.conv2.weight/0:{i} "
        f"{norm(stage1 + '.bn2', i)} {stage2}.conv1.weight/1:{i} {wide.format(i=i + 2)}"
        for i in range(2)
    ]
    expected += [wide.format(i=i) for i in (0, 1, 4, 5)]
    for stage, width in ((stage1, 2), (stage2, 6)):
        expected += [
            f"{stage}.conv1.weight/0:{i} {norm(stage + '.bn1', i)} {stage}.conv2.weight/1:{i}" for i in range(width)
        ]
    assert free == groups_of(*expected)


# ── what stays, and errors ────────────────────────────────────────────────────────────────────────────────────────


def test_excluded_layers_keep_their_outputs():
    model = nn.Sequential(conv(2, 3), conv(3, 4), conv(4, 1))
    free, kept = found(model, PICTURE, exclude="1")
    assert free == groups_of(*(f"0.weight/0:{i} 1.weight/1:{i}" for i in range(3)))
    assert {why for group, why in kept.items() if "1.weight/0" in str(group)} == {"excluded"}


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Dropout(), conv(3, 1)).train()
    model[0].eval()
    model[3].weight.requires_grad_(False)
    model[0].register_forward_hook(lambda *_: None)
    model(PICTURE).sum().backward()
    before = snapshot(model)
    channel_groups(model, PICTURE)
    assert same(before, snapshot(model))


def test_no_example_inputs():
    with pytest.raises(GraphError, match="example_inputs= is needed"):
        channel_groups(nn.Linear(2, 2), None)


def test_a_model_that_fails_names_the_module():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 2))).train()
    with pytest.raises(GraphError, match=r"Sequential fails on example_inputs, in 1\.1: RuntimeError"):
        channel_groups(model, torch.randn(1, 3))
    assert model.training
    assert all(module.training for module in model.modules())
    assert not torch.nn.modules.module._global_forward_pre_hooks
