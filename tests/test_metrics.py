"""Metrics against loops and scikit-learn; what they may look at; that they leave the model alone."""

import copy
import itertools
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import blobs, make_task, same, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruninglab import measure, metrics, task
from pruninglab.attacks import fgsm
from pruninglab.corruptions import CORRUPTIONS, corrupt
from pruninglab.metrics import (
    METRICS,
    STRENGTHS,
    accuracy_under,
    calibration_error,
    class_accuracy,
    data_range,
    robustness,
    worst_class,
)


def as_pictures(splits):
    """The clouds of `blobs` as grey pictures of 2×4."""
    return {name: (x.view(-1, 1, 2, 4), y) for name, (x, y) in splits.items()}


@pytest.fixture(scope="module")
def home():
    return make_task(splits=as_pictures(blobs()))


@pytest.fixture(scope="module")
def trained(home):
    model = home.model()
    home.train(model)
    return model


def telling(logits, y=None):
    """A task and a network whose logits on the test split are these, and labels y (all 0 if not given)."""
    n = len(logits)
    y = torch.zeros(n, dtype=torch.int64) if y is None else y
    net = nn.Linear(n, logits.shape[1], bias=False)
    with torch.no_grad():
        net.weight.copy_(logits.T)
    return net, make_task(splits={"train": (torch.eye(n), y), "test": (torch.eye(n), y)})


# ── robustness ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_robustness_is_the_accuracy_on_what_was_made_worse(home, trained):
    table = robustness(trained, home, seed=4)
    assert list(table.columns) == ["kind", "level", "strength", "accuracy"]
    assert len(table) == 1 + 7 * 5
    assert table.iloc[0].to_dict() == {
        "kind": "clean", "level": 0, "strength": 0.0, "accuracy": home.accuracy(trained)
    }  # fmt: skip
    x, y = home.data["test"]
    train = home.data["train"][0]
    limits = (float(train.min()), float(train.max()))

    def right(inputs):
        with torch.no_grad():
            return float((trained(inputs).argmax(1) == y).double().mean())

    for row in table.iloc[1:].itertuples():
        assert row.strength == STRENGTHS[row.kind][row.level - 1]
        if row.kind in CORRUPTIONS:
            expected = right(corrupt(x, row.kind, row.strength, limits=limits, seed=4))
        elif row.kind == "fgsm":
            expected = right(fgsm(trained, x, y, row.strength * (limits[1] - limits[0]), limits=limits))
        else:
            continue
        assert row.accuracy == pytest.approx(expected), row


def test_what_else_is_measured_does_not_matter(home, trained):
    whole = robustness(trained, home).set_index(["kind", "level"])["accuracy"]
    for kind in STRENGTHS:
        part = robustness(trained, home, kinds=kind, levels=(4, 2)).set_index(["kind", "level"])["accuracy"]
        assert list(part.index) == [("clean", 0), (kind, 4), (kind, 2)]
        assert part.equals(whole[part.index])
    assert len(robustness(trained, home, kinds=["blur", "pgd"], levels=3)) == 3


def test_stronger_attacks_are_worse_and_pgd_is_no_weaker(home, trained):
    table = robustness(trained, home, kinds=["fgsm", "pgd"]).iloc[1:]
    table = table.pivot_table(index="level", columns="kind", values="accuracy")
    assert table["fgsm"].is_monotonic_decreasing
    assert table["pgd"].is_monotonic_decreasing
    assert bool((table["pgd"] <= table["fgsm"] + 1e-12).all())
    assert table["fgsm"][5] < home.accuracy(trained)


def test_the_size_of_batches_does_not_matter(home, trained, monkeypatch):
    kinds = ["noise", "shift", "fgsm"]
    before = robustness(trained, home, kinds=kinds), calibration_error(trained, home), class_accuracy(trained, home)
    monkeypatch.setattr(metrics, "BATCH", 7)
    pd.testing.assert_frame_equal(robustness(trained, home, kinds=kinds), before[0])
    assert calibration_error(trained, home) == pytest.approx(before[1])
    pd.testing.assert_series_equal(class_accuracy(trained, home), before[2])
    assert accuracy_under(trained, home, "pgd", 0.1) <= home.accuracy(trained)


def test_every_network_gets_the_same_pictures(home, monkeypatch):
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8, 3))

        def forward(self, x):
            seen.append(x.detach().clone())
            return x.flatten(1) @ self.weight

    for _ in range(2):
        robustness(Spy(), home, kinds=list(CORRUPTIONS), seed=1)
    once = len(seen) // 2
    assert once == 26
    assert all(torch.equal(a, b) for a, b in zip(seen[:once], seen[once:], strict=True))


