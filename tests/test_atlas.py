"""The atlas: that what it says is so, that what it calls working works, and recipes that are answers and no more."""

import importlib
import re
from dataclasses import fields, replace

import pytest
import torch
from helpers import make_task, same, snapshot
from language_tasks import tiny_text_task
from recipe_tasks import make, pictures

from pruninglab import allocation, prune, units
from pruninglab.allocation import ALLOCATIONS, BudgetError
from pruninglab.atlas import SYSTEMS, TOPICS, System, beyond, language, planned, structures, table, training, weights
from pruninglab.book import chapters
from pruninglab.criteria import CRITERIA, Scores
from pruninglab.criteria import find as find_criterion
from pruninglab.language.ratios import RATIOS
from pruninglab.masks import Masks
from pruninglab.naming import resolve
from pruninglab.recipes import RECIPES, recipe
from pruninglab.recipes.answers import ANSWERS, Answers, beginning_as, global_with_floor
from pruninglab.recovery import RECOVERIES
from pruninglab.schedules import SCHEDULES, lottery
from pruninglab.tasks import TASKS, LanguageTask, models

QUESTIONS = ("what", "how_important", "how_much", "when", "repair")
WORKING = [name for name, system in SYSTEMS.items() if system.works]
PLANNED = [name for name, system in SYSTEMS.items() if not system.works]
every = pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)


# ── what it says ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_there_are_many_and_each_is_there_once():
    parts = [system for part in (weights, structures, training, language, beyond) for system in part.SYSTEMS]
    assert len(parts) == len(SYSTEMS) > 65
    assert all(name == system.name for name, system in SYSTEMS.items())
    assert len({system.title for system in SYSTEMS.values()}) == len(SYSTEMS)


def test_what_works_are_the_recipes_and_no_others():
    assert set(WORKING) == set(RECIPES)
    assert WORKING
    assert PLANNED
    assert set(ANSWERS) <= set(RECIPES)


@every
def test_nothing_is_left_open(system):
    for field in fields(System):
        if field.name not in ("chapter", "task", "note"):
            assert getattr(system, field.name).strip(), field.name
    assert system.claim.endswith(".")
    assert re.search(r"\b(19[89]\d|20[0-2]\d)\b", system.reference)
    assert system.name.isidentifier()
    assert system.topic in TOPICS
    assert system.start in ("trained", "untrained")


@every
def test_chapters_and_tasks_exist(system):
    numbers = {chapter.number for chapter in chapters()}
    assert system.chapter is None or system.chapter in numbers
    assert TOPICS[system.topic] is None or TOPICS[system.topic] in numbers
    assert system.task in TASKS or (system.task is None and not system.works)


def known(question, name):
    """Whether the library has an answer of this name."""
    tables = {
        "how_important": CRITERIA,
        "how_much": ALLOCATIONS | RATIOS,
        "when": SCHEDULES,
        "repair": RECOVERIES,
    }
    if question == "what":
        try:
            units.find(name)
        except ValueError:
            return False
        return True
    return name in tables[question]


@every
def test_names_in_backticks_are_names_that_the_library_knows(system):
    for question in QUESTIONS:
        text = getattr(system, question)
        assert text.count("`") % 2 == 0
        for name in re.findall("`([^`]+)`", text):
            assert known(question, name.partition("(")[0]), f"{question}: {name}"


def test_a_name_that_is_none_would_be_seen():
    """So that the test above cannot pass by finding everything."""
    assert not any(known(question, "wandah") for question in QUESTIONS)
    assert sum("`" in getattr(system, question) for system in SYSTEMS.values() for question in QUESTIONS) > 200


@pytest.mark.parametrize("name", ANSWERS)
def test_systems_that_are_answers_say_what_is_run(name):
    own, system = ANSWERS[name], SYSTEMS[name]
    find_criterion(own.criterion)
    allocation.find(own.allocation)
    units.find(own.unit)
    resolve("schedule", own.schedule, SCHEDULES)
    if own.recovery is not None:
        resolve("recovery", own.recovery, RECOVERIES)
    assert {question: getattr(system, question) for question in QUESTIONS} == own.told()
    assert all(told in system.how for told in own.told().values())
    assert (system.start == "untrained") == (own.start in ("untrained", "dense"))


