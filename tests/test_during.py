"""Masks that change while training goes on: the cubic curve, little by little, and dropping here to grow there."""

import copy
import itertools
import math

import pytest
import torch
from helpers import make_task
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from pruninglab import Masks, prune
from pruninglab.during import Gradual, Regrow, cubic, exchange, exchanging
from pruninglab.tasks import together

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}
MOMENTA = {"sgd": ["momentum_buffer"], "adam": ["exp_avg", "exp_avg_sq"]}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def step(model, optimizer, batch):
    optimizer.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


def trained_sparse(model, batch, kind="sgd", sparsity=0.6, steps=4):
    """Masks of a random pruning, and an optimizer that has momentum everywhere and has just stepped."""
    masks = prune(model, sparsity=sparsity, criterion="random", allocation="erk")
    optimizer = OPTIMIZERS[kind](model.parameters())
    with masks.enforced(optimizer):
        for _ in range(steps):
            step(model, optimizer, batch)
    return masks, optimizer


def by_hand(mask, weight, wish, fraction):
    """What is kept, and what is grown, by sorting the places one by one."""
    places = list(itertools.product(*(range(n) for n in mask.shape)))
    alive = sorted((place for place in places if mask[place]), key=lambda place: abs(weight[place].item()))
    count = math.floor(fraction * len(alive))
    kept = set(alive[count:])
    free = sorted((p for p in places if p not in kept), key=lambda place: -abs(wish[place].item()))
    return kept, set(free[:count])


def places_of(mask):
    return {tuple(place) for place in mask.nonzero().tolist()}


def counts(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


# ── the cubic curve ───────────────────────────────────────────────────────────────────────────────────────────────


def test_cubic_at_the_beginning_in_the_middle_and_at_the_end():
    assert cubic(0, 0.9) == 0
    assert cubic(0.5, 0.9) == pytest.approx(0.9 * 7 / 8)
    assert cubic(1, 0.9) == 0.9
    assert cubic(0, 0.9, 0.3) == pytest.approx(0.3)
    assert cubic(0.5, 0.9, 0.3) == pytest.approx(0.9 - 0.6 / 8)
    assert cubic(-1, 0.9) == 0
    assert cubic(2, 0.9) == 0.9


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.99), st.floats(0, 1))
def test_cubic_rises_and_stays_between_its_ends(a, b, sparsity, share):
    initial = share * sparsity
    low, high = sorted((cubic(min(a, b), sparsity, initial), cubic(max(a, b), sparsity, initial)))
    assert cubic(min(a, b), sparsity, initial) == low
    assert initial - 1e-9 <= low <= high <= sparsity + 1e-9


# ── little by little ──────────────────────────────────────────────────────────────────────────────────────────────


class Pruned:
    """A task's model, `prune` for it, and the masks that came out."""

    def __init__(self, steps=40):
        self.task = make_task(steps=steps)
        self.model, self.steps, self.masks, self.asked = self.task.model(), steps, [], []

    def prune(self, sparsity, within=None):
        self.asked.append(sparsity)
        self.masks.append(prune(self.model, sparsity=sparsity, within=within))
        return self.masks[-1]


def test_gradual_holds_the_masks_between_prunings_too():
    at = Pruned()
    seen = []
    with Gradual(at.prune, 0.8, at.steps, begin=0, end=0.5, every=5) as hook:

        def on_step(step, optimizer):
            if hook.masks is not None:
                seen.append(Masks.of(at.model) == hook.masks)
            hook(step, optimizer)

        at.task.train(at.model, on_step=on_step)
    assert len(seen) == 40 - 5
    assert all(seen)


def test_gradual_lets_go_when_the_block_ends():
    at = Pruned()
    optimizer = torch.optim.SGD(at.model.parameters(), lr=0.1)
    with Gradual(at.prune, 0.5, 4, end=1.0, every=1) as hook:
        for k in range(1, 5):
            hook(k, optimizer)
        assert len(optimizer._optimizer_step_post_hooks) == 1
    assert not optimizer._optimizer_step_post_hooks
    assert hook.masks.sparsity() == pytest.approx(0.5, abs=1 / hook.masks.total())


