"""One-shot recipes of language models: against slow loops done by hand, and against what they are asked for."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import close, make_task, same, snapshot
from language_models import language_model, tokens
from language_tasks import calls, inside, tiny_text_task
from torch import nn

from pruninglab import task as named_task
from pruninglab.language import ratios
from pruninglab.layers import prunable
from pruninglab.recipes import llm, recipe
from pruninglab.statistics import collect
from pruninglab.tasks.linears import as_linear

RECIPES = {
    "wanda": llm.wanda,
    "magnitude": llm.magnitude,
    "sparsegpt": llm.sparsegpt,
    "gblm": llm.gblm,
    "gblm, l2": partial(llm.gblm, norm="l2"),
    "owl": llm.owl,
    "ecoflap": partial(llm.ecoflap, draws=4),
    "ecoflap, first order": partial(llm.ecoflap, order="first", draws=4),
}
WITH_UNITS = ("wanda", "magnitude", "sparsegpt", "gblm")
every = pytest.mark.parametrize("method", RECIPES.values(), ids=RECIPES)


@pytest.fixture(scope="module")
def t():
    return tiny_text_task()


def by_hand(model, x, score, drop):
    """Prune block after block: `score(name, weight, inputs)`, and of each row the `drop` lowest go."""
    masks = {}
    for block in range(len(model.model.layers)):
        layers = {name: one for name, one in inside(model).items() if name.startswith(f"model.layers.{block}.")}
        for name, (given, _) in calls(model, x, layers).items():
            weight, rows = layers[name].weight.data, given.flatten(0, 1)
            mask = torch.ones_like(weight, dtype=torch.bool)
            for i, scores in enumerate(score(name, weight, rows).tolist()):
                for j in sorted(range(len(scores)), key=scores.__getitem__)[: round(drop * len(scores))]:
                    mask[i, j] = False
            weight *= mask
            masks[name] = mask
    return masks


def gradients_by_hand(model, x, y):
    """Layer → the gradients of each window's own mean loss, (windows, …), one backward pass for each."""
    layers = inside(model)
    found = {name: [] for name in layers}
    for one, following in zip(x, y, strict=True):
        loss = F.cross_entropy(model(one[None]).logits[0], following)
        for name, grad in zip(
            layers, torch.autograd.grad(loss, [layer.weight for layer in layers.values()]), strict=True
        ):
            found[name].append(grad)
    return {name: torch.stack(grads) for name, grads in found.items()}


# ── against loops ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_wanda_is_the_loop_over_blocks_rows_and_weights(t):
    x, _ = t.calibration(8, 3)
    expected = by_hand(t.model(0).double(), x, lambda _, w, rows: w.abs() * rows.norm(dim=0), 0.5)
    found = llm.wanda(t.model(0).double(), t, sparsity=0.5, samples=8, seed=3)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())


@pytest.mark.parametrize(("norm", "p"), [("l1", 1), ("l2", 2)])
def test_gblm_is_wanda_with_the_norms_of_each_samples_gradient(t, norm, p):
    x, y = t.calibration(8, 3)
    grads = gradients_by_hand(t.model(0).double(), x, y)
    found = llm.gradients(t.model(0).double(), (x, y), {"l1": "grad_abs", "l2": "grad_norm"}[norm], t.loss)
    for name, grad in grads.items():
        close(found[name].double(), grad.norm(p=p, dim=0), rtol=1e-5, atol=1e-8)

    def score(name, weight, rows):
        return weight.abs() * (rows.norm(dim=0) / 8**0.5 + 100 * grads[name].norm(p=p, dim=0))

    expected = by_hand(t.model(0).double(), x, score, 0.5)
    masks = llm.gblm(t.model(0).double(), t, sparsity=0.5, norm=norm, samples=8, seed=3)
    assert all(torch.equal(masks[name], mask) for name, mask in expected.items())
    assert masks != llm.wanda(t.model(0).double(), t, sparsity=0.5, samples=8, seed=3)


def test_gblm_without_gradients_is_wanda(t):
    plain = llm.wanda(t.model(0), t, sparsity=0.6, samples=8)
    assert llm.gblm(t.model(0), t, sparsity=0.6, samples=8, alpha=0.0) == plain
    assert llm.gblm(t.model(0), t, unit="2:4", samples=8, alpha=0.0) == llm.wanda(t.model(0), t, unit="2:4", samples=8)


