"""Idle users and the partition's clock: known answers, and any order of events and sweeps against the oracle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.servers.redis import RedisServer
from index.state.keys import Keys, partition_tag
from index.state.memory_store import MemoryStore
from index.state.redis_store import RedisStore
from index.state.store import LiveStore, LogIdentity
from streams.events import CLICKSTREAM, USERS, Record, Rules, topics_of
from streams.pipeline import partition_clock
from streams.pipeline.digest import read_state
from streams.pipeline.engine import Engine
from streams.pipeline.partition_clock import PartitionClock
from streams.pipeline.user_state import EngineSettings
from tests.support.oracle import Oracle
from tests.support.streams_world import NOW_MS, MemoryBroker, click

TAG = partition_tag(0)
IDLE_MS = 1000
SETTINGS = EngineSettings(idle_ms=IDLE_MS)
RULES = Rules(embedders={"toy": 4})
WIDTH = 8  # of the clock in this file, so that 256 clicks move it and not 16,384
FOLLOW = WIDTH**3 // 2


@pytest.fixture(autouse=True)
def _narrow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_clock, "WIDTH", WIDTH)


class Partition:
    """One user partition: its two logs, an engine, and the oracle that sees the same records."""

    def __init__(self, store: LiveStore) -> None:
        self.store, self.broker = store, MemoryBroker()
        self.oracle = Oracle(1, IDLE_MS, width=WIDTH)
        self.events = 0

    async def start(self) -> Partition:
        """A new engine, as after a restart; the store stays."""
        self.engine = Engine(self.store, RULES, 1, self.broker, settings=SETTINGS)
        await self.engine.claim(TAG, 1, dict.fromkeys(topics_of(TAG), LogIdentity("c")))
        return self

    def click(self, user: str, ts_ms: int, event_id: str = "", kind: str = "view") -> None:
        self.events += 1
        body = click(user, "item", NOW_MS + ts_ms, event_id or f"e{self.events}", kind)
        if kind == "forget":
            del body["item_id"]
        self._append(CLICKSTREAM, user, orjson.dumps(body))
        self.oracle.click(0, body, NOW_MS * 2)

    def advance(self, ts_ms: int) -> None:
        """As many clicks of a busy user as move the partition's clock, whatever came before."""
        for _ in range(FOLLOW + WIDTH * WIDTH):
            self.click("busy", ts_ms, kind="cart")

    def profile(self, user: str, ts_ms: int) -> None:
        body = {"user_id": user, "ts_ms": NOW_MS + ts_ms, "numeric": {}, "categorical": {"at": str(ts_ms)}}
        self._append(USERS, user, orjson.dumps(body))
        self.oracle.profile(0, user, {"numeric": {}, "categorical": body["categorical"]}, NOW_MS + ts_ms)

    def _append(self, topic: str, user: str, value: bytes) -> None:
        self.broker.append(topic, 0, user.encode(), value, NOW_MS * 2)

    async def apply(self, at_once: int = 1_000_000) -> None:
        while batch := self._next(at_once):
            await self.engine.apply(batch)

    def _next(self, at_once: int) -> list[Record]:
        positions = self.engine.leases[TAG].positions
        logs = {topic: self.broker.logs[topic, 0] for topic in positions}
        return [record for topic, log in logs.items() for record in log[positions[topic] :][:at_once]]

    async def users(self) -> dict[str, Any]:
        """The users of the digest, after comparing the whole partition with the oracle's."""
        found = (await read_state(self.store, 1))[TAG]
        expected = self.oracle.part(0, {topic: len(self.broker.logs[topic, 0]) for topic in (USERS, CLICKSTREAM)})
        assert found == expected
        users: dict[str, Any] = found["users"]
        return users


def play(scenario: Callable[[Partition], Awaitable[None]], store: LiveStore | None = None) -> None:
    async def main() -> None:
        await scenario(await Partition(store or MemoryStore()).start())

    asyncio.run(main())


def test_an_idle_user_is_gone_at_once_from_the_state_and_soon_from_the_store() -> None:
    async def scenario(world: Partition) -> None:
        world.click("anna", 0)
        world.advance(IDLE_MS)
        await world.apply()
        assert "anna" in await world.users()  # exactly as old as allowed
        world.advance(IDLE_MS + 1)
        await world.apply()
        keys = world.store.keys
        assert list(await world.users()) == ["busy"]
        assert "anna" in await world.store.scores(keys.users(TAG))
        assert await world.engine.sweep_idle() == 1 and await world.engine.sweep_idle() == 0
        assert list(await world.store.scores(keys.users(TAG))) == ["busy"]
        assert await world.store.read_all(keys.user(TAG, "anna")) == {}
        assert list(await world.users()) == ["busy"]

    play(scenario)


def test_profile_and_forget_mark_stay_and_are_swept_no_more() -> None:
    async def scenario(world: Partition) -> None:
        world.profile("anna", 0)
        world.click("anna", 5)
        world.click("bert", 5, kind="forget")
        world.click("bert", 6)
        world.profile("cleo", 1)
        world.advance(5000)
        await world.apply()
        users = await world.users()
        assert set(users) == {"anna", "bert", "cleo", "busy"}
        assert users["anna"]["window"] == users["bert"]["window"] == [] and users["anna"]["profile"]
        assert users["bert"]["forgotten_ms"] == NOW_MS + 5
        assert await world.engine.sweep_idle() == 2 and await world.engine.sweep_idle() == 0
        assert await world.users() == users
        world.click("bert", 5, "old")  # what the mark ignores stays ignored
        world.click("anna", 6000)
        await world.apply()
        assert len((await world.users())["anna"]["window"]) == 1

    play(scenario)