def test_black_and_white_are_those_of_the_training_data():
    splits = as_pictures(blobs())
    splits["test"] = (100 * splits["test"][0], splits["test"][1])
    train = splits["train"][0]
    assert data_range(make_task(splits=splits)) == (float(train.min()), float(train.max()))


def test_colour_pictures():
    generator = torch.Generator().manual_seed(0)
    splits = {
        name: (torch.rand(n, 3, 5, 6, generator=generator), torch.arange(n) % 4)
        for name, n in (("train", 20), ("test", 12))
    }
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(48, 4))
    table = robustness(net, make_task(splits=splits))
    assert table["accuracy"].between(0, 1).all()


def test_dense_digits_fall_step_by_step():
    digits = task("digits-mlp")
    table = robustness(digits.trained(), digits)
    clean = table["accuracy"][0]
    for kind, rows in table.iloc[1:].groupby("kind"):
        fall = [clean, *rows["accuracy"]]
        assert all(before >= after - 0.005 for before, after in itertools.pairwise(fall)), (kind, fall)
        assert clean - fall[1] < 0.15, (kind, fall)
        assert clean - fall[5] > 0.25, (kind, fall)


# ── calibration ───────────────────────────────────────────────────────────────────────────────────────────────────


def error_by_loop(logits, y, bins):
    """Expected calibration error, bin by bin, as Guo et al. write it."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    error = 0.0
    for m in range(bins):
        inside = [i for i in range(len(y)) if m / bins < confidence[i] <= (m + 1) / bins]
        if inside:
            accuracy = sum(predicted[i] == y[i] for i in inside) / len(inside)
            error += len(inside) / len(y) * abs(accuracy - confidence[inside].mean())
    return error


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9999), st.integers(2, 6), st.sampled_from([0.3, 2.0, 30.0]), st.sampled_from([1, 2, 15, 40]))
def test_calibration_error_is_what_a_loop_finds(seed, classes, scale, bins):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(60, classes, generator=generator)
    y = torch.randint(classes, (60,), generator=generator)
    found = calibration_error(*telling(logits, y), bins=bins)
    assert found == pytest.approx(error_by_loop(logits.double().numpy(), y.numpy(), bins), abs=1e-6)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    # One half of two classes is the edge of two bins; in one bin with 0.9 the errors would cancel.
    logits = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
    sure = float(torch.softmax(logits[1].double(), 0)[0])
    found = calibration_error(*telling(logits, torch.tensor([0, 1])), bins=2)
    assert found == pytest.approx((0.5 + sure) / 2)


@pytest.mark.parametrize(("label", "expected"), [(0, 0.0), (1, 1.0)])
def test_calibration_of_a_network_that_is_always_certain(label, expected):
    logits = torch.tensor([[100.0, 0.0, 0.0]]).expand(9, 3)
    assert calibration_error(*telling(logits, torch.full((9,), label))) == pytest.approx(expected)


def test_outputs_that_are_not_finite_show():
    logits = torch.tensor([[1.0, 0.0], [torch.nan, 0.0]])
    assert np.isnan(calibration_error(*telling(logits)))


# ── classes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_class_accuracy_is_the_recall_of_each_class():
    from sklearn.metrics import recall_score

    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([1, 2, 4, 7])[torch.randint(4, (80,), generator=generator)]
    logits = torch.randn(80, 9, generator=generator)
    logits[range(80), y] += 1.5
    net, home = telling(logits, y)
    found = class_accuracy(net, home)
    assert found.index.tolist() == [1, 2, 4, 7]
    assert (found.index.name, found.name) == ("class", "accuracy")
    expected = recall_score(y, logits.argmax(1), labels=[1, 2, 4, 7], average=None)
    assert found.to_numpy() == pytest.approx(expected)
    assert worst_class(net, home) == pytest.approx(min(expected))
    assert np.average(found, weights=torch.bincount(y)[[1, 2, 4, 7]]) == pytest.approx(home.accuracy(net))


# ── all of them ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_metric_looks_at_the_split_that_it_was_given(name, home, trained):
    without_test = {split: home.data[split] for split in ("train", "validation")}
    validation = METRICS[name](trained, make_task(splits=without_test), "validation")
    assert METRICS[name](trained, home, split="validation") == validation
    swapped = home.data | {"test": home.data["validation"]}
    assert METRICS[name](trained, make_task(splits=swapped)) == validation, "without a split, it is the test split"
    assert isinstance(validation, float)
    assert 0 <= validation <= 1


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_metric_leaves_the_model_as_it_was(name, home):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(8, 9), nn.BatchNorm1d(9), nn.Dropout(0.5), nn.Linear(9, 3))
        net(torch.randn(30, 8)).square().sum().backward()
    net[1].bias.requires_grad_(False)
    net[2].eval()
    before, state = snapshot(net), torch.get_rng_state()
    data = copy.deepcopy(home.data)
    found = METRICS[name](net, home)
    assert same(before, snapshot(net))
    assert torch.equal(state, torch.get_rng_state())
    for split, tensors in data.items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, home.data[split], strict=True))
    assert METRICS[name](net.eval(), home) == found, "in evaluation mode, and the same twice"


@pytest.mark.parametrize("name", sorted(METRICS))
def test_metrics_can_be_sent_to_other_processes(name, home, trained):
    assert pickle.loads(pickle.dumps(METRICS[name]))(trained, home) == METRICS[name](trained, home)


def test_corrupted_is_the_mean_over_corruptions_and_levels(home, trained):
    table = robustness(trained, home, kinds=list(CORRUPTIONS))
    expected = np.mean([row.accuracy for row in table.itertuples() if row.kind != "clean"])
    assert METRICS["corrupted"](trained, home) == pytest.approx(expected)
    assert METRICS["corrupted"](trained, home) == pytest.approx(
        np.mean([METRICS[k](trained, home) for k in CORRUPTIONS])
    )


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_flat_inputs_can_be_attacked_but_not_corrupted(tiny):
    model = tiny.model()
    assert len(robustness(model, tiny, kinds=["fgsm", "pgd"])) == 11
    with pytest.raises(ValueError, match=r"blur is for pictures.*task\('digits-cnn'\).*\(90, 8\).*nn\.Flatten"):
        robustness(model, tiny, kinds="blur")


@pytest.mark.parametrize("metric", [*METRICS.values(), robustness], ids=[*METRICS, "robustness"])
def test_text_is_told_what_is_allowed(metric):
    text = torch.zeros(5, 16, dtype=torch.int64), torch.ones(5, 16, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"one class for each sample, such as task\('digits-mlp'\).*\(5, 16\)"):
        metric(nn.Linear(16, 2), make_task("prose", splits={"train": text, "test": text}))


def test_token_inputs_with_one_label_are_told_too():
    tokens = torch.zeros(5, 16, dtype=torch.int64), torch.ones(5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"fgsm changes inputs by a little, so they must be floats.*int64"):
        accuracy_under(nn.Linear(16, 2), make_task("prose", splits={"train": tokens, "test": tokens}), "fgsm", 0.1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kinds": "fog"}, ValueError, "unknown corruption or attack 'fog'.*Known: blur, contrast, fgsm"),
        ({"levels": (1, 6)}, ValueError, r"levels are 1 \(least\) to 5 \(most\), not 6"),
        ({"levels": 0}, ValueError, "not 0"),
        ({"levels": 1.5}, TypeError, "a level must be a whole number, not 1.5"),
        ({"split": "tset"}, ValueError, "unknown split 'tset'. Did you mean 'test'"),
        ({"seed": 0.5}, TypeError, "seed must be a whole number"),
    ],
)
def test_errors_say_what_is_allowed(options, error, message, home, trained):
    with pytest.raises(error, match=message):
        robustness(trained, home, **options)


def test_errors_of_the_others(home, trained):
    with pytest.raises(ValueError, match="bins must be at least 1, not 0"):
        calibration_error(trained, home, bins=0)
    with pytest.raises(TypeError, match="a task is a name or a Task"):
        class_accuracy(trained, 3)
    with pytest.raises(ValueError, match="unknown split 'all'"):
        class_accuracy(trained, home, "all")


def test_a_report_can_hold_them(tiny):
    model = tiny.trained()
    row = measure.report(model, tiny, metrics=["worst_class", "fgsm"]).iloc[0]
    assert row["worst_class"] == METRICS["worst_class"](model, tiny)
    assert row["fgsm"] == METRICS["fgsm"](model, tiny)
    assert [name for name in row.index if name not in ("worst_class", "fgsm")] == list(measure.report(model, tiny))
    with pytest.raises(ValueError, match="unknown metric 'worst'"):
        measure.report(model, tiny, metrics=["worst"])
