"""The widget and the drawings of chapter 7: a bowl, a block's pairs, and weights that are flipped by hand."""

import re

import pytest
import torch
from torch import nn

from pruninglab.curvature import Quadratic, exhaustive
from pruninglab.notebook import draw_block, draw_bowl, draw_choice, flip, unit_block


def block(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return torch.randn(n, generator=generator, dtype=torch.float64), a @ a.T


def cost(weights, hessian, gone):
    return 0.5 * float((weights * gone) @ hessian @ (weights * gone))


def best(weights, hessian, ones):
    return exhaustive(Quadratic(0.5 * weights[:, None] * hessian * weights), ones)


def told(text):
    """The number that a text ends its first sentence with."""
    return float(re.search(r"together they cost (-?[\d.e+-]*\d)", text)[1])


def test_the_bowl_tells_what_each_way_costs():
    alt = draw_bowl(torch.tensor([1.2, 1.0]), torch.tensor([[1.0, 1.2], [1.2, 3.0]])).alt
    assert "the smaller one: the loss rises by 1.50" in alt
    assert "the cheaper one: the loss rises by 0.72" in alt
    assert "makes up for it: the loss rises by 0.37" in alt  # ½ · 1.2² · (1 − 1.2² / 3)


def test_a_block_shows_in_colour_what_counts_and_says_its_cost():
    weights, hessian = block()
    gone = torch.tensor([True, False, True, False, False, True])
    picture, text = draw_block(weights, hessian, gone)
    assert "3 of 6 are gone (0, 2, 5)" in text
    assert told(text) == pytest.approx(cost(weights, hessian, gone), rel=5e-3)
    (ax,) = picture.figure.axes
    assert ((~ax.images[0].get_array().mask) == (gone[:, None] & gone).numpy()).all()
    signs = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in ax.texts}
    shares = weights[:, None] * hessian * weights
    assert all((sign == "+") == bool(shares[place] > 0) for place, sign in signs.items())
    assert text in picture.alt
    _, text = draw_block(weights, hessian, torch.zeros(6, dtype=torch.bool))
    assert "0 of 6 are gone (none)" in text
    assert told(text) == 0


def test_flipping_by_hand_is_followed_by_the_text_and_the_picture():
    widget = flip({"a": block(), "b": block(7, 1)}, ones=3)
    weights, hessian = block()
    assert widget.gone.nonzero().flatten().tolist() == sorted(weights.abs().argsort()[:3].tolist())
    before = widget.picture.value
    assert "pruninglab-live" in widget.text._dom_classes
    assert told(widget.text.value) == pytest.approx(cost(weights, hessian, widget.gone), rel=5e-3)
    place = int(widget.gone.nonzero()[0])
    assert widget.buttons[place].description.startswith("✗ ")
    widget.buttons[place].value = False
    assert not widget.buttons[place].description.startswith("✗ ")
    assert "remove 1 more" in widget.text.value
    assert widget.picture.value != before
    for button in widget.buttons:
        button.value = True
    assert "bring back 3 more" in widget.text.value


def test_the_buttons_choose_and_the_verdict_compares():
    weights, hessian = block(seed=3)
    widget = flip({"a": (weights, hessian)}, ones=3)
    optimum = cost(weights, hessian, best(weights, hessian, 3))
    for name, choice in widget.choices.items():
        choice.click()
        assert int(widget.gone.sum()) == 3
        mine = cost(weights, hessian, widget.gone)
        if name == "the solver's choice":
            assert mine == pytest.approx(optimum)
            assert "That is what the solver reaches" in widget.text.value
        elif mine > 1.01 * optimum:
            assert f"{mine / optimum:.2f} times" in widget.text.value
    widget._best = 2 * optimum  # as if the search had missed it
    widget._set(best(weights, hessian, 3))
    assert "you have beaten it" in widget.text.value


def test_another_block_has_buttons_of_its_own():
    blocks = {"a": block(), "b": block(7, 1)}
    widget = flip(blocks, ones=3)
    widget.menu.value = "b"
    assert len(widget.buttons) == len(widget.row.children) == 7
    assert "3 of 7 are gone" in widget.text.value
    assert widget._repr_mimebundle_()["text/plain"].startswith("b: 3 of 7")


def test_its_twin_draws_what_the_buttons_choose():
    blocks = {"a": block(seed=4)}
    widget = flip(blocks, ones=2)
    for name, choice in widget.choices.items():
        choice.click()
        assert draw_choice(blocks, 2, "a", name)[1] in widget.text.value.replace("&#x27;", "'")
    with pytest.raises(ValueError, match="unknown choice 'solver'"):
        draw_choice(blocks, 2, "a", "solver")


def test_what_cannot_be_flipped():
    for blocks, ones in (({}, 3), ({"a": block()}, 7), ({"a": block()}, 0)):
        with pytest.raises(ValueError, match="blocks with at least ones="):
            flip(blocks, ones=ones)


def test_a_unit_s_block_costs_percent_of_its_output():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(9, 4)).double(), torch.randn(40, 9, dtype=torch.float64)
    weights, hessian = unit_block(model, x, "0.weight", 2, n=5)
    row = model[0].weight.detach()[2]
    places = [row.tolist().index(w) for w in weights.tolist()]
    assert places == sorted(places)
    alone = row.square() * x.square().sum(0)
    assert set(places) == set(alone.argsort(descending=True)[:5].tolist())
    gone = torch.tensor([True, False, True, True, False])
    without = row.clone()
    without[[p for p, out in zip(places, gone.tolist(), strict=True) if out]] = 0
    part = (x @ (row - without)).square().sum() / (x @ row).square().sum()
    assert cost(weights, hessian, gone) == pytest.approx(100 * float(part))
