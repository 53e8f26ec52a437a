"""The form of every chapter."""

import io
import json
import re
import statistics
import tokenize

import nbformat
import pytest

from pruninglab import book
from pruninglab.notebook import answers  # noqa: F401  makes the exercises known
from pruninglab.notebook.exercises import EXERCISES

WRITTEN = book.written()
chapters = pytest.mark.parametrize("chapter", WRITTEN, ids=lambda chapter: chapter.path.stem)


def cells(chapter, kind=None):
    notebook = nbformat.read(chapter.path, as_version=4)
    return [cell for cell in notebook.cells if kind in (None, cell.cell_type)]


def tagged(chapter, tag):
    return [cell for cell in cells(chapter) if tag in cell.metadata.get("tags", [])]


def test_the_first_three_chapters_are_there():
    assert [chapter.number for chapter in WRITTEN][:3] == [0, 1, 2]


@chapters
def test_it_is_committed_without_outputs_and_with_readable_ids(chapter):
    raw = json.loads(chapter.path.read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in raw["cells"])
    ids = [cell["id"] for cell in raw["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) and not re.fullmatch(r"[0-9a-f]{8}", name) for name in ids)


@chapters
def test_it_has_the_parts_of_a_chapter(chapter):
    first = cells(chapter)[0].source
    assert re.match(rf"# {chapter.number} · \S", first)
    assert "Reading" in first
    assert "running" in first
    text = "\n".join(cell.source for cell in cells(chapter))
    assert "you will be able to" in text.lower()
    for needed in (
        "predict(",
        "claim(",
        "check(",
        "source(",
        f"roadmap({chapter.number})",
        "Further reading",
        "**Next:**",
    ):
        assert needed in text, needed
    assert "Your own criterion" in text


@chapters
def test_its_parameters_are_typed_and_commented(chapter):
    (parameters,) = tagged(chapter, "parameters")
    for name in ("seed: int", "fast: bool", "n_seeds: int", "device: str"):
        assert re.search(rf"^{name} = .+  # .+", parameters.source, re.M), name


def statements(cell):
    tokens = tokenize.generate_tokens(io.StringIO(cell.source).readline)
    return sum(token.type == tokenize.NEWLINE for token in tokens)


@chapters
def test_its_cells_are_short_and_explained(chapter):
    code = cells(chapter, "code")
    assert max(len(line) for cell in code for line in cell.source.splitlines()) <= 120
    assert max(len(cell.source.splitlines()) for cell in code) <= 30
    assert statistics.median(map(statements, code)) <= 7  # and not lines: a line that is wrapped is easier to read
    assert 15 <= len(code) <= 30
    runs = re.findall(r"c+", "".join(cell.cell_type[0] for cell in cells(chapter)))
    assert max(map(len, runs)) <= 2


@chapters
def test_each_exercise_has_three_hints_and_a_folded_solution(chapter):
    exercises = tagged(chapter, "exercise")
    solutions = tagged(chapter, "solution")
    assert exercises
    assert len(solutions) == len(exercises)
    for cell in exercises:
        assert "raise NotImplementedError" in cell.source
        assert '"""' in cell.source
    for cell in solutions:
        assert cell.metadata["jupyter"]["source_hidden"]
        assert cell.source.startswith("### BEGIN SOLUTION")
        assert "### END SOLUTION" in cell.source
    markdown = "\n".join(cell.source for cell in cells(chapter, "markdown"))
    for number in (1, 2, 3):
        assert len(re.findall(rf"<summary>Hint {number}", markdown)) == len(exercises)
    minutes = re.findall(r"> \*\*(\d+) minutes · (?:easy|medium|hard) · why it matters:\*\* \S", markdown)
    assert len(minutes) == len(exercises)
    told = re.search(r" · (\d+) exercises? \((\d+) minutes\) · level: ", cells(chapter)[0].source)
    assert (int(told[1]), int(told[2])) == (len(exercises), sum(map(int, minutes)))


@chapters
def test_each_exercise_has_a_check_of_its_own_that_tries_the_solution_too(chapter):
    names = [re.search(r"^def (\w+)", cell.source, re.M)[1] for cell in tagged(chapter, "exercise")]
    assert set(names) <= set(EXERCISES)
    for name, cell in zip(names, tagged(chapter, "exercise"), strict=True):
        assert cell.source.endswith(f"{name} = check({name})")
    checked = [re.findall(r'check\(solution, "(\w+)"\)', cell.source) for cell in tagged(chapter, "solution")]
    assert checked == [[name] for name in names]


@chapters
def test_it_names_no_pip_and_no_network(chapter):
    text = "\n".join(cell.source for cell in cells(chapter, "code"))
    assert not re.search(r"pip install|https?://|wget|curl ", text)
