"""The playground: typed code, what is wrong with it, what it does, and the widget around it, without a front end."""

import copy
import io
import re
import warnings
from importlib import import_module

import pytest
import torch
from helpers import blobs, make_task
from matplotlib.figure import Figure
from torch import nn

import pruninglab
from pruninglab import collect, compare, prune, statistic
from pruninglab.allocation import ALLOCATIONS
from pruninglab.limits import TimeLimit
from pruninglab.masks import Masks
from pruninglab.notebook.pictures import Picture
from pruninglab.notebook.playground import CODE, UNITS, playground, playground_twin
from pruninglab.notebook.trial_plots import draw_trial, thresholds, told
from pruninglab.notebook.trials import Bench
from pruninglab.notebook.typed import explain, read
from pruninglab.tasks import Task, Training

module = import_module("pruninglab.notebook.playground")  # the package may call its function by this name
TAYLOR = "def mine(weight, grad):\n    return (weight * grad).abs()\n"
DRAWN = "def mine(weight, generator):\n    return torch.rand(weight.shape, generator=generator)\n"


@pytest.fixture(scope="module")
def home():
    return make_task("playing", steps=60)


@pytest.fixture(scope="module")
def bench(home):
    return Bench(home, levels=(0.42, 0.5, 0.7, 0.8, 0.9, 0.99))


@pytest.fixture
def quick(monkeypatch):
    """Pictures that are not drawn and curves of two points, for tests of what stands around them."""
    monkeypatch.setattr(module, "LEVELS", (0.5, 0.9))
    monkeypatch.setattr(Picture, "png", lambda picture: picture.alt.encode())
    monkeypatch.setattr(module, "draw_trial", lambda trial: (Picture(Figure(), f"Drawn: {told(trial)}"), told(trial)))


@pytest.fixture
def widget(home, quick):
    return playground(home, TAYLOR, seconds=20)


def function(code):
    return read(code, io.StringIO())


def complaint(code, *, use=None, seconds=None):
    """What is said of some code: when it is read, or when a bench tries it."""
    found = None
    try:
        found = read(code, io.StringIO(), seconds)
        use.try_out(found, unit="weight", allocation="global", sparsity=0.9)
    except Exception as error:
        return str(explain(error, code, found))
    raise AssertionError("nothing was wrong")


def convolutions() -> Task:
    """Like `make_task`, with pictures of 4×4 and two convolutions, the first of which has one input."""
    splits = {name: (torch.cat([x, x], 1).view(-1, 1, 4, 4), y) for name, (x, y) in blobs().items()}

    def build():
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )

    return Task("convolutions", lambda: splits, build, Training(steps=30, batch=32, lr=0.1))


def press(widget, code):
    widget.code.value = code
    widget.run.click()


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_last_function_is_the_criterion():
    code = (
        "def mine(weight):\n    return helper(weight)\n\n\n"
        "@criterion\ndef other(weight, fisher):\n    return fisher\n\n\n"
        "def helper(weight):\n    return torch.ones_like(weight)\n\n\nlast = lambda weight: -weight\nfirst = other\n"
    )
    assert function(code)(torch.tensor([2.0])).item() == -2
    cut = code[: code.index("last")]
    assert function(cut).__name__ == "helper"
    assert function(cut[: cut.index("def helper")]).__name__ == "other"
    plain = "    return weight\n\n"
    again = f"def mine(weight):\n{plain}def other(weight):\n{plain}def mine(weight):\n{plain}"
    assert function(again).__name__ == "mine"


def test_a_function_that_is_only_imported_is_no_criterion():
    assert "there is no function in the box" in complaint("from pruninglab.criteria import wanda\n")
    assert "def mine(weight" in complaint("x = 3\n")
    assert "there is no function" in complaint("")


def test_typed_code_knows_torch_and_the_public_names():
    code = f"found = [{', '.join(pruninglab.__all__)}]\ndef mine(weight):\n    return torch.sqrt(weight.abs())\n"
    assert function(code).__globals__["found"] == [getattr(pruninglab, name) for name in pruninglab.__all__]
    assert function(code)(torch.tensor([-4.0])).item() == 2


def test_a_typed_criterion_can_be_taken_on(widget, home):
    table = compare([widget.criterion], task=home, sparsity=0.9, seeds=1, cache=False)
    assert set(table["criterion"]) == {"dense", "random", "magnitude", "mine"}


