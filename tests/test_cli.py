"""`python -m pruninglab`: what it prints, what it writes, and how it says that something is wrong."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pandas as pd
import pytest
import torch
from helpers import make_task

import pruninglab.cli as cli
from pruninglab import compare, runs
from pruninglab.cli import main
from pruninglab.compare import BASELINES
from pruninglab.criteria import CRITERIA
from pruninglab.fingerprint import fingerprint
from pruninglab.loading import load_function
from pruninglab.tasks import TASKS

SCORES = """
from functools import partial

def my_score(weight, input_norm):
    return weight.abs() * input_norm.sqrt()

def broken(weight):
    raise ZeroDivisionError("on purpose")

def _helper(weight):
    return weight

powered = partial(lambda weight, power: weight.abs() ** power, power=2)
number = 3
"""
QUICK = ["--task", "tiny", "--sparsity", "0.5", "0.9", "--seeds", "3"]


@pytest.fixture(autouse=True)
def _own_place(data_folder, monkeypatch):
    """A cache of its own, a task that trains in a blink, and modules found where they were before."""
    monkeypatch.setitem(TASKS, "tiny", make_task())
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(data_folder)


@pytest.fixture
def scores(tmp_path):
    path = tmp_path / "my_file.py"
    path.write_text(SCORES)
    return path


def refused(capsys, *line: object) -> str:
    """The one line of somebody who used it wrongly."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in line])
    assert stopped.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    return told.err


# ── compare ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_function_in_a_file_is_compared(scores, capsys):
    assert main(["compare", f"{scores}:my_score", "taylor", *QUICK]) == 0
    told = capsys.readouterr().out
    assert "Test accuracy in percent, mean ± standard deviation over 3 seeds." in told
    for name in ("my_score", "taylor", "magnitude", "random", "dense"):
        assert f" {name} " in told
    assert "my_score minus others" in told
    assert "taylor minus others" not in told
    assert told.count("cannot be told") + told.count("better") + told.count("worse") >= 4


def test_the_rows_are_those_of_compare(scores, tmp_path):
    path = tmp_path / "deep" / "rows.csv"
    line = ["--unit", "row", "--allocation", "uniform", "--schedule", "one_shot", "--recovery", "none", "finetune"]
    assert main(["compare", f"{scores}:my_score", *QUICK, *line, "--metrics", "worst_class", "--csv", str(path)]) == 0

    def my_score(weight, input_norm):
        return weight.abs() * input_norm.sqrt()

    answers = {"unit": "row", "allocation": "uniform", "recovery": [None, "finetune"], "metrics": "worst_class"}
    table = compare(my_score, task=TASKS["tiny"], sparsity=[0.5, 0.9], seeds=3, **answers, cache=False)
    seconds = ["seconds_pruning", "seconds_recovery"]
    found = pd.read_csv(path, keep_default_na=False)
    pd.testing.assert_frame_equal(found.drop(columns=seconds), table.drop(columns=seconds), check_dtype=False)


def test_without_a_function_the_criteria_that_were_named_are_compared(capsys):
    assert main(["compare", "taylor", "magnitude", *QUICK]) == 0
    told = capsys.readouterr().out
    assert "taylor minus others" in told
    assert "magnitude minus others" not in told


