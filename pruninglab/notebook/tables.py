"""Tables of `compare`, as a chapter needs them: one number for each seed, or mean ± standard deviation."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def by_seed(
    table: "pd.DataFrame", sparsity: float | None = None, *, by: str = "criterion", y: str = "accuracy"
) -> "pd.DataFrame":
    """One row for each seed and one column for each criterion, so that a difference of columns is paired.

    Args:
        table: rows of `compare`.
        sparsity: which one to look at, as asked for; the unpruned network ("dense") stays in. Not needed if the table
            has one only.
        by: which column becomes the columns.
        y: which column holds the numbers.

    Raises:
        ValueError: the table lacks this sparsity, or has several and none is named, or a seed twice in a column.
    """
    pruned = table[table["criterion"] != "dense"]
    levels = sorted(pruned["sparsity"].unique())
    if sparsity is None and len(levels) == 1:
        sparsity = levels[0]
    if sparsity not in levels:
        raise ValueError(f"name one of the sparsities {', '.join(f'{level:g}' for level in levels)}, not {sparsity}")
    chosen = pruned[pruned["sparsity"] == sparsity]
    if by == "criterion":
        import pandas as pd

        chosen = pd.concat([chosen, table[table["criterion"] == "dense"]])
    return chosen.pivot(index="seed", columns=by, values=y)


def means(table: "pd.DataFrame", *y: str, by: str | list[str] = "criterion") -> "pd.DataFrame":
    """Mean ± standard deviation over seeds in percent, as text; rows by `by`, columns by sparsity.

    Args:
        table: rows of `compare`.
        y: which columns to show; "accuracy" if none is named.
        by: which columns tell the rows apart.
    """
    shown = list(y or ["accuracy"])
    keys = [by] if isinstance(by, str) else by
    stats = table.groupby([*keys, "sparsity"], sort=False)[shown].agg(["mean", "std"])
    cells = {
        name: [
            f"{100 * mean:.1f}" if std != std else f"{100 * mean:.1f} ± {100 * std:.1f}"  # one seed has no spread
            for mean, std in stats[name].itertuples(index=False)
        ]
        for name in shown
    }
    import pandas as pd

    wide = pd.DataFrame(pd.DataFrame(cells, index=stats.index).unstack("sparsity").fillna(""))
    wide.columns = [
        f"{str(column[0]).replace('_', ' ')}, %: {f'{column[1]:.4g} removed' if column[1] else 'dense'}"
        for column in wide.columns.to_flat_index()
    ]
    return wide
