"""Networks that train side by side come out as if each had trained alone."""

import copy
import threading
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import make_task
from torch import nn

from pruninglab import prune, task
from pruninglab.progress import quietly, say
from pruninglab.recovery import distill, finetune
from pruninglab.tasks import clock, together
from pruninglab.tasks.models import ResNet, cnn, mlp
from pruninglab.tasks.stacked import Stack, generators_kept, stackable
from pruninglab.tasks.training import Training, train


def double_digits(build, **how):
    """Digits in float64, so that only the order of sums can make a difference."""
    digits = task("digits-mlp")
    data = {name: (x.double(), y) for name, (x, y) in digits.data.items()}
    return replace(digits, name="double", load=lambda: data, build=lambda: build().double(), training=Training(**how))


NETWORKS = {
    "mlp": partial(mlp, 64, 30, 20, 10),
    "cnn": partial(cnn, 8, (4, 6, 10)),
    "resnet": partial(ResNet, 1, 1, (4, 6)),
}


def trained(home, seed, **options):
    model = home.model(seed)
    losses = home.train(model, seed=seed, **options)
    return model, losses


def assert_same(a, b, **tolerance):
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[name], **tolerance)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("network", NETWORKS)
def test_side_by_side_is_as_alone(network, optimizer):
    home = double_digits(NETWORKS[network], steps=30, lr=0.05 if optimizer == "sgd" else 1e-3, optimizer=optimizer)
    alone = [trained(home, seed) for seed in range(3)]
    beside = together([partial(trained, home, seed) for seed in range(3)])
    for (one, losses), (other, its_losses) in zip(alone, beside, strict=True):
        assert_same(one, other, rtol=1e-7, atol=1e-9)
        assert losses == pytest.approx(its_losses, rel=1e-7)
        assert not other.training
        assert all(p.is_contiguous() and p.grad is None for p in other.parameters())
        assert all(p.untyped_storage().nbytes() == p.nbytes for p in other.parameters())  # nothing of the stack is left


def test_single_precision_on_the_digits_network():
    digits = task("digits-mlp")
    alone = [trained(digits, seed, stop=40)[0] for seed in range(2)]
    beside = together([partial(trained, digits, seed, stop=40) for seed in range(2)])
    for one, (other, _) in zip(alone, beside, strict=True):
        assert_same(one, other, rtol=1e-3, atol=1e-5)


def test_they_are_really_trained_as_one(monkeypatch):
    import pruninglab.tasks.training as module

    sizes = []
    original = module.Stack
    monkeypatch.setattr(module, "Stack", lambda models: sizes.append(len(models)) or original(models))
    home = make_task(steps=10)
    together([partial(trained, home, seed) for seed in range(4)])
    assert sizes == [4]
    trained(home, 0)
    assert sizes == [4]


