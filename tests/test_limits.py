"""The time limit: what is too slow ends, what is quick enough does not notice."""

import contextlib
import threading
import time

import pytest

from pruninglab.limits import TimeLimit, time_limit


def forever():
    while True:
        pass


def test_what_never_ends_is_ended():
    start = time.monotonic()
    with pytest.raises(TimeLimit, match=r"^mine took longer than 0\.2 s$"), time_limit(0.2, "mine"):
        forever()
    assert 0.2 <= time.monotonic() - start < 10


def test_code_that_catches_every_error_is_ended_too():
    def stubborn():
        while True:
            with contextlib.suppress(Exception):
                forever()

    with pytest.raises(TimeLimit), time_limit(0.1):
        stubborn()


def test_in_another_thread_too():
    seen = []

    def work():
        try:
            with time_limit(0.1):
                forever()
        except TimeLimit as error:
            seen.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert len(seen) == 1


@pytest.mark.parametrize("seconds", [None, 60])
def test_what_ends_in_time_is_left_alone(seconds):
    before = threading.active_count()
    with time_limit(seconds):
        found = sum(range(1000))
    assert found == 499500
    time.sleep(0.01)  # a cancelled timer's thread ends by itself
    assert threading.active_count() <= before + 1


def test_its_own_errors_come_through():
    with pytest.raises(ZeroDivisionError), time_limit(60):
        raise ZeroDivisionError


def test_the_end_and_the_limit_at_the_same_moment():
    """Whichever comes first, nothing is raised later, in code that has nothing to do with it."""
    for i in range(200):
        try:
            with time_limit(0.002):
                stop = time.perf_counter() + 0.0016 + i * 4e-6
                while time.perf_counter() < stop:
                    pass
        except TimeLimit:
            continue
    time.sleep(0.02)
    assert sum(range(10_000)) == 49_995_000


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_no_time_at_all(seconds):
    with pytest.raises(ValueError, match="seconds above 0"), time_limit(seconds):
        pass
