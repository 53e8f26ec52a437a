"""Code that somebody typed into a box: the criterion in it, and what is wrong with it, told by its own lines."""

import ast
import html
import inspect
import linecache
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import wraps
from hashlib import sha256
from types import CodeType
from typing import Any, TextIO

import torch
from torch import Tensor

import pruninglab
from pruninglab.allocation import BudgetError
from pruninglab.criteria import Criterion, needs
from pruninglab.limits import TimeLimit, limited
from pruninglab.notebook.pictures import RED
from pruninglab.statistics import STATISTICS

EXAMPLE = "def mine(weight, grad):\n    return (weight * grad).abs()\n"
LONGEST = 1000  # characters of an error's message that are shown

Place = tuple[int, int, int]  # line, first column and the one after the last; lines from 1, columns from 0


def read(code: str, printed: TextIO, seconds: float | None = None) -> Criterion:
    """The criterion that some code defines: its last function. What it prints and warns of goes to `printed`.

    Its source is put where tracebacks look for it. It finds torch and the public names of pruninglab.

    Raises:
        ValueError: it defines no function, or one with an argument that is no statistic.
        TimeLimit: it runs for more than so many seconds.
        Exception: whatever the code itself raises.
    """
    filename = _file(code)
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    # As if in a cell of the notebook, so that other processes can be sent the function.
    names: dict[str, Any] = {"__name__": "__main__", "torch": torch}
    names |= {name: getattr(pruninglab, name) for name in pruninglab.__all__}

    def run() -> None:
        exec(compile(code, filename, "exec", dont_inherit=True), names)

    with redirect_stdout(printed), warned(printed):
        limited(run, seconds, "the code in the box")
    own = [(found.co_firstlineno, i) for i, value in enumerate(names.values()) if (found := _code_of(value, filename))]
    if not own:
        raise ValueError(f"there is no function in the box. A criterion is one, such as\n\n{EXAMPLE}")
    function = list(names.values())[max(own)[1]]
    needs(function)
    return function


@contextmanager
def warned(printed: TextIO) -> Iterator[None]:
    """Warnings go to `printed` meanwhile, each once."""
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    finally:
        for line in dict.fromkeys(f"{warning.category.__name__}: {warning.message}\n" for warning in caught):
            printed.write(line)


def watched(function: Criterion, printed: TextIO) -> Criterion:
    """The same criterion; what it prints goes to `printed`, and its errors say what it was called with."""

    @wraps(function, updated=())  # its marks stay behind: a criterion that is asked piece by piece shows no shapes
    def asked(**known: Any) -> Tensor:
        try:
            with redirect_stdout(printed):
                return function(**known)
        except Exception as error:
            shapes = [f"{name} {tuple(value.shape)}" for name, value in known.items() if isinstance(value, Tensor)]
            error.add_note(f"It was called with {', '.join(shapes) or 'nothing'}.")
            raise

    return asked


@dataclass(frozen=True)
class Complaint:
    """What is wrong with typed code: a headline, the line in question with a mark under it, and what may help."""

    headline: str
    line: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(part for part in (self.headline, self.line, *self.notes) if part)

    def html(self) -> str:
        look = "margin: 0.3em 0; overflow-x: auto; line-height: 1.3"
        line = f'<pre style="{look}">{html.escape(self.line)}</pre>' if self.line else ""
        notes = "".join(f'<div style="white-space: pre-wrap">{html.escape(note)}</div>' for note in self.notes)
        headline = f'<b style="white-space: pre-wrap">✘ {html.escape(self.headline)}</b>'
        frame = f"border-left: 0.3em solid {RED}; padding: 0.2em 0.8em"
        return f'<div role="alert" style="{frame}">{headline}{line}{notes}</div>'


