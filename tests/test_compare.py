"""`compare`: a tidy table with the baselines in it, resumed where it stopped; and what its cache is keyed by."""

import importlib
import shutil
import threading
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import blobs, make_task

import pruninglab.runs
from pruninglab import compare, criterion, prune, statistic, task
from pruninglab.allocation import global_
from pruninglab.criteria import magnitude
from pruninglab.fingerprint import fingerprint
from pruninglab.layers import like_weight
from pruninglab.naming import label
from pruninglab.recovery import finetune
from pruninglab.schedules import before_training, gradual, granet, iterative, lottery, regrow
from pruninglab.statistics import STATISTICS
from pruninglab.tasks import TASKS, Task, Training
from pruninglab.units import block, nm

module = importlib.import_module("pruninglab.compare")  # the name in the package is the function's

COLUMNS = [
    "task", "criterion", "unit", "allocation", "schedule", "recovery", "sparsity", "achieved", "seed",
    "accuracy_before", "accuracy", "validation", "seconds_pruning", "seconds_recovery", "steps", "forward_passes",
    "note",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(data_folder):
    """No run of one test answers for another."""


@pytest.fixture
def runs(monkeypatch):
    """The runs that are really done."""
    done, true = [], module.do
    monkeypatch.setattr(module, "do", lambda some: done.extend(some) or true(some))
    return done


def accuracy(model, task):
    return 0.5


def dense(weight):
    return weight.abs()


def timeless(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns=["seconds_pruning", "seconds_recovery"])


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_for_each_run_and_the_baselines_always_in(tiny):
    table = compare(["taylor", "wanda"], task=tiny, sparsity=[0.5, 0.9], seeds=3)
    assert list(table) == COLUMNS
    assert len(table) == 3 + 4 * 2 * 3
    counts = table.groupby("criterion").size().to_dict()
    assert counts == {"dense": 3, "random": 6, "magnitude": 6, "taylor": 6, "wanda": 6}
    assert not table.duplicated(["criterion", "sparsity", "seed"]).any()
    assert set(table["seed"]) == {0, 1, 2}
    constant = table[["task", "unit", "allocation", "schedule", "recovery"]].drop_duplicates()
    assert constant.values.tolist() == [["tiny", "weight", "global", "one_shot", "none"]]
    assert ((table["achieved"] - table["sparsity"]).abs() <= 0.5 / 356 + 1e-9).all()
    assert (table["steps"] == 0).all()
    assert (table["accuracy"] == table["accuracy_before"]).all()
    assert not table.isna().any().any()


def test_dense_rows_are_the_unpruned_networks(tiny):
    table = compare(task=tiny, sparsity=0.5, seeds=[4, 7])
    dense = table[table["criterion"] == "dense"].set_index("seed")
    for seed in (4, 7):
        assert dense.loc[seed, "accuracy"] == tiny.accuracy(tiny.trained(seed))
    assert (dense["achieved"] == 0).all()


def test_the_rows_are_what_prune_does(tiny):
    """Each number again by hand: same network, same calibration data, same seed."""
    table = compare("wanda", task=tiny, sparsity=0.8, seeds=2, calibration=40).set_index(["criterion", "seed"])
    for seed in (0, 1):
        for name in ("wanda", "magnitude", "random"):
            model = tiny.trained(seed)
            masks = prune(model, sparsity=0.8, criterion=name, data=tiny.calibration(40, seed), seed=seed)
            assert table.loc[(name, seed), "accuracy"] == tiny.accuracy(model)
            assert table.loc[(name, seed), "achieved"] == masks.sparsity()


def test_recovery_is_measured_and_paid_for(tiny):
    table = compare(task=tiny, sparsity=0.9, seeds=1, recovery=partial(finetune, steps=9)).set_index("criterion")
    model = tiny.trained()
    masks = prune(model, sparsity=0.9)
    before = tiny.accuracy(model)
    finetune(model, masks, tiny, steps=9)
    assert table.loc["magnitude", "accuracy_before"] == before
    assert table.loc["magnitude", "accuracy"] == tiny.accuracy(model)
    assert table.loc["magnitude", "steps"] == 9
    assert table.loc["dense", "steps"] == 0
    assert table.loc["magnitude", "seconds_recovery"] > 0
    assert set(table["recovery"]) == {"finetune(steps=9)"}


@pytest.mark.parametrize(
    ("schedule", "steps", "name"),
    [("one_shot", 0, "one_shot"), (iterative(3), 2 * 50, "iterative(3)"), ("gradual", 50, "gradual")],
)
def test_schedules_and_their_steps(schedule, steps, name):
    task = make_task(steps=100)
    table = compare(task=task, sparsity=0.8, seeds=1, schedule=schedule, recovery="finetune")
    assert set(table["schedule"]) == {name}
    pruned = table[table["criterion"] != "dense"]
    assert (pruned["steps"] == steps + 50).all()
    assert ((pruned["achieved"] - 0.8).abs() <= 0.5 / 356 + 1e-9).all()


@pytest.mark.parametrize(
    ("schedule", "steps", "name", "allocation"),
    [
        ("rigl", 40, "rigl", "erk"),
        ("set", 40, "set", "erk"),
        ("granet", 40, "granet", "global"),
        (granet(0.5), 40, "granet(initial=0.5)", "erk"),
        (gradual(from_scratch=True), 40, "gradual(from_scratch=True)", "global"),
        ("before_training", 40, "before_training", "erk"),
        (before_training(4), 40, "before_training(4)", "global"),
        ("lottery", 7 * 40, "lottery", "global"),  # 0.8⁷ > 0.2 > 0.8⁸: eight prunings, and training between them
        (lottery(3, rewind_to=0.3), 2 * 28, "lottery(3, rewind_to=0.3)", "erk"),
    ],
)
def test_schedules_that_train_from_scratch(schedule, steps, name, allocation):
    task = make_task(steps=40)
    table = compare("random", task=task, sparsity=[0.8], seeds=2, schedule=schedule, allocation=allocation)
    assert set(table["schedule"]) == {name}
    pruned = table[table["criterion"] != "dense"]
    assert len(pruned) == 4
    assert (pruned["steps"] == steps).all()
    assert (pruned["achieved"] == 1 - 71 / 356).all()
    assert (pruned["accuracy"] == pruned["accuracy_before"]).all()
    assert (pruned.set_index("criterion").loc["magnitude", "accuracy"] > 0.6).all(), "of three classes"


def test_rewinding_makes_the_ticket_of_a_lottery(tiny):
    """The recovery's steps are added, and the network is the one that rewinding by hand gives."""
    table = compare(task=tiny, sparsity=0.7, seeds=[3], schedule=lottery(2), recovery="rewind").set_index("criterion")
    assert (table.loc[["random", "magnitude"], "steps"] == 30 + 30).all()
    model = tiny.trained(3)
    masks = prune(model, sparsity=1 - 0.3**0.5)
    model.load_state_dict(tiny.model(3).state_dict())
    masks.apply(model)
    tiny.train(model, masks=masks, seed=3)
    masks = prune(model, sparsity=0.7, within=masks)
    assert table.loc["magnitude", "accuracy_before"] == tiny.accuracy(model)
    model.load_state_dict(tiny.model(3).state_dict())
    masks.apply(model)
    tiny.train(model, masks=masks, seed=3)
    assert table.loc["magnitude", "accuracy"] == tiny.accuracy(model)


def test_before_training_scores_the_untrained_network(tiny):
    table = compare("snip", task=tiny, sparsity=0.7, seeds=[2], schedule="before_training", calibration=40)
    model = tiny.model(2)
    masks = prune(model, sparsity=0.7, criterion="snip", data=tiny.calibration(40, 2))
    tiny.train(model, masks=masks, seed=2)
    assert table.set_index("criterion").loc["snip", "accuracy"] == tiny.accuracy(model)


@pytest.mark.parametrize("schedule", ["rigl", "granet", lottery(2)])
def test_networks_side_by_side_end_like_networks_alone(schedule):
    """Up to rounding, which may tip a sample or two over the edge."""
    options = {"task": make_task(steps=40), "sparsity": 0.8, "schedule": schedule, "cache": False}
    options["allocation"] = "erk"
    both = compare(**options, seeds=2)
    alone = pd.concat([compare(**options, seeds=[seed]) for seed in range(2)])
    key = ["seed", "criterion"]
    both, alone = (timeless(table).set_index(key).sort_index() for table in (both, alone))
    pd.testing.assert_frame_equal(both[["achieved", "steps"]], alone[["achieved", "steps"]])
    assert ((both["accuracy"] - alone["accuracy"]).abs() <= 2.5 / 90).all()


def test_initial_weights_for_who_asks(tiny):
    def movement(weight, initial_weight):
        return (weight - initial_weight).abs()

    table = compare(movement, task=tiny, sparsity=0.7, seeds=1).set_index("criterion")
    model = tiny.trained()
    prune(model, sparsity=0.7, criterion=movement, initial=tiny.model())
    assert table.loc["movement", "accuracy"] == tiny.accuracy(model)


def test_an_nm_unit_brings_its_own_sparsity(tiny):
    table = compare("wanda", task=tiny, unit=nm(1, 4), sparsity=[0.5, 0.9], seeds=2)
    assert len(table) == 2 + 3 * 2
    pruned = table[table["criterion"] != "dense"]
    assert (pruned["sparsity"] == 0.75).all()
    assert (pruned["achieved"] == 0.75).all()
    assert set(table["unit"]) == {"1:4"}


def test_layers_can_be_left_out(runs):
    table = compare(task="digits-cnn", unit="2:4", exclude="conv1", seeds=1)
    assert (table[table["criterion"] != "dense"]["achieved"] == 0.5).all()
    compare(task="digits-cnn", unit="2:4", exclude=["conv1", "fc2"], seeds=1)
    assert len(runs) == 4, "what is left out is part of the key"


def test_rows_and_other_allocations(tiny):
    rows = compare(task=tiny, unit="row", sparsity=0.5, seeds=1)
    assert ((rows["achieved"] - rows["sparsity"]).abs() < 16 / 356).all()
    floor = compare(task=tiny, allocation=partial(global_, min_keep=5), sparsity=0.9, seeds=1)
    assert set(floor["allocation"]) == {"global(min_keep=5)"}


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_function_named_like_a_built_in_is_yours(tiny):
    def magnitude(weight):
        return -weight.abs()

    table = compare(magnitude, task=tiny, sparsity=0.6, seeds=1).set_index("criterion")
    assert set(table.index) == {"dense", "random", "magnitude", "magnitude (yours)"}
    for name, function in (("magnitude", "magnitude"), ("magnitude (yours)", magnitude)):
        model = tiny.trained()
        prune(model, sparsity=0.6, criterion=function)
        assert table.loc[name, "accuracy"] == tiny.accuracy(model)
    assert table.loc["magnitude (yours)", "accuracy"] < table.loc["magnitude", "accuracy"]


def test_a_decorated_function_named_like_a_built_in_is_yours_too(tiny):
    with pytest.warns(UserWarning, match="keeps its name"):

        @criterion
        def random(weight):
            return weight

    table = compare(random, task=tiny, sparsity=0.6, seeds=1)
    assert set(table["criterion"]) == {"dense", "random", "magnitude", "random (yours)"}


def test_the_built_in_function_itself_is_its_own_baseline(tiny):
    table = compare([magnitude, "random"], task=tiny, sparsity=0.6, seeds=1)
    assert sorted(table["criterion"]) == ["dense", "magnitude", "random"]


def test_hyper_parameters_are_in_the_name(tiny):
    def power(weight, exponent=1.0):
        return weight.abs() ** exponent

    table = compare([power, partial(power, exponent=-1.0)], task=tiny, sparsity=0.6, seeds=1).set_index("criterion")
    assert table.loc["power", "accuracy"] == table.loc["magnitude", "accuracy"]
    assert table.loc["power(exponent=-1.0)", "accuracy"] < table.loc["power", "accuracy"]


def test_two_criteria_of_one_name(tiny):
    def make(sign):
        def mine(weight):
            return sign * weight

        return mine

    with pytest.raises(ValueError, match="each criterion needs a name of its own"):
        compare([make(1), make(-1)], task=tiny, seeds=1)


def test_labels_show_functions_by_their_names():
    assert label(partial(finetune, steps=3, how=partial(magnitude, a="x"))) == "finetune(steps=3, how=magnitude(a='x'))"


def test_numpys_numbers_are_numbers(tiny, runs):
    plain = compare(task=tiny, sparsity=[0.5, 0.75], seeds=2, calibration=40)
    for seeds in (np.int64(2), np.arange(2), torch.arange(2)):
        table = compare(task=tiny, sparsity=np.array([0.5, 0.75]), seeds=seeds, calibration=np.int32(40))
        pd.testing.assert_frame_equal(plain, table)
    compare(task=tiny, sparsity=np.float32(0.5), seeds=np.int64(2), calibration=40)
    assert len(runs) == 8


# ── errors come before any run ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"criteria": "mgnitude"}, ValueError, "unknown criterion"),
        ({"criteria": [3]}, TypeError, "a criterion is a name or a function"),
        ({"task": "digits"}, ValueError, "unknown task"),
        ({"task": 3}, TypeError, "a task is a name or a Task, not 3"),
        ({"unit": "rwo"}, ValueError, "unknown unit"),
        ({"unit": "2:4", "schedule": "gradual"}, ValueError, r"2:4 fixes sparsity=0\.5: .*'one_shot', not 'gradual'"),
        ({"unit": "2:4", "schedule": iterative(3)}, ValueError, r"not 'iterative\(3\)'"),
        ({"unit": "2:5"}, ValueError, "2:5 does not fit layer"),
        ({"allocation": partial(global_, min_keep=100)}, ValueError, "min_keep"),
        ({"exclude": "conv9"}, ValueError, "matches no layer"),
        ({"schedule": 3}, TypeError, "a schedule is a name or a function, not 3"),
        ({"recovery": 3}, TypeError, "a recovery is a name or a function, not 3"),
        ({"task": []}, ValueError, "task is an empty list"),
        ({"unit": ["weight", "rwo"]}, ValueError, "unknown unit"),
        ({"unit": ["weight", "2:4"], "schedule": ["one_shot", "gradual"]}, ValueError, "fixes sparsity"),
        ({"metrics": "corupted"}, ValueError, "unknown metric.*Did you mean 'corrupted'"),
        ({"metrics": [3]}, TypeError, "a metric is a name or a function, not 3"),
        ({"time_limit": 0}, ValueError, "seconds above 0, not 0"),
        ({"n_jobs": 0}, ValueError, "n_jobs"),
        ({"n_jobs": 1.5}, TypeError, "n_jobs must be a whole number"),
        ({"seeds": 2.0}, TypeError, "seeds must be a whole number"),
        ({"seeds": ["0"]}, TypeError, "a seed must be a whole number, not '0'"),
        ({"sparsity": "0.5"}, TypeError, "must be a number in .*, not '0.5'"),
        ({"calibration": 0}, ValueError, "1 to 320 training samples"),
        ({"allocation": "globl"}, ValueError, "unknown allocation"),
        ({"schedule": "oneshot"}, ValueError, "unknown schedule.*Did you mean 'one_shot'"),
        ({"recovery": "fine-tune"}, ValueError, "unknown recovery.*Did you mean 'finetune'"),
        ({"sparsity": [0.5, 1.0]}, ValueError, r"in \[0, 1\)"),
        ({"sparsity": []}, ValueError, "at least one seed and one sparsity"),
        ({"seeds": 0}, ValueError, "at least one seed and one sparsity"),
        ({"seeds": [0, 1, 0]}, ValueError, "each seed needs a name of its own in the table; 0 is there more than once"),
        ({"sparsity": [0.5, 0.5]}, ValueError, "each sparsity needs .*0.5"),
        ({"criteria": ["taylor", "taylor"]}, ValueError, "each criterion needs .*'taylor'"),
        ({"criteria": dense}, ValueError, "each criterion needs .*'dense'"),
        ({"metrics": [lambda model, task: 1.0, lambda model, task: 2.0]}, ValueError, "each metric needs .*'<lambda>'"),
        ({"metrics": accuracy}, ValueError, "each metric needs .*'accuracy'"),
        ({"recovery": ["finetune", finetune]}, ValueError, "each recovery needs .*'finetune'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(tiny, runs, monkeypatch, options, kind, match):
    def never(*_args, **_options):
        raise AssertionError("a network was trained before the error")

    monkeypatch.setattr(type(tiny), "trained", never)
    with pytest.raises(kind, match=match):
        compare(**({"task": tiny} | options))
    assert not runs


# ── several answers ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_network_is_pruned_once_for_all_its_recoveries(tiny, monkeypatch):
    true, calls = pruninglab.runs.prune, []
    monkeypatch.setattr(
        pruninglab.runs, "prune", lambda *args, **how: calls.append(how["sparsity"]) or true(*args, **how)
    )

    def spoils(model, masks, task, *, seed):
        for mask in masks.values():
            mask.zero_()
        masks.apply(model)
        return 3

    def fails(model, masks, task, *, seed):
        for parameter in model.parameters():
            parameter.data.zero_()
        raise RuntimeError("no way back")

    ways = [None, spoils, fails, partial(finetune, steps=3), "rewind"]
    options = {"task": tiny, "sparsity": [0.6, 0.9], "seeds": 2, "cache": False}
    with pytest.warns(UserWarning, match="no way back"):
        table = compare("taylor", recovery=ways, **options)
    assert len(calls) == 3 * 2 * 2
    failed = table["recovery"] == "fails"
    lost = table[failed & (table["criterion"] != "dense")]
    assert len(lost) == 3 * 2 * 2
    assert lost["accuracy"].isna().all()
    assert (lost["note"] == "RuntimeError: no way back").all()
    assert table[~failed]["accuracy"].notna().all()
    for way in (None, ways[3], "rewind"):
        alone = compare("taylor", recovery=way, **options)
        among = table[table["recovery"] == alone["recovery"].iloc[0]].reset_index(drop=True)
        pd.testing.assert_frame_equal(timeless(among), timeless(alone), check_dtype=False)
    assert len(calls) == 4 * 3 * 2 * 2


def test_lists_of_answers_are_combined(tiny, runs):
    other = make_task("other", splits=blobs(1))
    lists = {"task": [tiny, other], "unit": ["weight", "2:4"], "recovery": [None, partial(finetune, steps=3)]}
    table = compare("taylor", **lists, sparsity=[0.6, 0.9], seeds=2)
    names = ["task", "unit", "recovery"]
    counts = table[table["criterion"] != "dense"].groupby(names).size().to_dict()
    both = ("none", "finetune(steps=3)")
    expected = {(t, u, r): 3 * 2 * n for t in ("tiny", "other") for u, n in (("weight", 2), ("2:4", 1)) for r in both}
    assert counts == expected
    assert len(runs) == sum(expected.values())
    assert (table[table["criterion"] == "dense"].groupby(names).size() == 2).all(), "dense in each"
    one = compare("taylor", task=other, unit="2:4", recovery=partial(finetune, steps=3), sparsity=[0.6, 0.9], seeds=2)
    assert len(runs) == sum(expected.values()), "as it is alone"
    mine = (table["task"] == "other") & (table["unit"] == "2:4") & (table["recovery"] != "none")
    pd.testing.assert_frame_equal(table[mine].reset_index(drop=True), one)


# ── what goes wrong in a run ──────────────────────────────────────────────────────────────────────────────────────


def nan(weight):
    return weight / 0 * 0


def flat(weight):
    return weight.flatten()


def raising(weight, grad):
    raise RuntimeError("no idea\nat all")


def endless(weight):
    while True:
        pass


def unknown(weight, gard):
    return weight


BAD = {
    nan: "gave NaN for",
    flat: "must return scores shaped (16, 8) for layer",
    raising: "RuntimeError: no idea",
    endless: "TimeLimit: pruning by endless took longer than 0.5 s",
    unknown: "'gard'. Did you mean 'grad'?",
}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
@pytest.mark.parametrize("recovery", [None, "finetune"])
def test_a_run_that_fails_says_so_and_the_others_go_on(tiny, runs, bad, recovery):
    options = {"task": tiny, "sparsity": 0.5, "seeds": 2, "recovery": recovery}
    with pytest.warns(UserWarning, match=f"2 runs of '{bad.__name__}' failed"):
        table = compare([bad, "taylor"], **options, metrics="worst_class", time_limit=0.5)
    failed = table[table["criterion"] == bad.__name__]
    assert len(failed) == 2
    assert failed["note"].str.contains(BAD[bad], regex=False).all(), failed["note"].iloc[0]
    assert failed[["achieved", "accuracy", "worst_class", "steps", "forward_passes"]].isna().all().all()
    assert (failed["sparsity"] == 0.5).all()
    others = table[table["criterion"] != bad.__name__]
    assert (others["note"] == "").all()
    pd.testing.assert_frame_equal(
        others.reset_index(drop=True), compare("taylor", **options, metrics="worst_class"), check_dtype=False
    )


def forgetful(model, masks, task, *, seed=0):
    return len(task.train(model, steps=20, seed=seed))  # and not masks=masks


def silent(model, masks, task, *, seed=0):
    task.train(model, masks=masks, steps=5, seed=seed)


@pytest.mark.parametrize(
    ("recovery", "note"),
    [(forgetful, "of the removed weights back: train with masks=masks"), (silent, "number of steps that a recovery")],
)
def test_a_recovery_that_breaks_its_promise_says_so_and_the_others_go_on(tiny, recovery, note):
    with pytest.warns(UserWarning, match="failed"):
        table = compare(task=tiny, sparsity=0.9, seeds=1, recovery=["finetune", recovery])
    lost = (table["recovery"] == recovery.__name__) & (table["criterion"] != "dense")
    assert table.loc[lost, "accuracy"].isna().all()
    assert table.loc[lost, "note"].str.contains(note, regex=False).all()
    assert (table.loc[~lost, "note"] == "").all()


def test_what_failed_is_tried_again(tiny, runs):
    def sometimes(weight):
        if len(runs) < 6:
            raise RuntimeError("not now")
        return weight.abs()

    for expected in (3, 4):
        with pytest.warns(UserWarning, match="failed: RuntimeError: not now"):
            compare(sometimes, task=tiny, sparsity=0.5, seeds=1)
        assert len(runs) == expected
    runs += [None] * 6
    table = compare(sometimes, task=tiny, sparsity=0.5, seeds=1).set_index("criterion")
    assert table.loc["sometimes", "accuracy"] == table.loc["magnitude", "accuracy"]


def test_a_time_limit_changes_no_result(tiny, runs):
    free = compare("taylor", task=tiny, sparsity=0.5, seeds=1)
    pd.testing.assert_frame_equal(compare("taylor", task=tiny, sparsity=0.5, seeds=1, time_limit=60), free)
    assert len(runs) == 3, "nor the key"


def test_scores_that_are_all_equal_are_noted(tiny):
    def constant(weight):
        return 0 * weight

    def of_layers(weight):
        return torch.full_like(weight, weight.abs().mean())

    table = compare([constant, of_layers, "snip"], task=tiny, sparsity=0.5, seeds=2).set_index("criterion")
    assert table.loc[["constant", "of_layers"], "note"].str.contains("decided by position").all()
    assert table.loc[["constant", "of_layers"], "accuracy"].notna().all()
    assert (table.loc[["dense", "random", "magnitude", "snip"], "note"] == "").all()


# ── cost, metrics, and what may be seen ───────────────────────────────────────────────────────────────────────────


def test_forward_passes_are_counted(tiny):
    table = compare(["taylor", "magnitude"], task=tiny, sparsity=0.5, seeds=1, calibration=300).set_index("criterion")
    assert table.loc["taylor", "forward_passes"] == 3, "batches of 128"
    assert table.loc["magnitude", "forward_passes"] == 0
    rounds = compare("taylor", task=tiny, sparsity=0.5, seeds=1, schedule=iterative(4), calibration=100)
    assert rounds.set_index("criterion").loc["taylor", "forward_passes"] == 4, "training is counted in steps"


def test_metrics_are_columns(tiny, runs):
    def zeros(model, task):
        return float(sum((p == 0).sum() for p in model.parameters()))

    table = compare(task=tiny, sparsity=0.5, seeds=1, metrics=["worst_class", zeros]).set_index("criterion")
    assert table.loc["magnitude", "zeros"] >= 178 > table.loc["dense", "zeros"]
    assert (table["worst_class"] <= table["accuracy"]).all()
    assert len(runs) == 2
    compare(task=tiny, sparsity=0.5, seeds=1)
    assert len(runs) == 4, "metrics are part of the key"


def test_nothing_is_chosen_by_the_test_split(runs):
    """With other labels there, only what is measured on it changes, whatever was done."""
    splits = blobs()
    scrambled = splits | {"test": (splits["test"][0].flip(0) * 3, splits["test"][1].roll(1))}
    tables = []
    for parts in (splits, scrambled):
        options = {"task": make_task(splits=parts), "seeds": 2, "sparsity": [0.5, 0.8], "cache": False}
        options |= {
            "unit": ["weight", "row"],
            "schedule": ["one_shot", lottery(2)],
            "recovery": partial(finetune, steps=5),
        }
        options["allocation"] = ["global", "rate_distortion"]
        tables.append(timeless(compare(["taylor", "wanda"], **options)))
    before, after = (table.drop(columns=["accuracy", "accuracy_before"]) for table in tables)
    pd.testing.assert_frame_equal(before, after)
    assert (tables[0]["accuracy"] != tables[1]["accuracy"]).any()


def test_validation_is_of_that_split(tiny):
    table = compare(task=tiny, sparsity=0.5, seeds=1).set_index("criterion")
    model = tiny.trained()
    assert table.loc["dense", "validation"] == tiny.accuracy(model, "validation")
    prune(model, sparsity=0.5)
    assert table.loc["magnitude", "validation"] == tiny.accuracy(model, "validation")


# ── the cache ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_repeated_sweep_does_no_run(tiny, runs):
    first = compare("taylor", task=tiny, sparsity=[0.5, 0.9], seeds=2)
    assert len(runs) == 12
    second = compare("taylor", task=tiny, sparsity=[0.5, 0.9], seeds=2)
    assert len(runs) == 12
    pd.testing.assert_frame_equal(first, second)
    compare("taylor", task=tiny, sparsity=[0.5, 0.9, 0.95], seeds=2)
    assert len(runs) == 12 + 6, "only what is new"


def test_without_the_cache_everything_runs(tiny, runs, data_folder):
    for _ in range(2):
        compare(task=tiny, sparsity=0.5, seeds=1, cache=False)
    assert len(runs) == 4
    assert not (data_folder / "cache" / "runs.sqlite").exists()


def test_whatever_makes_a_result_is_part_of_its_key(tiny, runs):
    def mine(weight, sign=1.0):
        return sign * weight.abs()

    base = {"criteria": mine, "task": tiny, "sparsity": 0.5, "seeds": 1}
    other_data = make_task(splits=blobs(1))
    changes = [
        {},
        {"sparsity": 0.6},
        {"seeds": [1]},
        {"calibration": 32},
        {"allocation": "uniform"},
        {"unit": "row"},
        {"recovery": partial(finetune, steps=2)},
        {"recovery": partial(finetune, steps=3)},
        {"task": make_task(lr=0.05)},
        {"task": make_task(norm=True)},
        {"task": other_data},
        {"task": make_task("another name")},
    ]
    for i, change in enumerate(changes, start=1):
        compare(**(base | change))
        assert len(runs) == 3 * i, change
    compare(**(base | {"criteria": partial(mine, sign=-1.0)}))
    assert len(runs) == 3 * len(changes) + 1, "the baselines are known by now"
    compare(**base)
    assert len(runs) == 3 * len(changes) + 1


def test_a_changed_criterion_is_run_again(tiny, runs):
    def version(sign):
        scope = {"sign": sign}
        exec("def mine(weight):\n    return sign * weight.abs()", scope)
        return scope["mine"]

    up = compare(version(1), task=tiny, sparsity=0.6, seeds=1).set_index("criterion")
    down = compare(version(-1), task=tiny, sparsity=0.6, seeds=1).set_index("criterion")
    assert len(runs) == 4
    assert up.loc["mine", "accuracy"] > down.loc["mine", "accuracy"]


def test_what_cannot_be_told_from_others_is_not_stored(tiny, runs):
    lock = threading.Lock()

    def mine(weight):
        with lock:
            return weight.abs()

    for expected in (3, 4):  # the baselines are known the second time
        with pytest.warns(UserWarning, match=r"results are not stored.*lock"):
            compare(mine, task=tiny, sparsity=0.6, seeds=1)
        assert len(runs) == expected


def test_a_task_is_its_data_its_network_and_its_class():
    def task_of(activation=torch.relu, seed=0, kind=Task):
        def build():
            model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 3))
            model[0].register_forward_hook(lambda module, given, output: activation(output))
            return model

        return kind("mine", lambda: blobs(seed), build, Training(steps=30, batch=32, lr=0.1))

    class Harder(Task):
        def loss(self, outputs, targets):
            return 2 * super().loss(outputs, targets)

    base = task_of()
    assert base.version == task_of().version
    others = [task_of(torch.tanh), task_of(seed=1), task_of(kind=Harder)]
    assert len({base.version, *(other.version for other in others)}) == 4
    before = base.trained(0)
    after = others[0].trained(0)  # the same initial weights, but not the network of the cache
    assert not torch.equal(before[0].weight, after[0].weight)


