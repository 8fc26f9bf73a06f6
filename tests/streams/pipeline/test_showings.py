"""Showings against the oracle: any batching, restarts, store failures and resends give the same counts."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import orjson
import pytest

from context.units import DAY_MS
from index.state.keys import partition_tag, showings_tag
from index.state.memory_store import MemoryStore
from index.state.store import FencedError, LogIdentity, StoreUnavailableError
from streams.events import (
    CLICKSTREAM,
    CONSUMED,
    EXPOSURES,
    Exposure,
    MalformedError,
    Record,
    Rules,
    is_showings,
    tag_of,
    topics_of,
)
from streams.folder.reader import read_folder
from streams.folder.records import records
from streams.parsing import parse
from streams.pipeline.digest import digest, read_state
from streams.pipeline.engine import Engine
from streams.pipeline.showings import MOST_PLACES, REMEMBERED_LISTS, place_thousandths
from streams.pipeline.user_state import RULES_VERSION
from streams.replay.replay import SilentSink, feed, folder_logs, numbered, open_engine
from streams.replay.report import ReplayCounts
from tests.streams.pipeline.test_engine import FailingStore
from tests.support.folders import START_S, item, write_folder
from tests.support.oracle import ShowingsOracle
from tests.support.streams_world import NOW_MS, MemoryBroker, click, show

PARTITIONS = 2
LOG = LogIdentity("c1")
RULES = Rules(showings=True)


def wanted(broker: MemoryBroker) -> dict[str, Any]:
    oracle = ShowingsOracle(PARTITIONS)
    parts = {}
    for partition in range(PARTITIONS):
        log = broker.logs[EXPOSURES, partition]
        for record in log:
            oracle.shown(partition, orjson.loads(record.value or b""), record.timestamp_ms)
        parts[showings_tag(partition)] = oracle.part(partition, len(log))
    return parts


async def claimed(store: MemoryStore, broker: MemoryBroker) -> Engine:
    engine = Engine(store, RULES, PARTITIONS, broker)
    for tag in map(showings_tag, range(PARTITIONS)):
        await engine.claim(tag, 1, dict.fromkeys(topics_of(tag), LOG))
    return engine


async def drain(store: MemoryStore, broker: MemoryBroker, rng: random.Random, restart: float = 0.0) -> Engine:
    engine = await claimed(store, broker)
    while True:
        batch: list[Record] = []
        for partition in range(PARTITIONS):
            at = engine.leases[showings_tag(partition)].positions[EXPOSURES]
            batch += broker.logs[EXPOSURES, partition][at : at + rng.choice((1, 3, 700))]
        if not batch:
            return engine
        while True:
            try:
                await engine.apply(batch)
                break
            except StoreUnavailableError:
                continue
        if rng.random() < restart:
            engine = await claimed(store, broker)


def test_tags_and_topics() -> None:
    assert (tag_of(EXPOSURES, 17), topics_of("x17")) == ("x17", (EXPOSURES,))
    assert [is_showings(tag) for tag in ("x0", "x17", "p1", "items", "context", "x", "xa")] == [True, True] + [
        False
    ] * 5
    assert RULES.consumed == (*CONSUMED, EXPOSURES) and Rules().consumed == CONSUMED


@pytest.mark.parametrize("seed", range(4))
def test_any_batching_restart_and_failure_gives_the_oracles_counts(seed: int) -> None:
    async def scenario() -> None:
        broker = MemoryBroker()
        show(broker, PARTITIONS, seed, lists=5000)
        store = FailingStore(seed, rate=0.2 if seed % 2 else 0.0)
        engine = await drain(store, broker, random.Random(seed), restart=0.05)
        state = await read_state(store, PARTITIONS)
        for name, part in wanted(broker).items():
            assert state[name] == part, f"seed {seed}, part {name}"
            assert part["showings"] and len(part["lists"]) > REMEMBERED_LISTS * 0.9
        assert not broker.dead and engine.counts.totals.get("misrouted", 0) == 0

    asyncio.run(scenario())


def test_what_lies_beyond_the_horizon_is_removed_and_counts_no_more() -> None:
    async def scenario() -> None:
        broker, store = MemoryBroker(), MemoryStore()
        show(broker, 1, 1, lists=22_000, step_ms=600_000)  # 50 days; the clock follows behind
        engine = await drain(store, broker, random.Random(1))
        part, width = (await read_state(store, PARTITIONS))["x0"], engine.settings.bucket_ms
        assert part == wanted(broker)["x0"]
        first, oldest = min(map(int, part["showings"])), (NOW_MS - 40 * DAY_MS) // width
        assert first > oldest and engine.leases["x0"].buckets == set(map(int, part["showings"]))
        assert not any([await store.read_all(store.keys.showings("x0", bucket)) for bucket in range(oldest, first)])
        assert engine.counts.totals["late"] > 0 and engine.counts.totals["duplicate"] > 0

    asyncio.run(scenario())


def listed(number: int, items: list[str], name: str = "", ts_ms: int = NOW_MS, user: str = "u") -> Record:
    body = {"recommendation_id": name or f"r{number}", "user_id": user, "ts_ms": ts_ms}
    body["items"] = [{"item_id": item} for item in items]
    return Record(EXPOSURES, 0, number, ts_ms, user.encode(), orjson.dumps(body))


def test_places_weigh_less_and_less_and_an_item_counts_once_a_list() -> None:
    async def scenario() -> None:
        broker, store = MemoryBroker(), MemoryStore()
        engine = await claimed(store, broker)
        long = [f"i{n}" for n in range(MOST_PLACES + 50)]
        await engine.apply([listed(0, ["a", "b", "a", "c"]), listed(1, []), listed(2, long)])
        part = (await read_state(store, PARTITIONS))["x0"]
        (counts,) = part["showings"].values()
        assert {name: counts[name] for name in "abc"} == {"a": 1000, "b": 631, "c": 500}
        assert len(counts) == 3 + MOST_PLACES and counts[f"i{MOST_PLACES - 1}"] == place_thousandths(MOST_PLACES - 1)
        assert part["positions"] == {EXPOSURES: 3} and len(part["lists"]) == 3

    asyncio.run(scenario())


def test_a_list_that_is_sent_again_counts_once_as_long_as_it_is_remembered() -> None:
    async def scenario() -> None:
        broker, store = MemoryBroker(), MemoryStore()
        engine = await claimed(store, broker)
        await engine.apply([listed(0, ["a"], "r"), listed(1, ["a"], "r")])
        await engine.apply([listed(1, ["a"], "r"), listed(2, ["a"], "r")])  # a redelivery and a resend
        others = [listed(3 + n, ["b"], f"other-{n}") for n in range(REMEMBERED_LISTS)]
        await engine.apply(others[:-1])
        await engine.apply([listed(2 + REMEMBERED_LISTS, ["a"], "r")])
        (counts,) = (await read_state(store, PARTITIONS))["x0"]["showings"].values()
        assert counts["a"] == 1000
        await engine.apply([listed(3 + REMEMBERED_LISTS, ["b"], "last"), listed(4 + REMEMBERED_LISTS, ["a"], "r")])
        part = (await read_state(store, PARTITIONS))["x0"]
        (counts,) = part["showings"].values()
        assert counts["a"] == 2000 and len(part["lists"]) == REMEMBERED_LISTS
        assert engine.counts.totals["duplicate"] == 3 and engine.counts.totals["redelivered"] == 1

    asyncio.run(scenario())


def test_malformed_lists_become_dead_letters_and_users_do_not_matter() -> None:
    async def scenario() -> None:
        broker, store = MemoryBroker(), MemoryStore()
        engine = await claimed(store, broker)
        bad = Record(EXPOSURES, 0, 0, NOW_MS, b"u", b'{"user_id": "u"}')
        null = Record(EXPOSURES, 0, 1, NOW_MS, b"u", None)
        await engine.apply(
            [bad, null, listed(2, ["a"], user="nobody-knows"), listed(3, ["a"], user="home-is-elsewhere-1")]
        )
        assert [error.field for _, error in broker.dead] == ["items", "value"]
        (counts,) = (await read_state(store, PARTITIONS))["x0"]["showings"].values()
        assert counts == {"a": 2000}

    asyncio.run(scenario())


def test_a_displaced_engine_counts_nothing() -> None:
    async def scenario() -> None:
        broker, store = MemoryBroker(), MemoryStore()
        first, second = await claimed(store, broker), await claimed(store, broker)
        with pytest.raises(FencedError):
            await first.apply([listed(0, ["a"])])
        await second.apply([listed(0, ["a"])])
        (counts,) = (await read_state(store, PARTITIONS))["x0"]["showings"].values()
        assert counts == {"a": 1000}

    asyncio.run(scenario())


def test_a_recreated_topic_is_read_from_its_beginning_and_what_was_counted_stays() -> None:
    async def scenario() -> None:
        broker, store = MemoryBroker(), MemoryStore()
        await (await claimed(store, broker)).apply([listed(0, ["a"]), listed(1, ["b"])])
        engine = Engine(store, RULES, PARTITIONS, broker)
        lease = await engine.claim("x0", 1, {EXPOSURES: LogIdentity("c2")})
        assert lease.positions == {EXPOSURES: 0} and engine.counts["new_logs"] == 1
        await engine.apply([listed(0, ["a"], "r1"), listed(1, ["a"], "new")])  # the first one was counted before
        part = (await read_state(store, PARTITIONS))["x0"]
        (counts,) = part["showings"].values()
        assert counts == {"a": 2000, "b": 1000} and part["positions"] == {EXPOSURES: 2}

    asyncio.run(scenario())


def test_a_state_of_later_rules_is_refused() -> None:
    async def scenario() -> None:
        broker, store = MemoryBroker(), MemoryStore()
        await (await claimed(store, broker)).apply([listed(0, ["a"])])
        ((rules,),) = await store.read([(store.keys.owner("x0"), ["rules"])])
        assert rules == str(RULES_VERSION).encode()
        await store.write(store.keys.owner("x0"), {"rules": b"99"})
        with pytest.raises(ValueError, match="this build knows up to"):
            await claimed(store, broker)

    asyncio.run(scenario())


def test_a_state_without_showings_has_the_digest_that_it_had() -> None:
    async def scenario() -> None:
        broker, plain, counted = MemoryBroker(), MemoryStore(), MemoryStore()
        record = Record(CLICKSTREAM, 0, 0, NOW_MS, None, orjson.dumps(click("user-3", "a", NOW_MS, "e")))
        for store, rules in ((plain, Rules()), (counted, RULES)):
            engine = Engine(store, rules, 1, broker)
            for topic in (CLICKSTREAM, EXPOSURES)[: 1 + rules.showings]:
                tag = tag_of(topic, 0)
                await engine.claim(tag, 1, dict.fromkeys(topics_of(tag), LOG))
            await engine.apply([record])
        assert await digest(plain, 1) == await digest(counted, 1)
        assert partition_tag(0) in (await digest(plain, 1)).parts

    asyncio.run(scenario())


def test_a_replay_of_the_log_counts_what_the_worker_counted() -> None:
    async def scenario() -> None:
        broker, store = MemoryBroker(), MemoryStore()
        show(broker, PARTITIONS, 7, lists=1500)
        await drain(store, broker, random.Random(7))
        log = sorted((record for part in broker.logs.values() for record in part), key=lambda one: one.timestamp_ms)
        replayed = MemoryStore()
        engine = await open_engine(replayed, RULES, PARTITIONS, SilentSink(), None, folder_logs("shop"))
        assert await feed(log, engine, ReplayCounts()) == len(log)
        state, again = await read_state(store, PARTITIONS), await read_state(replayed, PARTITIONS)
        assert [state[name] for name in ("x0", "x1")] == [again[name] for name in ("x0", "x1")]

    asyncio.run(scenario())


def test_pages_of_a_folder_are_lists_as_the_api_writes_them(tmp_path: Path) -> None:
    pages: list[dict[str, Any]] = [
        {"user_id": "u1", "timestamp": START_S + 9, "shown": ["a", "b"], "page_id": "p"},
        {"user_id": "u2", "ts_ms": START_S * 1000 + 1, "shown": ["b"], "page_id": "p"},
        {"user_id": "u1", "timestamp": START_S + 9, "shown": [], "recommendation_id": "r1"},
        {"user_id": "u1", "shown": ["a"]},
    ]
    rows = [("u1", "a", "view", START_S + 9)]
    folder = read_folder(write_folder(tmp_path / "shop", rows, [item("a"), item("b")], impressions=pages))
    assert EXPOSURES not in {record.topic for record in records(folder)}
    found = [record for record in numbered(records(folder, topics=RULES.consumed), 1) if record.topic == EXPOSURES]
    with pytest.raises(MalformedError):
        parse(found[0], RULES)  # nothing says when it was shown
    lists = [event for record in found[1:] if isinstance(event := parse(record, RULES), Exposure)]
    assert [(one.user_id, one.shown, one.ts_ms - START_S * 1000) for one in lists] == [
        ("u2", ("b",), 1),
        ("u1", ("a", "b"), 9000),
        ("u1", (), 9000),
    ]
    assert len({one.recommendation_id for one in lists}) == 3 and lists[2].recommendation_id == "r1"
