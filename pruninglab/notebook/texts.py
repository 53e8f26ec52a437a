"""What several models write, side by side."""

import html
from collections.abc import Mapping
from typing import Any

from pruninglab.notebook.pictures import show_html

CONTROL = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), 127)}  # all but tab and new line


def side_by_side(texts: Mapping[str, str], prompt: str = "") -> Any:
    """Texts of several models beside each other, as a table; the prompt that all go on from stands above, once.

    Whatever the models wrote is shown as it is: nothing in it is taken for HTML, and control characters are visible.

    Args:
        texts: name → what `generate` returned.
        prompt: what it was given. A text that does not hold it is shown whole.

    Raises:
        ValueError: no text.
    """
    if not texts:
        raise ValueError("there is no text to show")
    cells = {name: _beyond(text, prompt).translate(CONTROL) for name, text in texts.items()}
    prompt = prompt.translate(CONTROL)
    look = "text-align: left; vertical-align: top; border: 1px solid #808080; padding: 0.3em 0.6em"
    mono = "white-space: pre-wrap; overflow-wrap: anywhere; font-family: monospace"

    def cell(tag: str, text: str, options: str = "") -> str:
        style = f"{look}; {mono}" if tag == "td" else look
        return f'<{tag} style="{style}"{options}>{html.escape(text)}</{tag}>'

    rows = [] if not prompt else [cell("th", "prompt", ' scope="row"') + cell("td", prompt, f' colspan="{len(cells)}"')]
    corner = '<td style="border: none"></td>' if prompt else ""
    rows.append(corner + "".join(cell("th", name, ' scope="col"') for name in cells))
    rows.append(
        (cell("th", "goes on", ' scope="row"') if prompt else "") + "".join(cell("td", t) for t in cells.values())
    )
    table = "".join(f'<tr style="background: none">{row}</tr>' for row in rows)
    plain = [f"prompt: {prompt}"] if prompt else []
    plain += [f"── {name} ──\n{text}" for name, text in cells.items()]
    widths = ('<col style="width: 5.5em">' if prompt else "") + "<col>" * len(cells)
    style = "border-collapse: collapse; table-layout: fixed; width: 100%"
    return show_html(f'<table style="{style}"><colgroup>{widths}</colgroup>{table}</table>', "\n".join(plain))


def _beyond(text: str, prompt: str) -> str:
    """What comes after the prompt, with a mark that something went before."""
    _, found, rest = text.partition(prompt) if prompt else ("", "", "")
    return f"…{rest}" if found else text
