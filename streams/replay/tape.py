"""Keeps a piece of some topics in a temporary file, to be read by partition and offset as often as needed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from streams.events import Record
from streams.kafka.topic_merge import Place

_BATCH = 2_000  # rows written at once
_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE records (topic TEXT, place INTEGER, at INTEGER, ms INTEGER, key BLOB, value BLOB,
                      PRIMARY KEY (topic, place, at)) WITHOUT ROWID;
CREATE TABLE headers (topic TEXT, place INTEGER, at INTEGER, name TEXT, value BLOB);
CREATE INDEX of_record ON headers (topic, place, at);
"""


class LogTape:
    """Records of topics. Close it at the end; OSError where the disk is full."""

    def __init__(self, folder: Path, records: Iterable[Record] = ()) -> None:
        self._file = sqlite3.connect(folder / "records.sqlite", isolation_level=None)
        self._file.executescript(_SCHEMA)
        self._waiting: list[Record] = []
        for record in records:
            self._waiting.append(record)
            if len(self._waiting) >= _BATCH:
                self._flush()
        self._flush()

    def records(self, place: Place, start: int, end: int) -> list[Record]:
        """Those of a partition from offset `start` to before `end`."""
        topic, number = place
        span = "FROM {} WHERE topic = ? AND place = ? AND at >= ? AND at < ? ORDER BY at"
        bounds = (topic, number, start, end)
        headers: dict[int, list[tuple[str, bytes]]] = {}
        for at, name, value in self._file.execute("SELECT at, name, value " + span.format("headers"), bounds):
            headers.setdefault(at, []).append((name, value))
        found = self._file.execute("SELECT at, ms, key, value " + span.format("records"), bounds)
        return [Record(topic, number, at, ms, key, value, headers.get(at, ())) for at, ms, key, value in found]

    def close(self) -> None:
        """Leaves the file."""
        self._file.close()

    def __enter__(self) -> LogTape:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _flush(self) -> None:
        rows = [(r.topic, r.partition, r.offset, r.timestamp_ms, r.key, r.value) for r in self._waiting]
        headers = [(r.topic, r.partition, r.offset, *pair) for r in self._waiting for pair in r.headers]
        self._file.execute("BEGIN")
        self._file.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", rows)
        self._file.executemany("INSERT INTO headers VALUES (?, ?, ?, ?, ?)", headers)
        self._file.execute("COMMIT")
        self._waiting.clear()
