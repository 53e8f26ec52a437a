"""When: rounds of equal fractions, lottery rounds, before training, and inside a training loop."""

import copy
import itertools

import pytest
import torch
from helpers import make_task
from torch.nn import functional as F

from pruninglab import Masks, prune
from pruninglab.schedules import SCHEDULES, before_training, gradual, granet, iterative, lottery, one_shot, regrow

WEIGHTS = 8 * 16 + 16 * 12 + 12 * 3  # of the task's network


class Spy:
    """`prune` and `train` of a schedule, on a real model, with a diary."""

    def __init__(self, allocation="global", steps=40, criterion="magnitude", seed=0, **recipe):
        self.task = make_task(steps=2 * steps, **recipe)
        self.model, self.steps, self.seed = self.task.trained(seed), steps, seed
        self.how = {"allocation": allocation, "criterion": criterion, "data": self.task.calibration(64)}
        self.diary, self.masks, self.begun = [], [], []

    def prune(self, sparsity, within=None):
        self.diary.append(("prune", sparsity, within))
        self.masks.append(prune(self.model, sparsity=sparsity, within=within, **self.how))
        return self.masks[-1]

    def train(self, *, masks=None, on_step=None):
        self.diary.append(("train", masks))
        self.task.train(self.model, masks=masks, on_step=on_step, steps=self.steps)

    @property
    def training(self):
        """Train, with all that schedules ask for."""
        return SpyTrain(self)

    def did(self):
        return [entry[0] for entry in self.diary]

    def asked(self):
        return [entry[1] for entry in self.diary if entry[0] == "prune"]


class SpyTrain:
    def __init__(self, spy):
        self.spy, self.start = spy, None
        self.steps, self.whole, self.seed = spy.steps, 2 * spy.steps, spy.seed

    def __call__(self, **options):
        return self.spy.train(**options)

    def rewind(self, to=0.0):
        self.spy.diary.append(("rewind", to))
        self.start = round(to * self.whole)
        self.spy.model.load_state_dict(self.spy.task.trained(self.seed, until=to).state_dict())

    def rest(self, *, masks=None, on_step=None):
        self.spy.diary.append(("rest", masks))
        self.spy.begun.append(copy.deepcopy(self.spy.model))
        self.spy.task.train(self.spy.model, masks=masks, on_step=on_step, seed=self.seed, start=self.start)


def nested(masks):
    return all(not (inner[name] & ~outer[name]).any() for outer, inner in itertools.pairwise(masks) for name in inner)


def within_the_last(spy):
    """Whether each pruning was asked for within the masks of the one before."""
    withins = [entry[2] for entry in spy.diary if entry[0] == "prune"]
    return all(given is last for given, last in zip(withins, [None, *spy.masks[:-1]], strict=True))


def test_one_shot_prunes_once_and_trains_not_at_all():
    spy = Spy()
    masks = one_shot(0.8, spy.prune, spy.training)
    assert spy.diary == [("prune", 0.8, None)]
    assert masks == spy.masks[0] == Masks.of(spy.model)


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


@pytest.mark.parametrize("schedule", [iterative, lottery, before_training])
@pytest.mark.parametrize(
    ("rounds", "error", "words"),
    [
        (0, ValueError, "rounds must be at least 1, not 0"),
        (-1, ValueError, "rounds must be at least 1, not -1"),
        (2.5, TypeError, r"rounds must be a whole number, not 2\.5"),
        ("3", TypeError, "rounds must be a whole number, not '3'"),
        (True, TypeError, "rounds must be a whole number, not True"),
    ],
)
def test_rounds_that_make_no_sense(schedule, rounds, error, words):
    with pytest.raises(error, match=words):
        schedule(rounds)


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
    assert within_the_last(spy)
    assert nested(spy.masks)
    assert Masks.of(spy.model) == masks, "sixteen more steps must not have brought a weight back"


def test_gradual_from_scratch_is_the_networks_own_training_pruned():
    spy = Spy()
    masks = gradual(begin=0.1, end=0.6, every=7, from_scratch=True)(0.9, spy.prune, spy.training)
    assert spy.did() == ["rewind", "rest"] + ["prune"] * 6
    assert spy.diary[:2] == [("rewind", 0.0), ("rest", None)]
    assert same_weights(spy.begun[0], spy.task.model())
    # all 80 steps: the window is steps 8 to 48
    assert spy.asked() == pytest.approx([0.9 * (1 - (1 - (s - 8) / 40) ** 3) for s in (*range(15, 48, 7), 48)])
    assert masks is spy.masks[-1]
    assert masks.kept() == round(0.1 * WEIGHTS)
    assert nested(spy.masks)
    assert Masks.of(spy.model) == masks


