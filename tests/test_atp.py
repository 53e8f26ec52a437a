"""ATP: masks against closed forms, the group lasso by brute force, and the promises of a recipe."""

import math
from functools import partial

import pytest
import scipy.stats
import torch
from helpers import close, normal, same, snapshot
from language_tasks import interrupted, tiny_text_task

from pruninglab.adapters import Adapted
from pruninglab.allocation import BudgetError
from pruninglab.language.structures import find_parts
from pruninglab.recipes.atp import GENERATORS, Recurrent, atp, decided, excess, remains
from pruninglab.recipes.compresso import compresso, layers_named
from pruninglab.recipes.loraprune import members
from pruninglab.surgery import slim
from pruninglab.tasks import LanguageTask

DRAWS = 100_000
HEADS, PAIRS, SIZE, NEURONS, WIDTH = 4, 2, 8, 48, 32  # of the model below; each pair of heads shares keys and values


@pytest.fixture(scope="module")
def t():
    return tiny_text_task(width=WIDTH)


@pytest.fixture(scope="module")
def traced(t):
    model = t.model(0)
    return model, *find_parts(model, t.data["train"][0][:1])


# ── masks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_masks_are_binary_and_have_the_gradient_of_the_sigmoid():
    logits = 2 * normal(30) - 3
    given = logits.clone().requires_grad_()
    (masks,) = decided([given])
    assert torch.equal(masks.detach(), (logits + 3 >= 0).double())
    masks.sum().backward()
    s = 1 / (1 + torch.exp(-(logits + 3) / 0.4))
    close(given.grad, s * (1 - s) / 0.4)


@pytest.mark.parametrize("logit", [-5.0, -3.0, -2.0])
def test_noise_closes_as_many_as_gumbels_distribution_says(logit):
    (masks,) = decided([torch.full((DRAWS,), logit)], torch.Generator().manual_seed(1))
    open_ = 1 - math.exp(-math.exp(logit + 3))  # P(g ≥ −logit − b), with P(g ≤ x) = exp(−exp(−x))
    assert float(masks.mean()) == pytest.approx(open_, abs=5 * 0.5 / DRAWS**0.5)


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_begin_with_all_open(traced, name):
    _, _, parts = traced
    logits = GENERATORS[name][0](parts, 0)()
    assert [len(own) for own in logits] == [len(part.cells) for part in parts]
    assert all(bool(own.bool().all()) for own in decided(logits))


def test_the_recurrent_one_lets_blocks_know_of_each_other(traced):
    _, _, parts = traced
    made = Recurrent(parts, 0)
    made.inputs.requires_grad_()
    for part, logits in zip(parts, made(), strict=True):
        (grad,) = torch.autograd.grad(logits.square().sum(), made.inputs, retain_graph=True)
        assert bool((grad.abs().sum(1) > 0).all()), part.block  # of the block before and of the one after
    again, other = Recurrent(parts, 0), Recurrent(parts, 1)
    assert all(torch.equal(a, b) for a, b in zip(made(), again(), strict=True))
    assert not torch.equal(made()[0], other()[0])


# ── losses ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("left", "kept", "expected"), [(0.8, 0.4, math.log(2)), (0.2, 0.6, math.log(3)), (0.5, 0.5, 0)]
)
def test_the_excess_is_how_many_times_too_much_or_too_little_is_left(left, kept, expected):
    given = torch.tensor(left, dtype=torch.float64, requires_grad=True)
    found = excess(given, kept)
    assert found.item() == pytest.approx(expected, abs=1e-6)
    if left != kept:
        found.backward()
        assert given.grad.item() == pytest.approx(math.copysign(1 / left, left - kept))


def test_nothing_left_is_no_infinity():
    given = torch.zeros((), requires_grad=True)
    assert excess(given, 0.5).isfinite()


