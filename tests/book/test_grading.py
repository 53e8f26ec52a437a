"""Grading by function name: whatever happened to the notebook, and whatever its code does."""

import json

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from pruninglab import book, cli
from pruninglab.notebook import exercises, grading
from pruninglab.notebook.grading_worker import grades

ZERO = book.chapters()[0].path
OURS = [chapter.path for chapter in book.chapters()] + sorted(grading.LABS.glob("*/*.ipynb"))
RIGHT = "def fraction_removed(mask):\n    return 1 - int(mask.sum()) / mask.numel()"
UNWRITTEN = 'def fraction_removed(mask):\n    """As it was handed out."""\n    raise NotImplementedError  # replace'
FRACTION = [{"name": "fraction_removed", "tests": ()}]


def graded(*cells, waiting=FRACTION):
    """What comes of the cells, as a list of grades."""
    return list(grades([(f"code cell {number}", cell) for number, cell in enumerate(cells, start=1)], waiting))


def one(*cells):
    (grade,) = graded(*cells)
    return grade["result"], grade.get("problem", "")


# ── what is graded ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_every_notebook_of_ours_is_known_by_its_functions(path):
    assert grading.belongs_to(nbformat.read(path, as_version=4)) == path
    assert grading.questions(path)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_what_our_notebook_gives_defines_none_of_its_answers(path):
    waiting = [{"name": question.name, "tests": question.tests} for question in grading.questions(path)]
    assert {grade["result"] for grade in graded(*grading.given(path), waiting=waiting)} == {"not handed in"}


def test_every_exercise_of_the_book_belongs_to_a_chapter():
    names = [question.name for chapter in book.chapters() for question in grading.questions(chapter.path)]
    assert sorted(names) == sorted(exercises.EXERCISES)


# ── how ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_right_wrong_unwritten_and_missing():
    assert one(RIGHT) == ("right", "")
    result, problem = one("def fraction_removed(mask):\n    return float(mask.float().mean())")
    assert result == "wrong"
    assert problem.startswith("three kept of four means a quarter is removed: it gave 0.75")
    assert one(UNWRITTEN)[0] == "not written"
    assert one("x = 1") == ("not handed in", "")
    assert one("fraction_removed = 3") == ("wrong", "fraction_removed is 3, not a function")


def test_a_wrong_answer_is_not_saved_by_the_chapter_going_on_with_the_library_s(monkeypatch):
    monkeypatch.setattr("pruninglab.notebook.check", lambda function: function)  # as in the process that grades
    code = "from pruninglab.notebook import check\n{}\nfraction_removed = check(fraction_removed)"
    assert one(code.format("def fraction_removed(mask):\n    return 0.25"))[0] == "wrong"
    assert one(code.format(RIGHT))[0] == "right"


def test_the_last_definition_counts_unless_it_is_a_doubled_empty_cell():
    wrong = "def fraction_removed(mask):\n    return 0.0"
    assert one(wrong, RIGHT)[0] == "right"
    assert one(RIGHT, wrong)[0] == "wrong"
    assert one(UNWRITTEN, RIGHT, UNWRITTEN)[0] == "right"


def test_helpers_and_imports_are_found_in_any_order_and_nothing_else_is_run():
    use = "def fraction_removed(mask):\n    return math.fsum(part(mask)) / COUNT(mask)"
    helpers = (
        "COUNT = lambda mask: mask.numel()\ndef part(mask):\n    return [float(not kept) for kept in mask.flatten()]"
    )
    assert (
        one("raise SystemExit", use, "while True: pass", helpers, "import math", "1 / 0", "mask = 1 / 0")[0] == "right"
    )


