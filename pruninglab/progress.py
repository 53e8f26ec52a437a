"""The progress bar of everything that may take long. It appears after a second or two, and leaves nothing behind."""

import sys
from collections.abc import Iterable
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