def test_other_files_get_what_is_printed_and_a_page(scores, tmp_path, capsys):
    markdown, page = tmp_path / "told.md", tmp_path / "page.html"
    line = [f"{scores}:my_score", f"{scores}:powered", *QUICK, "--markdown", markdown, "--report", page]
    assert main(["compare", *map(str, line)]) == 0
    told = markdown.read_text(encoding="utf-8")
    assert "| criterion | accuracy, %: dense |" in told
    assert "| my_score |" in told
    assert told.count(" minus others") == 2
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_run_that_fails_is_told_and_the_others_go_on(scores, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    line = [f"{scores}:my_score", f"{scores}:broken", *QUICK, "--csv", path]
    assert main(["compare", *map(str, line)]) == 1
    told = capsys.readouterr()
    assert "ZeroDivisionError: on purpose" in told.out
    assert "Warning" not in told.err
    rows = pd.read_csv(path).set_index("criterion")
    assert rows.loc["broken", "accuracy"].isna().all()
    assert rows.drop("broken")["accuracy"].notna().all()


def test_a_function_reaches_other_processes(scores, tmp_path):
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    line = ["compare", f"{scores}:my_score", f"{scores}:powered", *QUICK, "--no-cache", "--csv"]
    assert main([*line, str(here)]) == 0
    assert main([*line, str(there), "--jobs", "2"]) == 0
    seconds = ["seconds_pruning", "seconds_recovery"]
    one, two = (pd.read_csv(path).drop(columns=seconds) for path in (here, there))
    pd.testing.assert_frame_equal(one, two)


# ── interrupted ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_interrupted_goes_on(capsys, monkeypatch):
    true, done = runs.do, []

    def do(some):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.extend(some)
        return true(some)

    module = sys.modules["pruninglab.compare"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "do", do)
        assert main(["compare", *QUICK]) == 130
    assert "Run the same command again: it goes on where it stopped." in capsys.readouterr().err
    rest = []
    monkeypatch.setattr(module, "do", lambda some: rest.extend(some) or true(some))
    assert main(["compare", *QUICK]) == 0
    assert len(rest) == len(BASELINES) * 2 * 3 - 4
    monkeypatch.setattr(module, "do", do)
    assert main(["compare", *QUICK, "--no-cache"]) == 130
    assert "Nothing was stored" in capsys.readouterr().err


def test_ctrl_c_in_a_shell(tmp_path, data_folder):
    (tmp_path / "slow.py").write_text(
        "import time, pathlib\n"
        "from helpers import make_task\n"
        "from pruninglab.tasks import TASKS\n"
        "TASKS['tiny'] = make_task()\n"
        "def slow(weight):\n"
        f"    pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "    time.sleep(60)\n"
        "    return weight.abs()\n"
    )
    line = [sys.executable, "-m", "pruninglab", "compare", f"{tmp_path}/slow.py:slow", *QUICK]
    paths = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    environment = os.environ | {"TQDM_DISABLE": "1", "PYTHONPATH": paths}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where the tests run in the background
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, **pipes, env=environment, preexec_fn=heard) as process:
        end = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert out == ""
    assert err == "\nInterrupted. Run the same command again: it goes on where it stopped.\n"


