"""Compresso: hard concrete gates against Monte Carlo and closed forms, the budget, and the promises of a recipe."""

import copy
import math
import sys

import pytest
import torch
from helpers import close, normal, same, snapshot
from language_models import language_model, logits, tokens
from language_tasks import interrupted, tiny_text_task

from pruninglab.allocation import BudgetError
from pruninglab.language.gates import chance_open, fold, gated, sample, settled, share
from pruninglab.language.structures import find_parts
from pruninglab.recipes.compresso import Budget, compresso
from pruninglab.surgery import slim
from pruninglab.tasks import LanguageTask
from pruninglab.tasks.linears import as_linear

DRAWS = 200_000


@pytest.fixture(scope="module")
def t():
    return tiny_text_task(width=32)


@pytest.fixture(scope="module")
def traced(t):
    model = t.model(0)
    return model, find_parts(model, t.data["train"][0][:1])[1]


def gates_of(parts, seed=0, low=0.0):
    """Random gates, some of them 0 and some 1."""
    return [(1.5 * (normal(len(part.cells), seed=seed + i) + 0.3)).clamp(low, 1) for i, part in enumerate(parts)]


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def in_parts(parts):
    return sum(part.cost * len(part.cells) for part in parts)


# ── hard concrete gates ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("log_alpha", [-4.0, -1.0, 0.0, 0.7, 3.0])
def test_how_often_a_gate_is_open_closed_and_anything_between(log_alpha):
    given = torch.full((DRAWS,), log_alpha, dtype=torch.float64)
    z = sample(given, torch.Generator().manual_seed(1))
    sure = 5 * 0.5 / DRAWS**0.5  # five standard deviations of a frequency
    assert float((z > 0).double().mean()) == pytest.approx(float(chance_open(given[0])), abs=sure)
    for at in (0.0, 0.2, 0.5, 0.9):  # P(z ≤ t) = P(u ≤ σ(β log((t − γ) / (ζ − t)) − log α))
        below = 1 / (1 + math.exp(log_alpha - 2 / 3 * math.log((at + 0.1) / (1.1 - at))))
        assert float((z <= at).double().mean()) == pytest.approx(below, abs=sure)
    assert float(z.min()) >= 0
    assert float(z.max()) <= 1


def test_gates_of_the_draw_have_the_gradient_of_finite_differences():
    log_alpha = normal(40, seed=2)
    given = log_alpha.clone().requires_grad_()
    sample(given, torch.Generator().manual_seed(3)).sum().backward()
    up, down = (sample(log_alpha + h, torch.Generator().manual_seed(3)) for h in (1e-6, -1e-6))
    close(given.grad, (up - down) / 2e-6, rtol=1e-4, atol=1e-6)
    assert 0 < int((given.grad == 0).sum()) < 40  # a gate at 0 or 1 does not learn from this draw


def test_what_stands_for_a_gate_when_nothing_is_drawn():
    close(settled(torch.tensor([0.0, -2.5, 3.0], dtype=torch.float64)), torch.tensor([0.5, 0.0, 1.0]).double())
    close(settled(torch.tensor(1.0, dtype=torch.float64)), torch.tensor(1.2 / (1 + math.exp(-1)) - 0.1).double())


def test_the_expected_size_is_the_mean_size_of_draws(traced):
    _, parts = traced
    sizes = [len(part.cells) for part in parts]
    log_alpha = 2 * normal(sum(sizes), seed=4)
    noise = torch.Generator().manual_seed(5)
    many = torch.stack([(sample(log_alpha, noise) > 0).double() for _ in range(4000)])
    drawn = torch.stack([share(parts, one.split(sizes)) for one in many])
    expected = float(share(parts, chance_open(log_alpha).split(sizes)))
    assert float(drawn.mean()) == pytest.approx(expected, abs=5 * float(drawn.std()) / 4000**0.5)


def test_the_size_is_that_of_the_model_cut_out(t):
    model = t.model(0)
    x = t.data["train"][0][:1]
    _, parts = find_parts(model, x)
    before = parameters(model)
    masks = compresso(model, t, sparsity=0.4, steps=2)
    columns = {part.reader: masks[part.reader].any(0)[part.columns[:, 0]].double() for part in parts}
    left = share(parts, [columns[part.reader] for part in parts])
    assert before - parameters(slim(model, masks, x)) == round((1 - float(left)) * in_parts(parts))


