"""The glossary: every term once, in order, and first in the chapter that it names; and that the reader finds it."""

import re

import pytest

from pruninglab.book import BOOK
from pruninglab.notebook import names

PAGE = (BOOK / "glossary.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (.+)\n\n([^#]+)", PAGE, re.M)
TERMS = [term for term, _ in SECTIONS]


def prose(cells):
    """The text of Markdown cells without code, formulas, addresses and the list of papers."""
    texts = [cell["source"] for cell in cells if cell["cell_type"] == "markdown"]
    left = [text for text in texts if "## Further reading" not in text]
    bare = re.sub(r"`[^`]*`|\$\$.+?\$\$|\$[^$]+\$|\]\([^)]*\)|<[^>]+>", " ", "\n\n".join(left), flags=re.S)
    return re.sub(r"[*_\[]", "", bare)


def stands(term, text):
    """Whether a term, or its plural, is in a text as words of their own; a large first letter counts in names only."""
    flags = re.I if term[0].islower() else 0
    return bool(re.search(rf"(?<!\w){re.escape(term)}(?:e?s)?(?!\w)", text, flags))


BOOK_PROSE = {chapter: prose(cells) for chapter, cells in names.read()}


def test_words_are_found_and_code_and_papers_are_not():
    cells = [
        {"cell_type": "markdown", "source": "**Masks** of a `unit` with $k$ [weights](bias.ipynb)\n$$gate$$"},
        {"cell_type": "markdown", "source": "## Further reading\n\n- A ticket"},
        {"cell_type": "code", "source": "# price"},
    ]
    text = prose(cells)
    assert stands("mask", text)
    assert stands("weight", text)
    assert not any(stands(term, text) for term in ("unit", "bias", "gate", "ticket", "price", "mas", "Mas"))
    assert stands("SET", "SET grows")
    assert not stands("SET", "we set it")


def test_the_page_is_all_terms():
    assert len(TERMS) > 100
    assert PAGE.count("\n## ") == len(TERMS)


def test_no_term_is_there_twice_and_all_are_in_order():
    plain = [term.casefold() for term in TERMS]
    assert plain == sorted(plain)
    assert len({term.removesuffix("s") for term in plain}) == len(plain)


@pytest.mark.parametrize(("term", "section"), SECTIONS, ids=TERMS)
def test_a_term_has_two_sentences_and_stands_first_in_the_chapter_that_is_named(term, section):
    told, where = section.strip().split("\n\n")
    assert len(re.findall(r"[.?]\*?(?=\s|$)", told)) == 2
    (link,) = re.findall(r"^First in \[chapter (\d+)\]\((\S+)\)(?: · also called: \S.*)?$", where.replace("\n", " "))
    first = next(chapter for chapter, text in BOOK_PROSE.items() if stands(term, text))
    assert link == (str(first.number), first.path.name)


def test_links_lead_somewhere():
    assert all((BOOK / link).exists() for link in re.findall(r"\]\(([^)]+)\)", PAGE))