def test_masks_and_hooks_belong_to_one_network():
    """Each network is pruned by masks of its own while it trains, and sees its own gradients and momentum."""
    home = double_digits(NETWORKS["mlp"], steps=20)

    def job(seed, diary):
        model = home.model(seed)
        masks = prune(model, sparsity=0.5 + 0.1 * seed, criterion="random", seed=seed)

        def look(step, optimizer):
            assert all(bool((model.get_parameter(name)[~mask] == 0).all()) for name, mask in masks.items())
            weight = model.get_parameter("fc1.weight")
            (momentum,) = optimizer.state[weight].values()
            diary.append((step, weight.grad.clone(), momentum.clone()))

        home.train(model, seed=seed, masks=masks, on_step=look)
        return model, masks

    alone, beside = [[] for _ in range(3)], [[] for _ in range(3)]
    one = [job(seed, alone[seed]) for seed in range(3)]
    other = together([partial(job, seed, beside[seed]) for seed in range(3)])
    for (a, masks), (b, same) in zip(one, other, strict=True):
        assert masks == same
        assert_same(a, b, rtol=1e-7, atol=1e-9)
    for a, b in zip(alone, beside, strict=True):
        assert [step for step, *_ in b] == list(range(1, 21))
        torch.testing.assert_close([g for _, g, _ in a], [g for _, g, _ in b], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close([m for *_, m in a], [m for *_, m in b], rtol=1e-6, atol=1e-9)


def test_a_hook_may_change_its_own_networks_weights():
    home = double_digits(NETWORKS["mlp"], steps=6)

    def job(seed):
        model = home.model(seed)

        def clear(step, optimizer):
            if step == 3:
                with torch.no_grad():
                    model.get_parameter("fc1.weight")[seed].zero_()
                    optimizer.state[model.get_parameter("fc1.weight")]["momentum_buffer"][seed].zero_()

        home.train(model, seed=seed, on_step=clear)
        return model

    for one, other in zip([job(0), job(1)], together([partial(job, 0), partial(job, 1)]), strict=True):
        assert_same(one, other, rtol=1e-7, atol=1e-9)


def test_different_plans_and_lengths_are_kept_apart():
    """Jobs may ask for unlike trainings, and a different number of times."""
    home = make_task(steps=12)

    def job(seed):
        model = home.model(seed)
        taken = [len(home.train(model, seed=seed, steps=4 + (seed + turn) % 2)) for turn in range(seed + 1)]
        return model, taken

    beside = together([partial(job, seed) for seed in range(4)])
    for seed, (model, taken) in enumerate(beside):
        assert taken == [4 + (seed + turn) % 2 for turn in range(seed + 1)]
        assert_same(model, job(seed)[0], rtol=1e-4, atol=1e-5)


class Odd(nn.Module):
    """Mixes the samples of a batch, so that networks must not share one."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x - x.mean(0))


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def frozen():
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].bias.requires_grad_(False)
    return model


def hooked():
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    "make", [Odd, tied, frozen, hooked, lambda: nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), lambda: nn.GRU(4, 3)]
)
def test_what_cannot_be_stacked_is_trained_alone(make):
    torch.manual_seed(0)
    x, y = torch.randn(64, 4), torch.randint(3, (64,))
    models = [make() for _ in range(2)]
    if isinstance(models[0], nn.GRU):
        assert not stackable(models, x)
        return
    assert not stackable(models, x)
    alone = copy.deepcopy(models)
    how = Training(steps=5, batch=8)
    for seed, model in enumerate(alone):
        train(model, (x, y), how, seed=seed)
    together([partial(train, model, (x, y), how, seed=seed) for seed, model in enumerate(models)])
    for one, other in zip(alone, models, strict=True):
        assert_same(one, other, rtol=0, atol=0)


def test_networks_of_other_shapes_are_not_stacked():
    x = torch.randn(8, 1, 8, 8)
    assert stackable([mlp(64, 5, 10), mlp(64, 5, 10)], x)
    assert not stackable([mlp(64, 5, 10), mlp(64, 6, 10)], x)
    assert not stackable([mlp(64, 5, 10), mlp(64, 5, 10).double()], x)
    one = mlp(64, 5, 10)
    assert not stackable([one, one], x)
    assert not stackable([mlp(64, 3000, 1000, 10), mlp(64, 3000, 1000, 10)], x)  # large: nothing to win


def test_a_stack_gives_what_its_networks_give():
    models = [ResNet(1, 1, (4, 6)).eval() for _ in range(3)]
    x = torch.randn(3, 5, 1, 8, 8)
    expected = torch.cat([model(part) for model, part in zip(models, x, strict=True)])
    torch.testing.assert_close(Stack(models).eval()(x.flatten(0, 1)), expected, rtol=1e-4, atol=1e-5)


def test_what_asks_for_another_objective_is_trained_all_the_same():
    home = make_task(steps=20)

    def job(seed):
        model = home.trained(seed)
        masks = prune(model, sparsity=0.8)
        return model, distill(model, masks, home, seed=seed)

    for seed, (model, steps) in enumerate(together([partial(job, seed) for seed in range(2)])):
        other, same = job(seed)
        assert steps == same == 10
        assert_same(model, other, rtol=0, atol=0)


def test_a_cached_network_does_not_depend_on_what_trains_beside_it():
    home = make_task("cached-beside", steps=15)
    beside = together([partial(home.trained, seed) for seed in range(2)])
    for seed, model in enumerate(beside):
        again, _ = trained(home, seed)
        assert_same(model, again, rtol=0, atol=0)


def test_recoveries_run_side_by_side():
    home = make_task(steps=30)

    def job(seed):
        model = home.trained(seed)
        masks = prune(model, sparsity=0.7)
        finetune(model, masks, home, seed=seed)
        return model

    for seed, model in enumerate(together([partial(job, seed) for seed in range(3)])):
        assert_same(model, job(seed), rtol=1e-4, atol=1e-5)


def test_results_come_in_order_and_jobs_need_not_train():
    assert together([lambda: 1, lambda: "two", lambda: None]) == [1, "two", None]
    assert together([lambda: 1]) == [1]
    assert together([]) == []


def test_an_error_ends_all_and_leaves_no_thread():
    home = make_task(steps=5)
    before = threading.active_count()
    went_on = []

    def bad(seed):
        trained(home, seed)
        if seed == 1:
            raise ZeroDivisionError("seed 1")
        trained(home, seed)
        went_on.append(seed)

    with pytest.raises(ZeroDivisionError, match="seed 1"):
        together([partial(bad, seed) for seed in range(4)])
    assert went_on == []
    assert threading.active_count() == before


def test_an_interrupted_training_gives_networks_their_own_weights_back():
    """Ctrl-C in the middle of a joint training reaches the caller, and every network is whole."""
    home = make_task(steps=10)
    models = [home.model(seed) for seed in range(2)]

    def stop(step, optimizer):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together([partial(home.train, model, seed=seed, on_step=stop) for seed, model in enumerate(models)])
    for seed, model in enumerate(models):
        one = home.model(seed)
        home.train(one, seed=seed, stop=4)
        assert_same(model, one, rtol=1e-4, atol=1e-5)
        assert all(p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())


def test_the_clock_counts_a_jobs_own_time_and_its_share():
    home = make_task(steps=200)

    def job(seconds):
        start = clock()
        time.sleep(seconds)
        slept = clock()
        trained(home, 0)
        return slept - start, clock() - slept

    began = time.perf_counter()
    (short, a), (long, b) = together([partial(job, 0.0), partial(job, 0.3)])
    passed = time.perf_counter() - began
    assert short < 0.2 <= long
    assert a == pytest.approx(b, rel=0.5, abs=0.05)
    assert short + long + a + b <= passed


def test_processes_share_the_jobs_and_keep_their_order():
    home = make_task(steps=10)
    alone = together([partial(trained, home, seed) for seed in range(5)])
    shared = together([partial(trained, home, seed) for seed in range(5)], n_jobs=2)
    for (one, losses), (other, its_losses) in zip(alone, shared, strict=True):
        assert_same(one, other, rtol=1e-4, atol=1e-5)
        assert losses == pytest.approx(its_losses, rel=1e-3)


def test_an_error_in_another_process_arrives():
    def fails():
        raise ZeroDivisionError("there")

    with pytest.raises(ZeroDivisionError, match="there"):
        together([lambda: 1, fails], n_jobs=2)


def test_no_process_at_all():
    with pytest.raises(ValueError, match=r"n_jobs.*not 0"):
        together([lambda: 1, lambda: 2], n_jobs=0)


def test_quiet_jobs_silence_neither_each_other_nor_what_follows(capsys):
    home = make_task()

    def job(seed):
        with quietly():
            home.train(home.model(seed), seed=seed, steps=2)
            assert not say("in a quiet job")
        return say(f"job {seed}")

    assert together([partial(job, 0), partial(job, 1)]) == [True, True]
    assert say("afterwards")
    assert "".join(capsys.readouterr()).splitlines() == ["job 0", "job 1", "afterwards"]


@pytest.mark.parametrize("device", ["cpu", "cuda" if torch.cuda.is_available() else "meta"])
def test_generators_are_as_before_whatever_the_device(device):
    """Not every device has generators that torch can hand out; then those of the processor are kept alone."""
    before = torch.get_rng_state()
    with generators_kept(torch.device(device)):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
