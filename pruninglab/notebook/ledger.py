"""The ledger: one page with every claim of the book, what was measured for it, and the verdict.

The chapters are the registry: running one records its claims (see `claims`). What came of it is kept under a key of
the chapter's source and of all code that makes its numbers, so an interrupted run goes on, and nothing is run twice.
The page carries the keys too, so that it can tell which of its sections are of another version of the code.
"""

import json
import re
import subprocess
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pruninglab import book
from pruninglab.book import BOOK, Chapter
from pruninglab.files import atomic, code_version, digest
from pruninglab.notebook.claims import FAILS, HOLDS, OPEN, SIGNS, claimed, count, effect
from pruninglab.progress import progress
from pruninglab.tasks import TASKS
from pruninglab.tasks.language import SHIPPED

PAGE = BOOK / "ledger.md"
STORE = BOOK.parent / "build" / "ledger"
STALE = "**stale: made by another version of the code**\n"
NOT_RUN = "Not run yet.\n"
COMPUTING = ("answers*.py", "claims.py", "tables.py", "trials.py")  # in this room, which the library's hash leaves out

HEAD = """# The ledger of claims

Every claim of the book, with what was measured for it. Nothing here is typed in: `make ledger` runs the chapters, and
the verdict is computed. A claim holds if the whole 95 % confidence interval of the mean lies on the claimed side of
the bound, and does not hold here if all of it lies on the other side; otherwise it cannot be told.

A source after *cf.* is cited in the text just above the claim; without *cf.* the claim names it itself; where no work
is cited, the claim is this book's own. Reasons in quotation marks are what the chapter says after the claim. Tasks are
those that a chapter's code asks for. A section that is marked as *stale* shows what an older version of the code, or
of the chapter, gave.
"""

Result = dict[str, Any]
Cells = list[dict[str, Any]]


def write(page: Path = PAGE, store: Path = STORE) -> dict[str, Result]:
    """Run every chapter, in full, that was not run with this source and this code; then write the page of all.

    A chapter that fails is on the page too, and is run again the next time.

    Args:
        page: the Markdown file to write.
        store: the folder for what came of each chapter, and for the executed copies.

    Returns:
        What `run` returns.

    Raises:
        FileNotFoundError: the book is not there, as in an installation without the checkout.
    """
    results = run(store)
    page.write_text(text_of(results), encoding="utf-8")
    return results


def run(store: Path = STORE, parameters: dict[str, Any] | None = None, *, copies: bool = False) -> dict[str, Result]:
    """Run the chapters that were not run with this source and this code; one after another, as some measure time.

    Args:
        store: the folder for what came of each chapter, and for the executed copies; one for each set of parameters.
        parameters: for the chapters, such as `{"fast": True}`.
        copies: whether a chapter is run again if nothing but its executed copy is missing.

    Returns:
        For each chapter, by the name of its file: `key`, `date`, `seconds`, `error` ("" if it ran through), `commit`
        (of the project, if git knows it), and `claims` (what each call of `claim` recorded).

    Raises:
        FileNotFoundError: the book is not there, as in an installation without the checkout.
    """
    results = {}
    with progress(book.written(), unit="chapter", delay=0) as bar:
        for chapter in bar:
            bar.set_description(chapter.path.stem)
            now = key(chapter.path)
            result = found(chapter, store)
            if result is None or result["error"] or (copies and not executed(chapter, store).exists()):
                result = _run(chapter.path, executed(chapter, store), parameters) | {"key": now}
                if key(chapter.path) != now:
                    result["error"] = "its source, or the code, was changed while it ran"
                with atomic(store / f"{chapter.path.stem}-{now}.json") as temporary:
                    temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
            results[chapter.path.stem] = result
    return results


def found(chapter: Chapter, store: Path = STORE) -> Result | None:
    """What came of a chapter when it was run with this source and this code; None if it was not."""
    now = key(chapter.path)
    return _load(store / f"{chapter.path.stem}-{now}.json", now, chapter.path)


def executed(chapter: Chapter, store: Path = STORE) -> Path:
    """Where the executed copy of a chapter with this source and this code is, or will be."""
    return store / f"{chapter.path.stem}-{key(chapter.path)}.ipynb"


def text_of(results: dict[str, Result]) -> str:
    """The page, from what came of each chapter; a chapter that is not in there was not run yet."""
    return _page({c.path.stem: _section(c, results.get(c.path.stem)) for c in book.written()})


