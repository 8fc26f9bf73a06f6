"""`Spool` keeps what topics say in a SQLite file until it can be sorted by time.

A partition is in offset order only. SQLite sorts in files beside its own, so memory holds 64 MB of pages, and the event
ids of one user while that user's forgets are looked for. Rows are added, then settled once, then read.
"""

from __future__ import annotations

import errno
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

# `turn` is the place among a user's own records, `arrival` and `number` the place among all that were added.
_SCHEMA = """
CREATE TABLE clicks (arrival INTEGER PRIMARY KEY, user TEXT, turn INTEGER, event TEXT, item TEXT, kind TEXT,
                     ts_ms INTEGER, session TEXT, location TEXT, page TEXT, recommendation TEXT);
CREATE TABLE forgets (user TEXT, turn INTEGER, event TEXT, ts_ms INTEGER, inside INTEGER);
CREATE TABLE exposures (number INTEGER PRIMARY KEY, user TEXT, recommendation TEXT, page TEXT, ts_ms INTEGER,
                        location TEXT, model TEXT, served_by TEXT, shown TEXT);
CREATE TABLE profiles (user TEXT, turn INTEGER, ts_ms INTEGER, content BLOB);
CREATE TABLE contexts (number INTEGER PRIMARY KEY, location TEXT, ts_ms INTEGER, content BLOB);
CREATE TABLE rules (number INTEGER PRIMARY KEY, scenario TEXT, ts_ms INTEGER, content BLOB);
CREATE TABLE items (item TEXT PRIMARY KEY, known_ms INTEGER, fields BLOB, withdrawn INTEGER);
CREATE TABLE vectors (item TEXT PRIMARY KEY, known_ms INTEGER, body BLOB);
CREATE TABLE marks (user TEXT PRIMARY KEY, turn INTEGER, event TEXT, ts_ms INTEGER, inside INTEGER) WITHOUT ROWID;
CREATE TABLE known (item TEXT PRIMARY KEY, ts_ms INTEGER) WITHOUT ROWID;
CREATE TABLE chosen (number INTEGER PRIMARY KEY, item TEXT);
"""
# Nothing of this file outlives the process: neither a journal nor a flush to the disk is of use.
_PRAGMAS = (
    "journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-65536", "temp_store=FILE",
)  # fmt: skip
_BATCH = 2_000  # rows in memory before they are written together: some hundred kilobytes

_USERS_CLICKS_AND_FORGETS = """
SELECT user, turn, event, ts_ms, NULL AS inside FROM clicks WHERE user IN (SELECT user FROM forgets)
UNION ALL SELECT user, turn, event, ts_ms, inside FROM forgets ORDER BY user, turn
"""
_FORGOTTEN_CLICKS = """
DELETE FROM clicks WHERE EXISTS (SELECT 1 FROM marks WHERE marks.user = clicks.user
                                 AND (clicks.turn < marks.turn OR clicks.ts_ms <= marks.ts_ms))
"""
_FORGOTTEN_EXPOSURES = """
DELETE FROM exposures WHERE EXISTS (SELECT 1 FROM marks WHERE marks.user = exposures.user
                                    AND exposures.ts_ms <= marks.ts_ms)
"""
_LATER_COPIES = """
DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM (
    SELECT {key}, ROW_NUMBER() OVER (PARTITION BY user, {name} ORDER BY {order}) AS copy FROM {table}) WHERE copy > 1)
"""
_KNOWN = """
INSERT INTO known SELECT item, MIN(ts_ms) FROM (
    SELECT item, known_ms AS ts_ms FROM items UNION ALL SELECT item, ts_ms FROM clicks) GROUP BY item
"""
# A choice belongs to the list of its recommendation_id, else to the last one of its page that shows its item.
_CHOSEN = """
WITH pairs AS ({by_recommendation} UNION ALL {by_page}),
made AS (SELECT *, ROW_NUMBER() OVER (PARTITION BY arrival ORDER BY rank, shown_ms DESC, number DESC) AS nth FROM pairs)
INSERT INTO chosen SELECT number, item FROM (
    SELECT number, item, ROW_NUMBER() OVER (PARTITION BY number ORDER BY ts_ms, arrival) AS nth
    FROM made WHERE nth = 1) WHERE nth = 1
"""
_PAIRS = """
SELECT {rank} AS rank, c.arrival, c.ts_ms, c.item, e.number, e.ts_ms AS shown_ms
FROM clicks c CROSS JOIN exposures e ON e.{name} = c.{name} AND e.user = c.user
WHERE c.{name} <> '' AND c.kind IN ({kinds}) AND instr(e.shown, char(10) || c.item || char(10))
"""
_EVENTS = """
SELECT user, item, kind, ts_ms, session, location, event, page, recommendation, arrival FROM clicks
UNION ALL SELECT user, '', ?, ts_ms, '', '', event, '', '', -1 FROM marks WHERE inside ORDER BY ts_ms, arrival
"""
_IMPRESSIONS = """
SELECT user, recommendation, page, ts_ms, location, model, served_by, shown, item
FROM exposures LEFT JOIN chosen USING (number) ORDER BY ts_ms, number
"""
_PROFILES = """
WITH gone AS (SELECT user, ts_ms, turn FROM (
    SELECT *, ROW_NUMBER() OVER (PARTITION BY user ORDER BY ts_ms DESC, turn DESC) AS nth
    FROM profiles WHERE content IS NULL) WHERE nth = 1)
SELECT p.user, p.ts_ms, p.content, MIN(p.turn) AS first FROM profiles p LEFT JOIN gone g ON g.user = p.user
WHERE p.content IS NOT NULL AND (g.user IS NULL OR (p.ts_ms, p.turn) > (g.ts_ms, g.turn))
GROUP BY p.user, p.ts_ms, p.content ORDER BY p.ts_ms, p.user, first
"""
_RECORDS = """
SELECT {key}, MAX(ts_ms) OVER (PARTITION BY {key} ORDER BY number) AS since_ms, content FROM {table}
ORDER BY since_ms, number
"""
_ITEMS = """
SELECT items.item, known.ts_ms, fields, withdrawn FROM items JOIN known USING (item) ORDER BY items.rowid
"""
_VECTORS = """
SELECT COALESCE(known.ts_ms, known_ms) AS since_ms, body FROM vectors LEFT JOIN known USING (item)
ORDER BY since_ms, vectors.rowid
"""


