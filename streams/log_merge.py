"""Merges the partitions of several topics into one order by Kafka timestamp, holding only a little of each.

At equal times the given rank of the topics decides, then the partition; within a partition the offset order stays,
whatever its timestamps. So the order is a function of the logs alone and can be continued from any point. It does not
know how records are fetched: it says which partitions it waits for and which have enough.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence

from streams.events import Record

Place = tuple[str, int]  # topic, partition

# Held of one partition while others are waited for. Few enough for a hundred partitions, enough not to wait often.
_RECORDS = 1_000
_BYTES = 64 * 1024 * 1024  # of keys and values over all partitions, divided equally; one record may exceed its part


class LogMerge:
    """Buffers by partition and a heap of their first records.

    Args:
        spans: the offsets to read, (next, end), by partition.
        rank: order of the topics at equal times.
    """

    def __init__(self, spans: Mapping[Place, tuple[int, int]], rank: Mapping[str, int]) -> None:
        self._end = {place: end for place, (start, end) in spans.items() if start < end}
        self._read_to = {place: start for place, (start, _) in spans.items()}
        self._buffers: dict[Place, deque[Record]] = {place: deque() for place in self._end}
        self._bytes = dict.fromkeys(self._end, 0)
        self._most_bytes = _BYTES // max(1, len(self._end))
        self._heap: list[tuple[int, int, int, Place]] = []
        self._rank = rank
        self.waiting: set[Place] = set(self._end)  # not at their end, and nothing buffered

    def add(self, place: Place, records: Sequence[Record]) -> None:
        """Takes over fetched records before the end."""
        if place not in self._end or not records:
            return
        self._read_to[place] = records[-1].offset + 1
        wanted = [record for record in records if record.offset < self._end[place]]
        self._buffers[place].extend(wanted)
        self._bytes[place] += sum(map(_size, wanted))
        if wanted and place in self.waiting:
            self.waiting.discard(place)
            self._push(place)

    def settle(self, positions: Mapping[Place, int]) -> None:
        """Gives up waiting where the consumer has passed the end: the last offsets may hold no record of ours."""
        for place, position in positions.items():
            self._read_to[place] = max(self._read_to[place], position)
            if self._read_to[place] >= self._end[place]:
                self.waiting.discard(place)

    def next(self) -> Record | None:
        """The earliest record; None at the end of all partitions. Not to be called while one is waited for."""
        if not self._heap:
            return None
        place = heapq.heappop(self._heap)[-1]
        record = self._buffers[place].popleft()
        self._bytes[place] -= _size(record)
        if self._buffers[place]:
            self._push(place)
        elif self._read_to[place] < self._end[place]:
            self.waiting.add(place)
        return record

    def satisfied(self) -> list[Place]:
        """Partitions of which no more is to be fetched for now: they hold enough, or are at their end."""
        return [place for place, reached in self._read_to.items() if self._has_enough(place, reached)]

    def end(self, place: Place) -> None:
        """Nothing of this partition is wanted any more."""
        del self._end[place]
        self._buffers[place].clear()
        self.waiting.discard(place)
        self._heap = [entry for entry in self._heap if entry[-1] != place]
        heapq.heapify(self._heap)

    def _has_enough(self, place: Place, reached: int) -> bool:
        if place not in self._end or reached >= self._end[place]:
            return True
        return len(self._buffers[place]) >= _RECORDS or self._bytes[place] >= self._most_bytes

    def _push(self, place: Place) -> None:
        first = self._buffers[place][0]
        heapq.heappush(self._heap, (first.timestamp_ms, self._rank[place[0]], place[1], place))


def _size(record: Record) -> int:
    return len(record.value or b"") + len(record.key or b"")
