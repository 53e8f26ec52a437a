"""The teacher's page: its links lead somewhere, and the commands that it names exist."""

import re
import subprocess
import sys

import nbformat
import pytest

from pruninglab import book

PAGE = (book.BOOK / "teaching.md").read_text(encoding="utf-8")


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert links
    assert all((book.BOOK / link).exists() for link in links)


def test_numbers_of_chapters_belong_to_their_links():
    found = re.findall(r"\[(\d+)\]\((\d\d)_", PAGE)
    assert found
    assert all(int(shown) == int(linked) for shown, linked in found)


def test_commands_exist():
    for command in re.findall(r"python -m pruninglab (\w+)", PAGE):
        assert (
            subprocess.run([sys.executable, "-m", "pruninglab", command, "--help"], capture_output=True).returncode == 0
        )


@pytest.mark.parametrize(
    ("body", "wrong"), [("return 1 - int(mask.sum()) / mask.numel()", False), ("return 0.25", True)]
)
def test_what_is_handed_in_is_graded_as_the_page_says(body, wrong, tmp_path):
    from papermill import PapermillExecutionError

    notebook = nbformat.read(book.BOOK / "00_start_here.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "exercise" in cell.metadata.get("tags", [])]
    cell.source = re.sub(r"raise NotImplementedError.*", body, cell.source)
    nbformat.write(notebook, tmp_path / "handed_in.ipynb")
    if wrong:
        with pytest.raises(PapermillExecutionError, match="fraction_removed"):
            book.run(tmp_path / "handed_in.ipynb", tmp_path / "graded.ipynb", {"fast": True})
    else:
        book.run(tmp_path / "handed_in.ipynb", tmp_path / "graded.ipynb", {"fast": True})
