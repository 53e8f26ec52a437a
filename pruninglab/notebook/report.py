"""What a table of `compare` says: its means, paired differences and failed runs, as tables, Markdown or one HTML file.

write_report(compare([my_score, "taylor", "wanda"], task="digits-cnn"), "my_score.html")
"""

import html
import os
import platform
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pruninglab.compare import ANSWERS
from pruninglab.criteria import CRITERIA
from pruninglab.files import atomic, code_version
from pruninglab.notebook.pictures import BLUE, GREY, Picture, canvas, legend
from pruninglab.notebook.plots import logarithmic, plot_tradeoff
from pruninglab.notebook.tables import means
from pruninglab.versus import BETTER, OPEN, WORSE, versus

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {*ANSWERS, "criterion", "sparsity", "achieved", "seed", "accuracy_before", "accuracy", "validation"}
COLUMNS |= {"seconds_pruning", "seconds_recovery", "steps", "forward_passes", "note"}  # all others are metrics
CHANCE = " Where there is no difference at all, one verdict in twenty is wrong by chance."
LINES = 6  # beside the two baselines: more could not be told apart
STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; background: Canvas; color: CanvasText; }
table { border-collapse: collapse; }
caption { text-align: left; font-style: italic; padding-bottom: 0.3em; }
th, td { border: 1px solid #808080; padding: 0.2em 0.6em; text-align: left; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; margin: 1em 0; }
pre { overflow-x: auto; border: 1px solid #808080; padding: 0.5em; font-size: 0.8rem; }
figure { margin: 1em 0; }
img { max-width: 100%; height: auto; }
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_report(
    table: "pd.DataFrame", path: str | os.PathLike[str], criterion: str | Sequence[str] | None = None
) -> Path:
    """Write a table of `compare` as one HTML file with its figures inside, which opens without a network.

    Args:
        table: rows of `compare`.
        path: of the file, which is written whole or not at all; its folder is made if it is not there.
        criterion: which one (or ones) the report is about, as the table calls them; all that are not built in if not
            given.

    Raises:
        ValueError: the table has no such criterion.
    """
    chosen = own(table) if criterion is None else [criterion] if isinstance(criterion, str) else list(criterion)
    title = f"{', '.join(chosen)} compared" if chosen else "Criteria compared"
    body = "\n".join(_body(table, chosen, title))
    return write(path, PAGE.format(title=html.escape(title), style=STYLE, body=body))


def write(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file that everybody may read, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o644)
    return Path(path)


def own(table: "pd.DataFrame") -> list[str]:
    """The criteria of a table that are not built in."""
    names = [name for name in table["criterion"].unique() if name != "dense"]
    return [n for n in names if not getattr(CRITERIA.get(n), "__module__", "").startswith("pruninglab.criteria.")]


def summary(table: "pd.DataFrame", chosen: Sequence[str]) -> list[tuple[str, "pd.DataFrame"]]:
    """What the table says, in tables of text with their captions.

    Args:
        table: rows of `compare`.
        chosen: the criteria that are compared with others seed by seed.
    """
    seeds = table["seed"].nunique()
    found = [(f"Test accuracy in percent, mean ± standard deviation over {_count(seeds, 'seed')}.", accuracies(table))]
    if any(name not in COLUMNS for name in table):
        found.append(("Other metrics, mean ± standard deviation over seeds.", metrics(table)))
    for name in chosen:
        told = f"{name} minus others on the same networks, in points of test accuracy."
        best = " The best other one is chosen on validation data." if "best" in _rivals(table, name) else ""
        found.append((f"{told}{best}{CHANCE if name == chosen[0] else ''}", differences(table, name)))
    if len(noted := notes(table)):
        found.append(("Notes of runs. Runs that failed are left out of all means.", noted))
    return found


# ── tables of text ────────────────────────────────────────────────────────────────────────────────────────────────


def accuracies(table: "pd.DataFrame") -> "pd.DataFrame":
    """Mean ± standard deviation of the accuracy in percent, a row for each criterion (and answer, where they vary).

    Runs that failed are left out; where all did, it says "failed".
    """
    shown = means(table, by=[*_varying(table), "criterion"]).replace("nan", "failed")
    return shown.reset_index()


def metrics(table: "pd.DataFrame") -> "pd.DataFrame":
    """Mean ± standard deviation of each metric, as plain numbers: a row for each criterion and sparsity."""
    names = [name for name in table if name not in COLUMNS]
    keys = [*_varying(table), "criterion", "sparsity"]
    stats = table.groupby(keys, sort=False)[names].agg(["mean", "std"])
    for name in names:
        pairs = zip(stats[name, "mean"], stats[name, "std"], strict=True)
        stats[name, "text"] = [f"{mean:.3g}" + (f" ± {std:.2g}" if std == std else "") for mean, std in pairs]
    shown = stats[[(name, "text") for name in names]]
    shown.columns = names
    return shown.reset_index().replace("nan", "failed")


def differences(table: "pd.DataFrame", criterion: str) -> "pd.DataFrame":
    """Paired differences over seeds in points of accuracy, against magnitude and the best other criterion, as text.

    Raises:
        ValueError: the table has no such criterion.
    """
    import pandas as pd

    found = []
    for against in _rivals(table, criterion):
        rows = versus(table, criterion, against=against)
        found.append(
            rows.assign(against=[f"best ({other})" if against == "best" else other for other in rows["against"]])
        )
    rows = pd.concat(found, ignore_index=True)
    shown = rows[[*_varying(table), "sparsity", "against"]].copy()
    shown["sparsity"] = [f"{level:.4g}" for level in rows["sparsity"]]
    shown["difference"] = [f"{100 * mean:+.2f}" if mean == mean else "" for mean in rows["mean"]]
    ends = zip(rows["low"], rows["high"], rows["seeds"], strict=True)
    shown["95 % interval"] = [f"{100 * low:+.2f} to {100 * high:+.2f}" if n > 1 else "" for low, high, n in ends]
    return shown.assign(seeds=rows["seeds"], verdict=rows["verdict"])


def notes(table: "pd.DataFrame") -> "pd.DataFrame":
    """What runs noted, how often, and whether they failed: a row for each criterion and note."""
    odd = table[table["note"].fillna("") != ""]
    odd = odd.assign(failed=["yes" if failed else "no" for failed in odd["accuracy"].isna()])
    keys = [*_varying(table), "criterion", "note", "failed"]
    return odd.groupby(keys, sort=False).size().reset_index(name="runs")[[*keys[:-2], "runs", "failed", "note"]]


def verdict(table: "pd.DataFrame", criterion: str, against: str = "magnitude") -> str:
    """In one sentence, at how many settings a criterion is better or worse than another one."""
    found = versus(table, criterion, against=against)["verdict"]
    better, worse, told = (int((found == word).sum()) for word in (BETTER, WORSE, OPEN))
    other = "the best other criterion (chosen on validation data)" if against == "best" else against
    counts = f"{BETTER} at {better}, {WORSE} at {worse}, {OPEN} at {told}"
    return f"{criterion} against {other}, at {_count(len(found), 'setting')}: {counts}."


def markdown(frame: "pd.DataFrame") -> str:
    """A table of text as Markdown."""
    cells = [[str(name) for name in frame], ["---"] * frame.shape[1], *frame.astype(str).values.tolist()]
    lines = [[cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _rivals(table: "pd.DataFrame", criterion: str) -> list[str]:
    """Magnitude, and the best other criterion if there are validation data everywhere to choose it by."""
    others = table[~table["criterion"].isin(["dense", criterion])]
    told = others.groupby([*ANSWERS, "sparsity"])["validation"].count()
    return ["magnitude"] * (criterion != "magnitude") + ["best"] * bool((told > 0).all())


def _varying(table: "pd.DataFrame") -> list[str]:
    """The answers of which the table has more than one."""
    return [answer for answer in ANSWERS if table[answer].nunique() > 1]


# ── pictures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def plot_cost(table: "pd.DataFrame", bold: Collection[str] = ()) -> Picture:
    """Seconds for one run of each criterion, pruning alone and with the recovery, on a logarithmic scale.

    Args:
        table: rows of `compare`.
        bold: criteria to be drawn in blue.

    Raises:
        ValueError: the table has no pruned network.
    """
    pruned = table[(table["criterion"] != "dense") & table["accuracy"].notna()]
    if pruned.empty:
        raise ValueError("the table has no pruned network to draw")
    seconds = pruned.groupby("criterion", sort=False)[["seconds_pruning", "seconds_recovery"]].mean()
    seconds = seconds.sort_values("seconds_pruning")
    alone, both = seconds["seconds_pruning"], seconds.sum(axis=1)
    recovers = bool((pruned["recovery"] != "none").any())
    figure, ax = canvas(width=7, height=0.32 * len(seconds) + 1)
    colours = [BLUE if name in bold else GREY for name in seconds.index]
    names = [f"{name} ←" if name in bold else str(name) for name in seconds.index]
    ax.scatter(alone, names, color=colours, marker="o", label="pruning")
    if recovers:
        ax.scatter(both, names, color=colours, marker="s", facecolors="none", label="with recovery")
        legend(ax)
    logarithmic(ax, "x")
    ax.invert_yaxis()
    ax.set_xlabel("seconds for one run, mean")
    told = "; ".join(
        f"{name} {one:.2g} s" + (f", {two:.2g} s with recovery" if recovers else "")
        for name, one, two in zip(seconds.index, alone, both, strict=True)
    )
    return Picture(figure, f"What one run costs, mean over sparsities and seeds: {told}.")


def _drawn(part: "pd.DataFrame", chosen: Sequence[str]) -> tuple["pd.DataFrame", str]:
    """Rows of no more criteria than can be told apart: those chosen, and the best on validation data; and a remark."""
    sound = part[part["accuracy"].notna()]
    by = sound.groupby("criterion", sort=False)["validation"].mean().sort_values(ascending=False, kind="stable")
    always = [*chosen, "dense", "magnitude", "random"]
    others = [name for name in by.index if name not in always]
    room = max(0, LINES - len(chosen))
    kept = sound[sound["criterion"].isin(always + others[:room])]
    left = others[room:]
    return kept, f" Not drawn, as they were worse on validation data: {', '.join(left)}." if left else ""


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _body(table: "pd.DataFrame", chosen: Sequence[str], title: str) -> Iterator[str]:
    yield f"<h1>{html.escape(title)}</h1>"
    for name in chosen:
        told = "<br>".join(html.escape(verdict(table, name, against)) for against in _rivals(table, name))
        yield f"<p>{told}</p>"
    first, *others = (_table(frame, caption, chosen) for caption, frame in summary(table, chosen))
    yield f"<h2>Accuracy and cost</h2>\n{first}"
    for setting, part in table.groupby(list(ANSWERS), sort=False):
        rows, remark = _drawn(part, chosen)
        if (rows["criterion"] != "dense").any():
            yield f"<h3>{html.escape(' · '.join(map(str, setting)))}</h3>"
            caption = f"The line is the mean over seeds, the band one standard deviation.{remark}"
            yield _figure(plot_tradeoff(rows), caption)
            yield _figure(plot_cost(part, chosen), "Mean over sparsities and seeds; the dense training is not counted.")
    if others:
        yield "<h2>Differences and notes</h2>"
        yield from others
    yield "<h2>Settings</h2>"
    yield _table(_settings(table), "What was run, with what.")
    rows_told = f"All {_count(len(table), 'row')}, as comma-separated values"
    yield f"<details><summary>{rows_told}</summary><pre>{html.escape(table.to_csv(index=False))}</pre></details>"


def _settings(table: "pd.DataFrame") -> "pd.DataFrame":
    import pandas as pd

    levels = sorted(table.loc[table["criterion"] != "dense", "sparsity"].unique())
    told = {answer: ", ".join(map(str, table[answer].unique())) for answer in ANSWERS}
    told |= {
        "criteria": ", ".join(map(str, table["criterion"].unique())),
        "sparsity": ", ".join(f"{level:.4g}" for level in levels),
        "seeds": ", ".join(map(str, sorted(table["seed"].unique()))),
        "written": datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "pandas")),
        "code of pruninglab": code_version(),
        "machine": f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    }
    return pd.DataFrame({"setting": list(told), "value": list(told.values())})


def _figure(picture: Picture, caption: str) -> str:
    return f"<figure>{picture.html()}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _table(frame: "pd.DataFrame", caption: str, bold: Collection[str] = ()) -> str:
    """A table of text; cells that are one of the names in `bold` are bold."""

    def cell(value: object) -> str:
        text = html.escape(str(value))
        return f"<td><b>{text}</b></td>" if value in bold else f"<td>{text}</td>"

    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in frame)
    rows = "".join(f"<tr>{''.join(map(cell, row))}</tr>\n" for row in frame.itertuples(index=False))
    told = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide" tabindex="0"><table>{told}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
