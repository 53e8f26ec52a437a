"""The store of results: whole rows, whatever happens to the file."""

import shutil
import sqlite3

import pytest

from pruninglab.store import Store


def test_a_store_keeps_rows_across_openings(tmp_path):
    path = tmp_path / "folder" / "runs.sqlite"
    store = Store(path)
    assert store["a"] is None
    store["a"] = {"accuracy": 1 / 3, "name": "×", "none": None}
    store["a"] = {"accuracy": 0.1 + 0.2}
    other = Store(path)
    assert other["a"] == {"accuracy": 0.1 + 0.2}, "written at once, and to the last digit"
    store.close()
    other.close()


@pytest.mark.parametrize(
    "content", [b"this is no database, and long enough to be told apart" * 40, b"SQLite format 3\0xx"]
)
def test_a_broken_store_is_started_anew(tmp_path, content):
    path = tmp_path / "runs.sqlite"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"runs\.sqlite is broken and is started anew"):
        store = Store(path)
    store["a"] = {"x": 1}
    assert Store(path)["a"] == {"x": 1}


def test_a_store_that_is_damaged_in_the_middle_is_started_anew(tmp_path):
    path = tmp_path / "runs.sqlite"
    store = Store(path)
    for i in range(500):
        store[f"key {i}"] = {"text": "x" * 100}
    store.close()
    content = bytearray(path.read_bytes())
    content[8192:-4096] = b"\xff" * len(content[8192:-4096])
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="is started anew"):
        store = Store(path)
    assert store["key 3"] is None
    store["key 3"] = {"x": 1}
    assert store["key 3"] == {"x": 1}


def test_a_broken_row_is_made_again(tmp_path):
    path = tmp_path / "runs.sqlite"
    Store(path)["a"] = {"x": 1}
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE runs SET row = '{\"x\": '")
    with pytest.warns(UserWarning, match="a broken result in runs.sqlite is made again"):
        assert Store(path)["a"] is None


def test_a_busy_store_is_not_thrown_away(tmp_path, monkeypatch):
    """Another process that holds the file for long is no reason to delete it."""
    path = tmp_path / "runs.sqlite"
    Store(path)["a"] = {"x": 1}
    true = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: true(*args, **(options | {"timeout": 0.01})))
    holder = true(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.warns(UserWarning, match="cannot be stored in .*locked.*PRUNINGLAB_DATA"):
        store = Store(path)
    store["a"] = {"x": 2}
    assert store["a"] is None, "nothing is stored"
    holder.execute("ROLLBACK")
    assert Store(path)["a"] == {"x": 1}


def test_a_store_that_is_deleted_meanwhile_is_made_anew(tmp_path):
    path = tmp_path / "folder" / "runs.sqlite"
    store = Store(path)
    store["a"] = {"x": 1}
    shutil.rmtree(path.parent)
    store["b"] = {"x": 2}
    assert Store(path)["b"] == store["b"] == {"x": 2}


def test_a_store_that_cannot_be_made_anew_is_given_up_with_one_warning(tmp_path):
    path = tmp_path / "folder" / "runs.sqlite"
    store = Store(path)
    shutil.rmtree(path.parent)
    path.parent.write_text("a file where the folder was")
    with pytest.warns(UserWarning, match="cannot be stored in .*PRUNINGLAB_DATA") as told:
        store["a"] = {"x": 1}
    assert len(told) == 1
    store["b"] = {"x": 2}
    assert store["a"] is None
    store.close()
