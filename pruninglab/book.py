"""The chapters of the book, and running them.

Chapters are committed without outputs. Running one makes an executed copy in a folder of its own; nothing in `book/`
is ever written.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruninglab.files import PACKAGE
from pruninglab.progress import progress

if TYPE_CHECKING:
    import pandas as pd

BOOK = PACKAGE.parent / "book"


@dataclass(frozen=True)
class Chapter:
    """A chapter: number, title, the answer it gives in one sentence, and its notebook."""

    number: int
    title: str
    answer: str
    path: Path


_TABLE = (
    ("start_here", "Start here", "one call prunes a network; five questions order the field"),
    ("measure", "What is smaller, what is faster", "zeros are not speed: measure bytes, operations and time apart"),
    ("magnitude", "Magnitude", "small weights go first; how they are compared, and when, decides the rest"),
    ("structured", "Structured pruning", "whole channels make a network really faster"),
    ("lottery_tickets", "Lottery tickets", "a small network inside the large one can be trained alone"),
    ("sparse_from_the_start", "Sparse from the start", "when to prune, if not after training"),
    ("rate_distortion", "Rate and distortion", "how much from which layer, solved to the optimum"),
    ("curvature", "Curvature", "from OBD's diagonal to surgery on blocks"),
    ("llm_one_shot", "Language models, in one shot", "why magnitude fails there and activations help"),
    ("llm_structured", "Language models, cut and healed", "heads, channels and layers out, and back to health"),
    ("your_own_criterion", "Your own criterion", "five lines, and a minute later how it fares against all others"),
)


def chapters() -> list[Chapter]:
    """All chapters in order."""
    return [
        Chapter(number, title, answer, BOOK / f"{number:02}_{name}.ipynb")
        for number, (name, title, answer) in enumerate(_TABLE)
    ]


def written() -> list[Chapter]:
    """The chapters whose notebooks are there.

    Raises:
        FileNotFoundError: none is, as in an installation without the checkout.
    """
    there = [chapter for chapter in chapters() if chapter.path.exists()]
    if not there:
        raise FileNotFoundError(f"there are no chapters in {BOOK}; this needs a checkout of the project")
    return there


def run(
    path: Path,
    out: Path,
    parameters: dict[str, Any] | None = None,
    *,
    strict: bool = True,
    claims: Path | None = None,
) -> float:
    """Execute one notebook through papermill, and return how many seconds it took.

    Args:
        path: the notebook.
        out: the executed copy; written as far as it got even if a cell fails.
        parameters: for its `parameters` cell (`seed`, `fast`, …).
        strict: whether claims that do not come out as stated are errors.
        claims: a file that each claim adds a line of JSON to.

    Raises:
        papermill.PapermillExecutionError: a cell failed.
    """
    import papermill

    out.parent.mkdir(parents=True, exist_ok=True)
    # Inherited by the kernel. A bar is for somebody who waits; in a copy that is read later it is only in the way.
    settings = {"PRUNINGLAB_STRICT": str(int(strict)), "TQDM_DISABLE": "1"}
    if claims is not None:
        settings["PRUNINGLAB_CLAIMS"] = str(claims.absolute())  # the kernel works in another folder
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    start = time.perf_counter()
    try:
        papermill.execute_notebook(
            str(path), str(out), parameters or {}, kernel_name="python3", progress_bar=False, cwd=str(path.parent)
        )
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return time.perf_counter() - start


def failure(error: Exception) -> str:
    """What went wrong in a chapter, in one line: the error of its cell, or else of running it."""
    name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    return f"{name}: {text}".splitlines()[0]


def run_all(out: Path, parameters: dict[str, Any] | None = None) -> "pd.DataFrame":
    """Execute every chapter into a folder; a row for each with `chapter`, `seconds` and `state` ("ok" or the error)."""
    import pandas as pd
    from papermill import PapermillExecutionError

    rows = []
    with progress(written(), unit="chapter", delay=0) as bar:
        for chapter in bar:
            bar.set_description(chapter.path.stem)
            start = time.perf_counter()
            try:
                run(chapter.path, out / chapter.path.name, parameters)
                state = "ok"
            except PapermillExecutionError as error:
                state = failure(error)
            seconds = round(time.perf_counter() - start, 1)
            rows.append({"chapter": chapter.path.stem, "seconds": seconds, "state": state})
    return pd.DataFrame(rows)
