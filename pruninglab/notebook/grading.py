"""Grading what somebody handed in, by the names of its functions, however damaged the notebook is.

Cells may be missing, doubled, in another order or broken. Of what is handed in, only the definitions are run that an
exercise needs (`grading_worker`), in a process of its own that is ended when its time is up. The questions come from a
notebook of ours: a chapter, whose exercises are in `answers`, or a graded lab, whose tests are its cells with points.
"""

import ast
import json
import multiprocessing
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pruninglab.book import BOOK, written
from pruninglab.notebook.versions import tagged
from pruninglab.progress import progress

if TYPE_CHECKING:
    import pandas as pd
    from nbformat import NotebookNode

LABS = BOOK / "labs" / "source"
STARTING = 120  # seconds that a fresh process may take to import everything, on a busy machine
NOT_GRADED = "not graded"
GIVEN = "a cell that was given"  # in our notebook: it is there even if a learner deleted it
COLUMNS = ["notebook", "exercise", "result", "points", "of", "problem"]


@dataclass(frozen=True)
class Question:
    """A function to write: its name, and for a lab the tests, each with its points and its code."""

    name: str
    tests: tuple[tuple[float, str], ...] = ()

    @property
    def points(self) -> float:
        """What it is worth; 1 in a chapter."""
        return sum(points for points, _ in self.tests) if self.tests else 1.0


@dataclass(frozen=True)
class Grade:
    """What came of one question. `problem` is the first property that does not hold."""

    exercise: str
    result: str
    points: float = 0.0
    of: float = 1.0
    problem: str = ""


def cells_of(notebook: "NotebookNode") -> list[str]:
    """The code cells' sources, in order."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@cache
def questions(path: Path) -> tuple[Question, ...]:
    """The functions to write in one of our notebooks, a chapter or a lab's source.

    Raises:
        ValueError: it has none, or tests of none. OSError: it cannot be read.
    """
    notebook = _read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = tuple(Question(name) for cell in tagged(notebook, "exercise") for name in _defined(cell.source))
    tests = [cell for cell in code if _marks(cell) >= {"grade", "locked"}]
    for name in (name for cell in code if "solution" in _marks(cell) for name in _defined(cell.source)):
        own = [cell for cell in tests if re.search(rf"\b{name}\(", cell.source)]
        points = [float(cell.metadata["nbgrader"]["points"]) for cell in own]
        found += (Question(name, tuple(zip(points, (cell.source for cell in own), strict=True))),)
    if idle := [cell for cell in tests if not any(cell.source in code for one in found for _, code in one.tests)]:
        cells = ", ".join(cell.metadata["nbgrader"]["grade_id"] for cell in idle)
        raise ValueError(
            f"{str(path)!r} has tests that try no function ({cells}): it looks like what students got, without hidden "
            "tests; name the lab's source"
        )
    if not found:
        raise ValueError(f"{str(path)!r} has no exercise: no cell with the tag exercise, and no cell with points")
    return found


def belongs_to(notebook: "NotebookNode") -> Path:
    """The chapter or lab that a notebook is of: the one most of whose functions are named in it.

    Raises:
        ValueError: none is, or it cannot be told which.
    """
    words = set(re.findall(r"\w+", "\n".join(cells_of(notebook))))
    ours = [chapter.path for chapter in written()] + sorted(LABS.glob("*/*.ipynb"))
    counts = {path: sum(question.name in words for question in questions(path)) for path in ours}
    best = [path for path in ours if counts[path] == max(counts.values())]
    if not max(counts.values()):
        raise ValueError("no function of any chapter or lab is named in it; say with --of which it is of")
    if len(best) > 1:
        names = ", ".join(path.stem for path in best)
        raise ValueError(f"it may be of {names}; say with --of which")
    return best[0]


def grade(
    paths: Sequence[Path],
    *,
    of: Path | None = None,
    time_limit: float = 30.0,
    after_each: Callable[["pd.DataFrame"], object] | None = None,
) -> "pd.DataFrame":
    """Grade notebooks that were handed in; a row for each exercise of each, and one for each that cannot be read.

    They are code, which runs with the rights of whoever calls this.

    Args:
        paths: the notebooks.
        of: the chapter, or the source of the lab, that they are of; found out for each by default.
        time_limit: seconds for each exercise.
        after_each: called with the table so far after each notebook.

    Raises:
        ValueError: `of` has no exercise. OSError: `of` cannot be read.
    """
    import pandas as pd

    if of is not None:
        questions(of)
    table, rows = pd.DataFrame(columns=COLUMNS), []
    for path in progress(paths, desc="grading", unit="notebook"):
        rows += [asdict(one) | {"notebook": str(path)} for one in _grade(path, of, time_limit)]
        table = pd.DataFrame(rows, columns=COLUMNS)
        if after_each is not None:
            after_each(table)
    return table


def as_text(table: "pd.DataFrame") -> str:
    """What `grade` gives, to be read: a row for each exercise, then each notebook's points."""
    from tabulate import tabulate

    shown = table.astype({"points": str, "of": str})
    rows = tabulate(shown, headers="keys", showindex=False, tablefmt="plain", maxcolwidths=[None] * 5 + [70])
    sums = table.groupby("notebook", sort=False)[["points", "of"]].sum()
    return "\n".join([rows, "", *(f"{row.Index}: {row.points:g} of {row.of:g} points" for row in sums.itertuples())])


