"""The pipeline against the oracle: any batching, restarts and store failures give the same digest."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from index.state.keys import partition_of, partition_tag
from index.state.memory_store import MemoryStore
from index.state.store import Commit, FencedError, LogIdentity, StoreUnavailableError
from streams.events import (
    CATALOG,
    CLICKSTREAM,
    CONTEXT,
    ITEM_VECTORS,
    SCENARIO_RULES,
    TAG_TOPICS,
    USERS,
    Record,
    Rules,
    topics_of,
)
from streams.pipeline.digest import digest, digest_of, read_state
from streams.pipeline.engine import Engine
from streams.pipeline.lease import GapError
from tests.support.oracle import Oracle
from tests.support.streams_world import NOW_MS, MemoryBroker, click, fill

PARTITIONS = 3
LOG = LogIdentity("c1")
RULES = Rules(embedders={"toy": 4})


class FailingStore(MemoryStore):
    """Loses the answer of some commits: half of them before, half after they were applied."""

    def __init__(self, seed: int, rate: float) -> None:
        super().__init__()
        self._random, self.rate = random.Random(seed), rate

    async def commit(self, commits: Sequence[Commit]) -> None:
        roll = self._random.random()
        if roll < self.rate / 2:
            raise StoreUnavailableError("before")
        await super().commit(commits)
        if roll < self.rate:
            raise StoreUnavailableError("after")


def oracle_state(broker: MemoryBroker) -> dict[str, object]:
    oracle = Oracle(PARTITIONS)
    parts: dict[str, object] = {}
    for partition in range(PARTITIONS):
        for record in broker.logs[USERS, partition]:
            assert record.key is not None
            if record.value is None:
                oracle.profile(partition, record.key.decode(), None, record.timestamp_ms)
                continue
            body = orjson.loads(record.value)
            numeric = {name: float(value) for name, value in body["numeric"].items()}
            content = {"numeric": numeric, "categorical": body["categorical"]}
            oracle.profile(partition, body["user_id"], content, body["ts_ms"])
        for record in broker.logs[CLICKSTREAM, partition]:
            body = orjson.loads(record.value or b"")
            if partition_of(body["user_id"], PARTITIONS) == partition:
                oracle.click(partition, body, record.timestamp_ms)
        positions = {topic: len(broker.logs[topic, partition]) for topic in (USERS, CLICKSTREAM)}
        parts[partition_tag(partition)] = oracle.part(partition, positions)
    return parts


async def drain(store: MemoryStore, broker: MemoryBroker, rng: random.Random, restart: float = 0.0) -> Engine:
    """Applies everything in random batches; restarts the engine now and then; repeats failed batches."""
    engine = Engine(store, RULES, PARTITIONS, broker)
    tags = [partition_tag(p) for p in range(PARTITIONS)]
    for tag in tags:
        await engine.claim(tag, 1, dict.fromkeys(topics_of(tag), LOG))
    while True:
        batch: list[Record] = []
        for (topic, partition), log in list(broker.logs.items()):
            at = engine.leases[partition_tag(partition)].positions[topic]
            batch += log[at : at + rng.choice((1, 3, 40))]
        if not batch:
            return engine
        while True:
            try:
                await engine.apply(batch)
                break
            except StoreUnavailableError:
                continue
        if rng.random() < restart:
            engine = Engine(store, RULES, PARTITIONS, broker)
            for tag in tags:
                await engine.claim(tag, 1, dict.fromkeys(topics_of(tag), LOG))


@pytest.mark.parametrize("seed", range(6))
def test_any_batching_restart_and_failure_gives_the_oracles_state(seed: int) -> None:
    async def scenario() -> None:
        broker = MemoryBroker()
        fill(broker, PARTITIONS, seed, events=2500)
        store = FailingStore(seed, rate=0.2 if seed % 2 else 0.0)
        await drain(store, broker, random.Random(seed), restart=0.05)
        state = await read_state(store, PARTITIONS)
        expected = oracle_state(broker)
        for name, part in expected.items():
            assert state[name] == part, f"seed {seed}, part {name}"
            assert state[name]["users"] and not broker.dead
        found = await digest(store, PARTITIONS)
        assert found.differences(digest_of({**state, **expected})) == []

    asyncio.run(scenario())


class SetBackStore(MemoryStore):
    """Can lose its latest writes, all of them at once, as a Redis does that is killed before they are on disk."""

    def saved(self) -> dict[str, object]:
        return copy.deepcopy({name: getattr(self, name) for name in ("_hashes", "_sorted", "_sets")})

    def set_back(self, saved: dict[str, object]) -> None:
        for name, content in saved.items():
            setattr(self, name, content)


def test_a_profile_brings_no_clicks_back_that_the_store_has_lost() -> None:
    async def scenario() -> None:
        broker, store, home = MemoryBroker(), SetBackStore(), partition_of("anna", PARTITIONS)
        for number, kind in enumerate(("view", "purchase")):
            body = orjson.dumps(click("anna", f"item-{number}", NOW_MS + number, f"e{number}", kind))
            broker.append(CLICKSTREAM, home, b"anna", body, NOW_MS + number)
        profile = {"user_id": "anna", "ts_ms": NOW_MS, "numeric": {"age": 30}, "categorical": {}}
        broker.append(USERS, home, b"anna", orjson.dumps(profile), NOW_MS)
        engine, tag = Engine(store, RULES, PARTITIONS, broker), partition_tag(home)
        await engine.claim(tag, 1, dict.fromkeys(topics_of(tag), LOG))
        first, second = broker.logs[CLICKSTREAM, home]
        await engine.apply([first])
        saved = store.saved()
        await engine.apply([second])
        store.set_back(saved)  # the purchase and what it counted are gone; the engine remembers it
        with pytest.raises(FencedError):
            await engine.apply(broker.logs[USERS, home])
        await drain(store, broker, random.Random(0))
        state = await read_state(store, PARTITIONS)
        assert state[tag] == oracle_state(broker)[tag]

    asyncio.run(scenario())


def test_the_traffic_holds_what_it_claims_to_hold() -> None:
    async def scenario() -> None:
        broker = MemoryBroker()
        fill(broker, PARTITIONS, seed=1, events=4000, users=5)
        counts = (await drain(MemoryStore(), broker, random.Random(1))).counts.as_dict()
        for kind in ("applied", "duplicate", "late", "forgotten", "outdated", "misrouted", "clamped"):
            assert counts[kind] > 0, f"{kind}: {counts}"

    asyncio.run(scenario())


async def _engine(partitions: int = 1) -> tuple[Engine, MemoryBroker, MemoryStore]:
    broker, store = MemoryBroker(), MemoryStore()
    engine = Engine(store, RULES, partitions, broker)
    for tag in ("p0", *TAG_TOPICS):
        await engine.claim(tag, 1, dict.fromkeys(topics_of(tag), LOG))
    return engine, broker, store


def record(topic: str, offset: int, body: object, key: str | None = None) -> Record:
    value = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
    return Record(topic, 0, offset, NOW_MS, key.encode() if key else None, value)


def test_a_first_record_that_does_not_continue_the_position_is_read_once_more() -> None:
    async def scenario() -> None:
        engine, _, _ = await _engine()
        late = record(CLICKSTREAM, 7, click("u", "a", NOW_MS, "e1"))
        with pytest.raises(GapError) as caught:
            await engine.apply([late])
        assert caught.value.position == 0
        await engine.apply([late])  # read again: the log really begins there
        assert engine.leases["p0"].positions[CLICKSTREAM] == 8 and engine.counts["gaps"] == 1
        await engine.apply([record(CLICKSTREAM, 12, click("u", "b", NOW_MS, "e2"))])  # later gaps are the log's own
        assert engine.counts["gaps"] == 2 and engine.counts["applied"] == 2

    asyncio.run(scenario())


def test_a_displaced_engine_cannot_write_and_keeps_nothing() -> None:
    async def scenario() -> None:
        engine, broker, store = await _engine()
        await engine.apply([record(CLICKSTREAM, 0, click("u", "a", NOW_MS, "e1"))])
        other = Engine(store, RULES, 1, broker)
        await other.claim("p0", 2, dict.fromkeys(topics_of("p0"), LOG))
        batch = [record(CLICKSTREAM, 1, click("u", "b", NOW_MS, "e2"))]
        with pytest.raises(FencedError):
            await engine.apply(batch)
        assert not engine.leases["p0"].users
        await other.apply(batch)
        assert (await read_state(store, 1))["p0"]["users"]["u"]["window"][1][1] == "b"

    asyncio.run(scenario())


def test_malformed_records_become_dead_letters_and_change_nothing_else() -> None:
    async def scenario() -> None:
        engine, broker, store = await _engine()
        bad: list[object] = [b"\xff\x00", b"[]", b"{", None, {"user_id": 3}, click("u", "a", 5, "old"), b"nul"]
        bad += [click("u", "a", NOW_MS, "e", kind="sneeze"), click("x" * 257, "a", NOW_MS, "e"), click("", "a", 1, "e")]
        for offset, body in enumerate(bad):
            await engine.apply([record(CLICKSTREAM, offset, body)])
        await engine.apply([record(CLICKSTREAM, len(bad), click("u", "a", NOW_MS, "good"))])
        assert len(broker.dead) == len(bad) and all(error.reason and error.field for _, error in broker.dead)
        users = (await read_state(store, 1))["p0"]["users"]
        assert list(users) == ["u"] and len(users["u"]["window"]) == 1

    asyncio.run(scenario())


TIMES = {"missing": -1, "zero": 0, "seconds": NOW_MS // 1000, "micro": NOW_MS * 1000, "nano": NOW_MS * 10**6}
TIMES["ms"] = NOW_MS
BODIES: dict[str, tuple[str, dict[str, object]]] = {  # topic → key and body without its time
    CLICKSTREAM: ("u", {"event_id": "x", "user_id": "u", "item_id": "i", "kind": "view"}),
    USERS: ("u", {"user_id": "u", "numeric": {"age": 99.0}}),
    CATALOG: ("i", {"item_id": "i", "title": "Tea"}),
    ITEM_VECTORS: ("i", {"item_id": "i", "embedder": "toy", "vector": [0, 1, 0, 0]}),
    CONTEXT: ("x", {"location": "x", "valid_until_ms": NOW_MS}),
    SCENARIO_RULES: ("x", {"scenario": "x", "caps": {"brand": 1}}),
}


@pytest.mark.parametrize("topic", BODIES)
@pytest.mark.parametrize(
    ("kafka", "body"),
    [
        *((kafka, body) for kafka in TIMES if kafka != "ms" for body in ("seconds", "micro", "nano", "ms", "null")),
        *(("ms", body) for body in ("zero", "seconds", "micro", "nano")),
    ],
)
def test_a_time_of_another_unit_in_either_place_changes_nothing(topic: str, kafka: str, body: str) -> None:
    """40 such records, enough to move a partition's clock: windows stay, and a later click of another user counts."""
    key, fields = BODIES[topic]
    value = None if body == "null" else orjson.dumps({**fields, "event_id": "y", "ts_ms": TIMES[body]})
    poison = [Record(topic, 0, 1 + n, TIMES[kafka], key.encode(), value) for n in range(40)]
    later = click("other", "i", NOW_MS, "z")

    async def run() -> None:
        engine, broker, store = await _engine()
        await engine.apply([record(name, 0, {**known, "ts_ms": NOW_MS}) for name, (_, known) in BODIES.items()])
        before = await read_state(store, 1)
        await engine.apply(poison)
        after = await read_state(store, 1)
        assert [{**part, "positions": 0} for part in after.values()] == [
            {**part, "positions": 0} for part in before.values()
        ]
        assert [error.field for _, error in broker.dead] == ["ts_ms" if kafka == "ms" else "timestamp"] * 40
        await engine.apply([record(CLICKSTREAM, 41 if topic == CLICKSTREAM else 1, later)])
        assert engine.counts["applied"] == len(BODIES) + 1 and engine.counts["late"] == 0

    asyncio.run(run())


