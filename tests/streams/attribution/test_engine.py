"""The engine against the oracle: any batching, restarts, store failures and resends give the same results, once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import orjson
import pytest

from index.results.cells import GROUPS, group_of
from index.results.reader import read_counts
from index.state.keys import attribution_tag, partition_of
from index.state.memory_store import MemoryStore
from index.state.store import FencedError, LogIdentity, StoreUnavailableError
from streams.attribution.engine import TOPICS, AttributionEngine
from streams.events import CLICKSTREAM, EXPOSURES, Rules
from tests.streams.attribution.test_joining import NOW_MS, RULES, Logs, oracle_of
from tests.streams.pipeline.test_engine import FailingStore
from tests.support.attribution_oracle import Sums
from tests.support.streams_world import MemoryBroker

PARTITIONS = 2
LOG = LogIdentity("c1")
TAGS = [attribution_tag(number) for number in range(PARTITIONS)]


def broker_of(logs: Logs) -> MemoryBroker:
    broker = MemoryBroker()
    for topic, bodies in ((EXPOSURES, logs.shown), (CLICKSTREAM, logs.done)):
        for body in bodies:
            user = body["user_id"]
            broker.append(topic, partition_of(user, PARTITIONS), user.encode(), orjson.dumps(body), body["ts_ms"])
    return broker


async def claimed(store: MemoryStore, broker: MemoryBroker) -> AttributionEngine:
    engine = AttributionEngine(store, Rules(), PARTITIONS, broker, RULES)
    for tag in TAGS:
        await engine.claim(tag, 1, dict.fromkeys(TOPICS, LOG))
    return engine


async def drain(store: MemoryStore, broker: MemoryBroker, rng: random.Random, restart: float) -> None:
    engine = await claimed(store, broker)
    while True:
        batch = []
        for number, tag in enumerate(TAGS):
            for topic in rng.sample(TOPICS, rng.choice((1, 2))):
                at = engine.leases[tag].positions[topic]
                batch += broker.logs[topic, number][max(0, at - rng.randrange(3)) : at + rng.choice((1, 3, 50))]
        try:
            if rng.random() < 0.2:
                await engine.sweep()
            await engine.apply(batch)
        except StoreUnavailableError:
            continue
        except FencedError:
            engine = await claimed(store, broker)
        if all(
            engine.leases[tag].positions[topic] == len(broker.logs[topic, number])
            for number, tag in enumerate(TAGS)
            for topic in TOPICS
        ):
            return
        if rng.random() < restart:
            engine = await claimed(store, broker)


async def sums(store: MemoryStore) -> Sums:
    found: Sums = Counter()
    for place, counts in (await read_counts(store, PARTITIONS)).items():
        assert (counts >= 0).all()
        found[place.day, tuple(place.cell), place.slot, place.measure] += int(counts.sum())
    return +found


@pytest.mark.parametrize("seed", range(40))
def test_any_batching_restart_and_failure_gives_the_oracles_results(seed: int) -> None:
    async def scenario() -> None:
        logs = Logs.random(seed, late_ms=3_000_000, forgets=seed % 3 == 0)
        store = FailingStore(seed, rate=0.3 if seed % 2 else 0.0)
        broker = broker_of(logs)
        await drain(store, broker, random.Random(seed), restart=0.1)
        oracle = oracle_of(logs)
        assert await sums(store) == oracle.sums(), seed
        by_group = {
            number: oracle.sums([user for user in oracle.lists if group_of(user) == number]) for number in range(GROUPS)
        }
        for place, counts in (await read_counts(store, PARTITIONS)).items():
            key = (place.day, tuple(place.cell), place.slot, place.measure)
            assert [by_group[number][key] for number in range(GROUPS)] == counts.tolist()

    asyncio.run(scenario())


def test_what_is_no_part_of_it_is_passed_over() -> None:
    async def scenario() -> None:
        broker, store = MemoryBroker(), MemoryStore()
        home = partition_of("u", PARTITIONS)
        shown: dict[str, Any] = {"recommendation_id": "r", "user_id": "u", "ts_ms": NOW_MS, "items": [{"item_id": "i"}]}
        done = {"event_id": "e", "user_id": "u", "item_id": "i", "kind": "purchase", "ts_ms": NOW_MS}
        for body in (shown, {**shown, "items": 3}, {**shown, "recommendation_id": 5}):
            broker.append(EXPOSURES, home, b"u", orjson.dumps(body), NOW_MS)
        broker.append(EXPOSURES, 1 - home, b"u", orjson.dumps({**shown, "recommendation_id": "elsewhere"}), NOW_MS)
        values: list[Any] = [None, "12,50", -3, 1e300, True, [1], 12.5, 3]
        for number, value in enumerate(values):
            body = {**done, "event_id": f"e{number}", "value": value}
            broker.append(CLICKSTREAM, home, b"u", orjson.dumps(body), NOW_MS)
        broker.append(CLICKSTREAM, home, b"u", b"{", NOW_MS)
        broker.append(CLICKSTREAM, home, b"u", orjson.dumps({**done, "kind": "dislike", "event_id": "d"}), NOW_MS)
        engine = await claimed(store, broker)
        await engine.apply([record for log in broker.logs.values() for record in log])
        measures: Counter[str] = Counter()
        for (_, _, slot, measure), count in (await sums(store)).items():
            measures[measure] += count if not slot else 0
        assert measures == {"lists": 1, "items": 1, "clicked": 1, "purchases": 8, "cents": 1550}
        assert engine.results == {("", measure): count for measure, count in measures.items()}
        assert broker.dead == []  # its worker says so

    asyncio.run(scenario())


def test_two_owners_never_write_at_once() -> None:
    async def scenario() -> None:
        logs = Logs.random(3, late_ms=0)
        broker, store = broker_of(logs), MemoryStore()
        one, other = await claimed(store, broker), await claimed(store, broker)
        number = next(number for number in range(PARTITIONS) if broker.logs[EXPOSURES, number])
        with pytest.raises(FencedError):
            await one.apply(broker.logs[EXPOSURES, number])
        await other.apply(broker.logs[EXPOSURES, number])
        assert other.leases[TAGS[number]].positions[EXPOSURES] == len(broker.logs[EXPOSURES, number])

    asyncio.run(scenario())
