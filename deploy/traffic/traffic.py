"""Sends the shop as it stands and its users' histories, then live traffic, as `perseid up` plans.

A generated shop lives at wall time; a data folder is played on its own timeline, whose time is published as the clock
of meaning. What was loaded into a live state is noted there, so a restart goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from context.units import DAY_MS
from deploy.runtime.producer import EventProducer
from deploy.settings import Settings
from deploy.shop.shop import Shop, ShopRecord
from deploy.traffic.plan import TrafficPlan
from deploy.traffic.player import LONGEST_PAUSE_S, Clock, Pacer, Player, Timeline
from index.state.keys import partition_of
from index.state.store import LiveStore
from streams.events import CATALOG, CLICKSTREAM, CONSUMED, CONTEXT, ITEM_VECTORS, PARTITIONED, USERS
from streams.folder.reader import Folder, read_folder
from streams.folder.records import SourceRecord, records
from streams.item_vectors import ItemVectors
from streams.kafka.log_identity import LogLookup

HISTORY_EVENTS = 200  # of a user: the window, more would be cut away
MOST_EVENTS = 150_000  # of all users together, so that a large folder does not delay the start by minutes
_EVENTS_PER_S = 20.0  # live traffic that one can follow by eye and that leaves two cores mostly idle
_OVERLAP_MS = 10_000  # real milliseconds played again after a restart; what was applied is recognised by its event id


class Traffic:
    """Carries out a plan.

    Args:
        vectors: text vectors of the folder's known items.
        now_ms: wall time.
    """

    def __init__(
        self,
        plan: TrafficPlan,
        settings: Settings,
        store: LiveStore,
        producer: EventProducer,
        vectors: Callable[[Folder], ItemVectors],
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._plan, self._settings, self._store, self._producer = plan, settings, store, producer
        self._vectors, self._now_ms = vectors, now_ms
        self.phase = "reading"
        self.pacer = Pacer(store)
        self.player = Player(producer, self.pacer, self._partition, stamp=plan.kind == "data")

    def counters(self) -> dict[str, Any]:
        """For the heartbeat."""
        return {"phase": self.phase, "sent": self.player.sent, "unapplied": self.pacer.unapplied}

    async def run(self, stop: asyncio.Event) -> None:
        """Loads what the live state lacks, then plays until `stop`.

        Raises:
            DeliveryError: Kafka refused a record.
            ValueError: the folder cannot be read.
        """
        lookup = LogLookup(self._settings.kafka_config())
        self.pacer.logs = {topic: str(log) for topic, log in (await lookup.identities(CONSUMED)).items()}
        folder = await asyncio.to_thread(read_folder, Path(self._plan.folder), self._settings.rules())
        cluster = self._store.keys.cluster()
        loaded, clock_ms = (await self._store.read([(cluster, ["loaded", "clock_ms"])]))[0]
        if loaded != self._plan.key.encode():
            await self._load(folder, stop)
            if not stop.is_set():
                await self._store.write(cluster, {"loaded": self._plan.key.encode()})
        elif self._plan.kind == "shop":
            self.phase = "opening the shop"
            await self._open_shop(stop)
        if self._plan.kind == "data":
            await self._play_folder(folder, int(clock_ms) if clock_ms else self._plan.split_ms, stop)
        else:
            await self._play_shop(stop)
        await stop.wait()

    async def _load(self, folder: Folder, stop: asyncio.Event) -> None:
        self.phase = "loading items"
        vectors = await asyncio.to_thread(self._vectors, folder)
        split_ms, shift_ms = self._plan.split_ms, 0
        if self._plan.kind == "data":
            await Clock(self._store).publish(split_ms)
            await self.player.load(initial_records(folder, split_ms, vectors), stop)
        else:
            # An old generated history is moved by whole days, so that it ends less than a day ago.
            shift_ms = max(0, self._now_ms() - split_ms) // DAY_MS * DAY_MS
            await self.player.load(records(folder, vectors=vectors, topics={ITEM_VECTORS}), stop)
            await self._open_shop(stop)
        self.phase = "loading histories"
        await self.player.load(later(histories(folder, split_ms), shift_ms), stop)

    async def _open_shop(self, stop: asyncio.Event) -> None:
        """Profiles, catalogue and contexts as they stand now."""
        snapshot = Shop(self._plan.seed).snapshot(self._now_ms())
        await self.player.load((_sent(record) for record in snapshot), stop)

    async def _play_shop(self, stop: asyncio.Event) -> None:
        self.phase = "live" if self._plan.live else "no traffic"
        if self._plan.live:
            start_ms, rate = self._now_ms(), _EVENTS_PER_S * (self._plan.speed or 1.0)
            live = (_sent(record) for record in Shop(self._plan.seed).live(start_ms, rate))
            await self.player.play(live, Timeline(start_ms, 1.0), stop)

    async def _play_folder(self, folder: Folder, clock_ms: int, stop: asyncio.Event) -> None:
        clock = Clock(self._store)
        await clock.publish(clock_ms)
        self.phase = "live" if self._plan.live else "no traffic"
        if not self._plan.live:
            return
        speed = self._plan.speed or usual_speed(folder, self._plan.split_ms)
        start_ms = max(self._plan.split_ms, int(clock_ms - _OVERLAP_MS * speed))
        await self.player.play(records(folder, start_ms), Timeline(start_ms, speed), stop, clock)
        if not stop.is_set():
            self.phase = "timeline ended"

    def _partition(self, topic: str, key: bytes) -> int:
        return partition_of(key.decode(), self._settings.partitions) if topic in PARTITIONED else 0


def initial_records(folder: Folder, split_ms: int, vectors: ItemVectors) -> Iterator[SourceRecord]:
    """Items, vectors, profiles and contexts as they stand at a time: vectors first, so that no item comes without."""
    for topic in (ITEM_VECTORS, CATALOG, USERS):
        yield from records(folder, None, split_ms, vectors=vectors, topics={topic})
    newest = {record.key: record for record in records(folder, None, split_ms, topics={CONTEXT})}
    yield from newest.values()


def histories(
    folder: Folder, split_ms: int, per_user: int = HISTORY_EVENTS, most: int = MOST_EVENTS
) -> Iterator[SourceRecord]:
    """Each user's latest events before a time, user by user: a window is then encoded once and not event by event."""
    events = folder.events
    stop = events.before(split_ms)
    start = max(0, stop - most)
    order = start + np.argsort(events.users[start:stop], kind="stable")  # by (user, time)
    users = events.users[order]
    ends = np.searchsorted(users, users, side="right")
    kept = set(order[ends - np.arange(len(order)) <= per_user].tolist())
    if not kept:
        return
    of_user: dict[bytes, list[SourceRecord]] = {}
    start_ms = int(events.ts_ms[start])
    first = events.before(start_ms)
    for at, record in enumerate(records(folder, start_ms, split_ms, topics={CLICKSTREAM}), first):
        if at in kept:
            of_user.setdefault(record.key, []).append(record)
    for found in of_user.values():
        yield from found