def _grade(path: Path, of: Path | None, time_limit: float) -> Iterator[Grade]:
    """The grades of one notebook, one after the other."""
    try:
        notebook = _read(path)
        master = of or belongs_to(notebook)
        cells = [(f"code cell {number}", cell) for number, cell in enumerate(cells_of(notebook), start=1)]
    except Exception as error:  # a file may be broken in any way
        points = sum(question.points for question in questions(of)) if of else 0.0
        yield Grade("(all)", NOT_GRADED, 0.0, points, " ".join(f"{type(error).__name__}: {error}".split())[:200])
        return
    cells = [(GIVEN, cell) for cell in given(master)] + cells
    waiting = list(questions(master))
    while waiting:  # a process that had to be ended is followed by another one
        for one in _in_a_process(cells, waiting, time_limit):
            question = waiting.pop(0)
            yield replace(one, exercise=question.name, of=question.points)


def _read(path: Path) -> "NotebookNode":
    """A notebook.

    Raises:
        ValueError: the file holds none; says what it holds. OSError: it cannot be read.
    """
    import nbformat
    from nbformat.warnings import DuplicateCellId

    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name the notebooks in it")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark before the text
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text: saved as UTF-16, or no notebook?") from None
    if not text.strip():
        raise ValueError("the file is empty")
    try:
        held = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if not isinstance(held, dict) or not {"cells", "worksheets"} & held.keys():
        raise ValueError("it is JSON, but no notebook")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DuplicateCellId)  # doubled cells are looked after here
        return nbformat.reads(text, as_version=4)


def _in_a_process(cells: list[tuple[str, str]], waiting: list[Question], time_limit: float) -> Iterator[Grade]:
    """The grades of the questions, in order, until time is up for one or it ends the process."""
    from pruninglab.notebook.grading_worker import work

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, cells, [asdict(question) for question in waiting]))
    process.start()
    theirs.close()
    try:
        for number, limit in enumerate([STARTING, *(time_limit for _ in waiting)]):
            if not ours.poll(limit):
                yield Grade("", "time limit", problem=f"it took longer than {limit:g} s")
                return
            message = ours.recv_bytes()
            if number:  # the first says that it is ready
                yield Grade(**json.loads(message))
    except EOFError:
        yield Grade("", "wrong", problem="it ended the process that it ran in, or memory ran out")
    finally:
        _end(process)


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """End a process, and with it the processes that it started."""
    if process.pid is not None and hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it ended before, or has not made its group yet
            process.kill()
    else:
        process.kill()
    process.join()


def given(path: Path) -> list[str]:
    """The code cells that our notebook gives: what learners have deleted of them is there all the same."""
    notebook = _read(path)
    asked = {cell.id for tag in ("exercise", "solution") for cell in tagged(notebook, tag)}
    asked |= {cell.id for cell in notebook.cells if {"grade", "solution"} & _marks(cell)}
    return [cell.source for cell in notebook.cells if cell.cell_type == "code" and cell.id not in asked]


def _marks(cell: "NotebookNode") -> set[str]:
    """What nbgrader's metadata say that a cell is: of `grade`, `solution`, `locked`, `task`."""
    return {name for name, value in cell.metadata.get("nbgrader", {}).items() if value is True}


def _defined(source: str) -> list[str]:
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