def test_random_channels_are_those_of_prune():
    home = task("digits-cnn")
    table = compare(task=home, unit="channel", sparsity=0.3, seeds=2).set_index(["criterion", "seed"])
    for seed in range(2):
        model = home.trained(seed)
        data = home.calibration(256, seed)
        prune(model, unit="channel", criterion="random", sparsity=0.3, data=data, seed=seed)
        assert table.loc[("random", seed), "accuracy"] == home.accuracy(model)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_what_is_registered_is_what_runs(tiny, n_jobs, monkeypatch):
    """By name: a criterion, the statistic it asks for, a task, each changed in turn; in other processes too."""

    def found(sign=1, power=1, seed=0):
        @statistic
        def inputs_to(inputs, layer):
            return like_weight(layer, inputs.abs().sum((1, 2))) ** power

        @criterion
        def mine(weight, inputs_to):
            return sign * weight.abs() * inputs_to

        monkeypatch.setitem(TASKS, "mine", make_task("mine", splits=blobs(seed)))
        table = compare("mine", task="mine", sparsity=[0.7, 0.8], seeds=1, n_jobs=n_jobs).set_index("criterion")
        model = task("mine").trained()
        prune(model, sparsity=0.8, criterion=mine, data=task("mine").calibration())
        assert table.loc["mine", "accuracy"].iloc[1] == task("mine").accuracy(model)
        return table.loc["mine", "accuracy"].tolist()

    results = [found(), found(sign=-1), found(power=-4), found(seed=1)]
    assert all(result != results[0] for result in results[1:])