def check(page: Path = PAGE) -> list[str]:
    """Mark the sections of the page that are not of this code, and unmark those that are; nothing is run.

    Returns:
        The chapters whose sections are stale, or that were never run.
    """
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    new = marked(text)
    if new != text:
        page.write_text(new, encoding="utf-8")
    return [name for name, section in _sections(new).items() if STALE in section or NOT_RUN in section]


def marked(text: str) -> str:
    """The page with each section marked as stale, or not, by comparing its key with that of the code as it is."""
    found, new = _sections(text), {}
    for chapter in book.written():
        name = chapter.path.stem
        section = found.get(name, "").replace(STALE, "")
        of = re.search(r"<!-- chapter: \S+, key: (\S+) -->\n", section)
        if of is None:
            new[name] = _section(chapter, None)
        elif of[1] == key(chapter.path):
            new[name] = section
        else:
            new[name] = section.replace(of[0], of[0] + STALE)
    return _page(new)


def command(only_check: bool = False) -> int:
    """What `python -m pruninglab ledger [--check]` does; returns the exit code (0: well, 1: a chapter failed)."""
    if only_check:
        stale = check()
        print(f"stale, or not run yet: {', '.join(stale)}" if stale else "every section is of this code")
        return 0
    results = write()
    failed = {name: result["error"] for name, result in results.items() if result["error"]}
    for name, error in failed.items():
        print(f"{name} failed: {error}")
    print(f"{sum(len(result['claims']) for result in results.values())} claims are in {PAGE}")
    return int(bool(failed))


def key(path: Path) -> str:
    """A hash of a chapter's source and of all that its numbers come from.

    That is the library, the exercises' answers (which a chapter goes on with), the rule of the verdict, and the
    language model that ships. How things are drawn does not count.

    Raises:
        ValueError: the file is no notebook.
    """
    room = Path(__file__).parent
    computing = [file for pattern in COMPUTING for file in sorted(room.glob(pattern))]
    source = [(cell["cell_type"], "".join(cell["source"])) for cell in _cells(path)]
    library = code_version.__wrapped__()  # as it is now, not as it was when this process first asked
    return digest(source, library, *(file.read_bytes() for file in [*computing, SHIPPED] if file.exists()))


