"""Predict before you run: a question whose answer is recorded, and shown beside the measurement afterwards."""

import html
from collections.abc import Sequence
from typing import Any

import ipywidgets

from pruninglab.notebook.pictures import show_html
from pruninglab.notebook.spoken import spoken


class Prediction:
    """A question with choices. Works as a widget where there is a front end, and as text where there is none."""

    def __init__(self, question: str, choices: Sequence[str]) -> None:
        if len(choices) < 2:
            raise ValueError("a prediction needs at least two choices")
        self.question, self.choices = question, list(choices)
        self.buttons = ipywidgets.RadioButtons(
            options=self.choices, value=None, layout={"width": "max-content"}, description=""
        )

    @property
    def answer(self) -> str | None:
        """What was chosen so far."""
        return self.buttons.value

    def reveal(self, right: str, measured: str) -> Any:
        """Show the prediction beside what was measured.

        Args:
            right: the choice that the measurement bears out.
            measured: the measurement, in words and numbers.

        Raises:
            ValueError: `right` is not one of the choices.
        """
        if right not in self.choices:
            raise ValueError(f"{right!r} is not one of the choices: {', '.join(self.choices)}")
        said = (
            f"You predicted: {self.answer}." if self.answer else "You made no prediction (choose one above, run again)."
        )
        mark = " ✔" if self.answer == right else ""
        plain = f"{self.question}\n{said}{mark}\nMeasured: {right} — {measured}"
        text = (
            f"<div><i>{html.escape(self.question)}</i><br>{html.escape(said)}{mark}<br>"
            f"<b>Measured:</b> {html.escape(right)} — {html.escape(measured)}</div>"
        )
        return show_html(text, plain)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        box = spoken(ipywidgets.HTML(f"<b>Predict:</b> {html.escape(self.question)}"), self.buttons)
        bundle = dict(box._repr_mimebundle_(**options) or {})
        choices = "\n".join(f"  ( ) {choice}" for choice in self.choices)
        bundle["text/plain"] = f"Predict: {self.question}\n{choices}"
        return bundle


def predict(question: str, choices: Sequence[str]) -> Prediction:
    """Ask before running: keep what this returns, and `reveal` the result on it afterwards."""
    return Prediction(question, choices)
