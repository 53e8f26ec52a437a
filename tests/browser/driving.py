"""JupyterLab as a reader has it: a server of its own, and a notebook that is opened, run and looked at in a browser.

JupyterLab draws only the cells that are on screen. So what a cell holds is read from the notebook's model, and a cell
is scrolled to before something in it is touched.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

STARTING, RUNNING = 120, 1800  # seconds: busy machines are slow
HERE = Path(__file__).parent
WATCH = """
window.seen = [];
const find = () => {
  for (const node of document.querySelectorAll('.jp-Dialog-header, .jp-Dialog-body, .Toastify__toast-body'))
    if (node.innerText.trim() && !window.seen.includes(node.innerText)) window.seen.push(node.innerText);
};
new MutationObserver(find).observe(document, {childList: true, subtree: true, characterData: true});
"""
OUTPUTS = """() => [...jupyterapp.shell.currentWidget.content.model.cells].map(cell => ({
  id: cell.id, type: cell.type, source: cell.sharedModel.source, count: cell.sharedModel.execution_count ?? null,
  outputs: cell.type === 'code' ? cell.sharedModel.getOutputs() : [],
}))"""


@contextmanager
def server(line, folder, home):
    """A JupyterLab server with settings of its own; yields its address with the token, and ends it and its kernels.

    The settings that `lab.py` writes are the environment's, and hold here too: only the user's are set aside.

    Args:
        line: what `python` is called with, without port and token.
        folder: where it is started.
        home: where its settings go.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR")
    own = {name: str(home / name.lower()) for name in (*names, "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    outside = {name: value for name, value in os.environ.items() if name != "PRUNINGLAB_STRICT"}  # as readers have it
    line = [sys.executable, *line, f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    line += ["--allow-root"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    log = home / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(line, cwd=folder, env=outside | own, stdout=file, stderr=subprocess.STDOUT)
    try:
        _wait(process, f"http://127.0.0.1:{port}/api/status?token={token}", log)
        yield f"http://127.0.0.1:{port}", token
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(process, address, log):
    for _ in range(2 * STARTING):
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.5)
    raise RuntimeError(f"JupyterLab does not start:\n{log.read_text()}")


def watch(page):
    """Note every error in the browser's console from now on, and every dialogue and notification that ever shows."""
    page.add_init_script(WATCH)
    errors = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    return errors


class Notebook:
    """A notebook in JupyterLab.

    Args:
        page: a page of the browser, watched.
        errors: what `watch` returned.
        address: of the server.
        token: likewise.
        name: of the file in the server's folder.
    """

    def __init__(self, page, errors, address, token, name):
        self.page, self.errors, self.stem = page, errors, name.removesuffix(".ipynb")
        errors.clear()
        page.goto(f"{address}/lab/tree/{name}?reset&token={token}")
        page.wait_for_function(
            "window.jupyterapp?.commands.hasCommand('notebook:run-all-cells')", timeout=1e3 * STARTING
        )
        page.wait_for_function(
            "jupyterapp.shell.currentWidget?.context?.sessionContext?.session?.kernel?.status === 'idle'",
            timeout=1e3 * STARTING,
        )

    @property
    def interruptions(self):
        """Texts of dialogues and notifications."""
        return self.page.evaluate("window.seen")

    @property
    def cells(self):
        """All cells: id, type, source, count (of execution) and outputs."""
        return self.page.evaluate(OUTPUTS)

    def run_all(self):
        """Run All, as from the menu, to the end."""
        self._run("notebook:run-all-cells")

    def run(self, index):
        """Run one cell again."""
        self.show(index)
        self.page.evaluate("i => jupyterapp.shell.currentWidget.content.activeCellIndex = i", index)
        self._run("notebook:run-cell")

    def _run(self, command):
        start = "c => {window.done = null; jupyterapp.commands.execute(c).then(() => window.done = true)}"
        self.page.evaluate(start, command)
        self.page.wait_for_function("window.done", timeout=1e3 * RUNNING)

    def show(self, index):
        """Scroll to a cell, and return where its outputs are."""
        self.page.evaluate("i => jupyterapp.shell.currentWidget.content.scrollToItem(i, 'start')", index)
        cell = self.page.locator(f".jp-Notebook .jp-Cell[data-windowed-list-index='{index}'] .jp-Cell-outputArea")
        cell.wait_for(timeout=20e3)
        return cell

    def theme(self, name):
        """JupyterLab in another theme."""
        self.page.evaluate("name => jupyterapp.commands.execute('apputils:change-theme', {theme: name})", name)
        dark = str("Dark" not in name).lower()
        self.page.wait_for_selector(
            f"body[data-jp-theme-light='{dark}'][data-jp-theme-name='{name}']", state="attached"
        )

    def walk(self, look):
        """Scroll from the top to the end by screenfuls; `look(number)` at each. The list of what it returned."""
        outer = self.page.locator(".jp-Notebook .jp-WindowedPanel-outer")
        seen, at, end = [], 0, 1
        while at < end:
            outer.evaluate("(node, at) => node.scrollTop = at", at)
            self.page.wait_for_timeout(700)
            height, end = outer.evaluate("node => [node.clientHeight, node.scrollHeight]")
            seen.append(look(len(seen)))
            at += height - 60
        return seen

    def look_over(self, theme, screenshots):
        """Read all of it in a theme, screenful by screenful, each kept as a picture: the texts that are `faint`."""
        self.theme(f"JupyterLab {theme}")

        def look(number):
            self.page.screenshot(path=screenshots / f"{self.stem}-{theme.lower()}-{number:02}.png")
            return faint(self.page)

        return sorted({one for some in self.walk(look) for one in some}, key=lambda one: one[1])

    def shut_down(self):
        """End its kernel; nothing is saved."""
        self.page.evaluate("jupyterapp.shell.currentWidget.context.sessionContext.shutdown()")


def faint(page, least=4.5):
    """Texts in the outputs on screen whose contrast is below `least`: (text, contrast, colour, background)."""
    found = page.evaluate((HERE / "contrast.js").read_text(encoding="utf-8"))
    return [one for one in map(tuple, found) if one[1] < least]


def shown(cell):
    """All that a cell's outputs say as text, for messages."""
    return json.dumps(cell["outputs"])[:2000]
