"""Keeps the newest records of the topics in memory, as a thread reads them from Kafka without a consumer group.

Memory and processor time are bounded at any rate: old records make room, long ones are cut, and what comes faster than
it is looked at is skipped and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from streams.events import CATALOG, CLICKSTREAM, CONTEXT, DEAD_LETTERS, EXPOSURES, SCENARIO_RULES, USERS, Record
from streams.kafka.config import KafkaConfig
from streams.kafka.tail import TopicTail

BACKS = {CLICKSTREAM: 20, EXPOSURES: 10, USERS: 2, CATALOG: 100, CONTEXT: 200, SCENARIO_RULES: 200, DEAD_LETTERS: 1_000}
KEPT_BYTES = 32 * 1024  # of a value; a list of 200 items is shorter
_MOST_RECORDS = 1_000  # of a topic
_MOST_BYTES = 8 * 1024 * 1024  # of a topic
_BATCH, _WAIT_S = 250, 0.1  # so at most 2,500 records are looked at in a second, a twentieth of a core
_FULL_BATCHES = 10  # a second in which more came than that: what is further back than `BACKS` is skipped
_AGAIN_S = 2.0  # after a broker that did not answer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SeenRecord:
    """A record with its number in the feed, which grows by one from record to record."""

    number: int
    record: Record
    seen_ms: int
    size: int  # of the value in bytes; None counts as 0

    @property
    def is_cut(self) -> bool:
        """Whether not all of the value is kept."""
        return self.size > len(self.record.value or b"")

    @property
    def key(self) -> str:
        return (self.record.key or b"").decode("utf-8", "replace")

    @property
    def body(self) -> dict[str, Any]:
        """The value's fields; empty for none, and for what is no JSON object."""
        try:
            found = orjson.loads(self.record.value or b"null")
        except orjson.JSONDecodeError:
            return {}
        return found if isinstance(found, dict) else {}


class RecordRing:
    """The newest records of one topic, bounded in number and bytes."""

    def __init__(self, most: int = _MOST_RECORDS, most_bytes: int = _MOST_BYTES) -> None:
        self._most, self._most_bytes, self._bytes = most, most_bytes, 0
        self._records: deque[SeenRecord] = deque()

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[SeenRecord]:
        """The newest first."""
        return reversed(self._records)

    def add(self, seen: SeenRecord) -> None:
        self._records.append(seen)
        self._bytes += _weight(seen)
        while len(self._records) > self._most or (self._bytes > self._most_bytes and len(self._records) > 1):
            self._bytes -= _weight(self._records.popleft())


def _weight(seen: SeenRecord) -> int:
    headers = sum(len(name) + len(content) for name, content in seen.record.headers)
    return len(seen.record.value or b"") + len(seen.record.key or b"") + headers


class RecordFeed:
    """What has come lately, by topic. `start` once; readers may be in any thread."""

    def __init__(self, kafka: KafkaConfig, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._kafka, self._now_ms = kafka, now_ms
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._rings = {topic: RecordRing() for topic in BACKS}
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self.number = 0  # of the newest record
        self.skipped = 0  # times that reading went on near the ends
        self.trouble = "not connected yet"  # why nothing comes; "" while Kafka answers

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def take(self, record: Record) -> None:
        """Notes one record."""
        value, size = record.value, len(record.value or b"")
        kept = record if size <= KEPT_BYTES else record._replace(value=(value or b"")[:KEPT_BYTES])
        with self._lock:
            self.number += 1
            self._rings[record.topic].add(SeenRecord(self.number, kept, self._now_ms(), size))

    def newest(self, topic: str, most: int, match: Callable[[SeenRecord], bool] = lambda _: True) -> list[SeenRecord]:
        """Up to `most` records of a topic that match, the newest first."""
        with self._lock:
            records = list(self._rings[topic])
        found: list[SeenRecord] = []
        for seen in records:
            if len(found) == most:
                break
            if match(seen):
                found.append(seen)
        return found

    def since(
        self, number: int, topics: Collection[str], most: int, match: Callable[[SeenRecord], bool] = lambda _: True
    ) -> tuple[list[SeenRecord], int]:
        """Up to `most` of the records after `number` that match, in order, evenly drawn; and how many were left out."""
        with self._lock:
            records = []
            for topic in topics:
                for seen in self._rings[topic]:
                    if seen.number <= number:
                        break
                    records.append(seen)
        found = sorted((seen for seen in records if match(seen)), key=lambda seen: seen.number)
        if len(found) <= most:
            return found, 0
        return [found[at * len(found) // most] for at in range(most)], len(found) - most

    def get(self, topic: str, partition: int, offset: int) -> SeenRecord | None:
        """A record by its place, None when it is not kept any more."""
        place = partition, offset
        found = self.newest(topic, 1, lambda seen: (seen.record.partition, seen.record.offset) == place)
        return found[0] if found else None

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                tail = TopicTail(self._kafka, BACKS)
            except ConnectionError as error:
                self._trouble(str(error))
                self._stop.wait(_AGAIN_S)
                continue
            try:
                self._read(tail)
            except Exception as error:  # the boundary of the thread: it goes on, and the pages say why nothing comes
                log.exception("reading Kafka ended")
                self._trouble(f"{type(error).__name__}: {error}")
                self._stop.wait(_AGAIN_S)
            finally:
                tail.close()

    def _trouble(self, text: str) -> None:
        if text != self.trouble and text:
            log.warning("%s", text)
        self.trouble = text

    def _read(self, tail: TopicTail) -> None:
        """Reads until the end; returns at once where there is nothing to read yet."""
        if not tail.topics:
            self._trouble("none of the topics exists yet")
            self._stop.wait(_AGAIN_S)
            return
        full, caught_up = 0, False
        while not self._stop.is_set():
            records = tail.poll(_BATCH, _WAIT_S)
            for record in records:
                self.take(record)
            self._trouble("" if records else tail.trouble)
            if len(records) < _BATCH:
                full, caught_up = 0, True
                continue
            full += caught_up
            if full > _FULL_BATCHES:
                tail.skip()
                self.skipped, full = self.skipped + 1, 0
            self._stop.wait(_WAIT_S)