def test_gradual_lets_go_after_an_error_too():
    at = Pruned()
    optimizer = torch.optim.SGD(at.model.parameters(), lr=0.1)

    def fails():
        with Gradual(at.prune, 0.5, 4, every=1) as hook:
            hook(1, optimizer)
            assert optimizer._optimizer_step_post_hooks
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fails()
    assert not optimizer._optimizer_step_post_hooks


def test_gradual_begins_with_masks_that_it_holds_from_the_first_step_on():
    at = Pruned()
    first = prune(at.model, sparsity=0.3)
    held, levels = [], []
    with Gradual(at.prune, 0.8, 40, begin=0.25, end=0.75, every=5, initial=0.3, masks=first) as hook:

        def on_step(step, optimizer):
            hook(step, optimizer)
            held.append(Masks.of(at.model) == hook.masks)
            levels.append(hook.masks.kept())

        at.task.train(at.model, on_step=on_step)
    assert all(held)
    assert levels[:14] == [first.kept()] * 14  # the window begins after step 10, so the first pruning is after 15
    assert at.asked == pytest.approx([0.8 - 0.5 * (1 - t) ** 3 for t in (0.25, 0.5, 0.75, 1.0)])
    assert levels[-1] == round(0.2 * first.total())
    assert all(not (mask & ~first[name]).any() for name, mask in hook.masks.items())


def test_a_pruning_after_the_very_first_step_sees_zeros():
    """A step moves masked weights; a criterion that looks at the network must not meet them."""
    at, sparse = Pruned(), []
    first = prune(at.model, sparsity=0.5)

    def looks(sparsity, within=None):
        sparse.append(Masks.of(at.model) == first)
        return at.prune(sparsity, within)

    with Gradual(looks, 0.8, 40, every=1, initial=0.5, masks=first) as hook:
        at.task.train(at.model, on_step=hook)
    assert sparse[0]


def test_then_gets_the_pruned_masks_and_what_it_returns_is_held():
    at, told = Pruned(), []

    def then(masks, t, optimizer):
        assert isinstance(optimizer, torch.optim.SGD)
        assert masks is at.masks[-1]
        told.append(t)
        turned = masks.shuffled(len(told))
        turned.apply(at.model)
        return turned

    with Gradual(at.prune, 0.5, 40, begin=0.1, end=0.6, every=8, then=then) as hook:

        def on_step(step, optimizer):
            hook(step, optimizer)
            if hook.masks is not None:
                assert hook.masks.kept() == at.masks[-1].kept()
                assert not any(at.model.get_parameter(name)[~mask].any() for name, mask in hook.masks.items())

        at.task.train(at.model, on_step=on_step)
    assert told == pytest.approx([8 / 20, 16 / 20, 1.0])
    assert hook.masks == at.masks[-1].shuffled(3)


@pytest.mark.parametrize("initial", [0.0, 0.4])
@pytest.mark.parametrize("allocation", ["global", "erk"])
def test_granet_follows_the_cubic_curve_to_the_weight(initial, allocation):
    """Pruning then exchanging: the total is the curve's, each layer's that of the pruning, at every update."""
    task = make_task(steps=60)
    model, pruned, after = task.model(), [], {}
    total = 8 * 16 + 16 * 12 + 12 * 3

    def to(sparsity, within=None):
        assert within is (hook.masks if pruned else None), "what was exchanged last"
        pruned.append(prune(model, sparsity=sparsity, within=within, allocation=allocation))
        return pruned[-1]

    first = to(initial) if initial else None
    how = {"every": 7, "initial": initial, "masks": first, "then": exchanging("gradient", 0.5)}
    with Gradual(to, 0.9, 60, **how) as hook:

        def on_step(step, optimizer):
            before = len(pruned)
            hook(step, optimizer)
            if len(pruned) > before:
                after[step] = hook.masks
                assert counts(hook.masks) == counts(pruned[-1])

        task.train(model, on_step=on_step)
    assert list(after) == [7, 14, 21, 28, 35, 42, 45]
    for step, masks in after.items():
        density = 1 - 0.9 + (0.9 - initial) * (1 - step / 45) ** 3
        assert masks.kept() == math.floor(total * density + 0.5)
    assert hook.masks is after[45]
    assert hook.masks == pruned[-1], "nothing is exchanged at the end"
    assert hook.masks.kept() == 36
    assert any(after[step] != masks for step, masks in zip(after, pruned[-7:], strict=True)), "but before"
    assert not any(model.get_parameter(name)[~mask].any() for name, mask in hook.masks.items())


