"""Work in other processes, of this machine or of a cluster, as joblib is told to do it.

    for result in spread(function, parts, n_jobs=2): ...
    with joblib.parallel_config("dask"): ...  # the same on a cluster, that of the active Dask client

What is sent is packed here, by value where workers could not import it, and unpacked there, in the middle of the job.
So a worker to which something is unknown says so, as any job does that fails.
"""

import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any, TypeVar

import torch

from pruninglab.files import code_version, data_dir
from pruninglab.naming import whole

P = TypeVar("P")
R = TypeVar("R")

ROOM = 2**28  # bytes of work that may wait at the workers: as much as possible, so that one that comes late has some
_alone = threading.Lock()


def workers(n_jobs: int | None = None) -> int:
    """How many processes share the work: `n_jobs`, or one for each core if it is negative.

    None stands for one, or for what an active `joblib.parallel_config` says.

    Raises:
        ValueError: it is 0. TypeError: it is no whole number.
    """
    from joblib import cpu_count

    if n_jobs is None:
        backend, configured = _active()
        return backend.effective_n_jobs(configured)
    number = whole("n_jobs", n_jobs)
    if number == 0:
        raise ValueError("n_jobs is how many processes share the work, or -1 for one on each core, not 0")
    return number if number > 0 else cpu_count()


def spread(function: Callable[[P], R], parts: Sequence[P], n_jobs: int | None = None) -> Iterator[R]:
    """`function(part)` of each part, as they come, in any order. A worker does one part at a time.

    What a lost worker had begun is done again by another one: by Dask, as often as its `allowed-failures` says.

    Args:
        function: what is to be done, and reaches workers with all that it uses.
        parts: what it is done to; one job each.
        n_jobs: as in `workers`.

    Raises:
        TypeError: it cannot be sent. BrokenExecutor: workers died, and the work is given up. RuntimeError: a worker has
        another version of this library. And whatever the function raises.
    """
    from joblib import Parallel, cpu_count, delayed

    if _alone.locked():  # this is a worker at work
        yield from map(function, parts)
        return

    def begin(packed: bytes) -> Any:  # defined in here, so that it is sent by value to where this file may be missing
        import pickle

        do, *arguments = pickle.loads(packed)
        return do(*arguments)

    _active()  # mended
    here = (max(1, cpu_count() // workers(n_jobs)), os.fspath(data_dir()), _version())
    small = not parts or len(parts) * len(_packed(_do, function, parts[0], *here)) < ROOM
    packed: Iterable[bytes] = (_packed(_do, function, part, *here) for part in parts)
    packed = list(packed) if small else packed
    how = {"return_as": "generator_unordered", "batch_size": 1, "pre_dispatch": "all" if small else "2 * n_jobs"}
    warnings.filterwarnings("ignore", message="A worker stopped")  # one that had grown is replaced: no news
    n = 0
    for result in Parallel(n_jobs=n_jobs, **how)(delayed(begin)(work) for work in packed):
        n += 1
        yield result
    if n < len(parts):  # joblib 1.6 ends as if all were well when what makes its jobs fails
        raise RuntimeError(f"{len(parts) - n} of {len(parts)} jobs could not be sent")


def _packed(*work: Any) -> bytes:
    import cloudpickle

    try:
        return cloudpickle.dumps(work)
    except Exception as error:  # pickle raises whatever it likes
        raise TypeError(f"this cannot be sent to another process: {error}") from error


def _do(function: Callable[[P], R], part: P, threads: int, data: str, version: tuple[str, str]) -> R:
    """Do a part in a worker, which is told how many threads it may use and where data are kept."""
    if version != _version():
        raise RuntimeError("a worker has another pruninglab or torch than the process that sent the work; restart it")
    before = torch.get_num_threads()
    with _alone:  # workers of a cluster have threads, and jobs share what belongs to the process: its random state, say
        if data != os.fspath(data_dir()) and os.path.isdir(data):  # another machine may have its own place
            os.environ["PRUNINGLAB_DATA"] = data
        torch.set_num_threads(min(threads, before))
        try:
            return function(part)
        finally:
            torch.set_num_threads(before)
            _give_back()


def _give_back() -> None:
    """Hand freed memory to the system: joblib replaces a worker that has grown, and a new one imports for seconds."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # of glibc
        trim(0)


def _version() -> tuple[str, str]:
    return code_version(), str(torch.__version__)


def _active() -> tuple[Any, int | None]:
    """The backend that joblib is to use, and the number of jobs configured for it.

    That for Dask (of joblib 1.6) waits for ever for a job that the cluster has given up, and does the work here if the
    cluster has one core only. Both are mended.
    """
    from joblib.parallel import get_active_backend

    backend, configured = get_active_backend()
    if type(backend).__name__ == "DaskDistributedBackend" and "submit" not in vars(backend):
        submit, cores = backend.submit, backend.effective_n_jobs

        def told(job: Any, callback: Callable[[Any], None]) -> Any:
            future = submit(job, lambda result: callback(_lost(result)))
            future.add_done_callback(lambda done: callback(_lost(done.exception())) if done.exception() else None)
            return future

        backend.submit = told
        backend.effective_n_jobs = lambda n_jobs: max(2, cores(n_jobs))
    return backend, configured


def _lost(result: Any) -> Any:
    """What joblib is to be told: of jobs that Dask gave up or cancelled that they are lost, else what they gave."""
    if type(result).__module__.split(".")[0] != "distributed":
        return result
    return BrokenExecutor(f"the cluster gave a job up: {type(result).__name__}: {' '.join(str(result).split())}")
