"""Sends a timeline to Kafka at its own pace, and never faster than it is applied.

The embedded broker keeps only a few MB per partition and drops what is older, so a record counts as delivered when a
worker's position has passed it. A player may own the clock of meaning: the timeline's time, in Redis.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from deploy.runtime.producer import Acknowledged, EventProducer, Extras, at_time
from index.state.store import LiveStore, StoreUnavailableError
from streams.events import CONSUMED, tag_of
from streams.folder.records import SourceRecord

PARTITION_BYTES = 1_500_000  # unapplied bytes per partition: a third of what the embedded broker keeps
_RECORD_BYTES = 120  # what the log adds to key and value, at most
_POLL_S = 0.02  # a look at the positions costs one round trip
_CLOCK_S = 0.2  # the published clock may be behind by this much
LONGEST_PAUSE_S = 2.0  # empty stretches of a timeline are skipped: nobody watches a shop at night
_RUN_ON_S = 1.0  # nothing is sent any more
_BURST = 500  # records sent between two looks at clock and stop signal


@dataclass(slots=True)
class Flight:
    """Records of one partition that are not known to be taken yet, oldest first: (acknowledgement, bytes)."""

    records: deque[tuple[Future[Acknowledged], int]] = field(default_factory=deque)
    size: int = 0

    def add(self, future: Future[Acknowledged], size: int) -> None:
        self.records.append((future, size))
        self.size += size

    def passed(self, position: int) -> None:
        """Drops records below a position from the front; one that Kafka refused raises DeliveryError here."""
        while self.records and self.records[0][0].done():
            future, size = self.records[0]
            if future.result()[1] >= position:
                return
            self.records.popleft()
            self.size -= size


class Pacer:
    """Knows how much of what was sent has not been applied yet.

    Args:
        store: where workers keep their positions.
        limit: bytes that may be unapplied per partition.

    `logs` names the log of each topic that is sent to: a position in another log (an earlier broker's, until a worker
    has claimed the new one) says nothing. Topics without an entry are not checked.
    """

    def __init__(self, store: LiveStore, limit: int = PARTITION_BYTES) -> None:
        self._store, self._limit = store, limit
        self.logs: Mapping[str, str] = {}
        self._flights: dict[tuple[str, int], Flight] = {}
        self._looked_s = 0.0

    def note(self, topic: str, partition: int, size: int, future: Future[Acknowledged]) -> None:
        """A record is on its way to this partition. Topics that no worker applies are not paced."""
        if topic in CONSUMED:
            self._flights.setdefault((topic, partition), Flight()).add(future, size)

    @property
    def unapplied(self) -> int:
        """Records sent and not yet seen to be applied."""
        return sum(len(flight.records) for flight in self._flights.values())

    def full(self, topic: str, partition: int) -> bool:
        """Whether this partition should get nothing more for now."""
        flight = self._flights.get((topic, partition))
        return flight is not None and flight.size > self._limit

    async def room(self, topic: str, partition: int, stop: asyncio.Event) -> None:
        """Waits until the partition may get another record, or `stop`. DeliveryError: Kafka refused an earlier one."""
        while self.full(topic, partition) and not stop.is_set():
            await self.look()
            if self.full(topic, partition):
                await asyncio.sleep(_POLL_S)

    async def drained(self, stop: asyncio.Event) -> None:
        """Waits until everything sent has been applied, or until `stop`."""
        while self.unapplied and not stop.is_set():
            await self.look()
            await asyncio.sleep(_POLL_S)

    async def look(self, every_s: float = 0.0) -> None:
        """Forgets what the positions have passed, if the last look is `every_s` old. Needs no reachable store."""
        if time.monotonic() - self._looked_s < every_s:
            return
        self._looked_s = time.monotonic()
        waiting = [where for where, flight in self._flights.items() if flight.records]
        keys = self._store.keys
        tags = [tag_of(topic, partition) for topic, partition in waiting]
        try:
            found = await self._store.read(
                [(keys.owner(tag), [f"pos:{t}", f"log:{t}"]) for tag, (t, _) in zip(tags, waiting, strict=True)]
            )
        except StoreUnavailableError:
            return
        for where, (position, log) in zip(waiting, found, strict=True):
            expected = self.logs.get(where[0])
            if expected is None or log == expected.encode():
                self._flights[where].passed(int(position or 0))


class Timeline:
    """Time that runs `speed` times as fast as a monotonic clock, and skips stretches in which nothing happens."""

    def __init__(self, start_ms: int, speed: float, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        if not speed > 0:
            raise ValueError(f"speed {speed} must be above 0; 1 plays in real time")
        self._speed, self._now_s = speed, monotonic_s
        self._start_ms, self._began_s = float(start_ms), monotonic_s()

    def now_ms(self) -> int:
        return int(self._start_ms + (self._now_s() - self._began_s) * 1000 * self._speed)

    def wait_s(self, ts_ms: int) -> float:
        """Seconds until `ts_ms`; a long pause is cut by moving the clock forward."""
        wait_s = (ts_ms - self.now_ms()) / 1000 / self._speed
        if wait_s > LONGEST_PAUSE_S:
            self._start_ms += (wait_s - LONGEST_PAUSE_S) * 1000 * self._speed
            wait_s = LONGEST_PAUSE_S
        return max(0.0, wait_s)


async def _never(_record: SourceRecord) -> bool:
    return False


class Player:
    """Sends records in order.

    Args:
        partition_of: home partition of a record (topic, key); records are sent there explicitly.
        stamp: put the timeline's time on records as their Kafka timestamp; otherwise Kafka's own clock does.
        is_out: whether a record of the timeline is not to be played.
    """

    def __init__(
        self,
        producer: EventProducer,
        pacer: Pacer,
        partition_of: Callable[[str, bytes], int],
        *,
        stamp: bool = False,
        is_out: Callable[[SourceRecord], Awaitable[bool]] = _never,
    ) -> None:
        self._producer, self._pacer, self._partition_of, self._stamp = producer, pacer, partition_of, stamp
        self._is_out = is_out
        self.sent = 0
        self.last_ms = 0

    async def load(self, records: Iterable[SourceRecord], stop: asyncio.Event) -> None:
        """Sends all records as fast as they are applied; returns when they are, or when stopped.

        Raises DeliveryError when Kafka refused a record.
        """
        for record in records:
            if stop.is_set():
                return
            await self.send(record, stop)
        await self._pacer.drained(stop)

    async def play(
        self, records: Iterator[SourceRecord], timeline: Timeline, stop: asyncio.Event, clock: Clock | None = None
    ) -> None:
        """Sends each record when the timeline reaches its time, until they end or `stop` is set."""
        for record in records:
            while (wait_s := timeline.wait_s(record.timestamp_ms)) > 0 and not stop.is_set():
                await pause(stop, min(wait_s, _CLOCK_S))
                await self._pacer.look(every_s=1.0)
                if clock is not None:
                    await clock.play(timeline.now_ms())
            if stop.is_set():
                return
            if not await self._is_out(record):
                await self.send(record, stop)

    async def send(self, record: SourceRecord, stop: asyncio.Event) -> tuple[Future[Acknowledged], int] | None:
        """Sends one record once its partition has room; its acknowledgement and bytes, None when stopped before."""
        partition = self._partition_of(record.topic, record.key)
        await self._pacer.room(record.topic, partition, stop)
        if stop.is_set():
            return None
        extras: Extras = at_time(record.timestamp_ms) if self._stamp else {}
        while True:
            future = self._producer.enqueue(record.topic, record.key, record.value, partition, **extras)
            if future is not None:
                break
            await asyncio.sleep(_POLL_S)
        size = len(record.key) + len(record.value or b"") + _RECORD_BYTES
        self._pacer.note(record.topic, partition, size, future)
        self.sent += 1
        self.last_ms = max(self.last_ms, record.timestamp_ms)
        if self.sent % _BURST == 0:
            await self._pacer.look()
        return future, size


class Clock:
    """Publishes what time it is in a timeline, for everybody who needs a clock of meaning, and how far it was played.

    The two differ once the timeline has ended: time goes on then, and what is played later is what comes after the end.
    """

    def __init__(self, store: LiveStore, wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._store, self._wall_ms = store, wall_ms
        self._published_s = 0.0

    async def play(self, now_ms: int) -> None:
        """The timeline is played up to a time, which is now; written at most every fifth of a second.

        An unreachable store is tried again next time.
        """
        if time.monotonic() - self._published_s >= _CLOCK_S:
            now_ms = min(now_ms, self._wall_ms())
            await self._write(str(now_ms), now_ms)

    async def run_on(self, end_ms: int, now_ms: int | None, stop: asyncio.Event) -> None:
        """From the end of what is played on, time passes as everywhere, from `now_ms` or (None) by the wall clock."""
        timeline = None if now_ms is None else Timeline(now_ms, 1.0)
        while not stop.is_set():
            await self._write("" if timeline is None else str(timeline.now_ms()), end_ms)
            await pause(stop, _RUN_ON_S)

    async def _write(self, clock_ms: str, played_ms: int) -> None:
        facts = {"clock_ms": clock_ms.encode(), "played_ms": str(played_ms).encode()}
        try:
            await self._store.write(self._store.keys.cluster(), facts)
            self._published_s = time.monotonic()
        except StoreUnavailableError:
            pass


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Waits so long, or until `stop`."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        pass
