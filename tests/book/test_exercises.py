"""Exercises: right answers pass, wrong ones do not, and a notebook always goes on."""

import importlib.util
from pathlib import Path

import pytest

from pruninglab.notebook import answers  # noqa: F401  makes the exercises known
from pruninglab.notebook.exercises import EXERCISES, CheckFailed, check

WRONG = Path(__file__).parent / "wrong"


def wrong_ones(name):
    spec = importlib.util.spec_from_file_location(name, WRONG / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {key: value for key, value in vars(module).items() if key.startswith("wrong_")}


CASES = [(name, key, function) for name in EXERCISES for key, function in wrong_ones(name).items()]


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_has_five_wrong_answers_or_more(name):
    assert len(wrong_ones(name)) >= 5


@pytest.mark.parametrize(("name", "key", "function"), CASES, ids=[f"{name}-{key}" for name, key, _ in CASES])
def test_a_wrong_answer_is_rejected_with_words(name, key, function):
    with pytest.raises(CheckFailed) as failure:
        check(function, name, strictly=True)
    assert len(str(failure.value).removeprefix(f"{name}: ").split()) > 5


@pytest.mark.parametrize("name", EXERCISES)
def test_the_library_s_own_answer_passes(name):
    assert check(EXERCISES[name].answer, name, strictly=True) is EXERCISES[name].answer


def said(capsys):
    return capsys.readouterr().out


def test_a_failing_answer_is_replaced_and_the_reason_given(monkeypatch, capsys):
    monkeypatch.setenv("PRUNINGLAB_STRICT", "0")

    def fraction_removed(mask):
        return float(mask.float().mean())

    assert check(fraction_removed) is EXERCISES["fraction_removed"].answer
    text = said(capsys)
    assert "True means *kept*" in text
    assert "hint 2" in text
    assert "goes on with the library's" in text


def test_a_learner_s_exception_is_shown_with_the_learner_s_own_line(monkeypatch, capsys):
    monkeypatch.setenv("PRUNINGLAB_STRICT", "0")

    def fraction_removed(mask):
        return mask.no_such_thing()

    check(fraction_removed)
    assert "return mask.no_such_thing()" in said(capsys)


def test_a_learner_s_own_assertion_is_not_taken_for_the_check_s(monkeypatch, capsys):
    monkeypatch.setenv("PRUNINGLAB_STRICT", "0")

    def fraction_removed(mask):
        assert mask is None, "mine"

    check(fraction_removed)
    assert "assert mask is None" in said(capsys)


def test_an_unwritten_answer_goes_on_even_while_the_book_is_tested(monkeypatch, capsys):
    monkeypatch.setenv("PRUNINGLAB_STRICT", "1")

    def fraction_removed(mask):
        raise NotImplementedError

    assert check(fraction_removed) is EXERCISES["fraction_removed"].answer
    assert "not written yet" in said(capsys)
    with pytest.raises(CheckFailed):
        check(fraction_removed, strictly=True)


def test_a_passing_answer_is_the_one_that_is_used(capsys):
    def fraction_removed(mask):
        return float((~mask).float().mean())

    assert check(fraction_removed) is fraction_removed
    assert "goes on with yours" in said(capsys)
    assert check(fraction_removed, "fraction_removed") is fraction_removed  # a solution, say
    assert "goes on" not in said(capsys)


def test_an_unknown_exercise_is_named():
    with pytest.raises(ValueError, match="Did you mean 'magnitude_mask'"):
        check(lambda: None, "magnitude_masc")
