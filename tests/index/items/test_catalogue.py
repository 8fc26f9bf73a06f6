"""The catalogue: records in, columns and labels kept right through changes, withdrawals, reloads and two threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.items.catalogue import Catalogue
from index.items.filters import parse_filter
from index.items.hnsw import HnswIndex
from index.items.search import ExactIndex
from index.state.records import ItemRecord, Vector
from tests.support.halves import unit_in_halves

DIM, NOW_MS = 3, 1_000


def unit(*values: float) -> Vector:
    return unit_in_halves(values)


EAST = unit(1, 0, 0)


def record(item_id: str, position: int, vector: Vector | None = EAST, **fields: Any) -> ItemRecord:
    catalogue = {"title": item_id, **fields} if fields.pop("listed", True) else None
    embedder = None if vector is None else "e"
    return ItemRecord(item_id, position, catalogue, None, (), embedder, None, None, vector)


@pytest.fixture
def shop() -> Iterator[Catalogue]:
    catalogue = Catalogue("m-1", DIM)
    yield catalogue
    catalogue.close()


def shown(catalogue: Catalogue, now_ms: int = NOW_MS) -> list[str]:
    return sorted(catalogue.ids_of(np.flatnonzero(catalogue.hard_mask(now_ms))))


def found_by(catalogue: Catalogue, field: str, value: str) -> set[str]:
    return set(catalogue.ids_of(np.flatnonzero(catalogue.filter_mask(parse_filter({"field": field, "in": [value]})))))


def test_an_item_is_known_with_all_that_came(shop: Catalogue) -> None:
    fields = {"title": "Tea", "price": 4.5}
    shop.apply([ItemRecord("a", 7, fields, None, ("hot",), "minilm", "h1", "h1", EAST)])
    item = shop.get("a")
    assert item is not None and item.title == "Tea" and item.catalogue == fields
    assert (item.position, item.tags, item.embedder) == (7, ("hot",), "minilm")
    assert item.has_vector and not item.vector_pending
    assert "a" in shop and len(shop) == 1 and shop.position == 7
    np.testing.assert_array_equal(shop.vector("a"), EAST)
    assert shop.get("b") is None and shop.vector("b") is None and shop.position_of("b") == -1


@pytest.mark.parametrize(
    ("vector_hash", "text_hash", "vector", "pending"),
    [("h", "h", EAST, False), (None, "h", EAST, False), ("h", "other", EAST, True), (None, "h", None, True)],
)
def test_a_vector_of_another_text_is_pending(
    shop: Catalogue, vector_hash: str | None, text_hash: str, vector: Vector | None, pending: bool
) -> None:
    shop.apply([ItemRecord("a", 1, {"title": "Tea"}, None, (), "e", vector_hash, text_hash, vector)])
    item = shop.get("a")
    assert item is not None and item.vector_pending is pending


@pytest.mark.parametrize(("vector_hash", "pending"), [("sent", False), ("folded", False), ("other", True)])
def test_a_vector_may_name_the_text_as_it_was_sent_or_with_folded_labels(
    shop: Catalogue, vector_hash: str, pending: bool
) -> None:
    item = ItemRecord("a", 1, {"title": "Tea"}, EAST, (), "e", vector_hash, "sent", EAST, folded_hash="folded")
    shop.apply([item])
    found = shop.get("a")
    assert found is not None and found.vector_pending is item.vector_pending is pending


def test_what_a_promotion_names_meets_the_labels_however_it_is_written(shop: Catalogue) -> None:
    shop.apply([record("a", 1, category=["Home & Garden"], tags=["Café"]), record("b", 2)])
    assert shop.ids_of(shop.labels_with("category", "Home\u00a0&  Garden")) == ["a"]
    assert shop.ids_of(shop.labels_with("tags", "Cafe\u0301")) == ["a"]
    assert shop.ids_of(shop.labels_with("item_id", " a")) == []


def test_only_a_higher_position_changes_an_item(shop: Catalogue) -> None:
    shop.apply([record("a", 5, title="new"), record("a", 4, title="old")])
    shop.apply([record("a", 5, title="the same position"), record("a", 3, listed=False)])
    item = shop.get("a")
    assert item is not None and item.title == "new"


def test_hard_rules(shop: Catalogue) -> None:
    shop.apply(
        [
            record("plain", 1),
            record("out of stock", 2, available=False),
            record("withdrawn", 3, listed=False),
            record("no vector", 4, None),
            record("starts now", 5, starts_ms=NOW_MS),
            record("starts later", 6, starts_ms=NOW_MS + 1),
            record("ends now", 7, ends_ms=NOW_MS),
            record("ends later", 8, ends_ms=NOW_MS + 1),
        ]
    )
    assert shown(shop) == ["ends later", "plain", "starts now"]
    assert shown(shop, NOW_MS + 1) == ["plain", "starts later", "starts now"]
    assert shop.outside(NOW_MS) == {"starts later", "ends now"}
    assert shop.outside(NOW_MS + 1) == {"ends now", "ends later"}
    assert len(shop) == 7


def test_withdrawal_keeps_the_vector_and_relisting_is_instant(shop: Catalogue) -> None:
    shop.apply([record("a", 1, brand="acme"), record("b", 2)])
    shop.apply([record("a", 3, listed=False)])
    assert shown(shop) == ["b"] and found_by(shop, "brand", "acme") == set()
    np.testing.assert_array_equal(shop.vector("a"), EAST)
    shop.apply([record("a", 4, brand="acme")])
    assert shown(shop) == ["a", "b"] and found_by(shop, "brand", "acme") == {"a"}


def test_a_removed_vector_leaves_the_search(shop: Catalogue) -> None:
    shop.apply([record("a", 1), record("b", 2, unit(0, 1, 0))])
    shop.apply([record("a", 3, None)])
    assert shop.vector("a") is None and shop.search.search(EAST[None], 5)[0].shape == (1, 1)


def test_an_item_of_which_nothing_is_left_frees_its_label(shop: Catalogue) -> None:
    shop.apply([record("a", 1, category=["tea"]), record("b", 2)])
    shop.apply([ItemRecord("a", 3, None, None, (), None, None, None, None)])
    assert "a" not in shop and shop.get("a") is None and shop.item_ids() == ["b"]
    shop.apply([record("c", 4, unit(0, 1, 0))])
    assert shop.size == 2
    assert found_by(shop, "category", "tea") == set() and shown(shop) == ["b", "c"]
    np.testing.assert_array_equal(shop.vector("c"), unit(0, 1, 0))


def test_changed_values_move_between_columns(shop: Catalogue) -> None:
    shop.apply([record(f"i{n}", n + 1, brand="acme", tags=["x", "y"]) for n in range(10)])
    shop.apply([record("i4", 20, brand="bolt", tags=["y"], price=3.0)])
    assert found_by(shop, "brand", "bolt") == {"i4"} and len(found_by(shop, "brand", "acme")) == 9
    assert len(found_by(shop, "tags", "x")) == 9 and len(found_by(shop, "tags", "y")) == 10


def test_a_reset_drops_the_others_and_accepts_any_position(shop: Catalogue) -> None:
    shop.apply([record("kept", 900), record("gone", 901)])
    shop.reset({"kept", "to come"})
    assert shop.item_ids() == ["kept"] and shown(shop) == ["kept"] and shop.position == 0
    shop.apply([record("kept", 2, title="changed")])
    item = shop.get("kept")
    assert item is not None and item.title == "changed" and item.position == 2


def test_similar_items_are_the_nearest_that_may_be_shown(shop: Catalogue) -> None:
    shop.apply([record("a", 1), record("b", 2, unit(1, 0.1, 0), price=1.0), record("c", 3, unit(1, 0.3, 0))])
    shop.apply([record("out", 4, unit(1, 0.01, 0), available=False), record("no vector", 5, None)])
    assert [item_id for item_id, _ in shop.similar("a", 5, NOW_MS)] == ["b", "c"]
    assert shop.similar("a", 1, NOW_MS)[0][1] == pytest.approx(float(unit(1, 0.1, 0)[0]), abs=1e-6)
    cheap = parse_filter({"field": "price", "lte": 2})
    assert [item_id for item_id, _ in shop.similar("c", 5, NOW_MS, cheap)] == ["b"]
    assert shop.similar("no vector", 5, NOW_MS) == [] == shop.similar("unknown", 5, NOW_MS)


def test_a_vector_of_another_length_changes_nothing(shop: Catalogue) -> None:
    with pytest.raises(ValueError, match=r"item 'b' has a retrieval vector \(2,\), model m-1 has \(3,\)"):
        shop.apply([record("a", 1), record("b", 2, np.array([1, 0], np.float32))])
    assert shop.item_ids() == []


def test_a_given_index_is_used_though_it_is_empty() -> None:
    search = ExactIndex(DIM)
    assert Catalogue("m-1", DIM, search).search is search


def test_columns_grow_with_the_catalogue(shop: Catalogue) -> None:
    shop.apply([record(f"i{n}", n + 1, price=float(n), regions=["eu"] if n % 2 else []) for n in range(3000)])
    assert len(shown(shop)) == 3000
    passing = shop.filter_mask(
        parse_filter({"and": [{"field": "price", "gte": 2990}, {"field": "region", "in": ["us"]}]})
    )
    assert sorted(shop.ids_of(np.flatnonzero(passing))) == ["i2990", "i2992", "i2994", "i2996", "i2998"]


def test_an_item_without_title_takes_less_than_a_kilobyte_beside_its_vector() -> None:
    search = HnswIndex(DIM, background=False)
    catalogue, count = Catalogue("m-1", DIM, search), 2000
    fields: dict[str, Any] = {
        "description": "",
        "brand": "acme",
        "category": ["drinks", "tea"],
        "subclass": "green",
        "price": 4.5,
    }
    fields |= {"tags": ["hot", "organic"], "available": True, "regions": [], "starts_ms": None, "ends_ms": None}
    catalogue.apply([record(f"item-{n:08d}", n + 1, title="", **fields) for n in range(count)])
    kept = [catalogue._label, catalogue._ids, catalogue._bodies, *catalogue._label, *catalogue._bodies]
    columns = [column for column in vars(catalogue._columns).values() if isinstance(column, np.ndarray)]
    arrays = [posting._labels for posting in catalogue._postings.values()] + columns
    assert (sum(map(sys.getsizeof, kept)) + sum(array.nbytes for array in arrays)) / count < 1000


CHANGES = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["acme", "bolt", None]),
        st.lists(st.sampled_from("xyz"), max_size=3, unique=True),
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(CHANGES, st.sets(st.sampled_from("abcdef")))
def test_after_any_changes_it_equals_the_last_records(changes: list[tuple[Any, ...]], kept: set[str]) -> None:
    catalogue, last = Catalogue("m-1", DIM), {}
    for position, (item_id, listed, has_vector, brand, tags) in enumerate(changes, 1):
        vector = unit(1, position, 0) if has_vector else None
        last[item_id] = record(item_id, position, vector, listed=listed, brand=brand, tags=tags)
        catalogue.apply([last[item_id]])
    for present in (set(last), kept & set(last)):
        if present != set(last):
            catalogue.reset(present)
        known = {item_id: last[item_id] for item_id in present}
        known = {i: r for i, r in known.items() if r.catalogue is not None or r.retrieval is not None}
        assert sorted(catalogue.item_ids()) == sorted(known)
        listed = {i: r.catalogue for i, r in known.items() if r.catalogue is not None}
        assert shown(catalogue) == sorted(i for i in listed if known[i].retrieval is not None)
        for brand in ("acme", "bolt"):
            assert found_by(catalogue, "brand", brand) == {i for i, f in listed.items() if f["brand"] == brand}
        for tag in "xyz":
            assert found_by(catalogue, "tags", tag) == {i for i, f in listed.items() if tag in f["tags"]}
        for item_id, entry in known.items():
            if entry.retrieval is not None:
                np.testing.assert_array_equal(catalogue.vector(item_id), entry.retrieval)
    catalogue.close()


def test_queries_in_another_thread_work_while_items_change(shop: Catalogue) -> None:
    stop = threading.Event()
    failed: list[BaseException] = []
    in_stock = parse_filter({"field": "available", "in": [True]})

    def write() -> None:
        position = 0
        try:
            while not stop.is_set():
                position += 1
                # New items all the time, and every second round all are out of stock.
                items = range(position % 50, 200 + position)
                shop.apply([record(f"i{n}", position, available=position % 2 == 0) for n in items])
        except BaseException as error:
            failed.append(error)
            raise

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            allowed = shop.hard_mask(NOW_MS)
            allowed &= shop.filter_mask(in_stock)[: len(allowed)]
            labels, scores = shop.search.search(EAST[None], 10, allowed)
            assert labels.shape == scores.shape and allowed[labels[0]].all()
            assert all(item_id in shop for item_id in shop.ids_of(labels[0]))
    finally:
        stop.set()
        writer.join()
    assert failed == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from([None, [], ["DE"], ["FR"], ["FR", "DE-BY"]]), st.booleans()),
        max_size=12,
    )
)
def test_what_is_sold_at_a_location_follows_every_change(changes: list[tuple[str, list[str] | None, bool]]) -> None:
    catalogue = Catalogue("m-1", DIM, ExactIndex(DIM))
    for position, (item_id, regions, listed) in enumerate(changes, 1):
        catalogue.apply([record(item_id, position, listed=listed, regions=regions)])
        for location in ("DE", "DE-BY", "FR/Paris", "IT"):
            sold = set(catalogue.ids_of(np.flatnonzero(catalogue.sold_at(location))))
            assert sold == {
                item.item_id
                for item in map(catalogue.get, catalogue.item_ids())
                if item and item.catalogue is not None and _is_sold(item.catalogue.get("regions"), location)
            }
    catalogue.close()


def _is_sold(regions: list[str] | None, location: str) -> bool:
    return not regions or any(
        location == region or location.startswith((f"{region}-", f"{region}/")) for region in regions
    )
