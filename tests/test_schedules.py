"""When: the cubic curve, rounds of equal fractions, and pruning inside a training loop."""

import itertools

import pytest
import torch
from helpers import make_task
from hypothesis import given
from hypothesis import strategies as st

from pruninglab import Masks, prune
from pruninglab.schedules import SCHEDULES, Gradual, cubic, gradual, iterative, one_shot


class Spy:
    """`prune` and `train` of a schedule, on a real model, with a diary."""

    def __init__(self, allocation="global", steps=40):
        self.task = make_task(steps=2 * steps)
        self.model, self.steps = self.task.trained(), steps
        self.allocation, self.diary, self.masks = allocation, [], []

    def prune(self, sparsity, within=None):
        self.diary.append(("prune", sparsity, within))
        self.masks.append(prune(self.model, sparsity=sparsity, within=within, allocation=self.allocation))
        return self.masks[-1]

    def train(self, *, masks=None, on_step=None):
        self.diary.append(("train", masks))
        self.task.train(self.model, masks=masks, on_step=on_step, steps=self.steps)

    @property
    def training(self):
        """Train, with the attribute that schedules ask for."""
        spy = self

        class Train:
            steps = spy.steps

            def __call__(self, **options):
                return spy.train(**options)

        return Train()


def nested(masks):
    return all(not (inner[name] & ~outer[name]).any() for outer, inner in itertools.pairwise(masks) for name in inner)


def test_one_shot_prunes_once_and_trains_not_at_all():
    spy = Spy()
    masks = one_shot(0.8, spy.prune, spy.training)
    assert spy.diary == [("prune", 0.8, None)]
    assert masks == spy.masks[0] == Masks.of(spy.model)


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


# ── rounds ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk", "lamp"])
def test_iterative_takes_the_same_fraction_in_each_round(allocation):
    spy = Spy(allocation)
    masks = iterative(4)(0.9, spy.prune, spy.training)
    assert [entry[0] for entry in spy.diary] == ["prune", "train"] * 3 + ["prune"]
    densities = [1.0] + [1 - entry[1] for entry in spy.diary if entry[0] == "prune"]
    fractions = [after / before for before, after in itertools.pairwise(densities)]
    assert fractions == pytest.approx([0.1**0.25] * 4)
    assert masks.kept() == round(masks.total() * 0.1)
    assert nested(spy.masks)
    assert Masks.of(spy.model) == masks
    for i, entry in enumerate(spy.diary):
        if entry[0] == "train":
            assert entry[1] is spy.diary[i + 1][2], "trained with the masks that the next round prunes within"


def test_one_round_is_one_shot():
    spy, other = Spy(), Spy()
    assert iterative(1)(0.7, spy.prune, spy.training) == one_shot(0.7, other.prune, other.training)
    assert len(spy.diary) == 1


@pytest.mark.parametrize("rounds", [0, -1, 2.5, "3"])
def test_rounds_that_make_no_sense(rounds):
    with pytest.raises(ValueError, match=r"rounds must be a whole number of at least 1"):
        iterative(rounds)


# ── little by little ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk", "lamp"])
def test_gradual_ends_at_exactly_the_sparsity_and_holds_it(allocation):
    spy = Spy(allocation)
    masks = gradual(begin=0.1, end=0.6, every=3)(0.9, spy.prune, spy.training)
    asked = [entry[1] for entry in spy.diary if entry[0] == "prune"]
    # 40 steps: the window is steps 4 to 24; pruned after steps 7, 10, …, 22 and 24
    assert asked == pytest.approx([0.9 * (1 - (1 - (s - 4) / 20) ** 3) for s in (*range(7, 24, 3), 24)])
    assert asked[-1] == 0.9
    assert masks is spy.masks[-1]
    assert masks.kept() == round(masks.total() * 0.1)
    assert nested(spy.masks)
    assert Masks.of(spy.model) == masks, "sixteen more steps must not have brought a weight back"


def test_gradual_holds_the_masks_between_prunings_too():
    spy = Spy()
    seen = []
    with Gradual(spy.prune, 0.8, spy.steps, begin=0, end=0.5, every=5) as pruner:

        def on_step(step, optimizer):
            if pruner.masks is not None:
                seen.append(Masks.of(spy.model) == pruner.masks)
            pruner(step, optimizer)

        spy.train(on_step=on_step)
    assert len(seen) == 40 - 5
    assert all(seen)


def test_gradual_lets_go_when_the_block_ends():
    spy = Spy()
    optimizer = torch.optim.SGD(spy.model.parameters(), lr=0.1)
    with Gradual(spy.prune, 0.5, 4, end=1.0, every=1) as pruner:
        for step in range(1, 5):
            pruner(step, optimizer)
        assert optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert pruner.masks.sparsity() == pytest.approx(0.5, abs=1 / pruner.masks.total())


@pytest.mark.parametrize(("begin", "end"), [(0.5, 0.5), (0.6, 0.4), (-0.1, 0.5), (0.5, 1.1)])
def test_a_window_that_is_none(begin, end):
    with pytest.raises(ValueError, match=r"0 ≤ begin < end ≤ 1"):
        Gradual(lambda *_, **__: None, 0.5, 100, begin=begin, end=end)


@pytest.mark.parametrize("every", [0, -1, 76])
def test_every_that_does_not_fit_the_window(every):
    with pytest.raises(ValueError, match=f"every={every} steps does not fit the window of 75 steps"):
        Gradual(lambda *_, **__: None, 0.5, 100, every=every)


def test_a_window_without_a_step():
    with pytest.raises(ValueError, match="does not fit the window of 0 steps"):
        Gradual(lambda *_, **__: None, 0.5, 10, begin=0, end=0.01, every=1)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, float("nan")])
def test_gradual_to_an_impossible_sparsity(sparsity):
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        Gradual(lambda *_, **__: None, sparsity, 100)


def test_the_names():
    assert set(SCHEDULES) == {"one_shot", "iterative", "gradual"}
    assert SCHEDULES["iterative"].__name__ == "iterative"


def test_gradual_says_so_when_training_ends_before_its_window():
    model = make_task().model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def pruner(sparsity, within=None):
        return prune(model, sparsity=sparsity, within=within)

    def short_training():
        with Gradual(pruner, 0.9, 100) as pruning:
            for step in range(1, 50):
                pruning(step, optimizer)

    with pytest.raises(RuntimeError, match=r"ended before step 75, at which 0\.9"):
        short_training()
    with Gradual(pruner, 0.9, 100) as pruning:  # a loop that starts late still ends at the asked sparsity
        pruning(80, optimizer)
    assert pruning.masks.sparsity() == pytest.approx(0.9, abs=1e-2)


def test_names_tell_settings_apart():
    assert gradual().__name__ == "gradual"
    assert gradual(every=50).__name__ == "gradual(every=50)"
    assert iterative(5).__name__ == iterative().__name__
    assert iterative(2).__name__ == "iterative(2)"
