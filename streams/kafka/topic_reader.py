"""Reads topics from a broker as they were, once, merged by time, for replay and export.

Belongs to no consumer group and commits nothing. Ends at the offsets the logs had when it was opened, and can be opened
again where an earlier one stopped. `streams.kafka.topic_merge` has the order.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from streams.events import EXPOSURES, TOPIC_ORDER, Record
from streams.kafka.config import KafkaConfig, message_to_record
from streams.kafka.topic_merge import Covers, LogMerge, Place

_ORDER = (*TOPIC_ORDER, EXPOSURES)
_LOG_END, _LOST = "_PARTITION_EOF", ("_AUTO_OFFSET_RESET", "OFFSET_OUT_OF_RANGE")  # names of librdkafka's errors
_TIMEOUT_S = 15.0  # of a look-up; a broker that is up answers in milliseconds
_POLL_S, _POLL_RECORDS = 0.1, 2_000
_WAIT_S = 120.0  # without any record although the log is said to hold more: a broker restarts in less
_CONFIG = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",  # the default would leave out what is between here and the end
    "isolation.level": "read_committed",
    "enable.partition.eof": True,  # the last offsets may be markers of transactions
    "fetch.wait.max.ms": 50,
    "fetch.message.max.bytes": 256 * 1024,  # of one partition, at once; a larger record comes alone
    "queued.min.messages": 5_000,
    "queued.max.messages.kbytes": 16 * 1024,  # fetched ahead of all partitions together
    "log_level": 2,
}


class Span(NamedTuple):
    """Offsets of one partition, end excluded; None is that end of the log."""

    start: int | None = None
    end: int | None = None


class TopicReader:
    """Historical records of some topics.

    Args:
        topics: those to read, of `TOPIC_ORDER` and `exposures`.
        embedded: the broker is the embedded one, which cannot look offsets up by time: records are read and left out.
        spans: offsets to read of some partitions, by (topic, partition); times do not matter for these.
        start_ms: begin each partition at its first record of this Kafka timestamp or later.
        stop_ms: end each partition before its first record of this Kafka timestamp or later.
        whole: topics that `start_ms` does not cut.
        resume: what `resume_state` said when another reader with the same arguments stopped.

    Raises ValueError when a topic or partition does not exist, a span lies outside its log or the times are in wrong
    order, ConnectionError when the broker does not answer.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        topics: Sequence[str] = TOPIC_ORDER,
        *,
        embedded: bool = False,
        spans: Mapping[Place, Span] | None = None,
        start_ms: int | None = None,
        stop_ms: int | None = None,
        whole: Collection[str] = (),
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        if start_ms is not None and stop_ms is not None and stop_ms < start_ms:
            raise ValueError(f"the end {stop_ms} lies before the start {start_ms}; swap them")
        # The client needs a name, but joins no group of that name as long as partitions are assigned by hand.
        self._consumer = Consumer({**kafka.librdkafka(), **_CONFIG, "group.id": f"perseid-replay-{uuid.uuid4().hex}"})
        self._paused: set[Place] = set()
        self._kafka, self._embedded = kafka, embedded
        self._start_ms, self._stop_ms, self._whole = start_ms, stop_ms, whole
        self._timed: set[Place] = set()  # cut by time while reading, because the broker cannot
        self._unbegun: set[Place] = set()  # of these, where no record at or after `start_ms` was met yet
        self._covers: dict[Place, Covers] = {}
        self._next: dict[Place, int] = {}
        try:
            with _translated():
                places = self._places(topics)
                self._open(places, spans or {}) if resume is None else self._reopen(places, resume)
            # Offsets between the starts and the ends: not fewer than the records to come.
            self.total = sum(c.end - (c.first if place in self._unbegun else c.start) for place, c in self._pairs)
        except BaseException:
            self._consumer.close()
            raise

    @property
    def covers(self) -> dict[str, Covers]:
        """What has been or will be read of each partition, by `topic[partition]`, and what its log holds."""
        return {_named(place): covers for place, covers in self._pairs}

    @property
    def partitions(self) -> dict[str, int]:
        """How many partitions each topic has."""
        return {topic: sum(place[0] == topic for place in self._covers) for topic, _ in self._covers}

    @property
    def resume_state(self) -> dict[str, Any]:
        """Where to go on behind the record that was yielded last, as plain values for JSON."""
        return {
            _named(place): {
                "covers": [covers.first, covers.start, covers.end, covers.log_end, covers.lost],
                "next": self._next[place],
                "timed": place in self._timed,
                "begun": place not in self._unbegun,
            }
            for place, covers in self._pairs
        }

    def records(self) -> Iterator[Record]:
        """All records, merged, once. Raises ConnectionError when for two minutes nothing came of a log that goes on."""
        spans = {place: (self._next[place], covers.end) for place, covers in self._pairs}
        merge = LogMerge(spans, {topic: rank for rank, topic in enumerate(_ORDER)})
        while True:
            if merge.waiting:
                self._fetch(merge)
            record = merge.next()
            if record is None:
                return
            place = record.topic, record.partition
            if place in self._timed and not self._in_time(place, record, merge):
                continue
            self._next[place] = record.offset + 1
            yield record

    def close(self) -> None:
        """Leaves the broker."""
        self._consumer.close()

    def __enter__(self) -> TopicReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def _pairs(self) -> list[tuple[Place, Covers]]:
        return list(self._covers.items())

    def _places(self, topics: Sequence[str]) -> list[Place]:
        """Every partition of the topics."""
        existing = self._consumer.list_topics(timeout=_TIMEOUT_S).topics
        absent = [topic for topic in map(self._kafka.topic, topics) if topic not in existing]
        if absent:
            raise ValueError(f"topic {absent[0]!r} does not exist on this broker, which has {sorted(existing)}")
        return [(topic, number) for topic in topics for number in sorted(existing[self._kafka.topic(topic)].partitions)]

    def _open(self, places: Sequence[Place], spans: Mapping[Place, Span]) -> None:
        """Finds out what to read, and seeks there."""
        unknown = [place for place in spans if place not in places]
        if unknown:
            known = [partition for topic, partition in places if topic == unknown[0][0]]
            there = f"it has partitions 0 to {max(known)}" if known else "the topics are " + ", ".join(TOPIC_ORDER)
            raise ValueError(f"{_named(unknown[0])} does not exist: {there}")
        first, last = self._log_ends(places)
        starts, ends = self._offsets_at(places, self._start_ms, last), self._offsets_at(places, self._stop_ms, last)
        for place in places:
            start, end = first[place] if place[0] in self._whole else starts.get(place, first[place]), last[place]
            end = ends.get(place, end)
            if place in spans:
                start, end = _within(place, spans[place], first[place], last[place])
            elif self._embedded and (self._start_ms is not None or self._stop_ms is not None):
                self._timed.add(place)
                if self._start_ms is not None and place[0] not in self._whole:
                    self._unbegun.add(place)
            self._next[place] = start
            shown = end if place in self._unbegun else start
            self._covers[place] = Covers(first[place], min(shown, end), end, last[place])
        self._seek()

    def _reopen(self, places: Sequence[Place], resume: Mapping[str, Any]) -> None:
        """Goes on where another reader stopped; what retention removed meanwhile is noted as lost."""
        if sorted(map(_named, places)) != sorted(resume):
            raise ValueError("the topics have other partitions than when this reading began; begin anew")
        first, last = self._log_ends(places)
        for place in places:
            found = resume[_named(place)]
            covers = Covers(*found["covers"])
            if last[place] < covers.end:
                raise ValueError(
                    f"{_named(place)} ends at {last[place]} and reached {covers.end} when this reading began: it is "
                    "another log by now; begin anew"
                )
            self._covers[place], self._next[place] = covers, found["next"]
            self._timed |= {place} if found["timed"] else set()
            self._unbegun |= set() if found["begun"] else {place}
            if self._next[place] < first[place]:
                self._note_lost(place, self._next[place], first[place])
                self._next[place] = first[place]
        self._seek()

    def _seek(self) -> None:
        self._consumer.assign([self._tp(place, offset) for place, offset in self._next.items()])

    def _log_ends(self, places: Sequence[Place]) -> tuple[dict[Place, int], dict[Place, int]]:
        ends = {place: self._consumer.get_watermark_offsets(self._tp(place), timeout=_TIMEOUT_S) for place in places}
        if None in ends.values():
            raise ConnectionError(f"Kafka does not answer within {_TIMEOUT_S:.0f} s")
        return {place: end[0] for place, end in ends.items()}, {place: end[1] for place, end in ends.items()}

    def _offsets_at(self, places: Sequence[Place], at_ms: int | None, last: Mapping[Place, int]) -> dict[Place, int]:
        """The first offsets with a Kafka timestamp of `at_ms` or later; nothing when that is not asked or not known."""
        if at_ms is None or self._embedded:
            return {}
        asked = [self._tp(place, max(0, at_ms)) for place in places]
        found = self._consumer.offsets_for_times(asked, timeout=_TIMEOUT_S)
        for tp in found:
            if tp.error is not None:
                raise KafkaException(tp.error)
        at = {self._place(tp.topic, tp.partition): tp.offset for tp in found}
        return {place: last[place] if at[place] < 0 else min(at[place], last[place]) for place in places}

    def _in_time(self, place: Place, record: Record, merge: LogMerge) -> bool:
        """Whether a record of a broker without times is wanted; one of another unit neither begins nor ends a range."""
        if not record.has_time:
            self._next[place] = record.offset + 1
            return place not in self._unbegun
        if place in self._unbegun:
            if record.timestamp_ms < (self._start_ms or 0):
                self._next[place] = record.offset + 1
                return False
            if self._stop_ms is None or record.timestamp_ms < self._stop_ms:
                self._unbegun.discard(place)
                self._covers[place] = replace(self._covers[place], start=record.offset)
        if self._stop_ms is None or record.timestamp_ms < self._stop_ms:
            return True
        covers = self._covers[place]
        self._covers[place] = replace(covers, start=min(covers.start, record.offset), end=record.offset)
        self._next[place] = record.offset
        merge.end(place)
        return False

    def _fetch(self, merge: LogMerge) -> None:
        """Gets more records until no partition is waited for; those that hold enough pause meanwhile."""
        deadline = time.monotonic() + _WAIT_S
        while merge.waiting:
            self._throttle(merge)
            with _translated():
                fetched = self._consumer.consume(_POLL_RECORDS, _POLL_S)
            came: dict[Place, list[Record]] = defaultdict(list)
            for message in fetched:
                place = self._place(message.topic(), message.partition())
                if message.error() is None:
                    came[place].append(message_to_record(message, place[0]))
                else:
                    merge.add(place, came.pop(place, ()))
                    self._settle(merge, place, message)
            for place, records in came.items():
                merge.add(place, records)
            if came:
                deadline = time.monotonic() + _WAIT_S
            elif merge.waiting and time.monotonic() > deadline:
                stuck = sorted(map(_named, merge.waiting))
                raise ConnectionError(f"Kafka sent nothing of {', '.join(stuck[:5])} for {_WAIT_S:.0f} s; try again")

    def _throttle(self, merge: LogMerge) -> None:
        """Stops fetching where enough is held and goes on where little is left: seldom, as it throws some away."""
        full = [place for place in self._covers if place not in self._paused and merge.full(place)]
        low = [place for place in self._paused if merge.low(place)]
        if full:
            self._consumer.pause([self._tp(place) for place in full])
        if low:
            self._consumer.resume([self._tp(place) for place in low])
        self._paused = (self._paused | set(full)) - set(low)

    def _settle(self, merge: LogMerge, place: Place, message: Message) -> None:
        """What a partition says instead of a record: it is at its end, or retention has removed what was next."""
        error = message.error()
        if error is None or place not in self._covers:
            return
        if error.name() == _LOG_END:
            merge.reach(place, message.offset() or 0)
        elif error.name() in _LOST:
            with _translated():
                start = self._log_ends([place])[0][place]
                self._consumer.seek(self._tp(place, start))
            self._note_lost(place, merge.reached(place), start)
            merge.reach(place, start)
        elif not error.retriable():
            raise ConnectionError(f"Kafka does not send {_named(place)}: {error.str()}")

    def _note_lost(self, place: Place, reached: int, log_start: int) -> None:
        covers = self._covers[place]
        lost = max(0, min(log_start, covers.end) - reached)
        self._covers[place] = replace(covers, first=log_start, lost=covers.lost + lost)

    def _tp(self, place: Place, offset: int = 0) -> TopicPartition:
        return TopicPartition(self._kafka.topic(place[0]), place[1], offset)

    def _place(self, topic: str | None, partition: int | None) -> Place:
        return (self._kafka.name(topic) if topic is not None else "", -1 if partition is None else partition)


def _named(place: Place) -> str:
    return f"{place[0]}[{place[1]}]"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        raise ConnectionError(f"Kafka does not answer as expected: {error.args[0].str()}") from error


def _within(place: Place, span: Span, first: int, last: int) -> tuple[int, int]:
    """Start and end of a span. Raises ValueError when the log does not hold it."""
    start, end = first if span.start is None else span.start, last if span.end is None else span.end
    if not first <= start <= last:
        raise ValueError(f"{_named(place)} cannot start at {start}: its log holds {first} to {last}")
    if not start <= end <= last:
        raise ValueError(
            f"{_named(place)} cannot end at {end}: it starts at {start} and its log holds {first} to {last}"
        )
    return start, end
