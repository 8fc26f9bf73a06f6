"""The filter language: what is refused and why, and that a mask means the same as looking at one item at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.items.catalogue import Catalogue
from index.items.filters import MAX_DEPTH, parse_filter
from index.state.records import ItemRecord

BRANDS, WORDS, TIMES = ["acme", "bolt"], ["a", "b", "c"], [0, 5, 10]


def record(number: int, fields: Mapping[str, Any] | None, tags: tuple[str, ...] = ()) -> ItemRecord:
    vector = np.array([1, 0], np.float32)
    return ItemRecord(f"i{number}", number + 1, fields, None, tags, "e", None, None, vector)


@pytest.fixture
def items() -> Iterator[Catalogue]:
    catalogue = Catalogue("m-1", 2)
    yield catalogue
    catalogue.close()


def passing(catalogue: Catalogue, body: Any) -> set[str]:
    found = catalogue.filter_mask(parse_filter(body))
    return set(catalogue.ids_of(np.flatnonzero(found)))


SHOP: list[dict[str, Any]] = [
    {"brand": "acme", "category": ["drinks", "tea"], "price": 5.0, "tags": ["hot"], "regions": ["eu"]},
    {"brand": "bolt", "category": ["drinks"], "price": 10.0, "available": False, "starts_ms": 100, "ends_ms": 200},
    {"brand": None, "category": [], "price": None, "tags": ["cold", "hot"], "regions": ["us", "eu"], "subclass": "x"},
]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"field": "brand", "in": ["acme"]}, {"i0"}),
        ({"field": "brand", "not_in": ["acme"]}, {"i1", "i2"}),  # a missing brand is not one of them
        ({"field": "category", "in": ["tea", "coffee"]}, {"i0"}),
        ({"field": "category", "all": ["tea", "drinks"]}, {"i0"}),
        ({"field": "tags", "all": ["hot", "cold"]}, {"i2"}),
        ({"field": "tags", "in": ["sweet"]}, {"i1"}),  # came with the vector
        ({"field": "region", "in": ["us"]}, {"i1", "i2"}),  # without regions: sold everywhere
        ({"field": "region", "all": ["us", "eu"]}, {"i1", "i2"}),
        ({"field": "price", "lte": 10}, {"i0", "i1"}),  # a missing price is neither low nor high
        ({"not": {"field": "price", "lte": 5}}, {"i1", "i2"}),
        ({"field": "price", "gte": 6, "lte": 12}, {"i1"}),
        ({"field": "starts", "lte": 50}, {"i0", "i2"}),
        ({"field": "starts", "gte": 50}, {"i1"}),
        ({"field": "ends", "gte": 250}, {"i0", "i2"}),
        ({"field": "ends", "gte": 1_760_000_000_000}, {"i0", "i2"}),
        ({"field": "brand", "in": [" acme\u00a0"]}, {"i0"}),  # labels are folded, as those of items
        ({"field": "category", "all": ["tea\u3000", "drinks\u200b", "tea"]}, {"i0"}),
        ({"field": "region", "in": ["\tus"]}, {"i1", "i2"}),
        ({"field": "item_id", "in": ["i1 "]}, set()),  # ids are not
        ({"field": "available", "in": [True]}, {"i0", "i2"}),
        ({"field": "available", "in": [True, False]}, {"i0", "i1", "i2"}),
        ({"field": "item_id", "in": ["i1", "nobody"]}, {"i1"}),
        ({"field": "subclass", "in": ["x"], "not_in": ["y"]}, {"i2"}),
        ({"or": [{"field": "brand", "in": ["bolt"]}, {"field": "subclass", "in": ["x"]}]}, {"i1", "i2"}),
        ({"and": [{"field": "tags", "in": ["hot"]}, {"not": {"field": "subclass", "in": ["x"]}}]}, {"i0"}),
    ],
)
def test_a_filter_has_one_known_meaning(items: Catalogue, body: Any, expected: set[str]) -> None:
    items.apply([record(n, fields, ("sweet",) if n == 1 else ()) for n, fields in enumerate(SHOP)])
    assert passing(items, body) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "filter: expected an object, got []"),
        ({"field": "colour", "in": ["red"]}, "filter.field: 'colour' is not one of available, region"),
        ({"field": {}, "in": ["red"]}, "filter.field: {} is not one of"),
        ({"field": "brand"}, "filter: no operator; brand has in, not_in"),
        ({"field": "brand", "gte": 1}, "filter: brand has no operator 'gte'; it has in, not_in"),
        ({"field": "price", "in": [1]}, "filter: price has no operator 'in'; it has gte, lte"),
        ({"field": "brand", "in": "acme"}, "filter.in: expected a list of 1 to 1000 values, got 'acme'"),
        ({"field": "brand", "in": []}, "filter.in: expected a list of 1 to 1000 values, got []"),
        ({"field": "brand", "in": ["a", 1]}, "filter.in[1]: expected a string, got 1"),
        ({"field": "available", "in": ["yes"]}, "filter.in[0]: expected true or false, got 'yes'"),
        ({"field": "price", "gte": True}, "filter.gte: expected a finite number below 2^62, got True"),
        ({"field": "price", "gte": float("nan")}, "filter.gte: expected a finite number below 2^62, got nan"),
        ({"field": "price", "lte": 10**400}, "filter.lte: expected a finite number below 2^62"),
        ({"field": "starts", "lte": 1.5}, "filter.lte: expected whole milliseconds since the epoch, got 1.5"),
        ({"field": "ends", "gte": 1_760_000_000}, "filter.gte: 1760000000 looks like seconds, expected milliseconds"),
        ({"field": "brand", "in": ["a", "b\x00"]}, "filter.in[1]: holds the control character U+0000"),
        ({"not": {"field": "tags", "in": ["x" * 257]}}, "filter.not.in[0]: has 257 bytes, a label has at most 256"),
        ({"and": []}, "filter.and: expected a list with at least one filter, got []"),
        ({"and": [{"or": [{"field": "x"}]}]}, "filter.and[0].or[0].field: 'x' is not one of"),
        ({"and": [], "or": []}, "filter: ['and', 'or'] together; 'and' must be the only key"),
        ({"or": [{"field": "brand", "in": ["a"]}] * 65}, "filter.or[64]: more than 64 conditions"),
        ({"$where": "1"}, "filter.field: None is not one of"),
    ],
)
def test_a_refusal_names_the_path_and_the_remedy(body: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_filter(body)
    assert str(caught.value).startswith(message)


def test_nesting_ends_at_four() -> None:
    body: Any = {"field": "brand", "in": ["acme"]}
    for _ in range(MAX_DEPTH):
        body = {"not": body}
    parse_filter(body)
    with pytest.raises(ValueError, match="nested deeper than 4; flatten"):
        parse_filter({"not": body})


def some(values: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), max_size=3, unique=True)


ITEMS = st.lists(
    st.tuples(
        st.none()
        | st.fixed_dictionaries(
            {},
            optional={
                "brand": st.none() | st.sampled_from(BRANDS),
                "subclass": st.sampled_from(WORDS),
                "category": some(WORDS),
                "tags": some(WORDS),
                "regions": some(WORDS),
                "price": st.none() | st.sampled_from([1.0, 2.5, 4.0]),
                "available": st.booleans(),
                "starts_ms": st.none() | st.sampled_from(TIMES),
                "ends_ms": st.none() | st.sampled_from(TIMES),
            },
        ),
        some(WORDS),
    ),
    max_size=8,
)
CONDITIONS = st.one_of(
    st.builds(
        lambda field, op, values: {"field": field, op: values},
        st.sampled_from(["category", "tags", "region"]),
        st.sampled_from(["in", "not_in", "all"]),
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=2),
    ),
    st.builds(
        lambda field, op, values: {"field": field, op: values},
        st.sampled_from(["brand", "subclass", "item_id"]),
        st.sampled_from(["in", "not_in"]),
        st.lists(st.sampled_from([*BRANDS, *WORDS, "i0", "i1"]), min_size=1, max_size=2),
    ),
    st.builds(
        lambda field, op, value: {"field": field, op: value},
        st.sampled_from(["price", "starts", "ends"]),
        st.sampled_from(["gte", "lte"]),
        st.sampled_from([0, 2, 5, 10]),
    ),
    st.builds(lambda values: {"field": "available", "in": values}, st.lists(st.booleans(), min_size=1, max_size=2)),
)
FILTERS = st.recursive(
    CONDITIONS,
    lambda inner: st.one_of(
        st.builds(lambda parts: {"and": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: {"or": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: {"not": part}, inner),
    ),
    max_leaves=4,
)


def holds(body: Mapping[str, Any], item_id: str, fields: Mapping[str, Any] | None, tags: list[str]) -> bool:
    """The meaning of a filter for one item, spelled out."""
    if "and" in body:
        return all(holds(part, item_id, fields, tags) for part in body["and"])
    if "or" in body:
        return any(holds(part, item_id, fields, tags) for part in body["or"])
    if "not" in body:
        return not holds(body["not"], item_id, fields, tags)
    known, field = fields or {}, body["field"]
    if field == "available":
        return (fields is not None and known.get("available", True)) in body["in"]
    if field in ("price", "starts", "ends"):
        missing = {"price": None, "starts": float("-inf"), "ends": float("inf")}[field]
        value = known.get(field if field == "price" else f"{field}_ms")
        value = missing if value is None else value
        return value is not None and (value >= body["gte"] if "gte" in body else value <= body["lte"])
    values = {
        "item_id": [item_id],
        "brand": [known.get("brand")],
        "subclass": [known.get("subclass")],
        "category": known.get("category") or [],
        "tags": [*(known.get("tags") or []), *tags],
        "region": known.get("regions") or [],
    }[field]
    everywhere = field == "region" and fields is not None and not known.get("regions")
    if "all" in body:
        return everywhere or all(value in values for value in body["all"])
    listed = body.get("in") or body["not_in"]
    return (everywhere or any(value in values for value in listed)) == ("in" in body)


def depth(body: Mapping[str, Any]) -> int:
    parts = body.get("and") or body.get("or") or ([body["not"]] if "not" in body else [])
    return 1 + max(map(depth, parts)) if parts else 0


@settings(max_examples=300, deadline=None)
@given(ITEMS, FILTERS.filter(lambda body: depth(body) <= MAX_DEPTH))
def test_a_mask_means_the_same_as_looking_at_one_item_at_a_time(
    shop: list[tuple[dict[str, Any] | None, list[str]]], body: dict[str, Any]
) -> None:
    catalogue = Catalogue("m-1", 2)
    try:
        catalogue.apply([record(n, fields, tuple(tags)) for n, (fields, tags) in enumerate(shop)])
        expected = {f"i{n}" for n, (fields, tags) in enumerate(shop) if holds(body, f"i{n}", fields, tags)}
        assert passing(catalogue, body) == expected
    finally:
        catalogue.close()
