"""Liveness on a clock that the test moves: ages, lag, rates and roles from the owner records alone."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from index.api.liveness import Liveness
from index.state.keys import Keys
from index.state.memory_store import MemoryStore
from index.state.store import Claim, Commit, LogIdentity, Op, StoreUnavailableError

LOG = LogIdentity("cluster", "topic")


class UnreachableStore(MemoryStore):
    """A store that can be taken away and given back."""

    gone = False

    async def read(self, requests: Any) -> list[list[bytes | None]]:
        if self.gone:
            raise StoreUnavailableError("gone")
        return await super().read(requests)


class World:
    """Two user partitions, a clock, and their owner."""

    def __init__(self) -> None:
        self.store = UnreachableStore(Keys("test"))
        self.now_ms = 1_000.0
        self.liveness = Liveness(self.store, lambda: self.now_ms)
        self.claims: dict[str, Claim] = {}

    async def start(self) -> World:
        await self.store.ensure_cluster(2, ["view", "cart"])
        for tag, topics in {
            "p0": ["clickstream", "users"],
            "p1": ["clickstream", "users"],
            "items": ["catalog", "item-vectors"],
            "context": ["context"],
        }.items():
            self.claims[tag] = await self.store.claim(tag, f"token-{tag}", 1, dict.fromkeys(topics, LOG))
        return self

    async def beat(self, tag: str, ends: dict[str, int], caught_up: bool = True) -> None:
        assert await self.store.beat(tag, f"token-{tag}", ends, caught_up)

    async def move(self, tag: str, topic: str, start: int, position: int) -> None:
        await self.store.commit([Commit(tag, f"token-{tag}", topic, start, position)])


@pytest.fixture
def world() -> World:
    return asyncio.run(World().start())


def test_facts_of_the_deployment_are_read(world: World) -> None:
    async def scene() -> None:
        await world.store.write(
            world.store.keys.cluster(), {"model": b"m-01234567", "clock_ms": b"1500000000000", "bucket_ms": b"60000"}
        )
        await world.liveness.poll()

    asyncio.run(scene())
    assert (world.liveness.partitions, world.liveness.kinds) == (2, ("view", "cart"))
    assert (world.liveness.aliases.champion, world.liveness.clock_ms) == ("m-01234567", 1_500_000_000_000)
    assert world.liveness.bucket_ms == 60_000


def test_before_the_first_look_nothing_is_known(world: World) -> None:
    assert world.liveness.partitions is None
    assert world.liveness.kinds == ()
    assert not world.liveness.reachable


def test_the_age_of_a_confirmation_runs_on_our_own_clock(world: World) -> None:
    async def scene() -> None:
        await world.beat("p0", {"clickstream": 0})
        await world.liveness.poll()
        assert world.liveness.lag_ms(0) is None, "a counter seen for the first time may be old"
        await world.beat("p0", {"clickstream": 0})
        world.now_ms += 100
        await world.liveness.poll()
        assert world.liveness.lag_ms(0) == 0.0
        world.now_ms += 900
        await world.liveness.poll()
        assert world.liveness.lag_ms(0) == 900.0
        assert world.liveness.lag_ms(1) is None

    asyncio.run(scene())


def test_a_request_that_read_a_newer_counter_refreshes_the_age(world: World) -> None:
    async def scene() -> None:
        await world.liveness.poll()
        world.now_ms += 5_000
        world.liveness.note(1, 3)
        world.now_ms += 7
        assert world.liveness.lag_ms(1) == 7.0

    asyncio.run(scene())


def test_lag_is_told_by_partition_and_summed_by_topic(world: World) -> None:
    async def scene() -> None:
        await world.liveness.poll()
        await world.beat("p0", {"clickstream": 7})
        await world.beat("p1", {"clickstream": 5}, caught_up=False)
        await world.move("p1", "clickstream", 0, 2)
        world.now_ms += 10
        await world.liveness.poll()
        found = world.liveness.topics["clickstream"]
        assert [(p.lag, p.position, p.lag_ms) for p in found.partitions] == [(7, 0, 0.0), (3, 2, None)]
        assert (found.lag, found.position, found.lag_ms) == (10, 2, None)

    asyncio.run(scene())


def test_an_emptied_redis_confirms_nothing(world: World) -> None:
    async def scene() -> None:
        await world.liveness.poll()
        world.liveness.note(0, 57)
        world.now_ms += 4_000
        world.liveness.note(0, 0)
        assert world.liveness.lag_ms(0) == 4_000.0
        world.liveness.note(0, 1)
        assert world.liveness.lag_ms(0) == 0.0

    asyncio.run(scene())


@pytest.mark.parametrize("emptied", [False, True])
def test_an_item_log_that_goes_on_from_a_complete_one_is_complete_from_its_beginning(
    world: World, emptied: bool
) -> None:
    """Its followers begin with all items; those of an emptied store have to come up to what is confirmed."""

    async def appended(count: int) -> None:
        key = world.store.keys.item("tea")
        for _ in range(count):
            await world.store.commit(
                [Commit("items", "token-items", "catalog", 0, 0, [Op("log", key, names=("tea",))])]
            )

    async def scene() -> None:
        await appended(3)
        for _ in range(5):
            await world.beat("items", {"catalog": 0})
        await world.liveness.poll()
        before = world.liveness.complete
        assert before is not None and before[1] >= 3
        owner = world.store._hashes[world.store.keys.owner("items")]
        if emptied:
            owner.clear()
        else:
            del owner["item_log"]  # so that the claim begins another one
        await world.start()
        await appended(7)
        await world.beat("items", {"catalog": 0})
        await world.liveness.poll()
        assert world.liveness.complete is not None and world.liveness.complete[0] not in ("", before[0])
        assert (world.liveness.complete[1] >= 7) == emptied and (world.liveness.complete[1] == 0) != emptied

    asyncio.run(scene())


def test_lag_counts_what_the_owner_saw_and_did_not_apply(world: World) -> None:
    async def scene() -> None:
        await world.move("p0", "clickstream", 0, 10)
        await world.beat("p0", {"clickstream": 25, "users": 0}, caught_up=False)
        await world.beat("p1", {"clickstream": 4, "users": 0}, caught_up=False)
        await world.liveness.poll()
        topic = world.liveness.topics["clickstream"]
        assert (topic.lag, topic.position, topic.lag_ms) == (19, 10, None)
        assert world.liveness.topics["users"].lag == 0
        await world.move("p0", "clickstream", 10, 26)  # past the end it saw last
        await world.liveness.poll()
        assert world.liveness.topics["clickstream"].lag == 4

    asyncio.run(scene())


def test_a_topic_is_as_old_as_its_oldest_partition(world: World) -> None:
    async def scene() -> None:
        await world.liveness.poll()
        await world.beat("p0", {})
        await world.liveness.poll()
        world.now_ms += 300
        await world.beat("p1", {})
        await world.liveness.poll()
        assert world.liveness.topics["clickstream"].lag_ms == 300.0

    asyncio.run(scene())


def test_events_per_second_follow_the_positions(world: World) -> None:
    async def scene() -> None:
        await world.liveness.poll()
        assert world.liveness.events_per_s == 0.0
        for step in range(20):  # 50 records every 100 ms in each of two partitions
            world.now_ms += 100
            for tag in ("p0", "p1"):
                await world.move(tag, "clickstream", 50 * step, 50 * (step + 1))
            await world.liveness.poll()
        assert world.liveness.events_per_s == pytest.approx(1000.0)
        world.now_ms += 10_000
        await world.liveness.poll()
        assert world.liveness.events_per_s == 0.0

    asyncio.run(scene())


def test_an_unreachable_store_keeps_the_last_knowledge(world: World) -> None:
    async def scene() -> None:
        await world.liveness.poll()
        await world.beat("p0", {})
        await world.liveness.poll()
        world.store.gone = True
        world.now_ms += 2_000
        await world.liveness.poll()
        assert not world.liveness.reachable
        assert world.liveness.partitions == 2 and world.liveness.lag_ms(0) == 2_000.0
        world.store.gone = False
        await world.liveness.poll()
        assert world.liveness.reachable

    asyncio.run(scene())


def test_a_role_is_gone_when_its_heartbeats_stop(world: World) -> None:
    async def heartbeat(name: str, beat_ms: int) -> None:
        value = orjson.dumps({"role": "worker", "beat_ms": beat_ms})
        await world.store.write(world.store.keys.roles(), {name: value})

    async def scene() -> None:
        await heartbeat("worker-1", 1)
        await heartbeat("worker-2", 1)
        await world.store.write(world.store.keys.roles(), {"broken": b"not json"})
        await world.liveness.poll()
        for beat_ms in range(2, 9):
            await heartbeat("worker-2", beat_ms)
            for _ in range(10):
                world.now_ms += 100
                await world.liveness.poll()

    asyncio.run(scene())
    assert list(world.liveness.roles()) == ["worker-2"]
    assert world.liveness.roles()["worker-2"]["beat_ms"] >= 7