def test_items_last_write_wins_and_a_withdrawn_item_keeps_its_vector() -> None:
    async def scenario() -> None:
        engine, _, store = await _engine()
        item = {"item_id": "i", "title": "Tea", "ts_ms": NOW_MS}
        vector = {"item_id": "i", "embedder": "toy", "vector": [1, 0, 0, 0.5], "tags": ["t"], "ts_ms": NOW_MS}
        await engine.apply([record(CATALOG, 0, item, "i"), record(ITEM_VECTORS, 0, vector, "i")])
        await engine.apply([record(CATALOG, 1, {**item, "title": "Green tea", "available": False}, "i")])
        items = (await read_state(store, 1))["items"]["items"]
        assert items["i"]["catalogue"]["title"] == "Green tea" and items["i"]["vector"] and items["i"]["tags"] == ["t"]
        await engine.apply([record(CATALOG, 2, None, "i")])
        items = (await read_state(store, 1))["items"]["items"]
        assert items["i"]["catalogue"] is None and items["i"]["vector"]
        await engine.apply([record(ITEM_VECTORS, 1, None, "i")])
        assert not (await read_state(store, 1))["items"]["items"]["i"]["vector"]

    asyncio.run(scenario())


def test_contexts_are_set_and_removed() -> None:
    async def scenario() -> None:
        engine, _, store = await _engine()
        body = {"location": "berlin", "ts_ms": NOW_MS, "valid_until_ms": NOW_MS + 1, "weather": {"heat_wave": True}}
        await engine.apply([record(CONTEXT, 0, body, "berlin")])
        assert (await read_state(store, 1))["contexts"]["contexts"]["berlin"]["weather"] == {"heat_wave": True}
        await engine.apply([record(CONTEXT, 1, None, "berlin")])
        assert (await read_state(store, 1))["contexts"]["contexts"] == {}

    asyncio.run(scenario())


