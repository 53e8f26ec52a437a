"""Is it really better? Two criteria on the same networks, seed by seed.

Networks of different seeds differ more than criteria do, so that two means with their spreads overlap where each
single network says the same. The difference on each network, and an interval for its mean, tells.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pruninglab.compare import ANSWERS
from pruninglab.metrics import LOWER_IS_BETTER

if TYPE_CHECKING:
    import pandas as pd

SETTING = (*ANSWERS, "sparsity")
BETTER, WORSE, OPEN = "better", "worse", "cannot be told"
EQUAL = 1e-9  # what rounding makes of no difference
ENOUGH = 6  # of one sign in one column: by chance one time in 32


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % confidence interval of the mean (Student's t); the interval is infinite for a single value."""
    from scipy.stats import t

    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return mean, -math.inf, math.inf
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return mean, mean - half, mean + half


def versus(table: "pd.DataFrame", criterion: str, *, against: str = "magnitude", y: str = "accuracy") -> "pd.DataFrame":
    """Paired differences over seeds between one criterion and another, wherever both were run.

    Accuracies are steps of one test image, so that a few differences can be equal by chance: fewer than six that are
    say nothing about their spread. One verdict in twenty is wrong by chance where there is no difference at all: look
    at many, and some are.

    Args:
        table: rows of `compare`.
        criterion: whose numbers count as gains, as the table calls it.
        against: another criterion; or "best", the one of all others whose mean accuracy on the validation split is
            highest. It is not chosen by the test split, which the table's `accuracy` is of.
        y: which column to compare.

    Returns:
        A row for each task, unit, allocation, schedule, recovery and sparsity: these, `against`, `mean`, `low` and
        `high` (the 95 % interval of the mean), `seeds` (how many pairs) and `verdict`: "better" if the whole interval
        is above 0, "worse" if it is below (the other way round for errors), else "cannot be told".

    Raises:
        ValueError: the table lacks the column or a criterion, or `against` is the criterion itself.
    """
    import pandas as pd

    known = [name for name in table["criterion"].unique() if name != "dense"]
    for name in (criterion, against):
        if name not in known and name != "best":
            raise ValueError(f"the table has no criterion {name!r}; it has {', '.join(known)}")
    if criterion in (against, "best"):
        raise ValueError(f"{criterion!r} cannot be compared with itself")
    if y not in table:
        raise ValueError(f"the table has no column {y!r}; it has {', '.join(table.columns)}")
    rows = []
    for setting, part in table[table["criterion"] != "dense"].groupby(list(SETTING), sort=False):
        other = _best(part, criterion) if against == "best" else against
        wide = part.pivot(index="seed", columns="criterion", values=y)
        row = dict(zip(SETTING, setting, strict=True)) | {"against": other}
        pairs = (wide[criterion] - wide[other]).dropna().tolist() if {criterion, other} <= set(wide) else []
        if pairs:
            mean, low, high = interval(pairs)
            if high - low < EQUAL and len(pairs) < ENOUGH:
                low, high = -math.inf, math.inf
            above, below = (WORSE, BETTER) if y in LOWER_IS_BETTER else (BETTER, WORSE)
            verdict = above if low > 0 else below if high < 0 else OPEN
        else:
            mean, low, high, verdict = math.nan, math.nan, math.nan, OPEN
        rows.append(row | {"mean": mean, "low": low, "high": high, "seeds": len(pairs), "verdict": verdict})
    return pd.DataFrame(rows)


def _best(part: "pd.DataFrame", but: str) -> str:
    others = part[part["criterion"] != but]
    found = others.groupby("criterion", sort=False)["validation"].agg(["mean", "count"]).dropna()
    means = found["mean"][found["count"] == found["count"].max()]  # who failed on hard seeds is not better for it
    if means.empty:
        raise ValueError("no other criterion has a validation accuracy, by which the best is chosen")
    return str(means.idxmax())
