"""What stands around the code: the packages, the two commands, the README."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import lab
from pruninglab.cli import main
from pruninglab.notebook import readme

ROOT = Path(__file__).resolve().parent.parent


def names(requirements):
    return {re.split(r"[<>=!~\[ ]", text)[0] for text in requirements}


def test_conda_and_pip_name_the_same_packages_and_the_same_oldest_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    called = {"pytorch-cpu": "torch", "matplotlib-base": "matplotlib"}  # conda-forge has its own names for some
    theirs = {called.get(re.split(r"[>=]", text)[0], re.split(r"[>=]", text)[0]): text for text in conda}
    ours = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    assert set(theirs) - {"python", "pip"} == names(ours)
    for text in ours:
        name, oldest = text.split(">=")
        assert theirs[name].endswith(f">={oldest}"), name
    assert project["requires-python"] in theirs["python"]


def test_the_readme_shows_what_the_code_makes():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.chapter_map() in text
    assert (ROOT / "images" / "pruned.png").read_bytes().startswith(b"\x89PNG")
    for name in ("picture", "map", "results"):
        assert readme.fill(text, name, "x").count(f"<!-- made: {name} -->\nx\n<!-- end -->") == 1
    with pytest.raises(ValueError, match="no marks for 'nothing'"):
        readme.fill(text, "nothing", "x")


def test_set_up_is_done_once_for_each_pyproject(tmp_path, monkeypatch):
    root, installs = tmp_path, []
    environment = root / ".venv"
    python = environment / "bin" / "python"
    (root / "pyproject.toml").write_text("a")
    for name, value in {"ROOT": root, "VENV": environment, "PYTHON": python, "STAMP": environment / "stamp"}.items():
        monkeypatch.setattr(lab, name, value)

    def create(path, with_pip):
        python.parent.mkdir(parents=True)
        python.touch()

    class Done:
        returncode = 0

    monkeypatch.setattr(lab.venv, "create", create)
    monkeypatch.setattr(lab.subprocess, "run", lambda command, **_: installs.append(command) or Done)
    lab.set_up()
    lab.set_up()
    assert len(installs) == 1
    overrides = json.loads((environment / "share/jupyter/lab/settings/overrides.json").read_text())
    assert overrides["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"
    page = json.loads((environment / "etc/jupyter/labconfig/page_config.json").read_text())
    assert page["disabledExtensions"] == {"@jupyter/nbgrader": True}
    server = json.loads((environment / "etc/jupyter/jupyter_server_config.json").read_text())
    assert set(server["ServerApp"]["jpserver_extensions"].values()) == {False}
    (root / "pyproject.toml").write_text("b")
    lab.set_up()
    assert len(installs) == 2


def test_a_failed_set_up_says_so_and_is_tried_again(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("a")
    (tmp_path / "python").touch()
    values = {"ROOT": tmp_path, "VENV": tmp_path, "PYTHON": tmp_path / "python", "STAMP": tmp_path / "stamp"}
    for name, value in values.items():
        monkeypatch.setattr(lab, name, value)

    class Failed:
        returncode = 1

    monkeypatch.setattr(lab.subprocess, "run", lambda *_, **__: Failed)
    with pytest.raises(SystemExit, match="needs a network this once"):
        lab.set_up()
    assert not (tmp_path / "stamp").exists()


SHARED = ["-n", "2", "--dist", "loadfile"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ([], ["-m", "jupyterlab", "book/00_start_here.ipynb", "--notebook-dir=."]),
        (
            ["open", "--no-browser"],
            ["-m", "jupyterlab", "book/00_start_here.ipynb", "--notebook-dir=.", "--no-browser"],
        ),
        (["test"], ["-m", "pytest", *SHARED]),
        (["test", "-k", "masks"], ["-m", "pytest", *SHARED, "-k", "masks"]),
        (["test", "--slow"], ["-m", "pytest", *SHARED, "-m", "not browser"]),
        (["test-browser"], ["-m", "pytest", "tests/browser", "-m", "browser"]),
        (["test-browser", "--fast"], ["-m", "pytest", "tests/browser", "-m", "browser and not slow"]),
        (["book", "--fast"], ["-m", "pruninglab", "book", "--fast"]),
        (["student"], ["-m", "pruninglab", "student"]),
        (["solutions", "here"], ["-m", "pruninglab", "solutions", "here"]),
    ],
)
def test_the_commands_run_what_they_say(line, expected, monkeypatch):
    ran = []
    monkeypatch.setattr(lab, "set_up", lambda: None)
    monkeypatch.setattr(lab, "need", lambda *_: None)
    monkeypatch.setattr(lab, "run", lambda *command: ran.append(list(command)) or 0)
    monkeypatch.setattr(sys, "argv", ["lab", *line])
    assert lab.main() == 0
    assert ran == [expected]


def test_an_extra_is_installed_only_where_its_module_is_missing(monkeypatch):
    monkeypatch.setattr(lab, "PYTHON", Path(sys.executable))
    ran, real = [], lab.run

    def run(*command):
        if command[0] == "-c":
            return real(*command)
        ran.append(command)
        return int("nothing" in command[-1])

    monkeypatch.setattr(lab, "run", run)
    lab.need("test", "pytest")
    assert ran == []
    lab.need("some", "no_such_module")
    assert ran[0][-1] == ".[some]"
    with pytest.raises(SystemExit, match="extra 'nothing' could not be installed"):
        lab.need("nothing", "no_such_module")


def test_the_book_command_runs_every_chapter_and_tells_how_long_it_took(tmp_path, monkeypatch, capsys):
    import nbformat

    from pruninglab import book

    folder = tmp_path / "book"
    folder.mkdir()
    chapters = []
    for number, code in enumerate(("x = 1", "raise ValueError('broken on purpose')")):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = folder / f"{number}.ipynb"
        nbformat.write(notebook, path)
        chapters.append(book.Chapter(number, "title", "answer", path))
    monkeypatch.setattr(book, "chapters", lambda: chapters[:1])
    assert main(["book", "--out", str(tmp_path / "out"), "--fast"]) == 0
    assert "ok" in capsys.readouterr().out
    monkeypatch.setattr(book, "chapters", lambda: chapters)
    assert main(["book", "--out", str(tmp_path / "out")]) == 1
    assert "ValueError: broken on purpose" in capsys.readouterr().out
    assert (tmp_path / "out" / "1.ipynb").exists()


def test_a_wrong_command_is_told_the_right_ones(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["boook"])
    assert stopped.value.code == 2
    assert "book" in capsys.readouterr().err
