"""Pairs of items bought together: baskets by hand, bounded rows, and the live state against the oracle over time."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context.units import DAY_MS, HOUR_MS, MINUTE_MS
from index.state.keys import partition_of, partition_tag
from index.state.memory_store import MemoryStore
from index.state.pair_rows import PAIR_BUCKET_MS, ROW_ITEMS, PairRow
from index.state.user_columns import UserState
from streams.events import CLICKSTREAM, Click
from streams.pipeline.digest import read_state
from streams.pipeline.engine import Engine
from streams.pipeline.partition_clock import PartitionClock
from streams.pipeline.together import MOST_OTHERS, Purchase, purchase_of
from tests.streams.pipeline.test_engine import PARTITIONS, drain, oracle_state
from tests.support.streams_world import NOW_MS, MemoryBroker, click

VIEW, BUY = 0, 2
T = 1000 * PAIR_BUCKET_MS + 5 * HOUR_MS


def bought(*events: tuple[str, int, int], clock_ms: int = -1) -> Purchase | None:
    """What the last of these events (item, kind, time) adds."""
    rows = sorted(enumerate(events), key=lambda row: row[1][2])
    items, kinds, times = zip(*(event for _, event in rows), strict=True)
    item, kind, ts_ms = events[-1]
    state = UserState(range(len(rows)), items, kinds, times)
    return purchase_of(state, Click("e", "u", item, kind, ts_ms, ts_ms), {BUY}, PartitionClock(clock_ms))


def test_a_basket_is_what_was_bought_within_the_hour_on_either_side() -> None:
    assert bought(("a", BUY, T), ("b", VIEW, T), ("c", BUY, T + HOUR_MS)) == (1000, "c", ("a",))
    assert bought(("a", BUY, T), ("c", BUY, T + HOUR_MS + 1)) == (1000, "c", ())
    assert bought(("a", BUY, T), ("b", BUY, T + 2), ("c", BUY, T + 1)) == (1000, "c", ("a", "b")), "a late one"
    assert bought(("a", BUY, T), ("c", VIEW, T)) is None


def test_an_item_comes_into_a_basket_once() -> None:
    assert bought(("a", BUY, T), ("b", BUY, T), ("a", BUY, T + 1)) is None
    assert bought(("a", BUY, T), ("a", BUY, T + 2 * HOUR_MS)) == (1000, "a", ())
    again = bought(("a", BUY, T), ("b", BUY, T + 1), ("a", BUY, T + 2), ("c", BUY, T + 3))
    assert again == (1000, "c", ("b", "a")), "by the latest purchase of each"


def test_of_a_large_basket_the_latest_count_and_of_a_bucket_beyond_the_horizon_none() -> None:
    many = [(f"i{number:02}", BUY, T + number) for number in range(40)]
    found = bought(*many)
    assert found is not None and found.others == tuple(f"i{number:02}" for number in range(39 - MOST_OTHERS, 39))
    assert bought(many[0], clock_ms=T + 2 * PAIR_BUCKET_MS) is not None
    assert bought(many[0], clock_ms=T + 3 * PAIR_BUCKET_MS) is None


@given(st.lists(st.integers(0, 200), max_size=600))
@settings(max_examples=40, deadline=None)
def test_a_row_is_bounded_and_what_is_frequent_stays(others: list[int]) -> None:
    row = PairRow()
    for other in others:
        row.joined_by(f"i{other}")
    assert len(row.others) <= ROW_ITEMS and sum(row.others.values()) == len(others)
    for other in set(others):
        true = others.count(other)
        assert row.others.get(f"i{other}", 0) >= true or true <= len(others) / ROW_ITEMS, "space saving's promise"
    assert PairRow.of_stored(row.stored()) == row and [*PairRow.of_stored(row.stored()).others] == [*row.others]
    assert PairRow.of_stored(None) == PairRow()


def fill(broker: MemoryBroker, seed: int, events: int, step_ms: int) -> None:
    """Purchases and other clicks of a few users over a long time, late and resent ones among them."""
    rng, now, sent = random.Random(seed), NOW_MS, list[dict[str, Any]]()
    for n in range(events):
        now += rng.choice((0, MINUTE_MS, step_ms))
        late_ms = rng.choice((0, 0, 0, 30 * MINUTE_MS, 2 * DAY_MS))
        user, item = f"user-{rng.randrange(5)}", f"item-{int(rng.paretovariate(0.5)) % 200}"
        body = click(user, item, now - late_ms, f"e{n}", rng.choice(("purchase", "purchase", "view")))
        body = rng.choice(sent[-30:]) if sent and rng.random() < 0.1 else body
        sent.append(body)
        home = partition_of(body["user_id"], PARTITIONS)
        broker.append(CLICKSTREAM, home, body["user_id"].encode(), orjson.dumps(body), now)


@pytest.mark.parametrize("seed", range(3))
def test_any_batching_gives_the_oracles_pairs(seed: int) -> None:
    async def scenario() -> None:
        broker, store = MemoryBroker(), MemoryStore()
        fill(broker, seed, 1500, 3 * HOUR_MS)
        await drain(store, broker, random.Random(seed), restart=0.1)
        state, expected = await read_state(store, PARTITIONS), oracle_state(broker)
        for name, part in expected.items():
            assert state[name] == part, name
        buckets = {bucket for part in state.values() for bucket in part.get("pairs", {})}
        assert len(buckets) > 2, "the log spans several"

    asyncio.run(scenario())


def test_a_bucket_that_falls_out_is_removed_with_the_write_that_moves_the_clock() -> None:
    async def scenario() -> None:
        store, broker = MemoryStore(), MemoryBroker()
        user = next(f"u{n}" for n in range(99) if partition_of(f"u{n}", PARTITIONS) == 0)
        tag, keys, first = partition_tag(0), store.keys, NOW_MS // PAIR_BUCKET_MS
        later_ms = (first + 3) * PAIR_BUCKET_MS

        async def apply(engine: Engine, n: int, item: str, ts_ms: int, kind: str) -> None:
            body = click(user, item, ts_ms, f"e{n}", kind)
            broker.append(CLICKSTREAM, 0, user.encode(), orjson.dumps(body), ts_ms)
            await engine.apply(broker.logs[CLICKSTREAM, 0][-1:])

        engine = await drain(store, broker, random.Random(0))
        for n, item in enumerate("ab"):
            await apply(engine, n, item, NOW_MS, "purchase")
        assert await store.read_all(keys.pair_buckets(tag)) == {str(first): b"2"}
        rows = {item: PairRow.of_stored(data) for item, data in (await store.read_all(keys.pairs(tag, first))).items()}
        assert rows == {"a": PairRow(1, {"b": 1}), "b": PairRow(1, {"a": 1})}
        clock = PartitionClock(later_ms - 1, [later_ms] * 31, [later_ms] * 31)
        clock.blocks.extend([later_ms] * 15)  # one more click moves it
        engine.leases[tag].clock = clock
        assert await store.read_all(keys.pairs(tag, first))
        await apply(engine, 2, "c", later_ms, "view")
        assert engine.leases[tag].clock.now_ms == later_ms
        assert await store.read_all(keys.pairs(tag, first)) == {} == await store.read_all(keys.pair_buckets(tag))
        assert engine.leases[tag].pair_buckets == set()
        await apply(engine, 3, "d", NOW_MS + 1, "purchase")
        assert await store.read_all(keys.pair_buckets(tag)) == {}, "too late to count"

    asyncio.run(scenario())
