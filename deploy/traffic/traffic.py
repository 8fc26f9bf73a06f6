"""Sends the shop as it stands and its users' histories, then live traffic, as `perseid up` plans.

A generated shop lives at wall time, a data folder by its timeline's clock, which runs on after the end; after that of a
recent one the wall's counts. The live state notes what was loaded and played.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from context.units import DAY_MS
from deploy.runtime.process import until_answered
from deploy.runtime.producer import EventProducer
from deploy.settings import Settings
from deploy.shop.shop import Shop, ShopRecord
from deploy.traffic.backlog import Backlog
from deploy.traffic.live_records import EVENTS_PER_S, live_records, usual_speed
from deploy.traffic.plan import TrafficPlan
from deploy.traffic.player import Clock, Pacer, Player, Timeline
from deploy.traffic.share import Share
from index.state.keys import partition_of, partition_tag
from index.state.records import STATE
from index.state.store import LiveStore, StoreUnavailableError
from index.state.user_columns import decode_state
from streams.events import CATALOG, CLICKSTREAM, CONSUMED, CONTEXT, ITEM_VECTORS, PARTITIONED, USERS
from streams.folder.reader import Folder, read_folder
from streams.folder.records import SourceRecord, popular_first, records
from streams.item_vectors import ItemVectors
from streams.kafka.log_identity import LogLookup

HISTORY_EVENTS = 200  # of a user: the window, more would be cut away
MOST_EVENTS = 150_000  # of all users together, so that a large folder does not delay the start by minutes
# The live state counts popularity for 30 days: of what is older nothing would be left by the wall clock.
RECENT_MS = 30 * DAY_MS
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
        self._left_out: list[str] = []
        self._clock, self._clock_said = Clock(store, now_ms), ""
        self._loading, self._records, self._applied_before = Share(), 0, 0
        self.pacer = Pacer(store)
        stamp = plan.kind == "data"
        self.player = Player(producer, self.pacer, self._partition, stamp=stamp, is_out=self._is_forgotten)
        self.backlog = Backlog(store, self.player)

    def counters(self) -> dict[str, Any]:
        """For the heartbeat."""
        found: dict[str, Any] = {"phase": self.phase, "sent": self.player.sent, "unapplied": self.pacer.unapplied}
        if self._loading.total:
            records = self._applied() - self._applied_before
            found["loading"] = self._loading.report(min(records, self._records) * self._loading.total // self._records)
        if self._left_out:
            found["left_out"] = self._left_out
        if self._clock_said:
            found["clock"] = self._clock_said
        return found | self.backlog.report()

    def _begin(self, phase: str, total: int = 0, records: int = 0) -> None:
        """A phase in which `total` things are loaded, by as many records or by `records`."""
        self.phase, self._applied_before, self._records = phase, self._applied(), records or total
        self._loading.begin(total)

    def _applied(self) -> int:
        return self.player.sent - self.pacer.unapplied

    async def run(self, stop: asyncio.Event) -> None:
        """Loads what the live state lacks, then plays until `stop`.

        Raises:
            DeliveryError: Kafka refused a record.
            ValueError: the folder cannot be read.
        """
        lookup = LogLookup(self._settings.kafka_config())
        self.pacer.logs = {topic: str(log) for topic, log in (await lookup.identities(CONSUMED)).items()}
        cluster = self._store.keys.cluster()
        read = partial(self._store.read, [(cluster, ["loaded", "clock_ms", "played_ms"])])
        ((loaded, clock, played),) = await until_answered("see what was loaded", read)
        is_new = loaded != self._plan.key.encode()
        if self._plan.kind == "data":
            known = (None, None) if is_new else (clock, played or clock)  # states of former builds have one time only
            await self._run_folder(is_new, *known, stop)
        else:
            await self._run_shop(is_new, stop)
        await stop.wait()

    async def _run_shop(self, is_new: bool, stop: asyncio.Event) -> None:
        if is_new:
            await self._load(await self._read(), stop)  # the folder is let go here: live traffic does not need it
        else:
            self._begin("opening the shop")
            await self._open_shop(stop, {CATALOG, CONTEXT})  # who was forgotten meanwhile gets no profile again
        await self._play_shop(stop)

    async def _run_folder(self, is_new: bool, clock: bytes | None, played: bytes | None, stop: asyncio.Event) -> None:
        folder = await self._read()
        self._left_out = list(folder.left_out.lines())
        if is_new:
            await self._load(folder, stop)
        played_ms = int(played) if played else self._plan.split_ms
        backlog = self.backlog.send(folder, popular_first(folder, played_ms), stop)
        live = self._live(folder, clock, played_ms, stop)
        del folder  # which is large: it is let go when both are done with it
        await asyncio.gather(live, backlog)

    async def _read(self) -> Folder:
        found = await asyncio.to_thread(read_folder, Path(self._plan.folder), self._settings.rules())
        return replace(found, impressions=[])  # which are many and never sent

    async def _load(self, folder: Folder, stop: asyncio.Event) -> None:
        vectors = await asyncio.to_thread(self._vectors, folder)
        split_ms, shift_ms = self._plan.split_ms, 0
        items = len(vectors.item_ids)
        self._begin("loading items", items, 2 * items + len(folder.profiles))
        if self._plan.kind == "data":
            await self._clock.play(split_ms)
            await self.player.load(initial_records(folder, split_ms, vectors), stop)
        else:
            # An old generated history is moved by whole days, so that it ends less than a day ago.
            shift_ms = max(0, self._now_ms() - split_ms) // DAY_MS * DAY_MS
            await self.player.load(records(folder, vectors=vectors, topics={ITEM_VECTORS}), stop)
            await self._open_shop(stop, {USERS, CATALOG, CONTEXT})
        clicks = await asyncio.to_thread(lambda: list(later(histories(folder, split_ms), shift_ms)))
        self._begin("loading histories", len(clicks))
        await self.player.load(clicks, stop)
        if not stop.is_set():
            loaded = {"loaded": self._plan.key.encode()}
            await until_answered("note what is loaded", partial(self._store.write, self._store.keys.cluster(), loaded))

    async def _open_shop(self, stop: asyncio.Event, topics: Collection[str]) -> None:
        """Profiles, catalogue and contexts as they stand now."""
        snapshot = Shop(self._plan.seed).snapshot(self._now_ms())
        await self.player.load((_sent(record) for record in snapshot if record.topic in topics), stop)

    async def _play_shop(self, stop: asyncio.Event) -> None:
        self._begin("live" if self._plan.live else "no traffic")
        if self._plan.live:
            start_ms, rate = self._now_ms(), EVENTS_PER_S * (self._plan.speed or 1.0)
            live = (_sent(record) for record in Shop(self._plan.seed).live(start_ms, rate))
            await self.player.play(live, Timeline(start_ms, 1.0), stop)

    async def _live(self, folder: Folder, clock: bytes | None, played_ms: int, stop: asyncio.Event) -> None:
        """Plays what was not played yet; then time goes on, by the clock that `clock` was before if nothing was new."""
        is_over = not self._plan.live or next(live_records(folder, played_ms + 1), None) is None
        end_ms = await self._play_folder(folder, played_ms, is_over, stop)
        del folder
        if stop.is_set():
            return
        is_recent = self._now_ms() - end_ms <= RECENT_MS or (is_over and clock == b"")
        self._clock_said = _clock_after(end_ms, self._now_ms(), is_recent, self._plan.live)
        await self._clock.run_on(end_ms, None if is_recent else max(end_ms, int(clock or 0)), stop)

    async def _play_folder(self, folder: Folder, played_ms: int, is_over: bool, stop: asyncio.Event) -> int:
        """Plays from a time on; returns the end. What is only played again moves no clock."""
        if not is_over:
            await self._clock.play(played_ms)
        self._begin("live" if self._plan.live else "no traffic")
        if not self._plan.live:
            return played_ms
        speed = self._plan.speed or usual_speed(folder, self._plan.split_ms)
        start_ms = max(self._plan.split_ms, int(played_ms - _OVERLAP_MS * speed))
        clock = None if is_over else self._clock
        await self.player.play(live_records(folder, start_ms), Timeline(start_ms, speed), stop, clock)
        if not stop.is_set():
            self.phase = "timeline ended"
        return max(played_ms, self.player.last_ms)

    async def _is_forgotten(self, record: SourceRecord) -> bool:
        """Whether this is the profile of a user who was forgotten since its time, in a generated shop ever.

        So it is taken to be while the live state is away: a lost profile does less harm.
        """
        if record.topic != USERS:
            return False
        tag = partition_tag(self._partition(USERS, record.key))
        try:
            (state,) = (await self._store.read([(self._store.keys.user(tag, record.key.decode()), [STATE])]))[0]
        except StoreUnavailableError:
            return True
        return decode_state(state).forgotten_ms >= (record.timestamp_ms if self._plan.kind == "data" else 0)

    def _partition(self, topic: str, key: bytes) -> int:
        return partition_of(key.decode(), self._settings.partitions) if topic in PARTITIONED else 0


def initial_records(folder: Folder, split_ms: int, vectors: ItemVectors) -> Iterator[SourceRecord]:
    """Vectors, their items, profiles and contexts as they stand at a time; items without a vector come later."""
    yield from records(folder, None, split_ms, vectors=vectors, topics={ITEM_VECTORS})
    embedded = {item_id.encode() for item_id in vectors.item_ids}
    items = records(folder, None, split_ms, topics={CATALOG})
    yield from (record for record in items if record.key in embedded)
    yield from records(folder, None, split_ms, topics={USERS})
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


def _clock_after(end_ms: int, now_ms: int, is_recent: bool, live: bool) -> str:
    """What is said of the clock from the end of a timeline on."""
    when = f"{datetime.fromtimestamp(end_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    ends = f"The timeline ended at {when}" if live else f"The timeline stands at {when}"
    if is_recent:
        return f"{ends}: from here on the wall clock counts."
    days = (now_ms - end_ms) // DAY_MS
    return (
        f"{ends}, {days:,} days ago; its clock runs on from there, as by the wall clock all of it would be over. An "
        "event of today counts as now; a promotion or an item begins and ends by that clock, `now` in GET /v1/status."
    )


def _sent(record: ShopRecord) -> SourceRecord:
    value = None if record.value is None else orjson.dumps(record.value)
    return SourceRecord(record.topic, record.key.encode(), value, record.ts_ms)
