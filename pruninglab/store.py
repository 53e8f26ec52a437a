"""One place for results: a table *key → row* in a SQLite file.

Each row is written as soon as it is known, so an interrupted sweep goes on where it stopped, and several processes may
write at once. A file or row that is broken is thrown away with a warning: everything in here can be made again.
Where nothing can be written nothing is stored, with a warning.
"""

import json
import sqlite3
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Store:
    """Results on disk. `store[key]` is a row or None; `store[key] = row` writes it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection | None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self._connect()
        except (OSError, sqlite3.OperationalError) as error:  # locked, or no room: no reason to throw the file away
            self._warn(error)
            return None
        except sqlite3.DatabaseError as error:
            warnings.warn(f"the results file {self.path.name} is broken and is started anew ({error})", stacklevel=4)
            self.path.unlink(missing_ok=True)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        try:
            connection.execute("CREATE TABLE IF NOT EXISTS runs (key TEXT PRIMARY KEY, row TEXT NOT NULL)")
            connection.execute("SELECT count(*) FROM runs").fetchone()
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    def _warn(self, error: Exception) -> None:
        warnings.warn(f"results cannot be stored in {self.path} ({error}); set PRUNINGLAB_DATA", stacklevel=5)

    def _do(self, command: str, *values: str) -> Any:
        """Carry out a command; where the file was deleted or damaged meanwhile, once more in a new one."""
        for last in (False, True):
            if self._connection is None:
                return None
            try:
                return self._connection.execute(command, values).fetchone()
            except sqlite3.DatabaseError as error:
                self._connection.close()
                self._connection = None if last else self._open()
                if last:
                    self._warn(error)
        return None

    def __getitem__(self, key: str) -> Row | None:
        found = self._do("SELECT row FROM runs WHERE key = ?", key)
        try:
            return json.loads(found[0]) if found else None
        except json.JSONDecodeError:
            warnings.warn(f"a broken result in {self.path.name} is made again", stacklevel=2)
            return None

    def __setitem__(self, key: str, row: Row) -> None:
        self.update({key: row})

    def update(self, rows: Mapping[str, Row]) -> None:
        """Write rows at once: each time that the disk is waited for costs as much as a small run."""
        if rows:
            values = ", ".join(["(?, ?)"] * len(rows))
            flat = [part for key, row in rows.items() for part in (key, json.dumps(row))]
            self._do(f"INSERT OR REPLACE INTO runs VALUES {values}", *flat)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
