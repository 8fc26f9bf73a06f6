"""Keeps the time of a partition, as thousands of its clicks agree on it, so that no single producer can move it.

It is a low remedian of the times of clicks (Rousseeuw and Bassett, The remedian, JASA 1990). Idle users are removed by
it. It reads no wall clock and never goes back.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field

WIDTH = 32  # clicks in a row, rows in a block, and blocks looked at
# In rows and blocks the fourth lowest time counts: 29 of 32 have to be ahead before it is. Of the blocks it is the
# median, and missing ones count as long ago, so nothing below 16 x 29 x 29 clicks moves the clock ahead …
CLICKS_TO_MOVE = 13_456
CLICKS_TO_FOLLOW = 16_384  # … and so many in a row always move it
_FORMAT = -2  # first number of the bytes; the former format begins with a time or -1


@dataclass(slots=True)
class PartitionClock:
    """The time that most of the latest 32,768 clicks have reached; -1 until there are 16,384."""

    now_ms: int = -1
    row: list[int] = field(default_factory=list)  # latest times, fewer than WIDTH
    rows: list[int] = field(default_factory=list)  # one time for each full row, fewer than WIDTH
    blocks: deque[int] = field(default_factory=lambda: deque(maxlen=WIDTH))  # one for each full block, the latest

    def observe(self, ts_ms: int) -> None:
        """One click of this time was applied."""
        self.row.append(ts_ms)
        if len(self.row) < WIDTH:
            return
        self.rows.append(_low(self.row))
        self.row.clear()
        if len(self.rows) < WIDTH:
            return
        self.blocks.append(_low(self.rows))
        self.rows.clear()
        if len(self.blocks) >= WIDTH // 2:
            self.now_ms = max(self.now_ms, sorted(self.blocks)[-(WIDTH // 2)])

    def before(self, span_ms: int) -> int:
        """The time `span_ms` ago; -1, before all events, when that is not known or the span is 0 (for ever)."""
        return self.now_ms - span_ms if span_ms and self.now_ms >= 0 else -1

    def copy(self) -> PartitionClock:
        """A clock that can run on without this one."""
        return PartitionClock(self.now_ms, self.row.copy(), self.rows.copy(), self.blocks.copy())

    def encode(self) -> bytes:
        """Little-endian int64: format, `now_ms`, how many rows and blocks there are, rows, blocks, row (792 bytes)."""
        numbers = _FORMAT, self.now_ms, len(self.rows), len(self.blocks), *self.rows, *self.blocks, *self.row
        return struct.pack(f"<{len(numbers)}q", *numbers)

    @classmethod
    def decode(cls, data: bytes | None) -> PartitionClock:
        """Inverse of `encode`; None gives a clock that knows nothing, and the former format one that knows its time."""
        if not data:
            return cls()
        first, *numbers = struct.unpack(f"<{len(data) // 8}q", data)
        if first != _FORMAT:
            return cls(first)
        now_ms, rows, blocks, *times = numbers
        return cls(now_ms, times[rows + blocks :], times[:rows], deque(times[rows : rows + blocks], WIDTH))


def _low(times: list[int]) -> int:
    """The lowest but three of 32 times."""
    return sorted(times)[WIDTH // 8 - 1]
