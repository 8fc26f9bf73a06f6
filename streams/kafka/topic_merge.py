"""Merges the partitions of several topics into one order by Kafka timestamp, holding only a little of each.

At equal times the given rank of the topics decides, then the partition; within a partition the offset order stays,
whatever its timestamps. So the order is a function of the logs alone and can be continued from any point.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streams.events import Record

Place = tuple[str, int]  # topic, partition

# Held of one partition while others are waited for: enough not to stop and go on fetching often.
_RECORDS = 4_000
_BYTES = 64 * 1024 * 1024  # of keys and values over all partitions, divided equally; one record may exceed its part


@dataclass(frozen=True, slots=True)
class Covers:
    """Offsets of one partition: its log holds first..log_end, of which start..end are read (ends excluded)."""

    first: int
    start: int
    end: int
    log_end: int
    lost: int = 0  # so many left Kafka by retention before they were read

    @property
    def complete(self) -> bool:
        """Whether everything that was ever in the log is read."""
        return self.start == 0 and self.end == self.log_end and not self.lost


class LogMerge:
    """Buffers by partition and a heap of their first records.

    `spans` are the offsets to read, (next, end), by partition; `rank` orders the topics at equal times.
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
        """Takes over fetched records before the end; what was added before is left out."""
        if place not in self._end or not records:
            return
        first, end = self._read_to[place], self._end[place]
        wanted = [record for record in records if first <= record.offset < end]
        self._read_to[place] = max(first, records[-1].offset + 1)
        self._buffers[place].extend(wanted)
        self._bytes[place] += sum(record.size for record in wanted)
        if wanted and place in self.waiting:
            self.waiting.discard(place)
            self._push(place)

    def reach(self, place: Place, position: int) -> None:
        """There is nothing before `position` that was not added: the last offsets may hold no record of ours."""
        self._read_to[place] = max(self._read_to[place], position)
        if self._ended(place):
            self.waiting.discard(place)

    def next(self) -> Record | None:
        """The earliest record; None at the end of all partitions. Not to be called while one is waited for."""
        if not self._heap:
            return None
        place = heapq.heappop(self._heap)[-1]
        record = self._buffers[place].popleft()
        self._bytes[place] -= record.size
        if self._buffers[place]:
            self._push(place)
        elif self._read_to[place] < self._end[place]:
            self.waiting.add(place)
        return record

    def reached(self, place: Place) -> int:
        """The offset behind what was added of a partition."""
        return self._read_to[place]

    def full(self, place: Place) -> bool:
        """Whether no more of a partition is to be fetched for now: it holds enough, or is at its end."""
        return self._ended(place) or self._holds(place, 1)

    def low(self, place: Place) -> bool:
        """Whether more of a partition should be fetched before it is waited for."""
        return not self._ended(place) and not self._holds(place, 4)

    def end(self, place: Place) -> None:
        """Nothing of this partition is wanted any more."""
        del self._end[place]
        self._buffers[place].clear()
        self.waiting.discard(place)
        self._heap = [entry for entry in self._heap if entry[-1] != place]
        heapq.heapify(self._heap)

    def _ended(self, place: Place) -> bool:
        return place not in self._end or self._read_to[place] >= self._end[place]

    def _holds(self, place: Place, part: int) -> bool:
        return len(self._buffers[place]) >= _RECORDS // part or self._bytes[place] >= self._most_bytes // part

    def _push(self, place: Place) -> None:
        first = self._buffers[place][0]
        # A malformed record whose time is of another unit must not hold up those behind it.
        ts_ms = first.timestamp_ms if first.has_time else 0
        heapq.heappush(self._heap, (ts_ms, self._rank[place[0]], place[1], place))
