"""The progress bar of everything that may take long. It appears after a second or two, and leaves nothing behind."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO, TypeVar

T = TypeVar("T")

_quiet = ContextVar("quiet", default=False)  # each thread has its own, so that one does not silence another


def progress(iterable: Iterable[T] | None = None, *, delay: float = 2, **options: Any) -> Any:
    """A `tqdm` bar over an iterable, or one to `update()`.

    In plain text, in notebooks too: a widget bar would leave "model not found" behind when the notebook is opened
    again.
    """
    from tqdm import tqdm

    return tqdm(iterable, file=_where(), leave=False, delay=delay, **options)


def say(text: str) -> bool:
    """A line about what was found, to where the bars go; nothing while `quietly` is at work. Whether it was said."""
    if _quiet.get():
        return False
    print(text, file=_where())
    return True


@contextmanager
def quietly() -> Iterator[None]:
    """Say nothing meanwhile: for what is done many times over."""
    before = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(before)


def _where() -> TextIO:
    """Standard error; in notebooks, which paint that red, standard output."""
    return sys.stdout if "ipykernel" in sys.modules else sys.stderr