def test_of_rules_the_last_offset_wins_whatever_their_times_and_is_their_version() -> None:
    async def scenario() -> None:
        engine, broker, store = await _engine()

        async def rules() -> Any:
            return (await read_state(store, 1))["rules"]

        assert "rules" not in await read_state(store, 1)  # as of a state before there were any
        body = {"scenario": "home", "ts_ms": NOW_MS, "boosts": [{"brand": " Acme\u00a0"}], "starts_ms": 0, "color": 1}
        older = {"scenario": "home", "ts_ms": NOW_MS - 9, "diversity": 1, "slot": "next", "group": False, "caps": {}}
        mail = {"scenario": "mail", "ts_ms": NOW_MS, "filter": {"field": "price", "lte": 5}}
        await engine.apply([record(SCENARIO_RULES, 0, body, "home"), record(SCENARIO_RULES, 1, mail, "mail")])
        home = {"scenario": "home", "ts_ms": NOW_MS, "starts_ms": 0, "boosts": [{"brand": "Acme", "strength": 1.0}]}
        assert (await rules())["rules"] == {"home": {**home, "version": 0}, "mail": {**mail, "version": 1}}
        bad = {**mail, "filter": {"field": "colour", "in": ["red"]}}
        await engine.apply([record(SCENARIO_RULES, 2, older, "home"), record(SCENARIO_RULES, 3, bad, "mail")])
        newest = {"scenario": "home", "ts_ms": NOW_MS - 9, "diversity": 1.0, "slot": "next", "version": 2}
        assert (await rules())["rules"]["home"] == newest and (await rules())["rules"]["mail"]["version"] == 1
        assert [(dead.topic, error.field) for dead, error in broker.dead] == [(SCENARIO_RULES, "filter.field")]
        await engine.apply([record(SCENARIO_RULES, 4, None, "home"), record(SCENARIO_RULES, 5, None, "nothing")])
        assert list((await rules())["rules"]) == ["mail"] and (await rules())["positions"] == {SCENARIO_RULES: 6}

    asyncio.run(scenario())


def test_forget_leaves_a_mark_that_ignores_what_came_before() -> None:
    async def scenario() -> None:
        engine, _, store = await _engine()
        bodies = [
            click("u", "a", NOW_MS, "e1"),
            {"event_id": "f", "user_id": "u", "kind": "forget", "ts_ms": NOW_MS + 10},
            click("u", "b", NOW_MS + 10, "e2"),
            click("u", "c", NOW_MS + 11, "e3"),
            {"event_id": "f2", "user_id": "u", "kind": "forget", "ts_ms": NOW_MS + 10},
        ]
        await engine.apply([record(CLICKSTREAM, offset, body) for offset, body in enumerate(bodies)])
        user = (await read_state(store, 1))["p0"]["users"]["u"]
        assert [event[1] for event in user["window"]] == ["c"] and user["forgotten_ms"] == NOW_MS + 10
        assert engine.counts["forgotten"] == 1 and engine.counts["duplicate"] == 1

    asyncio.run(scenario())
