"""One server and one browser for all tests; without Playwright or Chromium they are skipped, and it is said why."""

import os
from pathlib import Path

import pytest
from driving import server, watch

from pruninglab.notebook.site import find_browser


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium, without a window."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright: pip install 'pruninglab[browser]'"
    )
    try:
        found = find_browser()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    root = getattr(os, "geteuid", lambda: 1)() == 0  # whom Chromium's sandbox does not serve
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=["--no-sandbox"] if root else [])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):
    """Address, token and folder of a running JupyterLab."""
    folder = tmp_path_factory.mktemp("book")
    line = ["-m", "jupyterlab", "--no-browser", f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"]
    with server(line, folder, tmp_path_factory.mktemp("home")) as (address, token):
        yield address, token, folder


@pytest.fixture(scope="module")
def page(browser):
    """A fresh page, watched, and its list of errors."""
    page = browser.new_page(viewport={"width": 1280, "height": 2000})
    page.set_default_timeout(30e3)
    errors = watch(page)
    yield page, errors
    page.close()


@pytest.fixture(scope="session")
def screenshots():
    """Where pictures for people go."""
    folder = Path(__file__).parents[2] / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
