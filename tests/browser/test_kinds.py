"""Each kind of widget in a notebook of its own, which is ready in seconds."""

import nbformat
import pytest
from driving import Notebook, faint, shown
from moving import move, pick

pytestmark = pytest.mark.browser
SETUP = """
import torch
from pruninglab.notebook import check, claim, draw_bars, explore, flip, playground, predict, source
def look(size, colour):
    return draw_bars({colour: size}, f"A bar of length {size}, {colour}."), f"{size} times {colour}"
def block(seed):
    a = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a[0] + 1, a @ a.T
"""
KINDS = {
    "explore": 'explore(look, size=[1, 2, 5, 10], colour=["red", "green", "blue"], labels={"size": "how long"})',
    "flip": 'flip({"one": block(0), "two": block(1)}, ones=4)',
    "playground": "playground()",
}
OTHERS = [
    'answer = predict("How many?", ["none", "some", "all"])\nanswer',
    'answer.reveal("some", "3 of 7")',
    "def fraction_removed(mask):\n    return mask.sum() / 0\ncheck(fraction_removed);",
    'claim("A is above B.", [0.1, 0.2, 0.3], above=0, unit="points")',
    "source(check)",
]


@pytest.fixture(scope="module")
def notebook(lab, page):
    address, token, folder = lab
    cells = map(nbformat.v4.new_code_cell, [SETUP, *KINDS.values(), *OTHERS])
    made = nbformat.v4.new_notebook(cells=list(cells))
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, folder / "kinds.ipynb")
    notebook = Notebook(*page, address, token, "kinds.ipynb")
    notebook.run_all()
    errors = [cell for cell in notebook.cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert not errors, shown(errors[0])
    yield notebook
    notebook.shut_down()


@pytest.mark.parametrize("kind", KINDS)
def test_it_moves_by_keyboard_and_by_mouse_and_says_so(notebook, screenshots, kind):
    area = notebook.show(1 + list(KINDS).index(kind))
    area.screenshot(path=screenshots / f"kinds-{kind}-before.png")
    assert move(area) == kind
    area.screenshot(path=screenshots / f"kinds-{kind}-after.png")
    assert notebook.errors == []


@pytest.mark.parametrize(("number", "by"), [(1, "keyboard"), (2, "mouse")])
def test_a_prediction_is_picked_and_remembered(notebook, number, by):
    words = pick(notebook.show(len(KINDS) + 1), number, by)
    notebook.run(len(KINDS) + 2)
    assert f"You predicted: {words}." in notebook.show(len(KINDS) + 2).inner_text()


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_they_can_be_read(notebook, screenshots, theme):
    assert notebook.look_over(theme, screenshots) == []


def test_what_cannot_be_read_is_found(notebook):
    """A test of the test: grey on white, and white behind half a veil."""
    area = notebook.show(len(OTHERS) + len(KINDS))
    for style in ("color: #999; background: white", "color: white; background: black; opacity: 0.3"):
        area.evaluate("(node, style) => node.querySelector('code').style.cssText = style", style)
        assert any(one[0].startswith("pruninglab.notebook") for one in faint(notebook.page))