# ── gates on a model ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_gates_can_be_folded_into_the_weights(family):
    model, x = as_linear(language_model(family, use_cache=False)).double(), tokens(2)
    _, parts = find_parts(model, x)
    assert [part.kind for part in parts] == 3 * ["heads", "neurons"]
    before, plain, gates = snapshot(model), logits(model, x), gates_of(parts)
    with gated(model, parts, gates):
        told = logits(model, x)
    assert float((told - plain).abs().max()) > 1e-3 * float(plain.abs().max())
    assert same(snapshot(model), before)
    fold(model, parts, gates)
    close(logits(model, x), told, rtol=1e-9, atol=1e-12)


def test_a_closed_gate_is_a_structure_cut_out(t, monkeypatch):
    """Gates of 0 and 1 say what the model says without those structures."""
    model = t.model(0).double()
    x = t.data["test"][0]
    plain = copy.deepcopy(model)
    monkeypatch.setattr(sys.modules[Budget.__module__], "settled", torch.ones_like)
    masks = compresso(model, t, sparsity=0.5, steps=1, lr=0.0)
    _, parts = find_parts(plain, x[:1])
    stays = [masks[part.reader].any(0)[part.columns[:, 0]].double() for part in parts]
    with torch.no_grad(), gated(plain, parts, stays):
        close(slim(model, masks, x[:1])(x).logits, plain(x).logits)


def test_gates_have_gradients(t):
    model, (x, y) = t.model(0).double(), t.calibration(4)
    _, parts = find_parts(model, x[:1])
    gates = [own.requires_grad_() for own in gates_of(parts, low=0.2)]

    def loss():
        with gated(model, parts, gates):
            return t.loss(model(x), y)

    grads = torch.autograd.grad(loss(), gates)
    for own, grad in zip(gates, grads, strict=True):
        with torch.no_grad():  # steps wide enough for norms that compute in float32
            own[1] += 1e-3
            up = loss()
            own[1] -= 2e-3
            down = loss()
            own[1] += 1e-3
        assert float(grad[1]) == pytest.approx(float(up - down) / 2e-3, rel=1e-2, abs=1e-4)


def test_an_error_leaves_no_gate_behind(traced):
    model, parts = traced
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt), gated(model, parts, gates_of(parts)):
        raise KeyboardInterrupt
    with (
        pytest.raises(ValueError, match=r"heads of model\.layers\.0 need \(2,\) gates, not \(48,\)"),
        gated(model, parts, gates_of(parts)[1:]),
    ):
        pass
    assert same(snapshot(model), before)


# ── the budget ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_gates_go_down_and_multipliers_up(traced):
    _, parts = traced
    budget = Budget(parts, 0.4, speed=0.1, seed=0)
    with torch.no_grad():
        budget.linear += 0.3
    before = budget.log_alpha.detach().clone()
    chance = 1 / (1 + math.exp(-(math.log(99) + 2 / 3 * math.log(11))))  # of all gates, to begin with
    off = (1 - chance) - 0.5 * 0.4
    assert budget.expected().item() == pytest.approx(1 - chance, abs=1e-6)
    excess = budget.excess(0.5)
    assert excess.item() == pytest.approx(0.3 * off + 100 * off**2, rel=1e-4)
    excess.backward()
    budget.step()
    assert budget.linear.item() == pytest.approx(0.3 + 0.5 * off, rel=1e-4)
    assert budget.square.item() == pytest.approx(100 + 100 * off**2, rel=1e-4)
    assert bool((budget.log_alpha < before).all())  # too little is expected to go
    assert budget.log_alpha.grad is None


@pytest.mark.parametrize("sparsity", [0.2, 0.6])
def test_the_multipliers_find_the_budget(traced, sparsity):
    """Whatever else the loss asks of the gates: here it wants them all open, some more than others."""
    _, parts = traced
    budget = Budget(parts, sparsity, speed=0.3, seed=0)
    pull = normal(len(budget.log_alpha), seed=6).abs().float() / len(budget.log_alpha)
    for step in range(400):
        loss = -(pull * torch.cat(budget.draw())).sum()
        (loss + budget.excess(min(1.0, step / 280))).backward()
        budget.step()
    assert budget.expected().item() == pytest.approx(sparsity, abs=0.01)


# ── the recipe ────────────────────────────────────────────────────────────────────────────────────────────────────


class Told(LanguageTask):
    """A task that remembers what the student says of the test text when training is over."""

    def train(self, model, **options):
        losses = super().train(model, **options)
        x, y = self.data["test"]
        with torch.no_grad():
            seen.append(float(options["objective"](model, x, y)))
        return losses


