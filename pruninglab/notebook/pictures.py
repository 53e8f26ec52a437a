"""Pictures that keep their alternative text, and the look that all of them share.

Transparent background and mid-grey axes, so that they can be read on a white page and on a dark one; colours that
colour-blind readers can tell apart (Okabe & Ito 2008), never without a marker or a line style beside them.
"""

import base64
import html
import io
import os
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

GREY = "#7a7a7a"  # contrast 4.3 on a white page, 4.4 on a dark one; no colour has 4.5 on both
BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#B8A800",
)
COLOURS = (BLUE, ORANGE, GREEN, PINK, RED, SKY, YELLOW, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", ".")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (5, 5)))


class Picture:
    """A figure with its alternative text. Shows itself as an `img` with `alt` in JupyterLab and in every export.

    Args:
        figure: a matplotlib figure.
        alt: what somebody who cannot see the picture should know; a sentence, not a file name.

    Raises:
        ValueError: the alternative text is empty.
    """

    def __init__(self, figure: Figure, alt: str) -> None:
        if not alt.strip():
            raise ValueError("a picture needs an alternative text: what it shows, in a sentence")
        self.figure, self.alt = figure, " ".join(alt.split())

    def png(self, dpi: int = 110) -> bytes:
        """The picture as a PNG file's bytes."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=dpi, transparent=True, bbox_inches="tight")
        return buffer.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG file."""
        Path(path).write_bytes(self.png(160))

    def html(self) -> str:
        """An `img` element that carries picture and text."""
        data = base64.b64encode(self.png()).decode()
        return f'<img src="data:image/png;base64,{data}" alt="{html.escape(self.alt)}" style="max-width: 100%">'

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": f"[picture: {self.alt}]"}


def canvas(
    rows: int = 1, columns: int = 1, width: float = 7.0, height: float = 3.2, **options: Any
) -> tuple[Figure, Any]:
    """A figure in the book's look and its axes, as from `matplotlib.pyplot.subplots`, but without global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, **options)
    for ax in figure.axes:
        dress(ax)
    return figure, axes


def dress(ax: Axes) -> None:
    """Mid-grey axes, no box."""
    ax.set_facecolor("none")
    ax.tick_params(colors=GREY)
    for side, spine in ax.spines.items():
        spine.set_color(GREY)
        spine.set_visible(side in ("left", "bottom"))
    for text in (ax.xaxis.label, ax.yaxis.label, ax.title):
        text.set_color(GREY)


def legend(ax: Axes, **options: Any) -> None:
    """A legend that can be read on any background."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, labelcolor=GREY, **options)


def show_html(text: str, plain: str) -> Any:
    """Something a notebook shows as HTML, and everything else as plain text."""
    return _Html(text, plain)


class _Html:
    def __init__(self, text: str, plain: str) -> None:
        self.text, self.plain = text, plain

    def __repr__(self) -> str:
        return self.plain

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/html": self.text, "text/plain": self.plain}