def test_some_answers_as_they_are_told():
    told = ANSWERS["stabilized_lottery"].told()
    assert told["when"] == "`lottery(rewind_to=0.05)`"
    assert told["repair"] == "`rewind(to=0.05)`"
    assert ANSWERS["nm"].told()["what"] == "`2:4`"
    assert ANSWERS["global_mp"].told()["how_much"] == "global_with_floor"
    assert ANSWERS["snip"].told()["repair"] == "the training itself"
    assert Answers("magnitude").told()["repair"] == "nothing"


def test_other_recipes_are_found_where_the_atlas_says():
    for name in set(RECIPES) - set(ANSWERS):
        module, _, function = SYSTEMS[name].how.strip("`").rpartition(".")
        assert getattr(importlib.import_module(module), function) is RECIPES[name]
    assert {SYSTEMS[name].how for name in PLANNED} == {"not yet"}


def test_the_table_has_a_row_for_each_system_in_the_order_of_topics():
    found = table()
    assert sorted(found.name) == sorted(SYSTEMS)
    assert list(dict.fromkeys(found.topic)) == list(TOPICS)
    assert set(found[found.state == "works"].name) == set(RECIPES)
    assert set(found.state) == {"works", "planned"}
    row = found.set_index("name").loc["wanda"]
    assert (row.chapter, row.task, row.how_important) == (8, "tiny-llama", "`wanda`")
    assert found.set_index("name").chapter.isna()["dynamicvit"]


# ── what is planned says so ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", PLANNED)
def test_a_planned_system_says_what_it_is_and_what_works(name):
    with pytest.raises(ValueError, match="is planned: there is no recipe of it yet") as caught:
        recipe(name)
    text, chapter = str(caught.value), TOPICS[SYSTEMS[name].topic]
    assert text.startswith(f"{name!r} ({SYSTEMS[name].title})")
    assert ("has no chapter yet" if chapter is None else f"is that of chapter {chapter}.") in text
    named = text.partition("These work")[2].partition(": ")[2].rstrip(".").replace(", …", "").split(", ")
    assert named
    assert all(recipe(other) is RECIPES[other] for other in named)
    if chapter is not None:
        assert {SYSTEMS[other].topic for other in named} == {SYSTEMS[name].topic}


def test_two_messages():
    assert str(planned("cbs")) == (
        "'cbs' (Combinatorial brain surgeon) is planned: there is no recipe of it yet. Its topic, curvature, is that "
        "of chapter 7. These work there: obd, obs, woodfisher, icbs."
    )
    assert "tokens, has no chapter yet. These work: magnitude, global_mp," in str(planned("tome"))


def test_a_name_that_is_nowhere_is_told_the_nearest_that_works():
    with pytest.raises(ValueError, match=r"unknown recipe 'snipp'\. Did you mean 'snip'\?"):
        recipe("snipp")


# ── what works, works ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def small_tasks():
    """Tasks of the same kind that train in a blink."""
    return {
        "digits-mlp": make_task(steps=60),
        "digits-cnn": make("cnn", steps=20),
        "digits-resnet": make("resnet", steps=20),
        "cifar10-resnet20": pictures(lambda: models.ResNet(1, 3, (4, 8), 4), steps=20),
        "tiny-llama": tiny_text_task(width=32),
    }


QUICK = {
    "atp": {"steps": 6, "samples": 8},
    "compresso": {"steps": 6},
    "icbs": {"steps": 3, "block": 32, "batch": 32},
    "loraprune": {"steps": 12, "every": 2},
    "minitron": {"steps": 2, "samples": 8},
    "perp": {"steps": 2, "samples": 8},
}
SAMPLED = ("ecoflap", "flap", "gaprune", "gblm", "llm_pruner", "owl", "shortgpt", "slicegpt", "sparsegpt", "wanda")


