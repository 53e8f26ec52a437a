"""Each criterion against what it claims to measure, found by ablation or autograd; and the rules of a criterion."""

import copy
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import same, snapshot
from torch import nn
from torch.func import functional_call

from pruninglab import collect, criterion, prune
from pruninglab.criteria import CRITERIA, find, magnitude, needs, score


def scores_of(model, answer, data=None, loss=None, seed=0):
    """Layer → scores, the way `prune` gets them."""
    function = find(answer)
    names = ["weight", *(name for name in needs(function) if name != "generator")]
    generator = torch.Generator().manual_seed(seed)
    found = collect(model, names, data, loss=loss)
    return {name: score(function, name, statistics, generator).tensor() for name, statistics in found.items()}


def each_weight_removed(model, value):
    """Layer → what `value(model)` becomes without each single weight: the brute force."""
    changed = {}
    for name, parameter in model.named_parameters():
        if not name.endswith("weight"):
            continue
        changed[name] = torch.zeros(parameter.shape, dtype=torch.float64)
        for place in itertools.product(*map(range, parameter.shape)):
            with torch.no_grad():
                old = parameter[place].clone()
                parameter[place] = 0
                changed[name][place] = value(model).item()
                parameter[place] = old
    return changed


def close(found, expected, **tolerance):
    torch.testing.assert_close(found.double(), expected.double(), **({"rtol": 1e-4, "atol": 1e-6} | tolerance))


def test_magnitude_is_the_absolute_value(mlp):
    for name, scores in scores_of(mlp, "magnitude").items():
        weights = mlp.get_parameter(name).flatten().tolist()
        assert scores.flatten().tolist() == [w if w > 0 else -w for w in weights]


@pytest.mark.parametrize("name", ["snip", "taylor"])
def test_snip_is_the_gradient_of_a_switch_on_each_weight(mlp, batch, name):
    x, y = batch
    weights = {n: p.detach() for n, p in mlp.named_parameters()}
    switches = {n: torch.ones_like(p, requires_grad=True) for n, p in weights.items() if n.endswith("weight")}
    switched = weights | {n: weights[n] * c for n, c in switches.items()}
    loss = F.cross_entropy(functional_call(mlp, switched, (x,)), y)
    expected = dict(zip(switches, torch.autograd.grad(loss, list(switches.values())), strict=True))
    for layer, scores in scores_of(mlp, name, batch).items():
        close(scores, expected[layer].abs())


def test_taylor_is_the_change_of_a_loss_that_is_linear_in_the_weight():
    """Where there is nothing beyond the first order, removing a weight changes the loss by exactly the score."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2)).double()
    x, y = torch.randn(5, 2, 4, 4).double(), torch.randn(5, 3, 3, 3).double()

    def linear(outputs, targets):
        return (outputs * targets).flatten(1).sum(1).mean()

    before = linear(model(x), y).item()
    after = each_weight_removed(model, lambda m: linear(m(x), y))
    for name, scores in scores_of(model, "taylor", (x, y), linear).items():
        close(scores, (after[name] - before).abs())


def test_taylor_is_first_order_in_the_size_of_the_weight():
    """On an ordinary network the score is off by a second-order term: ten times smaller weights, a hundredth."""
    torch.manual_seed(0)
    x, y = torch.randn(20, 4).double(), torch.randint(3, (20,))
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    errors = []
    for scale in (1e-2, 1e-3):
        small = copy.deepcopy(model)
        with torch.no_grad():
            small[2].weight.mul_(scale / small[2].weight.abs())
        before = F.cross_entropy(small(x), y).item()
        after = each_weight_removed(small, lambda m: F.cross_entropy(m(x), y))["2.weight"]
        errors.append(((after - before).abs() - scores_of(small, "taylor", (x, y))["2.weight"]).abs().max())
    assert 50 < errors[0] / errors[1] < 200


def test_obd_is_the_second_order_change_of_a_quadratic():
    """Residuals of ±1 in equal number: a minimum, and there the empirical Fisher *is* the Hessian, E[xxᵀ]."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 1, bias=False)).double()
    x = torch.randn(12, 5).double().repeat(2, 1)
    y = model(x).detach() + torch.cat([torch.ones(12, 1), -torch.ones(12, 1)])

    def half_square(outputs, targets):
        return 0.5 * (outputs - targets).square().sum(1).mean()

    before = half_square(model(x), y).item()
    after = each_weight_removed(model, lambda m: half_square(m(x), y))["0.weight"]
    for name in ("obd", "fisher"):
        close(scores_of(model, name, (x, y), half_square)["0.weight"], after - before)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 3), (4,)),
        (nn.Linear(4, 3), (3, 4)),
        (nn.Conv1d(2, 3, 2, padding=1), (2, 4)),
        (nn.Conv2d(4, 4, 2, stride=2, padding=1, groups=2), (4, 4, 4)),
    ],
)
def test_wanda_is_how_far_the_output_moves_when_a_weight_goes(layer, shape):
    model, x = nn.Sequential(layer), torch.randn(6, *shape)
    before = model(x).detach()
    moved = each_weight_removed(model, lambda m: (m(x) - before).norm())["0.weight"]
    close(scores_of(model, "wanda", x)["0.weight"], moved, rtol=1e-3, atol=1e-5)


