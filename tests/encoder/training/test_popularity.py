"""Counts that halve with age, against the live ones, which come from buckets, and over many years."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from encoder.training.popularity import HALF_LIFE_MS, DecayedCounts
from index.query.counts import popularity as live
from index.state.memory_store import MemoryStore
from tests.index.query.counts.test_popularity import put

DAY_MS = 86_400_000
ITEMS, PLACES = 7, ("", "rome", "oslo")


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_those_of_the_live_counts_with_the_narrowest_buckets(seed: int) -> None:
    rng = random.Random(seed)
    times = sorted(rng.randrange(20 * DAY_MS) for _ in range(60))
    events = [(ts_ms, rng.choice(PLACES), rng.randrange(ITEMS - 1), rng.choice([1, 3, 5])) for ts_ms in times]
    counts = DecayedCounts(ITEMS)
    buckets: dict[tuple[int, int], Counter[tuple[str, str]]] = defaultdict(Counter)
    for ts_ms, place, item, amount in events:
        counts.add(item, amount, ts_ms, place or None)
        buckets[0, ts_ms][place, str(item)] += amount

    async def expected() -> list[list[float]]:
        store = MemoryStore()
        await put(store, buckets)
        popularity = live.Popularity(store)
        await popularity.refresh(1, 1, times[-1] + DAY_MS + 1)  # a bucket's age counts from its end
        names = [str(item) for item in range(ITEMS)]
        return [popularity.shares(names, place).tolist() for place in PLACES]

    found = [counts.shares(times[-1] + DAY_MS, place or None) for place in PLACES]
    np.testing.assert_allclose(found, asyncio.run(expected()), rtol=1e-9)
    assert found[0].max() == 1 and found[0][ITEMS - 1] == 0


def test_the_half_life_is_the_live_one() -> None:
    assert HALF_LIFE_MS == live.HALF_LIFE_MS


def test_centuries_without_an_event_leave_numbers() -> None:
    counts = DecayedCounts(3)
    for year in range(0, 400, 50):
        now_ms = year * 365 * DAY_MS
        counts.add(0, 1, now_ms, "rome")
        counts.add(1, 4, now_ms + DAY_MS, "rome")
        shares = [counts.shares(now_ms + 2 * DAY_MS, place) for place in (None, "rome", "nowhere")]
        old, new = 2 ** (-2 / 3), 4 * 2 ** (-1 / 3)
        np.testing.assert_allclose(shares[0], [np.log1p(old) / np.log1p(new), 1, 0])
        np.testing.assert_array_equal(shares[0], shares[2])
        assert np.isfinite(shares).all() and shares[1][1] == 1


def test_without_a_count_nothing_is_popular() -> None:
    counts = DecayedCounts(2)
    assert counts.shares(5).tolist() == [0, 0]
    counts.add(0, 1, 5)
    assert counts.shares(5, "rome").tolist() == [1, 0]