# ── what is wrong ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_syntax_error_shows_the_line_and_a_caret():
    text = complaint("def mine(weight):\n    return weight +\n")
    headline, line, caret = text.splitlines()
    assert headline.startswith("SyntaxError in line 2: invalid syntax")
    assert line == "   2 │     return weight +"
    assert caret.index("^") >= line.index("+")
    text = complaint("def mine(weight):\nreturn weight\n")
    assert text.startswith("IndentationError in line 2: expected an indented block")
    assert "   2 │ return weight" in text


def test_an_unknown_argument_lists_what_is_known():
    headline, line, caret, known = complaint("def mine(\n    weight, gard\n):\n    return weight\n").splitlines()
    assert "in line 2: unknown argument of criterion 'mine': 'gard'. Did you mean 'grad'?" in headline
    assert known.startswith("Known: ")
    assert "input_norm" in known
    assert line[caret.index("^") : caret.rindex("^") + 1] == "gard"
    assert "in line 1: criterion 'mine': name the arguments; *rest" in complaint("def mine(*rest):\n    return 1\n")


def test_an_unknown_name_lists_the_statistics(bench):
    text = complaint("def mine(weight):\n    return weight * grad\n", use=bench)
    assert text.startswith("NameError in line 2: name 'grad' is not defined\n   2 │     return weight * grad\n")
    assert "grad is a statistic: ask for it among the arguments, as in def mine(weight, grad)." in text
    assert text.splitlines()[2].index("^") == text.splitlines()[1].index("grad")
    text = complaint("def mine(weight):\n    return weight * foo\n", use=bench)
    assert "may name these statistics" in text
    assert "input_norm" in text


def test_what_the_code_raises_is_shown_with_its_own_line(bench):
    code = "def half(x):\n    é = x\n    return é / [2]\n\n\ndef mine(weight, grad):\n    return half(weight)\n"
    text = complaint(code, use=bench)
    assert text.startswith("TypeError in line 3: unsupported operand")
    line, caret = text.splitlines()[1:3]
    assert line[caret.index("^") : caret.rindex("^") + 1] == "é / [2]"
    assert "It was called with weight (16, 8), grad (16, 8)." in text
    assert "Traceback" not in text
    assert "site-packages" not in text
    text = complaint("1 / 0\ndef mine(weight):\n    return weight\n")
    assert text.startswith("ZeroDivisionError in line 1: division by zero\n   1 │ 1 / 0\n     │ ^^^^^")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("return weight / 0 * 0", "ValueError in line 2: criterion 'mine' gave NaN for 128 of 128 weights"),
        ("return weight.sum(1, keepdim=True)", "ValueError in line 2: criterion 'mine' must return scores shaped (16"),
        ("return weight.sum(1)", "(it scores filters: use unit='channel')"),
        ("return 3", "TypeError in line 2: criterion 'mine' must return a floating-point tensor"),
        ("pass", "not NoneType"),
        ("return weight > 0", "not torch.bool"),
        ("return (\n        weight[0]\n    )", "in line"),
    ],
)
def test_what_is_no_score_is_shown_with_the_line_that_returns_it(bench, code, message):
    text = complaint(f"def mine(weight):\n    {code}\n", use=bench)
    assert message in text
    assert "│     " in text
    assert "^" in text


def test_what_a_setting_does_not_allow_blames_no_line(bench):
    with pytest.raises(ValueError, match="less than one row") as caught:
        bench.try_out(function(TAYLOR), unit="row", allocation="uniform", sparsity=0.99)
    text = explain(caught.value, TAYLOR, function(TAYLOR))
    assert text.line == ""
    assert text.headline.startswith("BudgetError: ")
    negative = "def mine(weight):\n    return weight\n"
    with pytest.raises(ValueError, match="lamp needs scores of 0 or more") as caught:
        bench.try_out(function(negative), unit="weight", allocation="lamp", sparsity=0.9)
    assert "   2 │     return weight" in str(explain(caught.value, negative, function(negative)))


def test_code_that_runs_forever_is_stopped_and_shown(home):
    code = "def mine(weight):\n    while True:\n        weight = weight + 0\n    return weight\n"
    text = complaint(code, use=Bench(home, levels=[0.9], seconds=0.6))
    assert re.match(r"TimeLimit in line [23]: mine took longer than 0.6 s", text)
    text = complaint("while True:\n    pass\n", seconds=0.2)
    assert re.match(r"TimeLimit in line [12]: the code in the box took longer than 0.2 s", text)
    with pytest.raises(TimeLimit):
        read("while True:\n    pass\n", io.StringIO(), 0.1)