@pytest.mark.parametrize(("statistic", "p"), [("grad_abs", 1), ("grad_norm", 2)])
def test_gradients_of_experts_are_each_sequences_own_and_of_idle_ones_zero(statistic, p):
    model, loss = as_linear(language_model("mixtral", num_local_experts=24)).double(), tiny_text_task().loss
    x, y = tokens(6, 4), tokens(6, 4, seed=2)
    layers, sums = inside(model), {}
    for one, following in zip(x.split(1), y.split(1), strict=True):
        grads = torch.autograd.grad(
            loss(model(one), following), [layer.weight for layer in layers.values()], materialize_grads=True
        )
        for name, grad in zip(layers, grads, strict=True):
            sums[name] = sums.get(name, 0) + grad.abs() ** p
    found = llm.gradients(model, (x, y), statistic, loss)
    assert any(not total.any() for total in sums.values())  # an expert that no token went to
    for name, total in sums.items():
        close(found[name].double(), total ** (1 / p), rtol=1e-5, atol=1e-9)


def test_what_is_of_single_samples_is_refused_where_experts_mix_them():
    model, (x, y) = as_linear(language_model("mixtral")), (tokens(4, 8), tokens(4, 8, seed=2))
    for name in ("fisher", "map_taylor"):
        with pytest.raises(ValueError, match=r"experts.*is of an expert.*batches of one sample"):
            collect(model, [name], (x, y), loss=tiny_text_task().loss)
    collect(model, ["input_norm", "grad"], (x, y), loss=tiny_text_task().loss)


def test_absolute_gradients_of_convolutions_too():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 4, 2), nn.Flatten(), nn.Linear(4 * 9, 3)
    ).double()
    x, y = torch.randn(5, 4, 6, 6).double(), torch.tensor([0, 1, 2, 0, 1])
    found = collect(model, ["grad_abs"], (x, y))
    for name, layer in prunable(model).items():
        grads = [
            torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), layer.weight)[0] for i in range(5)
        ]
        close(found[name]["grad_abs"], torch.stack(grads).abs().sum(0), rtol=1e-5, atol=1e-8)


def test_owl_and_ecoflap_are_wanda_with_their_ratios(t):
    owl = partial(ratios.owl, times=3.0, spread=0.1)
    one = llm.owl(t.model(0), t, sparsity=0.6, samples=8, seed=2, times=3.0, spread=0.1)
    assert one == llm.wanda(t.model(0), t, sparsity=0.6, samples=8, seed=2, ratios=owl)
    shares = ratios.ecoflap(t.model(0), t.calibration(8, 2), 0.6, draws=4, seed=2, loss=t.loss)
    one = llm.ecoflap(t.model(0), t, sparsity=0.6, samples=8, seed=2, draws=4)
    assert one == llm.wanda(t.model(0), t, samples=8, seed=2, ratios=shares)
    assert len(set(shares.values())) > 1


# ── what is asked for ─────────────────────────────────────────────────────────────────────────────────────────────


@every
@pytest.mark.parametrize("sparsity", [None, 0.37])
def test_the_blocks_lose_exactly_what_is_asked_and_nothing_else_changes(t, method, sparsity):
    model, dense = t.model(0), t.model(0)
    options = {} if sparsity is None else {"sparsity": sparsity}
    masks = method(model, t, samples=8, **options)
    total = sum(layer.weight.numel() for layer in inside(model).values())
    assert list(masks) == list(inside(model))
    assert masks.weights().keys() == masks.keys(), "applied to this model"
    assert total - masks.kept() == round((sparsity or 0.5) * total)
    repaired = method is llm.sparsegpt
    for name, parameter in model.named_parameters():
        before = dense.get_parameter(name)
        if name in masks:
            assert not parameter[~masks[name]].any()
            assert torch.equal(parameter[masks[name]], before[masks[name]]) != repaired
        else:
            assert torch.equal(parameter, before)


@pytest.mark.parametrize("name", WITH_UNITS)
@pytest.mark.parametrize(("unit", "kept", "of"), [("2:4", 2, 4), ("1:4", 1, 4)])
def test_n_of_every_m_stay(t, name, unit, kept, of):
    masks = RECIPES[name](t.model(0), t, unit=unit, samples=8)
    for mask in masks.values():
        assert (mask.view(len(mask), -1, of).sum(2) == kept).all()
    assert RECIPES[name](t.model(0), t, unit=unit, sparsity=1 - kept / of, samples=8) == masks


@every
def test_the_same_seed_gives_the_same_and_another_another_text(t, method):
    results = []
    for seed in (0, 0, 1):
        model = t.model(0)
        results.append((method(model, t, sparsity=0.6, samples=8, seed=seed), snapshot(model)))
    (one, state), (two, again), (other, _) = results
    assert one == two
    assert same(state, again)
    if method is not llm.magnitude:
        assert one != other


def test_ratios_by_name_by_function_and_layer_by_layer(t):
    model, data = t.model(0), t.calibration(8, 0)
    by_name = llm.sparsegpt(t.model(0), t, sparsity=0.6, ratios="adapt_pruner", samples=8)
    shares = ratios.adapt_pruner(model, data, 0.6)
    assert llm.sparsegpt(t.model(0), t, ratios=shares, samples=8) == by_name
    assert llm.sparsegpt(t.model(0), t, sparsity=0.6, ratios=ratios.adapt_pruner, samples=8) == by_name
    assert {name: 1 - mask.double().mean().item() for name, mask in by_name.items()} == pytest.approx(shares)


