"""`TopicExport` and `write_files` turn the history in topics into a data folder, each event once, ordered by time.

As in the pipeline, what is refused is counted, a resent event counts once, what was forgotten is gone, and an item's
last record wins. Unlike there, late events are kept, and misrouted records count unless a forwarded copy exists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from index.state.keys import partition_of
from streams.events import (
    CLICKSTREAM,
    EXPOSURES,
    FORGET,
    USERS,
    CatalogueEntry,
    Click,
    ContextEntry,
    Exposure,
    Forget,
    MalformedError,
    Profile,
    Record,
    Rules,
    ScenarioEntry,
    VectorEntry,
)
from streams.folder.reader import CONTEXTS, EVENTS, IMPRESSIONS, ITEMS, PROFILES, SCENARIOS, VECTORS
from streams.folder.spool import Spool
from streams.folder.writer import csv_lines, write_lines
from streams.item_vectors import ItemVectors
from streams.left_out import LeftOut, WithoutRecord
from streams.parsing import note_reason, parse, parse_exposure, reason_of

HEADER = "user_id,item_id,event_type,timestamp,session_id,location,event_id,page_id,recommendation_id,ts_ms"
_MISROUTED = 2**62  # turns of records in a foreign partition: behind all that are at home
_REMOVED = {
    "forgotten": (CLICKSTREAM, "its user asked to be forgotten"),
    "forgotten_exposures": (EXPOSURES, "its user asked to be forgotten"),
    "duplicates": (CLICKSTREAM, "an event_id that its user has sent before"),
    "duplicate_exposures": (EXPOSURES, "a recommendation_id that was sent before"),
}
_TOLD = 1_000  # rows between two steps of the progress bar


class TopicExport:
    """Takes records, merged by Kafka timestamp and in offset order within a partition, into a spool.

    `inside` says whether a record lies in the range to export; of others only forgets and removed profiles count. Item
    vectors are kept of `embedder` only (None: of nobody). `partitions` of the clickstream say where a user's home is.
    """

    def __init__(
        self,
        spool: Spool,
        rules: Rules,
        partitions: int,
        inside: Callable[[Record], bool] = lambda record: True,
        embedder: str | None = None,
    ) -> None:
        self._spool = spool
        self._rules = rules
        self._partitions = partitions
        self._inside = inside
        self._embedder = embedder
        self._taken = 0
        self.records: Counter[str] = Counter()  # inside the range, by topic
        self.malformed: Counter[str] = Counter()  # by topic and reason
        self.left_out = LeftOut()  # the same with the first of each
        self.misrouted = 0  # clicks, forgets and profiles in a foreign partition
        self.embedders: Counter[str] = Counter()  # of the vector records

    def take(self, record: Record) -> None:
        """One more record."""
        self._taken += 1
        inside = self._inside(record)
        if not inside and not _removes(record):
            return
        try:
            event = parse_exposure(record) if record.topic == EXPOSURES else parse(record, self._rules)
        except MalformedError as error:
            if inside:
                self.records[record.topic] += 1
                note_reason(self.malformed, record.topic, error)
                where = f"{record.topic}[{record.partition}] at offset {record.offset}"
                self.left_out.add(f"{record.topic}: {reason_of(error)}", where)
            return
        if inside:
            self.records[record.topic] += 1
            self._keep(record, event)
        elif isinstance(event, Forget) or (isinstance(event, Profile) and event.content is None):
            self._keep(record, event, inside=False)

    def note_removed(self, removed: Mapping[str, int]) -> None:
        """Counts what settling the spool has removed."""
        for name, (topic, reason) in _REMOVED.items():
            self.left_out.add(f"{topic}: {reason}", count=removed[name])

    def without_record(self) -> WithoutRecord:
        """Events that are written though their item has no record; to be asked of a settled spool."""
        events, items, first = self._spool.without_record()
        place = ""
        if first is not None:
            user, turn, item = first
            home = f"[{partition_of(user, self._partitions)}] at offset {turn}" if turn < _MISROUTED else ", misrouted"
            place = f"{CLICKSTREAM}{home}, item_id {item!r}"
        return WithoutRecord(events, items, place)

    def not_forwarded(self) -> int:
        """Clicks that were found in a foreign partition only; to be asked of a settled spool."""
        return self._spool.count("clicks", f"turn >= {_MISROUTED}")

    def _keep(self, record: Record, event: Any, inside: bool = True) -> None:
        spool = self._spool
        match event:
            case Click():
                names = event.user_id, self._turn(record, event.user_id), event.event_id, event.item_id
                details = event.session_id, event.location, event.page_id, event.recommendation_id
                spool.add("clicks", self._taken, *names, self._rules.kinds[event.kind].name, event.ts_ms, *details)
            case Forget():
                turn = self._turn(record, event.user_id)
                spool.add("forgets", event.user_id, turn, event.event_id, event.ts_ms, int(inside))
            case Profile():
                spool.add("profiles", event.user_id, self._turn(record, event.user_id), event.ts_ms, event.content)
            case Exposure():
                self._keep_exposure(event)
            case CatalogueEntry(item_id, None):
                spool.withdraw(item_id)
            case CatalogueEntry(item_id, fields) if fields is not None:
                spool.put("items", item_id, fields["ts_ms"], orjson.dumps(fields), 0)
            case VectorEntry():
                self._keep_vector(record, event)
            case ContextEntry(name, content) | ScenarioEntry(name, content):
                ts_ms = record.timestamp_ms if content is None else orjson.loads(content)["ts_ms"]
                spool.add("contexts" if isinstance(event, ContextEntry) else "rules", self._taken, name, ts_ms, content)

    def _turn(self, record: Record, user_id: str) -> int:
        """The place among a user's records: the offset at home; a forwarded record would come behind all of them."""
        if partition_of(user_id, self._partitions) == record.partition:
            return record.offset
        self.misrouted += 1
        return _MISROUTED + self._taken

    def _keep_exposure(self, event: Exposure) -> None:
        shown = "".join(f"\n{item}" for item in event.shown) + "\n"  # ids hold no line breaks
        named = event.user_id, event.recommendation_id, event.page_id or event.recommendation_id, event.ts_ms
        self._spool.add("exposures", self._taken, *named, event.location, event.model, event.served_by, shown)

    def _keep_vector(self, record: Record, event: VectorEntry) -> None:
        if event.vector is None:
            self._spool.remove_vector(event.item_id)
            return
        self.embedders[event.embedder] += 1
        if event.embedder == self._embedder:
            known_ms, hashes = record.timestamp_ms, [event.text_hash] if event.text_hash else None
            vectors = ItemVectors(event.embedder, [event.item_id], event.vector[None], [event.tags], hashes)
            self._spool.put("vectors", event.item_id, known_ms, orjson.dumps(vectors.body(0, known_ms)))