def test_html_of_an_error_takes_nothing_for_html():
    code = "raise ValueError('<b>' + 'x' * 5000)\n"
    with pytest.raises(ValueError, match="<b>") as caught:
        read(code, io.StringIO())
    text = explain(caught.value, code).html()
    assert "<b>x" not in text
    assert "&lt;b&gt;xxx" in text
    assert len(text) < 3000
    assert 'role="alert"' in text


# ── trying out ────────────────────────────────────────────────────────────────────────────────────────────────────


def numbers(text):
    """Kept, all, and the accuracy of mine, dense, magnitude and random, as a text tells them."""
    kept, total = (int(x.replace(",", "")) for x in re.search(r"keeps ([\d,]+) of ([\d,]+) weights", text).groups())
    percents = re.search(
        r"gets (\S+%) of [\d,]+ validation pictures right \(dense (\S+%), magnitude (\S+%), random (\S+%)\)", text
    )
    return kept, total, [float(x.rstrip("%")) / 100 for x in percents.groups()]


@pytest.mark.parametrize("code", [TAYLOR, DRAWN])
@pytest.mark.parametrize(
    ("unit", "allocation", "sparsity"),
    [
        ("weight", "global", 0.9),
        ("weight", "lamp", 0.42),
        ("weight", "rate_distortion", 0.7),
        ("row", "uniform", 0.5),
        ("4x4", "erk", 0.8),
        ("2:4", "global", 0.5),
        ("1:4", "global", 0.5),
        ("channel", "global", 0.5),
    ],
)
def test_the_numbers_are_those_of_prune_itself(bench, home, code, unit, allocation, sparsity):
    mine = function(code)
    trial = bench.try_out(mine, unit=unit, allocation=allocation, sparsity=sparsity)
    kept, total, found = numbers(told(trial))
    data, expected = home.calibration(256, 0), [home.accuracy(home.trained(0), "validation")]
    for criterion in (mine, "magnitude", "random"):
        model = home.trained(0)
        how = {} if ":" in unit else {"sparsity": sparsity}
        masks = prune(model, criterion=criterion, unit=unit, allocation=allocation, data=data, loss=home.loss, **how)
        expected.append(home.accuracy(model, "validation"))
        if criterion is mine:
            weights = {name: masks[name] for name in trial.masks}
            assert trial.masks == Masks(weights)
            assert (kept, total) == (trial.masks.kept(), 16 * 8 + 12 * 16 + 3 * 12)
    assert found == pytest.approx([expected[1], expected[0], *expected[2:]], abs=6e-4)


def test_every_point_of_the_curve_is_a_pruned_network(bench, home):
    mine = function(TAYLOR)
    trial = bench.try_out(mine, unit="row", allocation="global", sparsity=0.5)
    assert list(trial.curves) == ["mine", "magnitude", "random"]
    for level, accuracy in trial.curves["mine"].items():
        model = home.trained(0)
        try:
            prune(model, sparsity=level, criterion=mine, unit="row", data=home.calibration(256, 0))
        except ValueError:
            assert accuracy != accuracy
        else:
            assert accuracy == home.accuracy(model, "validation")
    assert list(bench.try_out(mine, unit="2:4", allocation="global", sparsity=0.9).curves["mine"]) == [0.25, 0.5, 0.75]


def test_statistics_are_collected_once(home):
    passes = []

    @statistic(finish=lambda total: total)
    def counted(inputs, layer):
        passes.append(layer)
        return torch.zeros_like(layer.weight)

    collect(home.trained(0), ["counted"], home.calibration(256, 0))
    once = len(passes)
    passes.clear()
    bench = Bench(home, levels=(0.5, 0.9))
    mine = function("def mine(weight, counted):\n    return weight.abs() + counted\n")
    for allocation in ("global", "uniform"):
        for sparsity in (0.5, 0.9):
            bench.try_out(mine, unit="weight", allocation=allocation, sparsity=sparsity)
    bench.try_out(mine, unit="row", allocation="global", sparsity=0.5)
    assert len(passes) == once
    again = bench.try_out(mine, unit="weight", allocation="global", sparsity=0.9)
    direct = home.trained(0)
    assert again.masks == prune(direct, sparsity=0.9)


