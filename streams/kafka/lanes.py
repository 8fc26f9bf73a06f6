"""Queues fetched records on their way to a serial agent, in the lanes that an engine names.

A flood of clicks thus does not delay a stock-out. Lanes are bounded in number and in bytes; a full one's partitions are
not read, which is all the back pressure there is: Kafka keeps the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from streams.events import Record

MAX_BYTES = 32 << 20  # of waiting records: some thousand usual ones, or some dozen of the largest
USUAL_BATCH = 512  # records: a few hundred users for the encoder
BATCH_S = 0.5  # a larger batch may take so long: what it delays would have waited for the backlog before it anyway


@dataclass(slots=True)
class BatchSize:
    """How many records are applied in one write: USUAL_BATCH, or as many as the last full batch did in BATCH_S.

    A user with several events in a batch is encoded and written once, so a backlog is applied faster in large ones.
    """

    records: int = USUAL_BATCH

    def took(self, records: int, wanted: int, seconds: float) -> None:
        """A batch of `records` was applied; fewer than `wanted` say nothing: a part of the time is the same for any."""
        if records >= wanted:
            self.records = max(USUAL_BATCH, int(records * BATCH_S / max(seconds, 1e-3)))


@dataclass(slots=True)
class Lane:
    """Records that wait (`pending`), and those that are being applied (`working`)."""

    topics: frozenset[str]
    wake: Callable[[], None]  # wakes the agent
    max_pending: int  # records
    tag_of: Callable[[str, int], str]  # of a topic's partition
    pending: list[Record] = field(default_factory=list)
    working: list[Record] = field(default_factory=list)
    waiting_bytes: int = 0

    def put(self, records: Sequence[Record]) -> None:
        """Takes over fetched records and wakes the agent."""
        self.pending += records
        self.waiting_bytes += sum(record.size for record in records)
        self.wake()

    def take(self, count: int) -> list[Record]:
        """The next records to apply; they count as being applied until the next call or `done`."""
        self.working, self.pending = self.pending[:count], self.pending[count:]
        self.waiting_bytes -= sum(record.size for record in self.working)
        return self.working

    def done(self) -> None:
        """What was taken is applied."""
        self.working = []

    @property
    def full(self) -> bool:
        """Whether nothing more should be read for now."""
        return len(self.pending) >= self.max_pending or self.waiting_bytes >= MAX_BYTES

    def forget(self, tags: set[str]) -> None:
        """Drops what waits of these tags, and wakes the agent for the rest: a rebalance may have taken its wake."""
        self.pending = [record for record in self.pending if self.tag_of(record.topic, record.partition) not in tags]
        self.waiting_bytes = sum(record.size for record in self.pending)
        if self.pending:
            self.wake()

    def tags(self) -> set[str]:
        """Of which something waits or is being applied."""
        return {self.tag_of(record.topic, record.partition) for record in (*self.pending, *self.working)}
