"""The index of names: which chapter introduces which public name of the library, and one line of what it is.

It is made from the chapters' own cells. A chapter introduces a name that it uses and explains: its text has the name
in backticks, or a cell builds it by hand with a `def`, no later than in the first Markdown cell after the first use.
"""

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import pruninglab
from pruninglab import book
from pruninglab.book import BOOK, Chapter
from pruninglab.files import atomic

PAGE = BOOK / "names.md"
AROUND = {"canvas", "flip", "kept_of", "legend", "roadmap", "side_by_side", "start", "COLOURS", "GREY", "Picture"}
HEAD = """# Index of names

Where the book introduces each public name of the library, grouped by room. It is made from the chapters themselves by
`python -m pruninglab names`, and a test holds that no chapter uses a name that neither it nor an earlier one explains.
"""
PICTURES = """## For pictures

What is drawn and set around the text (in `notebook`), with the chapter that uses it first. What it shows explains it.
"""
UNUSED = """## Public, but in no chapter

These can be imported from `pruninglab`, and no chapter uses them.
"""


@dataclass(frozen=True)
class Use:
    """A chapter's first use of a name: under which dotted path, in which section, and whether it is explained."""

    path: str
    section: str
    explained: bool


@dataclass(frozen=True)
class Entry:
    """A name of the library, the chapter that introduces it (None: none does), and the first one that uses it."""

    thing: Any
    path: str
    introduced: tuple[Chapter, str] | None
    first: tuple[Chapter, str]


def uses(cells: Sequence[dict[str, Any]]) -> list[Use]:
    """What the code cells of a chapter use of the library, in order; `cells` have a `cell_type` and a `source`."""
    imported: dict[str, str] = {}
    found: dict[str, Use] = {}
    for i, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse(cell["source"])
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pruninglab":
                imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        for name, *attributes in _loaded(tree):
            if name not in imported:
                continue
            path = imported[name]
            while attributes and isinstance(_thing(path), ModuleType):
                path += f".{attributes.pop(0)}"
            if path not in found and not isinstance(_thing(path), ModuleType):
                found[path] = Use(path, _section(cells[:i]), _explained(cells, path.rpartition(".")[2], i))
    return list(found.values())


def _loaded(node: ast.AST, hidden: frozenset[str] = frozenset()) -> Iterator[list[str]]:
    """The names that code reads, each with the attributes after it; arguments of functions are their own."""
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        hidden |= {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
    chain: list[str] = []
    inner = node
    while isinstance(inner, ast.Attribute):
        chain, inner = [inner.attr, *chain], inner.value
    if isinstance(inner, ast.Name):
        if isinstance(inner.ctx, ast.Load) and inner.id not in hidden:
            yield [inner.id, *chain]
        return
    for child in ast.iter_child_nodes(node):
        yield from _loaded(child, hidden)


def _explained(cells: Sequence[dict[str, Any]], name: str, use: int) -> bool:
    """Whether a name is in backticks, or defined by hand, up to the first Markdown cell after its use."""
    after = (i for i in range(use + 1, len(cells)) if cells[i]["cell_type"] == "markdown")
    for cell in cells[: next(after, len(cells)) + 1]:
        if cell["cell_type"] == "markdown":
            if any(re.search(rf"\b{name}\b", code) for code in re.findall(r"`([^`]+)`", cell["source"])):
                return True
        elif re.search(rf"^\s*def {name}\(", cell["source"], re.M):
            return True
    return False


def _section(cells: Sequence[dict[str, Any]]) -> str:
    text = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    return re.findall(r"^#+ (.+)$", text, re.M)[-1]


def _thing(path: str) -> Any:
    """What a dotted path leads to: a module, or something in one."""
    module, _, name = path.rpartition(".")
    holder = import_module(module)
    return getattr(holder, name) if hasattr(holder, name) else import_module(path)


def entries(chapters: Sequence[tuple[Chapter, Sequence[dict[str, Any]]]]) -> list[Entry]:
    """An entry for each name that the chapters use, in their order; the same thing under two paths is one."""
    found: dict[int, Entry] = {}
    for chapter, cells in chapters:
        for use in uses(cells):
            thing, here = _thing(use.path), (chapter, use.section)
            old = found.get(id(thing), Entry(thing, use.path, None, here))
            if old.introduced is None and use.explained:
                old = Entry(thing, old.path, here, old.first)
            found[id(thing)] = old
    return list(found.values())


def read() -> list[tuple[Chapter, Sequence[dict[str, Any]]]]:
    """The written chapters with their cells.

    Raises:
        FileNotFoundError: the book is not there, as in an installation without the checkout.
    """
    import nbformat

    return [(chapter, nbformat.read(chapter.path, as_version=4).cells) for chapter in book.written()]


def room(entry: Entry) -> str:
    """The room of the house in which a name lives: the module or folder right under `pruninglab`."""
    home = getattr(entry.thing, "__module__", None) or entry.path
    return ".".join(home.split(".")[:2])


def for_pictures(entry: Entry) -> bool:
    """Whether a name only draws, or stands around the text: such names need no explanation."""
    name = entry.path.rpartition(".")[2]
    if not entry.path.startswith("pruninglab.notebook."):
        return False
    return name in AROUND or name.startswith(("draw_", "plot_")) or name.endswith("_twin")


def page(found: Sequence[Entry]) -> str:
    """The index as Markdown."""
    parts = [HEAD]
    told = [entry for entry in found if not for_pictures(entry)]
    for where in sorted({room(entry) for entry in told}):
        here = [_row(entry) for entry in told if room(entry) == where]
        parts += [f"## {where.partition('.')[2]}\n\n{_said(import_module(where))}\n", *here, ""]
    parts += [PICTURES, *(_row(entry) for entry in found if for_pictures(entry)), ""]
    known = {id(entry.thing) for entry in found}
    public = {name: getattr(pruninglab, name) for name in pruninglab.__all__}
    unused = [f"- `{name}`: {_said(thing)}" for name, thing in public.items() if id(thing) not in known]
    return "\n".join([*parts, UNUSED, *(unused or ["None."]), ""])


def rows(found: Sequence[Entry]) -> list[tuple[str, str, str, str]]:
    """For each name: itself, its room, the chapter that introduces it (or, in brackets, first uses it), what it is."""
    told = [(e.path.rpartition(".")[2], room(e).partition(".")[2], _chapter(e), _said(e.thing)) for e in found]
    return sorted(told, key=lambda row: (row[1], row[0]))


def _chapter(entry: Entry) -> str:
    return f"chapter {entry.introduced[0].number}" if entry.introduced else f"(chapter {entry.first[0].number})"


def _row(entry: Entry) -> str:
    chapter, section = entry.introduced or entry.first
    link = f"[chapter {chapter.number}]({chapter.path.name}), *{section}*"
    return f"- `{entry.path.rpartition('.')[2]}` · {link}: {_said(entry.thing)}"


def _said(thing: Any) -> str:
    """The first sentence of a docstring; of a table, the names in it."""
    if isinstance(thing, dict):
        return f"A table with {', '.join(f'`{key}`' for key in thing)}."
    if not (callable(thing) or isinstance(thing, ModuleType)):
        return f"`{thing!r}`."
    paragraph = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", paragraph)[0]


def write() -> list[Entry]:
    """Write the page, and return what is on it."""
    found = entries(read())
    with atomic(PAGE) as temporary:
        temporary.write_text(page(found), encoding="utf-8")
    return found
