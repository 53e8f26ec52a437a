"""`python -m pruninglab site`: the HTML book, with executed chapters, search, references and the library."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from pruninglab import book
from pruninglab.book import BOOK
from pruninglab.notebook import ledger, site_pages
from pruninglab.notebook.site_pages import Run

SITE = BOOK.parent / "build" / "site"
FAST = ledger.STORE / "fast"
PDF = "pruning-lab.pdf"
NEEDED = (
    "sphinx",
    "myst_nb",
    "pydata_sphinx_theme",
    "sphinx-mathjax-offline",
    "sphinxcontrib.bibtex",
    "sphinx_codeautolink",
)
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
    "microsoft-edge",
)


def command(out: Path = SITE, *, fast: bool = False, run: bool = True, pdf: bool = False) -> int:
    """What `python -m pruninglab site` does; returns the exit code (0: well; 1: a chapter failed, or Sphinx warned)."""
    try:
        check_installed()
        browser = find_browser() if pdf else None
        store, parameters = (FAST, {"fast": True}) if fast else (ledger.STORE, None)
        if run:
            ledger.run(store, parameters, copies=True)
        runs = found(store)
        warnings = build(runs, out, fast=fast, browser=browser)
    except (ImportError, FileNotFoundError, ValueError, RuntimeError) as problem:
        print(problem, file=sys.stderr)
        return 1
    failed = {run.chapter.path.stem: run.result["error"] for run in runs if run.result and run.result["error"]}
    for name, error in failed.items():
        print(f"{name} failed: {error}")
    print(warnings, end="", file=sys.stderr)
    print(f"the book is in {out}; open {out / 'index.html'}")
    return int(bool(failed or warnings))


def check_installed() -> None:
    """Raises ImportError, with what to install, unless all that the site needs is there."""
    missing = [name for name in NEEDED if find_spec(name.split(".")[0]) is None or find_spec(name) is None]
    if missing:
        raise ImportError(f"the HTML book needs {', '.join(missing)}: pip install 'pruninglab[site]'")


def found(store: Path = ledger.STORE) -> list[Run]:
    """All chapters in order, each with the executed copy and the result of this very code, if there is one."""
    runs = []
    for chapter in book.written():
        result, copy = ledger.found(chapter, store), ledger.executed(chapter, store)
        there = result is not None and copy.exists()
        runs.append(Run(chapter, copy if there else None, result if there else None))
    return runs


def build(
    runs: list[Run], out: Path = SITE, *, fast: bool = False, browser: str | None = None, library: bool = True
) -> str:
    """Make the HTML book; what is in its folder is replaced.

    Args:
        runs: the chapters with what came of them.
        out: where the pages go.
        fast: whether the runs are of the quick version.
        browser: a Chromium to make the print version with; None for none.
        library: whether to make the reference of the library too, which takes a minute.

    Returns:
        Sphinx's warnings, a line each; "" if all is well.

    Raises:
        ImportError: Sphinx, or an extension, is not installed.
        RuntimeError: Sphinx or the browser failed.
        ValueError: the folder holds something else.
    """
    check_installed()
    if out.exists() and any(out.iterdir()) and not (out / "searchindex.js").exists():
        raise ValueError(f"{out} holds something that is no HTML book; it would be lost. Name another folder")
    with TemporaryDirectory(prefix="pruninglab-site-") as scratch:
        folder = Path(scratch)
        downloads = folder / "extra" / "downloads"
        downloads.mkdir(parents=True)
        site_pages.write(folder / "pages", runs, fast=fast, pdf=browser is not None, library=library)
        for name in [*(run.chapter.path for run in runs), folder / "pages" / "references.bib"]:
            shutil.copy(name, downloads)
        warnings = ""
        if browser is not None:
            site_pages.write(folder / "print-pages", runs, fast=fast, library=False, printed=True)
            warnings += _sphinx("singlehtml", folder / "print-pages", folder / "print", folder, fast)
            _print(folder / "print" / "index.html", folder / "extra" / PDF, browser)
        warnings += _sphinx("html", folder / "pages", folder / "html", folder, fast)
        if out.exists():
            shutil.rmtree(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder / "html", out)
    return warnings


def _sphinx(builder: str, pages: Path, out: Path, folder: Path, fast: bool) -> str:
    """Run Sphinx, in a process of its own since its extensions change the one that they are in; returns warnings."""
    told, trees = folder / f"{builder}.txt", folder / f"{builder}-trees"
    settings = ["-D", f"html_theme_options.announcement={site_pages.QUICK}"] * fast
    options = ["-b", builder, "-q", "-d", str(trees), "-w", str(told), *settings, str(pages), str(out)]
    done = subprocess.run([sys.executable, "-m", "sphinx", *options], capture_output=True, text=True)
    warnings = told.read_text(encoding="utf-8").replace(f"{pages}/", "") if told.exists() else ""
    if done.returncode:
        raise RuntimeError(f"Sphinx failed:\n{done.stderr[-4000:]}")
    return warnings


def find_browser() -> str:
    """The path of a Chromium: `$CHROMIUM`, or the first that is found.

    Raises:
        FileNotFoundError: there is none.
    """
    asked = os.environ.get("CHROMIUM")
    paths = (shutil.which(name) for name in ([asked] if asked else BROWSERS))
    path = next((path for path in paths if path), None)
    if path is None:
        looked = f"$CHROMIUM is {asked!r}, which is no program" if asked else f"none of {', '.join(BROWSERS)} is found"
        raise FileNotFoundError(f"this needs Chromium, and {looked}; install it, or name it: CHROMIUM=/path/to/it")
    return path


def _print(page: Path, pdf: Path, browser: str) -> None:
    """Let Chromium print a page; it waits until the mathematics is set."""
    with TemporaryDirectory() as profile:
        options = ["--headless", "--disable-gpu", "--no-pdf-header-footer", f"--user-data-dir={profile}"]
        options += ["--no-sandbox"] * (getattr(os, "geteuid", lambda: 1)() == 0)  # it has none for root
        wait = ["--virtual-time-budget=120000", "--run-all-compositor-stages-before-draw"]
        done = subprocess.run(
            [browser, *options, *wait, f"--print-to-pdf={pdf}", page.as_uri()], capture_output=True, text=True
        )
    if done.returncode or not pdf.exists():
        raise RuntimeError(f"{browser} made no PDF:\n{done.stderr[-2000:]}")