def later(clicks: Iterator[SourceRecord], by_ms: int) -> Iterator[SourceRecord]:
    """The clicks as if they had happened `by_ms` later."""
    for click in clicks:
        body = orjson.loads(click.value or b"{}")
        body["ts_ms"] += by_ms
        yield SourceRecord(click.topic, click.key, orjson.dumps(body), click.timestamp_ms + by_ms)


def usual_speed(folder: Folder, split_ms: int) -> float:
    """The speed at which the rest of a timeline brings about twenty events a second, long pauses cut."""
    gaps_s = np.diff(folder.events.ts_ms[folder.events.before(split_ms) :]) / 1000
    if not len(gaps_s):
        return 1.0
    slow, fast = 1.0, 1e9
    for _ in range(60):  # halving in logarithms: far more exact than needed
        speed = (slow * fast) ** 0.5
        lasts_s = np.minimum(gaps_s / speed, LONGEST_PAUSE_S).sum()
        slow, fast = (speed, fast) if lasts_s > len(gaps_s) / _EVENTS_PER_S else (slow, speed)
    return slow


def _sent(record: ShopRecord) -> SourceRecord:
    value = None if record.value is None else orjson.dumps(record.value)
    return SourceRecord(record.topic, record.key.encode(), value, record.ts_ms)
