"""How it is repaired: what is trained, from where, towards what; and that zeros stay zeros."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import make_task

from pruninglab import Masks, prune
from pruninglab.recovery import (
    RECOVERIES,
    distill,
    finetune,
    keep_signs,
    reinitialise,
    rewind,
    rewind_lr,
    soft_loss,
)

STEPS = {"perp": 20, "finetune": 20, "distill": 20} | dict.fromkeys(
    ("rewind", "rewind_lr", "reinitialise", "keep_signs"), 40
)


@pytest.fixture
def task():
    return make_task("recovered", steps=40)


@pytest.fixture
def pruned(task):
    model = task.trained()
    return model, prune(model, sparsity=0.8)


@pytest.mark.parametrize("recovery", sorted(RECOVERIES))
def test_zeros_stay_zeros_and_the_steps_are_counted(task, pruned, recovery):
    model, masks = pruned
    before = copy.deepcopy(model.state_dict())
    steps = RECOVERIES[recovery](model, masks, task, seed=0)
    assert Masks.of(model) == masks
    assert steps == STEPS[recovery]
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize("recovery", sorted(RECOVERIES))
def test_the_same_seed_gives_the_same_network(task, pruned, recovery):
    model, masks = pruned
    twin = copy.deepcopy(model)
    RECOVERIES[recovery](model, masks, task, seed=3)
    RECOVERIES[recovery](twin, copy.deepcopy(masks), task, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("recovery", sorted(RECOVERIES))
def test_other_seeds_give_other_networks(task, pruned, recovery):
    model, masks = pruned
    twin = copy.deepcopy(model)
    RECOVERIES[recovery](model, masks, task, seed=3)
    RECOVERIES[recovery](twin, copy.deepcopy(masks), task, seed=4)
    assert not torch.equal(model.fc1.weight, twin.fc1.weight)


@pytest.mark.parametrize("recovery", sorted(RECOVERIES))
def test_on_step_sees_every_step_and_the_zeros(task, pruned, recovery):
    model, masks = pruned
    seen = []

    def on_step(step, optimizer):
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert Masks.of(model) == masks
        seen.append(step)

    RECOVERIES[recovery](model, masks, task, on_step=on_step)
    assert seen == list(range(1, STEPS[recovery] + 1))


def test_recovery_lowers_the_training_loss(task, pruned):
    """What each of them is for, on average over training data that one pruning made worse."""
    x, y = task.data["train"]
    for recover in RECOVERIES.values():
        model = copy.deepcopy(pruned[0])
        masks = prune(model, sparsity=0.6, criterion="random", allocation="erk")  # leaves a way through every layer
        before = F.cross_entropy(model(x), y)
        recover(model, masks, task, seed=0)
        assert F.cross_entropy(model(x), y) < 0.6 * before


@pytest.mark.parametrize("recover", [finetune, distill])
def test_steps_and_learning_rate(task, pruned, recover):
    model, masks = pruned
    assert recover(model, masks, task, steps=7) == 7
    before = [p.clone() for p in model.parameters()]
    assert recover(model, masks, task, steps=0) == 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    recover(model, masks, task, steps=3, lr=0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


class Spied:
    """A task that notes the model and the options with which training begins."""

    def __init__(self, task):
        self.task, self.begun = task, []

    def __getattr__(self, name):
        return getattr(self.task, name)

    def train(self, model, **options):
        self.begun.append((copy.deepcopy(model), options))
        return self.task.train(model, **options)


def test_finetune_begins_with_what_is_left_and_another_order_of_the_data(task, pruned):
    model, masks = pruned
    before, spy = copy.deepcopy(model), Spied(task)
    finetune(model, masks, spy, seed=5)
    (begun, options) = spy.begun[0]
    assert all(torch.equal(a, b) for a, b in zip(begun.parameters(), before.parameters(), strict=True))
    assert options["seed"] != 5, "not the batches of the first training once more"


def test_rewind_to_zero_begins_with_the_initial_weights(task, pruned):
    model, masks = pruned
    spy, initial = Spied(task), task.model(0)
    rewind(model, masks, spy)
    begun, options = spy.begun[0]
    for name, parameter in begun.named_parameters():
        expected = initial.get_parameter(name)
        keep = masks[name] if name in masks else torch.ones_like(expected, dtype=torch.bool)
        assert torch.equal(parameter[keep], expected[keep])
        assert not parameter[~keep].any()
    assert (options["start"], options["seed"]) == (0, 0)


def test_rewind_to_a_point_within_training(task, pruned):
    model, masks = pruned
    spy = Spied(task)
    early = task.model(0)
    task.train(early, seed=0, stop=10)
    assert rewind(model, masks, spy, to=0.25) == 30
    begun, options = spy.begun[0]
    for name, mask in masks.items():
        assert torch.equal(begun.get_parameter(name)[mask], early.get_parameter(name)[mask])
    assert options["start"] == 10


def test_rewinding_without_pruning_is_the_first_training_again(task):
    model = task.trained()
    expected = copy.deepcopy(model.state_dict())
    rewind(model, prune(model, sparsity=0), task)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("recover", [rewind, rewind_lr])
@pytest.mark.parametrize("to", [-0.1, 1.0, 2, float("nan")])
def test_rewind_out_of_range(task, pruned, recover, to):
    model, masks = pruned
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"fraction of training, in \[0, 1\)"):
        recover(model, masks, task, to=to)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ── one thing changed ─────────────────────────────────────────────────────────────────────────────────────────────


def starts_from(begun, weights, masks):
    """Whether training began with these values where the masks keep them, and zeros elsewhere."""
    for name, parameter in begun.named_parameters():
        expected = weights[name].detach()
        expected = torch.where(masks[name], expected, 0.0) if name in masks else expected
        if not torch.equal(parameter, expected):
            return False
    return True


@pytest.mark.parametrize(("to", "first"), [(0.0, 0), (0.25, 10), (0.9, 36)])
def test_rewind_lr_begins_with_the_weights_as_they_are(task, pruned, to, first):
    model, masks = pruned
    before, spy = copy.deepcopy(dict(model.named_parameters())), Spied(task)
    assert rewind_lr(model, masks, spy, seed=4, to=to) == 40 - first
    ((begun, options),) = spy.begun
    assert starts_from(begun, before, masks)
    assert (options["start"], options["seed"], options["masks"]) == (first, 4, masks)
    assert options.get("lr") is None
    assert options.get("steps") is None, "so the learning rate is what it was at that step of the first training"


def test_rewind_lr_by_hand(task, pruned):
    model, masks = pruned
    twin, same_masks = copy.deepcopy(model), copy.deepcopy(masks)
    same_masks.apply(twin)
    task.train(twin, masks=same_masks, seed=2, start=20)
    rewind_lr(model, masks, task, seed=2, to=0.5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("seed", [0, 5])
def test_reinitialise_begins_with_weights_that_are_new(task, pruned, seed):
    model, masks = pruned
    spy = Spied(task)
    assert reinitialise(model, masks, spy, seed=seed) == 40
    ((begun, options),) = spy.begun
    assert (options["start"], options["seed"]) == (0, seed), "the order of the data is that of the ticket"
    initial, dense = task.model(seed), task.trained(seed)
    for name, mask in masks.items():
        weight = begun.get_parameter(name)
        assert not weight[~mask].any()
        assert weight[mask].all()
        for other in (initial, dense):
            assert not (weight == other.get_parameter(name))[mask].any()
    for known in range(20):
        assert not torch.equal(begun.fc1.bias, task.model(known).fc1.bias)


def test_reinitialise_draws_from_the_same_distribution_as_the_task(task):
    """Of 300 draws of each kind, the quantiles agree: PyTorch's uniform, ± 1/√inputs."""
    fresh, initial = [], []
    for seed in range(3):
        model = task.trained(seed)
        spy = Spied(task)
        reinitialise(model, prune(model, sparsity=0), spy, seed=seed)
        fresh.append(spy.begun[0][0].fc1.weight.detach().flatten())
        initial.append(task.model(seed).fc1.weight.detach().flatten())
    fresh, initial = torch.cat(fresh).sort().values, torch.cat(initial).sort().values
    limit = 8**-0.5
    assert fresh.abs().max() <= limit
    assert (fresh - initial).abs().max() < 0.25 * limit