@every
def test_half_precision_and_frozen_weights_are_no_obstacle(t, method):
    model = t.model(0).bfloat16()
    model.requires_grad_(False)
    masks = method(model, t, sparsity=0.6, samples=8)
    assert masks.sparsity() == pytest.approx(0.6, abs=1e-3)
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in model.parameters())


@every
def test_an_interrupted_run_goes_on(t, method, tmp_path):
    whole, rest = t.model(0), t.model(0)
    masks = method(whole, t, sparsity=0.6, samples=8, resume=tmp_path)
    first, last = sorted(tmp_path.iterdir())
    last.unlink()
    written = first.stat().st_mtime_ns
    assert method(rest, t, sparsity=0.6, samples=8, resume=tmp_path) == masks
    assert same(snapshot(whole), snapshot(rest))
    assert last.exists()
    assert first.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="another run"):
        method(t.model(0), t, sparsity=0.5, samples=8, resume=tmp_path)


def test_the_registered_ones_are_these():
    for name in ("wanda", "sparsegpt", "gblm", "owl", "ecoflap"):
        assert recipe(name) is getattr(llm, name)


# ── what cannot be ────────────────────────────────────────────────────────────────────────────────────────────────


def refused(method, t, error, message, **options):
    """The error comes, and the model is as it was."""
    model = t.model(0)
    with pytest.raises(error, match=message):
        method(model, t, **options)
    assert same(snapshot(model), snapshot(t.model(0)))


@every
def test_only_tasks_of_text_will_do(method):
    refused(method, make_task(), TypeError, r"task must be a LanguageTask such as 'tiny-llama', not Task\(name='tiny'")
    model = make_task().model(0)
    with pytest.raises(TypeError, match="LanguageTask"):
        method(model, named_task("digits-mlp"))


@every
@pytest.mark.parametrize("sparsity", [1.0, -0.1, 60])
def test_a_sparsity_out_of_range_changes_nothing(t, method, sparsity):
    refused(method, t, ValueError, r"fraction removed, in \[0, 1\)", sparsity=sparsity, samples=8)


@every
@pytest.mark.parametrize("samples", [0, 41])
def test_there_are_only_so_many_samples(t, method, samples):
    refused(method, t, ValueError, f"draws 1 to 40 training samples, not {samples}", samples=samples)


@every
def test_a_list_of_blocks_that_is_none_is_told(t, method):
    refused(method, t, ValueError, "no list of blocks 'layers'", samples=8, blocks="layers")


@pytest.mark.parametrize("name", WITH_UNITS)
def test_one_thing_at_a_time_fixes_the_sparsity(t, name):
    ask = partial(refused, RECIPES[name], t, ValueError, samples=8)
    ask(message="unit 2:4 fixes sparsity=0.5; leave 0.6 out", unit="2:4", sparsity=0.6)
    ask(message="unit 1:4 fixes how much each layer loses; leave ratios='owl' out", unit="1:4", ratios="owl")
    ask(message="ratios that name each layer's fraction fix the sparsity", sparsity=0.5, ratios={"a": 0.5})
    ask(message="a share is needed for each layer", ratios={"a": 0.5})
    ask(message="weight by weight or N:M", unit="channel")
    ask(message="Did you mean 'owl'", ratios="owls")


@pytest.mark.parametrize("name", ["wanda", "magnitude", "gblm"])
def test_rivals_are_of_a_row_or_of_the_layer(t, name):
    refused(RECIPES[name], t, ValueError, "unknown group 'column'", samples=8, group="column")


def test_options_of_one_recipe_are_looked_at_too(t):
    for alpha in (-1.0, float("nan"), float("inf")):
        refused(llm.gblm, t, ValueError, "alpha must be a number of at least 0", samples=8, alpha=alpha)
    refused(llm.gblm, t, ValueError, "unknown norm 'l3'", samples=8, norm="l3")
    refused(llm.sparsegpt, t, ValueError, "damping must be positive", samples=8, damping=0.0)


@every
def test_weights_that_are_not_finite_are_told_of(t, method):
    model = t.model(0)
    model.model.layers[0].self_attn.v_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"NaN|nan|finite"):
        method(model, t, samples=8)


def test_gblm_goes_on_with_the_dense_model_only(t, tmp_path):
    home, how = t, {"sparsity": 0.5, "samples": 8, "resume": tmp_path}
    done, again = home.model(0), home.model(0)
    first = recipe("gblm")(done, home, **how)
    assert recipe("gblm")(again, home, **how) == first
    assert all(torch.equal(a, b) for a, b in zip(done.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="another run"):  # its gradients are those of a pruned model
        recipe("gblm")(done, home, **how)
