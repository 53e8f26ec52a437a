"""A sentence of the book with the numbers that bear it out, or do not.

The verdict is computed: whether the 95 % confidence interval of the mean over seeds lies on the claimed side of the
bound. While the book is tested (`PRUNINGLAB_STRICT=1`), a claim that does not come out as the chapter says is an error.
"""

import html
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

HOLDS, FAILS, OPEN = "holds", "does not hold here", "cannot be told"
SIGNS = {HOLDS: "✔", FAILS: "✘", OPEN: "?"}
ENOUGH_SEEDS = 5  # with fewer, an undecided claim is no error: the reader asked for a quick look


@dataclass(frozen=True)
class Claim:
    """A claim, its numbers and its verdict; shows itself in a notebook."""

    sentence: str
    measured: str
    verdict: str

    def __str__(self) -> str:
        return f"{SIGNS[self.verdict]} {self.verdict}: {self.sentence}\n  measured: {self.measured}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        text = (
            '<div style="border-left: 4px solid #808080; padding: 0.2em 0.8em; margin: 0.4em 0">'
            f"<b>{SIGNS[self.verdict]} {self.verdict}</b> — {html.escape(self.sentence)}<br>"
            f"<small>measured: {html.escape(self.measured)}</small></div>"
        )
        return {"text/html": text, "text/plain": str(self)}


def strict() -> bool:
    """Whether the book is being tested."""
    return os.environ.get("PRUNINGLAB_STRICT", "") not in ("", "0")


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % confidence interval of the mean (Student's t); the interval is infinite for a single value."""
    from scipy.stats import t

    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return mean, -math.inf, math.inf
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return mean, mean - half, mean + half


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
) -> Claim:
    """Test a sentence against what was measured.

    Args:
        sentence: the claim, as the chapter makes it.
        values: one number for each seed (paired differences, where two things are compared); for `equals` anything.
        above: claims that the mean is greater than this.
        below: claims that the mean is less than this.
        equals: claims that `values` is exactly this; for counts and bytes.
        unit: written behind the numbers; "%" and "points" multiply fractions by 100.
        over: what there is one value for, in the singular ("seed", "round"); written behind their number.
        expect: the verdict that the chapter states, one of "holds", "does not hold here" and "cannot be told".

    Raises:
        ValueError: not exactly one of `above`, `below`, `equals`, no or infinite values, or an unknown `expect`.
        AssertionError: only while the book is tested: the verdict is not the expected one.
    """
    if sum(bound is not None for bound in (above, below, equals)) != 1:
        raise ValueError("a claim has exactly one bound: above=, below= or equals=")
    if expect not in SIGNS:
        raise ValueError(f"expect is one of {', '.join(map(repr, SIGNS))}, not {expect!r}")
    seeds = ENOUGH_SEEDS
    if equals is not None:
        verdict, measured = (HOLDS if values == equals else FAILS), f"{values} (claimed: exactly {equals})"
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
        scale = 100 if unit in ("%", "points") else 1
        words = "more" if above is not None else "less"
        measured = (
            f"{scale * mean:.3g} {unit}".strip()
            + (f", 95 % interval {scale * low:.3g} to {scale * high:.3g}" if seeds > 1 else "")
            + f", {seeds} {over}{'s' * (seeds > 1)} (claimed: {words} than {scale * bound:g})"
        )
    found = Claim(sentence, measured, verdict)
    undecided = verdict == OPEN and seeds < ENOUGH_SEEDS
    if strict() and verdict != expect and not undecided:
        raise AssertionError(f"the chapter states that this {expect}:\n{found}")
    return found