def _cells(path: Path) -> Cells:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["cells"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is no notebook: {error!r}") from error


# ── running ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _run(path: Path, copy: Path, parameters: dict[str, Any] | None) -> Result:
    """Run a chapter, and collect what it claims."""
    start, error = datetime.now(UTC), ""
    with TemporaryDirectory() as folder:
        recorded = Path(folder) / "claims.jsonl"
        try:
            book.run(path, copy, parameters, strict=False, claims=recorded)
        except Exception as problem:  # a cell failed, or the kernel died: the page says so, and the others go on
            error = book.failure(problem)
        lines = recorded.read_text(encoding="utf-8").split("\n")[:-1] if recorded.exists() else []
    seconds = round((datetime.now(UTC) - start).total_seconds(), 1)
    claims = [json.loads(line) for line in lines]
    made = {"date": start.date().isoformat(), "seconds": seconds, "error": error, "commit": _commit()}
    return made | {"claims": claims}


def _commit() -> str:
    """What git calls the project as it is now, "-dirty" if something is not committed; "" if git does not know."""
    try:
        asked = ["git", "-C", str(BOOK.parent), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _load(file: Path, now: str, chapter: Path) -> Result | None:
    """What is stored; None if it is not there, broken, or of something else."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        _rows(result["claims"], _cells(chapter))
        return result if result["key"] == now and {"date", "seconds", "error"} <= result.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _page(sections: dict[str, str]) -> str:
    text = "".join(
        f"\n## [{chapter.number} · {chapter.title}]({chapter.path.name})\n\n{sections[chapter.path.stem]}"
        for chapter in book.written()
    )
    found = Counter({verdict: text.count(f"| {SIGNS[verdict]} {verdict} |") for verdict in (HOLDS, FAILS, OPEN)})
    stale, missing = text.count(STALE), text.count(NOT_RUN)
    states = [f"chapters: {len(sections)}", f"claims: {found.total()}", _counted(found)]
    states += [f"**stale: {stale}**"] * (stale > 0) + [f"**not run yet: {missing}**"] * (missing > 0)
    return f"{HEAD}\n{' · '.join(states)}\n{text}"


def _sections(text: str) -> dict[str, str]:
    """The body of each section of a page, by the name of the chapter's file."""
    found = re.findall(r"(<!-- chapter: ([^\s,]+)(?:, key: \S+)? -->\n.*?)(?=\n## |\Z)", text, re.S)
    return {name: body for body, name in found}


def _section(chapter: Chapter, result: Result | None) -> str:
    if result is None:
        return f"<!-- chapter: {chapter.path.stem} -->\n{NOT_RUN}"
    verdicts = Counter(dict.fromkeys((HOLDS, FAILS, OPEN), 0))
    verdicts.update(claim["verdict"] for claim in result["claims"])
    lines = [f"<!-- chapter: {chapter.path.stem}, key: {result['key']} -->"]
    cells = _cells(chapter.path)
    lines += [f"Run on {result['date']}, {result['seconds']:.0f} seconds. {_counted(verdicts)}", *_tasks(cells), ""]
    if result["error"]:
        lines += [f"**The chapter failed**, and what it claims from there on is missing: {plain(result['error'])}", ""]
    if result["claims"]:
        lines += ["| claim | source | measured | seeds | verdict | why |", "| --- | --- | --- | --- | --- | --- |"]
        lines += _rows(result["claims"], cells)
    return "\n".join(lines).rstrip("\n") + "\n"


def _tasks(cells: Cells) -> list[str]:
    """The tasks that a chapter's code names, in the order it does, as a line."""
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    named = [name for name in dict.fromkeys(re.findall(r'"([a-z0-9-]+)"', code)) if name in TASKS]
    return [f"Tasks: {', '.join(named)}."] if named else []


def _counted(verdicts: Counter[str]) -> str:
    return " · ".join(f"{SIGNS[verdict]} {verdict}: {number}" for verdict, number in verdicts.items())


def _rows(claims: list[dict[str, Any]], cells: Cells) -> list[str]:
    return [
        "| "
        + " | ".join(
            [
                plain(claim["sentence"]),
                plain(claim["source"]) or _cited(claim, cells) or "this book",
                plain(f"{effect(claim)} (claimed: {claimed(claim)})"),
                plain(count(claim)),
                f"{SIGNS[claim['verdict']]} {claim['verdict']}",
                _why(claim, cells),
            ]
        )
        + " |"
        for claim in claims
    ]


def plain(text: str) -> str:
    """Text as it is, on one line of a Markdown table: nothing in it is taken for Markdown, HTML or mathematics."""
    text = re.sub(r"[\\`*_{}\[\]#|~!]", r"\\\g<0>", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("$", "<span>$</span>")


# ── what the chapter's text says of a claim ───────────────────────────────────────────────────────────────────────

NAME = r"[A-ZÀ-Þ][a-zß-ÿ][\w’'-]*"
YEAR = r"(?:19|20)\d\d\b"
CITATION = re.compile(rf"({NAME} et al\.|{NAME} (?:&|and) {NAME}|(?<=\(){NAME}),? \(?({YEAR}(?:[;,] {YEAR})*)")


def _cited(claim: dict[str, Any], cells: Cells) -> str:
    """The papers cited in the nearest text before a claim, of the same section, that cites any."""
    here = _index(claim, cells)
    for cell in reversed(cells[:here]):
        if cell["cell_type"] != "markdown":
            continue
        text = "".join(cell["source"])
        *_, start = [0, *(heading.start() for heading in re.finditer(r"^#+ ", text, re.M))]
        if found := list(dict.fromkeys(" ".join(match) for match in CITATION.findall(text[start:]))):
            return f"*cf.* {plain('; '.join(found))}"
        if re.search(r"^#+ ", text, re.M):
            break
    return ""


def _why(claim: dict[str, Any], cells: Cells) -> str:
    """Why a claim does not show: its own reason, or the first paragraph of the text that follows it."""
    if claim["verdict"] != claim["expect"]:  # then what the chapter says is no reason
        return f"unexpected: the chapter says that it {claim['expect']}"
    if claim["verdict"] == HOLDS:
        return ""
    if claim["why"]:
        return plain(claim["why"])
    after = cells[_index(claim, cells) :]
    text = next(("".join(cell["source"]) for cell in after if cell["cell_type"] == "markdown"), "#")
    first = " ".join(text.split("\n\n")[0].split()).replace("|", r"\|")
    return "" if first.startswith(("#", "<", "```")) else f"“{first}”"


def _index(claim: dict[str, Any], cells: Cells) -> int:
    """Where the claim's cell is; 0, before all text, if that is not known."""
    sources = ["".join(cell["source"]).rstrip("\n") for cell in cells]
    return sources.index(claim["cell"]) if claim["cell"] in sources else 0
