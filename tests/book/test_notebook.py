"""The room that knows Jupyter: claims, predictions, widgets and pictures, without a front end."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from pruninglab import Masks
from pruninglab.notebook import (
    Picture,
    canvas,
    claim,
    draw_masks,
    draw_numbers,
    draw_price,
    draw_pruning,
    draw_scores,
    draw_weights,
    explore,
    plot_tradeoff,
    predict,
    roadmap,
    source,
    start,
    twin,
)
from pruninglab.notebook.claims import interval


@pytest.fixture
def relaxed(monkeypatch):
    monkeypatch.setenv("PRUNINGLAB_STRICT", "0")


# ── claims ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_interval_is_scipy_s_t_interval():
    from scipy import stats

    values = [0.1, 0.4, 0.35, 0.2, 0.5]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert interval(values) == pytest.approx((np.mean(values), low, high))


@pytest.mark.parametrize(
    ("values", "bound", "verdict"),
    [
        ([1.0, 1.1, 0.9], {"above": 0.5}, "holds"),
        ([1.0, 1.1, 0.9], {"above": 1.5}, "does not hold here"),
        ([1.0, 1.1, 0.9], {"above": 1.0}, "cannot be told"),
        ([1.0, 1.1, 0.9], {"below": 1.5}, "holds"),
        ([1.0, 1.1, 0.9], {"below": 0.5}, "does not hold here"),
        ([1.0], {"above": 0.0}, "cannot be told"),
        (12, {"equals": 12}, "holds"),
        (12, {"equals": 13}, "does not hold here"),
    ],
)
def test_verdicts(relaxed, values, bound, verdict):
    assert claim("A sentence.", values, **bound).verdict == verdict


def test_a_claim_shows_sentence_numbers_and_verdict(relaxed):
    text = str(claim("It is <so>.", pd.Series([0.10, 0.12, 0.11]), above=0.05, unit="points"))
    assert "holds: It is <so>." in text
    assert "11 points" in text
    assert "3 seeds" in text
    bundle = claim("It is <so>.", [1, 2], above=0)._repr_mimebundle_()
    assert "&lt;so&gt;" in bundle["text/html"]


def test_while_tested_an_unexpected_verdict_is_an_error(monkeypatch):
    monkeypatch.setenv("PRUNINGLAB_STRICT", "1")
    with pytest.raises(AssertionError, match="does not hold here"):
        claim("A sentence.", [1.0, 1.1, 0.9], above=2)
    with pytest.raises(AssertionError, match="cannot be told"):
        claim("A sentence.", [1.0, 1.1, 0.9, 1.0, 1.0], above=1)
    claim("With two seeds, undecided is no error.", [0.9, 1.1], above=1)
    claim("Nor that what could not be told with more now can.", [3.0, 3.1], above=1, expect="cannot be told")
    claim("Nor on a busy machine.", [0.9, 1.1, 3.0, 1.2, 5.0], above=1.3, over="round")
    with pytest.raises(AssertionError, match="does not hold here"):
        claim("But a time that is clearly another is.", [1.0, 1.1, 0.9], above=2, over="round")
    claim("A chapter may state that it fails.", [1.0, 1.1, 0.9], above=2, expect="does not hold here")
    with pytest.raises(AssertionError):
        claim("A claim that unexpectedly holds.", [3.0, 3.1, 2.9], above=2, expect="does not hold here")


@pytest.mark.parametrize("bounds", [{}, {"above": 1, "below": 2}, {"above": 1, "equals": 1}])
def test_a_claim_has_one_bound(bounds):
    with pytest.raises(ValueError, match="exactly one bound"):
        claim("A sentence.", [1.0], **bounds)


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_a_claim_needs_finite_values(values):
    with pytest.raises(ValueError, match="measured value"):
        claim("A sentence.", values, above=0)


# ── predictions and widgets ───────────────────────────────────────────────────────────────────────────────────────


def test_a_prediction_is_recorded_and_shown_beside_the_measurement():
    answer = predict("How many?", ["one", "two"])
    assert answer.answer is None
    assert "You made no prediction" in repr(answer.reveal("two", "2 of 3"))
    answer.buttons.value = "two"
    assert "You predicted: two. ✔" in repr(answer.reveal("two", "2 of 3"))
    answer.buttons.value = "one"
    assert "✔" not in repr(answer.reveal("two", "2 of 3"))
    bundle = answer._repr_mimebundle_()
    assert "( ) one" in bundle["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_predictions_reject_what_makes_no_sense():
    with pytest.raises(ValueError, match="at least two"):
        predict("How many?", ["one"])
    with pytest.raises(ValueError, match="not one of the choices"):
        predict("How many?", ["one", "two"]).reveal("three", "")


def drawing(sparsity, rule="a"):
    figure, ax = canvas()
    ax.plot([0, sparsity])
    return Picture(figure, f"a line to {sparsity}"), f"{rule} at {sparsity}"


def test_an_explorer_follows_its_controls():
    explorer = explore(drawing, sparsity=[0.0, 0.5, 0.9], rule=["a", "b"])
    assert "a at 0.0" in explorer.text.value
    explorer.controls["sparsity"].value = 0.9
    explorer.controls["rule"].value = "b"
    assert "b at 0.9" in explorer.text.value
    assert 'alt="a line to 0.9"' in explorer.picture.value


def test_the_twin_shows_the_same_at_each_setting():
    shown = twin(drawing, [{"sparsity": 0.5}, {"sparsity": 0.9}])
    assert shown._repr_mimebundle_()["text/html"].count("<img") == 2
    assert "a at 0.9" in repr(shown)


@pytest.mark.parametrize("controls", [{}, {"sparsity": []}])
def test_an_explorer_needs_controls(controls):
    with pytest.raises(ValueError, match="at least one control"):
        explore(drawing, **controls)


# ── pictures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_picture_keeps_its_alternative_text_and_escapes_it(tmp_path):
    figure, _ = canvas()
    picture = Picture(figure, 'a "line"\n  of <points>')
    assert 'alt="a &quot;line&quot; of &lt;points&gt;"' in picture.html()
    assert picture._repr_mimebundle_()["text/plain"] == '[picture: a "line" of <points>]'
    picture.save(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="alternative text"):
        Picture(figure, "  ")


def model_and_masks():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    return model, Masks({name: p.abs() > 0.2 for name, p in model.named_parameters() if p.ndim > 1})


def test_every_drawing_says_what_it_shows():
    model, masks = model_and_masks()
    images = torch.rand(3, 1, 8, 8)
    pictures = [
        draw_masks(masks),
        draw_weights(model),
        draw_weights(model, masks),
        draw_pruning(model, masks),
        draw_numbers(
            {"w": torch.tensor([[1.0, 0.0], [-2.0, 3.0]]), "m": torch.tensor([[True, False]])}, "two matrices"
        ),
        draw_scores(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4]), images, [1, 2, 3], "three digits"),
    ]
    assert all(picture.png().startswith(b"\x89PNG") for picture in pictures)
    assert all(len(picture.alt) > 8 for picture in pictures)
    kept = int(masks["0.weight"].sum())
    assert f"0.weight: {kept} of 30" in pictures[0].alt


def table():
    rows = [
        {"criterion": c, "sparsity": s, "seed": seed, "accuracy": a - s / 2 + seed / 100}
        for c, a in (("mine", 0.9), ("random", 0.6))
        for s in (0.5, 0.9)
        for seed in (0, 1)
    ]
    dense = [{"criterion": "dense", "sparsity": 0.0, "seed": s, "accuracy": 0.95} for s in (0, 1)]
    return pd.DataFrame(rows + dense)


def test_tradeoff_draws_means_and_bands_and_the_dense_line():
    picture = plot_tradeoff(table())
    (ax,) = picture.figure.axes
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert list(lines["mine"].get_ydata()) == pytest.approx([0.655, 0.455])
    assert list(lines["random"].get_ydata()) == pytest.approx([0.355, 0.155])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(0.655 + np.std([0.65, 0.66], ddof=1))
    assert any(list(line.get_ydata()) == [0.95, 0.95] for line in ax.get_lines())
    styles = {(line.get_linestyle(), line.get_marker()) for name, line in lines.items() if name in ("mine", "random")}
    assert len(styles) == 2  # told apart without colour
    assert "mine 66% to 46%" in picture.alt
    assert "2 seeds" in picture.alt


def test_tradeoff_rejects_tables_it_cannot_draw():
    with pytest.raises(ValueError, match="no column 'speed'"):
        plot_tradeoff(table(), y="speed")
    with pytest.raises(ValueError, match="no pruned network"):
        plot_tradeoff(table()[lambda t: t["criterion"] == "dense"])


# ── what stands around the text ───────────────────────────────────────────────────────────────────────────────────


def test_start_prints_versions_and_refuses_a_device_that_is_not_there(capsys, monkeypatch):
    before = torch.get_num_threads()
    assert start() == torch.device("cpu")
    assert re.search(r"torch \d.*device cpu, 1 thread$", capsys.readouterr().out, re.M)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="no GPU"):
        start("cuda")
    torch.set_num_threads(before)


def test_the_roadmap_marks_this_chapter_and_links_what_is_written():
    shown = roadmap(0)
    assert repr(shown).splitlines()[0].startswith("➤ 0 · Start here")
    text = shown._repr_mimebundle_()["text/html"]
    assert text.count("➤") == 1
    assert 'href="00_start_here.ipynb"' in text


def test_source_is_the_installed_code():
    from pruninglab.criteria import magnitude

    shown = source(magnitude)
    assert "return weight.abs()" in repr(shown)
    text = shown._repr_mimebundle_()["text/html"]
    assert "pruninglab.criteria.weights.magnitude" in text
    assert "color: var(--jp-" in text  # a fixed colour could not be read on both a white and a dark page
    assert not re.search(r"color: *#", text)
    assert "white-space: pre;" in text


def test_widgets_bring_what_keyboards_and_screen_readers_need():
    explorer = explore(lambda x: (draw_numbers({"x": torch.tensor([[x]])}, alt=f"x is {x}"), f"{x}"), x=[1.0, 2.0])
    assert "pruninglab-spoken" in explorer.box._dom_classes
    assert [part for part in explorer.box.children if "pruninglab-live" in part._dom_classes] == [explorer.text]
    (output,) = explorer.box.children[-1].outputs
    assert "lmSuppressShortcuts" in output["data"]["application/javascript"]
    assert "text/plain" in predict("Which?", ["a", "b"])._repr_mimebundle_()


def test_the_picture_of_a_price_says_its_bound_which_the_optimum_never_beats():
    costs, distortions = [[0, 4, 9], [0, 3, 5]], [[7.0, 2.0, 0.0], [4.0, 1.5, 0.0]]
    said = [draw_price(costs, distortions, 7, price)[1] for price in (0.1, 0.2, 0.8, 1.5)]
    told = [tuple(map(float, re.search(r"bound (\S+), optimum (\S+)$", text).groups())) for text in said]
    assert len(set(told)) == len(told)  # each price its own bound, even where it chooses the same
    assert {optimum for _, optimum in told} == {3.5}
    assert all(bound <= 3.5 for bound, _ in told)
    assert told[0][0] == pytest.approx(0.1 * (14 - 7))
    with pytest.raises(ValueError, match="1,000,000,000,000 combinations are too many to draw"):
        draw_price([range(1000)] * 4, [range(1000)] * 4, 7, 0.1)