def lines_by_hand(kind, g):
    """Layer → (matrix, rows of B or columns of A) of one structure, as a Llama lays them out."""
    if kind == "neurons":
        return {"mlp.gate_proj": ("up", [g]), "mlp.up_proj": ("up", [g]), "mlp.down_proj": ("down", [g])}
    shared = list(range(g * SIZE, (g + 1) * SIZE))
    mine = list(range(g * 2 * SIZE, (g + 1) * 2 * SIZE))  # two heads of queries
    rows = {"q_proj": mine, "k_proj": shared, "v_proj": shared}
    return {f"self_attn.{name}": ("up", place) for name, place in rows.items()} | {"self_attn.o_proj": ("down", mine)}


def student_of(t):
    model = t.model(0).double()
    graph, parts = find_parts(model, t.data["train"][0][:1])
    names = layers_named(model, "*")
    student = Adapted(model, "lora", layers=names, rank=3, seed=0)
    with torch.no_grad():
        for i, adapter in enumerate(student.adapters):
            adapter.up.copy_(normal(*adapter.up.shape, seed=i))
    groups = [members(graph, part, names) for part in parts]
    masks = [(torch.arange(len(part.cells)) % 2).double() for part in parts]
    return student, parts, groups, masks


def test_the_lasso_is_the_sum_of_the_norms_of_what_is_closed(t):
    student, parts, groups, masks = student_of(t)
    adapters, total = student.by_name(), 0.0
    for part, mask in zip(parts, masks, strict=True):
        for g in range(len(mask)):
            for layer, (matrix, lines) in lines_by_hand(part.kind, g).items():
                adapter = adapters[f"{part.block}.{layer}.weight"]
                own = adapter.up[lines] if matrix == "up" else adapter.down[:, lines]
                total += (1 - float(mask[g])) * float(own.detach().square().sum()) ** 0.5
    assert remains(student, groups, masks).item() == pytest.approx(total, rel=1e-6)


def test_the_lasso_takes_from_what_is_closed_alone(t):
    student, _, groups, masks = student_of(t)
    remains(student, groups, masks).backward()
    adapter = student.by_name()["model.layers.0.mlp.gate_proj.weight"]
    closed = torch.arange(NEURONS) % 2 == 0
    assert not adapter.up.grad[~closed].any()
    close(adapter.up.grad[closed], adapter.up.detach()[closed] / adapter.up.detach()[closed].norm(dim=1, keepdim=True))
    with torch.no_grad():
        for own in student.adapters:
            own.up.zero_()
    student.zero_grad()
    remains(student, groups, masks).backward()  # norms of nothing have no gradient, rather than NaN
    assert all(bool(own.up.grad.isfinite().all()) for own in student.adapters if own.up.grad is not None)


# ── the recipe ────────────────────────────────────────────────────────────────────────────────────────────────────


class Told(LanguageTask):
    """A task that remembers what the student's objective is on the test text when training is over."""

    def train(self, model, **options):
        losses = super().train(model, **options)
        x, y = self.data["test"]
        with torch.no_grad():
            seen.append(float(options["objective"](model, x, y)))
        return losses


seen: list[float] = []


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_what_is_closed_can_be_cut_out(t, sparsity, generator):
    told = Told(t.name, t.load, t.build, t.training)
    model, (x, y) = t.model(0), t.data["test"]
    before, total = snapshot(model), sum(p.numel() for p in model.parameters())
    _, parts = find_parts(model, x[:1])
    masks = atp(model, told, sparsity=sparsity, steps=24, samples=16, generator=generator, lasso=0.0)
    after = snapshot(model)
    with torch.no_grad():
        assert t.loss(model(x), y).item() == pytest.approx(seen[-1], abs=1e-5)
        small = slim(model, masks, x[:1])
        torch.testing.assert_close(small(x).logits, model(x).logits, rtol=1e-5, atol=1e-5)
    costs = sum(part.cost * len(part.cells) for part in parts)
    removed = (total - sum(p.numel() for p in small.parameters())) / costs
    assert abs(removed - sparsity) <= 0.5 * max(part.cost for part in parts) / costs + 1e-9
    assert all(after[what] == before[what] for what in ("grad", "frozen", "mode", "hooks"))