def test_a_resend_cannot_bring_back_what_was_removed() -> None:
    async def scenario(world: Partition) -> None:
        world.click("anna", 0, "e-old")
        world.advance(5000)
        world.click("anna", 5000, "e-new")
        world.click("anna", 0, "e-old")
        await world.apply()
        assert [event[3] for event in (await world.users())["anna"]["window"]] == [NOW_MS + 5000]
        assert world.engine.counts["late"] == 1 and world.engine.counts["idle"] == 1

    play(scenario)


def test_a_few_events_from_a_clock_that_runs_ahead_remove_nobody() -> None:
    async def scenario(world: Partition) -> None:
        world.click("anna", 0)
        for n in range(4 * FOLLOW):
            right = n % WIDTH == 0
            world.click(f"right-{n}" if right else "fast", 1 if right else 10**11)
        await world.apply()
        assert "anna" in await world.users()

    play(scenario)


_STEP = st.tuples(
    st.sampled_from(["click", "click", "late", "resend", "forget", "profile", "advance", "restart", "sweep"]),
    st.sampled_from(["anna", "bert", "cleo"]),
    st.sampled_from([0, 1, IDLE_MS // 2, IDLE_MS, IDLE_MS + 1, 2 * IDLE_MS]),
    st.sampled_from([1, 7, 1000]),
)
_Step = tuple[str, str, int, int]


async def _walk(world: Partition, steps: Sequence[_Step]) -> None:
    now_ms = 0
    for name, user, delta_ms, at_once in steps:
        if name == "click":
            now_ms += delta_ms // 2
            world.click(user, now_ms)
        elif name in ("late", "resend"):
            world.click(user, max(0, now_ms - delta_ms), "e1" if name == "resend" else "")
        elif name == "forget":
            world.click(user, max(0, now_ms - delta_ms), kind="forget")
        elif name == "profile":
            world.profile(user, max(0, now_ms - delta_ms))
        elif name == "advance":
            now_ms += delta_ms
            world.advance(now_ms)
        elif name == "restart":
            await world.start()
        else:
            await world.apply(at_once)
            await world.engine.sweep_idle()
            await world.users()
    await world.apply()
    before = await world.users()
    while await world.engine.sweep_idle():
        pass
    assert await world.users() == before


@settings(max_examples=60, deadline=None)
@given(st.lists(_STEP, max_size=30))
def test_any_order_of_events_sweeps_and_restarts_gives_the_oracles_state(steps: Sequence[_Step]) -> None:
    play(lambda world: _walk(world, steps))


@pytest.mark.parametrize("seed", range(3))
def test_the_same_holds_in_redis(seed: int, redis_server: RedisServer, keys: Keys) -> None:
    names = ("click", "advance", "profile", "sweep", "click", "resend", "forget", "late", "advance", "restart")
    deltas = (IDLE_MS // 2, IDLE_MS + 1, 1, 2 * IDLE_MS, 0)
    steps = [
        (names[(n * (seed + 3)) % 10], ("anna", "bert", "cleo")[n % 3], deltas[(n * 7 + seed) % 5], 7)
        for n in range(80)
    ]

    async def main() -> None:
        store = RedisStore(redis_server.url, keys)
        try:
            await _walk(await Partition(store).start(), steps)
        finally:
            await store.close()

    asyncio.run(main())


def test_all_counts_of_a_bucket_beyond_the_horizon_are_removed() -> None:
    async def scenario(world: Partition) -> None:
        for user in ("anna", "ben"):
            world.click(user, 0, kind="purchase")
        world.click("anna", 1, kind="dislike")
        await world.apply()
        keys, bucket = world.store.keys, NOW_MS // SETTINGS.bucket_ms
        hashes = keys.popularity(TAG, bucket), keys.kinds(TAG, bucket)
        assert [await world.store.read_all(key) for key in hashes] == [{"\x1fitem": b"10"}, {"2\x1fitem": b"2"}]
        await world.users()
        world.advance((SETTINGS.horizon_buckets + 1) * SETTINGS.bucket_ms)
        await world.apply()
        assert [await world.store.read_all(key) for key in hashes] == [{}, {}]
        await world.users()

    play(scenario)


@pytest.mark.parametrize(("stored", "then"), [(None, "4"), ("1", "1,4"), ("1,2", "1,2,4"), ("3", "3,4"), ("4", "4")])
def test_a_partition_says_under_which_rules_it_was_applied(stored: str | None, then: str) -> None:
    async def scenario(world: Partition) -> None:
        if stored is not None:
            facts = {"clock": PartitionClock(NOW_MS).encode(), "rules": stored.encode()}
            facts |= {} if stored != "1" else {"rules": b""}  # as the former builds left it
            await world.store.write(world.store.keys.owner(TAG), facts)
            await world.start()
        world.profile("anna", 1)
        await world.apply()
        before = world.engine.leases[TAG].rules
        assert before == (stored or then)  # a profile is applied under any version alike
        world.click("anna", 1)
        await world.apply()
        await world.start()
        assert world.engine.leases[TAG].rules == then
        assert (await read_state(world.store, 1))[TAG].get("rules") == (then if "," in then else None)

    play(scenario)


def test_a_state_of_a_later_build_is_refused_with_the_remedy() -> None:
    async def scenario(world: Partition) -> None:
        await world.store.write(world.store.keys.owner(TAG), {"clock": PartitionClock().encode(), "rules": b"4,5"})
        with pytest.raises(ValueError, match="rules 4,5, this build knows up to 4: run the build that wrote it, or"):
            await world.start()

    play(scenario)
