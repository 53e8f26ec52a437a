"""The index of names: that it finds what a chapter uses and explains, and that no chapter runs ahead of its text."""

from pathlib import Path

import pytest

import pruninglab
from pruninglab.book import BOOK, Chapter
from pruninglab.cli import main
from pruninglab.measure import flops
from pruninglab.notebook import names
from pruninglab.pruning import prune

FIRST, SECOND = (Chapter(number, "Title", "answer", Path(f"{number}.ipynb")) for number in (0, 1))


def made(*cells):
    """Cells from texts: what begins with a comment sign or a blank is Markdown, the rest is code."""
    kinds = [("markdown" if text.startswith((" ", "#")) else "code", text) for text in cells]
    return [{"cell_type": kind, "source": text} for kind, text in kinds]


def explained(*cells):
    return {use.path.removeprefix("pruninglab."): use.explained for use in names.uses(made("# Title", *cells))}


def test_a_name_is_explained_by_backticks_up_to_the_next_text():
    use = "from pruninglab import prune, task\nprune(1)"
    assert explained(use) == {"prune": False}  # what is only imported is not used yet
    assert explained(use, " `prune` removes.") == {"prune": True}
    assert explained(" Call `prune(net, …)`.", use, " Nothing.") == {"prune": True}
    assert explained(use, "x = 1", " `prune`") == {"prune": True}
    assert explained(use, " Nothing.", " `prune`, too late") == {"prune": False}
    assert explained(use, " prune, and `pruned`, are other words.") == {"prune": False}


def test_a_name_is_explained_by_building_it():
    by_hand = "def flops(net):\n    return 0"
    assert explained("from pruninglab.measure import flops as theirs", by_hand, "theirs(1)") == {"measure.flops": True}
    assert explained(by_hand.replace("flops", "flops_of"), "from pruninglab.measure import flops\nflops(1)") == {
        "measure.flops": False
    }


def test_only_the_librarys_names_count_and_arguments_are_not_names():
    assert explained("from math import sqrt\nsqrt(2)\nprint(sqrt)") == {}
    hidden = "from pruninglab.perp import share\ndef f(share):\n    return share\ng = lambda share: share"
    assert explained(hidden) == {}
    assert explained(hidden, "share(1)") == {"perp.share": False}
    assert explained("from pruninglab.perp import share\nf = lambda x: share(x)") == {"perp.share": False}


def test_what_a_module_holds_is_named_and_not_the_module():
    cells = "from pruninglab import measure, tasks", "measure.flops(1)\ntasks.models.mlp(1).weight"
    assert explained(*cells, " `mlp` and `measure`") == {"measure.flops": False, "tasks.models.mlp": True}


def test_a_thing_under_two_names_is_introduced_once_and_where_it_is_explained():
    first = made("# One", "from pruninglab import prune\nprune(1)", " `prune`")
    second = made("# Two", "from pruninglab.pruning import prune\nfrom pruninglab.measure import flops\nprune(flops)")
    third = made("# Three", "from pruninglab.measure import flops\nflops", " `flops`")
    found = {entry.thing: entry for entry in names.entries([(FIRST, first), (SECOND, second), (SECOND, third)])}
    assert set(found) == {prune, flops}
    assert found[prune].introduced == found[prune].first == (FIRST, "One")
    assert found[flops].first == (SECOND, "Two")
    assert found[flops].introduced == (SECOND, "Three")
    assert "(chapter 1)" not in {row[2] for row in names.rows(found.values())}


def test_the_page_says_what_is_introduced_where_and_what_is_not():
    code = "from pruninglab.notebook import canvas\nfrom pruninglab import prune\ncanvas(prune)"
    cells = made("# One", code, " `prune`")
    text = names.page(names.entries([(FIRST, cells)]))
    around = text.index("## For pictures")
    unused = text.index("## Public, but in no chapter")
    assert text.index("- `prune` · [chapter 0](0.ipynb), *One*: Choose which weights go") < around
    assert around < text.index("- `canvas` · [chapter 0](0.ipynb), *One*") < unused
    assert text.index("- `slim`: A smaller copy of a model") > unused
    assert "- `prune`:" not in text


def test_every_name_that_a_chapter_uses_is_explained_there_or_before():
    found = [entry for entry in names.entries(names.read()) if not names.for_pictures(entry)]
    assert len(found) > 80
    ahead = {f"chapter {e.first[0].number}, {e.first[1]}": e.path for e in found if e.introduced is None}
    assert not ahead, "a Markdown cell beside the first use has to say what it is, with the name in backticks"
    assert not [e.path for e in found if e.introduced[0] != e.first[0]]


def test_the_page_is_what_the_code_makes():
    page = (BOOK / "names.md").read_text(encoding="utf-8")
    assert page == names.page(names.entries(names.read())), "run `python -m pruninglab names`"
    assert all(f"- `{name}`" in page for name in pruninglab.__all__)


def test_the_command_lists_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(names, "PAGE", tmp_path / "names.md")
    assert main(["names"]) == 0
    assert "slim" in capsys.readouterr().out
    assert (tmp_path / "names.md").read_text(encoding="utf-8") == (BOOK / "names.md").read_text(encoding="utf-8")


def test_without_the_book_it_is_said(monkeypatch):
    monkeypatch.setattr(names.book, "chapters", list)
    with pytest.raises(FileNotFoundError, match="needs a checkout"):
        names.read()
