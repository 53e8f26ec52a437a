"""Criteria of whole filters against loops, ablation and closed forms; what follows a layer; `prune` with each."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import same, snapshot
from torch import nn

from pruninglab import collect, prune, statistic, task
from pruninglab.criteria import find, needs, score
from pruninglab.graph import channel_groups
from pruninglab.relevance import relevance

WEIGHT_ONLY = ("l1_filter", "l2_filter", "fpgm")
OF_DATA = ("taylor_filter", "hrank", "beta_rank", "slimming")
OF_RELEVANCE = ("relevance_filter", "relevance_filter_epsilon", "relevance_filter_alphabeta")
FILTERS = (*WEIGHT_ONLY, *OF_DATA, *OF_RELEVANCE)


def filter_scores(model, answer, data=None, loss=None):
    """Layer → scores of its outputs, the way `prune` gets them."""
    function = find(answer)
    found = collect(model, dict.fromkeys(["weight", *needs(function)]), data, loss=loss)
    generator = torch.Generator()
    return {
        name: score(function, name, statistics, generator, of_filters=True).tensor()
        for name, statistics in found.items()
    }


def close(found, expected, **tolerance):
    torch.testing.assert_close(found.double(), expected.double(), **({"rtol": 1e-5, "atol": 1e-8} | tolerance))


def small(norm=True, activation=nn.ReLU, seed=0):
    """A convolution, perhaps with norm, an activation, and a linear layer; double precision."""
    torch.manual_seed(seed)
    norms = [nn.BatchNorm2d(3)] if norm else []
    model = nn.Sequential(nn.Conv2d(2, 3, 3), *norms, activation(), nn.Flatten(), nn.Linear(27, 4)).double().eval()
    for module in norms:
        for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
            nn.init.uniform_(tensor, 0.2, 1.5)
    return model


def examples(n=6):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (n,), generator=generator)


# ── weights ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Conv1d(2, 4, 3), nn.Conv2d(4, 6, 3, groups=2)])
def test_filter_norms_and_distances_are_those_of_loops(layer):
    model = nn.Sequential(layer)
    filters = [row.flatten().tolist() for row in layer.weight]
    norm1 = [sum(abs(w) for w in row) for row in filters]
    norm2 = [math.sqrt(sum(w * w for w in row)) for row in filters]
    apart = [sum(math.dist(row, other) for other in filters) for row in filters]
    for name, expected in (("l1_filter", norm1), ("l2_filter", norm2), ("fpgm", apart)):
        close(filter_scores(model, name)["0.weight"], torch.tensor(expected))


def test_fpgm_finds_what_others_can_stand_in_for_and_not_what_is_small():
    layer = nn.Linear(2, 4, bias=False)
    layer.weight.data = torch.tensor([[9.0, 9.0], [10.0, 10.0], [11.0, 11.0], [0.1, 0.1]])
    assert filter_scores(nn.Sequential(layer), "fpgm")["0.weight"].argmin() == 0
    assert filter_scores(nn.Sequential(layer), "l2_filter")["0.weight"].argmin() == 3


def test_fpgm_of_many_near_twins_keeps_its_digits():
    """With matrix products in single precision their distances would be rounding."""
    torch.manual_seed(0)
    layer = nn.Linear(40, 60, bias=False)
    layer.weight.data = torch.randn(1, 40) * 100 + torch.randn(60, 40) * 1e-2
    w = layer.weight.detach().double()
    expected = (w[:, None] - w[None]).square().sum(2).sqrt().sum(1)
    close(filter_scores(nn.Sequential(layer), "fpgm")["0.weight"], expected, rtol=1e-5)


def test_group_l2_is_elementwise_and_adds_up_to_the_norm_of_the_group():
    """A hidden unit's channel is a row, its bias and a column; the bias is no weight."""
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    assert torch.equal(filter_scores(model, "group_l2")["0.weight"], model[0].weight.detach() ** 2)
    group = model[0].weight.square().sum(1) + model[2].weight.square().sum(0)
    masks = prune(model, unit="channel", criterion="group_l2", sparsity=0.5, example_inputs=torch.randn(1, 3))
    assert set(masks["0.weight"].any(1).nonzero().flatten().tolist()) == set(group.topk(4).indices.tolist())


