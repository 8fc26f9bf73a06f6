"""Kept masks equal masks made anew, whatever changes in between and whenever they are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.items.catalogue import Catalogue
from index.items.filters import mask, parse_filter
from index.items.search import ExactIndex
from index.state.records import ItemRecord

DIM = 2
TREES = [
    {"field": "brand", "in": ["acme"]},
    {"not": {"field": "brand", "in": ["acme"]}},
    {"and": [{"field": "price", "gte": 2}, {"field": "available", "in": [True]}]},
    {"field": "starts", "lte": 1_760_000_000_000},
]
TIMES = st.none() | st.integers(0, 20)
STEPS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.booleans(),
        st.booleans(),
        st.fixed_dictionaries(
            {
                "brand": st.sampled_from(["acme", "bolt"]),
                "price": st.integers(0, 4),
                "available": st.booleans(),
                "starts_ms": TIMES,
                "ends_ms": TIMES,
            }
        ),
        st.lists(st.integers(-1, 21), min_size=1, max_size=4),  # when it is asked
    ),
    max_size=12,
)


def changed(item_id: str, position: int, listed: bool, has_vector: bool, fields: dict[str, Any]) -> ItemRecord:
    vector = np.array([1.0, position], np.float32) if has_vector else None
    known = {"title": f"{item_id} {position}", **fields} if listed else None
    return ItemRecord(item_id, position, known, None, (), "e", None, None, vector)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_kept_masks_and_titles_are_those_of_the_last_records(steps: list[tuple[Any, ...]]) -> None:
    catalogue, last = Catalogue("m-1", DIM, ExactIndex(DIM)), dict[str, ItemRecord]()
    for position, (item_id, listed, has_vector, fields, times) in enumerate(steps, 1):
        last[item_id] = changed(item_id, position, listed, has_vector, fields)
        catalogue.apply([last[item_id]])
        assert len(catalogue) == sum(known.catalogue is not None for known in last.values())
        assert {known: catalogue.title_of(known) for known in last} == {
            known: str(record.catalogue["title"]) if record.catalogue else "" for known, record in last.items()
        }
        for now_ms in times:
            shown = set(catalogue.ids_of(np.flatnonzero(catalogue.hard_mask(now_ms))))
            assert shown == {known for known, record in last.items() if _may_show(record, now_ms)}
        for tree in map(parse_filter, TREES):
            for _ in range(2):
                np.testing.assert_array_equal(catalogue.filter_mask(tree), mask(tree, catalogue))


def _may_show(record: ItemRecord, now_ms: int) -> bool:
    if record.catalogue is None or record.retrieval is None or not record.catalogue["available"]:
        return False
    starts, ends = record.catalogue["starts_ms"], record.catalogue["ends_ms"]
    return (starts is None or starts <= now_ms) and (ends is None or now_ms < ends)


def test_a_kept_mask_cannot_be_written_to_and_the_hard_one_is_a_copy() -> None:
    catalogue = Catalogue("m-1", DIM, ExactIndex(DIM))
    catalogue.apply([changed("a", 1, True, True, {"brand": "acme", "available": True})])
    tree = parse_filter(TREES[0])
    with pytest.raises(ValueError, match="read-only"):
        catalogue.filter_mask(tree)[0] = False
    catalogue.hard_mask(0)[0] = False
    assert catalogue.hard_mask(0).tolist() == [True]


def test_few_filters_are_kept() -> None:
    catalogue = Catalogue("m-1", DIM, ExactIndex(DIM))
    catalogue.apply([changed("a", 1, True, True, {"brand": "acme", "available": True})])
    for number in range(200):
        assert catalogue.filter_mask(parse_filter({"field": "price", "lte": number})).tolist() == [False]
    assert len(catalogue._masks._passing) <= 64