@pytest.mark.parametrize("seed", [0, 5])
def test_keep_signs_begins_with_one_size_for_each_layer(task, pruned, seed):
    model, masks = pruned
    spy, initial = Spied(task), task.model(seed)
    assert keep_signs(model, masks, spy, seed=seed) == 40
    ((begun, options),) = spy.begun
    assert (options["start"], options["seed"]) == (0, seed)
    for name, mask in masks.items():
        first, now = initial.get_parameter(name).flatten().tolist(), begun.get_parameter(name).flatten().tolist()
        mean = sum(first) / len(first)
        size = (sum((w - mean) ** 2 for w in first) / (len(first) - 1)) ** 0.5
        for w, v, keep in zip(first, now, mask.flatten().tolist(), strict=True):
            assert v == pytest.approx((size if w > 0 else -size) if keep else 0.0, rel=1e-5)
    for layer in ("fc1", "fc2", "fc3"):
        assert torch.equal(begun.get_parameter(f"{layer}.bias"), initial.get_parameter(f"{layer}.bias"))
    again = task.model(seed)
    assert all(torch.equal(a, b) for a, b in zip(initial.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("recover", [rewind, reinitialise, keep_signs])
def test_what_the_weights_were_does_not_matter(task, pruned, recover):
    model, masks = pruned
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(0.3)
    recover(model, masks, task, seed=1)
    recover(twin, copy.deepcopy(masks), task, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_the_controls_differ_from_the_ticket_and_from_each_other(task, pruned):
    model, masks = pruned
    found = []
    for recover in (rewind, rewind_lr, reinitialise, keep_signs):
        twin = copy.deepcopy(model)
        recover(twin, copy.deepcopy(masks), task, seed=0)
        found.append(twin.fc1.weight)
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


# ── distillation ──────────────────────────────────────────────────────────────────────────────────────────────────


def logits(seed=0, n=5, classes=4):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(2, n, classes, generator=generator, dtype=torch.float64) * 2).unbind(0)


def test_soft_loss_is_zero_only_for_equal_outputs():
    student, teacher = logits()
    assert soft_loss(teacher, teacher, 3.0).abs() < 1e-12
    assert soft_loss(teacher + 5, teacher, 3.0).abs() < 1e-12, "logits mean the same up to a constant"
    assert soft_loss(student, teacher, 3.0) > 0.01


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_loss_by_hand(temperature):
    student, teacher = logits()
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        q, p = (s / temperature).exp(), (t / temperature).exp()
        q, p = q / q.sum(), p / p.sum()
        total += float((p * (p.log() - q.log())).sum())
    assert float(soft_loss(student, teacher, temperature)) == pytest.approx(temperature**2 * total / len(student))


@pytest.mark.parametrize("temperature", [0.7, 2.0, 8.0])
def test_soft_loss_gradient_against_finite_differences(temperature):
    student, teacher = logits()
    student = student.clone().requires_grad_()
    (grad,) = torch.autograd.grad(soft_loss(student, teacher, temperature), student)
    student = student.detach()
    numeric = torch.zeros_like(student)
    for i in range(student.shape[0]):
        for j in range(student.shape[1]):
            shift = torch.zeros_like(student)
            shift[i, j] = 1e-5
            up, down = (soft_loss(student + sign * shift, teacher, temperature) for sign in (1, -1))
            numeric[i, j] = (up - down) / 2e-5
    torch.testing.assert_close(grad, numeric, rtol=1e-5, atol=1e-8)


def test_t_squared_keeps_the_gradient_about_the_same_size():
    """Hinton et al. 2015, eq. 4: at high T it tends to (zₛ − zₜ) / classes; without T² it would fall as 1/T²."""
    student, teacher = logits()
    sizes = {}
    for temperature in (10.0, 100.0, 1000.0):
        s = student.clone().requires_grad_()
        (grad,) = torch.autograd.grad(soft_loss(s, teacher, temperature), s)
        sizes[temperature] = grad
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    limit = centred / student.shape[1] / len(student)
    torch.testing.assert_close(sizes[1000.0], limit, rtol=0.02, atol=1e-3)
    assert 0.8 < float(sizes[10.0].norm() / sizes[1000.0].norm()) < 1.25


def test_distill_trains_towards_teacher_and_labels(task, pruned):
    model, masks = pruned
    spy, teacher = Spied(task), task.trained()
    distill(model, masks, spy, teacher=teacher, temperature=2.0, alpha=0.3)
    objective, (x, y) = spy.begun[0][1]["objective"], task.data["test"]
    expected = 0.7 * F.cross_entropy(model(x), y) + 0.3 * soft_loss(model(x), teacher(x), 2.0)
    torch.testing.assert_close(objective(model, x, y), expected)


def test_distill_teaches_what_the_teacher_says_not_what_is_right(task, pruned):
    """A teacher with two classes exchanged, and no weight on the labels: the student learns the exchange."""
    teacher = task.trained()
    with torch.no_grad():
        for parameter in (teacher.fc3.weight, teacher.fc3.bias):
            parameter[[0, 1]] = parameter[[1, 0]].clone()
    model = task.trained()
    distill(model, prune(model, sparsity=0.3), task, teacher=teacher, alpha=1.0, steps=60)
    x, y = task.data["test"]
    answers = model(x).argmax(1)
    exchanged = torch.tensor([1, 0, 2])[y]
    assert (answers == exchanged).float().mean() > 0.7
    assert not any(p.grad is not None for p in teacher.parameters())


def test_distill_takes_the_trained_network_where_no_teacher_is_named(task, pruned):
    model, masks = pruned
    twin = copy.deepcopy(model)
    distill(model, masks, task, seed=0)
    distill(twin, copy.deepcopy(masks), task, seed=0, teacher=task.trained(0))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive(task, pruned, temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        distill(*pruned, task, temperature=temperature)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_an_alpha_that_is_no_share(task, pruned, alpha):
    with pytest.raises(ValueError, match=r"alpha is a weight in \[0, 1\]"):
        distill(*pruned, task, alpha=alpha)


def test_of_channels_only_matrices_are_reduced_to_their_signs():
    """Their masks name norms too, whose scales all begin at 1: their standard deviation is 0."""
    home = make_task("signs of channels", steps=60, norm=True)
    model = home.trained()
    masks = prune(model, sparsity=0.25, unit="channel", data=home.calibration(64))
    keep_signs(model, masks, home)
    assert model[1].weight.abs().max() > 0.5
    assert home.accuracy(model) > home.accuracy(home.model()) + 0.2
