"""The progress bar of everything that may take long. It appears after a second or two, and leaves nothing behind."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def progress(iterable: Iterable[T] | None = None, *, delay: float = 2, **options: Any) -> Any:
    """A `tqdm` bar over an iterable, or one to `update()`.

    In plain text, in notebooks too: a widget bar would leave "model not found" behind when the notebook is opened
    again. There it goes to standard output, since notebooks paint standard error red.
    """
    from tqdm import tqdm

    where = sys.stdout if "ipykernel" in sys.modules else sys.stderr
    return tqdm(iterable, file=where, leave=False, delay=delay, **options)


_quiet = False


def say(text: str) -> bool:
    """A line about what was found, to where the bars go; nothing while `quietly` is at work. Whether it was said."""
    if not _quiet:
        print(text, file=sys.stdout if "ipykernel" in sys.modules else sys.stderr)
    return not _quiet


@contextmanager
def quietly() -> Iterator[None]:
    """Say nothing meanwhile: for what is done many times over."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before
