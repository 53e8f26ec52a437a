"""Relevance against loops over contributions, and against what the rules promise: conservation, gradient × input."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import same, snapshot
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pruninglab import collect, prune, task
from pruninglab.relevance import RULES, relevance
from pruninglab.tasks import models

RULE_CASES = [("epsilon", {}), ("zplus", {}), ("alphabeta", {"alpha": 2.0}), ("alphabeta", {"alpha": 1.5})]


def close(found, expected, **tolerance):
    torch.testing.assert_close(found.double(), expected.double(), **({"rtol": 1e-6, "atol": 1e-9} | tolerance))


def slow_shares(x, weight, bias, relevance_of_outputs, rule, alpha=1.0, epsilon=1e-6):
    """Relevance of the inputs of one linear layer for one sample, contribution by contribution."""
    shares = [0.0] * len(x)
    for j, r in enumerate(relevance_of_outputs):
        parts = [float(x[i] * weight[j, i]) for i in range(len(x))]
        if rule == "epsilon":
            z = sum(parts) + float(bias[j])
            z += epsilon if z >= 0 else -epsilon
            for i, part in enumerate(parts):
                shares[i] += part / z * r
            continue
        up, down = sum(p for p in parts if p > 0), sum(p for p in parts if p < 0)
        a, b = (alpha, 1 - alpha) if up and down else (float(up != 0), float(down != 0 and alpha != 1))
        for i, part in enumerate(parts):
            if part > 0:
                shares[i] += a * part / up * r
            elif part < 0:
                shares[i] += b * part / down * r
    return shares


@pytest.mark.parametrize(("rule", "options"), RULE_CASES)
@torch.no_grad()
def test_relevance_of_an_mlp_is_that_of_loops(rule, options):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x, y = torch.randn(7, 4).double(), torch.randint(3, (7,))
    totals = {name: torch.zeros(width).double() for name, width in (("0.weight", 6), ("2.weight", 5), ("4.weight", 3))}
    for sample, label in zip(x, y, strict=True):
        a1 = model[1](model[0](sample))
        a2 = model[3](model[2](a1))
        r = [float(model[4](a2)[k]) if k == label else 0.0 for k in range(3)]
        totals["4.weight"] += torch.tensor(r).double()
        r = slow_shares(a2, model[4].weight, model[4].bias, r, rule, **options)
        totals["2.weight"] += torch.tensor(r).double()
        r = slow_shares(a1, model[2].weight, model[2].bias, r, rule, **options)
        totals["0.weight"] += torch.tensor(r).double()
    found = relevance(model, (x, y), rule=rule, **options)
    assert list(found) == list(totals)
    for name, total in totals.items():
        close(found[name], total / 7)


def bare(model):
    """The model in double precision without biases (and, for batch norms, without shifts)."""
    model = model.double().eval()
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def chain():
    """Layer after layer with all the pooling there is, so that all relevance has to pass through each."""
    torch.manual_seed(0)
    return bare(
        nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
            nn.Dropout(),
            nn.Conv2d(8, 5, 1, bias=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 3),
        )
    )


@pytest.mark.parametrize(
    ("rule", "options"), [("epsilon", {"epsilon": 1e-12}), ("zplus", {}), ("alphabeta", {"alpha": 2.0})]
)
def test_relevance_is_conserved_from_layer_to_layer(rule, options):
    model = chain()
    with torch.no_grad():  # an answer with no positive part would have no one to go to under z⁺
        model[-1].weight.abs_()
    x, y = torch.rand(9, 2, 8, 8).double() + 0.1, torch.randint(3, (9,))
    answer = model(x).gather(1, y[:, None]).mean()
    for name, values in relevance(model, (x, y), rule=rule, **options).items():
        assert torch.isclose(values.sum(), answer, rtol=1e-6), name


@pytest.mark.parametrize("rule", RULES)
def test_a_residual_addition_shares_relevance_and_keeps_the_total(rule):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 4, 3, padding=1)
            self.inner = nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            y = torch.relu(self.inner(x))
            y += x
            return self.head(y.mean((2, 3)))

    torch.manual_seed(0)
    model = bare(Net())
    nn.init.uniform_(model.head.weight)
    x, y = torch.rand(6, 1, 5, 5).double(), torch.randint(3, (6,))
    found = relevance(model, (x, y), rule=rule, epsilon=1e-12)
    answer = model(x).gather(1, y[:, None]).mean()
    assert torch.isclose(found["stem.weight"].sum(), answer, rtol=1e-6)  # what came by both ways
    a = torch.relu(model.stem(x))
    b = torch.relu(model.inner(a))
    parts = (model.head.weight[y][:, :, None, None] * b / 25).sum((0, 2, 3)) / 6  # all shares are positive: z = w·a
    close(found["inner.weight"], parts)


def test_epsilon_is_gradient_times_activation_without_biases():
    model = bare(task("digits-cnn").model(0))
    x, y = (part[:20] for part in task("digits-cnn").data["test"])
    x = x.double()
    found = relevance(model, (x, y), rule="epsilon", epsilon=1e-12)
    kept = {}
    for name, module in model.named_modules():
        if f"{name}.weight" in found:
            module.register_forward_hook(lambda m, i, out, name=name: (out.retain_grad(), kept.update({name: out}))[0])
    model(x).gather(1, y[:, None]).mean().backward()
    for name, out in kept.items():
        over = [d for d in range(out.ndim) if d != 1]
        close(found[f"{name}.weight"], (out * out.grad).sum(over), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("rule", "options"), RULE_CASES)
def test_a_batch_norm_counts_as_one_with_its_layer(rule, options):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(2, 5, 3).double(), nn.BatchNorm2d(5).double()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.2, 1.5)
    nn.init.uniform_(norm.weight, -1, 1)
    first = nn.Conv2d(1, 2, 3).double()
    rest = (nn.ReLU(), nn.Flatten(), nn.Linear(45, 3).double())
    apart = nn.Sequential(first, nn.ReLU(), conv, norm, *rest).eval()
    folded = nn.Sequential(first, nn.ReLU(), fuse_conv_bn_eval(conv.eval(), norm.eval()), *rest).eval()
    data = torch.randn(8, 1, 7, 7).double(), torch.randint(3, (8,))
    found, expected = relevance(apart, data, rule=rule, **options), relevance(folded, data, rule=rule, **options)
    close(found["0.weight"], expected["0.weight"])
    close(found["2.weight"], expected["2.weight"])


def test_a_batch_norm_alone_hands_on_all_but_the_share_of_its_shift():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4).double().eval()
    nn.init.uniform_(norm.bias, 0.5, 1)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), norm, nn.Linear(4, 2)).double().eval()
    x, y = torch.randn(5, 3).double(), torch.randint(2, (5,))
    a = model[:2](x)
    scaled = a * norm.weight * (norm.running_var + norm.eps).rsqrt()
    z = model(x).gather(1, y[:, None])
    handed = norm(a) * model[3].weight[y] / (z + 1e-9 * z.sign()) * z
    expected = (handed * scaled / (scaled + norm.bias)).mean(0)
    close(relevance(model, (x, y), rule="epsilon", epsilon=1e-9)["0.weight"], expected, rtol=1e-5)


def test_zplus_is_alphabeta_with_alpha_one_and_never_changes_sign():
    model = task("digits-cnn").model(1)
    data = tuple(part[:16] for part in task("digits-cnn").data["test"])
    one = relevance(model, data, rule="alphabeta", alpha=1.0)
    for name, values in relevance(model, data, rule="zplus").items():
        assert torch.equal(values, one[name])
    positive = copy.deepcopy(model)
    nn.init.constant_(positive.fc2.bias, 100.0)  # all logits positive
    assert all((values >= 0).all() for values in relevance(positive, data).values())


def test_without_labels_the_largest_output_is_explained():
    model = task("digits-cnn").model(0)
    x = task("digits-cnn").data["test"][0][:30]
    found, given = relevance(model, x), relevance(model, (x, model(x).argmax(1)))
    assert all(torch.equal(found[name], given[name]) for name in given)


def test_batches_do_not_matter_and_the_mean_is_over_samples():
    model = task("digits-resnet").model(0).double()
    x, y = (part[:20] for part in task("digits-resnet").data["test"])
    x = x.double()
    whole, parts = relevance(model, (x, y)), relevance(model, [(x[:3], y[:3]), (x[3:], y[3:])])
    for name in whole:
        close(parts[name], whole[name])


def test_permuting_filters_permutes_their_relevance():
    torch.manual_seed(0)
    model, order = models.mlp(6, 7, 5, 3).double(), torch.randperm(7)
    shuffled = copy.deepcopy(model)
    with torch.no_grad():
        shuffled.fc1.weight.copy_(model.fc1.weight[order])
        shuffled.fc1.bias.copy_(model.fc1.bias[order])
        shuffled.fc2.weight.copy_(model.fc2.weight[:, order])
    data = torch.randn(9, 6).double(), torch.randint(3, (9,))
    for rule in RULES:
        close(
            relevance(shuffled, data, rule=rule)["fc1.weight"], relevance(model, data, rule=rule)["fc1.weight"][order]
        )


def test_the_model_is_as_before():
    model = task("digits-resnet").model(0).train()
    model.conv1.weight.requires_grad_(False)
    before, frozen = snapshot(model), [p.requires_grad for p in model.parameters()]
    relevance(model, tuple(part[:8] for part in task("digits-resnet").data["test"]))
    assert same(before, snapshot(model))
    assert frozen == [p.requires_grad for p in model.parameters()]
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_the_statistics_are_the_three_rules():
    model, data = models.mlp(4, 5, 3), (torch.randn(6, 4), torch.randint(3, (6,)))
    found = collect(model, ["relevance", "relevance_epsilon", "relevance_alphabeta"], iter([data]))  # read three times
    for name in found:
        for statistic, rule in (("", "zplus"), ("_epsilon", "epsilon"), ("_alphabeta", "alphabeta")):
            assert torch.equal(found[name]["relevance" + statistic], relevance(model, data, rule=rule)[name])
    assert set(relevance(model, data, exclude="fc2")) == {"fc1.weight"}


class Odd(nn.Module):
    def __init__(self, through):
        super().__init__()
        self.one, self.two, self.through = nn.Linear(4, 4), nn.Linear(4, 3), through

    def forward(self, x):
        return self.two(self.through(self.one(x)))


def ignored(x):
    torch.relu_(x)  # what it returns is not used, so the replacement is lost
    return x


@pytest.mark.parametrize(
    ("through", "error", "message"),
    [
        (lambda x: x.softmax(1), ValueError, "'softmax'.*known are layers"),
        (lambda x: x * x, ValueError, "through 'mul'"),
        (lambda x: 1 / x, ValueError, "through '.*(div|reciprocal)"),
        (lambda x: F.batch_norm(x, None, None, training=True), ValueError, "no running statistics"),
        (ignored, RuntimeError, "writing in place"),
    ],
)
def test_what_no_rule_is_known_for_is_named(through, error, message):
    with pytest.raises(error, match=message):
        relevance(Odd(through), (torch.randn(8, 4), torch.randint(3, (8,))))


def test_what_is_wrong_is_said():
    model, x, y = models.mlp(4, 5, 3), torch.randn(6, 4), torch.randint(3, (6,))
    for options, message in (
        ({"rule": "zplsu"}, "Did you mean 'zplus'"),
        ({"alpha": 0.5}, "alpha=0.5"),
        ({"epsilon": 0}, "epsilon=0"),
    ):
        with pytest.raises(ValueError, match=message):
            relevance(model, (x, y), **options)
    with pytest.raises(ValueError, match="classes 0 to 2"):
        relevance(model, (x, y + 3))
    with pytest.raises(ValueError, match="empty"):
        relevance(model, [])
    with pytest.raises(ValueError, match=r"\(samples, classes\).*\(6, 2, 3\)"):
        relevance(nn.Sequential(nn.Linear(4, 3)), torch.randn(6, 2, 4))
    model.forward = lambda x: F.linear(x.flatten(1), model.fc1.weight)
    with pytest.raises(ValueError, match=r"never called.*fc2\.weight"):
        relevance(model, (x, y))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_explained_too(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 5)).to(dtype)
    x = torch.randn(32, 3, 8, 8).to(dtype)
    for name in ("relevance_filter", "relevance_filter_epsilon", "relevance_filter_alphabeta"):
        masks = prune(
            copy.deepcopy(model), sparsity=0.5, unit="channel", criterion=name, data=(x, torch.arange(32) % 5)
        )
        assert 0 < int(masks["0.bias"].sum()) < 16