def test_what_fills_a_helper_is_run_too_but_no_module_is_changed():
    use = "def fraction_removed(mask):\n    return 1 - helpers[0](mask) / table['size'](mask)"
    filled = "table, helpers = {}, []\nfor name in ['size']:\n    table[name] = lambda mask: mask.numel()"
    assert one(use, filled, "helpers.append(lambda mask: int(mask.sum()))", "other = []\nother.append(1 / 0)") == (
        "right",
        "",
    )
    cheat = "import torch\ntorch.equal = torch.allclose = lambda *_, **__: True\ntorch.Tensor.sum = None\n"
    assert one(cheat + "def fraction_removed(mask):\n    torch.equal(mask, mask)\n    return 0.0")[0] == "wrong"
    import torch

    assert not torch.equal(torch.zeros(1), torch.ones(1))


def test_another_name_is_told():
    assert one(RIGHT.replace("fraction_removed", "removed")) == (
        "not handed in",
        "no function has this name; there is removed",
    )


def test_what_students_got_has_no_hidden_tests_and_is_refused(tmp_path):
    (path,) = [path for path in OURS if path.stem == "row_pieces"]
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "HIDDEN" in cell.source:
            cell.source = cell.source.split("### BEGIN")[0]
    nbformat.write(notebook, tmp_path / "row_pieces.ipynb")
    with pytest.raises(ValueError, match=r"try no function \(scores-loops, keep-loops\).* name the lab's source"):
        grading.grade([], of=tmp_path / "row_pieces.ipynb")


def test_magics_lines_for_the_shell_and_broken_cells_do_not_stop_it():
    assert one("%matplotlib inline\n!ls", "%%time\n" + RIGHT, "def (:", "?print")[0] == "right"
    result, problem = one("def fraction_removed(mask)\n    return 1")
    assert result == "wrong"
    assert problem.startswith("code cell 1 is no Python")


def test_what_raises_where_it_is_defined_is_told_with_its_place():
    result, problem = one("x = 1\n\n@no_such_thing\n" + RIGHT)
    assert result == "wrong"
    assert problem == "code cell 1, line 4: NameError: name 'no_such_thing' is not defined"


def test_an_exception_is_told_with_the_learner_s_own_line():
    assert "at your line: return mask.no_such()" in one("def fraction_removed(mask):\n    return mask.no_such()")[1]


def test_a_lab_s_points_and_its_first_failing_test():
    (path,) = [path for path in OURS if path.stem == "worst_layer"]
    code = "def fairest_within(costs, distortions, budget):\n    return 4.0, [0, 1]"
    waiting = [{"name": question.name, "tests": question.tests} for question in grading.questions(path)]
    first, second = graded(*grading.given(path), code, waiting=waiting)
    assert (first["result"], first["of"]) == ("not handed in", 4.0)
    assert (second["result"], second["points"], second["of"]) == ("partly right", 1.0, 4.0)
    assert "IndexError" in second["problem"] or "budget 2" in second["problem"]


# ── as a command ──────────────────────────────────────────────────────────────────────────────────────────────────


def write(path, *cells):
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), path)
    return str(path)


def test_one_student_s_endless_loop_or_broken_file_does_not_stop_the_others(tmp_path, capsys):
    (tmp_path / "broken.ipynb").write_text('{"cells": [')
    endless = "def conv_macs(*_):\n    while True:\n        try: input()\n        except BaseException: pass"
    paths = [
        str(tmp_path / "broken.ipynb"),
        write(tmp_path / "endless.ipynb", endless, "import os\ndef bitmap_bytes(weight):\n    os._exit(0)"),
        write(tmp_path / "right.ipynb", "print(1)", RIGHT, "fraction_removed = check(fraction_removed)"),
        write(tmp_path / "empty.ipynb", "x = 1"),
    ]
    assert cli.main(["grade", *paths, "--time-limit", "5", "--out", str(tmp_path / "grades.csv")]) == 1
    table = pd.read_csv(tmp_path / "grades.csv", keep_default_na=False)
    assert list(table.columns) == grading.COLUMNS
    results = {(row.notebook, row.exercise): row.result for row in table.itertuples()}
    assert results == {
        (paths[0], "(all)"): "not graded",
        (paths[1], "bitmap_bytes"): "wrong",
        (paths[1], "conv_macs"): "time limit",
        (paths[2], "fraction_removed"): "right",
        (paths[3], "(all)"): "not graded",
    }
    told = dict(zip(table["exercise"] + table["notebook"], table["problem"], strict=True))
    assert "ended the process" in told["bitmap_bytes" + paths[1]]
    assert "longer than 5 s" in told["conv_macs" + paths[1]]
    assert "--of" in told["(all)" + paths[3]]
    out = capsys.readouterr().out
    assert f"{paths[2]}: 1 of 1 points" in out