seen: list[float] = []


@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_what_was_learned_is_in_the_weights(t, sparsity):
    """Adapters, gates and masks: nothing changes when they are folded in, and when what is empty is cut out."""
    told = Told(t.name, t.load, t.build, t.training)
    model, (x, y) = t.model(0), t.data["test"]
    before, total = snapshot(model), parameters(model)
    _, parts = find_parts(model, x[:1])
    masks = compresso(model, told, sparsity=sparsity, steps=30)
    after = snapshot(model)
    with torch.no_grad():
        assert float(t.loss(model(x), y)) == pytest.approx(seen[-1], abs=1e-5)
        small = slim(model, masks, x[:1])
        torch.testing.assert_close(small(x).logits, model(x).logits, rtol=1e-5, atol=1e-5)
    removed = (total - parameters(small)) / in_parts(parts)
    assert abs(removed - sparsity) <= 0.5 * max(part.cost for part in parts) / in_parts(parts) + 1e-9
    assert {k: after[k] for k in ("grad", "frozen", "mode", "hooks")} == {
        k: before[k] for k in ("grad", "frozen", "mode", "hooks")
    }


def test_only_what_it_says_is_changed(t):
    model = t.model(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = compresso(model, t, sparsity=0.4, steps=6)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p[masks[n]], before[n][masks[n]])}
    ends = {name.rsplit(".", 2)[1] for name in changed}
    assert ends <= {"q_proj", "v_proj", "o_proj", "down_proj"}  # the adapters' layers, and the gates'
    assert {"q_proj", "v_proj"} <= ends


def test_the_budget_is_met_within_a_percent_before_anything_is_cut(t, monkeypatch):
    found, final = [], Budget.final
    monkeypatch.setattr(Budget, "final", lambda self: found.append(self.expected().item()) or final(self))
    compresso(t.model(0), t, sparsity=0.3, steps=200)
    assert found == [pytest.approx(0.3, abs=0.01)]


def test_structures_that_say_nothing_go_first(t):
    model = t.model(0)
    t.train(model, steps=60)
    x = t.data["train"][0][:1]
    _, parts = find_parts(model, x)
    neurons = [part for part in parts if part.kind == "neurons"]
    silent = {}
    with torch.no_grad():
        for i, part in enumerate(neurons):
            silent[part.reader] = torch.randperm(len(part.cells), generator=torch.Generator().manual_seed(i))[:20]
            model.get_parameter(part.reader)[:, part.columns[silent[part.reader]].reshape(-1)] = 0
    share_of_silent = sum(20 * part.cost for part in neurons) / in_parts(parts)
    masks = compresso(model, t, sparsity=share_of_silent, steps=150)
    gone = torch.cat([~masks[part.reader].any(0)[silent[part.reader]] for part in neurons])
    assert float(gone.double().mean()) > 0.9


def test_the_seed_decides(t):
    first, again, other = (compresso(t.model(0), t, sparsity=0.4, steps=12, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_an_interruption_leaves_the_model_as_it_was(t):
    model = t.model(0)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        compresso(model, interrupted(t), sparsity=0.4, steps=3)
    assert same(snapshot(model), before)


def test_adapters_stand_where_they_are_asked_for(t):
    model = t.model(0)
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    masks = compresso(model, t, sparsity=0.3, steps=4, adapt="*.up_proj")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(model.get_parameter(name)[masks[name]], before[masks[name]])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sparsity": 1.0}, ValueError, "sparsity"),
        ({"sparsity": 0.99}, BudgetError, "would leave less than one head and one neuron"),
        ({"sparsity": 0.3, "ramp": 0.0}, ValueError, r"ramp is a fraction of the time, in \(0, 1\], not 0\.0"),
        ({"sparsity": 0.3, "settle": 1.5}, ValueError, r"settle is a fraction of the time, in \(0, 1\], not 1\.5"),
        ({"sparsity": 0.3, "rank": 0}, ValueError, "rank of an adapter is at least 1, not 0"),
        ({"sparsity": 0.3, "adapt": "*.c_attn"}, ValueError, r"matches no linear layer of the blocks; .*\.q_proj\.w"),
        ({"sparsity": 0.3, "blocks": "layers"}, ValueError, "no list of blocks 'layers'"),
    ],
)
def test_what_cannot_be(t, options, error, words):
    model = t.model(0)
    before = snapshot(model)
    with pytest.raises(error, match=words):
        compresso(model, t, steps=2, **options)
    assert same(snapshot(model), before)