@pytest.mark.parametrize("make", ["Gradual", "Regrow"])
@pytest.mark.parametrize(("begin", "end"), [(0.5, 0.5), (0.6, 0.4), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
def test_a_window_that_is_none(make, begin, end):
    with pytest.raises(ValueError, match=r"0 ≤ begin < end ≤ 1"):
        changing(make, 100, begin=begin, end=end)


@pytest.mark.parametrize("make", ["Gradual", "Regrow"])
@pytest.mark.parametrize(
    ("every", "words"),
    [
        (0, "every must be at least 1, not 0"),
        (-1, "every must be at least 1, not -1"),
        (76, "every=76 steps does not fit the window of 75 steps"),
    ],
)
def test_every_that_does_not_fit_the_window(make, every, words):
    with pytest.raises(ValueError, match=words):
        changing(make, 100, every=every)


@pytest.mark.parametrize("make", ["Gradual", "Regrow"])
def test_a_window_without_a_step(make):
    with pytest.raises(ValueError, match="does not fit the window of 0 steps"):
        changing(make, 10, begin=0, end=0.01, every=1)


def changing(make, steps, **options):
    if make == "Gradual":
        return Gradual(lambda *_, **__: None, 0.5, steps, **options)
    return Regrow(Masks({"w": torch.tensor([True])}), steps, **options)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, float("nan")])
def test_gradual_to_an_impossible_sparsity(sparsity):
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        Gradual(lambda *_, **__: None, sparsity, 100)


@pytest.mark.parametrize("initial", [0.51, -0.1, float("nan")])
def test_an_initial_sparsity_that_is_none(initial):
    with pytest.raises(ValueError, match=f"a sparsity from 0 to the final 0.5, not {initial}"):
        Gradual(lambda *_, **__: None, 0.5, 100, initial=initial)


def test_gradual_says_so_when_training_ends_before_its_window():
    at = Pruned()
    optimizer = torch.optim.SGD(at.model.parameters(), lr=0.1)

    def short_training():
        with Gradual(at.prune, 0.9, 100) as hook:
            for k in range(1, 50):
                hook(k, optimizer)

    with pytest.raises(RuntimeError, match=r"ended before step 75, where the window ends"):
        short_training()
    with Gradual(at.prune, 0.9, 100) as hook:  # a loop that starts late still ends at the asked sparsity
        hook(80, optimizer)
    assert hook.masks.sparsity() == pytest.approx(0.9, abs=1e-2)


# ── one exchange ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("fraction", [0.0, 0.13, 0.3, 0.77, 0.99])
def test_exchange_by_hand(mlp, batch, kind, fraction):
    masks, optimizer = trained_sparse(mlp, batch, kind)
    before = copy.deepcopy(mlp)
    grads = {name: mlp.get_parameter(name).grad.clone() for name in masks}
    found = exchange(masks, optimizer, fraction, "gradient", generator())
    assert list(found) == list(masks)
    for name, mask in masks.items():
        kept, grown = by_hand(mask, before.get_parameter(name), grads[name], fraction)
        assert places_of(found[name]) == kept | grown
        assert int(found[name].sum()) == int(mask.sum())
        weight, old = mlp.get_parameter(name), before.get_parameter(name)
        for place in itertools.product(*(range(n) for n in mask.shape)):
            assert weight[place] == (old[place] if place in kept else 0)
        assert torch.equal(weight.grad, grads[name])
    rest = [name for name, _ in mlp.named_parameters() if name not in masks]
    assert rest
    assert all(torch.equal(mlp.get_parameter(name), before.get_parameter(name)) for name in rest)


