"""What rises: a known answer by hand, a brute-force oracle, and locations, masks and smoothing."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context.units import DAY_MS, HOUR_MS
from index.items.catalogue import Catalogue
from index.items.search import ExactIndex
from index.query.counts.popularity import HALF_LIFE_MS, Popularity
from index.query.lists.trending import LATELY_MS, Trends, rises
from index.state.keys import LOCATION_SEPARATOR, partition_tag
from index.state.memory_store import MemoryStore
from index.state.records import ItemRecord

Counts = Mapping[int, Mapping[tuple[str, str], int]]  # bucket → (location, item) → weight
BUCKET_MS, NOW = 6 * HOUR_MS, 40  # the bucket that is open now


def world(counts: Counts, names: str = "abcdefgh") -> tuple[Popularity, Catalogue]:
    async def made() -> Popularity:
        store, tag = MemoryStore(), partition_tag(0)
        for bucket, fields in counts.items():
            named = {f"{at}{LOCATION_SEPARATOR}{item}": str(count).encode() for (at, item), count in fields.items()}
            await store.write(store.keys.popularity(tag, bucket), named)
            await store.write(store.keys.popularity_buckets(tag), {str(bucket): str(sum(fields.values())).encode()})
        found = Popularity(store)
        await found.refresh(1, BUCKET_MS, NOW * BUCKET_MS)
        return found

    catalogue = Catalogue("m-1", 2, ExactIndex(2))
    vector = np.array([1, 0], np.float32)
    catalogue.apply([ItemRecord(name, 1, {"title": name}, None, (), "e", None, None, vector) for name in names])
    return asyncio.run(made()), catalogue


def risen(counts: Counts, location: str = "") -> dict[str, float]:
    popularity, catalogue = world(counts)
    every = np.ones(catalogue.size, np.bool_)
    return dict(Trends(popularity).top(catalogue, every, 8, location))


def test_what_rises_is_first_and_what_is_always_popular_is_not_there() -> None:
    steady = {bucket: {("", "a"): 100, ("", "b"): 10} for bucket in range(20, NOW + 1)}
    steady[NOW] = {("", "a"): 100, ("", "b"): 40}
    assert [*risen(steady)] == ["b"], "b has four times its usual events, a only its share of fewer"


def test_more_events_of_everything_are_no_trend() -> None:
    counts = {bucket: {("", "a"): 60, ("", "b"): 30} for bucket in range(NOW)}
    assert risen(counts | {NOW: {("", "a"): 6000, ("", "b"): 3000}}) == {}


def test_one_click_on_something_new_rises_less_than_twice_as_many_on_something_known() -> None:
    counts = {bucket: {("", "a"): 500, ("", "b"): 50} for bucket in range(20, NOW)}
    found = risen({**counts, NOW: {("", "a"): 500, ("", "b"): 100, ("", "c"): 1}})
    assert [*found] == ["b", "c"] and found["b"] > 10 * found["c"]


def expected(counts: Counts, location: str) -> dict[str, float]:
    """The formula as the docs say it, read from the counts one by one."""
    lately, usually = dict[str, float](), dict[str, float]()
    here = location if any(at == location for fields in counts.values() for at, _ in fields) else ""
    for bucket, fields in counts.items():
        age_ms = max(0, NOW - bucket - 1) * BUCKET_MS
        for (at, item), count in fields.items():
            if here in ("", at):
                lately[item] = lately.get(item, 0) + count * 2 ** (-age_ms / LATELY_MS)
                usually[item] = usually.get(item, 0) + count * 2 ** (-age_ms / HALF_LIFE_MS)
    pace = sum(lately.values()) / sum(usually.values()) if usually else 0
    found = {item: (lately[item] - usual * pace) / math.sqrt(usual * pace + 10) for item, usual in usually.items()}
    return {item: rise for item, rise in found.items() if rise > 1e-9}


FIELDS = st.dictionaries(st.tuples(st.sampled_from(["", "oslo"]), st.sampled_from("abcdefgh")), st.integers(1, 60))


@given(st.dictionaries(st.integers(NOW - 15, NOW), FIELDS, max_size=6), st.sampled_from(["", "oslo", "rome"]))
@settings(max_examples=60, deadline=None)
def test_rises_are_those_of_the_formula(counts: Counts, location: str) -> None:
    found, wanted = risen(counts, location), expected(counts, location)
    assert {item: rise for item, rise in found.items() if rise > 1e-9} == pytest.approx(wanted)
    assert [*found] == sorted(found, key=lambda item: (-found[item], item))


def test_only_what_is_allowed_is_there_also_where_that_is_rare() -> None:
    names = [f"i{number:03}" for number in range(300)]
    counts: Counts = {1: {("", "i000"): 5000}, NOW: {("", name): 400 - at for at, name in enumerate(names)}}
    popularity, _ = world(counts)
    catalogue = Catalogue("m-1", 2, ExactIndex(2))
    vector = np.array([1, 0], np.float32)
    catalogue.apply([ItemRecord(name, 1, {"title": name}, None, (), "e", None, None, vector) for name in names])
    allowed, trends = np.zeros(300, np.bool_), Trends(popularity)
    allowed[[5, 290, 295]] = True
    assert [name for name, _ in trends.top(catalogue, allowed, 3)] == ["i005", "i290", "i295"]
    assert [name for name, _ in trends.top(catalogue, allowed, 1)] == ["i005"]
    every = np.ones(300, np.bool_)
    order = [name for name, _ in Trends(popularity).top(catalogue, every, 300)]
    assert len(order) > 250
    for count in (50, 1, 3, 200, 2, 300):  # whatever was asked before
        for mask in (every, allowed, np.arange(300) % 2 == 0, np.arange(300) > 240):
            may = [name for name in order if mask[names.index(name)]]
            assert [name for name, _ in trends.top(catalogue, mask, count)] == may[:count], count


def test_half_lives_are_apart() -> None:
    assert LATELY_MS * 10 <= HALF_LIFE_MS == 3 * DAY_MS
    assert rises(np.zeros(3), np.zeros(3)).tolist() == [0, 0, 0]