def test_both_sides_learn_and_only_what_stays_is_changed(t):
    model = t.model(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = atp(model, t, sparsity=0.4, steps=10, samples=16)
    for name, parameter in model.named_parameters():
        kept = masks[name] if name in masks else torch.ones_like(parameter, dtype=torch.bool)
        adapted = name.endswith("_proj.weight")
        assert torch.equal(parameter[kept], before[name][kept]) == (not adapted), name
        assert not parameter[~kept].any()


@pytest.mark.parametrize(("generator", "options"), [("gru", {"speed": 0.01, "strength": 1.0}), ("logits", {})])
def test_structures_that_say_nothing_go_first(t, generator, options):
    """The columns of half of all neurons are zero. Those that go are of that half far more often than by chance."""
    model = t.model(0)
    t.train(model, steps=60)
    _, parts = find_parts(model, t.data["train"][0][:1])
    neurons = [part for part in parts if part.kind == "neurons"]
    with torch.no_grad():
        for part in neurons:
            model.get_parameter(part.reader)[:, ::2] = 0
    goal = sum(NEURONS // 2 * part.cost for part in neurons) / sum(part.cost * len(part.cells) for part in parts)
    masks = atp(model, t, sparsity=goal, steps=150, samples=40, generator=generator, **options)
    gone = torch.stack([~masks[part.reader].any(0) for part in neurons])
    removed, silent = int(gone.sum()), int(gone[:, ::2].sum())
    assert removed > NEURONS // 4
    by_chance = scipy.stats.hypergeom.sf(silent - 1, gone.numel(), gone.numel() // 2, removed)
    assert by_chance < 1e-3, f"{silent} of {removed}"


@pytest.mark.filterwarnings("ignore:example_inputs never reach beside")
@pytest.mark.parametrize("method", [partial(atp, samples=8), compresso])
def test_the_list_of_blocks_that_is_named_is_pruned(t, method):
    options = {"sparsity": 0.4, "steps": 4}
    model = t.model(0)
    model.beside = torch.nn.ModuleList([torch.nn.Linear(400, 400)])  # more weights than the blocks have
    with pytest.raises(ValueError, match=r"no head or neuron|no linear layer"):
        method(model, t, **options)
    assert method(model, t, blocks="model.layers", **options) == method(t.model(0), t, **options)


def test_the_seed_decides(t):
    options = {"sparsity": 0.4, "steps": 8, "samples": 16}
    first, again, other = (atp(t.model(0), t, seed=seed, **options) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_an_interruption_leaves_the_model_as_it_was(t):
    model = t.model(0)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        atp(model, interrupted(t), sparsity=0.4, steps=3, samples=8)
    assert same(snapshot(model), before)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sparsity": -0.1}, ValueError, "sparsity"),
        ({"sparsity": 0.99}, BudgetError, "would leave less than one head and one neuron"),
        ({"generator": "lstm"}, ValueError, "unknown generator 'lstm'"),
        ({"settle": 0.0}, ValueError, r"settle is a fraction of the steps, in \(0, 1\], not 0\.0"),
        ({"lasso": -1.0}, ValueError, r"weights of at least 0, not 4\.0 and -1\.0"),
        ({"samples": 500}, ValueError, "1 to 40 training samples, not 500"),
        ({"blocks": "layers"}, ValueError, "no list of blocks 'layers'"),
    ],
)
def test_what_cannot_be(t, options, error, words):
    model = t.model(0)
    before = snapshot(model)
    with pytest.raises(error, match=words):
        atp(model, t, **{"sparsity": 0.3, "steps": 2, "samples": 8} | options)
    assert same(snapshot(model), before)
