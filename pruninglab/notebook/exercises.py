"""Exercises that never break the notebook.

`f = check(f)` tries a learner's function on its exercise's properties. It returns the learner's function if all hold,
and the library's own if not, and says which and why; so whatever stands in the cell above, the chapter goes on.
The exercises themselves are in `answers`.
"""

import html
import linecache
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pruninglab.naming import lookup
from pruninglab.notebook.claims import strict
from pruninglab.notebook.pictures import show_html

Function = Callable[..., Any]
Property = tuple[str, Callable[[Function], None]]


@dataclass(frozen=True)
class Exercise:
    """An exercise: the library's answer, and the properties that every right answer has, in the order they are tried.

    A property is a sentence and a function that raises AssertionError, with a message for the learner, if it fails.
    """

    name: str
    answer: Function
    properties: list[Property] = field(default_factory=list)

    def holds(self, sentence: str) -> Callable[[Callable[[Function], None]], Callable[[Function], None]]:
        """Add a property: `@exercise.holds("the input is unchanged")`."""

        def add(test: Callable[[Function], None]) -> Callable[[Function], None]:
            self.properties.append((sentence, test))
            return test

        return add


EXERCISES: dict[str, Exercise] = {}


def exercise(name: str, answer: Function) -> Exercise:
    """Make an exercise known under the name of the function that the learner writes."""
    EXERCISES[name] = Exercise(name, answer)
    return EXERCISES[name]


class CheckFailed(AssertionError):
    """A learner's function does not have a property of the exercise (raised in strict mode only)."""


def check(function: Function, name: str | None = None, *, strictly: bool | None = None) -> Function:
    """Try a function on its exercise; return it if it passes, and the library's answer if not.

    Args:
        function: the learner's.
        name: the exercise; the function's own name if not given.
        strictly: raise instead of going on with the library's. By default while the book is tested
            (`PRUNINGLAB_STRICT=1`), except for a function that is not written yet.

    Raises:
        ValueError: there is no such exercise.
        CheckFailed: in strict mode, the first property that does not hold.
    """
    from IPython.display import display

    from pruninglab.notebook import answers  # noqa: F401  the exercises make themselves known

    task = lookup("exercise", name or function.__name__, EXERCISES)
    failure = first_failure(task, function)
    if failure is not None:
        number, sentence, problem = failure
        undone = is_unwritten(problem)
        if strictly or (strictly is None and strict() and not undone):
            raise CheckFailed(f"{task.name}: {sentence}: {problem}")
        if undone:
            display(_message("…", f"{task.name}: not written yet. The chapter goes on with the library's."))
        else:
            hint = f"If you are stuck, open hint {min(number, 3)}."
            display(
                _message(
                    "✘",
                    f"{task.name}: property {number} of {len(task.properties)} does not hold: {sentence}.",
                    problem,
                    f"{hint} The chapter goes on with the library's.",
                )
            )
        return task.answer
    whose = "" if name else " The chapter goes on with yours."
    display(_message("✔", f"{task.name}: all {len(task.properties)} properties hold.{whose}"))
    return function


def is_unwritten(problem: str) -> bool:
    """Whether what is wrong with a function is that nobody wrote it yet."""
    return problem.startswith("NotImplementedError")


def first_failure(task: Exercise, function: Function) -> tuple[int, str, str] | None:
    """The first property that a function does not have: its number from 1, its sentence, and what is wrong."""
    for number, (sentence, test) in enumerate(task.properties, start=1):
        problem = problem_of(function, test)
        if problem is not None:
            return number, sentence, problem
    return None


def problem_of(function: Function, test: Callable[[Function], None]) -> str | None:
    """What is wrong, in words: the property's own message, or the learner's exception with the learner's own line."""
    try:
        test(function)
    except AssertionError as error:
        if _own_line(function, error) is None:
            return str(error) or "it does not"
        return _described(function, error)
    except Exception as error:  # whatever a learner's code may raise
        return _described(function, error)
    return None


def _described(function: Function, error: BaseException) -> str:
    where = _own_line(function, error)
    return f"{type(error).__name__}: {error}" + (f" — at your line: {where}" if where else "")


def _own_line(function: Function, error: BaseException) -> str | None:
    """The last line of the learner's own code that the exception went through."""
    code = getattr(function, "__code__", None)
    lines = [
        linecache.getline(frame.filename, frame.lineno or 0).strip()
        for frame in traceback.extract_tb(error.__traceback__)
        if code is not None and frame.filename == code.co_filename
    ]
    return lines[-1] if lines else None


def _message(sign: str, *lines: str) -> Any:
    body = "<br>".join(html.escape(line) for line in lines)
    text = f'<div style="border: 1px solid #808080; padding: 0.3em 0.8em"><b>{sign}</b> {body}</div>'
    return show_html(text, f"{sign} " + "\n  ".join(lines))
