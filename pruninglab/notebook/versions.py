"""The book as students get it, without its solutions, and as it looks when every exercise is solved.

Both are made from the chapters in `book/`, keep their cells' ids and tags, and run from the first cell to the last.
Solutions are taken out by nbgrader's own preprocessors, so nbgrader has to be installed for the student version.
"""

import ast
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pruninglab.book import BOOK, written

if TYPE_CHECKING:
    from nbformat import NotebookNode

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
LEFT_OUT = "# The solution is left out of this version."
FOLDED = re.compile(r"The solution is in the folded cell below(; click on it to open it)?")
UNWRITTEN = re.compile(r"^    raise NotImplementedError.*\n", re.M)
LINK = re.compile(r"(?<=\]\()[^)#\s]+")


def tagged(notebook: "NotebookNode", tag: str) -> "list[NotebookNode]":
    """The cells of a notebook that have a tag."""
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def student_version(notebook: "NotebookNode") -> "NotebookNode":
    """A copy of a chapter without solutions, hidden tests and outputs.

    Raises:
        ModuleNotFoundError: nbgrader is not installed.
    """
    try:
        from nbgrader.preprocessors import ClearHiddenTests, ClearOutput, ClearSolutions
    except ImportError:
        raise ModuleNotFoundError("student versions need nbgrader: pip install 'pruninglab[teach]'") from None
    import nbformat

    notebook = nbformat.from_dict(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = FOLDED.sub("The solution is left out of this version", cell.source)
    for cell in tagged(notebook, "solution"):  # the line that checks a solution has nothing to check without it
        cell.source = "\n".join([BEGIN, *_between(cell.source, whole=True), END])
    resources: dict[str, object] = {}
    for preprocessor in (
        ClearSolutions(code_stub={"python": LEFT_OUT}, enforce_metadata=False),
        ClearHiddenTests(enforce_metadata=False),
        ClearOutput(),
    ):
        notebook, resources = preprocessor.preprocess(notebook, resources)
    return notebook


def solved_version(notebook: "NotebookNode") -> "NotebookNode":
    """A copy of a chapter in which each exercise holds its solution, below the exercise's own docstring.

    Raises:
        ValueError: a solution belongs to no exercise.
    """
    import nbformat

    notebook = nbformat.from_dict(notebook)
    exercises = {
        name: cell for cell in tagged(notebook, "exercise") for name in re.findall(r"^def (\w+)", cell.source, re.M)
    }
    for cell in tagged(notebook, "solution"):
        checked = re.search(r'check\(solution, "(\w+)"\)', cell.source)
        if checked is None or checked[1] not in exercises:
            raise ValueError(
                f"cell {cell.id!r}: a solution ends in check(solution, …), with the name of an exercise above"
            )
        exercise = exercises[checked[1]]
        decorators, body = _function(_between(cell.source))
        exercise.source = UNWRITTEN.sub(lambda _: body, exercise.source)  # noqa: B023  called at once
        for line in decorators:
            if line not in exercise.source:
                exercise.source = f"{line}\n{exercise.source}"
    return notebook


def write_version(out: Path, make: "Callable[[NotebookNode], NotebookNode]", *, replace: bool = False) -> list[Path]:
    """Write a version of all chapters, and the files that they link to, to a folder; all of it or nothing.

    Args:
        out: the folder, which must be empty or not there.
        make: what to make of each chapter, such as `student_version`.
        replace: write over what the folder holds.

    Raises:
        FileExistsError: the folder is not empty. OSError: it cannot be written.
    """
    import nbformat

    if out.exists() and not replace and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{str(out)!r} is not an empty folder; name one that is empty or not there")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    whole = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
    try:
        waiting = [chapter.path for chapter in written()]
        files = {path: path.name for path in waiting}

        def linked(match: re.Match[str]) -> str:
            """The link as it is in the new folder; a file that it leads to comes along."""
            target = (folder / match[0]).resolve()
            if not target.is_file() or target.is_relative_to(BOOK / "labs"):  # a lab's source has its answers
                return match[0]
            if target not in files:
                taken = target.name in files.values()
                files[target] = f"{target.parent.name}_{target.name}" if taken else target.name
                waiting.append(target)
            return files[target]

        for path in waiting:  # grows while links are found
            folder = path.parent
            if path.suffix == ".ipynb" and path.parent == BOOK:
                notebook = make(nbformat.read(path, as_version=4))
                for cell in notebook.cells:
                    if cell.cell_type == "markdown":
                        cell.source = LINK.sub(linked, cell.source)
                nbformat.write(notebook, whole / files[path])
            elif path.suffix == ".md":
                (whole / files[path]).write_text(LINK.sub(linked, path.read_text(encoding="utf-8")), encoding="utf-8")
            else:
                shutil.copy(path, whole / files[path])
        whole.chmod(0o755)  # temporary folders are for their owner alone
        if out.exists():
            shutil.rmtree(out)
        whole.rename(out)
    finally:
        shutil.rmtree(whole, ignore_errors=True)
    return sorted(out.iterdir())


def _between(source: str, *, whole: bool = False) -> list[str]:
    """The lines between the solution's marks; of the whole cell, without the marks."""
    lines = source.splitlines()
    if not whole:
        lines = lines[lines.index(BEGIN) : lines.index(END)]
    return [line for line in lines if line not in (BEGIN, END)]


def _function(lines: list[str]) -> tuple[list[str], str]:
    """Decorators and body of `def solution(…)`, or of `solution = lambda …`."""
    text = "\n".join(lines)
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == "solution":
            decorators = [f"@{ast.get_source_segment(text, part)}" for part in node.decorator_list]
            return decorators, "\n".join(lines[node.body[0].lineno - 1 : node.end_lineno]) + "\n"
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            return [], f"    return {ast.get_source_segment(text, node.value.body)}\n"
    raise ValueError(f"no function named solution in:\n{text}")