def test_the_test_set_is_never_seen(quick):
    class Blind(dict):
        def __getitem__(self, split):
            assert split != "test", "the playground looked at the test set"
            return super().__getitem__(split)

    home = make_task("blind", splits=Blind(blobs()))
    assert "validation pictures" in playground(home, TAYLOR).text.value
    playground_twin(TAYLOR, [{"unit": "channel", "sparsity": 0.5}], task=home)


@pytest.mark.parametrize("unit", [*UNITS, "1:4"])
def test_convolutions(unit):
    bench = Bench(convolutions(), levels=(0.5, 0.9))
    trial = bench.try_out(function(TAYLOR), unit=unit, allocation="global", sparsity=0.5)
    picture, text = draw_trial(trial)
    assert text in picture.alt
    if unit == "channel":
        stay = [int(kept.sum()) for _, kept in trial.competing.values()]
        assert [len(kept) for _, kept in trial.competing.values()] == [8, 16, 0]
        assert f"{sum(stay)} of 24 channels" in text
        rows = [int(mask.flatten(1).any(1).sum()) for mask in list(trial.masks.values())[:2]]
        assert stay[:2] == rows


def test_filters_can_be_scored_where_channels_go(bench):
    mine = function("def mine(weight):\n    return weight.flatten(1).norm(dim=1)\n")
    trial = bench.try_out(mine, unit="channel", allocation="global", sparsity=0.5)
    values, kept = trial.competing["fc1.weight"]
    assert values.min() < values[kept].min()


def test_scores_below_the_threshold_go(bench):
    for unit, allocation in (("weight", "global"), ("weight", "uniform"), ("row", "uniform"), ("4x4", "global")):
        trial = bench.try_out(function(TAYLOR), unit=unit, allocation=allocation, sparsity=0.5)
        limits = thresholds(trial.competing)
        assert set(limits) == set(trial.masks)
        assert len(set(limits.values())) == (1 if allocation == "global" else 3)
        for name, (values, kept) in trial.competing.items():
            assert ((values >= limits[name]) | ~kept).all()
            assert ((values <= limits[name]) | kept).all()
        assert min(float(values[kept].min()) for values, kept in trial.competing.values()) == min(limits.values())
    trial = bench.try_out(function(TAYLOR), unit="2:4", allocation="global", sparsity=0.5)
    assert thresholds(trial.competing) == {}  # each four has a threshold of its own


def test_the_histogram_counts_what_goes_and_what_stays(bench):
    trial = bench.try_out(function(TAYLOR), unit="weight", allocation="global", sparsity=0.8)
    figure = draw_trial(trial)[0].figure
    axes = [ax for ax in figure.axes if "score" in ax.get_xlabel()]
    assert len(axes) == 3
    for ax, (_, kept) in zip(axes, trial.competing.values(), strict=True):
        both, gone = (patch.get_data().values for patch in ax.patches)
        assert both.sum() == len(kept)
        assert gone.sum() == int((~kept).sum())


