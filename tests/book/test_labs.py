"""The graded labs: their form, that only right answers pass, and that nbgrader itself grades them as it should."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from pruninglab.book import BOOK
from pruninglab.notebook import grading
from pruninglab.notebook.grading_worker import grades

COURSE = BOOK / "labs"
LABS = sorted(grading.LABS.glob("*/*.ipynb"))
labs = pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)
WRONG = Path(__file__).parent / "wrong"
QUESTIONS = [(path, question) for path in LABS for question in grading.questions(path)]


def read(path):
    return nbformat.read(path, as_version=4)


def marks(cell):
    return cell.metadata.get("nbgrader", {})


def wrong_ones(name):
    spec = importlib.util.spec_from_file_location(name, WRONG / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {key: value for key, value in vars(module).items() if key.startswith("wrong_")}


# ── form ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_there_are_two():
    assert [path.stem for path in LABS] == ["row_pieces", "worst_layer"]
    assert all(path.parent.name == path.stem for path in LABS)


@labs
def test_it_has_locked_tests_with_points_hidden_ones_and_one_to_grade_by_hand(path):
    cells = read(path).cells
    assert all(marks(cell).get("grade_id", cell.id) == cell.id for cell in cells)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    tests = [cell for cell in cells if marks(cell).get("grade") and not marks(cell)["solution"]]
    by_hand = [cell for cell in cells if marks(cell).get("grade") and marks(cell)["solution"]]
    assert all(marks(cell)["locked"] and cell.source.startswith("# Test, ") for cell in tests)
    for cell in tests:
        assert int(re.match(r"# Test, (\d+)", cell.source)[1]) == marks(cell)["points"]
        assert all(", " in line for line in re.findall(r"assert .*", cell.source) if line.endswith('"')), cell.source
    assert sum(marks(cell)["points"] for cell in tests) == 8
    assert sum(marks(cell)["points"] for cell in by_hand) == 4
    hidden = [cell for cell in cells if "HIDDEN TESTS" in cell.source]
    assert len(hidden) == 2
    assert all(cell in tests for cell in hidden)
    assert len(tests) - len(hidden) >= 4


# ── only right answers pass ───────────────────────────────────────────────────────────────────────────────────────


def graded(path, name, code):
    """The grade of one function of a lab, if it is written like this."""
    cells = [("given", source) for source in grading.given(path)] + [("mine", code)]
    waiting = [{"name": one.name, "tests": one.tests} for one in grading.questions(path) if one.name == name]
    (grade,) = grades(cells, waiting)
    return grade


@pytest.mark.parametrize(("path", "question"), QUESTIONS, ids=lambda value: getattr(value, "name", None))
def test_the_answer_passes_with_other_seeds_too_and_wrong_ones_do_not(path, question):
    (answer,) = [cell.source for cell in read(path).cells if f"def {question.name}(" in cell.source]
    for seed in range(4):
        assert graded(path, question.name, f"seed = {seed}\n{answer}")["result"] == "right"
    wrong = wrong_ones(question.name)
    assert len(wrong) >= 5
    for key in wrong:
        file = str(WRONG / f"{question.name}.py")
        for seed in range(4):
            code = f"seed = {seed}\nimport runpy\n{question.name} = runpy.run_path({file!r})[{key!r}]"
            grade = graded(path, question.name, code)
            assert grade["points"] < question.points, key
            assert len(grade["problem"].split()) > 5, (key, grade)


# ── nbgrader ──────────────────────────────────────────────────────────────────────────────────────────────────────

HALF = {
    "row_pieces": ("keep", "keep[torch.arange(len(scores)), scores.argmax(dim=1)] = True", "pass", 5.0),
    "worst_layer": ("fair", "d <= limit", "d <= limit + 0.5", 5.0),
}


def nbgrader(course, *line):
    """Run nbgrader in a course's folder; it calls alembic by its name."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *line], cwd=course, env={**os.environ, "PATH": path}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]


def submissions(released, source, damaged):
    """What a right, a half-right and a damaging student hand in, made from what they got."""
    answers = {cell.id: cell.source for cell in source.cells if marks(cell).get("solution")}

    def filled():
        notebook = nbformat.from_dict(released)
        for cell in notebook.cells:
            cell.source = answers.get(cell.id, cell.source)
        return notebook

    place, old, new, _ = HALF[source.metadata.title]
    right, half, broken = filled(), filled(), filled()
    (cell,) = [cell for cell in half.cells if cell.id == place]
    assert old in cell.source
    cell.source = cell.source.replace(old, new)
    first, test, moved = damaged
    cells = {cell.id: cell for cell in broken.cells}
    twice = nbformat.from_dict(cells[first])
    twice.id = "twice"
    order = [cell for cell in broken.cells if cell.id not in (test, moved)]
    order.insert(order.index(cells[first]) + 1, twice)  # doubled, with nbgrader's own id
    broken.cells = [*order, cells[moved]]  # one test deleted; one answer behind its tests
    gone = filled()  # a given cell is deleted, and an answer with its first test
    gone.cells = [cell for cell in gone.cells if cell.id not in ("setup", first, f"{first}-example")]
    return {"right": right, "half": half, "damaged": broken, "gone": gone}


DAMAGED = {"row_pieces": ("scores", "keep-ends", "keep"), "worst_layer": ("energy", "fair-budget", "fair")}


@pytest.mark.parametrize("name", ["row_pieces", pytest.param("worst_layer", marks=pytest.mark.slow)])
def test_nbgrader_hands_out_grades_and_gives_feedback(name, tmp_path):
    pytest.importorskip("nbgrader")
    from nbgrader.api import Gradebook

    course = tmp_path / "course"
    shutil.copytree(COURSE, course)
    nbgrader(course, "generate_assignment", name)
    released = read(course / "release" / name / f"{name}.ipynb")
    source = read(COURSE / "source" / name / f"{name}.ipynb")
    source.metadata.title = name
    text = "\n".join(cell.source for cell in released.cells)
    assert "SOLUTION" not in text
    assert "HIDDEN" not in text
    assert text.count("raise NotImplementedError") == 2
    assert [cell.id for cell in released.cells] == [cell.id for cell in source.cells]
    for student, notebook in submissions(released, source, DAMAGED[name]).items():
        (course / "submitted" / student / name).mkdir(parents=True)
        nbformat.write(notebook, course / "submitted" / student / name / f"{name}.ipynb")
    nbgrader(course, "autograde", name)
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as book:
        scores = {one.student_id: (one.score, one.max_score) for one in book.assignment_submissions(name)}
        assert all(one.needs_manual_grade for one in book.assignment_submissions(name))
    # The answer that stands behind its tests counts for nothing with nbgrader; with ours it does.
    assert scores == {"right": (8.0, 12.0), "half": (HALF[name][3], 12.0), "damaged": (4.0, 12.0), "gone": (4.0, 12.0)}
    table = grading.grade([course / "submitted" / "damaged" / name / f"{name}.ipynb"])
    assert list(table["result"]) == ["right", "right"]
    nbgrader(course, "generate_feedback", name)
    for student in scores:
        (page,) = (course / "feedback" / student / name).glob("*.html")
        assert str(scores[student][0]) in page.read_text(encoding="utf-8")
