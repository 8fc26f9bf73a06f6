"""A store that fails: writes whose answer was lost, a store that went back in time, and what the engine does then."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence

import orjson
import pytest

from index.state.memory_store import MemoryStore
from index.state.store import Commit, FencedError, LogIdentity, StoreUnavailableError
from streams.events import CLICKSTREAM, Record, Rules, topics_of
from streams.pipeline.digest import read_state
from streams.pipeline.engine import Engine
from tests.support.streams_world import NOW_MS, MemoryBroker, click

LOGS = dict.fromkeys(topics_of("p0"), LogIdentity("c1"))


class ForgetfulStore(MemoryStore):
    """Applies the next commits and says that it did not answer, as often as `losses` says."""

    losses = 0

    async def commit(self, commits: Sequence[Commit]) -> None:
        await super().commit(commits)
        if self.losses:
            self.losses -= 1
            raise StoreUnavailableError("the answer was lost")


def record(offset: int, body: dict[str, object]) -> Record:
    return Record(CLICKSTREAM, 0, offset, NOW_MS, b"u", orjson.dumps(body))


def flood(first: int, count: int) -> list[Record]:
    """Clicks of one user at one and the same time: more than the memory of event ids reaches."""
    return [record(n, click("u", f"i{n}", NOW_MS, f"e{n}")) for n in range(first, first + count)]


async def _engine(store: MemoryStore) -> Engine:
    engine = Engine(store, Rules(), 1, MemoryBroker())
    await engine.claim("p0", 1, LOGS, "g")
    return engine


def test_a_write_whose_answer_was_lost_is_not_applied_again_even_beyond_the_memory_of_ids() -> None:
    async def scenario() -> None:
        store, sure = ForgetfulStore(), MemoryStore()
        engine, reference = await _engine(store), await _engine(sure)
        batches = [flood(0, 600), flood(600, 1)]
        store.losses = 1
        with pytest.raises(StoreUnavailableError):
            await engine.apply(batches[0])
        for batch in batches:
            await engine.apply(batch)
            await reference.apply(batch)
        assert await read_state(store, 1) == await read_state(sure, 1)
        assert len(engine.leases["p0"].clock.rows) == 601 // 32 and engine.leases["p0"].buckets

    asyncio.run(scenario())


def test_a_late_arrival_of_an_unanswered_write_is_fenced() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        engine = await _engine(store)
        before = engine.leases["p0"].token
        engine.leases["p0"].unsure = True  # as a failed write leaves it
        await engine.apply(flood(0, 3))
        with pytest.raises(FencedError, match="token"):
            await store.commit([Commit("p0", before, CLICKSTREAM, 3, 5)])

    asyncio.run(scenario())


def test_a_store_that_lost_confirmed_writes_makes_the_engine_read_them_again() -> None:
    async def scenario() -> None:
        store = ForgetfulStore()
        engine = await _engine(store)
        await engine.apply(flood(0, 5))
        earlier = copy.deepcopy(store._hashes), copy.deepcopy(store._sorted)
        await engine.apply(flood(5, 5))
        store._hashes, store._sorted = earlier
        with pytest.raises(FencedError, match="position"):
            await engine.apply(flood(10, 1))
        with pytest.raises(FencedError, match="position"):  # nor does a new claim alone make it go on from there
            await engine.apply(flood(10, 1))
        await engine.claim("p0", 1, LOGS, "g")
        assert engine.leases["p0"].positions[CLICKSTREAM] == 5
        await engine.apply(flood(5, 6))
        assert len((await read_state(store, 1))["p0"]["users"]["u"]["window"]) == 11

    asyncio.run(scenario())


def test_an_older_generation_does_not_take_the_partition_back_after_a_failed_write() -> None:
    async def scenario() -> None:
        store = ForgetfulStore()
        engine = await _engine(store)
        store.losses = 1
        with pytest.raises(StoreUnavailableError):
            await engine.apply(flood(0, 2))
        other = Engine(store, Rules(), 1, MemoryBroker())
        lease = await other.claim("p0", 2, LOGS, "g")
        with pytest.raises(FencedError, match="token"):
            await engine.apply(flood(0, 2))
        assert lease.positions[CLICKSTREAM] == 2
        await other.apply(flood(2, 2))

    asyncio.run(scenario())


def test_facts_are_announced_again_until_it_succeeds() -> None:
    async def scenario() -> None:
        calls = []

        async def announce() -> None:
            calls.append(1)
            if len(calls) == 1:
                raise StoreUnavailableError("away")

        engine = Engine(MemoryStore(), Rules(), 1, MemoryBroker(), announce=announce)
        with pytest.raises(StoreUnavailableError):
            await engine.claim("p0", 1, LOGS, "g")
        await engine.claim("p0", 1, LOGS, "g")
        await engine.claim("p0", 1, LOGS, "g")
        assert len(calls) == 2

    asyncio.run(scenario())
