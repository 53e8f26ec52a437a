"""The student's version and the solved one: nothing told, nothing lost, and both run from top to bottom."""

import os
import re
import subprocess
import sys

import nbformat
import pytest

from pruninglab import book, cli
from pruninglab.notebook import versions

CHAPTERS = book.written()
# Lines that say nothing about how an exercise is solved: they stand in ordinary code of the same chapters too.
TRIVIAL = re.compile(
    r"(def solution\(.*|@torch\.no_grad\(\)|for \w+ in \w+:|return \w+(, \w+)*|else:|middle = .*|check\(.*)"
)


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The student's and the solved book."""
    pytest.importorskip("nbgrader")
    folder = tmp_path_factory.mktemp("versions")
    for name, make in (("student", versions.student_version), ("solutions", versions.solved_version)):
        versions.write_version(folder / name, make)
    return folder


def solution_lines(notebook):
    """What stands between the marks of a chapter's solutions, a line each, without what any code has."""
    lines = set()
    for cell in versions.tagged(notebook, "solution"):
        between = cell.source.split(versions.BEGIN)[1].split(versions.END)[0]
        lines |= {line.strip() for line in between.splitlines()}
    return {line for line in lines if line and not TRIVIAL.fullmatch(line)}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.path.stem)
def test_no_line_of_a_solution_is_left_for_students(chapter, folders):
    lines = solution_lines(read(chapter.path))
    assert len(lines) >= len(versions.tagged(read(chapter.path), "solution"))
    student = read(folders / "student" / chapter.path.name)
    left = {line.strip() for cell in student.cells for line in cell.source.splitlines()}
    assert not lines & left
    text = "".join(cell.source for cell in student.cells)
    assert "SOLUTION" not in text
    assert "folded cell" not in text, "there is nothing in it"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.path.stem)
@pytest.mark.parametrize("name", ["student", "solutions"])
def test_ids_tags_and_all_other_cells_are_as_they_were(chapter, name, folders):
    before, after = read(chapter.path), read(folders / name / chapter.path.name)
    assert [cell.id for cell in before.cells] == [cell.id for cell in after.cells]
    assert [cell.metadata for cell in before.cells] == [cell.metadata for cell in after.cells]
    assert before.metadata == after.metadata
    changed = {one.id for one, two in zip(before.cells, after.cells, strict=True) if one.source != two.source}
    tag = {"student": "solution", "solutions": "exercise"}[name]
    code = {cell.id for cell in before.cells if cell.cell_type == "code"}
    assert changed & code == {cell.id for cell in versions.tagged(before, tag)}
    assert not any(cell.get("outputs") for cell in after.cells)


def test_every_link_leads_to_a_file_that_came_along(folders):
    for name in ("student", "solutions"):
        for path in (folders / name).iterdir():
            cells = read(path).cells if path.suffix == ".ipynb" else []
            texts = [cell.source for cell in cells if cell.cell_type == "markdown"] or [
                path.read_text(encoding="utf-8")
            ]
            for link in re.findall(r"\]\(([^)#\s]+\.(?:ipynb|md|png|svg))\)", "\n".join(texts)):
                assert link.startswith("http") or (folders / name / link).is_file(), (path.name, link)


def test_linked_files_come_along_under_names_of_their_own_but_no_lab_with_its_answers(tmp_path, monkeypatch):
    folder = tmp_path / "book"
    for name in ("labs/lab.ipynb", "page.md", "../other/page.md", "../data.csv", "picture.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("see [data](../data.csv)")
    text = (
        "[a](labs/lab.ipynb) [b](page.md) ![c](picture.png) [d](../other/page.md) [e](https://example.org) [f](gone.md)"
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]), folder / "00_x.ipynb")
    monkeypatch.setattr(versions, "BOOK", folder)
    monkeypatch.setattr(versions, "written", lambda: [book.Chapter(0, "title", "answer", folder / "00_x.ipynb")])
    files = versions.write_version(tmp_path / "out", versions.solved_version)
    assert [path.name for path in files] == ["00_x.ipynb", "data.csv", "other_page.md", "page.md", "picture.png"]
    new = text.replace("../other/page.md", "other_page.md")
    assert read(tmp_path / "out" / "00_x.ipynb").cells[0].source == new
    assert (tmp_path / "out" / "page.md").read_text() == "see [data](data.csv)"


def texts_of(path):
    return str([output for cell in read(path).cells for output in cell.get("outputs", [])])


def run(chapter, folders, name, out):
    """Run a chapter of a version strictly through papermill, and what it says then."""
    path = folders / name / chapter.path.name
    book.run(path, out / path.name, {"fast": True})
    said = texts_of(out / path.name)
    count = len(versions.tagged(read(path), "exercise"))
    if name == "student":
        assert len(set(re.findall(r"… (\w+): not written yet. The chapter goes on with the library", said))) == count
    else:
        assert len(set(re.findall(r"✔ (\w+): all \d+ properties hold. The chapter goes on with yours", said))) == count


def nbval(path):
    """What pytest says of a notebook, run by nbval in the strict mode."""
    line = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "-p", "no:cacheprovider", "-c", os.devnull, path.name]
    return subprocess.run(line, cwd=path.parent, capture_output=True, text=True)


@pytest.mark.parametrize(("number", "name"), [(0, "student"), (0, "solutions"), (1, "student")])
def test_short_chapters_run_whether_solved_or_not(number, name, folders, tmp_path):
    run(CHAPTERS[number], folders, name, tmp_path)


def test_nbval_passes_an_unsolved_chapter_in_strict_mode(folders):
    done = nbval(folders / "student" / CHAPTERS[0].path.name)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.path.stem)
@pytest.mark.parametrize("name", ["student", "solutions"])
def test_all_chapters_run_whether_solved_or_not(chapter, name, folders, tmp_path):
    run(chapter, folders, name, tmp_path)
    notebook = read(folders / name / chapter.path.name)
    (parameters,) = versions.tagged(notebook, "parameters")
    parameters.source += "\nfast = True"  # nbval has no parameters
    nbformat.write(notebook, tmp_path / "quick.ipynb")
    done = nbval(tmp_path / "quick.ipynb")
    assert done.returncode == 0, done.stdout[-3000:]


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["solutions", str(tmp_path / "mine")])
    assert stopped.value.code == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    def breaks_at_chapter_3(notebook):
        if "# 3 ·" in notebook.cells[0].source:
            raise RuntimeError("on purpose")
        return notebook

    with pytest.raises(RuntimeError, match="on purpose"):
        versions.write_version(tmp_path / "new", breaks_at_chapter_3)
    assert not list(tmp_path.iterdir())
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "old.txt").touch()
    with pytest.raises(RuntimeError, match="on purpose"):
        versions.write_version(tmp_path / "new", breaks_at_chapter_3, replace=True)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["old.txt"]


def test_the_command_writes_its_usual_folder_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    for _ in range(2):
        assert cli.main(["solutions"]) == 0
        assert "files are in" in capsys.readouterr().out
    assert (tmp_path / "build" / "solutions" / "00_start_here.ipynb").is_file()
    assert [path.name for path in (tmp_path / "build").iterdir()] == ["solutions"]


def test_without_nbgrader_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nbgrader.preprocessors", None)
    assert cli.main(["student", str(tmp_path / "out")]) == 1
    assert "pip install 'pruninglab[teach]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
