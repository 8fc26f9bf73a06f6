"""What traffic sends and keeps to itself: nobody who was forgotten gets a profile again."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from deploy.settings import load
from deploy.traffic.plan import TrafficPlan
from deploy.traffic.traffic import Traffic
from index.state.keys import CONTEXT_TAG, ITEMS_TAG, Keys, partition_of, partition_tag
from index.state.memory_store import MemoryStore
from index.state.records import STATE, UserState, encode_state
from index.state.store import StoreUnavailableError
from streams.folder.records import SourceRecord
from tests.deploy.traffic.test_player import LogInMemory

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
