"""The exercises of chapter 10: whether it really is better, and who has won."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pruninglab.notebook.exercises import exercise
from pruninglab.versus import interval

Function = Callable[..., Any]
OURS, THEIRS = [0.81, 0.90, 0.72, 0.95, 0.64], [0.80, 0.86, 0.71, 0.90, 0.65]


def _paired_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    return interval([a - b for a, b in zip(ours, theirs, strict=True)])


paired_interval = exercise("paired_interval", _paired_interval)


@paired_interval.holds("it gives three numbers: mean, low, high")
def _(f: Function) -> None:
    got = f(OURS, THEIRS)
    assert isinstance(got, (tuple, list)), f"it gave {type(got).__name__}"
    assert len(got) == 3, f"it gave {len(got)} things"
    assert got[1] <= got[0] <= got[2], f"they are not in order: mean {got[0]} should lie between {got[1]} and {got[2]}"


@paired_interval.holds("the first is the mean of ours − theirs")
def _(f: Function) -> None:
    for ours, theirs in ((OURS, THEIRS), (THEIRS, OURS)):
        expected = (sum(ours) - sum(theirs)) / 5
        assert math.isclose(f(ours, theirs)[0], expected, abs_tol=1e-9), f"it gave {f(ours, theirs)[0]}, not {expected}"


@paired_interval.holds("if every network says the same difference, the interval has no width")
def _(f: Function) -> None:
    theirs = [0.5, 0.9, 0.7]
    got = f([value + 0.01 for value in theirs], theirs)
    assert math.isclose(got[2] - got[1], 0, abs_tol=1e-9), (
        f"all gain 0.01, but it is {got[2] - got[1]:.4f} wide: take the spread of the *differences*, not of each list"
    )


@paired_interval.holds("two networks: the interval reaches 12.706 times half their distance to each side")
def _(f: Function) -> None:
    got = f([0.1, 0.3], [0.0, 0.0])
    half = 12.7062047 * 0.1  # t at 97.5 % with one degree of freedom · (0.2 / √2) / √2
    assert math.isclose(got[2] - 0.2, half, rel_tol=1e-4), (
        f"it reaches {got[2] - 0.2:.4f} above the mean, not {half:.4f}: s divides by n − 1, "
        "the mean's error is s / √n, and t has n − 1 degrees of freedom"
    )
    assert math.isclose(0.2 - got[1], half, rel_tol=1e-4), (
        f"it reaches {0.2 - got[1]:.4f} below the mean, not {half:.4f}"
    )


@paired_interval.holds("it is Student's for five networks too")
def _(f: Function) -> None:
    from scipy.stats import ttest_rel

    expected = ttest_rel(OURS, THEIRS).confidence_interval(0.95)
    got = f(OURS, THEIRS)
    for mine, theirs in zip(got[1:], expected, strict=True):
        assert math.isclose(mine, theirs, rel_tol=1e-3), f"it gave {mine:.5f}, Student's interval ends at {theirs:.5f}"


def _honest_winner(validation: Mapping[str, Sequence[float]], test: Mapping[str, Sequence[float]]) -> tuple[str, float]:
    name = max(validation, key=lambda name: sum(validation[name]) / len(validation[name]))
    return name, sum(test[name]) / len(test[name])


honest_winner = exercise("honest_winner", _honest_winner)


@honest_winner.holds("it gives a name and one number")
def _(f: Function) -> None:
    got = f({"a": [0.5, 0.7], "b": [0.9, 0.8]}, {"a": [0.4, 0.6], "b": [0.7, 0.8]})
    assert isinstance(got, (tuple, list)), f"it gave {type(got).__name__}"
    assert len(got) == 2, f"it gave {len(got)} things"
    assert got[0] in ("a", "b"), f"the first is {got[0]!r}, not the name of a criterion"


@honest_winner.holds("the winner is who is best on validation, whatever the test says")
def _(f: Function) -> None:
    validation = {"a": [0.9, 0.8], "b": [0.7, 0.6], "c": [0.1, 0.1]}
    for test in ({"a": [0.2, 0.1], "b": [0.9, 0.9], "c": [1, 1]}, {"a": [0.9, 0.9], "b": [0.1, 0.1], "c": [0.8, 0]}):
        assert f(validation, test)[0] == "a", f"it chose {f(validation, test)[0]!r} where the test split was {test}"


@honest_winner.holds("best by the mean over seeds, not by one lucky seed")
def _(f: Function) -> None:
    validation = {"a": [0.99, 0.1, 0.1], "b": [0.6, 0.6, 0.6], "c": [0.59, 0.59, 0.62]}
    got = f(validation, validation)[0]
    assert got == "b" or sum(validation[got]) >= 1.8 - 1e-12, f"it chose {got!r}"


@honest_winner.holds("the number is the winner's mean on the test split")
def _(f: Function) -> None:
    got = f({"a": [0.5, 0.7, 0.6], "b": [0.9, 0.8, 0.8]}, {"a": [0.9, 0.9, 0.9], "b": [0.7, 0.8, 0.3]})[1]
    assert math.isclose(got, 0.6, abs_tol=1e-9), f"it gave {got}, and the winner's test accuracies are 0.7, 0.8, 0.3"


def _holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > level / (len(order) - rank):
            break
        found[i] = True
    return found


holm = exercise("holm", _holm)


@holm.holds("it gives a list with a bool for each p-value")
def _(f: Function) -> None:
    got = f([0.5, 0.001, 0.2])
    assert isinstance(got, list), f"it gave {type(got).__name__}"
    assert len(got) == 3, f"it gave {len(got)} answers for 3 p-values"
    assert all(value in (True, False) for value in got), f"it gave {got}"


@holm.holds("one alone is judged by the level")
def _(f: Function) -> None:
    assert f([0.04]) == [True], "0.04 alone is below 0.05"
    assert f([0.06]) == [False], "0.06 alone is above 0.05"
    assert f([0.04], level=0.01) == [False], "0.04 is above a level of 0.01"


@holm.holds("the smallest of n has to be at most level / n")
def _(f: Function) -> None:
    assert f([0.5, 0.02, 0.9]) == [False] * 3, "0.02 is above 0.05 / 3"
    assert f([0.5, 0.016, 0.9]) == [False, True, False], "0.016 is below 0.05 / 3"


@holm.holds("the next has one rival fewer")
def _(f: Function) -> None:
    got = f([0.03, 0.02, 0.01])
    assert got == [True, True, True], f"0.01 ≤ 0.05/3, 0.02 ≤ 0.05/2, 0.03 ≤ 0.05/1: all three count, but it gave {got}"


@holm.holds("after the first that fails, all that are larger fail")
def _(f: Function) -> None:
    got = f([0.04, 0.001, 0.03])
    assert got == [False, True, False], f"0.03 > 0.05/2 fails, so 0.04 fails too, below 0.05 or not; it gave {got}"
