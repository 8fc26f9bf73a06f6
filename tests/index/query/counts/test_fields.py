"""Fields of counts as columns: numbers stay, sums are those spelled out, and others run while many are taken in."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from index.query.counts.fields import CountedFields, summed
from index.state.keys import LOCATION_SEPARATOR

PLACES, ITEMS = ("", "oslo", "rome"), "abcd"
BUCKETS = st.lists(
    st.dictionaries(st.tuples(st.sampled_from(PLACES), st.sampled_from(ITEMS)), st.integers(0, 9)), max_size=4
)


def stored(counts: Mapping[tuple[str, str], int]) -> dict[str, bytes]:
    return {f"{place}{LOCATION_SEPARATOR}{item}": str(count).encode() for (place, item), count in counts.items()}


@given(BUCKETS)
def test_sums_by_item_and_place_are_those_spelled_out(buckets: list[dict[tuple[str, str], int]]) -> None:
    fields = CountedFields(ITEMS.index)
    read = [asyncio.run(fields.counted(stored(counts))) for counts in buckets]
    total = np.zeros(len(fields))
    for numbers, counts in read:
        total[numbers] += counts

    def spelled(where: str | None) -> list[int]:
        return [
            sum(
                count
                for one in buckets
                for (place, name), count in one.items()
                if name == item and where in (None, place)
            )
            for item in ITEMS
        ]

    assert summed(fields.items, total, len(ITEMS)).tolist() == spelled(None)
    for place in (*PLACES, "nowhere"):
        there = fields.at(place)
        assert summed(fields.items[there], total[there], len(ITEMS)).tolist() == spelled(place)
    assert set(fields.places_of(total)) == {place for place in PLACES if any(spelled(place))}


def test_others_run_while_many_fields_are_taken_in() -> None:
    async def scenario() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(tick())
        fields = CountedFields(int)
        numbers, counts = await fields.counted({f"{LOCATION_SEPARATOR}{n}": b"2" for n in range(20_000)})
        ticking.cancel()
        assert numbers.tolist() == [*range(20_000)] and set(counts.tolist()) == {2.0}
        return ticks

    assert asyncio.run(scenario()) >= 9
