"""What is bought with a basket: decay, partitions, round trips, and an order by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.query.counts.popularity import Popularity
from index.query.lists.together import KEPT_MS, Companions, Together, together_scores
from index.state.keys import partition_tag
from index.state.memory_store import MemoryStore
from index.state.pair_rows import PAIR_BUCKET_MS, PairRow
from tests.index.query.test_recommend import counted

PARTITIONS, NOW = 3, 500
NOW_MS = NOW * PAIR_BUCKET_MS + 1
Rows = Mapping[tuple[int, int], Mapping[str, PairRow]]  # (partition, age of the bucket) → item → row


class CountingStore(MemoryStore):
    """Counts round trips."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    async def read(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[bytes | None]]:
        self.reads += 1
        return await super().read(requests)


async def put(store: MemoryStore, rows: Rows) -> None:
    for (partition, age), items in rows.items():
        stored = {item: row.stored() for item, row in items.items()}
        await store.write(store.keys.pairs(partition_tag(partition), NOW - age), stored)


def companions(rows: Rows, items: Sequence[str]) -> dict[str, Companions]:
    async def found() -> dict[str, Companions]:
        store = MemoryStore()
        await put(store, rows)
        return await Together(store).companions(items, PARTITIONS, NOW_MS, 0)

    return asyncio.run(found())


ROWS = st.builds(
    PairRow, st.integers(1, 50), st.dictionaries(st.sampled_from("bcdefg"), st.integers(1, 20), max_size=5)
)


@given(st.dictionaries(st.tuples(st.integers(0, 3), st.integers(-1, 4)), ROWS.map(lambda row: {"a": row}), max_size=8))
@settings(max_examples=60, deadline=None)
def test_partitions_add_up_and_a_bucket_weighs_half_of_the_next(rows: Rows) -> None:
    counting = {where: items["a"] for where, items in rows.items() if where[0] < PARTITIONS and 0 <= where[1] < 3}
    found = companions(rows, ["a", "unknown"])
    assert found["unknown"] == Companions()
    assert found["a"].baskets == sum(row.baskets / 2**age for (_, age), row in counting.items())
    for other in "bcdefg":
        wanted = sum(row.others.get(other, 0) / 2**age for (_, age), row in counting.items())
        assert found["a"].others.get(other, 0) == wanted


def test_a_basket_costs_one_round_trip_and_none_while_its_items_are_known() -> None:
    async def scenario() -> None:
        store = CountingStore()
        await put(store, {(0, 0): {"a": PairRow(1, {"b": 1})}})
        together = Together(store)
        for at_ms, items, reads in ((0.0, "ab", 1), (1.0, "ba", 1), (2.0, "abc", 2), (KEPT_MS + 1, "ab", 3)):
            found = await together.companions(items, PARTITIONS, NOW_MS, at_ms)
            assert [*found] == [*items] and store.reads == reads
            assert found["a"].others == {"b": 1}

    asyncio.run(scenario())


def test_what_goes_with_more_of_the_basket_and_is_not_bought_anyway_comes_first() -> None:
    popularity: Popularity = counted({"bag": 99, "pen": 3})
    basket = {"a": Companions(4, {"bag": 4, "pen": 2, "ink": 1, "b": 3}), "b": Companions(1, {"pen": 1, "a": 1})}
    found = together_scores(basket, popularity)
    assert found == pytest.approx({"bag": 4 / 2 / 10, "pen": (2 / 2 + 1) / 2, "ink": 1 / 2})
    assert together_scores({}, popularity) == {}
