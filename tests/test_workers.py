"""Work in other processes of this machine; `test_cluster.py` has the same on a cluster."""

import os
import sys
import threading
import time

import joblib
import pytest
import torch

import pruninglab.tasks.workers as module
from pruninglab.tasks.workers import spread, workers


def test_how_many_workers_there_are():
    assert workers() == workers(None) == 1
    assert workers(3) == 3
    assert workers(-1) == joblib.cpu_count()
    with joblib.parallel_config(n_jobs=3):
        assert workers() == 3
        assert workers(1) == 1
    with pytest.raises(ValueError, match=r"n_jobs.*not 0"):
        workers(0)
    with pytest.raises(TypeError, match="n_jobs must be a whole number"):
        workers(1.5)


@pytest.mark.parametrize("room", [module.ROOM, 0])
def test_each_part_is_done_once_in_another_process(monkeypatch, data_folder, room):
    """Sent all at once, or a few at a time where they are large."""
    monkeypatch.setattr(module, "ROOM", room)
    here = os.getpid()

    def done(part):
        return part, os.getpid() != here, os.environ["PRUNINGLAB_DATA"]

    assert sorted(spread(done, range(9), 2)) == [(part, True, str(data_folder)) for part in range(9)]
    assert list(spread(done, [], 2)) == []


@pytest.mark.parametrize("room", [module.ROOM, 0])
@pytest.mark.parametrize("bad", [0, 4])
def test_what_cannot_be_sent_is_told(monkeypatch, room, bad):
    monkeypatch.setattr(module, "ROOM", room)
    parts = [threading.Lock() if part == bad else part for part in range(5)]
    with pytest.raises((TypeError, RuntimeError), match=r"(cannot|could not) be sent"):
        list(spread(lambda part: part, parts, 2))


@pytest.mark.skipif(sys.platform != "linux", reason="asks the C library for it")
def test_a_worker_hands_back_what_was_freed():
    """Or joblib takes it for one that leaks, and starts another."""

    def resident(_part=None):
        with open("/proc/self/statm") as file:
            return os.getpid(), int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def grown(_part):
        before = resident()
        pieces = [torch.ones(1000) for _ in range(50_000)]
        torch.kept_by_a_test = torch.ones(1000)  # above them, so that the heap does not shrink by itself
        assert resident()[1] > before[1] + 1.5e8
        del pieces
        return before

    before = dict(spread(grown, range(2), 2))
    after = dict(spread(resident, range(8), 2))
    assert before.keys() & after.keys()
    assert all(after[worker] < before[worker] + 5e7 for worker in before.keys() & after.keys())


def test_what_a_function_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(spread(lambda part: 1 / part, [1, 0, 2], 2))


def test_a_worker_of_another_version_is_told(monkeypatch):
    monkeypatch.setattr(module, "_version", lambda: ("other", "2.0"))
    with pytest.raises(RuntimeError, match="a worker has another pruninglab or torch"):
        list(spread(abs, [1, 2], 2))


def test_threads_of_one_process_take_turns_and_leave_it_as_it_was(data_folder):
    def drawn(seed):
        torch.manual_seed(seed)
        time.sleep(0.01)
        return seed, torch.rand(()).item()

    threads = torch.get_num_threads()
    with joblib.parallel_config("threading", n_jobs=3), torch.random.fork_rng(devices=[]):
        found = dict(spread(drawn, range(8)))
    assert found == {seed: torch.rand((), generator=torch.Generator().manual_seed(seed)).item() for seed in range(8)}
    assert torch.get_num_threads() == threads
    assert os.environ["PRUNINGLAB_DATA"] == str(data_folder)


def test_a_worker_does_not_wait_for_itself():
    """Work that is spread within work that was spread is done on the spot."""
    with joblib.parallel_config("threading", n_jobs=2):
        found = sorted(spread(lambda part: sum(spread(abs, [part, -1, -2], 2)), range(4)))
    assert found == [3, 4, 5, 6]


def test_a_data_folder_of_another_machine_is_not_made_here(data_folder):
    """Workers elsewhere keep their own."""
    shared, here = data_folder / "shared", module._version()
    shared.mkdir()
    for given, used in ((data_folder / "nowhere", data_folder), (shared, shared)):
        assert module._do(lambda part: os.environ["PRUNINGLAB_DATA"], 0, 1, str(given), here) == str(used)
    assert not (data_folder / "nowhere").exists()
