"""What stands around the text of a chapter: the set-up line, the map of the book, the library's source."""

import html
import inspect
import platform
from collections.abc import Callable
from typing import Any

import torch

from pruninglab.book import chapters
from pruninglab.notebook.pictures import show_html


def start(device: str = "cpu", threads: int = 1) -> torch.device:
    """Print the versions that the numbers of this chapter are made with, and return the device.

    One thread by default: the networks of the book are so small that two threads gain nothing, and on a busy machine
    waiting for each other costs them dearly. It also makes results repeatable on machines of different size.

    Raises:
        RuntimeError: the device is not there.
    """
    from importlib.metadata import version

    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device='cuda' is asked for, but torch sees no GPU here; use device='cpu'")
    torch.set_num_threads(threads)
    names = {"torch": torch.__version__, "numpy": version("numpy"), "pruninglab": version("pruninglab")}
    words = ", ".join(f"{name} {number}" for name, number in names.items())
    print(f"Python {platform.python_version()}, {words}; device {chosen}, {threads} thread{'s' * (threads > 1)}")
    return chosen


def roadmap(here: int) -> Any:
    """The chapters of the book, with this one marked."""
    rows, plain = [], []
    for chapter in chapters():
        name = f"{chapter.number} · {chapter.title}"
        link = f'<a href="{chapter.path.name}">{html.escape(name)}</a>'
        mark = "➤ " if chapter.number == here else ""
        weight = "bold" if chapter.number == here else "normal"
        rows.append(
            f'<li style="font-weight: {weight}; list-style: none">{mark}{link} — {html.escape(chapter.answer)}</li>'
        )
        plain.append(f"{'➤' if mark else ' '} {name} — {chapter.answer}")
    return show_html(
        f'<ul aria-label="The chapters of the book" style="padding-left: 0.5em">{"".join(rows)}</ul>', "\n".join(plain)
    )


def source(thing: Callable[..., Any]) -> Any:
    """The library's code for something, as it is installed (so it never is out of date), in the page's own colours."""
    from jupyterlab_pygments import JupyterStyle
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    code = inspect.getsource(thing)
    # JupyterLab would break long lines in the middle of a word; so small, its pages have room for 120 characters.
    whole = "white-space: pre; overflow-x: auto; font-size: 0.8em"
    formatter = HtmlFormatter(noclasses=True, style=JupyterStyle, nobackground=True, prestyles=whole)
    where = html.escape(f"{thing.__module__}.{thing.__qualname__}")
    return show_html(f"<p><code>{where}</code></p>{highlight(code, PythonLexer(), formatter)}", code)
