"""The works that the book builds on, as BibTeX. Nothing is kept twice: they are read from where they are cited.

That is each chapter's "Further reading" and the atlas of published systems. The same work is known by its arXiv number
or its title; of what several places say, the longest list of authors and the fullest title count.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace

HEADING = "## Further reading"
WHERE = r"\((?P<where>[^()]*\b(?:19|20)\d\d\b[^()]*)\)"
IN_CHAPTER = re.compile(rf"(?P<authors>[^*();:]*?)\*(?P<title>[^*]+)\* {WHERE}")
IN_ATLAS = re.compile(rf"(?P<authors>[^:]+): (?P<title>.+) {WHERE}$")
OTHERS = re.compile(r",? (?:et al\.|and others)$")


@dataclass(frozen=True)
class Work:
    """One work: its authors' names, its title, year, arXiv number and venue ("" where there is none)."""

    authors: tuple[str, ...]
    title: str
    year: str
    arxiv: str = ""
    venue: str = ""
    others: bool = False  # whether more authors are left out

    @property
    def key(self) -> str:
        """Its name in the .bib file, such as `sun-2023-simple`: nothing that later works could change."""
        words = [word for word in _plain(self.title).split() if word not in ("a", "an", "the", "on", "to", "is")]
        return "-".join([*_plain(self.surname).split(), self.year, words[0]])

    @property
    def surname(self) -> str:
        """Of the first author; "" where the work names none."""
        return re.sub(r"^(?:\w[\w.-]*\. ?)+", "", self.authors[0]) if self.authors else ""

    def same(self, other: "Work") -> bool:
        """Whether both are the same work."""
        if self.arxiv and other.arxiv:
            return self.arxiv == other.arxiv
        mine, yours = sorted((_plain(self.title), _plain(other.title)), key=len)
        return self.surname == other.surname and yours.startswith(mine)

    def bibtex(self) -> str:
        """An entry of a .bib file."""
        fields = {"author": " and ".join((*self.authors, *["others"] * self.others))} if self.authors else {}
        fields |= {"title": f"{{{self.title}}}"}
        fields |= {"howpublished": self.venue} if self.venue else {}
        fields |= {"year": self.year}
        fields |= {"eprint": self.arxiv, "archivePrefix": "arXiv"} if self.arxiv else {}
        return f"@misc{{{self.key},\n" + "".join(f"  {name} = {{{text}}},\n" for name, text in fields.items()) + "}\n"


def cited(text: str) -> list[tuple[Work, int]]:
    """The works in the "Further reading" of a chapter's cell, each with the place in the text where it ends.

    Raises:
        ValueError: a line there names a work in a form that is not understood.
    """
    found: list[tuple[Work, int]] = []
    start = text.find(HEADING)
    for line in re.finditer(r"^- .*$", text[start:], re.M) if start >= 0 else ():
        here = list(IN_CHAPTER.finditer(line[0]))
        if not here:
            raise ValueError(
                f"no work is found in {line[0]!r}; the form is: - A. Name, *Title* (2020, arXiv 2001.00001)"
            )
        for match in here:
            authors = re.sub(r"^(?:- |[,;] ?|and\b)+", "", match["authors"].strip() + " ").strip(" ,;")
            authors = re.sub(r"^and ", "", authors)
            found.append((_work(authors, match, found[-1][0] if found else None), start + line.start() + match.end()))
    return found


def published() -> list[Work]:
    """The works of the atlas."""
    from pruninglab.atlas import SYSTEMS

    matches = [(IN_ATLAS.match(system.reference), system) for system in SYSTEMS.values()]
    if unread := [system.reference for match, system in matches if match is None]:
        raise ValueError(f"not in the form Authors: Title (venue 2020, arXiv 2001.00001): {'; '.join(unread)}")
    return [_work(match["authors"], match, None) for match, _ in matches if match is not None]


def merged(works: Iterable[Work]) -> list[Work]:
    """Each work once, in the order of first authors."""
    once: list[Work] = []
    for work in works:
        for index, other in enumerate(once):
            if work.same(other):
                once[index] = _fuller(other, work)
                break
        else:
            once.append(work)
    return sorted(once, key=lambda work: (_plain(work.surname), work.year, work.title))


def _fuller(a: Work, b: Work) -> Work:
    named = max(a, b, key=lambda work: (not work.others, len(work.authors)))
    whole = max(a, b, key=lambda work: len(work.title))
    return replace(
        whole,
        authors=named.authors,
        others=named.others,
        year=min(a.year, b.year) if a.venue == b.venue else (a if a.venue else b).year,
        arxiv=a.arxiv or b.arxiv,
        venue=max(a.venue, b.venue, key=len),
    )


def _work(authors: str, match: re.Match[str], before: Work | None) -> Work:
    """A work; without authors of its own, it is by those of the one before it."""
    where = match["where"]
    arxiv = re.search(r"arXiv (\d{4}\.\d{4,5})", where)
    year = re.findall(r"\b(?:19|20)\d\d\b", re.sub(r"arXiv \S+", "", where))[0]
    venue = re.sub(rf",? ?(?:arXiv \S+|\b{year}\b).*", "", where).strip(" ,")
    title, others = match["title"].strip(), OTHERS.search(authors) is not None
    names = tuple(name for name in re.split(r", | and ", OTHERS.sub("", authors)) if name)
    if not names and before is not None:
        names, others = before.authors, before.others
    elif not any("." in name for name in names):  # not a name with its initials, but the title up to its colon
        names, title = (), f"{authors}: {title}"
    return Work(names, title, year, arxiv[1] if arxiv else "", venue, others)


def _plain(text: str) -> str:
    """Small Latin letters and figures, and single spaces."""
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return " ".join(re.findall(r"[a-z0-9]+", text))