class Spool:
    """Rows in `folder`, which nobody else writes; SQLite's temporary files go there too.

    Every method raises OSError when the disk does not take what is to be written.
    """

    def __init__(self, folder: Path) -> None:
        self._rows: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
        self._path = folder / "spool.sqlite"
        with self._translated():
            self._file = sqlite3.connect(self._path, isolation_level=None)
            for pragma in _PRAGMAS:
                self._file.execute(f"PRAGMA {pragma}")
            # The default, the system's folder for temporary files, may be another and smaller disk.
            self._file.execute("PRAGMA temp_store_directory = '{}'".format(str(folder).replace("'", "''")))
            self._file.executescript(_SCHEMA + "BEGIN")

    def add(self, table: str, *values: Any) -> None:
        """A row of clicks, forgets, exposures, profiles, contexts or rules, with the columns of the schema."""
        rows = self._rows[table]
        rows.append(values)
        if len(rows) >= _BATCH:
            self._flush(table)

    def put(self, table: str, item: str, known_ms: int, *values: Any) -> None:
        """The newest row of an item, in items or vectors; it stays known from the earliest time that was said."""
        columns = {"items": "fields = excluded.fields, withdrawn = excluded.withdrawn", "vectors": "body=excluded.body"}
        marks = ", ".join("?" * (2 + len(values)))
        with self._translated():
            self._file.execute(
                f"INSERT INTO {table} VALUES ({marks}) ON CONFLICT (item) DO UPDATE SET {columns[table]}, "
                "known_ms = MIN(known_ms, excluded.known_ms)",
                (item, known_ms, *values),
            )

    def withdraw(self, item: str) -> None:
        """An item keeps its last fields and is no longer offered; one without a record stays unknown."""
        with self._translated():
            self._file.execute("UPDATE items SET withdrawn = 1 WHERE item = ?", (item,))

    def remove_vector(self, item: str) -> None:
        with self._translated():
            self._file.execute("DELETE FROM vectors WHERE item = ?", (item,))

    def settle(self, choices: Sequence[str]) -> dict[str, int]:
        """Removes what was forgotten and what came twice, and finds what was chosen from which list.

        `choices` are the kinds of events that choose an item. Returns how many clicks and exposures were removed.
        """
        with self._translated():
            for table in list(self._rows):
                self._flush(table)
            self._file.executemany("INSERT INTO marks VALUES (?, ?, ?, ?, ?)", self._marks())
            later_exposures = {"table": "exposures", "key": "number", "name": "recommendation", "order": "number"}
            removals = {
                "forgotten": _FORGOTTEN_CLICKS,
                "forgotten_exposures": _FORGOTTEN_EXPOSURES,
                "duplicates": _LATER_COPIES.format(table="clicks", key="arrival", name="event", order="turn"),
                "duplicate_exposures": _LATER_COPIES.format(**later_exposures),
            }
            removed = {name: self._file.execute(statement).rowcount for name, statement in removals.items()}
            self._file.execute(_KNOWN)
            self._file.execute("CREATE INDEX by_recommendation ON exposures (recommendation)")
            self._file.execute("CREATE INDEX by_page ON exposures (page)")
            names, kinds = ("recommendation", "page"), ", ".join("?" * len(choices))
            pairs = [_PAIRS.format(rank=rank, name=name, kinds=kinds) for rank, name in enumerate(names)]
            self._file.execute(_CHOSEN.format(by_recommendation=pairs[0], by_page=pairs[1]), [*choices, *choices])
            return removed

    def count(self, table: str, where: str = "1") -> int:
        """How many rows of a table fulfil a condition."""
        with self._translated():
            return int(self._file.execute(f"SELECT COUNT(*) FROM {table} WHERE {where}").fetchone()[0])

    def without_record(self) -> tuple[int, int, tuple[str, int, str] | None]:
        """How many clicks have an item without a record, of how many items, and (user, turn, item) of the first."""
        lone = "FROM clicks WHERE item NOT IN (SELECT item FROM items)"
        with self._translated():
            clicks, items = self._file.execute(f"SELECT COUNT(*), COUNT(DISTINCT item) {lone}").fetchone()
            first = self._file.execute(f"SELECT user, turn, item {lone} ORDER BY arrival LIMIT 1").fetchone()
        return clicks, items, first

    def events(self, forget: str) -> Iterator[tuple[Any, ...]]:
        """(user, item, kind, ts_ms, session, location, event, page, recommendation) by time and then by arrival.

        They are clicks and, as kind `forget` of item "", the last forget of each user.
        """
        return (row[:-1] for row in self._read(_EVENTS, (forget,)))

    def impressions(self) -> Iterator[tuple[Any, ...]]:
        """(user, recommendation, page, ts_ms, location, model, served_by, items shown, first one chosen or None)."""
        for *facts, shown, chosen in self._read(_IMPRESSIONS):
            yield *facts, shown.split("\n")[1:-1], chosen

    def profiles(self) -> Iterator[tuple[str, int, bytes]]:
        """(user, ts_ms, content) by time, without what was removed later."""
        return ((user, ts_ms, content) for user, ts_ms, content, _ in self._read(_PROFILES))

    def contexts(self) -> Iterator[tuple[str, int, bytes | None]]:
        """(location, in force since, content or None for a removal) by time, which follows arrival in each location."""
        return self._read(_RECORDS.format(key="location", table="contexts"))

    def scenario_rules(self) -> Iterator[tuple[str, int, bytes | None]]:
        """(scenario, in force since, content or None for a removal), as `contexts`."""
        return self._read(_RECORDS.format(key="scenario", table="rules"))

    def items(self) -> Iterator[tuple[str, int, bytes, int]]:
        """(item, known since, newest fields, whether withdrawn) in the order of their first records."""
        return self._read(_ITEMS)

    def vectors(self) -> Iterator[tuple[int, bytes]]:
        """(known since, body) by time."""
        return self._read(_VECTORS)

    def close(self) -> None:
        """Leaves the file; what is in it cannot be read again."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _marks(self) -> Iterator[tuple[str, int, str, int, int]]:
        """The last effective forget of each user, by the rules of `streams.pipeline.user_state.apply_forget`."""
        for user, rows in groupby(self._read(_USERS_CLICKS_AND_FORGETS), key=lambda row: row[0]):
            mark: tuple[str, int, str, int, int] | None = None
            mark_ms, newest_ms, applied = -1, -1, set[str]()
            for _, turn, event, ts_ms, inside in rows:
                if ts_ms <= mark_ms or (inside is None and event in applied):
                    continue
                if inside is None:
                    newest_ms = max(newest_ms, ts_ms)
                    applied.add(event)
                else:
                    mark_ms = max(ts_ms, newest_ms)
                    mark, newest_ms = (user, turn, event, mark_ms, inside), -1
                    applied.clear()
            if mark is not None:
                yield mark

    def _flush(self, table: str) -> None:
        rows = self._rows[table]
        if rows:
            with self._translated():
                self._file.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
            rows.clear()

    def _read(self, statement: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        with self._translated():
            # Through `map`, because `yield from` closes what it reads, and the file may be closed by then.
            yield from map(tuple, self._file.execute(statement, values))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            code = errno.ENOSPC if "full" in str(error) else errno.EIO
            raise OSError(code, str(error), str(self._path)) from error
