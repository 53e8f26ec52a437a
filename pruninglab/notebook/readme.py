"""What the README shows, made by the code: its picture, the map of the chapters, and a table of results."""

import copy
from pathlib import Path

from pruninglab.book import chapters
from pruninglab.compare import compare
from pruninglab.notebook.plots import draw_masks
from pruninglab.notebook.tables import means
from pruninglab.pruning import prune
from pruninglab.tasks import task

CRITERIA = ("taylor", "obd", "wanda")
SPARSITIES = (0.5, 0.8, 0.9, 0.95)


def write(root: Path) -> None:
    """Make `images/pruned.png` and fill in the parts of `README.md` between its `made by` marks."""
    dense = task("digits-mlp").trained(0)
    picture = draw_masks(prune(copy.deepcopy(dense), sparsity=0.9))
    (root / "images").mkdir(exist_ok=True)
    picture.save(root / "images" / "pruned.png")
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    text = fill(text, "picture", f"![{picture.alt}](images/pruned.png)")
    text = fill(text, "map", chapter_map())
    text = fill(text, "results", results())
    readme.write_text(text, encoding="utf-8")


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between `<!-- made: name -->` and `<!-- end -->`.

    Raises:
        ValueError: the marks are not there.
    """
    start, end = f"<!-- made: {name} -->", "<!-- end -->"
    before, mark, rest = text.partition(start)
    if not mark or end not in rest:
        raise ValueError(f"the README has no marks for {name!r}")
    return f"{before}{start}\n{content}\n{end}{rest.partition(end)[2]}"


def chapter_map() -> str:
    """The chapters as a Markdown table."""
    rows = [f"| [{each.number} · {each.title}](book/{each.path.name}) | {each.answer} |" for each in chapters()]
    return "\n".join(["| chapter | its answer |", "| --- | --- |", *rows])


def results() -> str:
    """Accuracy of the built-in criteria on the digits, mean ± standard deviation over five seeds, as Markdown."""
    table = compare(CRITERIA, task="digits-mlp", sparsity=SPARSITIES, seeds=5)
    shown = means(table[table["criterion"] != "dense"]).sort_values(by="accuracy, %: 0.9 removed", ascending=False)
    rows = ["| " + " | ".join(["criterion", *shown.columns]) + " |", "| --- |" + " --- |" * len(SPARSITIES)]
    rows += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in zip(shown.index, shown.values, strict=True)]
    dense = 100 * table[table["criterion"] == "dense"]["accuracy"]
    return "\n".join(rows) + f"\n\nThe dense network: {dense.mean():.1f} ± {dense.std():.1f} %."