# ── norms ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Trails(nn.Module):
    """Layers with one thing or another behind them."""

    def __init__(self):
        super().__init__()
        for name in ("direct", "functional", "branches", "late", "unscaled", "added", "rows"):
            setattr(self, name, nn.Conv2d(3, 3, 1))
        for name in ("norm1", "norm2", "norm3", "norm4"):
            setattr(self, name, nn.BatchNorm2d(3))
            nn.init.normal_(getattr(self, name).weight)
        self.gamma = nn.Parameter(torch.randn(3))
        self.plain = nn.InstanceNorm2d(3)
        self.head, self.last = nn.Linear(3, 3), nn.LayerNorm(3)
        nn.init.normal_(self.last.weight)

    def forward(self, x):
        x = torch.relu(self.norm1(self.direct(x)))
        x = F.group_norm(F.relu(self.functional(x)), 3, self.gamma)
        y = self.branches(x)
        x = self.norm2(y) + y  # the layer's output lives on beside the norm
        x = self.norm3(self.late(x) + 1)
        x = self.plain(self.unscaled(x))
        x = self.norm4(self.added(x) + self.rows(x))
        return self.last(self.head(x.mean((2, 3))))


def test_norm_scale_is_that_of_the_norm_that_alone_takes_the_output():
    torch.manual_seed(0)
    model = Trails()
    found = collect(model, "norm_scale", torch.randn(4, 3, 5, 5))
    expected = dict.fromkeys(("branches", "late", "unscaled", "added", "rows"), torch.ones(3))
    expected |= {"direct": model.norm1.weight, "functional": model.gamma, "head": model.last.weight}
    for name, gamma in expected.items():
        assert torch.equal(found[f"{name}.weight"]["norm_scale"], gamma.detach().abs()), name


def test_slimming_removes_the_channels_with_the_smallest_scale():
    model = small()
    model[1].weight.data = torch.tensor([0.5, -2.0, 0.125]).double()
    assert filter_scores(model, "slimming", examples())["0.weight"].tolist() == [0.5, 2.0, 0.125]
    masks = prune(model, unit="channel", criterion="slimming", sparsity=1 / 3, data=examples())
    assert masks["0.weight"].flatten(1).any(1).tolist() == [True, True, False]


def test_a_network_without_norms_cannot_be_slimmed():
    with pytest.raises(ValueError, match=r"no layer .*followed by a norm.*0\.weight, 3\.weight.*l2_filter"):
        collect(small(norm=False), "norm_scale", examples())
    with pytest.raises(ValueError, match="empty"):
        collect(small(), "norm_scale", [])


# ── feature maps ──────────────────────────────────────────────────────────────────────────────────────────────────


def recorded_maps(model, data, loss=None):
    """Layer → (maps, gradients), as a statistic gets them."""
    kept = {}

    @statistic
    def keep_maps(maps, map_grads, layer):
        kept[layer] = maps, map_grads
        return torch.zeros(1)

    collect(model, "keep_maps", data, loss=loss)
    return kept


@pytest.mark.parametrize("inplace", [False, True])
def test_maps_are_outputs_behind_norm_and_activation(inplace):
    model, (x, y) = small(activation=lambda: nn.ReLU(inplace)), examples()
    (maps, grads), (logits, logit_grads) = (recorded_maps(model, (x, y))[layer] for layer in (model[0], model[-1]))
    behind = model[:3](x).detach().requires_grad_()
    out = model[3:](behind)
    out.retain_grad()
    (F.cross_entropy(out, y) * len(x)).backward()  # the sum of the samples' own losses
    close(maps[0], behind)
    close(grads[0], behind.grad)
    close(logits[0], out)
    close(logit_grads[0], out.grad)


