"""The ledger of claims: what a chapter records, what is kept of a run, and a page that knows when it is stale."""

import json
import re
import sys
from types import SimpleNamespace

import nbformat
import pytest

import lab
from pruninglab import book
from pruninglab.notebook import claim, ledger
from pruninglab.notebook.claims import FAILS, HOLDS, OPEN

GOOD = [
    ("text", "# 0 · First\n\nA citation of another section (Old et al. 1990)."),
    ("tasks", 'from pruninglab.notebook.claims import claim\nnames = \'hard-digits-mlp\', "digits-cnn", "no-task"'),
    ("set-up", 'x = [1.0, 1.1, 0.9, 1.0, 1.05]  # of "digits-mlp" and "digits-cnn": claim'),
    ("section", "## It holds\n\nHolder & Bound (2019, ABC) and (Seen et al. 2020; 2021) say so, in 2022, of *a|b*."),
    ("holds", 'claim("A <b>bold</b> a|b costs $5 *now*.", x, above=0.5, unit="points", source="Own_1 2001")'),
    ("more", 'display(claim("It is twelve.", [1, 2], equals=[1, 2]))\nclaim("Low.", [2.0], below=3, over="draw")'),
    ("text-2", "## It does not"),
    (
        "fails",
        'claim("No.", x, above=2, expect="does not hold here")\nclaim("Open.", x, above=1, expect="cannot be told")',
    ),
    ("why", "Because of $|w|$ and\n*so on*.\n\nSomething else."),
    ("given", 'claim("No, too.", x, above=2, expect="does not hold here", why="a_b")\nclaim("Surprise.", x, above=2)'),
    ("after", "This is no reason for what the chapter did not expect."),
]
BROKEN = [
    ("title", "# 1 · Second"),
    ("one", 'from pruninglab.notebook.claims import claim\nclaim("One.", 1, equals=1)'),
    ("two", 'raise ValueError("broken | on purpose")'),
    ("three", 'claim("Never reached.", 1, equals=1)'),
]


def notebook(path, parts):
    cells = []
    for name, source in parts:
        code = "claim" in source or "raise" in source
        make = nbformat.v4.new_code_cell if code else nbformat.v4.new_markdown_cell
        cells.append(make(source, id=name))
    made = nbformat.v4.new_notebook(cells=cells)
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, path)


def make_book(folder):
    folder.mkdir(exist_ok=True)
    parts = {"00_first": GOOD, "01_second": BROKEN}
    for name, cells in parts.items():
        notebook(folder / f"{name}.ipynb", cells)
    chapters = [book.Chapter(n, name[3:].title(), "", folder / f"{name}.ipynb") for n, name in enumerate(parts)]
    return [*chapters, book.Chapter(2, "To come", "", folder / "02_to_come.ipynb")]