def test_random_depends_on_the_seed_alone(mlp):
    one, again, other = (scores_of(mlp, "random", seed=seed) for seed in (3, 3, 4))
    for name in one:
        assert torch.equal(one[name], again[name])
        assert not torch.equal(one[name], other[name])
        assert one[name].shape == mlp.get_parameter(name).shape
        assert len(one[name].unique()) == one[name].numel()
    with torch.no_grad():
        mlp.fc1.weight.mul_(5)
    assert torch.equal(scores_of(mlp, "random", seed=3)["fc1.weight"], one["fc1.weight"])


def test_random_leaves_torchs_own_generator_alone(mlp):
    before = torch.get_rng_state()
    prune(mlp, sparsity=0.5, criterion="random")
    assert torch.equal(before, torch.get_rng_state())


def test_random_is_uniform():
    scores = scores_of(nn.Linear(100, 100), "random")["weight"]
    counts = torch.histc(scores, 10, 0, 1)
    assert scores.min() >= 0
    assert scores.max() < 1
    assert (counts - 1000).abs().max() < 150  # five standard deviations


# ── any function is a criterion ───────────────────────────────────────────────────────────────────────────────────


def test_a_plain_function_a_lambda_and_a_partial(mlp):
    def power(weight, exponent=2.0):
        return weight.abs() ** exponent

    expected = prune(copy.deepcopy(mlp), sparsity=0.6)
    for function in (power, lambda weight: weight.square(), partial(power, exponent=3.0)):
        assert prune(copy.deepcopy(mlp), sparsity=0.6, criterion=function) == expected
    backwards = prune(copy.deepcopy(mlp), sparsity=0.6, criterion=partial(power, exponent=-1.0))
    smallest = torch.cat([p.abs().flatten() for n, p in mlp.named_parameters() if n.endswith("weight")]).sort().values
    kept = torch.cat([mlp.get_parameter(name)[mask].abs() for name, mask in backwards.items()])
    assert torch.equal(kept.sort().values, smallest[: len(kept)])


def test_the_decorator_registers_the_function_and_gives_it_back(mlp):
    @criterion
    def largest_first(weight, sign=1.0):
        return sign * weight

    assert CRITERIA["largest_first"] is largest_first
    assert largest_first(torch.tensor([2.0])) == 2.0
    masks = prune(mlp, sparsity=0.5, criterion="largest_first")
    assert all((mlp.get_parameter(name)[mask] >= 0).float().mean() > 0.8 for name, mask in masks.items())


def test_a_decorated_function_may_be_defined_again():
    """A notebook cell is run twice: the second definition counts, without a word."""
    for factor in (1, -1):

        @criterion
        def mine(weight, factor=factor):
            return factor * weight

    assert CRITERIA["mine"].__defaults__ == (-1,)


def test_a_function_named_like_a_built_in_does_not_replace_it(mlp):
    def registered():
        @criterion
        def magnitude(weight):
            return -weight.abs()

        return magnitude

    with pytest.warns(UserWarning, match="'magnitude' is built in and keeps its name; pass your function itself"):
        mine = registered()
    assert CRITERIA["magnitude"] is magnitude
    by_name = prune(copy.deepcopy(mlp), sparsity=0.5, criterion="magnitude")
    by_function = prune(copy.deepcopy(mlp), sparsity=0.5, criterion=mine)
    assert by_name == prune(copy.deepcopy(mlp), sparsity=0.5)
    assert by_function != by_name


