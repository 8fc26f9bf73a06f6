"""Items without a vector: the most popular first, never further ahead of the embed role than the broker keeps."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import orjson
import pytest

from deploy.traffic.backlog import Backlog
from deploy.traffic.player import Pacer, Player
from index.state.keys import ITEMS_TAG, Keys
from index.state.memory_store import MemoryStore
from index.state.records import CATALOGUE, EMBEDDER, POSITION
from streams.folder.reader import Folder, read_folder
from streams.folder.records import popular_first
from tests.deploy.traffic.test_player import LogInMemory, write_folder

ITEMS = 40


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.traffic.backlog._LOOK_S", 0.05)


def folder_of(path: Path) -> Folder:
    """Item i0 has no event, i1 one, i2 two, …"""
    rows = [f"u{number},i{number},view,{1_700_000_000 + n}" for n in range(ITEMS) for number in range(n + 1, ITEMS)]
    return read_folder(
        write_folder(path / "shop", rows, [{"item_id": f"i{n}", "title": "x" * 50} for n in range(ITEMS)])
    )


class Scene:
    """A backlog on an embed role and a worker in memory; the worker has applied whatever comes."""

    def __init__(self, path: Path, limit: int) -> None:
        self.folder, self.log, self.store = folder_of(path), LogInMemory(), MemoryStore(Keys("t"))
        self.subject = Backlog(self.store, Player(self.log, Pacer(self.store), lambda topic, key: 0), limit)  # type: ignore[arg-type]

    async def embedded_to(self, position: int) -> None:
        beat = {"role": "embed", "beat_ms": time.time() * 1000, "position": position}
        await self.store.write(self.store.keys.roles(), {"embed-1": orjson.dumps(beat), "w": b'{"role": "worker"}'})

    def sent(self) -> list[str]:
        return [orjson.loads(value or b"")["item_id"] for _, _, value, _ in self.log.records]


def test_the_popular_come_first_and_no_more_than_the_embed_role_can_still_read(tmp_path: Path) -> None:
    async def run() -> None:
        scene, stop = Scene(tmp_path, limit=1_000), asyncio.Event()
        await scene.store.write(scene.store.keys.owner(ITEMS_TAG), {"pos:catalog": b"1000000"})
        await scene.embedded_to(0)
        sending = asyncio.create_task(scene.subject.send(scene.folder, popular_first(scene.folder, None), stop))
        done = 0
        async with asyncio.timeout(60):
            while not sending.done():
                await asyncio.sleep(0.02)
                size = sum(len(value or b"") + 120 for _, _, value, _ in scene.log.records[done:])
                assert size <= 1_000 + 300
                done = min(len(scene.log.records), done + 4)
                await scene.embedded_to(done)
                report = scene.subject.report()["texts"]
                assert report["total"] == ITEMS and 0 <= report["done"] <= done and report["per_s"] >= 0
        assert scene.sent() == [f"i{number}" for number in reversed(range(ITEMS))]
        assert scene.subject.report() == {"texts": {"done": ITEMS, "total": ITEMS, "per_s": 0.0}}

    asyncio.run(run())


def test_what_the_live_state_knows_is_not_overwritten(tmp_path: Path) -> None:
    async def run() -> None:
        scene, stop, keys = Scene(tmp_path, limit=10**9), asyncio.Event(), Keys("t")
        await scene.store.write(keys.owner(ITEMS_TAG), {"pos:catalog": b"1000000"})
        await scene.store.write(keys.item("i1"), {POSITION: b"1", CATALOGUE: b"{}", EMBEDDER: b"m"})  # embedded
        await scene.store.write(keys.item("i2"), {POSITION: b"2"})  # withdrawn
        changed = {"title": "changed meanwhile", "ts_ms": 5}
        await scene.store.write(keys.item("i3"), {POSITION: b"3", CATALOGUE: orjson.dumps(changed)})
        await scene.embedded_to(10**6)
        await scene.subject.send(scene.folder, popular_first(scene.folder, None), stop)
        assert set(scene.sent()) == {f"i{number}" for number in range(ITEMS)} - {"i1", "i2"}
        (value,) = (value for _, _, value, _ in scene.log.records if b'"i3"' in (value or b""))
        assert orjson.loads(value or b"") == {"item_id": "i3", **changed}

    asyncio.run(run())


def test_an_embed_role_that_has_gone_says_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        scene, stop = Scene(tmp_path, limit=10**9), asyncio.Event()
        await scene.store.write(scene.store.keys.owner(ITEMS_TAG), {"pos:catalog": b"1000000"})
        beat = {"role": "embed", "beat_ms": time.time() * 1000 - 60_000, "position": 10**6}
        await scene.store.write(scene.store.keys.roles(), {"embed-0": orjson.dumps(beat)})
        sending = asyncio.create_task(scene.subject.send(scene.folder, popular_first(scene.folder, None), stop))
        await asyncio.sleep(0.5)
        assert scene.subject.report()["texts"]["done"] == 0
        stop.set()
        await sending

    asyncio.run(run())
