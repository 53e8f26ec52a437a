"""The teacher's page: its links lead somewhere, and the commands that it names exist."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest

from pruninglab import book

PAGE = (book.BOOK / "teaching.md").read_text(encoding="utf-8")


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert links
    assert all(link.startswith("https://") or (book.BOOK / link).exists() for link in links)


def test_numbers_of_chapters_belong_to_their_links():
    found = re.findall(r"\[(\d+)\]\((\d\d)_", PAGE)
    assert found
    assert all(int(shown) == int(linked) for shown, linked in found)


def block(holding):
    """The block of commands on the page that holds some text."""
    blocks = [textwrap.dedent(found) for found in re.findall(r"(?:^    .+\n)+", PAGE, re.M)]
    (found,) = [found for found in blocks if holding in found]
    return found


def test_each_student_s_notebook_has_its_own_seed(tmp_path):
    pytest.importorskip("nbgrader")
    settings = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    settings["PYTHONPATH"] = str(book.BOOK.parent)
    subprocess.run(
        ["sh", "-ec", block("--prepare-only").replace("1 2 3", "1 3")],
        cwd=tmp_path,
        env={**os.environ, **settings},
        check=True,
    )
    for seed in (1, 3):
        notebook = nbformat.read(tmp_path / "handout" / f"magnitude_{seed}.ipynb", as_version=4)
        (cell,) = [cell for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", [])]
        assert f"seed = {seed}" in cell.source
        assert not any(cell.get("outputs") for cell in notebook.cells)


def test_nbgrader_has_the_commands_that_the_page_names():
    apps = pytest.importorskip("nbgrader.apps")
    named = set(re.findall(r"^    nbgrader (\w+)|`nbgrader (\w+)", PAGE, re.M))
    named = {one or other for one, other in named}
    assert named >= {"generate_assignment", "autograde", "generate_feedback"}
    assert named <= set(apps.NbGraderApp.subcommands)
    for lab in re.findall(r"^\| `(\w+)` \|", PAGE, re.M):
        assert (book.BOOK / "labs" / "source" / lab / f"{lab}.ipynb").is_file()


def test_commands_exist():
    for command in set(re.findall(r"python -m pruninglab (\w+)", " ".join(PAGE.split()))):
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