@pytest.mark.filterwarnings("ignore:the predicted distortion")
@pytest.mark.parametrize("name", WORKING)
def test_every_system_that_works_runs_on_its_task(name, small_tasks):
    system = SYSTEMS[name]
    t = small_tasks[system.task]
    options = QUICK.get(name, {}) | ({"samples": 8} if name in SAMPLED else {})
    options |= {"samples": 64} if name in ANSWERS else {}
    model = t.trained(0) if system.start == "trained" else t.model(0)
    masks = recipe(name)(model, t, sparsity=0.5, seed=0, **options)
    assert isinstance(masks, Masks)
    assert 0 < masks.kept() < masks.total()
    parameters = dict(model.named_parameters())
    assert set(masks) <= set(parameters)
    assert all((parameters[layer][~mask] == 0).all() for layer, mask in masks.items())
    assert all(parameter.isfinite().all() for parameter in parameters.values())
    if name in ANSWERS and ANSWERS[name].unit in ("weight", "2:4"):
        assert masks.sparsity() == pytest.approx(0.5, abs=1e-3)


# ── recipes that are answers ──────────────────────────────────────────────────────────────────────────────────────


def run(name, t, seed=0, start=None, **options):
    """The masks, and the model afterwards."""
    model = t.model(start if start is not None else seed)
    if ANSWERS[name].start == "trained":
        model = t.trained(seed)
    return ANSWERS[name](model, t, **{"sparsity": 0.8, "seed": seed, "samples": 64} | options), model


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_snip_is_pruning_and_then_training():
    t = make_task()
    masks, model = run("snip", t, seed=3)
    expected = t.model(3)
    once = prune(expected, sparsity=0.8, criterion="snip", data=t.calibration(64, 3), loss=t.loss)
    t.train(expected, masks=once, seed=3)
    assert masks == once
    assert equal(weights_of(model), weights_of(expected))


@pytest.mark.parametrize("to", [0.0, 0.2])
def test_the_lottery_is_the_loop_by_hand_from_whatever_weights_it_is_given(to):
    t = make_task(steps=20)
    own = replace(
        ANSWERS["lottery"],
        schedule=lottery(rate=0.4, rewind_to=to),
        recovery=lambda model, masks, task, seed: RECOVERIES["rewind"](model, masks, task, seed=seed, to=to),
    )
    first = t.model(7)  # not those that this task has for seed 1
    model = t.model(7)
    masks = own(model, t, sparsity=0.7, seed=1, samples=64)

    early, step = t.model(7), round(20 * to)
    t.train(early, seed=1, stop=step)
    expected, found = t.model(7), None
    t.train(expected, seed=1)
    for sparsity in (0.4, 0.64, 0.7):
        if found is not None:
            expected.load_state_dict(early.state_dict())
            t.train(expected, masks=found, seed=1, start=step)
        found = prune(expected, sparsity=sparsity, within=found)
    expected.load_state_dict(early.state_dict())
    found.apply(expected)
    t.train(expected, masks=found, seed=1, start=step)
    assert masks == found
    assert equal(weights_of(model), weights_of(expected))
    assert not equal(weights_of(first), weights_of(t.model(1)))


def test_signs_are_those_of_the_weights_that_it_is_given():
    t = make_task(steps=20)
    still = replace(ANSWERS["sign_tickets"], recovery=lambda model, masks, task, seed: signs.append(task.model(seed)))
    signs = []
    still(t.model(7), t, sparsity=0.5, seed=1, samples=64)
    assert equal(weights_of(signs[0]), weights_of(t.model(7)))