@pytest.mark.parametrize(
    "score",
    [
        "torch.ones_like(weight)",
        "weight.abs() / 0",
        "torch.where(weight > 0, torch.inf, -torch.inf)",
        "torch.where(weight > 0.1, weight, 0) ** 12",
        "-weight.abs()",
        "weight.double() * 1e300",
        "weight.half()",
        "weight.sign()",
    ],
)
def test_odd_scores_can_be_drawn(bench, score):
    mine = function(f"def mine(weight):\n    return {score}\n")
    picture, text = draw_trial(bench.try_out(mine, unit="weight", allocation="global", sparsity=0.9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture.figure.set_layout_engine("none")  # the layout takes longest
        picture.figure.savefig(io.BytesIO(), dpi=30)
    constant = "ones" in score or "sign" in score
    assert ("removed scores equal the lowest kept" in text) >= constant
    if "ones" in score:
        assert "320 removed scores" in text


def test_a_network_of_many_layers_shows_the_largest():
    def build():
        return nn.Sequential(*[nn.Linear(8, 8) for _ in range(7)], nn.Linear(8, 3))

    task = Task("deep", lambda: blobs(), build, Training(steps=5, batch=32, lr=0.01))
    bench = Bench(task, levels=[0.5])
    picture, text = draw_trial(bench.try_out(function(TAYLOR), unit="weight", allocation="global", sparsity=0.5))
    assert "The 6 largest of 8 layers are drawn" in picture.alt
    assert all(f"{i} " in text for i in range(8))


def test_a_criterion_with_a_baseline_s_name_is_marked(bench):
    mine = function("def magnitude(weight):\n    return -weight.abs()\n")
    trial = bench.try_out(mine, unit="weight", allocation="global", sparsity=0.9)
    assert list(trial.curves) == ["magnitude (yours)", "magnitude", "random"]
    assert trial.criterion == "magnitude (yours)"


# ── the widget ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_picture_is_drawn_with_its_text(home):
    widget = playground(home, TAYLOR)
    assert 'src="data:image/png;base64,iVBOR' in widget.picture.value
    assert re.search("alt=.Masks of the layers, .* mine keeps 36 of 356 weights", widget.picture.value)


def test_typing_runs_nothing_and_run_does(widget):
    before = widget.text.value, widget.picture.value
    assert "pruninglab-live" in widget.text._dom_classes
    assert 'alt="Drawn: mine keeps 36' in widget.picture.value
    widget.code.value = "def other(weight):\n    return weight.abs()\n"
    assert (widget.text.value, widget.picture.value) == before
    assert widget.criterion.__name__ == "mine"
    widget.run.click()
    assert widget.criterion.__name__ == "other"
    assert widget.text.value != before[0]
    assert widget.picture.value != before[1]
    assert widget.run.description == "Run"


def test_settings_run_the_last_good_code_again(widget):
    before = widget.text.value
    widget.code.value = "def other(weight):\n"
    widget.sparsity.value = 0.5
    assert "mine keeps 178 of 356" in widget.text.value
    assert "The box has changed since: press Run" in widget.text.value
    widget.code.value = TAYLOR
    widget.allocation.value = "uniform"
    assert "The box has changed" not in widget.text.value
    assert "by unit weight, allocation uniform" in widget.text.value
    widget.unit.value = "2:4"
    assert "2:4 fixes the sparsity" in widget.text.value
    widget.unit.value, widget.allocation.value, widget.sparsity.value = "weight", "global", 0.9
    assert widget.text.value == before


def test_every_menu_entry_works(widget):
    widget.sparsity.value = 0.5
    for unit in widget.unit.options:
        widget.unit.value = unit
        assert widget.message.value == ""
    widget.unit.value = "weight"
    for allocation in widget.allocation.options:
        widget.allocation.value = allocation
        assert widget.message.value == ""
    assert list(widget.allocation.options) == list(ALLOCATIONS)


def test_what_was_shown_stays_faint_while_there_is_an_error(widget):
    text, picture = re.sub("<.*?>", "", widget.text.value), widget.picture.value
    press(widget, "def mine(weight):\n    print('so far')\n    return weight[0]\n")
    assert "ValueError in line 3" in widget.message.value
    assert "so far" in widget.message.value
    assert "opacity" in widget.picture.value
    assert picture in widget.picture.value
    assert f"As it was before this error: {text}" in widget.text.value
    assert "ValueError in line 3" in widget._repr_mimebundle_()["text/plain"]
    press(widget, "def mine(weight)\n    return weight\n")
    assert "SyntaxError in line 1" in widget.message.value
    assert picture in widget.picture.value
    assert widget.run.description == "Run"
    press(widget, TAYLOR)
    assert widget.message.value == ""
    assert widget.picture.value == picture


def test_settings_that_fail_are_told_and_can_be_left(home, quick):
    widget = playground(home, "def mine(weight):\n    return weight\n")
    shown = widget.picture.value
    widget.allocation.value = "lamp"
    assert "lamp needs scores of 0 or more" in widget.message.value
    assert shown in widget.picture.value
    widget.allocation.value = "global"
    assert widget.message.value == ""
    assert widget.picture.value == shown


def test_code_that_is_wrong_from_the_start_is_an_empty_playground(home, quick):
    widget = playground(home, "def mine(weight, gard):\n    return weight\n")
    assert "Did you mean &#x27;grad&#x27;" in widget.message.value
    assert (widget.text.value, widget.picture.value, widget.criterion) == ("", "", None)
    widget.sparsity.value = 0.5
    assert "gard" in widget.message.value
    press(widget, TAYLOR)
    assert "mine keeps 178" in widget.text.value


@pytest.mark.parametrize(
    "code", ["exit()\n", "raise KeyboardInterrupt\n", "raise SystemExit(3)\n", "def mine(weight):\n    mine(weight)\n"]
)
def test_nothing_that_typed_code_does_gets_out(widget, code, capsys):
    press(widget, code)
    assert re.search("(SystemExit|KeyboardInterrupt|RecursionError) in line", widget.message.value)
    assert "Traceback" not in "".join(capsys.readouterr())


def test_a_run_that_takes_too_long_is_told(home, quick):
    widget = playground(home, TAYLOR, seconds=1)
    press(widget, "def mine(weight):\n    while True:\n        pass\n")
    assert "mine took longer than 1 s" in widget.message.value
    assert "As it was before" in widget.text.value


def test_what_typed_code_prints_and_warns_of_is_shown(widget, capsys):
    code = "print('<read>')\ndef mine(weight):\n    print(tuple(weight.shape))\n    return weight.abs()\n"
    press(widget, code)
    assert "&lt;read&gt;\n(16, 8)\n(12, 16)\n(3, 12)\n</pre>" in widget.message.value
    shown = widget.message.value
    widget.sparsity.value = 0.5
    assert widget.message.value == shown
    press(widget, "@criterion\ndef magnitude(weight):\n    return weight.abs()\n")
    assert "UserWarning: &#x27;magnitude&#x27; is built in" in widget.message.value
    press(widget, "print('x' * 9000)\n" + TAYLOR)
    assert "and 7,001 characters more" in widget.message.value
    assert capsys.readouterr() == ("", "")


def test_the_box_is_labelled_and_the_slider_runs_when_it_is_let_go(widget):
    assert widget.code.description
    assert "pruninglab-code" in widget.code._dom_classes
    assert "monospace" in widget.box.children[0].value
    assert all(control.description for control in widget.controls.values())
    assert not widget.sparsity.continuous_update
    bundle = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"].startswith("mine keeps 36 of 356 weights")


def test_the_model_is_left_alone(home):
    bench = Bench(home, levels=(0.5, 0.9))
    before = copy.deepcopy(bench.model.state_dict())
    for unit in UNITS:
        bench.try_out(function("def mine(weight, grad):\n    grad.zero_()\n    return weight.abs_()\n"), unit=unit,
                      allocation="global", sparsity=0.5)  # fmt: skip
    assert all(torch.equal(before[name], value) for name, value in bench.model.state_dict().items())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"unit": "head"}, "the playground draws single weights"),
        ({"unit": "wieght"}, "unknown unit"),
        ({"allocation": "glabal"}, "Did you mean 'global'"),
        ({"sparsity": 1.5}, "sparsity is the fraction removed"),
        ({"task": "digits"}, "unknown task"),
        ({"task": "tiny-llama"}, "is a language model"),
        ({"seconds": 0}, "a time limit is"),
    ],
)
def test_settings_that_make_no_sense_are_errors(home, wrong, message):
    with pytest.raises(ValueError, match=message):
        playground(**({"task": home} | wrong))


