"""A time limit for code that somebody else wrote."""

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class TimeLimit(TimeoutError):
    """Something took too long, and was ended."""


class _Up(BaseException):
    """What ends it: no `except Exception` in the code catches it."""


def limited(call: Callable[[], T], seconds: float | None, what: str = "this") -> T:
    """What a function returns, which is ended when its time is up. None lets it run for as long as it likes.

    It runs in this thread, and ends between two steps of Python. One endless call into C, such as `time.sleep`, ends
    only when it returns. (This is no context manager: what ends it could then arrive between the block and its exit.)

    Args:
        call: a function without arguments.
        seconds: how long it may take, more than 0.
        what: how the error calls it.

    Raises:
        TimeLimit: time was up. ValueError: `seconds` is not more than 0. And whatever the function raises.
    """
    if seconds is None:
        return call()
    if not seconds > 0:
        raise ValueError(f"a time limit is a number of seconds above 0, not {seconds}")
    thread, lock = ctypes.c_ulong(threading.get_ident()), threading.Lock()
    raised = over = False

    def stop() -> None:
        nonlocal raised
        with lock:
            if not over:
                raised = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_Up))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    try:
        try:
            timer.start()
            return call()
        finally:
            timer.cancel()
            with lock:
                over = True
                if raised:  # and not delivered yet, if the call came to its end in this very moment
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)
    except _Up:
        raise TimeLimit(f"{what} took longer than {seconds:g} s") from None
