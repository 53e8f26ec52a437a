"""One place for results: a table *key → row* in a SQLite file.

Each row is written as soon as it is known, so an interrupted sweep goes on where it stopped, and several processes may
write at once. A file or row that is broken is thrown away with a warning: everything in here can be made again.
"""

import json
import sqlite3
import warnings
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Store:
    """Results on disk. `store[key]` is a row or None; `store[key] = row` writes it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = self._open()
        except sqlite3.OperationalError:  # locked, or no room: that is no reason to throw it away
            raise
        except sqlite3.DatabaseError as error:
            warnings.warn(f"the results file {path.name} is broken and is started anew ({error})", stacklevel=3)
            path.unlink()
            self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        try:
            connection.execute("CREATE TABLE IF NOT EXISTS runs (key TEXT PRIMARY KEY, row TEXT NOT NULL)")
            connection.execute("SELECT count(*) FROM runs").fetchone()
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    def __getitem__(self, key: str) -> Row | None:
        found = self._connection.execute("SELECT row FROM runs WHERE key = ?", (key,)).fetchone()
        if found is None:
            return None
        try:
            return json.loads(found[0])
        except json.JSONDecodeError:
            warnings.warn(f"a broken result in {self.path.name} is made again", stacklevel=2)
            return None

    def __setitem__(self, key: str, row: Row) -> None:
        self._connection.execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", (key, json.dumps(row)))

    def close(self) -> None:
        self._connection.close()
