"""Every chapter in JupyterLab, as a reader has it: run to the end, its widgets moved, and read in both themes.

Chapter 0 is run in full; the others in their quick version, and are slow (their kinds of widgets: `test_kinds.py`).
"""

import pytest
from driving import Notebook, shown
from moving import move, pick

from pruninglab import book

pytestmark = pytest.mark.browser
WIDGET = "application/vnd.jupyter.widget-view+json"


def parameters(chapter):
    return {"fast": True} if chapter.number else {}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(chapter, id=chapter.path.stem, marks=pytest.mark.slow if chapter.number else ())
        for chapter in book.chapters()
    ],
)
def chapter(request, lab, page):
    """A chapter's notebook, opened and run; and its folder's name."""
    from papermill.iorw import load_notebook_node, write_ipynb
    from papermill.parameterize import parameterize_notebook

    address, token, folder = lab
    path = request.param.path
    write_ipynb(
        parameterize_notebook(load_notebook_node(str(path)), parameters(request.param)), str(folder / path.name)
    )
    notebook = Notebook(*page, address, token, path.name)
    notebook.run_all()
    yield notebook
    notebook.shut_down()


def holding(cells, what):
    return [i for i, cell in enumerate(cells) if any(what in output.get("data", {}) for output in cell["outputs"])]


def test_it_runs_to_the_end_without_an_error_or_a_question(chapter):
    code = [cell for cell in chapter.cells if cell["type"] == "code" and cell["source"].strip()]
    assert [cell["count"] for cell in code] == list(range(1, len(code) + 1))
    failed = [cell for cell in code if any(output["output_type"] == "error" for output in cell["outputs"])]
    assert not failed, shown(failed[0])
    plain = [
        output["data"]["text/plain"]
        for cell in code
        for output in cell["outputs"]
        if set(output.get("data", ())) == {"text/plain"}
    ]
    assert not [text for text in plain if " object at 0x" in text]
    assert chapter.interruptions == []
    assert chapter.errors == []


def test_its_widgets_move_by_keyboard_and_by_mouse(chapter, screenshots):
    cells = chapter.cells
    places = holding(cells, WIDGET)
    predictions = [i for i in places if "predict(" in cells[i]["source"]]
    assert predictions
    for i in places:
        area = chapter.show(i)
        area.screenshot(path=screenshots / f"{chapter.stem}-{cells[i]['id']}-before.png")
        if i in predictions:
            reveal = next((j for j, cell in enumerate(cells) if j > i and ".reveal(" in cell["source"]), None)
            assert reveal is not None, "no cell shows the prediction beside the measurement"
            for number, by in ((1, "keyboard"), (0, "mouse")):
                words = pick(chapter.show(i), number, by)
                chapter.run(reveal)
                assert f"You predicted: {words}." in chapter.show(reveal).inner_text()
        else:
            move(area)
        chapter.show(i).screenshot(path=screenshots / f"{chapter.stem}-{cells[i]['id']}-after.png")
    assert chapter.errors == chapter.interruptions == []


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_its_outputs_can_be_read(chapter, screenshots, theme):
    assert chapter.look_over(theme, screenshots) == []
    assert chapter.errors == chapter.interruptions == []
