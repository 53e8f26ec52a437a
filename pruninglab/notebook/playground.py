"""A box to type a criterion into, and what it does to a network. Beside it the static twin for print."""

import html
from collections.abc import Iterable, Mapping
from io import StringIO
from typing import Any

import ipywidgets

from pruninglab.allocation import ALLOCATIONS
from pruninglab.criteria import Criterion
from pruninglab.naming import lookup
from pruninglab.notebook.pictures import show_html
from pruninglab.notebook.spoken import live, spoken
from pruninglab.notebook.trial_plots import draw_trial
from pruninglab.notebook.trials import LEVELS, Bench
from pruninglab.notebook.typed import Complaint, explain, read, warned
from pruninglab.notebook.widgets import Drawn, twin
from pruninglab.tasks import Task

CODE = "def mine(weight, input_norm):\n    return weight.abs() * input_norm\n"
UNITS = ("weight", "row", "4x4", "2:4", "channel")
SETTING: dict[str, Any] = {"unit": "weight", "allocation": "global", "sparsity": 0.9}
LONGEST = 2000  # characters of what typed code prints that are shown
CAUGHT = (Exception, SystemExit, KeyboardInterrupt)  # whatever typed code may end with
MONOSPACED = "font-family: var(--jp-code-font-family, monospace); font-size: var(--jp-code-font-size, 13px)"
HELP = (
    "Type a function of statistics that returns scores shaped like the weight (higher stays), then press Run. "
    "The last function in the box is the criterion. The Tab key leaves the box."
)


class Playground:
    """A box for code, menus, a slider and a button; below them what the code does.

    Attributes:
        criterion: the function that was last run without an error, None before; `compare([box.criterion])` takes it on.

    Args:
        bench: where criteria are tried.
        code: what stands in the box at first; it is run.
        unit: chosen at first.
        allocation: likewise.
        sparsity: likewise; one of the bench's levels.
    """

    def __init__(self, bench: Bench, code: str, *, unit: str, allocation: str, sparsity: float) -> None:
        self.bench = bench
        self.criterion: Criterion | None = None
        self._ran = self._said = ""  # the code of that criterion, and what it printed when it was read
        self._drawn: dict[Any, tuple[str, str, str]] = {}  # what was drawn for it before comes back at once
        self._last = ("", "")  # picture and text that are shown
        self._plain = ""
        self.code = ipywidgets.Textarea(
            value=code,
            description="criterion",
            tooltip="Python code of a criterion",
            rows=max(8, code.count("\n") + 2),
            layout={"width": "98%"},
        )
        self.code.add_class("pruninglab-code")
        look = f"<style>.pruninglab-code textarea {{{MONOSPACED}; white-space: pre}}</style><p>{HELP}</p>"
        self.unit = ipywidgets.Dropdown(options=list(dict.fromkeys([*UNITS, unit])), value=unit, description="unit")
        self.allocation = ipywidgets.Dropdown(options=list(ALLOCATIONS), value=allocation, description="allocation")
        levels = [(f"{level:g}", level) for level in bench.levels]
        self.sparsity = ipywidgets.SelectionSlider(
            options=levels, value=sparsity, description="sparsity", continuous_update=False
        )
        self.controls = {"unit": self.unit, "allocation": self.allocation, "sparsity": self.sparsity}
        self.run = ipywidgets.Button(description="Run", button_style="primary", tooltip="Run the code in the box")
        self.message, self.text, self.picture = ipywidgets.HTML(), live(ipywidgets.HTML()), ipywidgets.HTML()
        row = ipywidgets.Box([*self.controls.values(), self.run], layout={"flex_flow": "row wrap"})
        self.box = spoken(ipywidgets.HTML(look), self.code, row, self.message, self.text, self.picture)
        self.run.on_click(self._run)
        for control in self.controls.values():
            control.observe(self._again, "value")
        self._run()

    def _run(self, _button: object = None) -> None:
        """Read what stands in the box, and try it."""
        code, printed, function = self.code.value, StringIO(), None
        self.run.description = "Running …"  # not disabled: that would take the keyboard's focus away
        try:
            function = read(code, printed, self.bench.seconds)
            said = printed.getvalue()
            drawn = self._look(function, printed)
        except CAUGHT as error:
            self._complain(explain(error, code, function), printed.getvalue())
        else:
            self.criterion, self._ran, self._said, self._drawn = function, code, said, {}
            self._show(*drawn)
        finally:
            self.run.description = "Run"

    def _again(self, _change: object = None) -> None:
        """Other settings: try what was last run without an error."""
        if self.criterion is None:
            return
        key, printed = tuple(control.value for control in self.controls.values()), StringIO()
        printed.write(self._said)
        try:
            if key not in self._drawn:
                self._drawn[key] = self._look(self.criterion, printed)
        except CAUGHT as error:
            self._complain(explain(error, self._ran, self.criterion), printed.getvalue())
        else:
            self._show(*self._drawn[key])

    def _look(self, function: Criterion, printed: StringIO) -> tuple[str, str, str]:
        """Try a criterion at the settings that are chosen: the picture, the text, and all that was printed."""
        setting = {name: control.value for name, control in self.controls.items()}
        with warned(printed):
            picture, text = draw_trial(self.bench.try_out(function, **setting, printed=printed))
        return picture.html(), text, printed.getvalue()

    def _show(self, picture: str, text: str, printed: str) -> None:
        if self.code.value != self._ran:
            text += " The box has changed since: press Run to try what it holds now."
        self._last, self._plain = (picture, text), f"{text}\n{printed}".strip()
        self.message.value = _output(printed)
        self.text.value = f"<p>{html.escape(text)}</p>"
        self.picture.value = picture

    def _complain(self, complaint: Complaint, printed: str) -> None:
        """Say what is wrong; what was shown before stays, faint."""
        picture, text = self._last
        self._plain = f"{complaint}\n{printed}".strip()
        self.message.value = complaint.html() + _output(printed)
        before = f"As it was before this error: {text}" if text else ""
        self.text.value = f"<p style='opacity: 0.6'>{html.escape(before)}</p>" if before else ""
        self.picture.value = f"<div style='opacity: 0.35'>{picture}</div>" if picture else ""

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = dict(self.box._repr_mimebundle_(**options) or {})
        bundle["text/plain"] = self._plain
        return bundle


