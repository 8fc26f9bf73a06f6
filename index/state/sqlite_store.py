"""Keeps the in-process live state in one file between runs, with a document that belongs to it.

`checkpoint` writes the document and what changed since the last time in one transaction, so after a crash the file
holds exactly one such moment. Assumes that one process at a time uses the file.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from index.state.keys import Keys
from index.state.memory_store import MemoryStore
from index.state.store import Claim, Commit, Logs, Op

_TABLE = """CREATE TABLE IF NOT EXISTS {0} (
    n INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, name TEXT NOT NULL, value, UNIQUE (key, name)
);"""
_DOCUMENT = "CREATE TABLE IF NOT EXISTS document (one INTEGER PRIMARY KEY CHECK (one = 1), body BLOB);"
# A row that is there keeps its number: loaded dictionaries have the order of those that were kept.
_PUT = (
    "INSERT INTO {0} (key, name, value) VALUES (?, ?, ?) ON CONFLICT (key, name) DO UPDATE SET value = excluded.value"
)
_TABLE_OF = {
    "hset": "hashes", "hdel": "hashes", "hincr": "hashes", "zadd": "sorted", "zrem": "sorted", "sadd": "sets",
    "srem": "sets",
}  # fmt: skip
_REMOVES = ("hdel", "zrem", "srem")
_REARRANGES = ("hkeep", "haside")


class SqliteStore(MemoryStore):
    """`LiveStore` in memory that is loaded from `path` and written there by `keep` alone.

    The item log is not kept: a follower of a loaded store reads all items first, as after a trimmed log. Raises
    ValueError when another process uses the file or it is no such file, OSError when it cannot be created.
    """

    def __init__(self, path: Path, keys: Keys | None = None) -> None:
        super().__init__(keys)
        self._path = path
        self._changed: dict[str, dict[str, dict[str, None]]] = {
            table: defaultdict(dict) for table in ("hashes", "sorted", "sets")
        }  # table → key → names to write
        self._removed: dict[str, set[tuple[str, str]]] = {table: set() for table in self._changed}
        self._deleted: set[str] = set()
        self.document: dict[str, Any] | None = None  # what `keep` wrote last; None in a new file
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._translated("open"):
            # No waiting: whoever holds the file holds it for its whole run.
            self._file = sqlite3.connect(path, timeout=0, isolation_level=None)
            self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
            tables = "".join(map(_TABLE.format, self._changed))
            self._file.executescript(f"BEGIN EXCLUSIVE;{tables}{_DOCUMENT}COMMIT;")
            self._load()

    def checkpoint(self, document: Mapping[str, Any]) -> None:
        """Writes the state and `document` (plain values for JSON) atomically; OSError leaves the file as it was."""
        with self._translated("write"):
            self._file.execute("BEGIN")
            try:
                self._write(document)
                self._file.execute("COMMIT")
            except BaseException:
                if self._file.in_transaction:
                    self._file.execute("ROLLBACK")
                raise
        for table in self._changed:
            self._changed[table].clear()
            self._removed[table].clear()
        self._deleted.clear()
        self._log.clear()  # a replay's items never stop changing, and its followers are loaded anew after each part

    def close_file(self) -> None:
        """Lets another process use the file. What was not kept is lost."""
        self._file.close()

    async def ensure_cluster(self, partitions: int, kinds: Sequence[str]) -> None:
        await super().ensure_cluster(partitions, kinds)
        self._note_hash(self.keys.cluster())

    async def claim(self, tag: str, token: str, generation: int, logs: Logs, group: str = "") -> Claim:
        claim = await super().claim(tag, token, generation, logs, group)
        self._note_hash(self.keys.owner(tag))
        return claim

    async def commit(self, commits: Sequence[Commit]) -> None:
        await super().commit(commits)
        for tag in {commit.tag for commit in commits}:
            self._note_hash(self.keys.owner(tag))

    async def beat(self, tag: str, token: str, ends: Mapping[str, int], caught_up: bool) -> bool:
        self._note_hash(self.keys.owner(tag))
        return await super().beat(tag, token, ends, caught_up)

    async def write(self, key: str, fields: Mapping[str, bytes]) -> None:
        await super().write(key, fields)
        self._note("hashes", key, fields)

    async def remove(self, key: str, fields: Sequence[str]) -> None:
        await super().remove(key, fields)
        self._note_removed("hashes", key, fields)

    def _apply(self, op: Op) -> None:
        before = set(self._hashes[op.key]) if op.kind in _REARRANGES else set()
        super()._apply(op)
        if op.kind in _REARRANGES:
            self._note_removed("hashes", op.key, before - set(self._hashes[op.key]))
            self._note_hash(op.key)
        elif op.kind == "delete":
            self._deleted.add(op.key)
            for changed in self._changed.values():
                changed.pop(op.key, None)
        elif op.kind == "log":
            self._note_hash(op.key)
            self._note("sorted", self.keys.item_index(), op.names)
        elif op.kind in _REMOVES:
            self._note_removed(_TABLE_OF[op.kind], op.key, op.names)
        else:
            self._note(_TABLE_OF[op.kind], op.key, op.values or op.names)

    def _note(self, table: str, key: str, names: Iterable[str]) -> None:
        self._changed[table][key].update(dict.fromkeys(names))

    def _note_removed(self, table: str, key: str, names: Iterable[str]) -> None:
        for name in names:
            self._changed[table][key].pop(name, None)
            self._removed[table].add((key, name))

    def _note_hash(self, key: str) -> None:
        self._note("hashes", key, self._hashes[key])

    def _write(self, document: Mapping[str, Any]) -> None:
        for table, changed in self._changed.items():
            self._file.executemany(f"DELETE FROM {table} WHERE key = ?", [(key,) for key in self._deleted])
            self._file.executemany(f"DELETE FROM {table} WHERE key = ? AND name = ?", self._removed[table])
            self._file.executemany(_PUT.format(table), self._rows(table, changed))
        self._file.execute("INSERT OR REPLACE INTO document VALUES (1, ?)", (orjson.dumps(document),))

    def _rows(self, table: str, changed: Mapping[str, Iterable[str]]) -> Iterator[tuple[str, str, Any]]:
        """(key, name, value) of what changed, made as it is written."""
        for key, names in changed.items():
            if table == "sets":
                yield from ((key, name, 1) for name in names)
            else:
                values: Mapping[str, Any] = (self._hashes if table == "hashes" else self._sorted)[key]
                yield from ((key, name, values[name]) for name in names)

    def _load(self) -> None:
        for key, name, value in self._file.execute("SELECT key, name, value FROM hashes ORDER BY n"):
            self._hashes[key][name] = value
        for key, name, value in self._file.execute("SELECT key, name, value FROM sorted ORDER BY n"):
            self._sorted[key][name] = value
        for key, name in self._file.execute("SELECT key, name FROM sets ORDER BY n"):
            self._sets[key].add(name)
        found = self._file.execute("SELECT body FROM document").fetchone()
        self.document = orjson.loads(found[0]) if found else None

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise ValueError(
                    f"{self._path} is in use by another process; wait for it or use another file"
                ) from error
            if isinstance(error, sqlite3.OperationalError):
                raise OSError(f"cannot {what} {self._path}: {error}") from error
            raise ValueError(f"{self._path} is not a kept state: {error}; use another file") from error
