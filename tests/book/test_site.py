"""The HTML book: it is made without a warning, needs nothing from elsewhere, and can be read by everybody."""

import json
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from pruninglab import book
from pruninglab.cli import main
from pruninglab.notebook import ledger, references, site, site_pages

SHOTS = book.BOOK.parent / "build" / "screenshots"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The book with two chapters that were run quickly, the others without results, and no reference of the library."""
    try:
        site.check_installed()
    except ImportError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        two = [chapter for chapter in book.chapters() if chapter.number in (0, 1)]
        patch.setattr(book, "chapters", lambda: two)
        ledger.run(folder / "store", {"fast": True}, copies=True)
    runs = site.found(folder / "store")
    assert [run.chapter.number for run in runs if run.copy] == [0, 1]
    assert site.build(runs, folder / "html", fast=True, library=False) == ""
    return folder / "html"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The whole book, from the ledger's runs, with its print version where there is a Chromium."""
    runs = site.found()
    if missing := [run.chapter.path.stem for run in runs if run.copy is None]:
        pytest.skip(f"the ledger has no executed copy, of this code, of {', '.join(missing)}: make ledger")
    out = tmp_path_factory.mktemp("site") / "html"
    try:
        browser = site.find_browser()
    except FileNotFoundError:
        browser = None
    assert site.build(runs, out, browser=browser) == ""
    return out