def _output(printed: str) -> str:
    """What typed code printed, as it stands."""
    if not printed.strip():
        return ""
    cut = (
        printed if len(printed) <= LONGEST else f"{printed[:LONGEST]}\n… and {len(printed) - LONGEST:,} characters more"
    )
    look = "margin: 0.3em 0; max-height: 12em; overflow: auto; white-space: pre-wrap; border-left: 0.3em solid #808080"
    return f'<div>Printed:<pre style="{look}; padding-left: 0.8em" tabindex="0">{html.escape(cut)}</pre></div>'


def playground(
    task: str | Task = "digits-mlp",
    code: str = CODE,
    *,
    unit: str = "weight",
    allocation: str = "global",
    sparsity: float = 0.9,
    seed: int = 0,
    seconds: float | None = 10,
) -> Playground:
    """Type a criterion, press Run, and see what it keeps: `playground("digits-mlp")`.

    Shows each layer's mask and scores, what each layer loses, and the accuracy on the validation split over sparsities
    beside magnitude and random, all of one network. Other settings re-run the code that ran last.

    Args:
        task: one of pictures, or its name.
        code: what stands in the box at first.
        unit: "weight", "row", "RxC", "N:M" or "channel".
        allocation: a name in `ALLOCATIONS`.
        sparsity: the fraction removed.
        seed: of the network, the calibration data, and criteria that draw.
        seconds: how long typed code may run at a time; None for as long as it likes.

    Raises:
        ValueError, TypeError: a setting that is not known or out of range. Never what the typed code raises.
    """
    bench = Bench(task, seed, {*LEVELS, sparsity}, seconds)
    bench.settings(unit)
    lookup("allocation", allocation, ALLOCATIONS)
    return Playground(bench, code, unit=unit, allocation=allocation, sparsity=sparsity)


def playground_twin(
    code: str = CODE,
    settings: Iterable[Mapping[str, Any]] = ({},),
    *,
    task: str | Task = "digits-mlp",
    seed: int = 0,
) -> Any:
    """The static twin of `playground`: some code, and what it does at a few settings, for print and HTML.

    Args:
        code: as it would stand in the box.
        settings: mappings with "unit", "allocation" and "sparsity"; what is left out is as in `playground`.
        task: as in `playground`.
        seed: likewise.

    Raises:
        Exception: whatever the code raises.
    """
    whole = [SETTING | dict(setting) for setting in settings]
    bench = Bench(task, seed, {*LEVELS, *(setting["sparsity"] for setting in whole)}, None)
    printed = StringIO()
    function = read(code, printed)

    def draw(**setting: Any) -> Drawn:
        return draw_trial(bench.try_out(function, **setting, printed=printed))

    shown = twin(draw, whole)
    return show_html(f"<pre>{html.escape(code)}</pre>{shown.text}", f"{code.rstrip()}\n\n{shown.plain}")