def test_a_map_ends_where_something_else_uses_it():
    """Ends: behind an addition in place, before a branch that comes first, and before one that comes later."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(2, 2, 1) for _ in range(3))
            self.norm, self.head = nn.BatchNorm2d(2), nn.Linear(2, 4)

        def forward(self, x):
            u = self.a(x)
            u += 1
            v = self.b(F.relu(u))
            w = self.norm(v)
            w += v.abs()  # v is used again, after the norm
            z = self.c(w)
            s = z.sum((2, 3))
            return self.head(s + F.relu(z).sum((2, 3)))

    torch.manual_seed(0)
    model, data = Net().double().eval(), examples()
    outputs, grads = {}, {}

    def watch(module, _inputs, output):
        outputs[module] = output.detach().clone()
        output.register_hook(lambda grad: grads.update({module: grad * len(data[0])}))

    kept = recorded_maps(model, data)
    for layer in (model.a, model.b, model.c):
        layer.register_forward_hook(watch)
    F.cross_entropy(model(data[0]), data[1]).backward()
    for layer in (model.a, model.b, model.c):
        close(kept[layer][0][0], outputs[layer])
        close(kept[layer][1][0], grads[layer])


def test_taylor_filter_is_the_change_of_a_loss_that_is_linear_in_the_map():
    """Where the loss is linear behind the layer, cutting the channel out changes it by exactly the score."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()).double().eval()
    nn.init.uniform_(model[1].bias, -1, 1)
    x, weights = examples()[0], torch.randn(6, 3, 3, 3).double()

    def linear(outputs, targets):
        return (outputs * targets).flatten(1).sum(1).mean()

    def each(net):
        return (net(x) * weights).flatten(1).sum(1)

    expected = []
    for c in range(3):
        cut = copy.deepcopy(model)
        for parameter in cut.parameters():  # all that is the channel's, as `prune` does it
            parameter.data[c] = 0
        expected.append((each(model) - each(cut)).abs().mean())
    close(filter_scores(model, "taylor_filter", (x, weights), linear)["0.weight"], torch.stack(expected).detach())


def test_taylor_filter_is_the_same_before_and_behind_a_relu():
    model, (x, y) = small(norm=False), examples()
    expected = torch.zeros(3).double()
    for sample, label in zip(x, y, strict=True):
        z = model[0](sample[None])
        z.retain_grad()
        F.cross_entropy(model[1:](z), label[None]).backward()
        for c in range(3):
            change = sum(
                z[0, c, i, j].item() * z.grad[0, c, i, j].item() for i, j in itertools.product(range(3), repeat=2)
            )
            expected[c] += abs(change) / len(x)
    close(filter_scores(model, "taylor_filter", (x, y))["0.weight"], expected)


def test_tokens_and_repeated_calls_are_positions_of_a_sample():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x):  # (n, t, 3): tokens at first as they are, then merged into the batch
            a = torch.relu(self.body(x)).mean(1)
            b = torch.relu(self.body(x.flatten(0, 1))).unflatten(0, x.shape[:2]).sum(1) / 2
            return self.head(a - b)

    torch.manual_seed(0)
    model, x, y = Net().double(), torch.randn(4, 3, 3).double(), torch.randint(2, (4,))
    expected = torch.zeros(5).double()
    for sample, label in zip(x, y, strict=True):
        a = torch.relu(model.body(sample))
        a.retain_grad()
        F.cross_entropy(model.head(a.mean(0) - a.sum(0) / 2)[None], label[None]).backward()
        expected += (a * a.grad).sum(0).abs().detach() / 4
    close(filter_scores(model, "taylor_filter", (x, y))["body.weight"], expected)


