"""The pages that Sphinx makes the HTML book of: chapters with their results, and the lists that code knows best."""

import json
import pkgutil
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pruninglab
from pruninglab.book import BOOK, Chapter
from pruninglab.notebook import ledger, references
from pruninglab.notebook.claims import FAILS, HOLDS, OPEN, SIGNS
from pruninglab.notebook.ledger import Result

FIRST = ("glossary", "notation", "names", "teaching", "ledger")  # of the pages beside the chapters; others follow them
MOVING = "<p><i>Here is a slider in JupyterLab. Below are the pictures at a few of its settings.</i></p>"
QUICK = "A quick version, with fewer seeds and steps, in which some claims cannot be told."
BESIDE = r"\]\(\.\./([\w/]+\.md)\)"  # links from the book to a page elsewhere in the project, which comes along


@dataclass(frozen=True)
class Run:
    """A chapter, the executed copy that is shown, and what came of that run; None for both if it was not run."""

    chapter: Chapter
    copy: Path | None
    result: Result | None


def write(
    folder: Path, runs: list[Run], *, fast: bool, pdf: bool = False, library: bool = True, printed: bool = False
) -> None:
    """Write all pages, as Markdown, reStructuredText and notebooks, into a folder.

    Args:
        folder: where to; must not be there yet.
        runs: the chapters, in their order.
        fast: whether the runs are of the quick version, which each page then says.
        pdf: whether a print version lies beside the pages, to be linked to.
        library: whether to make the reference of the library too.
        printed: whether all will be one long page, for print.

    Raises:
        ValueError: a chapter names a work in a form that is not understood.
    """
    shutil.copytree(BOOK / "site", folder)  # Sphinx's settings and styles, and the index's text
    works = references.merged([work for run in runs for work in _cited(run.chapter)] + references.published())
    (folder / "references.bib").write_text("\n".join(work.bibtex() for work in works), encoding="utf-8")
    keys = {work: next(w.key for w in works if w.same(work)) for run in runs for work in _cited(run.chapter)}
    chapters = {run.chapter.path.name: _notebook(run, keys, fast, printed) for run in runs}
    pages = {path.stem: path.read_text(encoding="utf-8") for path in sorted(BOOK.glob("*.md"))}
    for place in sorted(set(re.findall(BESIDE, "".join(text for text in (*chapters.values(), *pages.values()))))):
        pages[Path(place).stem] = (BOOK.parent / place).read_text(encoding="utf-8")
    pages["ledger"] = ledger.text_of({run.chapter.path.stem: run.result for run in runs if run.result})
    pages |= {"status": _status(runs, fast), "references": _references()}
    if library:
        _library(folder / "api")
    pages |= _contents(runs, list(pages), pdf, library)
    for name, text in (chapters | {f"{name}.md": text for name, text in pages.items()}).items():
        (folder / name).write_text(re.sub(BESIDE, lambda match: f"]({Path(match[1]).name})", text), encoding="utf-8")
    (folder / "images").mkdir(exist_ok=True)
    for picture in (BOOK.parent / "images").glob("*.png"):
        (folder / "images" / picture.name).write_bytes(picture.read_bytes())


# ── chapters ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _cells(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def _cited(chapter: Chapter) -> list[references.Work]:
    return [work for cell in _cells(chapter.path)["cells"] for work, _ in references.cited(cell["source"])]