BROKEN = {
    "empty": (b"", "ValueError: the file is empty"),
    "utf-16": ("{}".encode("utf-16"), "ValueError: it is not UTF-8 text"),
    "no notebook": (b"{}", "ValueError: it is JSON, but no notebook"),
    "a list": (b"[1]", "ValueError: it is JSON, but no notebook"),
    "cut off": (b'{"cells": [', "ValueError: it is no JSON"),
}


@pytest.mark.parametrize(("content", "says"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_told_in_words_and_counts_as_no_points_of_all(content, says, tmp_path):
    (tmp_path / "it.ipynb").write_bytes(content)
    (row,) = grading.grade([tmp_path / "it.ipynb"], of=ZERO).itertuples()
    assert row.problem.startswith(says)
    assert (row.points, row.of) == (0.0, 1.0)
    (row,) = grading.grade([tmp_path], of=ZERO).itertuples()
    assert "is a folder; name the notebooks in it" in row.problem


def test_a_mark_before_the_text_and_doubled_cells_do_no_harm(tmp_path, recwarn):
    notebook = new_notebook(cells=[new_code_cell(RIGHT, id="a"), new_code_cell(RIGHT, id="a")])
    (tmp_path / "it.ipynb").write_text(json.dumps(notebook), encoding="utf-8-sig")
    recwarn.clear()
    assert list(grading.grade([tmp_path / "it.ipynb"])["result"]) == ["right"]
    assert not [w for w in recwarn if "cell id" in str(w.message)]


def test_an_interruption_loses_nothing_that_was_graded(tmp_path, monkeypatch, capsys):
    paths, graded_before = [write(tmp_path / f"{name}.ipynb", RIGHT) for name in "ab"], grading._grade

    def stops(path, *rest):
        if path.stem == "b":
            raise KeyboardInterrupt
        return graded_before(path, *rest)

    monkeypatch.setattr(grading, "_grade", stops)
    assert cli.main(["grade", *paths, "--out", str(tmp_path / "grades.csv")]) == 130
    assert list(pd.read_csv(tmp_path / "grades.csv")["notebook"]) == paths[:1]
    assert "What was graded until then is in" in capsys.readouterr().err


def test_wrong_answers_are_a_result_and_json_is_written(tmp_path, capsys):
    path = write(tmp_path / "none.ipynb", "x = 1")
    assert cli.main(["grade", path, "--of", str(ZERO), "--out", str(tmp_path / "grades.json")]) == 0
    (row,) = json.loads((tmp_path / "grades.json").read_text())
    assert (row["exercise"], row["result"], row["points"]) == ("fraction_removed", "not handed in", 0.0)
    assert "not handed in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["x.ipynb", "--out", "grades.txt"], "ends in .csv or .json, not 'grades.txt'"),
        (["x.ipynb", "--time-limit", "0"], "above 0, not 0"),
        (["x.ipynb", "--of", "no_such.ipynb"], "no_such.ipynb"),
        (["x.ipynb", "--of", __file__], "JSON"),
        ([], "NOTEBOOK"),
    ],
)
def test_wrong_usage_is_told_in_one_line(line, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["grade", *line])
    assert stopped.value.code == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert says in told