def test_hrank_counts_the_singular_values_of_each_map():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2)).eval()
    model[0].weight.data[0], model[0].bias.data[0] = 0, 1  # one constant map, of rank 1
    model[0].bias.data[1] = -100  # and one that the ReLU silences, of rank 0
    x = torch.randn(5, 1, 6, 6)
    maps = torch.relu(model[0](x)).detach().double()
    expected = torch.zeros(3).double()
    for n, c in itertools.product(range(5), range(3)):
        values = torch.linalg.eigvalsh(maps[n, c].T @ maps[n, c]).clamp(min=0).sqrt()
        expected[c] += sum(float(value) > 1e-4 for value in values) / 5
    found = filter_scores(model, "hrank", x)
    close(found["0.weight"], expected)
    assert found["0.weight"][:2].tolist() == [1, 0]
    assert found["0.weight"][2] > 1


def test_hrank_of_a_linear_layer_is_how_often_a_unit_is_active():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(40, 3)
    close(filter_scores(model, "hrank", x)["0.weight"], (model[0](x) > 0).double().mean(0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1),
        lambda: nn.Conv2d(4, 6, (2, 3), groups=2),
        lambda: nn.Linear(6, 4),
        lambda: nn.Conv1d(3, 4, 2),
    ],
)
def test_beta_rank_is_that_of_loops(make):
    torch.manual_seed(0)
    layer = make()
    shape = {nn.Linear: (6,), nn.Conv1d: (3, 5)}.get(type(layer), (getattr(layer, "in_channels", 0), 4, 5))
    x = torch.randn(9, *shape)
    if len(shape) == 3:
        x[..., :2, :2] = 0.3  # a corner that never changes: a patch of the stride-2 layer is constant but for its edge
    model = nn.Sequential(layer)
    outputs = layer(x).detach().double()
    outputs = outputs.reshape(9, len(layer.weight), -1)
    raw = []
    groups = getattr(layer, "groups", 1)
    for c, filter_ in enumerate(layer.weight.detach().double()):
        mean_weight = filter_.abs().mean()
        total = 0.0
        for p in range(outputs.shape[2]):
            patch = patch_at(layer, x.double(), p, c * groups // len(layer.weight))
            total += float(outputs[:, c, p].std(unbiased=False) / patch.std(unbiased=False))
        raw.append(mean_weight * total)
    raw = torch.stack(raw)
    close(filter_scores(model, "beta_rank", x)["0.weight"], (raw - raw.min()) / (raw.max() - raw.min()), rtol=1e-4)


def patch_at(layer, x, position, group):
    """What one output position of one group is computed from, by slicing."""
    if isinstance(layer, nn.Linear):
        return x
    width = x.shape[1] // layer.groups
    x = x[:, group * width : (group + 1) * width]
    if isinstance(layer, nn.Conv1d):
        return x[..., position : position + layer.kernel_size[0]]
    x = F.pad(x, (layer.padding[1],) * 2 + (layer.padding[0],) * 2)
    (high, wide), (down, right) = layer.kernel_size, layer.stride
    across = (x.shape[3] - wide) // right + 1
    top, left = position // across * down, position % across * right
    return x[..., top : top + high, left : left + wide]


def test_positions_that_never_change_count_nothing_for_beta_rank():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 2, stride=2))
    x = torch.randn(9, 1, 4, 4)
    part = x.clone()
    part[..., :2, :2] = -0.7317  # not a number that squares exactly
    found = collect(model, "spread", part)["0.weight"]["spread"]
    alone = [collect(model, "spread", x[..., i : i + 2, j : j + 2]) for i, j in ((0, 2), (2, 0), (2, 2))]
    close(found, sum(values["0.weight"]["spread"] for values in alone))


def test_filters_that_are_all_alike_get_zeros_from_beta_rank():
    layer = nn.Linear(3, 4)
    nn.init.ones_(layer.weight)
    assert filter_scores(nn.Sequential(layer), "beta_rank", torch.randn(5, 3))["0.weight"].tolist() == [0, 0, 0, 0]


