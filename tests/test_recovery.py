"""How it is repaired: what is trained, from where, towards what; and that zeros stay zeros."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import make_task

from pruninglab import Masks, prune
from pruninglab.recovery import RECOVERIES, distill, finetune, rewind, soft_loss


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
    assert steps == (40 if recovery == "rewind" else 20)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize("recovery", sorted(RECOVERIES))
def test_the_same_seed_gives_the_same_network(task, pruned, recovery):
    model, masks = pruned
    twin = copy.deepcopy(model)
    RECOVERIES[recovery](model, masks, task, seed=3)
    RECOVERIES[recovery](twin, copy.deepcopy(masks), task, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_recovery_lowers_the_training_loss(task, pruned):
    """What each of them is for, on average over training data that one pruning made worse."""
    x, y = task.data["train"]
    for recover in RECOVERIES.values():
        model = copy.deepcopy(pruned[0])
        masks = prune(model, sparsity=0.9, criterion="random")
        before = F.cross_entropy(model(x), y)
        recover(model, masks, task, seed=0)
        assert F.cross_entropy(model(x), y) < 0.8 * before


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


@pytest.mark.parametrize("to", [-0.1, 1.0, 2])
def test_rewind_out_of_range(task, pruned, to):
    with pytest.raises(ValueError, match=r"fraction of training, in \[0, 1\)"):
        rewind(*pruned, task, to=to)


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
