"""Paired differences: against SciPy's paired t-test, on tables made by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from pruninglab.versus import interval, versus


def table(values, validation=None, sparsity=0.5, **setting):
    """Rows of `compare`: criterion → accuracy of each seed."""
    base = {"task": "t", "unit": "weight", "allocation": "global", "schedule": "one_shot", "recovery": "none"} | setting
    rows = []
    for name, accuracies in values.items():
        for seed, accuracy in enumerate(accuracies):
            chosen_by = (validation or values)[name][seed]
            level = 0.0 if name == "dense" else sparsity
            own = {"criterion": name, "sparsity": level, "seed": seed, "accuracy": accuracy, "validation": chosen_by}
            rows.append(base | own)
    return pd.DataFrame(rows)


def numbers(n, seed, mean=0.8):
    return (mean + 0.05 * np.random.default_rng(seed).standard_normal(n)).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_and_the_verdict_are_those_of_the_paired_t_test(seed):
    values = {"mine": numbers(6, seed, 0.82), "magnitude": numbers(6, 100 + seed)}
    row = versus(table(values), "mine").iloc[0]
    test = scipy.stats.ttest_rel(values["mine"], values["magnitude"])
    low, high = test.confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert row["mean"] == pytest.approx(np.mean(values["mine"]) - np.mean(values["magnitude"]))
    expected = ("better" if row["mean"] > 0 else "worse") if test.pvalue < 0.05 else "cannot be told"
    assert row["verdict"] == expected
    assert row["seeds"] == 6


def test_pairs_see_what_spreads_hide():
    network = numbers(8, 1, 0.6)
    mine = [value + 0.01 + 0.001 * (i % 2) for i, value in enumerate(network)]
    row = versus(table({"mine": mine, "magnitude": network}), "mine").iloc[0]
    assert row["verdict"] == "better"
    assert np.std(network) > 3 * row["mean"], "the spread is larger than the gain"
    assert versus(table({"mine": network, "magnitude": mine}), "mine").iloc[0]["verdict"] == "worse"


def test_pairs_are_matched_by_seed_and_not_by_place():
    rows = table({"mine": [0.1, 0.2, 0.3] * 2, "magnitude": [0.2, 0.3, 0.4] * 2}).sample(frac=1, random_state=3)
    found = versus(rows, "mine").iloc[0]
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((-0.1, -0.1, -0.1))


@pytest.mark.parametrize(("seeds", "verdict"), [(2, "cannot be told"), (5, "cannot be told"), (6, "better")])
def test_a_few_equal_differences_say_nothing_about_their_spread(seeds, verdict):
    network = numbers(seeds, 1)
    row = versus(table({"mine": [value + 1 / 719 for value in network], "magnitude": network}), "mine").iloc[0]
    assert row["verdict"] == verdict
    assert math.isinf(row["low"]) == math.isinf(row["high"]) == (seeds < 6)


def test_the_best_is_chosen_by_validation():
    values = {"dense": [1.0, 1.0], "mine": [0.5, 0.6], "magnitude": [0.9, 0.9], "taylor": [0.4, 0.7]}
    validation = {"dense": [1.0, 1.0], "mine": [0.99, 0.99], "magnitude": [0.3, 0.3], "taylor": [0.5, 0.6]}
    row = versus(table(values, validation), "mine", against="best").iloc[0]
    assert row["against"] == "taylor", "which is not the best on the test split, nor mine"
    assert row["mean"] == pytest.approx(0.0)


def test_a_row_for_each_setting():
    values = {"mine": [0.5, 0.6, 0.4], "magnitude": [0.9, 0.8, 0.7]}
    parts = [table(values), table(values, sparsity=0.9), table(values, unit="row"), table(values, task="other")]
    found = versus(pd.concat(parts), "mine")
    assert len(found) == 4
    assert found[["task", "unit", "sparsity"]].values.tolist() == [
        ["t", "weight", 0.5], ["t", "weight", 0.9], ["t", "row", 0.5], ["other", "weight", 0.5],
    ]  # fmt: skip


def test_runs_that_failed_are_left_out():
    found = versus(table({"mine": [math.nan, 0.5, 0.6], "magnitude": [0.1, 0.4, 0.5]}), "mine").iloc[0]
    assert (found["seeds"], found["mean"]) == (2, pytest.approx(0.1))
    nothing = versus(table({"mine": [math.nan] * 2, "magnitude": [0.1, 0.4]}), "mine").iloc[0]
    assert (nothing["seeds"], nothing["verdict"]) == (0, "cannot be told")
    assert math.isnan(nothing["mean"])


def test_of_an_error_less_is_better():
    rows = table({"mine": [0.1, 0.11, 0.1], "magnitude": [0.2, 0.2, 0.21]}).assign(
        calibration_error=lambda t: t["accuracy"]
    )
    assert versus(rows, "mine", y="calibration_error").iloc[0]["verdict"] == "better"
    assert versus(rows, "mine").iloc[0]["verdict"] == "worse"


def test_one_seed_tells_nothing():
    found = versus(table({"mine": [0.9], "magnitude": [0.1]}), "mine").iloc[0]
    assert (found["low"], found["high"], found["verdict"]) == (-math.inf, math.inf, "cannot be told")


def test_the_interval_holds_the_mean_in_nineteen_of_twenty_draws():
    draws = np.random.default_rng(0).standard_normal((2000, 5))
    inside = [low < 0 < high for _, low, high in (interval(list(row)) for row in draws)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"criterion": "mien"}, "no criterion 'mien'; it has mine, magnitude"),
        ({"against": "taylor"}, "no criterion 'taylor'"),
        ({"against": "mine"}, "cannot be compared with itself"),
        ({"criterion": "best"}, "cannot be compared with itself"),
        ({"y": "speed"}, "no column 'speed'"),
        ({"criterion": "dense"}, "no criterion 'dense'"),
    ],
)
def test_what_cannot_be(options, match):
    rows = table({"dense": [1.0], "mine": [0.9], "magnitude": [0.1]})
    with pytest.raises(ValueError, match=match):
        versus(rows, **({"criterion": "mine"} | options))


def test_without_validation_there_is_no_best():
    rows = table({"mine": [0.9], "magnitude": [0.1]}, {"mine": [math.nan], "magnitude": [math.nan]})
    with pytest.raises(ValueError, match="validation"):
        versus(rows, "mine", against="best")


def test_who_fails_on_hard_seeds_is_not_the_best_for_it():
    values = {"mine": [0.8, 0.9, 0.9], "lucky": [math.nan, 0.9, 0.9], "magnitude": [0.7, 0.9, 0.9]}
    assert versus(table(values), "mine", against="best").iloc[0]["against"] == "magnitude"