def test_a_built_in_task_is_sent_by_name():
    import pickle

    home = task("digits-mlp")
    assert pickle.loads(pickle.dumps(home)) is home
    assert len(pickle.dumps(home)) < 200


def test_schedules_and_units_with_other_settings_have_other_keys():
    for one, other in (
        (iterative(3), iterative(4)),
        (gradual(every=10), gradual(every=20)),
        (gradual(), gradual(from_scratch=True)),
        (lottery(3), lottery(4)),
        (lottery(rate=0.2), lottery(rate=0.3)),
        (lottery(), lottery(rewind_to=0.1)),
        (before_training(), before_training(2)),
        (regrow(), regrow("random")),
        (regrow(), regrow(fraction=0.2)),
        (granet(), granet(0.5)),
        (granet(fraction=0.3), granet(fraction=0.4)),
        (nm(2, 4), nm(2, 4, remainder="dense")),
        (block(2, 4), block(2, 8)),
        (STATISTICS["grad"], STATISTICS["fisher"]),
    ):
        assert fingerprint(one) != fingerprint(other)
    same = [lambda: iterative(3), lambda: gradual(every=10), lambda: nm(2, 4), lambda: block(2, 4)]
    for make in (*same, lottery, before_training, regrow, granet):
        assert fingerprint(make()) == fingerprint(make())


