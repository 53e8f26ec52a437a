"""The tables that chapters make of `compare`'s."""

import numpy as np
import pandas as pd
import pytest

from pruninglab.notebook import by_seed, means


def table(seeds=(0, 1, 2), levels=(0.5, 0.9)):
    rows = [
        {"criterion": c, "sparsity": s, "seed": seed, "accuracy": a - s / 10 + seed / 100, "accuracy_before": 0.1}
        for c, a in (("mine", 0.9), ("random", 0.6))
        for s in levels
        for seed in seeds
    ]
    dense = [
        {"criterion": "dense", "sparsity": 0.0, "seed": s, "accuracy": 0.95, "accuracy_before": 0.95} for s in seeds
    ]
    return pd.DataFrame(rows + dense)


def test_by_seed_pairs_the_criteria_of_one_sparsity():
    wide = by_seed(table(), 0.9)
    assert list(wide.index) == [0, 1, 2]
    assert set(wide.columns) == {"mine", "random", "dense"}
    assert (wide["mine"] - wide["random"]).tolist() == pytest.approx([0.3, 0.3, 0.3])
    assert wide["dense"].tolist() == [0.95] * 3
    assert by_seed(table(), 0.5, y="accuracy_before")["mine"].tolist() == [0.1] * 3


def test_by_seed_needs_no_sparsity_where_there_is_one_and_names_them_where_there_are_several():
    assert by_seed(table(levels=(0.5,)))["mine"].tolist() == pytest.approx([0.85, 0.86, 0.87])
    with pytest.raises(ValueError, match=r"name one of the sparsities 0\.5, 0\.9, not None"):
        by_seed(table())
    with pytest.raises(ValueError, match=r"not 0\.8"):
        by_seed(table(), 0.8)


def test_by_seed_does_not_hide_a_run_that_is_there_twice():
    with pytest.raises(ValueError, match="duplicate"):
        by_seed(pd.concat([table(), table()]), 0.9)


def test_means_are_mean_and_sample_deviation_in_percent():
    shown = means(table())
    values = [90.0 - 9 + seed for seed in (0, 1, 2)]
    expected = f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
    assert shown.loc["mine", "accuracy, %: 0.9 removed"] == expected
    assert shown.loc["random", "accuracy, %: dense"] == ""
    assert means(table(seeds=(0,))).loc["mine", "accuracy, %: 0.5 removed"] == "85.0"
    assert "accuracy before, %: 0.5 removed" in means(table(), "accuracy", "accuracy_before")
