"""`Ledger` stores the vectors and tags that were paid for, and the tokens of each UTC day, in one SQLite file.

All processes of a machine share it. An answer is on disk before it is used, so a restart never pays for it twice. Each
open ledger may be used from any thread.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson

from encoder.text.cache import Vector

DAY_S = 86_400
_BUSY_S = 10.0  # another process writes for milliseconds; longer means a disk that is stuck
_SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (embedder TEXT, hash TEXT, vector BLOB, PRIMARY KEY (embedder, hash)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tags (key TEXT PRIMARY KEY, tags BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spending (day INTEGER PRIMARY KEY, tokens INTEGER NOT NULL, requests INTEGER NOT NULL);
"""


class Ledger:
    """The file `path`, made with its folder when it is not there; None keeps everything in memory.

    `now_s` is the wall clock. Raises ValueError when the file is not a ledger.
    """

    def __init__(self, path: Path | None = None, now_s: Callable[[], float] = time.time) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            created = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)  # tags and spending are nobody else's business
            os.close(created)
        try:
            self._file = sqlite3.connect(path or ":memory:", _BUSY_S, isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=FULL")  # an answer that was paid for also survives a power cut
            self._file.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} cannot be used as a ledger of paid answers ({error}); move it away") from error

    def reserve(self, tokens: int, limit: int) -> int | None:
        """Adds `tokens` to the day's spending unless that exceeds `limit` (0: none); the day, None when it does. Raises
        OSError when the disk does not take it.
        """
        day = int(self._now_s()) // DAY_S
        with self._transaction():
            if limit and self._spent(day) + tokens > limit:
                return None
            self._file.execute(
                "INSERT INTO spending VALUES (?, ?, 1) ON CONFLICT (day) DO UPDATE "
                "SET tokens = tokens + excluded.tokens, requests = requests + 1",
                (day, tokens),
            )
        return day

    def settle(self, day: int, difference: int) -> None:
        """Corrects a reservation of `day` by what was really used. Raises OSError as `reserve` does."""
        with self._transaction():
            self._file.execute("UPDATE spending SET tokens = max(0, tokens + ?) WHERE day = ?", (difference, day))

    def spent_today(self) -> int:
        """Tokens of the present day, by all processes. Raises OSError when the file cannot be read."""
        with self._transaction():
            return self._spent(int(self._now_s()) // DAY_S)

    def seconds_to_next_day(self) -> float:
        """Until the day's spending begins anew."""
        return DAY_S - self._now_s() % DAY_S

    def vectors(self, embedder: str, dimension: int) -> LedgerVectors:
        """The vectors of one embedder; those that it made in another dimension are others."""
        return LedgerVectors(self, f"{embedder}:{dimension}")

    def tags(self, keys: Sequence[str]) -> list[list[str] | None]:
        """Tags remembered under each key; None where there are none. Raises OSError when the file cannot be read."""
        with self._transaction():
            rows = [self._file.execute("SELECT tags FROM tags WHERE key = ?", (key,)).fetchone() for key in keys]
        return [None if row is None else list(orjson.loads(row[0])) for row in rows]

    def remember_tags(self, key: str, tags: Sequence[str]) -> None:
        """Keeps tags. Raises OSError when the disk does not take them."""
        with self._transaction():
            self._file.execute("INSERT OR REPLACE INTO tags VALUES (?, ?)", (key, orjson.dumps(list(tags))))

    def close(self) -> None:
        """Closes the file; everything is in it already."""
        with self._lock:
            self._file.close()

    def _spent(self, day: int) -> int:
        row = self._file.execute("SELECT tokens FROM spending WHERE day = ?", (day,)).fetchone()
        return int(row[0]) if row else 0

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            try:
                self._file.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    self._file.execute("ROLLBACK")
                    raise
                self._file.execute("COMMIT")
            except sqlite3.Error as error:
                raise OSError(f"the ledger of paid answers cannot be used: {error}") from error


class LedgerVectors(MutableMapping[str, Vector]):
    """Text hash → vector float32 [d] of one embedder, on disk when a write returns. Raises OSError when that fails."""

    def __init__(self, ledger: Ledger, embedder: str) -> None:
        self._ledger, self._embedder = ledger, embedder

    def __getitem__(self, key: str) -> Vector:
        row = self._rows("SELECT vector FROM vectors WHERE embedder = ? AND hash = ?", key)
        if not row:
            raise KeyError(key)
        return np.frombuffer(row[0][0], "<f4").astype(np.float32)

    def __setitem__(self, key: str, vector: Vector) -> None:
        self.remember({key: vector})

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self._rows("DELETE FROM vectors WHERE embedder = ? AND hash = ?", key)

    def __contains__(self, key: object) -> bool:
        return bool(self._rows("SELECT 1 FROM vectors WHERE embedder = ? AND hash = ?", str(key)))

    def __iter__(self) -> Iterator[str]:
        return iter([str(row[0]) for row in self._rows("SELECT hash FROM vectors WHERE embedder = ?")])

    def __len__(self) -> int:
        return int(self._rows("SELECT count(*) FROM vectors WHERE embedder = ?")[0][0])

    def remember(self, vectors: Mapping[str, Vector]) -> None:
        """Keeps all of them in one step."""
        rows = [(self._embedder, key, np.asarray(vector, "<f4").tobytes()) for key, vector in vectors.items()]
        with self._ledger._transaction():
            self._ledger._file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Closes the ledger."""
        self._ledger.close()

    def _rows(self, statement: str, *values: str) -> list[tuple[bytes, ...]]:
        with self._ledger._transaction():
            return self._ledger._file.execute(statement, (self._embedder, *values)).fetchall()
