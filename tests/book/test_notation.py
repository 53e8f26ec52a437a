"""The notation page: every letter of the chapters' formulas is on it, once, and stands where the page says."""

import ast
import re

import pytest

from pruninglab import book
from pruninglab.files import PACKAGE
from pruninglab.notebook import names

PAGE = (book.BOOK / "notation.md").read_text(encoding="utf-8")
GREEK = {
    "beta",
    "gamma",
    "delta",
    "Delta",
    "varepsilon",
    "eta",
    "theta",
    "lambda",
    "mu",
    "rho",
    "sigma",
    "varphi",
    "ell",
}
ELSEWHERE = {"x"}  # has a meaning everywhere, and another one in chapter 7, as in the papers that it follows


def formulas(cells):
    """What stands between dollar signs in Markdown cells, code in backticks left out."""
    texts = [re.sub(r"`[^`]*`", "", cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    found = [found for text in texts for found in re.findall(r"\$\$(.+?)\$\$|\$([^$]+)\$", text, re.S)]
    return [squeezed(display or inline) for display, inline in found]


def squeezed(formula):
    return re.sub(r"\\[,;!] ?|\s+(?![A-Za-z])|(?<![A-Za-z])\s+", "", formula)


def letters(formula, compounds=()):
    """The letters of a formula, Greek ones too, after crossing out symbols of several signs."""
    for symbol in sorted(compounds, key=len, reverse=True):
        formula = formula.replace(symbol, " ")
    formula = re.sub(r"\\(texttt|text|mathrm|begin|end)\s*(\{[^}]*\}|\w)|\\math(bb|bf)\s*\{?\w\}?", " ", formula)
    words = re.findall(r"\\([A-Za-z]+)|([A-Za-z])", formula)
    return {f"\\{command}" if command else letter for command, letter in words if letter or command in GREEK}


def table(heading):
    """The rows of the table under a heading, each a list of cells."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [re.split(r" ?\| ?", line)[1:-1] for line in section.splitlines() if line.startswith("|")][2:]
    assert rows
    return rows


def symbols(cell):
    return [squeezed(symbol) for symbol in re.findall(r"\$([^$]+)\$", cell)]


def chapter_of(cell):
    (linked,) = re.findall(r"^\[(\d+)\]\((\d\d)_\w+\.ipynb\)$", cell)
    assert int(linked[0]) == int(linked[1])
    return int(linked[0])


BOOK = {chapter.number: formulas(cells) for chapter, cells in names.read()}
GENERAL = [(symbols(row[0]), chapter_of(row[-1])) for row in table("Letters that mean the same everywhere")]
LOCAL = [(symbols(row[0]), chapter_of(row[-1])) for row in table("Letters of one chapter")]
SIGNS = [(symbols(row[0]), chapter_of(row[-1])) for row in table("Signs")]


def simple(symbol):
    return bool(re.fullmatch(r"[A-Za-z]|\\[A-Za-z]+", symbol))


def local(number):
    return [symbol for row, chapter in LOCAL if chapter == number for symbol in row]


def here(number):
    """The letters of a chapter that are not crossed out as its own or as parts of longer symbols."""
    compounds = [s for s in [*local(number), *(s for row, _ in GENERAL for s in row)] if not simple(s)]
    return set().union(*(letters(formula, compounds) for formula in BOOK[number])) if BOOK[number] else set()


@pytest.mark.parametrize(
    ("formula", "compounds", "expected"),
    [
        (r"s(t) = s_f + 2\,(1 - t)^3", ["s_f"], {"s", "t"}),
        (r"\theta_T = \text{train}(m_r \odot \theta_0)", [r"\theta_T"], {r"\theta", "m", "r"}),
        (r"\mathbb E_x \mathrm{relu}(\beta_i)", [], {"x", r"\beta", "i"}),
        (r"\frac{\mathrm dL}{\mathrm dm}", [], {"L", "m"}),
        (r"n_\text{in}", [], {"n"}),
    ],
)
def test_letters_are_found(formula, compounds, expected):
    assert letters(squeezed(formula), [squeezed(symbol) for symbol in compounds]) == expected


def test_formulas_are_found_and_code_is_not():
    cells = [{"cell_type": "markdown", "source": "$a$ costs `$b$`\n$$c\n+ d$$"}, {"cell_type": "code", "source": "$e$"}]
    assert formulas(cells) == ["a", "c+d"]


@pytest.mark.parametrize("number", BOOK)
def test_every_letter_of_a_chapter_is_on_the_page(number):
    known = {symbol for row, _ in GENERAL for symbol in row} | set(local(number))
    assert here(number) <= known


@pytest.mark.parametrize(("row", "number"), GENERAL, ids=lambda value: str(value))
def test_a_letter_stands_first_where_the_page_says(row, number):
    def stands(symbol, chapter):
        if simple(symbol):
            return symbol in here(chapter) and symbol not in local(chapter)
        return any(symbol in formula for formula in BOOK[chapter])

    assert next(chapter for chapter in BOOK if stands(row[0], chapter)) == number
    assert all(any(stands(symbol, chapter) for chapter in BOOK) for symbol in row)


@pytest.mark.parametrize(("row", "number"), LOCAL, ids=lambda value: str(value))
def test_a_letter_of_one_chapter_stands_in_it(row, number):
    found = set().union(*(letters(formula) for formula in BOOK[number]))
    assert all(symbol in found if simple(symbol) else any(symbol in f for f in BOOK[number]) for symbol in row)


def test_no_letter_means_two_things_at_one_place():
    general = [symbol for row, _ in GENERAL for symbol in row]
    own = [(symbol, chapter) for row, chapter in LOCAL for symbol in row]
    assert len(set(general)) == len(general)
    assert len(set(own)) == len(own)
    assert set(general) & {symbol for symbol, _ in own} == ELSEWHERE


@pytest.mark.parametrize(("row", "number"), SIGNS, ids=lambda value: str(value))
def test_a_sign_stands_first_where_the_page_says(row, number):
    assert next(chapter for chapter in BOOK if any(row[0] in formula for formula in BOOK[chapter])) == number


def test_what_docstrings_write_differently_is_there():
    for written, _, _, module in table("In docstrings"):
        tree = ast.parse((PACKAGE / module.strip("`")).read_text(encoding="utf-8"))
        rooms = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        text = "\n".join(ast.get_docstring(node) or "" for node in rooms)
        assert all(re.search(rf"(?<![A-Za-z]){letter}(?![A-Za-z])", text) for letter in written.split(", ")), written