def test_an_interrupted_sweep_goes_on(tiny, runs, monkeypatch):
    true, calls = pruninglab.runs.prune, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return true(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pruninglab.runs, "prune", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(task=tiny, sparsity=[0.5, 0.7, 0.9], seeds=2)
    assert len(runs) == 6  # the sixth was not finished
    resumed = compare(task=tiny, sparsity=[0.5, 0.7, 0.9], seeds=2)
    assert len(runs) == 6 + 12 - 5
    whole = compare(task=tiny, sparsity=[0.5, 0.7, 0.9], seeds=2, cache=False)
    pd.testing.assert_frame_equal(timeless(resumed), timeless(whole))


def test_two_processes_give_what_one_gives(tiny):
    def mine(weight, input_norm):
        return weight.square() * input_norm

    options = {"criteria": [mine, "taylor"], "task": tiny, "sparsity": [0.6, 0.9], "seeds": 2, "recovery": "finetune"}
    one = compare(**options, n_jobs=1, cache=False)
    two = compare(**options, n_jobs=2)
    pd.testing.assert_frame_equal(timeless(one), timeless(two))


def test_the_cache_deleted_during_a_sweep(tiny, data_folder):
    def careless(weight):
        shutil.rmtree(data_folder / "cache", ignore_errors=True)
        return weight.abs()

    table = compare(careless, task=tiny, sparsity=[0.5, 0.9], seeds=1)
    assert len(table) == 7


def test_no_folder_to_write_to(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNINGLAB_DATA", str(tmp_path / "file" / "data"))
    for cache in (True, False):
        with pytest.warns(UserWarning, match="set PRUNINGLAB_DATA"):
            table = compare(task=tiny, sparsity=0.5, seeds=1, cache=cache)
        assert len(table) == 3


def test_compare_survives_a_broken_store(tiny, runs, data_folder):
    first = compare(task=tiny, sparsity=0.5, seeds=1)
    (data_folder / "cache" / "runs.sqlite").write_bytes(b"rubbish" * 100)
    with pytest.warns(UserWarning, match="is started anew"):
        second = compare(task=tiny, sparsity=0.5, seeds=1)
    pd.testing.assert_frame_equal(timeless(first), timeless(second))
    assert len(runs) == 4


def test_a_table_can_be_handed_on(tiny, tmp_path):
    table = compare(task=tiny, sparsity=0.5, seeds=1)
    table.to_csv(tmp_path / "runs.csv", index=False)
    read = pd.read_csv(tmp_path / "runs.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    assert table.to_markdown(index=False).count("\n") == 1 + len(table)