def explain(error: BaseException, code: str, function: Criterion | None = None) -> Complaint:
    """What an error means for whoever typed this code: the message, and the line of theirs that it speaks of.

    Args:
        error: what came of reading or using it.
        code: what was typed.
        function: the criterion, if it could be read; where the error is in what it returned, its last line is shown.
    """
    filename = _file(code)
    syntax = isinstance(error, SyntaxError) and error.filename == filename
    text = str(error.msg if isinstance(error, SyntaxError) and syntax else error)
    if syntax:
        place = _syntax_place(error)
    else:
        place = _frame_place(error, filename)
        if place is None and function is None:
            place = _argument_place(code, text)
        elif place is None and isinstance(error, (ValueError, TypeError)) and not isinstance(error, BudgetError):
            place = _last_place(function, filename)
    where = f" in line {place[0]}" if place else ""
    text, _, known = text.partition(" Known: ")  # the list goes below the line
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    notes = [*([f"Known: {known}"] if known else ()), *getattr(error, "__notes__", ()), *_hints(error)]
    return Complaint(f"{type(error).__name__}{where}{': ' if cut else ''}{cut}", _shown(code, place), tuple(notes))


def _file(code: str) -> str:
    """The name under which tracebacks know some code; the same code has the same name."""
    return f"<box {sha256(code.encode(errors='replace')).hexdigest()[:12]}>"


def _code_of(value: Any, filename: str) -> CodeType | None:
    """The code of a function that was typed."""
    code = getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
    return code if isinstance(code, CodeType) and code.co_filename == filename else None


def _syntax_place(error: Any) -> Place | None:
    if not error.lineno:
        return None
    start = max(0, (error.offset or 1) - 1)
    same = error.end_lineno == error.lineno and (error.end_offset or 0) > start + 1
    return error.lineno, start, error.end_offset - 1 if same else start + 1


def _frame_place(error: BaseException, filename: str) -> Place | None:
    """The last place in the typed code that an error went through."""
    if isinstance(error, TimeLimit) and error.__context__ is not None:
        error = error.__context__  # the one that interrupted the code
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == filename]
    if not frames or not (number := frames[-1].lineno):
        return None
    frame, line = frames[-1], linecache.getline(filename, number).rstrip("\n")
    if frame.colno is None or frame.end_colno is None:
        return number, len(line) - len(line.lstrip()), len(line)
    letters = line.encode()  # Python counts bytes
    end = frame.end_colno if frame.end_lineno == number else len(letters)
    return number, len(letters[: frame.colno].decode()), len(letters[:end].decode())


def _argument_place(code: str, text: str) -> Place | None:
    """Where the argument stands that a message names, in quotes or after a star."""
    try:
        found = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.arg)]
    except SyntaxError:
        return None
    named = [node for node in found if f"'{node.arg}'" in text or f"*{node.arg} " in text]
    return (named[-1].lineno, named[-1].col_offset, named[-1].end_col_offset or 0) if named else None


def _last_place(function: Callable[..., Any] | None, filename: str) -> Place | None:
    """The last line of a function, which mostly is what it returns."""
    code = _code_of(function, filename)
    if code is None:
        return None
    number = max(line for *_, line in code.co_lines() if line)
    line = linecache.getline(filename, number).rstrip("\n")
    return number, len(line) - len(line.lstrip()), len(line)


def _shown(code: str, place: Place | None) -> str:
    """A line with its number, and a mark under the place."""
    lines = code.splitlines()
    if place is None or not 0 < place[0] <= len(lines):
        return ""
    number, start, end = place
    return (
        f"{number:>4} │ {lines[number - 1]}".replace("\t", " ") + f"\n     │ {' ' * start}{'^' * max(1, end - start)}"
    )


def _hints(error: BaseException) -> list[str]:
    """For a name that is not known: which statistics are."""
    name = getattr(error, "name", None) if isinstance(error, NameError) else None
    if not name:
        return []
    if name in STATISTICS:
        return [f"{name} is a statistic: ask for it among the arguments, as in def mine(weight, {name})."]
    return [f"A criterion may name these statistics as arguments: {', '.join(sorted(STATISTICS))}, generator."]