def test_what_a_criterion_needs():
    def everything(weight, grad, generator, input_norm=None, alpha=100.0):
        return weight

    assert needs(everything) == ("weight", "grad", "generator")
    assert needs(find("wanda")) == ("weight", "input_norm")
    assert needs(partial(find("wanda"), input_norm=1.0)) == ("weight",)  # what is fixed is not measured


def test_what_a_criterion_does_to_its_arguments_changes_no_model(mlp):
    def moved(weight, initial_weight):
        return initial_weight.sub_(weight).abs_()

    initial = copy.deepcopy(mlp)
    before = snapshot(initial)
    prune(mlp, sparsity=0.5, criterion=moved, initial=initial)
    assert same(before, snapshot(initial))


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────


def raised(model, function, kind, match, **options):
    before = snapshot(model)
    with pytest.raises(kind, match=match):
        prune(model, sparsity=0.5, criterion=function, **options)
    assert same(before, snapshot(model)), "the model was changed before the error"


def test_nan_scores_name_layer_and_criterion(mlp):
    def holes(weight):
        return torch.where(weight > 0, weight, torch.nan) if weight.shape == (5, 7) else weight

    bad = int((mlp.fc2.weight <= 0).sum())
    raised(mlp, holes, ValueError, rf"criterion 'holes' gave NaN for {bad} of 35 weights of layer 'fc2\.weight'")


def test_infinite_scores_are_no_error(mlp):
    def always(weight):
        return torch.where(weight > 0, torch.inf, -torch.inf)

    masks = prune(mlp, sparsity=0.9, criterion=always)
    assert masks.kept() == round(0.1 * masks.total())


def test_scores_of_a_wrong_shape(mlp):
    def rows(weight):
        return weight.abs().sum(1)

    raised(mlp, rows, ValueError, r"criterion 'rows'.*\(7, 6\) for layer 'fc1\.weight', not \(7,\)")


@pytest.mark.parametrize(
    ("returned", "kind"), [(lambda w: w > 0, "torch.bool"), (lambda w: 3.0, "float"), (lambda w: None, "NoneType")]
)
def test_scores_that_are_no_floats(mlp, returned, kind):
    def odd(weight):
        return returned(weight)

    raised(mlp, odd, TypeError, rf"criterion 'odd' must return a floating-point tensor.*'fc1\.weight', not {kind}")


@pytest.mark.parametrize("answer", [3, None, torch.ones(2)])
def test_what_is_neither_a_name_nor_a_function(mlp, answer):
    raised(mlp, answer, TypeError, "a criterion is a name or a function, not")


def test_arguments_without_a_name(mlp):
    raised(mlp, lambda *weights: weights[0], ValueError, r"name the arguments; \*weights does not say")
    raised(mlp, lambda **options: options["weight"], ValueError, r"name the arguments; \*options does not say")


def test_an_argument_that_is_not_known(mlp):
    def wanda_mine(weight, inputnorm):
        return weight

    match = r"argument of criterion 'wanda_mine'.*'inputnorm'.*Did you mean 'input_norm'\?.*generator"
    raised(mlp, wanda_mine, ValueError, match)
    with pytest.raises(ValueError, match=match):
        criterion(wanda_mine)
    assert "wanda_mine" not in CRITERIA


def test_an_unknown_name(mlp):
    raised(mlp, "magntude", ValueError, r"unknown criterion 'magntude'\. Did you mean 'magnitude'\? Known: .*wanda")


def test_data_are_asked_for_by_name(mlp):
    raised(mlp, "wanda", ValueError, "data is needed to collect input_norm")


@pytest.mark.parametrize("seed", range(3))
def test_random_scores_do_not_follow_the_initial_weights_of_the_same_seed(seed):
    """One seed makes network and scores in every run of `compare`; the same stream twice would keep large weights."""
    from pruninglab import prune, task

    model = task("digits-mlp").model(seed)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for allocation in ("uniform", "erk"):
        masks = prune(
            task("digits-mlp").model(seed), sparsity=0.9, criterion="random", allocation=allocation, seed=seed
        )
        for name, mask in masks.items():
            kept = before[name][mask]
            assert abs(kept.mean()) < 4.5 * before[name].std() / len(kept) ** 0.5
