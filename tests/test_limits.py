"""The time limit: what is too slow ends, what is quick enough does not notice."""

import contextlib
import threading
import time

import pytest

from pruninglab.limits import TimeLimit, limited


def forever():
    while True:
        pass


def test_what_never_ends_is_ended():
    start = time.monotonic()
    with pytest.raises(TimeLimit, match=r"^mine took longer than 0\.2 s$"):
        limited(forever, 0.2, "mine")
    assert 0.2 <= time.monotonic() - start < 10


def test_code_that_catches_every_error_is_ended_too():
    def stubborn():
        while True:
            with contextlib.suppress(Exception):
                forever()

    with pytest.raises(TimeLimit):
        limited(stubborn, 0.1)


def test_in_another_thread_too():
    seen = []

    def work():
        try:
            limited(forever, 0.1)
        except TimeLimit as error:
            seen.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert len(seen) == 1


@pytest.mark.parametrize("seconds", [None, 60])
def test_what_ends_in_time_is_left_alone(seconds):
    before = threading.active_count()
    assert limited(lambda: sum(range(1000)), seconds) == 499500
    time.sleep(0.01)  # a cancelled timer's thread ends by itself
    assert threading.active_count() <= before + 1


def test_its_own_errors_come_through():
    def failing():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        limited(failing, 60)


def test_the_end_and_the_limit_at_the_same_moment():
    """Whichever comes first, nothing else is raised, then or later, in code that has nothing to do with it."""
    seen = set()
    for i in range(400):
        stop = time.perf_counter() + 0.001 + i * 4e-5  # Python lets another thread in every 5 ms

        def busy(stop=stop):
            while time.perf_counter() < stop:
                pass
            return "done"

        try:
            seen.add(limited(busy, 0.002))
        except TimeLimit:
            seen.add("limit")
    time.sleep(0.02)
    assert sum(range(10_000)) == 49_995_000
    assert seen == {"done", "limit"}


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_no_time_at_all(seconds):
    with pytest.raises(ValueError, match="seconds above 0"):
        limited(forever, seconds)
