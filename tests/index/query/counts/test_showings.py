"""Showings with counts that can be added up by hand: ended buckets alone, decay, partitions, reading what grew."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from index.query.counts.popularity import Popularity
from index.query.counts.showings import LOOK_MS, Showings
from index.state.keys import showings_tag
from index.state.store import StoreUnavailableError
from tests.index.query.counts.test_popularity import HOUR_MS, CountingStore

Lists = Mapping[tuple[int, int], Mapping[str, int]]  # (partition, bucket) → item → thousandths


async def put(store: CountingStore, lists: Lists, count: int = 1) -> None:
    for (partition, bucket), items in lists.items():
        tag = showings_tag(partition)
        await store.write(store.keys.showings(tag, bucket), {name: str(of).encode() for name, of in items.items()})
        await store.write(store.keys.showing_buckets(tag), {str(bucket): str(count).encode()})


def test_buckets_that_have_ended_add_up_over_partitions_and_halve_with_age() -> None:
    async def scenario() -> None:
        store = CountingStore()
        await put(store, {(0, 5): {"a": 1000, "b": 500}, (1, 5): {"a": 2000}, (0, 4): {"b": 1000}, (0, 6): {"a": 9000}})
        found = Showings(store, half_life_ms=HOUR_MS)
        await found.refresh(2, HOUR_MS, 6 * HOUR_MS)
        assert found.seen(["a", "b", "nobody"]).tolist() == [3.0, 1.0, 0.0]
        await found.refresh(2, HOUR_MS, 7 * HOUR_MS - 1)
        assert found.seen(["a"]).tolist() == [3.0], "the present bucket does not count"
        await found.refresh(2, HOUR_MS, 7 * HOUR_MS)
        assert found.seen(["a", "b"]).tolist() == [9.0 + 1.5, 0.5]
        assert found.seen([]).tolist() == []

    asyncio.run(scenario())


def test_only_what_grew_is_read_again_and_late_lists_are_found_in_time() -> None:
    async def scenario() -> None:
        store = CountingStore()
        await put(store, {(0, 4): {"a": 1000}, (0, 5): {"a": 1000}})
        found = Showings(store, half_life_ms=HOUR_MS)
        await found.refresh(1, HOUR_MS, 6 * HOUR_MS)
        await put(store, {(0, 4): {"a": 3000}}, count=2)
        store.keys_read.clear()
        await found.refresh(1, HOUR_MS, 6 * HOUR_MS + LOOK_MS - 1)
        assert store.keys_read == [] and found.seen(["a"]).tolist() == [1.5]
        await found.refresh(1, HOUR_MS, 6 * HOUR_MS + LOOK_MS)
        assert store.keys_read == [store.keys.showing_buckets("x0"), store.keys.showings("x0", 4)]
        assert found.seen(["a"]).tolist() == [2.5]
        await store.remove(store.keys.showing_buckets("x0"), ["4"])
        await found.refresh(1, HOUR_MS, 6 * HOUR_MS + 2 * LOOK_MS)
        assert found.seen(["a"]).tolist() == [1.0]

    asyncio.run(scenario())


def test_a_store_that_is_away_changes_nothing() -> None:
    async def scenario() -> None:
        store = CountingStore()
        await put(store, {(0, 5): {"a": 1000}})
        found = Showings(store, half_life_ms=HOUR_MS)
        await found.refresh(1, HOUR_MS, 6 * HOUR_MS)
        await put(store, {(0, 6): {"a": 1000}})
        store.away = store.keys.showings("x0", 6)
        with pytest.raises(StoreUnavailableError):
            await found.refresh(1, HOUR_MS, 7 * HOUR_MS)
        assert found.seen(["a"]).tolist() == [1.0]
        store.away = ""
        await found.refresh(1, HOUR_MS, 7 * HOUR_MS)
        assert found.seen(["a"]).tolist() == [1.5]

    asyncio.run(scenario())


def test_they_are_read_for_rankers_alone_and_where_they_are_counted() -> None:
    async def scenario() -> None:
        store = CountingStore()
        await put(store, {(0, 5): {"a": 1000}})
        plain, off = Popularity(store, showings=True), Popularity(store, kinds=True)
        for popularity in (plain, off):
            await popularity.refresh(1, HOUR_MS, 6 * HOUR_MS)
        assert store.keys.showing_buckets("x0") not in store.keys_read
        assert off.showings is None and plain.showings is not None
        plain.kinds = True
        await plain.refresh(1, HOUR_MS, 6 * HOUR_MS)
        assert plain.showings.seen(["a"]).tolist() == [1.0]

    asyncio.run(scenario())