# ── the twin ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_twin_shows_what_the_widget_shows(widget, home):
    settings = [{}, {"sparsity": 0.5}, {"unit": "channel", "allocation": "uniform", "sparsity": 0.5}]
    found = playground_twin(TAYLOR, settings, task=home)
    html = found._repr_mimebundle_()["text/html"]
    assert html.count("<figure") == 3
    assert "return (weight * grad).abs()" in html
    assert repr(found).startswith("def mine(weight, grad):")
    for setting in settings:
        for name, value in (module.SETTING | setting).items():
            widget.controls[name].value = value
        text = re.sub("<.*?>", "", widget.text.value)
        assert text in html
        assert widget.picture.value in html


def test_a_twin_of_wrong_code_is_an_error(home):
    with pytest.raises(ValueError, match="unknown argument"):
        playground_twin("def mine(gard):\n    return gard\n", task=home)
    with pytest.raises(ValueError, match="gave NaN"):
        playground_twin("def mine(weight):\n    return weight / 0 * 0\n", task=home)
    with pytest.raises(TypeError, match="sparse"):
        playground_twin(TAYLOR, [{"sparse": 0.5}], task=home)


def test_the_example_in_the_box_is_wanda(home):
    found = Bench(home, levels=[0.9]).try_out(function(CODE), unit="weight", allocation="global", sparsity=0.9)
    assert found.masks == prune(home.trained(0), sparsity=0.9, criterion="wanda", data=home.calibration(256, 0))
