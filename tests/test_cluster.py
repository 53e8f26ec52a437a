"""The same sweep on a Dask cluster: two worker processes on this machine, one of which is killed."""

import os
import signal
import sys
import threading
import time
import types
from concurrent.futures import BrokenExecutor

import joblib
import pandas as pd
import pytest
import torch
from helpers import make_task

from pruninglab import compare
from pruninglab.cli import main
from pruninglab.tasks import TASKS
from pruninglab.tasks.workers import spread

distributed = pytest.importorskip("distributed", reason="needs Dask: pip install 'pruninglab[cluster]'")
SWEEP = {"sparsity": [0.5, 0.9], "seeds": 4}
SECONDS = ["seconds_pruning", "seconds_recovery"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The workers' own data folder. It is not the sweeps', so that they have to be told where data are."""
    return tmp_path_factory.mktemp("theirs")


@pytest.fixture(scope="module")
def cluster(theirs):
    how = {"n_workers": 2, "threads_per_worker": 2, "processes": True, "host": "127.0.0.1"}
    how |= {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNINGLAB_DATA", str(theirs))
        with distributed.LocalCluster(**how) as cluster:
            patch.undo()
            yield cluster


@pytest.fixture
def workers(cluster, data_folder):
    with distributed.Client(cluster) as client, joblib.parallel_config("dask"):
        client.wait_for_workers(2, timeout=30)
        yield client


def slow(weight, input_norm):
    return weight.abs() * input_norm


def slowly(folder):
    """The same criterion, which takes its time and leaves a file each time it is asked, named after its process."""

    def slow(weight, input_norm):
        with open(os.path.join(folder, f"{os.getpid()}-{time.monotonic_ns()}"), "w"):
            time.sleep(0.15)
        return weight.abs() * input_norm

    return slow


def asked(folder) -> list[int]:
    return [int(name.split("-")[0]) for name in os.listdir(folder)]


def kill_one(folder, killed: list[int]) -> None:
    """Wait until two processes are at work, and kill one of them."""
    end = time.monotonic() + 30
    while len(set(asked(folder))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    killed.append(asked(folder)[-1])
    os.kill(killed[0], signal.SIGKILL)


def test_a_worker_is_killed_and_every_result_is_there_once(workers, theirs, tiny, tmp_path):
    folder = tmp_path / "asked"
    folder.mkdir()
    killed: list[int] = []
    killer = threading.Thread(target=kill_one, args=(folder, killed), daemon=True)
    killer.start()
    table = compare(slowly(str(folder)), task=tiny, **SWEEP)
    killer.join(1)
    assert killed
    assert os.getpid() not in asked(folder), "all was done by workers"
    assert len(asked(folder)) >= 3 * 2 * 4, "three layers, two sparsities, four seeds"
    assert len(table) == 4 + 3 * 2 * 4
    assert not table.duplicated(["criterion", "sparsity", "seed"]).any()
    with joblib.parallel_config("loky", n_jobs=1):
        here = compare(slow, task=tiny, **SWEEP, cache=False)
    pd.testing.assert_frame_equal(table.drop(columns=SECONDS), here.drop(columns=SECONDS), check_exact=True)
    before = len(asked(folder))
    again = compare(slowly(str(folder)), task=tiny, **SWEEP)
    pd.testing.assert_frame_equal(again, table)
    assert len(asked(folder)) == before, "all results were stored"
    assert not list(theirs.iterdir()), "workers used the trained networks of the sweep's own folder"


def test_jobs_of_one_worker_do_not_disturb_each_other(workers):
    """A worker has two threads, and jobs share the process's random state."""

    def drawn(seed: int) -> tuple[int, float]:
        torch.manual_seed(seed)
        time.sleep(0.05)
        return seed, torch.rand(()).item()

    found = dict(spread(drawn, range(12)))
    assert found == {seed: torch.rand((), generator=torch.Generator().manual_seed(seed)).item() for seed in range(12)}


def test_what_a_worker_does_not_know_is_told(workers):
    unknown = types.ModuleType("module_that_is_only_here")
    exec("def double(n):\n    return 2 * n", vars(unknown))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, unknown.__name__, unknown)
        with pytest.raises(ModuleNotFoundError, match="module_that_is_only_here"):
            list(spread(unknown.double, range(4)))
    assert sorted(spread(lambda n: 2 * n, range(4))) == [0, 2, 4, 6], "the workers live on"


def test_the_command_line_sends_a_function_of_a_file(cluster, data_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TASKS, "tiny", make_task())
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text("import os\nPOWER = 2\ndef mine(weight):\n    return weight.abs() ** POWER\n")
    csv = tmp_path / "rows.csv"
    line = [f"{tmp_path}/mine.py:mine", "--task", "tiny", "--sparsity", "0.5", "0.9", "--seeds", "2", "--csv", str(csv)]
    assert main(["compare", *line, "--cluster", cluster.scheduler_address]) == 0
    assert "mine minus others" in capsys.readouterr().out
    rows = pd.read_csv(csv)
    accuracy = rows.set_index(["criterion", "sparsity", "seed"])["accuracy"]
    assert accuracy["mine"].equals(accuracy["magnitude"])


def test_what_kills_every_worker_is_told_and_does_not_wait_for_ever(workers, tiny):
    own = os.getpid()

    def deadly(weight):
        if os.getpid() != own:
            os.kill(os.getpid(), signal.SIGKILL)
        return weight

    workers.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
    ended = []

    def sweep():
        with joblib.parallel_config("dask"), pytest.raises(BrokenExecutor) as told:
            compare(deadly, task=tiny, sparsity=0.5, seeds=2)
        ended.append(str(told.value))

    thread = threading.Thread(target=sweep, daemon=True)
    thread.start()
    thread.join(60)
    assert ended, "it waits for ever, or ended well"
    assert "the cluster gave a job up: KilledWorker" in ended[0]
