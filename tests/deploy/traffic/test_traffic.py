"""What traffic sends and keeps to itself, and what time it is after the end of a timeline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from context.units import DAY_MS
from deploy.settings import load
from deploy.traffic.plan import TrafficPlan
from deploy.traffic.traffic import RECENT_MS, Traffic
from index.state.keys import CONTEXT_TAG, ITEMS_TAG, Keys, partition_of, partition_tag
from index.state.memory_store import MemoryStore
from index.state.records import CATALOGUE, EMBEDDER, POSITION, STATE
from index.state.store import StoreUnavailableError
from index.state.user_columns import UserState, encode_state
from streams.folder.records import SourceRecord
from streams.item_vectors import ItemVectors
from tests.deploy.traffic.test_player import LogInMemory, write_folder

MARK_MS = 1_700_000_000_000


def traffic_of(kind: str, log: LogInMemory, store: MemoryStore) -> Traffic:
    plan = TrafficPlan(kind, "/f", 5, "k", "/m", "/t", live=False)  # type: ignore[arg-type]
    return Traffic(plan, load({}), store, log, lambda folder: pytest.fail("no folder is read"))  # type: ignore[arg-type]


def profile(user: str, ts_ms: int) -> SourceRecord:
    return SourceRecord("users", user.encode(), b"{}", ts_ms)


async def forget(store: MemoryStore, user: str) -> None:
    tag = partition_tag(partition_of(user, load({}).partitions))
    await store.write(store.keys.user(tag, user), {STATE: encode_state(UserState(forgotten_ms=MARK_MS))})


def test_a_shop_that_opens_again_publishes_no_profiles() -> None:
    async def run() -> None:
        log, store, stop = LogInMemory(), MemoryStore(Keys("perseid")), asyncio.Event()
        for tag, topic in ((ITEMS_TAG, "catalog"), (CONTEXT_TAG, "context")):
            await store.write(store.keys.owner(tag), {f"pos:{topic}": b"1000000000"})
        subject = traffic_of("shop", log, store)
        await subject._run_shop(is_new=False, stop=stop)
        bodies = [orjson.loads(value or b"{}") for _, _, value, _ in log.records]
        assert len(bodies) > 1_000, "the catalogue as it stands now"
        assert not any("numeric" in body for body in bodies)

    asyncio.run(run())


def test_the_forgotten_get_no_profile_while_it_plays() -> None:
    async def run() -> None:
        store = MemoryStore(Keys("perseid"))
        await forget(store, "u1")
        shop, data = (traffic_of(kind, LogInMemory(), store) for kind in ("shop", "data"))
        assert await shop._is_forgotten(profile("u1", MARK_MS + 1))
        assert await data._is_forgotten(profile("u1", MARK_MS))
        assert not await data._is_forgotten(profile("u1", MARK_MS + 1)), "the shop of the data knows them again"
        assert not await shop._is_forgotten(profile("u2", MARK_MS + 1))
        assert not await shop._is_forgotten(SourceRecord("clickstream", b"u1", b"{}", MARK_MS + 1))

    asyncio.run(run())


def test_without_the_live_state_nobody_knows_who_was_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_: object) -> list[list[bytes | None]]:
        raise StoreUnavailableError("away")

    store = MemoryStore(Keys("perseid"))
    monkeypatch.setattr(store, "read", away)
    assert asyncio.run(traffic_of("shop", LogInMemory(), store)._is_forgotten(profile("u1", MARK_MS)))


START_S = 1_600_000_000
SPLIT_MS, END_MS = (START_S + 20) * 1000, (START_S + 30) * 1000


@pytest.fixture(autouse=True)
def _no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    async def identities(*_: object) -> dict[str, str]:
        return {}

    monkeypatch.setattr("deploy.traffic.traffic.LogLookup.identities", identities)


class Scene:
    """A folder of thirty seconds that ends at END_MS, played within one; a worker has applied whatever comes."""

    def __init__(self, path: Path, wall_ms: int, live: bool = True) -> None:
        rows = [f"u{n % 3},i{n % 4},view,{START_S + n}" for n in range(31)]
        items = [{"item_id": f"i{n}", "title": f"thing {n}"} for n in range(4)]
        if not (path / "small").exists():
            write_folder(path / "small", rows, items)
        self.path, self.wall_ms, self.live = path, wall_ms, live
        self.store = MemoryStore(Keys("perseid"))
        self.published: list[bytes] = []  # clocks, in order

    async def start(
        self, until: Callable[[Traffic], bool], wall_ms: int | None = None, live: bool | None = None
    ) -> Any:
        """Runs a traffic process until something is true of it; returns it and the facts that it leaves."""
        self.wall_ms, self.live = wall_ms or self.wall_ms, self.live if live is None else live
        log, stop = LogInMemory(), asyncio.Event()
        plan = TrafficPlan("data", str(self.path / "small"), SPLIT_MS, "k", "/m", "/t", speed=100.0, live=self.live)
        vectors = ItemVectors("m", [f"i{n}" for n in range(4)], np.eye(4, dtype=np.float32), [[]] * 4)
        settings = load({})
        subject = Traffic(plan, settings, self.store, log, lambda _: vectors, lambda: self.wall_ms)  # type: ignore[arg-type]
        for tag in (ITEMS_TAG, CONTEXT_TAG, *map(partition_tag, range(settings.partitions))):
            topics = ("catalog", "item-vectors", "context", "clickstream", "users")
            await self.store.write(self.store.keys.owner(tag), {f"pos:{topic}": b"1000000000" for topic in topics})
        for n in range(4):
            await self.store.write(self.store.keys.item(f"i{n}"), {POSITION: b"1", CATALOGUE: b"{}", EMBEDDER: b"m"})
        write = self.store.write

        async def noted(key: str, fields: Mapping[str, bytes]) -> None:
            if "clock_ms" in fields:
                self.published.append(fields["clock_ms"])
            await write(key, fields)

        self.store.write = noted  # type: ignore[method-assign]
        running = asyncio.create_task(subject.run(stop))
        try:
            async with asyncio.timeout(60):
                while not until(subject):
                    assert not running.done() or running.result() is None
                    await asyncio.sleep(0.01)
        finally:
            stop.set()
            await running
            self.store.write = write  # type: ignore[method-assign]
        facts = (await self.store.read([(self.store.keys.cluster(), ["clock_ms", "played_ms"])]))[0]
        return subject, *facts

    def ended(self, subject: Traffic) -> bool:
        """Whether the timeline has ended and its last clock is published."""
        return "clock" in subject.counters() and bool(self.published) and self._is_after(self.published[-1])

    def runs_on(self) -> bool:
        """Whether a clock after the end was published."""
        return bool(self.published) and int(self.published[-1]) > END_MS + 900

    def _is_after(self, clock: bytes) -> bool:
        return clock == b"" or int(clock) >= (END_MS if self.live else SPLIT_MS)


def test_what_is_loaded_is_counted_in_items_although_each_is_two_records(tmp_path: Path) -> None:
    async def run() -> None:
        shares: list[dict[str, float]] = []

        def seen(subject: Traffic) -> bool:
            if subject.phase == "loading items":
                shares.append(subject.counters()["loading"])
            return "clock" in subject.counters()

        await Scene(tmp_path, END_MS + RECENT_MS).start(seen)
        assert shares and {share["total"] for share in shares} == {4}
        assert max(share["done"] for share in shares) <= 4

    asyncio.run(run())


def test_after_a_recent_timeline_the_wall_clock_counts(tmp_path: Path) -> None:
    async def run() -> None:
        scene = Scene(tmp_path, END_MS + RECENT_MS)
        subject, clock, played = await scene.start(scene.ended)
        assert (clock, played, subject.phase) == (b"", str(END_MS).encode(), "timeline ended")
        assert subject.counters()["clock"] == (
            "The timeline ended at 2020-09-13 12:27 UTC: from here on the wall clock counts."
        )

    asyncio.run(run())


def test_the_clock_of_an_old_timeline_runs_on_from_its_end_and_says_so(tmp_path: Path) -> None:
    async def run() -> None:
        scene = Scene(tmp_path, END_MS + RECENT_MS + DAY_MS)
        subject, clock, played = await scene.start(lambda _: scene.runs_on())
        assert played == str(END_MS).encode() and END_MS + 900 < int(clock) < END_MS + 60_000
        said = subject.counters()["clock"]
        assert said.startswith("The timeline ended at 2020-09-13 12:27 UTC, 31 days ago;")
        assert [int(found) for found in scene.published] == sorted(map(int, scene.published)), "it never goes back"

    asyncio.run(run())


def test_a_restart_after_the_end_goes_on_with_the_clock_that_was(tmp_path: Path) -> None:
    async def run() -> None:
        scene = Scene(tmp_path, END_MS + RECENT_MS + DAY_MS)
        await scene.start(lambda _: scene.runs_on())
        before = int(scene.published[-1])
        scene.published.clear()
        _, clock, played = await scene.start(scene.ended)
        assert int(clock) >= min(map(int, scene.published)) >= before and played == str(END_MS).encode()

    asyncio.run(run())


def test_the_wall_clock_stays_when_the_timeline_has_become_old(tmp_path: Path) -> None:
    async def run() -> None:
        scene = Scene(tmp_path, END_MS + DAY_MS)
        await scene.start(scene.ended)
        scene.published.clear()
        _, clock, _ = await scene.start(scene.ended, wall_ms=END_MS + 2 * RECENT_MS)
        assert clock == b"" and set(scene.published) == {b""}

    asyncio.run(run())


def test_without_traffic_time_goes_on_from_the_split_and_what_follows_is_played_later(tmp_path: Path) -> None:
    async def run() -> None:
        scene = Scene(tmp_path, END_MS + 2 * RECENT_MS, live=False)
        subject, clock, played = await scene.start(lambda subject: scene.ended(subject) and len(scene.published) > 2)
        assert played == str(SPLIT_MS).encode() and int(clock) > SPLIT_MS + 900
        assert subject.counters()["clock"].startswith("The timeline stands at 2020-09-13 12:27 UTC, 60 days ago;")
        subject, _, played = await scene.start(scene.ended, live=True)
        assert played == str(END_MS).encode() and subject.player.last_ms == END_MS

    asyncio.run(run())


def test_a_state_of_a_former_build_goes_on_at_its_clock(tmp_path: Path) -> None:
    async def run() -> None:
        scene = Scene(tmp_path, END_MS + 2 * RECENT_MS)
        facts = {"loaded": b"k", "clock_ms": str(END_MS - 5_000).encode()}
        await scene.store.write(scene.store.keys.cluster(), facts)
        await scene.start(scene.ended)
        assert int(scene.published[0]) == END_MS - 5_000
        assert all(int(found) >= SPLIT_MS for found in scene.published)

    asyncio.run(run())


def test_no_timeline_has_a_clock_ahead_of_the_walls(tmp_path: Path) -> None:
    async def run() -> None:
        wall_ms = END_MS - 200_000  # within what clocks may run ahead; the folder was made on another machine
        scene = Scene(tmp_path, wall_ms)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("streams.folder.reader.latest_ms", lambda _: wall_ms + 300_000)
            _, clock, _ = await scene.start(scene.ended)
        assert clock == b"" and max(int(found or 0) for found in scene.published) <= wall_ms

    asyncio.run(run())