def _notebook(run: Run, keys: dict[references.Work, str], fast: bool, printed: bool) -> str:
    """An executed chapter as it is shown: citations, folded solutions, and nothing that needs a kernel."""
    notebook = _cells(run.copy or run.chapter.path)
    notebook["metadata"].pop("widgets", None)
    notebook["metadata"].setdefault("language_info", {"name": "python", "pygments_lexer": "ipython3"})
    cells: list[dict[str, Any]] = notebook["cells"]
    download = f'<a href="downloads/{run.chapter.path.name}" download>Download this notebook{{}}.</a>'
    for cell, after in zip(cells, [*cells[1:], {}], strict=True):
        if cell["cell_type"] == "markdown":
            for work, place in reversed(references.cited(cell["source"])):
                text = cell["source"]
                cell["source"] = f"{text[:place]} {{cite:p}}`{keys[work]}`{text[place:]}"
            if "exercise" in after.get("metadata", {}).get("tags", ()):
                cell["source"] += "\n\n" + download.format(" to solve it in JupyterLab")
            continue
        if cell["cell_type"] != "code":
            continue
        tags = cell["metadata"].setdefault("tags", [])
        if "solution" in tags:
            tags.append("hide-input")
            said = {"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
            cell["metadata"]["mystnb"] = said
        cell["outputs"] = [_output(output, printed) for output in cell["outputs"] if output.get("name") != "stderr"]
    told = "**This chapter was not run with the present code; it is shown without results.**"
    if run.result is not None:
        told = f"Run on {run.result['date']}, {run.result['seconds']:.0f} seconds ([status](status.md))."
        told += f" **{QUICK}**" * fast
    cells.insert(
        1, {"cell_type": "markdown", "id": "about-this-page", "metadata": {}, "source": f"{told} {download.format('')}"}
    )
    return json.dumps(notebook, ensure_ascii=False, indent=1)


def _output(output: dict[str, Any], printed: bool) -> dict[str, Any]:
    """An output without a widget, and with links to pages instead of notebooks."""
    data = output.get("data", {})
    html = "".join(data.get("text/html", ""))
    if "application/vnd.jupyter.widget-view+json" in data:
        plain = "".join(data.get("text/plain", ""))
        if plain.startswith("Predict:"):
            return {"output_type": "stream", "name": "stdout", "text": f"{plain}\n"}
        html = MOVING
    if not html:
        return output
    linked = re.sub(r'href="(\w+)\.ipynb"', r'href="#document-\1"' if printed else r'href="\1.html"', html)
    return {"output_type": "display_data", "metadata": {}, "data": {"text/html": linked}}


# ── the other pages ───────────────────────────────────────────────────────────────────────────────────────────────


def _contents(runs: list[Run], pages: list[str], pdf: bool, library: bool) -> dict[str, str]:
    """The index, and a page for each of its parts, which stand in the bar above."""
    rows = ["| chapter | its answer |", "| --- | --- |"]
    rows += [f"| [{c.number} · {c.title}]({c.path.name}) | {c.answer} |" for c in (run.chapter for run in runs)]
    rows += ["", '<a href="pruning-lab.pdf">The book as a PDF</a>, for print.'] * pdf
    others = [name for name in FIRST if name in pages] + sorted(set(pages) - set(FIRST))
    index = (BOOK / "site" / "index.md").read_text(encoding="utf-8").replace("<!-- map -->", "\n".join(rows))
    parts = ["chapters", "beside", *["api/index"] * library]
    return {
        "index": index.replace("<!-- contents -->", _tree(parts, hidden=True)),
        "chapters": f"# Chapters\n\n{_tree([run.chapter.path.stem for run in runs])}",
        "beside": f"# Beside the chapters\n\n{_tree(others)}",
    }


def _tree(names: Iterable[str], *, hidden: bool = False) -> str:
    return "\n".join(["```{toctree}", ":hidden:" if hidden else ":maxdepth: 1", "", *names, "```", ""])


def _status(runs: list[Run], fast: bool) -> str:
    """Of each chapter: whether it ran through, when, how long, with what, and how its claims came out."""
    rows = ["# Status", "", "How each chapter was run for these pages, as recorded by the runs themselves."]
    rows += ["", f"**{QUICK}**"] * fast
    signs = [f"{SIGNS[verdict]} {verdict}" for verdict in (HOLDS, FAILS, OPEN)]
    head = ["chapter", "state", "run on", "seconds", *signs, "made with", "commit"]
    rows += ["", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for run in runs:
        name = f"[{run.chapter.number} · {run.chapter.title}]({run.chapter.path.name})"
        if run.result is None or run.copy is None:
            rows.append(f"| {name} | not run |{' |' * (len(head) - 2)}")
            continue
        error, claims = run.result["error"], Counter(claim["verdict"] for claim in run.result["claims"])
        printed = re.search(r"^Python [^\n]*; device [^\n]*", _printed(run.copy), re.M)
        cells = [
            "✔ passed" if not error else f"✘ failed: {ledger.plain(error)}",
            run.result["date"],
            f"{run.result['seconds']:.0f}",
            *(str(claims[verdict]) for verdict in (HOLDS, FAILS, OPEN)),
            printed[0] if printed else "not recorded",
            run.result.get("commit") or "not recorded",
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _printed(copy: Path) -> str:
    outputs = [output for cell in _cells(copy)["cells"] for output in cell.get("outputs", ())]
    return "\n".join("".join(output.get("text", "")) for output in outputs)


def _references() -> str:
    said = "Works that the chapters cite, and those of the atlas of published systems (`pruninglab.atlas.table()`)."
    download = '<a href="downloads/references.bib" download>All of them as BibTeX</a>.'
    return f"# References\n\n{said}\n{download}\n\n```{{bibliography}}\n:all:\n```\n"


def _library(folder: Path) -> None:
    """A page for each module, and one that lists them all."""
    folder.mkdir(parents=True, exist_ok=True)
    modules = [module.name for module in pkgutil.walk_packages(pruninglab.__path__, "pruninglab.")]
    modules = [name for name in modules if "._" not in name]
    for name in modules:
        inside = [other for other in modules if other.rpartition(".")[0] == name]
        page = [name, "=" * len(name), "", f".. automodule:: {name}", ""]
        page += ["", "Its modules", "-----------", "", ".. toctree::", "", *(f"   {other}" for other in inside)]
        (folder / f"{name}.rst").write_text("\n".join(page if inside else page[:5]), encoding="utf-8")
    rows = ["# The library", "", "What `from pruninglab import …` gives:", ""]
    for name in pruninglab.__all__:
        thing = getattr(pruninglab, name)
        rows.append(f"- {{py:obj}}`~{thing.__module__}.{thing.__qualname__}`: {_said(thing)}")
    rooms = [name for name in modules if name.count(".") == 1]
    rows += ["", "## Its rooms", "", "| room | what is in it |", "| --- | --- |"]
    rows += [f"| [{name}]({name}.rst) | {ledger.plain(_said(import_module(name)))} |" for name in rooms]
    (folder / "index.md").write_text("\n".join([*rows, "", _tree(rooms, hidden=True)]), encoding="utf-8")


def docstring(text: str) -> str:
    """A docstring in reStructuredText: what looks like markup and is mathematics stays as it is written.

    A block that is indented is code; but not what stands under a heading such as `Args:`.
    """
    paragraphs, code, heading = [], False, ""
    for line in _escaped(text).splitlines():
        indented = line.startswith("    ")
        if line.strip() and not indented:
            heading = line if re.fullmatch(r"[A-Z]\w+:", line) else ""
            paragraphs += [""] * code
            code = False
        elif indented and not code and not heading:
            paragraphs += ["", "::", ""]
            code = True
        paragraphs.append(line.replace("\\|", "|").replace("\\*", "*").replace("\\_", "_") if code else line)
    return "\n".join(paragraphs)


def _escaped(text: str) -> str:
    """With a backslash before each sign that would open markup; what is in backticks or emphasised stays."""
    kept = r"`[^`]*`|(?<![\w*])\*{1,2}[^\s*][^*\n]*\*{1,2}(?![\w*])"
    signs = r"[|*\\]|(?<=\w)_(?!\w)"
    return re.sub(rf"({kept})|({signs})", lambda m: m[1] or f"\\{m[2]}", text)


def _said(thing: object) -> str:
    return " ".join((thing.__doc__ or "").strip().split("\n\n")[0].split())