# ── wrong usage ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["taylr"], "unknown criterion 'taylr'. Did you mean 'taylor'?"),
        (["nowhere.py:f"], "there is no Python file 'nowhere.py'"),
        (["my_file:my_score"], "there is no Python file 'my_file'"),
        (["my_file.py"], "name the function as well: my_file.py:my_score, my_file.py:broken, "),
        (["my_file.py:my_scor"], "unknown function of my_file.py: 'my_scor'. Did you mean 'my_score'? Known: broken,"),
        (["my_file.py:number"], "number in my_file.py is no function but 3; functions: my_score, broken, powered"),
        (["my_file.py:my_score", "my_file.py:my_score"], "each criterion needs a name of its own"),
        (["--task", "digits"], "unknown task 'digits'"),
        (["--sparsity", "half"], "argument --sparsity: invalid float value: 'half'"),
        (["--sparsity", "1.5"], "1.5"),
        (["--seeds", "0"], "at least one seed"),
        (["--seeds", "-1"], "at least one seed"),
        (["--jobs", "0"], "n_jobs"),
        (["--jobs", "2", "--cluster", "x"], "not allowed with argument"),
        (["--unit", "2;4"], "unknown unit '2;4'"),
        (["--unit", "2:4", "--schedule", "iterative"], "schedule must be 'one_shot'"),
        (["--recovery", "fintune"], "Did you mean 'finetune'?"),
        (["--metrics", "wurst_class"], "Did you mean 'worst_class'?"),
        (["--time-limit", "0"], "above 0"),
        (["--csv", "."], "cannot write to '.'"),
        (["--report", "my_file.py/report.html"], "cannot write to 'my_file.py/report.html'"),
        (["--sparsty", "0.5"], "unrecognized arguments: --sparsty"),
    ],
)
def test_wrong_usage_is_told_in_a_line_before_anything_runs(line, expected, scores, capsys, monkeypatch):
    monkeypatch.chdir(scores.parent)
    monkeypatch.setattr(sys.modules["pruninglab.compare"], "do", lambda run: pytest.fail("it ran"))
    assert expected in refused(capsys, "compare", *line)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\ny = x +\n", "bad.py, line 2: SyntaxError: invalid syntax"),
        ("import nothing_of_this\n", "bad.py, line 1: ModuleNotFoundError: No module named 'nothing_of_this'"),
        ("def f(w):\n    return g(w)\n\nf(2)\n", "bad.py, line 2: NameError: name 'g' is not defined"),
        ("raise ValueError('one\\ntwo')\n", "bad.py, line 1: ValueError: one two"),
        ("import sys\nsys.exit(3)\n", "bad.py, line 2: SystemExit: 3"),
        ("import json\njson.loads('{')\n", "bad.py, line 2: json.decoder.JSONDecodeError"),
        ("x = '\0'\n", "bad.py: "),
        ("x = 1\n", "bad.py defines no function"),
    ],
)
def test_a_file_that_is_broken_says_where(source, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text(source)
    assert expected in refused(capsys, "compare", "bad.py:f")


def test_wrong_commands(capsys):
    assert "invalid choice: 'compair'" in refused(capsys, "compair")
    assert "command" in refused(capsys)
    assert "unrecognized arguments" in refused(capsys, "tasks", "more")


def test_a_cluster_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(cli, "CONNECTING", 1)
    expected = "no Dask scheduler answers at 'tcp://127.0.0.1:9'"
    try:
        import distributed  # noqa: F401
    except ImportError:
        expected = "--cluster needs Dask: pip install"
    assert expected in refused(capsys, "compare", "--task", "tiny", "--cluster", "tcp://127.0.0.1:9")


# ── functions of a file ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_function_is_the_files_as_it_is_now(tmp_path):
    """Also where the file is called like a part of Python, and changes within a second to something of one length."""
    path, prints, values = tmp_path / "random.py", [], []
    for factor in (2, 3, 2):
        path.write_text(f"FACTOR = {factor}\ndef score(weight):\n    return weight * FACTOR\n")
        score = load_function(f"{path}:score")
        prints.append(fingerprint(score))
        values.append(score(torch.ones(1)).item())
    assert values == [2, 3, 2]
    assert prints[0] == prints[2] != prints[1]
    assert "<random.py>" not in sys.modules


def test_a_file_may_import_its_neighbours_and_make_data_classes(tmp_path):
    (tmp_path / "neighbour_of_my_file.py").write_text("def twice(weight):\n    return 2 * weight\n")
    (tmp_path / "my_file.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from neighbour_of_my_file import twice\n"
        "@dataclass\n"
        "class Scaled:\n"
        "    factor: float = 3.0\n"
        "    def __call__(self, weight):\n"
        "        return self.factor * twice(weight)\n"
        "score = Scaled()\n"
    )
    assert load_function(f"{tmp_path}/my_file.py:score")(torch.ones(1)).item() == 6
    with pytest.raises(ValueError, match=r"unknown function of .*Known: score\."):
        load_function(f"{tmp_path}/my_file.py:nothing")
    sys.modules.pop("neighbour_of_my_file")


# ── listings ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("tasks", ["digits-mlp", "1,797 handwritten digits"]),
        ("criteria", ["wanda", "weight, input_norm", "(Sun et al. 2024, eq. 1)", "Hassibi & Stork 1993"]),
        ("statistics", ["input_norm", "hessian_grad", "flow_grad"]),
        ("units", ["2:4", "channel"]),
        ("allocations", ["erk", "Mocanu et al. 2018", "rate_distortion"]),
        ("schedules", ["rigl", "Evci et al. 2020", "one_shot"]),
        ("recoveries", ["none", "finetune", "Han et al. 2015"]),
        ("metrics", ["worst_class", "calibration_error", "Guo et al. 2017"]),
        ("systems", ["sparsegpt", "works", "planned", "Frantar"]),
    ],
)
def test_what_there_is_is_listed(command, expected, capsys):
    assert main([command]) == 0
    told = capsys.readouterr().out
    for text in expected:
        assert text in told


def test_a_reader_who_has_enough_is_no_error():
    """`python -m pruninglab systems | head -1`: the list is longer than a pipe holds."""
    line = [sys.executable, "-m", "pruninglab", "systems"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_each_criterion_is_listed_with_what_it_needs(capsys):
    main(["criteria"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(CRITERIA)
    assert all(len(line.split()) > 4 for line in lines)


def test_fresh_seeds_and_what_is_left_out(tmp_path, scores):
    path = tmp_path / "rows.csv"
    line = ["--first-seed", "7", "--exclude", "fc1.weight", "--calibration", "8", "--csv", str(path)]
    assert main(["compare", f"{scores}:my_score", *QUICK, *line]) == 0
    rows = pd.read_csv(path)
    assert rows["seed"].min() == 7