@pytest.mark.parametrize("grow", ["gradient", "random"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_grown_weights_have_no_momentum_and_others_keep_theirs(mlp, batch, kind, grow):
    masks, optimizer = trained_sparse(mlp, batch, kind)
    before = copy.deepcopy(mlp)
    state = {name: copy.deepcopy(optimizer.state[p]) for name, p in mlp.named_parameters()}
    found = exchange(masks, optimizer, 0.5, grow, generator())
    some = 0
    for name, parameter in mlp.named_parameters():
        now = optimizer.state[parameter]
        assert now.keys() == state[name].keys() >= set(MOMENTA[kind])
        if name in masks:
            survivors = by_hand(masks[name], before.get_parameter(name), parameter, 0.5)[0]
            grown = torch.tensor([p not in survivors for p in itertools.product(*map(range, parameter.shape))])
            grown = grown.view_as(parameter) & found[name]
        else:
            grown = torch.zeros_like(parameter, dtype=torch.bool)
        for key in MOMENTA[kind]:
            assert not now[key][grown].any()
            assert torch.equal(now[key][~grown], state[name][key][~grown])
            some += int(state[name][key][grown].count_nonzero())
        for key in now.keys() - set(MOMENTA[kind]):  # Adam's count of steps
            assert now[key] == state[name][key]
    assert some > 10, "there was momentum to take away"


def test_a_dropped_weight_may_come_back_as_new(mlp, batch):
    masks, optimizer = trained_sparse(mlp, batch)
    weight, mask = mlp.fc1.weight, masks["fc1.weight"]
    smallest = tuple(torch.where(mask, weight.abs(), torch.inf).flatten().argmin().view(1).tolist())
    assert weight.detach().flatten()[smallest] != 0
    weight.grad.view(-1)[smallest] = 100.0
    found = exchange(masks, optimizer, 0.3, "gradient", generator())
    assert found["fc1.weight"].flatten()[smallest]
    assert weight.detach().flatten()[smallest] == 0
    assert optimizer.state[weight]["momentum_buffer"].flatten()[smallest] == 0


def test_the_sign_of_a_gradient_does_not_matter(mlp, batch):
    masks, optimizer = trained_sparse(mlp, batch)
    twin = copy.deepcopy(mlp)
    for a, b in zip(mlp.parameters(), twin.parameters(), strict=True):
        b.grad = -a.grad
    others = copy.deepcopy(masks)
    others.apply(twin)
    negative = exchange(others, OPTIMIZERS["sgd"](twin.parameters()), 0.5, "gradient", generator())
    assert exchange(masks, optimizer, 0.5, "gradient", generator()) == negative


def test_equal_gradients_still_give_the_exact_count(mlp, batch):
    masks, optimizer = trained_sparse(mlp, batch)
    for parameter in mlp.parameters():
        parameter.grad.zero_()
    assert counts(exchange(masks, optimizer, 0.6, "gradient", generator())) == counts(masks)


def test_growing_at_random_is_uniform_over_what_is_not_kept():
    """Twelve places that are not kept share eight growths of each exchange; 16 are kept, and never touched."""
    mask = torch.zeros(28, dtype=torch.bool)
    mask[:24] = True
    mask = mask.view(4, 7)
    weight = torch.nn.Parameter(torch.arange(28.0).view(4, 7) + 1)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    model = torch.nn.Module()
    model.w = weight
    draws, seen, n = generator(3), torch.zeros(28), 600
    for _ in range(n):
        with torch.no_grad():
            weight.copy_(torch.arange(28.0).view(4, 7) + 1)
        masks = Masks({"w": mask})
        masks.apply(model)
        found = exchange(masks, optimizer, 1 / 3, "random", draws)["w"]
        assert int(found.sum()) == 24
        seen += found.flatten()
    kept, free = seen[8:24], torch.cat([seen[:8], seen[24:]])
    assert (kept == n).all()
    # Each of the 12 is drawn Binomial(n, 2/3) times; their sum is fixed, so this is χ² with 11 degrees of freedom.
    share = 8 / 12
    chi2 = float(((free - n * share) ** 2 / (n * share * (1 - share))).sum()) * 11 / 12
    assert chi2 < 31.3, "99.9 % of all seeds lie below"


def test_random_growth_follows_the_seed(mlp, batch):
    masks, _ = trained_sparse(mlp, batch)

    def grown(seed):
        twin = copy.deepcopy(mlp)
        mine = copy.deepcopy(masks)
        mine.apply(twin)
        return exchange(mine, OPTIMIZERS["sgd"](twin.parameters()), 0.5, "random", generator(seed))

    assert grown(1) == grown(1)
    assert grown(1) != grown(2)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_random_growth_is_not_what_drew_the_first_masks(seed):
    """One seed for both, as in a run of `compare`: what is dropped must not be first in the queue to come back."""
    model = torch.nn.Sequential(torch.nn.Linear(50, 40))
    masks = prune(model, sparsity=0.5, criterion="random", seed=seed)
    size = torch.where(masks["0.weight"], model[0].weight.detach().abs(), torch.inf).flatten()
    dropped = torch.zeros(2000, dtype=torch.bool).index_fill(0, size.argsort()[:300], True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = exchanging("random", 0.3, seed)(masks, 0.0, optimizer)
    back = int((dropped & found["0.weight"].flatten()).sum())
    # 300 of 1300 free places are drawn, of which 300 were dropped: hypergeometric, mean 69.2, standard deviation 6.4
    assert 300 * 300 / 1300 - 26 < back < 300 * 300 / 1300 + 26


def test_an_exchange_leaves_the_optimizers_state_savable(mlp, batch):
    """No entry for what has no state, or does not belong to the optimizer at all."""
    masks = prune(mlp, sparsity=0.5)
    optimizer = torch.optim.SGD(mlp.fc2.parameters(), lr=0.1)
    step(mlp, optimizer, batch)
    exchange(masks, optimizer, 0.3, "random", generator())
    assert optimizer.state_dict()["state"].keys() <= {0, 1}


def test_no_gradient_to_grow_by(mlp, batch):
    masks, optimizer = trained_sparse(mlp, batch)
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match=r"fc1\.weight has no gradient to grow by"):
        exchange(masks, optimizer, 0.3, "gradient", generator())
    assert counts(exchange(masks, optimizer, 0.3, "random", generator())) == counts(masks)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("make", [exchanging, lambda grow, f: changing("Regrow", 100, grow=grow, fraction=f)])
def test_a_fraction_that_is_no_share(make, fraction):
    with pytest.raises(ValueError, match=r"fraction is the share of weights exchanged, in \(0, 1\), not"):
        make("gradient", fraction)


@pytest.mark.parametrize("make", [exchanging, lambda grow, f: changing("Regrow", 100, grow=grow, fraction=f)])
def test_an_unknown_way_to_grow(make):
    with pytest.raises(ValueError, match=r"unknown way to grow 'gradients'.*Did you mean 'gradient'"):
        make("gradients", 0.3)


# ── dropping and growing all through training ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_regrow_in_training_by_hand(grow, optimizer):
    """After every step: counts, zeros, when there is a change, how much, and (by gradient) where."""
    task = make_task(steps=50, optimizer=optimizer, lr=0.1 if optimizer == "sgd" else 0.01)
    model = task.model()
    first = prune(model, sparsity=0.7, criterion="random", allocation="erk")
    changed = []
    with Regrow(first, 50, grow=grow, fraction=0.37, begin=0.1, end=0.9, every=6) as hook:

        def on_step(step, optimizer):
            old = hook.masks
            weights = {name: model.get_parameter(name).detach().clone() for name in old}
            grads = {name: model.get_parameter(name).grad.clone() for name in old}
            hook(step, optimizer)
            assert counts(hook.masks) == counts(first)
            for name, mask in hook.masks.items():
                assert not model.get_parameter(name)[~mask].any()
            if hook.masks is old:
                return
            changed.append(step)
            fraction = 0.37 * math.cos(math.pi * (step - 5) / 40 / 2) ** 2
            for name, mask in hook.masks.items():
                kept, grown = by_hand(old[name], weights[name], grads[name], fraction)
                new = places_of(mask) - kept
                assert len(new) == len(grown)
                assert kept <= places_of(mask)
                if grow == "gradient":
                    assert new == grown
                assert all(model.get_parameter(name)[place] == 0 for place in new)

        task.train(model, on_step=on_step)
    assert changed == [11, 17, 23, 29, 35, 41, 45]
    assert hook.masks != first


def test_the_fraction_falls_along_a_cosine_to_nothing():
    masks = Masks({"w": torch.arange(1000) < 500})
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.arange(1000.0) + 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.w.grad = torch.arange(1000.0)  # grows at the far end, where nothing was
    dropped = {}
    for t in (0.0, 1 / 3, 0.5, 2 / 3, 1.0):
        with torch.no_grad():
            model.w.copy_(torch.arange(1000.0) + 1)
        masks.apply(model)
        found = exchanging("gradient", 0.4)(masks, t, optimizer)
        dropped[t] = 500 - int((found["w"] & masks["w"]).sum())
    # 0.4 · ½ (1 + cos πt) of 500, rounded down; cos π/3 = ½ is not exact in floats
    assert [dropped[t] for t in (0.0, 0.5, 1.0)] == [200, 100, 0]
    assert dropped[1 / 3] in (149, 150)
    assert dropped[2 / 3] in (49, 50)


def test_a_loop_that_starts_after_the_window_exchanges_nothing(mlp, batch):
    masks, optimizer = trained_sparse(mlp, batch)
    with Regrow(masks, 100, fraction=0.9) as hook:
        hook(99, optimizer)
    assert hook.masks == masks


def test_regrow_lets_go_and_says_when_training_was_too_short(mlp, batch):
    masks, optimizer = trained_sparse(mlp, batch)

    def short_training():
        with Regrow(masks, 20, every=5) as hook:
            for k in range(1, 15):
                step(mlp, optimizer, batch)
                hook(k, optimizer)

    with pytest.raises(RuntimeError, match="ended before step 15"):
        short_training()
    assert not optimizer._optimizer_step_post_hooks


def test_the_seed_of_random_growth():
    def grown(seed):
        task = make_task()
        model = task.model()
        masks = prune(model, sparsity=0.7, criterion="random")
        with Regrow(masks, 30, grow="random", every=5, seed=seed) as hook:
            task.train(model, on_step=hook)
        return hook.masks

    assert grown(0) == grown(0)
    assert grown(0) != grown(1)


@pytest.mark.parametrize("networks", [1, 3])
def test_a_grown_weight_takes_its_first_step_from_nothing(networks):
    """Momentum that is gone is gone where the step is made, also for networks that train side by side as one."""
    task = make_task(steps=40, momentum=0.9, weight_decay=1e-2)
    grown_and_stepped = []

    def job(seed):
        model = task.model(seed)
        masks, new = prune(model, sparsity=0.6, criterion="random"), {}
        with Regrow(masks, 40, every=10) as hook:

            def on_step(step, optimizer):
                rate = 0.1 * 0.5 * (1 + math.cos(math.pi * (step - 1) / 40))
                for name, grown in new.items():
                    weight = model.get_parameter(name)
                    torch.testing.assert_close(weight[grown], -rate * weight.grad[grown], rtol=1e-4, atol=1e-8)
                    grown_and_stepped.append(int(weight[grown].count_nonzero()))
                new.clear()
                before = hook.masks
                hook(step, optimizer)
                new.update(
                    {name: mask & ~before[name] for name, mask in hook.masks.items() if hook.masks is not before}
                )

            task.train(model, seed=seed, on_step=on_step)
        return hook.masks

    found = together([lambda seed=seed: job(seed) for seed in range(networks)])
    assert sum(grown_and_stepped) > 10 * networks
    assert all(masks.kept() == found[0].kept() for masks in found)
