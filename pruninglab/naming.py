"""Looking a name up in a table, with an error that helps.

Every room of the house (criteria, units, allocations, tasks, …) lets its answers be named by a string.
They all come through `lookup`, so a wrong name always gets the same kind of answer: the nearest right one.
"""

import operator
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


def unknown(kind: str, given: object, allowed: Iterable[str]) -> ValueError:
    """An error that says what was asked for, the nearest known name, and all known names."""
    from difflib import get_close_matches

    names = sorted(allowed)
    near = get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {kind} {given!r}.{hint} Known: {', '.join(names)}.")


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """`table[name]`, or the error of `unknown`."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def resolve(kind: str, answer: str | T, table: Mapping[str, T]) -> T:
    """The table's function of this name, or the function itself.

    Raises:
        ValueError: nothing has this name. TypeError: it is neither a name nor a function.
    """
    if isinstance(answer, str):
        return lookup(kind, answer, table)
    if not callable(answer):
        article = "an" if kind[0] in "aeiou" else "a"
        raise TypeError(f"{article} {kind} is a name or a function, not {answer!r}")
    return answer


def few(names: Collection[str], n: int = 3) -> str:
    """The first n of some names, and how many more there are."""
    return ", ".join(list(names)[:n]) + f" and {len(names) - n} more" * (len(names) > n)


def whole(kind: str, number: Any) -> int:
    """A whole number, NumPy's too, as an `int`; a TypeError for anything else, truth values among them."""
    try:
        if isinstance(number, bool):
            raise TypeError
        return operator.index(number)
    except TypeError:
        raise TypeError(f"{kind} must be a whole number, not {number!r}") from None


def at_least_one(kind: str, number: Any) -> int:
    """A whole number of at least 1; a ValueError or, as `whole`, a TypeError for anything else."""
    found = whole(kind, number)
    if found < 1:
        raise ValueError(f"{kind} must be at least 1, not {found}")
    return found


def is_built_in(function: Any, package: str = "pruninglab") -> bool:
    """Whether a function stands in this library, or in one package of it."""
    return str(getattr(function, "__module__", "")).startswith(f"{package}.")


def label(answer: Any) -> str:
    """The name under which an answer (a string, a function, a `functools.partial` of one) appears in tables."""
    if answer is None:
        return "none"
    if isinstance(answer, str):
        return answer
    if isinstance(answer, partial):
        options = [*map(_shown, answer.args), *(f"{key}={_shown(value)}" for key, value in answer.keywords.items())]
        return f"{label(answer.func)}({', '.join(options)})"
    name = getattr(answer, "name", None) or getattr(answer, "__name__", None)
    return str(name).rstrip("_") if name else type(answer).__name__


def _shown(option: Any) -> str:
    return label(option) if callable(option) else repr(option)
