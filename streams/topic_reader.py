"""Reads the consumed topics from a broker as they were, once, merged by time: for replay.

Belongs to no consumer group and commits nothing. Ends at the offsets the logs had when it was opened. Partitions are
merged by Kafka timestamp; at equal times users, catalog, item-vectors, context, clickstream; within a partition the
offset order stays, whatever its timestamps. It does not know what records mean.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from streams.events import Record
from streams.folder_records import TOPIC_ORDER
from streams.kafka_access import KafkaAccess
from streams.replay import Covers

# The embedded broker answers newer version negotiations wrongly; to this version both sides keep.
_EMBEDDED_VERSION = (2, 3)
_BUFFERED = 5_000  # records of one partition held while others are waited for, about 1 MB
_POLL_MS = 100
_WAIT_S = 30.0  # without any record although the log is said to hold more


class TopicReader:
    """Historical records of some topics.

    Args:
        access: the cluster.
        topics: those to read, of `TOPIC_ORDER`.
        embedded: the broker is the embedded one, which cannot look offsets up by time: records are read and left out.
        starts: offsets to begin at, by (topic, partition); what is not named begins at the log's start.
        start_ms: begin each partition at its first record of this Kafka timestamp or later.
        stop_ms: end each partition before its first record of this Kafka timestamp or later.

    Raises:
        ValueError: a topic does not exist, or a start lies outside its log.
        kafka.errors.KafkaError: the broker does not answer.
    """

    def __init__(
        self,
        access: KafkaAccess,
        topics: Sequence[str] = TOPIC_ORDER,
        *,
        embedded: bool = False,
        starts: Mapping[tuple[str, int], int] | None = None,
        start_ms: int | None = None,
        stop_ms: int | None = None,
    ) -> None:
        version = {"api_version": _EMBEDDED_VERSION} if embedded else {}
        self._consumer = KafkaConsumer(
            **access.kafka_python(),
            enable_auto_commit=False,
            isolation_level="read_committed",
            fetch_max_wait_ms=50,
            max_poll_records=_BUFFERED,
            **version,
        )
        self._access, self._start_ms, self._stop_ms = access, start_ms, stop_ms
        self._first_read: dict[TopicPartition, int] = {}
        self._ended_at: dict[TopicPartition, int] = {}  # where `stop_ms` ended a partition before its log did
        try:
            self._covers = self._place(topics, starts or {}, embedded)
        except BaseException:
            self._consumer.close()
            raise

    @property
    def covers(self) -> dict[str, Covers]:
        """What has been read of each partition, by `topic[partition]`, and from where its log still reaches."""
        found = {}
        for tp, covers in self._covers.items():
            start = covers.start if self._start_ms is None else self._first_read.get(tp, covers.end)
            end = self._ended_at.get(tp, covers.end)
            found[self._named(tp)] = Covers(covers.first, min(start, end), end, covers.log_end)
        return found

    @property
    def total(self) -> int:
        """How many offsets lie between the starts and the ends: not fewer than the records to come."""
        return sum(covers.end - covers.start for covers in self._covers.values())

    def records(self) -> Iterator[Record]:
        """All records, merged. Can be read once.

        Raises:
            ConnectionError: nothing came for half a minute although the log goes on.
        """
        merge = _Merge(self._covers, {self._access.topic(name): rank for rank, name in enumerate(TOPIC_ORDER)})
        while True:
            while merge.waiting:
                self._fetch(merge)
            record = merge.next()
            if record is None:
                return
            tp = TopicPartition(self._access.topic(record.topic), record.partition)
            if self._start_ms is not None and record.timestamp_ms < self._start_ms and tp not in self._first_read:
                continue
            if self._stop_ms is not None and record.timestamp_ms >= self._stop_ms:
                self._ended_at[tp] = record.offset
                merge.end(tp)
                continue
            self._first_read.setdefault(tp, record.offset)
            yield record

    def close(self) -> None:
        """Leaves the broker."""
        self._consumer.close()

    def __enter__(self) -> TopicReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _place(
        self, topics: Sequence[str], starts: Mapping[tuple[str, int], int], embedded: bool
    ) -> dict[TopicPartition, Covers]:
        """Assigns and seeks all partitions."""
        existing = self._consumer.topics()
        absent = [topic for topic in map(self._access.topic, topics) if topic not in existing]
        if absent:
            raise ValueError(f"topic {absent[0]!r} does not exist on this broker, which has {sorted(existing)}")
        tps = [
            TopicPartition(topic, partition)
            for topic in map(self._access.topic, topics)
            for partition in sorted(self._consumer.partitions_for_topic(topic) or ())
        ]
        self._consumer.assign(tps)
        first, last = self._consumer.beginning_offsets(tps), self._consumer.end_offsets(tps)
        wanted = {TopicPartition(self._access.topic(topic), part): offset for (topic, part), offset in starts.items()}
        if self._start_ms is not None and not embedded:
            found = self._consumer.offsets_for_times(dict.fromkeys(tps, self._start_ms))
            wanted |= {tp: last[tp] if at is None else at.offset for tp, at in found.items()}
        covers = {}
        for tp in tps:
            start = wanted.get(tp, first[tp])
            if not first[tp] <= start <= last[tp]:
                raise ValueError(f"{self._named(tp)} cannot start at {start}: its log holds {first[tp]} to {last[tp]}")
            covers[tp] = Covers(first[tp], start, last[tp], last[tp])
            self._consumer.seek(tp, start)
        return covers

    def _fetch(self, merge: _Merge) -> None:
        """Gets more records of partitions that are waited for; others pause when they hold enough."""
        deadline = time.monotonic() + _WAIT_S
        while merge.waiting:
            full = merge.full()
            self._consumer.pause(*full)
            fetched = self._consumer.poll(timeout_ms=_POLL_MS)
            self._consumer.resume(*full)
            for tp, found in fetched.items():
                merge.add(tp, [self._record(raw) for raw in found])
            merge.settle({tp: self._consumer.position(tp) for tp in merge.waiting})
            if fetched:
                deadline = time.monotonic() + _WAIT_S
            elif merge.waiting and time.monotonic() > deadline:
                stuck = sorted(map(self._named, merge.waiting))
                raise ConnectionError(f"Kafka sent nothing of {', '.join(stuck[:5])} for {_WAIT_S:.0f} s; try again")

    def _named(self, tp: TopicPartition) -> str:
        return f"{self._access.name(tp.topic)}[{tp.partition}]"

    def _record(self, raw: Any) -> Record:
        topic, headers = self._access.name(raw.topic), tuple(raw.headers or ())
        return Record(topic, raw.partition, raw.offset, raw.timestamp, raw.key, raw.value, headers)


class _Merge:
    """Buffers by partition and a heap of their first records."""

    def __init__(self, covers: Mapping[TopicPartition, Covers], rank: Mapping[str, int]) -> None:
        self._end = {tp: c.end for tp, c in covers.items() if c.start < c.end}
        self._buffers: dict[TopicPartition, deque[Record]] = {tp: deque() for tp in self._end}
        self._heap: list[tuple[int, int, int, TopicPartition]] = []
        self._rank = rank  # of a topic, at equal times
        self.waiting: set[TopicPartition] = set(self._end)  # not at their end, and nothing buffered
        self._read_to: dict[TopicPartition, int] = {tp: c.start for tp, c in covers.items()}

    def add(self, tp: TopicPartition, records: Sequence[Record]) -> None:
        """Takes over fetched records before the end."""
        if tp not in self._end or not records:
            return
        self._read_to[tp] = records[-1].offset + 1
        self._buffers[tp].extend(record for record in records if record.offset < self._end[tp])
        if tp in self.waiting and self._buffers[tp]:
            self.waiting.discard(tp)
            self._push(tp)

    def settle(self, positions: Mapping[TopicPartition, int]) -> None:
        """Gives up waiting where the consumer has passed the end: the last offsets may hold no record of ours."""
        for tp, position in positions.items():
            self._read_to[tp] = max(self._read_to[tp], position)
            if self._read_to[tp] >= self._end[tp]:
                self.waiting.discard(tp)

    def next(self) -> Record | None:
        """The earliest record; None at the end of all partitions."""
        if not self._heap:
            return None
        tp = heapq.heappop(self._heap)[-1]
        record = self._buffers[tp].popleft()
        if self._buffers[tp]:
            self._push(tp)
        elif self._read_to[tp] < self._end[tp]:
            self.waiting.add(tp)
        return record

    def full(self) -> list[TopicPartition]:
        """Partitions that need no more for now, and those that are at their end."""
        ended = [tp for tp in self._read_to if tp not in self._end]
        return ended + [tp for tp, buffer in self._buffers.items() if len(buffer) >= _BUFFERED]

    def end(self, tp: TopicPartition) -> None:
        """Nothing of this partition is wanted any more."""
        del self._end[tp]
        self._buffers[tp].clear()
        self.waiting.discard(tp)
        self._heap = [entry for entry in self._heap if entry[-1] != tp]
        heapq.heapify(self._heap)

    def _push(self, tp: TopicPartition) -> None:
        first = self._buffers[tp][0]
        heapq.heappush(self._heap, (first.timestamp_ms, self._rank[tp.topic], tp.partition, tp))