def faults(folder):
    """What is wrong with the pages of a folder: a line each."""
    soup_of = cache(lambda path: bs4().BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser"))
    names_of = cache(lambda path: {tag["id"] for tag in soup_of(path).find_all(id=True)})
    for page in sorted(folder.rglob("*.html")):
        if "_static" in page.parts:  # the theme's, and no page
            continue
        soup, name = soup_of(page), page.relative_to(folder)
        if len(soup.find_all("h1")) != 1:
            yield f"{name}: {len(soup.find_all('h1'))} headings of the first level"
        if soup.html.get("lang") != "en":
            yield f"{name}: its language is not named"
        if not soup.select('#pst-skip-link a[href="#main-content"]'):
            yield f"{name}: no skip link"
        for image in soup.find_all("img"):
            alt = image.get("alt", "")
            if len(alt.split()) < 3 or "/" in alt.split()[0] or alt.endswith((".png", ".svg")):
                yield f"{name}: alt text {alt!r}"
        for tag, attribute in (
            ("script", "src"),
            ("img", "src"),
            ("link", "href"),
            ("iframe", "src"),
            ("source", "src"),
        ):
            for found in soup.find_all(tag, **{attribute: True}):
                if re.match(r"(?:https?:)?//", found[attribute]):
                    yield f"{name}: needs {found[attribute]}"
        if re.search(r"url\(['\"]?(?:https?:)?//|@import", "".join(style.text for style in soup.find_all("style"))):
            yield f"{name}: a style from elsewhere"
        for link in soup.find_all("a", href=True):
            parts = urlsplit(link["href"])
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page.resolve()
            if not target.is_file():
                yield f"{name}: leads to {link['href']}, which is not there"
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in names_of(target):
                yield f"{name}: leads to {link['href']}, where there is no such place"
        if re.search(r"\d+%\|[█ ]|it/s\]|s/it\]|Traceback", "" if "_modules" in page.parts else soup.get_text()):
            yield f"{name}: a progress bar, or an error"
    for style in folder.rglob("*.css"):
        if re.search(r"url\(['\"]?(?:https?:)?//|@import\s+(?:url\()?['\"]?(?:https?:)?//", style.read_text("utf-8")):
            yield f"{style.relative_to(folder)}: needs something from elsewhere"


def bs4():
    return pytest.importorskip("bs4")


def test_the_checks_of_this_file_find_what_is_wrong(tmp_path):
    (tmp_path / "bad.html").write_text(
        '<html><body><h1>A</h1><h1>B</h1><img src="a.png" alt="images/a.png"><script src="https://x.org/a.js"></script>'
        '<link rel="stylesheet" href="//x.org/a.css"><style>a {background: url(http://x.org/a)}</style>'
        '<a href="gone.html">g</a><a href="bad.html#nowhere">n</a><pre>50%|█████ </pre></body></html>'
    )
    (tmp_path / "bad.css").write_text('@import url("https://x.org/font.css");')
    assert len(list(faults(tmp_path))) == 11


def test_quick_pages_have_no_fault(made):
    assert list(faults(made)) == []


def test_what_was_not_run_has_no_results_and_says_so(made):
    not_run = (made / "03_structured.html").read_text(encoding="utf-8")
    assert "it is shown without results" in not_run
    assert "cell_output" not in not_run
    run = (made / "01_measure.html").read_text(encoding="utf-8")
    assert "cell_output" in run
    for page in made.glob("0[01]_*.html"):
        assert site_pages.QUICK in page.read_text(encoding="utf-8"), page.name


def test_hints_and_solutions_are_folded_and_notebooks_can_be_had(made):
    page = bs4().BeautifulSoup((made / "01_measure.html").read_text(encoding="utf-8"), "html.parser")
    folded = [details for details in page.find_all("details") if not details.has_attr("open")]
    texts = [details.summary.get_text(" ", strip=True) for details in folded]
    assert sum(text.startswith("Hint ") for text in texts) == 6
    solutions = [details for details in folded if "BEGIN SOLUTION" in details.get_text()]
    assert len(solutions) == 2
    assert page.get_text().count("BEGIN SOLUTION") == 2
    links = page.find_all("a", download=True)
    assert len(links) == 3  # one above, and one in each exercise
    assert (made / links[0]["href"]).read_bytes() == (book.BOOK / "01_measure.ipynb").read_bytes()


def test_a_picture_stands_in_for_each_widget(made):
    page = (made / "01_measure.html").read_text(encoding="utf-8")
    assert "widget-view" not in page
    assert "VBox(" not in page
    assert "Here is a slider in JupyterLab" in page


def test_the_search_knows_a_word_of_chapter_2(made):
    index = json.loads((made / "searchindex.js").read_text(encoding="utf-8")[len("Search.setIndex(") : -1])
    found = index["terms"]["histogram"]
    assert index["docnames"].index("02_magnitude") in (found if isinstance(found, list) else [found])


def test_the_status_page_tells_what_was_run_with_what(made):
    text = bs4().BeautifulSoup((made / "status.html").read_text(encoding="utf-8"), "html.parser").get_text(" ")
    assert text.count("✔ passed") == 2
    assert text.count("not run") == len(book.chapters()) - 2
    assert re.search(r"Python 3\.\d+\.\d+, torch \d", text)


def test_every_work_that_chapters_cite_is_in_the_references(made):
    bib = (made / "downloads" / "references.bib").read_text(encoding="utf-8")
    page = (made / "references.html").read_text(encoding="utf-8")
    cited, years = [], {(work.surname.rpartition(" ")[2], work.year) for work in references.published()}
    for chapter in book.chapters():
        cells = json.loads(chapter.path.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        lines = [line for text in texts for line in text[text.find(references.HEADING) :].splitlines()]
        works = [work for text in texts for work, _ in references.cited(text)]
        assert works, chapter.path.name
        for work in works:  # a work may have two years: printed in the one after that of its conference
            line = next(line for line in lines if f"*{work.title}*" in line)
            years |= {(work.surname.rpartition(" ")[2], year) for year in re.findall(r"\b(?:19|20)\d\d\b", line)}
        cited += [(chapter.path.name, *match) for text in texts for match in ledger.CITATION.findall(text)]
        for work in works:
            assert work.arxiv in bib, work
            assert work.title in bib, work
            assert not work.arxiv or f"arxiv.org/abs/{work.arxiv}" in page, work
    unknown = [
        (where, names, year)
        for where, names, several in cited
        for year in re.findall(r"\d{4}", several)
        if (re.split(r" (?:et al|&|and)", names)[0], year) not in years
    ]
    assert len(cited) > 10
    assert unknown == []


@pytest.mark.parametrize(
    ("line", "works"),
    [
        ("A. B. Name, C. Other, *First* (2020, arXiv 2001.00001): a note (of 1999).", ["name-2020-first"]),
        ("A. Name et al., *First* (2019) and *Second* (ICLR 2020): both.", ["name-2019-first", "name-2020-second"]),
        (
            "A. de Name, *A first* (1999), and T.-J. Other et al., *Its* (2020): x.",
            ["de-name-1999-first", "other-2020-its"],
        ),
        ("A. Name, *First* (2019); B. Other, *On second* (2020).", ["name-2019-first", "other-2020-second"]),
    ],
)
def test_works_are_read_from_further_reading(line, works):
    found = references.cited(f"## Further reading\n\n- {line}\n\n**Next:** more")
    assert [work.key for work, _ in found] == works


def test_a_line_without_a_work_is_an_error():
    with pytest.raises(ValueError, match="no work is found in '- Some book, somewhere'"):
        references.cited("## Further reading\n\n- Some book, somewhere")


def test_the_same_work_is_listed_once_with_all_that_is_known():
    short = references.Work(("A. Name",), "First", "2019", others=True)
    full = references.Work(("A. Name", "B. Other"), "First: in full", "2020", "2001.00001", "ICLR")
    assert references.merged([short, full]) == [full]
    assert references.merged([full, short]) == [full]


def test_docstrings_keep_their_mathematics():
    said = "Score |w| * x_ of *some* `a|b`.\n\n    code |w|\n\nArgs:\n    x: (d, *k)."
    expected = "Score \\|w\\| \\* x\\_ of *some* `a|b`.\n\n\n::\n\n    code |w|\n\n\nArgs:\n    x: (d, \\*k)."
    assert site_pages.docstring(said) == expected


def test_it_says_what_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(site, "find_spec", lambda name: None)
    assert main(["site", "--no-run"]) == 1
    assert "pip install 'pruninglab[site]'" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(site, "check_installed", lambda: None)
    monkeypatch.setenv("CHROMIUM", "no-such-browser")
    assert main(["site", "--no-run", "--pdf"]) == 1
    assert "$CHROMIUM is 'no-such-browser', which is no program" in capsys.readouterr().err
    (tmp_path / "mine.txt").write_text("keep me")
    assert main(["site", "--no-run", "--out", str(tmp_path)]) == 1
    assert "holds something that is no HTML book" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "keep me"


@pytest.mark.slow
def test_the_whole_book_has_no_fault(whole):
    assert list(faults(whole)) == []
    chapter = (whole / "02_magnitude.html").read_text(encoding="utf-8")
    assert 'href="api/pruninglab.pruning.html#pruninglab.pruning.prune"' in chapter
    assert site_pages.QUICK not in chapter
    pdf = whole / site.PDF
    if pdf.exists():
        assert pdf.read_bytes().startswith(b"%PDF")
        assert len(re.findall(rb"/Type ?/Page\b", pdf.read_bytes())) > 50


# ── in a browser ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def browser():
    """Chromium, through Playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    try:
        path = site.find_browser()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def reader(browser):
    """A page that may read nothing but files, and that says what it complains of."""
    context = browser.new_context(color_scheme="light")
    context.set_offline(True)
    page = context.new_page()
    complaints = []
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url[:200]}"))
    page.on(
        "request", lambda r: complaints.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None
    )
    yield page, complaints
    context.close()


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_pages_ask_nothing_of_a_network_and_complain_of_nothing(made, reader):
    page, complaints = reader
    SHOTS.mkdir(parents=True, exist_ok=True)
    for name in (
        "index",
        "00_start_here",
        "02_magnitude",
        "05_sparse_from_the_start",
        "ledger",
        "status",
        "references",
    ):
        page.goto((made / f"{name}.html").as_uri())
        if 'class="math' in (made / f"{name}.html").read_text(encoding="utf-8"):
            page.wait_for_selector("mjx-container")
            page.wait_for_function("!document.querySelector('.math:not(:has(mjx-container))')")
        page.screenshot(path=SHOTS / f"site-test-{name}.png")
    assert complaints == []


def test_mathematics_is_set(made, reader):
    page, _ = reader
    page.goto((made / "02_magnitude.html").as_uri())
    page.wait_for_selector("mjx-container")
    assert page.locator("mjx-container").count() > 10
    assert page.locator("mjx-merror").count() == 0


def test_the_search_finds_chapters(made, reader):
    page, complaints = reader
    page.goto((made / "search.html").as_uri() + "?q=layerwise")
    page.wait_for_selector("#search-results li a")
    targets = page.eval_on_selector_all("#search-results li a", "all => all.map(a => a.getAttribute('href'))")
    assert any("02_magnitude.html" in target for target in targets)
    assert complaints == []


def test_keys_are_enough_and_dark_is_dark(made, reader):
    page, complaints = reader
    page.goto((made / "02_magnitude.html").as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#main-content"
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("!!document.activeElement.closest('header, nav')")
    page.keyboard.press("Control+k")
    assert page.evaluate("document.getElementById('pst-search-dialog').open")
    page.keyboard.type("layerwise")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    before = background(page)
    page.locator(".theme-switch-button").first.focus()
    page.keyboard.press("Enter")
    page.locator('.theme-change-button[data-mode="dark"]').first.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.documentElement.dataset.theme == 'dark'")
    assert background(page) != before
    assert complaints == []


def test_no_page_is_wider_than_a_phone(made, reader):
    page, _ = reader
    page.set_viewport_size({"width": 390, "height": 844})
    for name in ("index", "02_magnitude", "ledger", "status", "references"):
        page.goto((made / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name


def test_the_print_version_is_a_pdf(made, browser, tmp_path):
    site._print(made / "status.html", tmp_path / "one.pdf", site.find_browser())
    assert Path(tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")
