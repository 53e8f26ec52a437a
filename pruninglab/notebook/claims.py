"""A sentence of the book with the numbers that bear it out, or do not.

The verdict is computed: whether the 95 % confidence interval of the mean over seeds lies on the claimed side of the
bound. While the book is tested (`PRUNINGLAB_STRICT=1`), a claim that does not come out as the chapter says is an error.
Where `PRUNINGLAB_CLAIMS` names a file, each claim adds a line of JSON to it: so the ledger knows all of them.
"""

import html
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pruninglab.versus import interval

HOLDS, FAILS, OPEN = "holds", "does not hold here", "cannot be told"
SIGNS = {HOLDS: "✔", FAILS: "✘", OPEN: "?"}
ENOUGH_SEEDS = 5  # with fewer (a quick look), or of times on a busy machine, it is no error whether a claim can be told


@dataclass(frozen=True)
class Claim:
    """A claim, its numbers and its verdict; shows itself in a notebook."""

    sentence: str
    measured: str
    verdict: str
    source: str = ""
    why: str = ""

    def _lines(self) -> list[str]:
        first = f"{self.sentence} ({self.source})" if self.source else self.sentence
        why = [f"why: {self.why}"] if self.why and self.verdict != HOLDS else []
        return [first, f"measured: {self.measured}", *why]

    def __str__(self) -> str:
        return f"{SIGNS[self.verdict]} {self.verdict}: " + "\n  ".join(self._lines())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        first, *rest = map(html.escape, self._lines())
        text = (
            '<div style="border-left: 4px solid #808080; padding: 0.2em 0.8em; margin: 0.4em 0">'
            f"<b>{SIGNS[self.verdict]} {self.verdict}</b> — {first}<br>"
            f"<small>{'<br>'.join(rest)}</small></div>"
        )
        return {"text/html": text, "text/plain": str(self)}


def strict() -> bool:
    """Whether the book is being tested."""
    return os.environ.get("PRUNINGLAB_STRICT", "") not in ("", "0")


def effect(record: Mapping[str, Any]) -> str:
    """What was measured, as text: the mean and its interval, or the exact value."""
    if record["direction"] == "equals":
        return str(record["values"])
    by = _scale(record)
    mean, low, high = (math.nan if record[name] is None else by * record[name] for name in ("mean", "low", "high"))
    text = f"{mean:.3g} {record['unit']}".strip()
    return text if math.isnan(low) else f"{text}, 95 % interval {low:.3g} to {high:.3g}"


def count(record: Mapping[str, Any]) -> str:
    """How many values there were, as text ("5 seeds"); nothing for what is exact."""
    return f"{record['n']} {record['over']}{'s' * (record['n'] > 1)}" if record["n"] else ""


def claimed(record: Mapping[str, Any]) -> str:
    """What the claim says of the measured value, as text."""
    if record["direction"] == "equals":
        return f"exactly {record['bound']}"
    return f"{'more' if record['direction'] == 'above' else 'less'} than {_scale(record) * record['bound']:g}"


def _scale(record: Mapping[str, Any]) -> int:
    return 100 if record["unit"] in ("%", "points") else 1


def claim(
    sentence: str,
    values: Any,
    *,
    above: float | None = None,
    below: float | None = None,
    equals: Any = None,
    unit: str = "",
    over: str = "seed",
    expect: str = HOLDS,
    source: str = "",
    why: str = "",
) -> Claim:
    """Test a sentence against what was measured.

    Args:
        sentence: the claim, as the chapter makes it.
        values: one number for each seed (paired differences, where two things are compared); for `equals` anything.
        above: claims that the mean is greater than this.
        below: claims that the mean is less than this.
        equals: claims that `values` is exactly this; for counts and bytes.
        unit: written behind the numbers; "%" and "points" multiply fractions by 100.
        over: what there is one value for, in the singular ("seed"; "round" where time was measured); written behind
            their number.
        expect: the verdict that the chapter states, one of "holds", "does not hold here" and "cannot be told".
        source: whose claim it is, and of which year; shown behind the sentence.
        why: why it does not show here; shown only if it does not.

    Raises:
        ValueError: not exactly one of `above`, `below`, `equals`, no or infinite values, or an unknown `expect`.
        AssertionError: only while the book is tested: the verdict is not the expected one.
        OSError: `PRUNINGLAB_CLAIMS` names a file that cannot be written.
    """
    if sum(bound is not None for bound in (above, below, equals)) != 1:
        raise ValueError("a claim has exactly one bound: above=, below= or equals=")
    if expect not in SIGNS:
        raise ValueError(f"expect is one of {', '.join(map(repr, SIGNS))}, not {expect!r}")
    record: dict[str, Any] = {"sentence": sentence, "unit": unit, "over": over, "expect": expect}
    record |= {"source": source, "why": why}
    seeds = ENOUGH_SEEDS
    if equals is not None:
        verdict = HOLDS if values == equals else FAILS
        record |= {"direction": "equals", "bound": str(equals), "values": str(values)}
        record |= dict.fromkeys(("mean", "low", "high", "n"))
    else:
        numbers = [float(v) for v in values]
        if not numbers or not all(map(math.isfinite, numbers)):
            raise ValueError(f"a claim needs at least one measured value, and finite ones, not {numbers}")
        seeds = len(numbers)
        mean, low, high = interval(numbers)
        bound = above if above is not None else below
        assert bound is not None  # exactly one of the three was given
        right = low > bound if above is not None else high < bound
        wrong = high <= bound if above is not None else low >= bound
        verdict = HOLDS if right else FAILS if wrong else OPEN
        record |= {"direction": "above" if above is not None else "below", "bound": float(bound), "values": numbers}
        known = seeds > 1  # JSON has no infinity
        record |= {"mean": mean, "low": low if known else None, "high": high if known else None, "n": seeds}
    record["verdict"] = verdict
    _record(record)
    measured = ", ".join(filter(None, (effect(record), count(record)))) + f" (claimed: {claimed(record)})"
    found = Claim(sentence, measured, verdict, source, why)
    unsure = OPEN in (verdict, expect) and (seeds < ENOUGH_SEEDS or over == "round")
    if strict() and verdict != expect and not unsure:
        raise AssertionError(f"the chapter states that this {expect}:\n{found}")
    return found


def _record(record: dict[str, Any]) -> None:
    """Add a claim to the file that `PRUNINGLAB_CLAIMS` names, with the source of the cell that makes it."""
    if not (path := os.environ.get("PRUNINGLAB_CLAIMS")):
        return
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    line = json.dumps(record | {"cell": shell.history_manager.input_hist_raw[-1] if shell else ""}) + "\n"
    with open(path, "ab", buffering=0) as file:  # in one go: a line is whole, whoever else writes
        file.write(line.encode())
