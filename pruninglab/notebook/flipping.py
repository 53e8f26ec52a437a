"""A widget to be a solver by hand: flip the weights of a block, and try to get below what the search found."""

import html
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets
import torch
from torch import Tensor, nn

from pruninglab.curvature import cbs_select
from pruninglab.naming import lookup
from pruninglab.notebook.curvature_plots import draw_block, shares
from pruninglab.notebook.pictures import Picture
from pruninglab.notebook.spoken import live, spoken
from pruninglab.statistics import collect

RESTARTS = 10  # of the solver: at this size it then finds the optimum nearly always

Block = tuple[Tensor, Tensor]  # weights (n,) and Hessian (n, n)


def unit_block(model: nn.Module, x: Tensor, layer: str, unit: int, n: int = 14) -> Block:
    """The n weights of a linear layer's unit that would be missed most, and their Hessian, in % of its squared output.

    The Hessian is that of the unit's squared error, 2 XᵀX, divided by a hundredth of ‖X w‖²: ½ δᵀHδ is then the part of
    the unit's output that a change δ costs, in %.

    Args:
        model: the network.
        x: calibration inputs of the network.
        layer: name of the layer's weight.
        unit: which row of it.
        n: how many weights.
    """
    moments = collect(model, ["hessian"], x)[layer]["hessian"].double()
    row = model.get_parameter(layer).detach()[unit].double()
    places = (row.square() * moments.diagonal()).argsort(descending=True)[:n].sort().values
    return row[places], 200 * moments[places][:, places] / (row @ moments @ row)


def _smallest(weights: Tensor, hessian: Tensor, n: int) -> Tensor:
    return least(weights.abs(), n)


def _cheapest(weights: Tensor, hessian: Tensor, n: int) -> Tensor:
    return least(shares(weights, hessian).diagonal(), n)


def _solved(weights: Tensor, hessian: Tensor, n: int) -> Tensor:
    return cbs_select(weights, hessian, n, restarts=RESTARTS)


CHOICES = {"smallest weights": _smallest, "cheapest alone": _cheapest, "the solver's choice": _solved}


def least(values: Tensor, n: int) -> Tensor:
    """True at the n least of a vector; of equal ones the first."""
    return torch.zeros_like(values, dtype=torch.bool).index_fill(0, values.argsort(stable=True)[:n], True)


class Flipper:
    """A menu of blocks, a button for each weight, and what the choice costs.

    Args:
        blocks: name → (weights (n,), Hessian (n, n)).
        ones: how many weights have to go.
    """

    def __init__(self, blocks: Mapping[str, Block], ones: int) -> None:
        self._blocks, self._ones, self._busy = dict(blocks), ones, False
        self.menu = ipywidgets.Dropdown(options=list(blocks), description="block")
        self.buttons: list[Any] = []
        self.choices = {name: ipywidgets.Button(description=name) for name in CHOICES}
        for name, choice in self.choices.items():
            choice.on_click(self._setter(name))
        self.row = ipywidgets.Box(layout={"flex_flow": "row wrap", "max_width": "52em"})
        self.text, self.picture = live(ipywidgets.HTML()), ipywidgets.HTML()
        choices = ipywidgets.HBox(list(self.choices.values()))
        self.box = spoken(self.menu, choices, self.row, self.text, self.picture)
        self.menu.observe(self._open, "value")
        self._open()

    @property
    def gone(self) -> Tensor:
        """Which weights are removed now, (n,) bool."""
        return torch.tensor([button.value for button in self.buttons])

    def _setter(self, name: str) -> Callable[[object], None]:
        return lambda _: self._set(CHOICES[name](*self._blocks[self.menu.value], self._ones))

    def _open(self, _change: object = None) -> None:
        """Another block: new buttons, at first with the smallest weights gone."""
        weights, hessian = self._blocks[self.menu.value]
        best = _solved(weights, hessian, self._ones)
        self._best = float(shares(weights, hessian)[best][:, best].sum())
        self.buttons = []
        for i in range(len(weights)):
            button = ipywidgets.ToggleButton(tooltip=f"weight {i}", layout={"width": "8.5em"})
            button.observe(self._update, "value")
            self.buttons.append(button)
        self.row.children = tuple(self.buttons)
        self._set(_smallest(weights, hessian, self._ones))

    def _set(self, gone: Tensor) -> None:
        self._busy = True
        for button, out in zip(self.buttons, gone.tolist(), strict=True):
            button.value = out
        self._busy = False
        self._update()

    def _update(self, _change: object = None) -> None:
        if self._busy:
            return
        weights, hessian = self._blocks[self.menu.value]
        for i, (button, w) in enumerate(zip(self.buttons, weights.tolist(), strict=True)):
            button.description = f"{'✗ ' if button.value else ''}{i} ({w:+.2f})"
        picture, text = draw_block(weights, hessian, self.gone)
        text = f"{text}. {self._verdict()}"
        self.text.value = f"<p>{html.escape(text)}</p>"
        self.picture.value = picture.html()
        self._plain = text

    def _verdict(self) -> str:
        """How the choice compares with the solver's."""
        missing = self._ones - int(self.gone.sum())
        if missing:
            return f"To compare, {'remove' if missing > 0 else 'bring back'} {abs(missing)} more."
        weights, hessian = self._blocks[self.menu.value]
        mine = float(shares(weights, hessian)[self.gone][:, self.gone].sum())
        if mine < self._best * (1 - 1e-9):
            return f"The solver reaches only {self._best:.3g}: you have beaten it."
        if mine <= self._best * (1 + 1e-9):
            return "That is what the solver reaches."
        return f"The solver reaches {self._best:.3g}; yours is {mine / self._best:.2f} times that."

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = dict(self.box._repr_mimebundle_(**options) or {})
        bundle["text/plain"] = f"{self.menu.value}: {self._plain}"
        return bundle


def flip(blocks: Mapping[str, Block], *, ones: int) -> Flipper:
    """Choose a block, flip weights, read what it costs: `flip({"unit 3": (weights, hessian)}, ones=7)`.

    Raises:
        ValueError: no block, or one with fewer weights than are to go.
    """
    if not blocks or not all(0 < ones <= len(weights) for weights, _ in blocks.values()):
        sizes = {name: len(weights) for name, (weights, _) in blocks.items()}
        raise ValueError(f"flip needs blocks with at least ones={ones} weights (and ones at least 1), not {sizes}")
    return Flipper(blocks, ones)


def draw_choice(blocks: Mapping[str, Block], ones: int, block: str, gone: str) -> tuple[Picture, str]:
    """What `flip` draws when one of its buttons is pressed: for its static twin.

    Args:
        blocks: as for `flip`.
        ones: as for `flip`.
        block: which one.
        gone: whose choice: "smallest weights", "cheapest alone" or "the solver's choice".
    """
    choose = lookup("choice", gone, CHOICES)
    weights, hessian = lookup("block", block, blocks)
    return draw_block(weights, hessian, choose(weights, hessian, ones))