@pytest.mark.parametrize("make", [gradual, regrow, granet])
@pytest.mark.parametrize(("begin", "end"), [(0.5, 0.5), (0.6, 0.4), (-0.1, 0.5), (0.5, 1.1)])
def test_a_window_that_is_none_is_told_when_the_schedule_is_made(make, begin, end):
    with pytest.raises(ValueError, match=r"0 ≤ begin < end ≤ 1"):
        make(begin=begin, end=end)


@pytest.mark.parametrize("make", [gradual, lambda every: gradual(every=every, from_scratch=True), regrow, granet])
def test_a_window_that_is_too_short(make):
    spy = Spy()
    with pytest.raises(ValueError, match=r"every=80 steps does not fit the window of (30|60) steps"):
        make(every=80)(0.5, spy.prune, spy.training)


# ── the lottery ───────────────────────────────────────────────────────────────────────────────────────────────────


def same_weights(one, other, masks=None):
    """Whether two networks have the same parameters, and zeros where the masks say so."""
    for name, parameter in one.named_parameters():
        expected = other.get_parameter(name).detach()
        if masks is not None and name in masks:
            expected = torch.where(masks[name], expected, 0.0)
        if not torch.equal(parameter, expected):
            return False
    return True


@pytest.mark.parametrize("sparsity", [0.15, 0.5, 0.488, 0.9])
def test_lottery_takes_a_fifth_in_each_round_and_less_in_the_last(sparsity):
    spy = Spy(steps=5)
    masks = lottery()(sparsity, spy.prune, spy.training)
    needed = next(r for r in range(1, 50) if 0.8**r <= 1 - sparsity + 1e-9)
    assert spy.did() == ["prune", *["rewind", "rest", "prune"] * (needed - 1)]
    assert spy.asked()[:-1] == pytest.approx([1 - 0.8**r for r in range(1, needed)])
    assert spy.asked()[-1] == sparsity
    densities = [1.0, *(1 - asked for asked in spy.asked())]
    assert within_the_last(spy)
    assert all(after / before >= 0.8 - 1e-9 for before, after in itertools.pairwise(densities))
    assert [m.kept() for m in spy.masks] == [round(WEIGHTS * density) for density in densities[1:]]
    assert nested(spy.masks)
    assert masks is spy.masks[-1]
    assert Masks.of(spy.model) == masks


def test_lottery_with_another_rate_or_a_number_of_rounds():
    spy = Spy(steps=5)
    lottery(rate=0.5)(0.9, spy.prune, spy.training)
    assert spy.asked() == pytest.approx([0.5, 0.75, 0.875, 0.9])
    spy = Spy(steps=5)
    lottery(3)(0.9, spy.prune, spy.training)
    assert spy.asked() == pytest.approx([1 - 0.1 ** (r / 3) for r in (1, 2, 3)])
    assert spy.did() == ["prune", "rewind", "rest", "prune", "rewind", "rest", "prune"]


def test_lottery_to_no_sparsity_and_in_one_round():
    for schedule, sparsity in ((lottery(), 0.0), (lottery(rounds=1), 0.9), (lottery(rate=0.95), 0.9)):
        spy = Spy(steps=5)
        schedule(sparsity, spy.prune, spy.training)
        assert spy.diary == [("prune", sparsity, None)]


@pytest.mark.parametrize("to", [0.0, 0.25])
def test_each_lottery_round_trains_what_is_left_from_the_early_weights(to):
    spy = Spy(steps=20)
    lottery(4, rewind_to=to)(0.8, spy.prune, spy.training)
    early = spy.task.model(0)
    spy.task.train(early, seed=0, stop=round(to * 40))
    assert [entry for entry in spy.diary if entry[0] == "rewind"] == [("rewind", to)] * 3
    trained_with = [entry[1] for entry in spy.diary if entry[0] == "rest"]
    assert all(a is b for a, b in zip(trained_with, spy.masks, strict=False))
    assert len(trained_with) == len(spy.begun) == 3
    for begun, masks in zip(spy.begun, trained_with, strict=True):
        assert same_weights(begun, early), "as it was; training itself writes the zeros before its first step"
        for name, mask in masks.items():
            assert torch.equal(begun.get_parameter(name)[mask], early.get_parameter(name)[mask])