@pytest.fixture(scope="module")
def really_run(tmp_path_factory):
    """A chapter that a real kernel ran until its last cell failed; tests only read what came of it."""
    folder = tmp_path_factory.mktemp("ledger")
    notebook(folder / "00_first.ipynb", [*GOOD, *BROKEN[2:]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNINGLAB_STRICT", "1")  # must not reach the kernel
        patch.setattr(book, "chapters", lambda: [book.Chapter(0, "First", "", folder / "00_first.ipynb")])
        results = ledger.write(folder / "ledger.md", folder / "store")
    return SimpleNamespace(results=results, page=(folder / "ledger.md").read_text(encoding="utf-8"))


class Runner:
    """Stands in for `book.run`, without a kernel: makes the claims of a chapter's cells here, and counts the runs."""

    def __init__(self, monkeypatch):
        self.ran, self.interrupt, self.monkeypatch = [], "", monkeypatch

    def __call__(self, path, out, parameters=None, *, strict, claims):
        assert not strict
        self.ran.append(path.stem)
        if path.stem == self.interrupt:
            raise KeyboardInterrupt
        out.parent.mkdir(parents=True, exist_ok=True)
        self.monkeypatch.setenv("PRUNINGLAB_CLAIMS", str(claims))
        self.monkeypatch.setenv("PRUNINGLAB_STRICT", "0")
        try:
            names = {"display": lambda shown: shown}
            for cell in nbformat.read(path, as_version=4).cells:
                if cell.cell_type == "code":
                    exec(cell.source, names)
        finally:
            self.monkeypatch.delenv("PRUNINGLAB_CLAIMS")


@pytest.fixture
def runner(tmp_path, monkeypatch):
    chapters = make_book(tmp_path / "book")
    monkeypatch.setattr(book, "chapters", lambda: chapters)
    run = Runner(monkeypatch)
    monkeypatch.setattr(book, "run", run)
    return run


@pytest.fixture
def places(tmp_path):
    return tmp_path / "ledger.md", tmp_path / "store"


def row(page, sentence):
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {sentence}")]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


# ── what a claim records ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_claim_adds_one_line_to_the_file_that_is_named_and_none_without(tmp_path, monkeypatch):
    file = tmp_path / "claims.jsonl"
    monkeypatch.setenv("PRUNINGLAB_CLAIMS", str(file))
    values = [0.1, 0.2, 0.3]
    claim("A\nsentence ✔.", values, above=0.0, unit="%", over="draw", expect=OPEN)
    with pytest.raises(AssertionError):  # strict: recorded before it is an error
        claim("Exact.", {1, 2}, equals={3}, source="Somebody 2020", why="so")
    monkeypatch.delenv("PRUNINGLAB_CLAIMS")
    claim("Not recorded.", values, above=0.0, expect=OPEN)
    first, second = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    half = 4.302652729911275 * 0.1 / 3**0.5  # Student's t for two degrees of freedom, from a table
    assert first.pop("mean") == pytest.approx(0.2)
    assert (first.pop("low"), first.pop("high")) == pytest.approx((0.2 - half, 0.2 + half))
    assert first == {
        "sentence": "A\nsentence ✔.", "values": values, "bound": 0.0, "direction": "above", "unit": "%", "over": "draw",
        "n": 3, "verdict": OPEN, "expect": OPEN, "source": "", "why": "", "cell": "",
    }  # fmt: skip
    assert second["direction"] == "equals"
    assert (second["values"], second["bound"], second["verdict"]) == ("{1, 2}", "{3}", FAILS)
    assert second["mean"] is second["low"] is second["n"] is None
    assert (second["source"], second["why"]) == ("Somebody 2020", "so")


def test_a_single_value_has_no_interval(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNINGLAB_CLAIMS", str(tmp_path / "claims.jsonl"))
    claim("One.", [2.0], below=3, expect=OPEN)
    record = json.loads((tmp_path / "claims.jsonl").read_text(encoding="utf-8"))
    assert (record["mean"], record["low"], record["high"], record["n"]) == (2.0, None, None, 1)
    assert "Infinity" not in (tmp_path / "claims.jsonl").read_text(encoding="utf-8")


def test_a_claim_shows_its_source_always_and_its_reason_only_where_it_does_not_hold(monkeypatch):
    monkeypatch.setenv("PRUNINGLAB_STRICT", "0")
    for bound, there in ((0, False), (5, True)):
        shown = claim("It is.", [1.0, 1.1], above=bound, source="A & B 2020", why="too <small>")
        assert "(A & B 2020)" in str(shown)
        assert "(A &amp; B 2020)" in shown._repr_mimebundle_()["text/html"]
        assert ("too <small>" in str(shown)) == there == ("too &lt;small" in shown._repr_mimebundle_()["text/html"])


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_claim_that_a_real_run_makes_is_on_the_page_with_its_numbers(really_run, monkeypatch):
    monkeypatch.setenv("PRUNINGLAB_STRICT", "0")
    x = [1.0, 1.1, 0.9, 1.0, 1.05]
    expected = {
        "A ": claim("", x, above=0.5, unit="points"),
        "It is twelve": claim("", [1, 2], equals=[1, 2]),
        "Low": claim("", [2.0], below=3, over="draw"),
        "No.": claim("", x, above=2),
        "Open": claim("", x, above=1),
        "No, too": claim("", x, above=2),
        "Surprise": claim("", x, above=2),
    }
    assert [c.verdict for c in expected.values()] == [HOLDS, HOLDS, OPEN, FAILS, OPEN, FAILS, FAILS]
    for sentence, computed in expected.items():
        _, _, measured, count, verdict, _ = row(really_run.page, sentence)
        assert verdict.split(maxsplit=1)[1] == computed.verdict
        told = (measured.replace(" (", f", {count} (") if count else measured).replace("\\", "")
        assert told == computed.measured
    assert "chapters: 1 · claims: 7 · ✔ holds: 2 · ✘ does not hold here: 3 · ? cannot be told: 2" in really_run.page
    assert 0.5 < really_run.results["00_first"]["seconds"] < 120
    assert re.search(r"^Run on 20\d\d-\d\d-\d\d, \d+ seconds\.", really_run.page, re.M)


def test_nothing_in_a_sentence_is_taken_for_markdown_or_mathematics(really_run):
    cells = row(really_run.page, "A ")
    assert cells[0] == r"A &lt;b&gt;bold&lt;/b&gt; a\|b costs <span>$</span>5 \*now\*."
    assert cells[1] == r"Own\_1 2001"


def test_a_source_is_the_claim_s_own_or_what_its_section_cites_and_no_other_s(really_run):
    assert row(really_run.page, "It is twelve")[1] == "*cf.* Holder & Bound 2019; Seen et al. 2020; 2021".replace(
        "&", "&amp;"
    )
    assert row(really_run.page, "No.")[1] == "this book"
    assert "Old" not in really_run.page


def test_a_section_names_the_tasks_of_its_chapter_in_order(really_run):
    assert "\nTasks: digits-cnn, digits-mlp.\n" in really_run.page


def test_reasons_are_the_claim_s_own_or_the_chapter_s_words_but_not_for_a_surprise(really_run):
    assert row(really_run.page, "A ")[5] == ""
    assert row(really_run.page, "No.")[5] == row(really_run.page, "Open")[5] == r"“Because of $\|w\|$ and *so on*.”"
    assert row(really_run.page, "No, too")[5] == r"a\_b"
    assert row(really_run.page, "Surprise")[5] == "unexpected: the chapter says that it holds"


def test_a_chapter_that_fails_says_so_and_keeps_what_it_claimed_until_then(really_run, runner, places):
    assert r"**The chapter failed**, and what it claims from there on is missing: ValueError: broken \| on purpose" in (
        really_run.page
    )
    assert "Never reached" not in really_run.page
    ledger.write(*places)
    first, second = places[0].read_text(encoding="utf-8").split("\n## [1 · Second](01_second.ipynb)\n")
    assert "failed" not in first.partition("## [0")[2]
    assert r"ValueError: broken \| on purpose" in second
    assert row(second, "One")[4] == "✔ holds"


# ── running ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_ran_is_not_run_again_and_what_failed_is(runner, places):
    ledger.write(*places)
    page = places[0].read_text(encoding="utf-8")
    ledger.write(*places)
    assert runner.ran == ["00_first", "01_second", "01_second"]
    assert places[0].read_text(encoding="utf-8") == page
    notebook(book.chapters()[0].path, [*GOOD, ("new", "claim('A new one.', 1, equals=1)")])
    ledger.write(*places)
    assert runner.ran[3:] == ["00_first", "01_second"]
    assert row(places[0].read_text(encoding="utf-8"), "A new one")[4] == "✔ holds"


def test_other_code_runs_all_again(runner, places, monkeypatch):
    ledger.write(*places)
    monkeypatch.setattr(ledger, "code_version", SimpleNamespace(__wrapped__=lambda: "other"))
    ledger.write(*places)
    assert runner.ran == ["00_first", "01_second"] * 2


def test_an_interrupted_run_goes_on(runner, places):
    runner.interrupt = "01_second"
    with pytest.raises(KeyboardInterrupt):
        ledger.write(*places)
    assert not places[0].exists()
    runner.interrupt = ""
    ledger.write(*places)
    assert runner.ran == ["00_first", "01_second", "01_second"]
    assert not list(places[1].glob("*.tmp"))
    assert row(places[0].read_text(encoding="utf-8"), "Surprise")


def test_what_was_changed_while_it_ran_does_not_count(runner, places, monkeypatch):
    path, run = book.chapters()[0].path, runner.__call__

    def changing(source, *arguments, **options):
        run(source, *arguments, **options)
        notebook(path, [*GOOD, ("new", "claim('A new one.', 1, equals=1)")])

    monkeypatch.setattr(book, "run", changing)
    assert "changed while it ran" in ledger.write(*places)["00_first"]["error"]
    assert ledger.check(places[0]) == ["00_first"]
    monkeypatch.setattr(book, "run", run)
    assert ledger.write(*places)["00_first"]["error"] == ""
    assert row(places[0].read_text(encoding="utf-8"), "A new one")
    assert ledger.check(places[0]) == []


@pytest.mark.parametrize("damage", ["half", "empty", "bytes", "a claim lacks its verdict", "of another key"])
def test_a_broken_stored_result_is_made_again(runner, places, damage):
    ledger.write(*places)
    page = places[0].read_text(encoding="utf-8")
    (file,) = places[1].glob("00_first-*.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    if damage == "a claim lacks its verdict":
        del result["claims"][1]["verdict"]
    result["key"] = "0" if damage == "of another key" else result["key"]
    whole = json.dumps(result).encode()
    file.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "bytes": b"\xff\xfe\x00"}.get(damage, whole))
    ledger.write(*places)
    assert runner.ran.count("00_first") == 2
    assert places[0].read_text(encoding="utf-8") == page


def test_without_a_book_it_says_so(monkeypatch, places):
    monkeypatch.setattr(book, "chapters", list)
    with pytest.raises(FileNotFoundError, match="needs a checkout"):
        ledger.write(*places)


def test_the_command_tells_what_it_did(runner, places, monkeypatch, capsys):
    page, store = places
    monkeypatch.setattr(ledger.write, "__defaults__", (page, store))
    monkeypatch.setattr(ledger.check, "__defaults__", (page,))
    assert ledger.command() == 1
    assert "01_second failed: ValueError: broken | on purpose" in capsys.readouterr().out
    book.chapters()[1].path.unlink()
    assert ledger.command() == 0
    assert "7 claims are in" in capsys.readouterr().out
    assert ledger.command(only_check=True) == 0
    assert "every section is of this code" in capsys.readouterr().out


# ── stale or not ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_section_is_marked_when_its_chapter_changes_and_unmarked_when_it_is_as_before(runner, places):
    ledger.write(*places)
    page, first = places[0], book.chapters()[0].path
    fresh, source = page.read_text(encoding="utf-8"), first.read_text(encoding="utf-8")
    assert ledger.check(page) == []
    assert page.read_text(encoding="utf-8") == fresh
    first.write_text(source.replace("above=0.5", "above=0.6"))
    assert ledger.marked(fresh) != fresh  # so that the test of the committed page can fail
    assert ledger.check(page) == ["00_first"]
    text = page.read_text(encoding="utf-8")
    assert text.count("stale: made by another version of the code") == 1
    assert text.index("## [0") < text.index("stale: made by") < text.index("## [1")
    assert "**stale: 1**" in text
    assert ledger.marked(text) == text
    first.write_text(source)
    assert ledger.check(page) == []
    assert page.read_text(encoding="utf-8") == fresh
    assert runner.ran == ["00_first", "01_second"]


def test_running_a_chapter_by_hand_does_not_make_it_stale(runner, places):
    ledger.write(*places)
    path = book.chapters()[0].path
    executed = nbformat.read(path, as_version=4)
    executed.cells[1].outputs = [nbformat.v4.new_output("stream", text="seen")]
    executed.cells[1].execution_count = 1
    nbformat.write(executed, path)
    assert ledger.check(places[0]) == []


@pytest.mark.parametrize("file", ["claims.py", "answers_new.py", "tables.py", "plots.py"])
def test_other_answers_or_another_rule_of_the_verdict_make_it_stale_and_another_plot_does_not(
    runner, places, file, tmp_path, monkeypatch
):
    room = tmp_path / "room"
    room.mkdir()
    for name in ("claims.py", "tables.py", "answers.py", "plots.py"):
        (room / name).write_text("before")
    monkeypatch.setattr(ledger, "__file__", str(room / "ledger.py"))
    before = ledger.key(book.chapters()[0].path)
    (room / file).write_text("after")
    assert (ledger.key(book.chapters()[0].path) == before) == (file == "plots.py")


def test_a_chapter_that_was_never_run_says_so(runner, places):
    assert ledger.check(places[0]) == ["00_first", "01_second"]
    text = places[0].read_text(encoding="utf-8")
    assert text.count("Not run yet.") == 2
    assert "**not run yet: 2**" in text
    assert ledger.marked(text) == text


def test_a_chapter_must_be_a_notebook(tmp_path):
    for text in ("{", "[]", '{"cells": 1}'):
        (tmp_path / "x.ipynb").write_text(text)
        with pytest.raises(ValueError, match=r"x\.ipynb is no notebook"):
            ledger.key(tmp_path / "x.ipynb")


def test_the_committed_page_is_of_this_code_or_says_that_it_is_stale():
    text = ledger.PAGE.read_text(encoding="utf-8")
    assert ledger.marked(text) == text, "run `python -m pruninglab ledger --check`"
    assert text.count("\n## ") == len(book.written())


def test_make_passes_it_on(monkeypatch):
    ran = []
    monkeypatch.setattr(lab, "set_up", lambda: None)
    monkeypatch.setattr(lab, "run", lambda *command: ran.append(command) or 0)
    monkeypatch.setattr(sys, "argv", ["lab", "ledger", "--check"])
    assert lab.main() == 0
    assert ran == [("-m", "pruninglab", "ledger", "--check")]
