"""The report: one file that needs no network, says what the table says, and is there whole or not at all."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from pruninglab.notebook import report
from pruninglab.notebook.report import write_report

SETTING = {"task": "tiny", "unit": "weight", "allocation": "global", "schedule": "one_shot", "recovery": "none"}
QUALITY = {"mine": 0.10, "taylor": 0.08, "magnitude": 0.05, "random": -0.20}


def table(criteria=QUALITY, levels=(0.5, 0.9), seeds=range(5), **setting):
    """What `compare` would return, with numbers drawn from a seed."""
    generator = np.random.default_rng(0)
    rows = []
    for criterion, quality in {"dense": 0.1, **criteria}.items():
        for level in (0.0,) if criterion == "dense" else levels:
            for seed in seeds:
                accuracy = 0.8 + quality - level / 10 + seed / 50 + generator.normal(0, 0.005)
                measured = {"accuracy_before": accuracy - 0.1, "accuracy": accuracy, "validation": accuracy}
                cost = {"seconds_pruning": 0.01 + seed / 100, "seconds_recovery": 0.5, "steps": 15}
                row = {"criterion": criterion, "sparsity": level, "achieved": level, "seed": seed}
                rows.append(SETTING | setting | row | measured | cost | {"forward_passes": 3, "note": ""})
    return pd.DataFrame(rows)


class Page(HTMLParser):
    """What a browser would make of a page: elements in order with their attributes, texts, and tables."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.tables, self.texts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append({"caption": "", "rows": []})
        if tag == "tr":
            self.tables[-1]["rows"].append([])
        if tag in ("th", "td"):
            self.tables[-1]["rows"][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "elements are closed in order"

    def handle_data(self, data):
        self.texts.append(data)
        if "caption" in self.open:
            self.tables[-1]["caption"] += data
        elif {"th", "td"} & set(self.open):
            self.tables[-1]["rows"][-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def frame(self, caption):
        (found,) = (table for table in self.tables if caption in table["caption"])
        return pd.DataFrame(found["rows"][1:], columns=found["rows"][0])


@pytest.fixture
def written(tmp_path):
    def write(*arguments):
        return Page(write_report(arguments[0], tmp_path / "report.html", *arguments[1:]).read_text(encoding="utf-8"))

    return write


# ── one file ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_asks_nobody_for_anything(written, tmp_path):
    page = written(table().assign(note="see https://example.org <script src=https://example.org/x.js></script>"))
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "br", "div", "table", "caption"}
    allowed |= {"thead", "tbody", "tr", "th", "td", "b", "figure", "img", "figcaption", "details", "summary", "pre"}
    assert {name for name, _ in page.elements} == allowed
    for name, attributes in page.elements:
        assert not {"href", "srcset", "background", "action", "onload"} & attributes.keys(), name
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    (style,) = re.findall("<style>(.*?)</style>", (tmp_path / "report.html").read_text(), re.DOTALL)
    assert not re.search(r"url|@import|//", style)
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"], "browsers hold it to that"


def test_pictures_say_what_they_show_and_light_and_dark_are_the_readers_choice(written, tmp_path):
    page = written(table(recovery="finetune"))
    first, second = page.all("img")
    assert "accuracy against sparsity (50.0% to 90.0%)" in first["alt"]
    assert "mine" in first["alt"]
    assert "mine 0.03 s, 0.53 s with recovery" in second["alt"]
    assert "with recovery" not in written(table()).all("img")[1]["alt"]
    assert page.all("html") == [{"lang": "en"}]
    text = (tmp_path / "report.html").read_text()
    assert "color-scheme: light dark" in text
    colours = set(re.findall("#[0-9a-fA-F]{6}", re.search("<style>(.*?)</style>", text, re.DOTALL)[1]))
    assert colours == {"#808080"}, "borders; text and background are the browser's own"


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path, monkeypatch):
    path = write_report(table(), tmp_path / "folder" / "report.html")
    before = path.read_text()
    monkeypatch.setattr(report, "plot_tradeoff", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(table(), path)
    assert path.read_text() == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


# ── what it says ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_has_means_differences_settings_and_all_rows(written):
    rows = table()
    page = written(rows)
    means = page.frame("Test accuracy in percent, mean ± standard deviation over 5 seeds").set_index("criterion")
    mine = 100 * rows[(rows["criterion"] == "mine") & (rows["sparsity"] == 0.9)]["accuracy"]
    assert means.loc["mine", "accuracy, %: 0.9 removed"] == f"{mine.mean():.1f} ± {mine.std():.1f}"
    assert list(means.index) == ["dense", *QUALITY]
    assert list(page.frame("mine minus others")["against"]) == ["magnitude", "magnitude", *["best (taylor)"] * 2]
    settings = page.frame("What was run").set_index("setting")["value"]
    assert settings["task"] == "tiny"
    assert settings["sparsity"] == "0.5, 0.9"
    assert settings["seeds"] == "0, 1, 2, 3, 4"
    assert "torch 2" in settings["versions"]
    assert re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d", settings["written"])
    assert rows.to_csv(index=False) in page.texts


def test_differences_are_those_of_a_paired_t_test():
    rows = table()
    found = report.differences(rows, "mine")
    wide = rows[rows["sparsity"] == 0.9].pivot(index="seed", columns="criterion", values="accuracy")
    for against, told in (("magnitude", "magnitude"), ("taylor", "best (taylor)")):
        row = found[(found["sparsity"] == "0.9") & (found["against"] == told)].iloc[0]
        test = ttest_rel(wide["mine"], wide[against])
        low, high = test.confidence_interval(0.95)
        assert row["95 % interval"] == f"{100 * low:+.2f} to {100 * high:+.2f}"
        assert row["difference"] == f"{100 * (wide['mine'] - wide[against]).mean():+.2f}"
        assert row["verdict"] == ("better" if low > 0 else "cannot be told")
        assert row["seeds"] == 5


def test_the_verdict_counts_settings():
    rows = table()
    level = rows["sparsity"] == 0.5
    rows.loc[level & (rows["criterion"] == "mine"), "accuracy"] -= 0.2
    told = report.verdict(rows, "mine")
    assert told == "mine against magnitude, at 2 settings: better at 1, worse at 1, cannot be told at 0."
    assert "best other criterion (chosen on validation data)" in report.verdict(rows, "mine", "best")


def test_names_and_notes_are_text_and_never_markup(written):
    rows = table({"<lambda>": 0.1, "magnitude": 0.0, "random": -0.1})
    rows.loc[rows["criterion"] == "<lambda>", "note"] = "a < b & <img src=x>"
    page = written(rows)
    assert "<lambda>" in page.frame("Test accuracy")["criterion"].tolist()
    assert page.frame("Notes of runs")["note"].tolist() == ["a < b & <img src=x>"]
    assert len(page.all("img")) == 2


def test_failed_runs_are_told_and_left_out_of_the_means(written):
    rows = table()
    mine = rows["criterion"] == "mine"
    numbers = ["accuracy", "accuracy_before", "validation", "achieved", "seconds_pruning", "seconds_recovery"]
    rows.loc[mine & (rows["sparsity"] == 0.9), numbers] = np.nan
    rows.loc[mine & (rows["sparsity"] == 0.9), "note"] = "ValueError: NaN"
    rows.loc[mine & (rows["sparsity"] == 0.5) & (rows["seed"] > 1), numbers] = np.nan
    rows.loc[mine & (rows["sparsity"] == 0.5) & (rows["seed"] > 1), "note"] = "ValueError: NaN"
    rows.loc[(rows["criterion"] == "random") & (rows["seed"] == 0), "note"] = "all alike"
    page = written(rows)
    noted = page.frame("Notes of runs")
    assert noted.values.tolist() == [["mine", "8", "yes", "ValueError: NaN"], ["random", "2", "no", "all alike"]]
    means = page.frame("Test accuracy").set_index("criterion").loc["mine"]
    assert means["accuracy, %: 0.9 removed"] == "failed"
    left = 100 * rows[mine & (rows["sparsity"] == 0.5)]["accuracy"].dropna()
    assert means["accuracy, %: 0.5 removed"] == f"{left.mean():.1f} ± {left.std():.1f}"
    found = report.differences(rows, "mine").set_index(["sparsity", "against"])
    assert found.loc[("0.9", "magnitude"), ["difference", "seeds", "verdict"]].tolist() == ["", 0, "cannot be told"]
    assert "nan" not in "".join(page.all("img")[0]["alt"])


def test_where_everything_failed_there_is_a_page_too(written):
    rows = table().assign(note="no")
    rows.loc[rows["criterion"] != "dense", ["accuracy", "validation"]] = np.nan
    page = written(rows)
    assert not page.all("img")
    assert (
        page.frame("Test accuracy").set_index("criterion").drop("dense")["accuracy, %: 0.9 removed"] == "failed"
    ).all()


def test_each_combination_of_answers_has_its_pictures_and_its_rows(written):
    page = written(pd.concat([table(), table(recovery="finetune"), table(task="other", recovery="finetune")]))
    assert len(page.all("img")) == 6
    means = page.frame("Test accuracy")
    assert list(means)[:3] == ["task", "recovery", "criterion"]
    assert len(means) == 3 * 5
    assert list(page.frame("mine minus others"))[:4] == ["task", "recovery", "sparsity", "against"]


def test_metrics_are_plain_numbers(written):
    rows = table().assign(parameters=12345.0, worst_class=0.25)
    found = written(rows).frame("Other metrics")
    assert list(found) == ["criterion", "sparsity", "parameters", "worst_class"]
    assert set(found["worst_class"]) == {"0.25 ± 0"}
    assert set(found["parameters"]) == {"1.23e+04 ± 0"}


def test_one_seed_has_no_interval(written):
    found = written(table(seeds=[3])).frame("mine minus others")
    assert set(found["95 % interval"]) == {""}
    assert set(found["verdict"]) == {"cannot be told"}


def test_a_task_without_validation_data_has_no_best_criterion(written):
    page = written(table().assign(validation=np.nan))
    assert set(page.frame("mine minus others")["against"]) == {"magnitude"}


def test_lines_of_many_criteria_can_still_be_told_apart(written):
    many = {f"c{i:02}": i / 200 for i in range(12)}
    page = written(table(QUALITY | many), "mine")
    drawn = page.all("img")[0]["alt"]
    assert set(re.findall(r"(\w+) \d+% to", drawn)) == {
        "mine",
        "magnitude",
        "random",
        "taylor",
        "c11",
        "c10",
        "c09",
        "c08",
    }
    assert any("Not drawn, as they were worse on validation data: c07, c06" in text for text in page.texts)


def test_which_criterion_the_page_is_about(written):
    assert report.own(table()) == ["mine"], "taylor is built in"
    assert written(table(), "taylor").frame("taylor minus others") is not None
    page = written(table({"taylor": 0.1, "magnitude": 0, "random": 0}))
    assert not [found for found in page.tables if "minus" in found["caption"]]
    assert written(table(), "magnitude").frame("magnitude minus")["against"].unique().tolist() == ["best (mine)"]
    with pytest.raises(ValueError, match="no criterion 'other'"):
        written(table(), "other")


def test_markdown_holds_what_would_break_a_table():
    frame = pd.DataFrame({"criterion": ["<lambda>"], "note": ["a | b"]})
    lines = report.markdown(frame).splitlines()
    assert lines == ["| criterion | note |", "| --- | --- |", "| &lt;lambda> | a \\| b |"]