@pytest.mark.parametrize("to", [0.0, 0.5])
def test_lottery_by_hand(to):
    """Iterative magnitude pruning with nothing but sorting and `task.train`."""
    spy = Spy(steps=20, seed=2)
    found = lottery(rewind_to=to)(0.7, spy.prune, spy.training)

    task = make_task(steps=40)
    early, model = task.model(2), task.model(2)
    task.train(early, seed=2, stop=round(to * 40))
    task.train(model, seed=2)
    names = [f"fc{i}.weight" for i in (1, 2, 3)]
    masks = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in names}
    for kept in (285, 228, 182, 146, 117, 107):  # 356 · 0.8, … rounded, and then 356 · 0.3
        alive = torch.cat([model.get_parameter(name)[mask].abs() for name, mask in masks.items()])
        smallest_kept = sorted(alive.tolist(), reverse=True)[kept - 1]
        masks = {n: mask & (model.get_parameter(n).detach().abs() >= smallest_kept) for n, mask in masks.items()}
        assert sum(int(mask.sum()) for mask in masks.values()) == kept
        if kept == 107:
            break
        model.load_state_dict(early.state_dict())
        ticket = Masks(masks)
        ticket.apply(model)
        task.train(model, seed=2, start=round(to * 40), masks=ticket)
    assert found == Masks(masks)
    assert same_weights(spy.model, model, found)


@pytest.mark.parametrize("rate", [0, 1, -0.2, 1.2, float("nan")])
def test_a_lottery_rate_that_is_no_fraction(rate):
    with pytest.raises(ValueError, match=rf"rate is the fraction removed in each round, in \(0, 1\), not {rate}"):
        lottery(rate=rate)


@pytest.mark.parametrize("to", [1, 1.5, -0.1, float("nan")])
def test_rewinding_beyond_the_ends(to):
    with pytest.raises(ValueError, match=rf"rewind_to is a fraction of training, in \[0, 1\), not {to}"):
        lottery(rewind_to=to)


@pytest.mark.parametrize("sparsity", [1.0, -0.1])
def test_a_lottery_for_an_impossible_sparsity(sparsity):
    spy = Spy(steps=5)
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        lottery()(sparsity, spy.prune, spy.training)
    assert not spy.diary


# ── before training ───────────────────────────────────────────────────────────────────────────────────────────────


def snip_by_hand(model, batch, kept):
    """The largest |weight · gradient| of all places, by sorting."""
    model.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    scores = {n: (p * p.grad).abs().detach() for n, p in model.named_parameters() if n.endswith("weight")}
    last = sorted(torch.cat([score.flatten() for score in scores.values()]).tolist(), reverse=True)[kept - 1]
    return Masks({name: score >= last for name, score in scores.items()})


def test_before_training_prunes_the_initial_weights_and_trains_them():
    spy = Spy(criterion="snip")
    masks = before_training()(0.8, spy.prune, spy.training)
    assert spy.diary == [("rewind", 0.0), ("prune", 0.8, None), ("rest", masks)]
    by_hand = snip_by_hand(spy.task.model(), spy.task.calibration(64), kept=round(0.2 * WEIGHTS))
    assert masks == by_hand
    assert same_weights(spy.begun[0], spy.task.model(), masks)
    assert Masks.of(spy.model) == masks
    alone = spy.task.model()
    by_hand.apply(alone)
    spy.task.train(alone, seed=0, masks=by_hand)
    assert same_weights(spy.model, alone)


def test_rounds_before_training_ask_again_about_the_pruned_network():
    spy = Spy(criterion="snip")
    masks = before_training(3)(0.9, spy.prune, spy.training)
    assert spy.did() == ["rewind", "prune", "prune", "prune", "rest"]
    assert spy.asked() == pytest.approx([1 - 0.1 ** (r / 3) for r in (1, 2, 3)])
    assert within_the_last(spy)
    assert nested(spy.masks)
    model, batch = spy.task.model(), spy.task.calibration(64)
    for kept, found in zip((165, 77, 36), spy.masks, strict=True):  # 356 · 0.1^(1/3), …
        by_hand = snip_by_hand(model, batch, kept)  # what is zero already has |weight · gradient| = 0
        assert found == by_hand
        by_hand.apply(model)
    at_once = snip_by_hand(spy.task.model(), batch, 36)
    assert masks != at_once, "asking again makes a difference"
    assert same_weights(spy.begun[0], spy.task.model(), masks)


# ── dropping and growing ──────────────────────────────────────────────────────────────────────────────────────────


def test_rigl_and_set_keep_the_counts_of_the_first_pruning():
    for name in ("rigl", "set"):
        spy = Spy("erk", criterion="random")
        masks = SCHEDULES[name](0.8, spy.prune, spy.training)
        (first,) = spy.masks
        assert spy.diary == [("rewind", 0.0), ("prune", 0.8, None), ("rest", None)]
        assert same_weights(spy.begun[0], spy.task.model(), first), "it begins with the initial weights"
        assert {n: int(m.sum()) for n, m in masks.items()} == {n: int(m.sum()) for n, m in first.items()}
        assert masks.kept() == round(0.2 * WEIGHTS)
        assert masks != first
        assert not any(spy.model.get_parameter(n)[~mask].any() for n, mask in masks.items())


