"""Running several jobs side by side, so that what they train trains as one stack.

    networks = together([partial(ticket, seed) for seed in range(5)])

A job is any function without arguments. It runs as it would alone, until it asks for training (`Task.train`, a
recovery, a schedule). There it waits for the others; what asked for the same training gets it in one go (see
`stacked`), and all go on. So whoever writes an experiment for one network has written it for many.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pruninglab.tasks.training import Job, Plan, beside, train_all
from pruninglab.tasks.workers import spread, workers


def together(jobs: Sequence[Callable[[], Any]], *, n_jobs: int = 1) -> list[Any]:
    """Run jobs side by side, and return their results in order.

    In one process only one of them runs at any moment, so they may share what they read. Results are those of running
    the jobs one after another, up to the rounding of floats. An error that a job does not catch itself ends all.

    Args:
        jobs: functions without arguments.
        n_jobs: how many processes share them, each with an equal part; -1 for one on each core. In other processes
            jobs work on copies of what they refer to.

    Raises:
        ValueError: `n_jobs` is 0. And whatever a job raises.
    """
    if workers(n_jobs) != 1 and len(jobs) > 1:
        return _in_processes(jobs, min(workers(n_jobs), len(jobs)))
    if len(jobs) == 1:
        return [jobs[0]()]
    actors = [_Actor(job) for job in jobs]
    try:
        while acting := [actor for actor in actors if not actor.done]:
            for actor in acting:
                actor.act()
            _train([actor for actor in acting if not actor.done])
    finally:
        for actor in actors:
            actor.stop()
    return [actor.result for actor in actors]


def _in_processes(jobs: Sequence[Callable[[], Any]], n: int) -> list[Any]:
    results: list[Any] = [None] * len(jobs)
    parts = [(first, jobs[first::n]) for first in range(n)]
    for first, found in spread(_part, parts, n):
        results[first::n] = found
    return results


def _part(part: tuple[int, Sequence[Callable[[], Any]]]) -> tuple[int, list[Any]]:
    return part[0], together(part[1])


def clock() -> float:
    """Seconds that the job took so far, of what trained together its share. Outside of `together`, `perf_counter`."""
    actor = getattr(beside, "actor", None)
    return time.perf_counter() if actor is None else actor.seconds + time.perf_counter() - actor.since


def _train(asking: "list[_Actor]") -> None:
    while asking:
        plan = asking[0].plan
        alike = [actor for actor in asking if actor.plan.fits(plan)]
        asking = [actor for actor in asking if actor not in alike]
        start = time.perf_counter()
        losses = train_all([actor.asked for actor in alike], plan)
        for actor, mine in zip(alike, losses, strict=True):
            actor.found = mine
            actor.seconds += (time.perf_counter() - start) / len(alike)


class _Stopped(BaseException):
    """Ends a job that waits for a training which will not come."""


class _Actor:
    """A job in a thread of its own, which runs only from `act` to its next training, or to its end."""

    asked: Job
    plan: Plan
    found: list[float] | Exception

    def __init__(self, job: Callable[[], Any]) -> None:
        self.job, self.result, self.done = job, None, False
        self.seconds = self.since = 0.0
        self._error: BaseException | None = None
        self._stopped = False
        self._enter, self._leave = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._play, daemon=True)

    def act(self) -> None:
        """Let the job run until it asks for training or is done. Raises what the job raises."""
        self.since = time.perf_counter()
        if not self._thread.ident:
            self._thread.start()
        else:
            self._enter.release()
        self._leave.acquire()
        self.seconds += time.perf_counter() - self.since
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End a job that is not done."""
        if self._thread.is_alive():
            self._stopped = True
            self._enter.release()
            self._thread.join()

    def _play(self) -> None:
        beside.actor, beside.meet = self, self._meet
        try:
            self.result = self.job()
        except _Stopped:
            pass
        except BaseException as error:  # it is raised where `together` was called
            self._error = error
        finally:
            self.done = True
            self._leave.release()

    def _meet(self, job: Job, plan: Plan) -> list[float]:
        self.asked, self.plan = job, plan
        self._leave.release()
        self._enter.acquire()
        if self._stopped:
            raise _Stopped
        if isinstance(self.found, Exception):
            raise self.found
        return self.found