def _removes(record: Record) -> bool:
    """Whether a record may forget a user or remove a profile, which counts whenever it was said."""
    if record.topic == CLICKSTREAM and record.value is not None:
        return b"forget" in record.value or b"\\u" in record.value  # JSON may write letters as escapes
    return record.topic == USERS and record.value is None


def write_files(spool: Spool, folder: Path, progress: Callable[[int, int], None] | None = None) -> dict[str, int]:
    """Writes what a settled spool holds as the files of a data folder; returns the number of lines of each.

    `progress` is told how many events are written, of how many. Raises OSError when the disk does not take it.
    """
    cells = (
        (user, item, kind, ts_ms // 1000, *details, ts_ms) for user, item, kind, ts_ms, *details in spool.events(FORGET)
    )
    rows = _shown(cells, spool.count("clicks"), progress)
    done = {
        "events": write_lines(folder / EVENTS, csv_lines(rows), HEADER.encode()),
        "items": write_lines(folder / ITEMS, _items(spool)),
    }
    more = {
        "impressions": (IMPRESSIONS, _impressions(spool)),
        "contexts": (CONTEXTS, _contexts(spool)),
        "rules": (SCENARIOS, _scenario_rules(spool)),
        "profiles": (PROFILES, _profiles(spool)),
        "vectors": (VECTORS, _vectors(spool)),
    }
    for name, (file, lines) in more.items():
        done[name] = write_lines(folder / file, lines)
        if not done[name]:
            (folder / file).unlink()  # a file that is there says that such things are known
    return done


def _shown(
    rows: Iterator[tuple[str | int, ...]], total: int, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str | int, ...]]:
    for done, row in enumerate(rows, 1):
        yield row
        if progress is not None and done % _TOLD == 0:
            progress(done, total)


def _items(spool: Spool) -> Iterator[bytes]:
    for item_id, known_ms, fields, withdrawn in spool.items():
        said = {name: value for name, value in orjson.loads(fields).items() if value not in (None, "", [])}
        if withdrawn:
            said["available"] = False
        yield orjson.dumps({"item_id": item_id, "title": "", **said, "first_seen": known_ms / 1000})


def _impressions(spool: Spool) -> Iterator[bytes]:
    for user_id, recommendation_id, page_id, ts_ms, location, model, served_by, shown, chosen in spool.impressions():
        line = {
            "page_id": page_id,
            "recommendation_id": recommendation_id,
            "user_id": user_id,
            "timestamp": ts_ms // 1000,
            "ts_ms": ts_ms,
            "location": location,
            "shown": shown,
            "clicked": chosen,
            "position": shown.index(chosen) if chosen is not None else None,
            "model": model,
            "served_by": served_by,
        }
        yield orjson.dumps(line)


def _contexts(spool: Spool) -> Iterator[bytes]:
    for location, since_ms, content in spool.contexts():
        if content is None:  # `context.timeline` knows removals as records that are over when they begin
            nothing: dict[str, Any] = {"weather": {}, "events": [], "promotions": []}
            body = {"location": location, "ts_ms": since_ms, "valid_until_ms": since_ms, **nothing}
        else:
            body = {**orjson.loads(content), "ts_ms": since_ms}
        yield orjson.dumps(body)


def _scenario_rules(spool: Spool) -> Iterator[bytes]:
    for scenario, since_ms, content in spool.scenario_rules():
        # As of contexts: what was removed is a rule that is over when it begins.
        said = {"valid_until_ms": since_ms} if content is None else orjson.loads(content)
        yield orjson.dumps({"scenario": scenario, **said, "ts_ms": since_ms})


def _profiles(spool: Spool) -> Iterator[bytes]:
    for user_id, ts_ms, content in spool.profiles():
        yield orjson.dumps({"user_id": user_id, "ts_ms": ts_ms, **orjson.loads(content)})


def _vectors(spool: Spool) -> Iterator[bytes]:
    for since_ms, body in spool.vectors():
        yield orjson.dumps({**orjson.loads(body), "ts_ms": since_ms})
