"""`python -m lab`, and what a reader sees first: chapter 0, ready to run, and nobody asks anything."""

import shutil
import sys
from pathlib import Path

import pytest
from driving import server, watch

import lab as command
from pruninglab.book import BOOK

pytestmark = pytest.mark.browser
RECORD = "#!/bin/sh\nprintf %s \"$1\" > '{}'\n"  # a browser that only notes what it is asked to open


@pytest.fixture
def line(monkeypatch):
    """What `python -m lab` calls Python with."""
    lines = []
    monkeypatch.setattr(command, "set_up", lambda: None)
    monkeypatch.setattr(command, "run", lambda *line: lines.append(line) or 0)
    monkeypatch.setattr(sys, "argv", ["lab"])
    command.main()
    return lines[0]


def test_it_opens_chapter_0_with_a_kernel_and_asks_nothing(line, browser, tmp_path, screenshots, monkeypatch):
    overrides = Path(sys.prefix) / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    if not overrides.exists():
        pytest.skip(f"not the environment that `python -m lab` sets up: {overrides} is missing")
    shutil.copytree(BOOK, tmp_path / "project" / "book")
    asked, opener, home = tmp_path / "asked", tmp_path / "opener", tmp_path / "home"
    home.mkdir()
    opener.write_text(RECORD.format(asked))
    opener.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{opener} %s")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    errors = watch(page)
    with server(line, tmp_path / "project", home):
        for _ in range(60):
            if asked.exists() and asked.read_text():
                break
            page.wait_for_timeout(500)
        page.goto(asked.read_text())
        page.wait_for_selector(".jp-Notebook h1", timeout=120e3)
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=120e3)
        page.wait_for_timeout(3000)  # what comes late would be seen
        tabs = page.locator("#jp-main-dock-panel .lm-TabBar-tabLabel").all_inner_texts()
        page.screenshot(path=screenshots / "first-minute.png")
        assert tabs == ["00_start_here.ipynb"]
        assert page.locator(".jp-Notebook h1").first.inner_text().startswith("0 · Start here")
        assert page.locator(".jp-Dialog, .Toastify__toast").count() == 0
        assert page.evaluate("window.seen") == []
        assert errors == []
    page.close()
