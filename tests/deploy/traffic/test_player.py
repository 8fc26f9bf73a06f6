"""The player: pace by what is applied, its own timeline, the published clock; and what traffic sends at the start."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from deploy.runtime.producer import DeliveryError
from deploy.traffic.live_records import usual_speed
from deploy.traffic.player import Clock, Pacer, Player, Timeline
from deploy.traffic.traffic import histories, initial_records, later
from index.state.keys import ITEMS_TAG, Keys, partition_tag
from index.state.memory_store import MemoryStore
from streams.folder.reader import Folder, read_folder
from streams.folder.records import SourceRecord
from streams.item_vectors import ItemVectors

TS_MS = 1_700_000_000_000


class LogInMemory:
    """Takes what a player sends and gives offsets; refuses from `fail_at` on."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.records: list[tuple[str, int, bytes | None, int | None]] = []
        self.fail_at = fail_at

    def enqueue(
        self,
        topic: str,
        key: bytes,
        value: bytes | None,
        partition: int,
        *,
        timestamp_ms: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> Future[tuple[int, int]]:
        future: Future[tuple[int, int]] = Future()
        if self.fail_at is not None and len(self.records) >= self.fail_at:
            future.set_exception(DeliveryError("refused"))
            return future
        offset = sum(1 for name, number, _, _ in self.records if (name, number) == (topic, partition))
        self.records.append((topic, partition, value, timestamp_ms))
        future.set_result((partition, offset))
        return future


def clicks(count: int, step_ms: int = 1) -> list[SourceRecord]:
    return [SourceRecord("clickstream", b"u", b"x" * 80, TS_MS + n * step_ms) for n in range(count)]


def player(log: LogInMemory, store: MemoryStore, limit: int = 1000, stamp: bool = False) -> tuple[Player, Pacer]:
    pacer = Pacer(store, limit)
    return Player(log, pacer, lambda topic, key: 0, stamp=stamp), pacer  # type: ignore[arg-type]


def test_a_load_never_has_more_unapplied_than_the_limit() -> None:
    async def run() -> None:
        log, store, stop = LogInMemory(), MemoryStore(Keys("t")), asyncio.Event()
        subject, _pacer = player(log, store)
        loading = asyncio.create_task(subject.load(clicks(50), stop))
        applied = 0
        async with asyncio.timeout(20):
            while not loading.done():
                await asyncio.sleep(0.001)
                assert (len(log.records) - applied) * 201 <= 1000 + 201
                applied = min(len(log.records), applied + 3)
                owner = store.keys.owner(partition_tag(0))
                await store.write(owner, {"pos:clickstream": str(applied).encode()})
        await loading
        assert (len(log.records), applied) == (50, 50)

    asyncio.run(run())


def test_items_are_paced_by_the_position_under_their_own_tag() -> None:
    async def run() -> None:
        log, store = LogInMemory(), MemoryStore(Keys("t"))
        subject, pacer = player(log, store, limit=10)
        await store.write(store.keys.owner(ITEMS_TAG), {"pos:catalog": b"99"})
        source = [SourceRecord("catalog", b"i", b"{}", TS_MS)] * 5
        async with asyncio.timeout(10):
            await subject.load(source, asyncio.Event())
        assert pacer.unapplied == 0

    asyncio.run(run())


def test_topics_that_no_worker_applies_are_not_waited_for() -> None:
    async def run() -> None:
        subject, pacer = player(LogInMemory(), MemoryStore(Keys("t")), limit=1)
        async with asyncio.timeout(10):
            await subject.load([SourceRecord("exposures", b"u", b"{}", TS_MS)] * 10, asyncio.Event())
        assert pacer.unapplied == 0

    asyncio.run(run())


def test_a_refused_record_ends_the_load() -> None:
    async def run() -> None:
        store = MemoryStore(Keys("t"))
        await store.write(store.keys.owner(partition_tag(0)), {"pos:clickstream": b"2"})
        subject, _ = player(LogInMemory(fail_at=2), store)
        await subject.load(clicks(5), asyncio.Event())

    with pytest.raises(DeliveryError):
        asyncio.run(run())


def test_a_stop_ends_a_load_whose_records_are_never_applied() -> None:
    async def run() -> None:
        stop = asyncio.Event()
        subject, _ = player(LogInMemory(), MemoryStore(Keys("t")))
        loading = asyncio.create_task(subject.load(clicks(100), stop))
        await asyncio.sleep(0.05)
        assert not loading.done(), "it waits for its records to be applied"
        stop.set()
        async with asyncio.timeout(5):
            await loading

    asyncio.run(run())


class Hand:
    """A monotonic clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_timeline_runs_at_its_speed() -> None:
    hand = Hand()
    timeline = Timeline(TS_MS, 10.0, hand)
    assert timeline.wait_s(TS_MS + 5_000) == pytest.approx(0.5)
    hand.seconds += 0.25
    assert timeline.now_ms() == TS_MS + 2_500
    assert timeline.wait_s(TS_MS + 2_000) == 0.0


def test_a_timeline_skips_stretches_without_events() -> None:
    hand = Hand()
    timeline = Timeline(TS_MS, 1.0, hand)
    assert timeline.wait_s(TS_MS + 3_600_000) == pytest.approx(2.0)
    hand.seconds += 2.0
    assert timeline.now_ms() == pytest.approx(TS_MS + 3_600_000, abs=2)


def test_a_speed_that_stands_still_is_refused() -> None:
    with pytest.raises(ValueError, match="speed 0 must be above 0"):
        Timeline(TS_MS, 0)


def test_play_keeps_the_pace_stamps_records_and_publishes_the_clock() -> None:
    async def run() -> None:
        log, store, stop = LogInMemory(), MemoryStore(Keys("t")), asyncio.Event()
        subject, _ = player(log, store, limit=10_000, stamp=True)
        started = asyncio.get_running_loop().time()
        await subject.play(iter(clicks(5, 1_000)), Timeline(TS_MS, 10.0), stop, Clock(store))
        assert asyncio.get_running_loop().time() - started >= 0.39
        assert [stamp for *_, stamp in log.records] == [TS_MS + n * 1_000 for n in range(5)]
        clock = (await store.read([(store.keys.cluster(), ["clock_ms"])]))[0][0]
        assert clock is not None and TS_MS <= int(clock) <= TS_MS + 4_500

    asyncio.run(run())


def write_folder(path: Path, rows: list[str], items: list[dict[str, Any]]) -> Path:
    path.mkdir()
    with gzip.open(path / "events.csv.gz", "wt") as file:
        file.write("\n".join(["user_id,item_id,event_type,timestamp", *rows, ""]))
    with gzip.open(path / "items.jsonl.gz", "wb") as file:
        file.write(b"\n".join(map(orjson.dumps, items)))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Three users take turns; the last item appears with the last event."""
    rows = [f"u{n % 3},i{n % 4},view,{1_700_000_000 + n}" for n in range(30)] + ["u0,late,view,1700000100"]
    items = [{"item_id": f"i{n}", "title": f"thing {n}"} for n in range(4)] + [{"item_id": "late", "title": "late"}]
    return read_folder(write_folder(tmp_path / "small", rows, items))


def bodies(found: Iterator[SourceRecord]) -> list[dict[str, Any]]:
    return [orjson.loads(record.value or b"null") for record in found]


def test_histories_come_user_by_user_in_order_and_only_the_latest(folder: Folder) -> None:
    found = bodies(histories(folder, folder.stop_ms, per_user=4))
    users = [body["user_id"] for body in found]
    assert users == sorted(users, key=users.index), "one user after the other"
    for user in ("u0", "u1", "u2"):
        times = [body["ts_ms"] for body in found if body["user_id"] == user]
        assert times == sorted(times)
        assert len(times) == 4
    assert max(body["ts_ms"] for body in found) == 1_700_000_100_000


def test_histories_end_before_the_split_and_are_bounded_in_all(folder: Folder) -> None:
    split_ms = 1_700_000_030_000
    assert len(list(histories(folder, split_ms))) == 30
    few = bodies(histories(folder, split_ms, most=6))
    assert sorted(body["ts_ms"] for body in few) == [1_700_000_024_000 + n * 1000 for n in range(6)]
    assert list(histories(folder, folder.start_ms)) == []


def test_an_item_stands_with_its_vector_before_it_and_later_ones_do_not(folder: Folder) -> None:
    vectors = ItemVectors("m", [f"i{n}" for n in range(4)], np.eye(4, dtype=np.float32), [[]] * 4)
    found = [(record.topic, record.key) for record in initial_records(folder, 1_700_000_030_000, vectors)]
    assert found == [(topic, f"i{n}".encode()) for topic in ("item-vectors", "catalog") for n in range(4)]


def test_later_moves_only_the_time(folder: Folder) -> None:
    plain, moved = (
        bodies(source) for source in (histories(folder, folder.stop_ms), later(histories(folder, folder.stop_ms), 5))
    )
    assert [{**body, "ts_ms": body["ts_ms"] + 5} for body in plain] == moved


def test_the_usual_speed_brings_about_twenty_events_a_second(folder: Folder) -> None:
    assert usual_speed(folder, 1_700_000_000_000) == pytest.approx(100 / 30 * 20, rel=0.01)
