"""The commands of the README, with or without make. Needs nothing but Python itself.

    python -m lab            set up if need be, and open JupyterLab on the book
    python -m lab test       set up if need be, and pass the tests (--slow: the slow ones too)
    python -m lab test-browser
                             the same, and pass the tests that drive JupyterLab in the system's Chromium, about half
                             an hour (--fast: chapter 0 and each kind of widget); pictures go to build/screenshots
    python -m lab book       set up if need be, and run every chapter into build/book (--fast: in a quick version)
    python -m lab ledger     set up if need be, and test every claim of the book anew into book/ledger.md, about
                             20 minutes the first time (--check: only mark there what is of another version)
    python -m lab student    set up if need be, and write the book without its solutions into build/student
    python -m lab solutions  the same with every exercise solved, into build/solutions
    python -m lab site       set up if need be, and make the HTML book in build/site, from the ledger's runs (--fast:
                             from quick ones; --pdf: a print version too)

"Set up" makes a virtual environment in `.venv` and installs the project into it, once. Then nothing needs a network.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "pruninglab-setup"
# JupyterLab's defaults in this environment: it asks nothing and looks nothing up when it starts.
QUIET = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
# nbgrader's menus are for teachers, who use it from a terminal here; they slow the start, and warn of a missing course.
NBGRADER = [f"nbgrader.server_extensions.{name}" for name in ("assignment_list", "course_list", "formgrader")]
NBGRADER += ["nbgrader.server_extensions.validate_assignment"]
SETTINGS = {
    "share/jupyter/lab/settings/overrides.json": QUIET,
    "etc/jupyter/jupyter_server_config.json": {"ServerApp": {"jpserver_extensions": dict.fromkeys(NBGRADER, False)}},
    "etc/jupyter/labconfig/page_config.json": {"disabledExtensions": {"@jupyter/nbgrader": True}},
}


def set_up() -> None:
    """Make the virtual environment, unless it is there and was made for this `pyproject.toml`."""
    if sys.version_info < (3, 11):  # noqa: UP036  this file is what an older Python gets to see
        sys.exit(f"Pruning Lab needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    made_for = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == made_for:
        return
    print("Setting up .venv: this downloads PyTorch and JupyterLab and takes a few minutes, once.", flush=True)
    if not PYTHON.exists():
        try:
            venv.create(VENV, with_pip=True)
        except subprocess.CalledProcessError:  # ensurepip is missing; an environment without pip must not stay
            shutil.rmtree(VENV, ignore_errors=True)
            sys.exit(f"{sys.executable} cannot make an environment with pip: on Debian or Ubuntu install python3-venv.")
    install = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "-q", "-e", f"{ROOT}[test,site]"]
    if subprocess.run(install).returncode:
        sys.exit("The set-up failed; what pip says above tells why. It needs a network this once; then run this again.")
    for name, settings in SETTINGS.items():
        (VENV / name).parent.mkdir(parents=True, exist_ok=True)
        (VENV / name).write_text(json.dumps(settings, indent=2))
    STAMP.write_text(made_for)


def need(extra: str, module: str) -> None:
    """Install an extra of the project into the environment, unless its module is there."""
    if run("-c", f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"):
        print(f"Installing what {extra} needs into .venv, once.", flush=True)
        if run("-m", "pip", "install", "--disable-pip-version-check", "-q", "-e", f".[{extra}]"):
            sys.exit(f"The extra {extra!r} could not be installed; what pip says above tells why.")


def run(*command: str) -> int:
    """Run Python of the environment on the project."""
    return subprocess.run([PYTHON, *command], cwd=ROOT).returncode


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m lab", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    plain = ("ledger", "student", "solutions")  # commands of the library, which take its options
    choices = ("open", "setup", "test", "test-browser", "book", "site", *plain)
    parser.add_argument("what", nargs="?", default="open", choices=choices)
    parser.add_argument("--slow", action="store_true", help="test: the slow tests too")
    parser.add_argument(
        "--fast", action="store_true", help="book, site: with fewer seeds and steps; test-browser: two minutes of it"
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="open: print the address instead of opening a browser"
    )
    options, rest = parser.parse_known_args()
    set_up()
    if options.what == "test":
        shared = ["-n", "2", "--dist", "loadfile"]  # two processes; a notebook's cells stay in one of them
        return run("-m", "pytest", *shared, *(["-m", "not browser"] if options.slow else []), *rest)
    if options.what == "test-browser":
        need("browser", "playwright")
        return run("-m", "pytest", "tests/browser", "-m", "browser and not slow" if options.fast else "browser", *rest)
    if options.what in ("book", "site"):
        return run("-m", "pruninglab", options.what, *(["--fast"] if options.fast else []), *rest)
    if options.what in plain:
        return run("-m", "pruninglab", options.what, *rest)
    if options.what == "open":
        browser = ["--no-browser"] if options.no_browser else []
        return run("-m", "jupyterlab", "book/00_start_here.ipynb", "--notebook-dir=.", *browser, *rest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