def test_rigl_does_what_its_options_say(monkeypatch):
    made = []

    class Told:
        masks = Masks({"w": torch.tensor([True])})

        def __init__(self, masks, steps, **options):
            made.append((masks, steps, options))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def __call__(self, *_):
            return None

    monkeypatch.setattr("pruninglab.schedules.Regrow", Told)
    spy = Spy(steps=10, seed=3)
    assert regrow("random", 0.2, 0.1, 0.9, 4)(0.5, spy.prune, spy.training) is Told.masks
    (masks, steps, options) = made[0]
    assert (masks, steps) == (spy.masks[0], 20)
    assert options == {"grow": "random", "fraction": 0.2, "begin": 0.1, "end": 0.9, "every": 4, "seed": 3}


def test_set_grows_elsewhere_for_another_seed_of_the_run():
    def grown(seed):
        spy = Spy("erk", criterion="magnitude")
        train = spy.training
        train.seed = seed
        train.rewind = lambda to=0.0: SpyTrain.rewind(spy.training, to)  # the weights stay those of seed 0
        train.start = 0
        return regrow("random", every=10)(0.8, spy.prune, train)

    assert grown(0) == grown(0)
    assert grown(0) != grown(1)


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_granet_prunes_along_the_curve_from_its_first_sparsity(initial):
    spy = Spy("erk" if initial else "global")
    masks = granet(initial, every=15)(0.9, spy.prune, spy.training)
    first = [("prune", initial, None)] if initial else []
    assert spy.diary[: 2 + len(first)] == [("rewind", 0.0), *first, ("rest", None)]
    assert same_weights(spy.begun[0], spy.task.model(), spy.masks[0] if initial else None)
    curve = [0.9 + (initial - 0.9) * (1 - t) ** 3 for t in (0.25, 0.5, 0.75, 1.0)]
    assert spy.asked() == pytest.approx(curve if not initial else [initial, *curve])
    assert masks.kept() == round(0.1 * WEIGHTS)
    assert not any(spy.model.get_parameter(n)[~mask].any() for n, mask in masks.items())
    assert not nested(spy.masks), "what was pruned may come back"


def test_granet_is_gradual_and_an_exchange():
    """At the first pruning the two have done the same; from there on they differ."""
    spy, other = Spy(), Spy()
    granet(every=15)(0.9, spy.prune, spy.training)
    gradual(every=15, from_scratch=True)(0.9, other.prune, other.training)
    assert spy.masks[0] == other.masks[0]
    assert spy.masks[1] != other.masks[1]
    assert [m.kept() for m in spy.masks] == [m.kept() for m in other.masks]


def test_granet_that_begins_sparser_than_it_ends():
    spy = Spy()
    with pytest.raises(ValueError, match=r"initial is a sparsity from 0 to the final 0\.5, not 0\.6"):
        granet(0.6)(0.5, spy.prune, spy.training)


@pytest.mark.parametrize("initial", [1.0, -0.1, float("nan")])
def test_granet_from_an_impossible_sparsity(initial):
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        granet(initial)


@pytest.mark.parametrize("make", [regrow, granet])
@pytest.mark.parametrize("fraction", [0, 1, -0.3])
def test_a_fraction_that_is_no_share_is_told_when_the_schedule_is_made(make, fraction):
    with pytest.raises(ValueError, match=r"fraction is the share of weights exchanged, in \(0, 1\)"):
        make(fraction=fraction)


def test_an_unknown_way_to_grow_is_told_when_the_schedule_is_made():
    with pytest.raises(ValueError, match="unknown way to grow 'momentum'"):
        regrow("momentum")


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_names():
    known = {"one_shot", "iterative", "gradual", "lottery", "before_training", "rigl", "set", "granet"}
    assert set(SCHEDULES) == known
    assert all(schedule.__name__ == name for name, schedule in SCHEDULES.items())


def test_names_tell_settings_apart():
    assert gradual().__name__ == "gradual"
    assert gradual(every=50).__name__ == "gradual(every=50)"
    assert gradual(begin=0.25, from_scratch=True).__name__ == "gradual(begin=0.25, from_scratch=True)"
    assert iterative(5).__name__ == iterative().__name__
    assert iterative(2).__name__ == "iterative(2)"
    assert lottery(4, rewind_to=0.1).__name__ == "lottery(4, rewind_to=0.1)"
    assert lottery(rate=0.5).__name__ == "lottery(rate=0.5)"
    assert before_training(20).__name__ == "before_training(20)"
    assert regrow(fraction=0.1).__name__ == "rigl(fraction=0.1)"
    assert regrow("random", end=0.9).__name__ == "set(end=0.9)"
    assert granet(0.5, every=10).__name__ == "granet(initial=0.5, every=10)"
