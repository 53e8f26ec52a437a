"""Sliders and menus that redraw a picture at once, and their static twin for print."""

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import ipywidgets

from pruninglab.notebook.pictures import Picture, show_html
from pruninglab.notebook.spoken import live, spoken

Drawn = tuple[Picture, str]


class Explorer:
    """Controls, a picture and a line of text that follow them.

    Args:
        draw: a function of the controls' values, by name, that returns a picture and a line of text.
        controls: name → the values to choose from; numbers become a slider, words a menu.
        labels: name → what stands beside the control; the name itself if not given.
    """

    def __init__(self, draw: Callable[..., Drawn], controls: Mapping[str, Sequence[Any]], labels: Mapping[str, str]):
        self._draw = cache(draw)  # dragging back shows at once what was drawn before
        self.controls: dict[str, Any] = {}
        for name, values in controls.items():
            numbers = all(isinstance(value, (int, float)) for value in values)
            kind = ipywidgets.SelectionSlider if numbers else ipywidgets.Dropdown
            options = [(f"{value:g}" if numbers else str(value), value) for value in values]
            wide = {"description_width": "initial"}
            control = kind(options=options, description=labels.get(name, name), style=wide, layout={"width": "32em"})
            control.observe(self._update, "value")
            self.controls[name] = control
        self.picture, self.text = ipywidgets.HTML(), live(ipywidgets.HTML())
        self.box = spoken(*self.controls.values(), self.text, self.picture)
        self._update()

    def _update(self, _change: object = None) -> None:
        picture, text = self._draw(**{name: control.value for name, control in self.controls.items()})
        self.text.value = f"<p>{html.escape(text)}</p>"
        self.picture.value = picture.html()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return dict(self.box._repr_mimebundle_(**options) or {})


def explore(
    draw: Callable[..., Drawn], *, labels: Mapping[str, str] | None = None, **controls: Sequence[Any]
) -> Explorer:
    """Drag and look: `explore(draw, sparsity=[0, 0.5, 0.9])` calls `draw(sparsity=…)` whenever the slider moves.

    `draw` returns `(Picture, text)`; the text should hold the numbers, for those who do not see the picture.

    Raises:
        ValueError: no controls, or one without values.
    """
    if not controls or not all(len(values) for values in controls.values()):
        raise ValueError("explore needs at least one control, each with values to choose from")
    return Explorer(draw, controls, labels or {})


def twin(draw: Callable[..., Drawn], settings: Iterable[Mapping[str, Any]]) -> Any:
    """The static twin of `explore`: the same drawing at a few settings, one below the other, for print and HTML."""
    parts, plain = [], []
    for setting in settings:
        picture, text = draw(**setting)
        name = ", ".join(f"{key} = {value}" for key, value in setting.items())
        parts.append(
            f"<figure style='margin: 0.5em 0'><figcaption><b>{html.escape(name)}</b>: {html.escape(text)}</figcaption>"
        )
        parts.append(f"{picture.html()}</figure>")
        plain.append(f"{name}: {text} [picture: {picture.alt}]")
    return show_html("".join(parts), "\n".join(plain))