def test_a_task_that_begins_as_a_model_draws_other_seeds_as_before():
    t = make_task()
    home = beginning_as(t, t.model(7), 1)
    state = torch.random.get_rng_state()
    assert equal(weights_of(home.model(1)), weights_of(t.model(7)))
    assert equal(weights_of(home.model(2)), weights_of(t.model(2)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert home.data is t.data
    assert home.model(1) is not home.model(1)


def test_a_ready_language_model_is_trained_from_the_weights_that_it_is_given():
    t = tiny_text_task()
    ready = replace(t, ready=lambda: t.model(5), only_ready=True)
    home = beginning_as(ready, t.model(3), 0)
    assert isinstance(home, LanguageTask)
    expected = t.model(3)
    t.train(expected, seed=0)
    assert equal(weights_of(home.trained(0)), weights_of(expected))


def test_scratch_keeps_the_shape_and_nothing_else():
    t = make("cnn", steps=5)
    masks, model = run("scratch", t, sparsity=0.5)
    expected = prune(t.trained(0), sparsity=0.5, unit="channel", criterion="l1_filter", allocation="uniform",
                     example_inputs=t.data["train"][0][:1])  # fmt: skip
    assert masks == expected
    old = t.trained(0)
    expected.apply(old)
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), old.parameters(), strict=True))


@pytest.mark.parametrize("name", ["magnitude", "snip", "rigl", "lottery", "taylor_filter"])
def test_the_same_call_gives_the_same_and_another_seed_another(name):
    t = make("cnn", steps=10) if name == "taylor_filter" else make_task(steps=40)
    (one, first), (two, again), (_, other) = (run(name, t, seed=seed, sparsity=0.5) for seed in (0, 0, 1))
    assert one == two
    assert equal(weights_of(first), weights_of(again))
    assert not equal(weights_of(first), weights_of(other))


def test_one_answer_can_be_exchanged():
    t = make_task()
    one = replace(ANSWERS["snip"], allocation="erk")(t.model(0), t, sparsity=0.5, samples=64)
    assert one != run("snip", t, sparsity=0.5)[0]
    by_erk = prune(t.model(0), sparsity=0.5, criterion="snip", allocation="erk", data=t.calibration(64, 0))
    assert one == by_erk


def test_layers_can_be_left_alone():
    t = make_task()
    masks, _ = run("snip", t, exclude="fc1")
    assert "fc1.weight" not in masks
    assert masks.sparsity() == pytest.approx(0.8, abs=0.01)


def test_n_of_m_needs_no_sparsity_and_takes_no_other():
    t = make_task()
    masks, _ = run("nm", t, sparsity=None)
    assert all((mask.view(len(mask), -1, 4).sum(2) == 2).all() for mask in masks.values())
    assert run("nm", t, sparsity=0.5)[0] == masks
    with pytest.raises(ValueError, match=r"fixes sparsity=0\.5"):
        run("nm", t, sparsity=0.6)


@pytest.mark.parametrize("name", ["magnitude", "global_mp", "snip", "lottery", "gradual", "rate_distortion"])
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sparsity": 50}, ValueError, r"fraction removed, in \[0, 1\)"),
        ({"sparsity": None}, TypeError, "sparsity must be a number"),
        ({"sparsity": 0.9999}, BudgetError, "would leave none"),
        ({"samples": 321}, ValueError, "1 to 320 training samples, not 321"),
        ({"exclude": "fc9"}, ValueError, "fc9"),
    ],
)
def test_what_cannot_be_is_told_before_anything_has_changed(name, options, error, words):
    t = make_task(steps=60)
    model = t.trained(0) if ANSWERS[name].start == "trained" else t.model(0)
    before = snapshot(model)
    with pytest.raises(error, match=words):
        ANSWERS[name](model, t, **{"sparsity": 0.5, "samples": 64} | options)
    assert same(before, snapshot(model))


def test_a_network_without_blocks_has_no_layer_tickets():
    t = make_task()
    model = t.model(0)
    before = snapshot(model)
    with pytest.raises(ValueError, match="no block"):
        ANSWERS["layer_tickets"](model, t, sparsity=0.5, samples=64)
    assert same(before, snapshot(model))


def test_the_floor_is_a_share_of_all_weights_for_each_layer():
    scores = {
        "high": Scores.of("high", 1 + torch.arange(9000.0).view(90, 100)),
        "low": Scores.of("low", torch.linspace(0, 0.5, 1000).view(10, 100)),
    }
    places = global_with_floor(scores, 100)
    assert places == {("low",): 5, ("high",): 95}  # 0.05 % of 10,000
    assert global_with_floor(scores, 9500) == {("high", "low"): 9500}  # 9,000 high ones and 500: nobody is below
