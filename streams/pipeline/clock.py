"""The clock of one user partition: a time that many applied events agree on, a pure function of the log.

It moves to a time once the last `AGREEING` applied clicks all reached it, and never back. So one producer whose clock
runs ahead, in its event times and in its Kafka timestamps, cannot make a partition's users or counts look old. It lags
behind by what is late among the last few events, and by those few events in a partition that is hardly used.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field

# With a fifth of the events from producers that run ahead, 32 of them in a row are one in 10^22.
AGREEING = 32


@dataclass(slots=True)
class PartitionClock:
    """`now_ms` is -1 until `AGREEING` clicks were applied."""

    now_ms: int = -1
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=AGREEING))

    def see(self, ts_ms: int) -> None:
        """One click of this time was applied."""
        self.recent.append(ts_ms)
        if len(self.recent) == AGREEING:
            self.now_ms = max(self.now_ms, min(self.recent))

    def before(self, span_ms: int) -> int:
        """The time `span_ms` ago; -1, before all events, when that is not known or the span is 0 (for ever)."""
        return self.now_ms - span_ms if span_ms and self.now_ms >= 0 else -1

    def copy(self) -> PartitionClock:
        """A clock that can run on without this one."""
        return PartitionClock(self.now_ms, deque(self.recent, AGREEING))

    def encode(self) -> bytes:
        """Little-endian int64: `now_ms`, then the recent times, oldest first (264 bytes)."""
        return struct.pack(f"<{1 + len(self.recent)}q", self.now_ms, *self.recent)

    @classmethod
    def decode(cls, data: bytes | None) -> PartitionClock:
        """Inverse of `encode`; None gives a clock that knows nothing."""
        if not data:
            return cls()
        now_ms, *recent = struct.unpack(f"<{len(data) // 8}q", data)
        return cls(now_ms, deque(recent, AGREEING))