def test_batches_do_not_matter():
    model, (x, y) = small(), examples(10)
    for name in OF_DATA:
        whole = filter_scores(model, name, (x, y))
        parts = filter_scores(model, name, [(x[:3], y[:3]), (x[3:], y[3:])])
        for layer in whole:
            close(parts[layer], whole[layer])


@pytest.mark.parametrize("name", FILTERS)
def test_permuting_filters_permutes_their_scores(name):
    model, data, order = small(), examples(), torch.tensor([2, 0, 1])
    shuffled = copy.deepcopy(model)
    for module, other in ((model[0], shuffled[0]), (model[1], shuffled[1])):
        for key, tensor in module.state_dict().items():
            if tensor.ndim:
                other.state_dict()[key].copy_(tensor[order])
    columns = model[-1].weight.detach().unflatten(1, (3, 9))
    shuffled[-1].weight.data.copy_(columns[:, order].flatten(1))
    close(shuffled(data[0]), model(data[0]))
    one, other = filter_scores(model, name, data)["0.weight"], filter_scores(shuffled, name, data)["0.weight"]
    assert one.unique().numel() > 1
    close(other, one[order])


def test_relevance_filters_score_as_the_rules_say():
    model, data = small(), examples()
    for name, rule in zip(OF_RELEVANCE, ("zplus", "epsilon", "alphabeta"), strict=True):
        expected = relevance(model, data, rule=rule)
        for layer, scores in filter_scores(model, name, data).items():
            assert torch.equal(scores, expected[layer])


def test_maps_of_layers_that_see_samples_elsewhere_are_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.head(self.body(x.transpose(0, 1)).mean(0))

    with pytest.raises(ValueError, match=r"body\.weight gave outputs of shape \(3, 5, 4\).*4 samples|samples first"):
        collect(Net(), "map_rank", torch.randn(4, 3, 3))


def test_a_statistic_of_the_model_takes_what_it_may():
    @statistic
    def sizes(model):
        return {name: p.new_tensor([p.numel()]) for name, p in model.named_parameters()}

    found = collect(small(), ["sizes", "weight"], exclude="3")
    assert found["0.weight"]["sizes"].tolist() == [54]
    with pytest.raises(ValueError, match=r"'inputs'.*data, exclude, loss, model"):
        statistic(lambda model, inputs: {})
    with pytest.raises(ValueError, match="nothing to finish"):
        statistic(lambda model: {}, finish=lambda total: total)


# ── prune ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def born(group):
    """The member of a group that is the first row, or rows, of a layer."""
    return next(
        m for m in group.members if m.dimension == 0 and m.parameter.endswith("weight") and "bn" not in m.parameter
    )


@pytest.mark.parametrize("name", [*FILTERS, "group_l2"])
@pytest.mark.parametrize("place", ["digits-cnn", "digits-resnet"])
def test_prune_removes_half_of_the_channels(place, name):
    lab = task(place)
    model, data = lab.model(0), lab.calibration(32)
    asked = {"unit": "channel", "criterion": name, "sparsity": 0.5, "data": data, "example_inputs": data[0][:1]}
    if name == "slimming" and place == "digits-cnn":
        before = snapshot(model)
        with pytest.raises(ValueError, match="followed by a norm"):
            prune(model, **asked)
        assert same(before, snapshot(model))
        return
    groups = [group for group in channel_groups(model, data[0][:1]) if not group.kept_because]
    masks = prune(model, **asked)
    left = sum(int(masks[rows.parameter].flatten(1)[list(rows.indices)].any()) for rows in map(born, groups))
    assert abs(left - len(groups) / 2) <= 8  # half of the step of 16 channels at most
    assert all(mask.any() for mask in masks.values())
    out = model(data[0])
    assert out.shape == (32, 10)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", FILTERS)
def test_single_weights_cannot_be_pruned_by_scores_of_filters(name):
    model, data = small(), examples()
    with pytest.raises(ValueError, match=r"it scores filters: use unit='channel'"):
        prune(model, criterion=name, sparsity=0.5, data=data)
