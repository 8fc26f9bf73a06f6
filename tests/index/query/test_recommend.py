"""The query pipeline: known answers on four axes, and a brute-force ranking of everything allowed as the oracle."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context.units import DAY_MS
from index.items.catalogue import Catalogue
from index.items.filters import parse_filter
from index.items.hnsw import HnswIndex
from index.query.counts.popularity import Popularity
from index.query.feedback import Rated, rated
from index.query.question import ContextView, Query, UserView, Weights
from index.query.recommend import recommend, seen_items
from index.state.keys import LOCATION_SEPARATOR, partition_tag
from index.state.memory_store import MemoryStore
from index.state.records import ItemRecord, Vector
from index.state.user_columns import UserState
from tests.support.feedback_oracle import taken_off
from tests.support.halves import unit_in_halves

NOW_MS, DIM = 1_000_000, 4
PLAIN = Weights(popularity=0.0)


def unit(*values: float) -> Vector:
    return unit_in_halves(values)


def record(item_id: str, vector: Vector | None, **fields: Any) -> ItemRecord:
    return ItemRecord(item_id, 1, {"title": item_id, **fields}, None, (), "e", None, None, vector)


def counted(clicks: Mapping[str, int], location: str = "") -> Popularity:
    async def made() -> Popularity:
        store, tag = MemoryStore(), partition_tag(0)
        fields = {f"{location}{LOCATION_SEPARATOR}{item}": str(count).encode() for item, count in clicks.items()}
        await store.write(store.keys.popularity(tag, 0), fields)
        await store.write(store.keys.popularity_buckets(tag), {"0": b"1"})
        found = Popularity(store)
        await found.refresh(1, 1, 0)
        return found

    return asyncio.run(made())


NOBODY = counted({})


@pytest.fixture
def shop() -> Iterator[Catalogue]:
    """Teas along axis 0 and fans along axis 1, each a little further away than the one before."""
    catalogue = Catalogue("m-1", DIM)
    for number in range(6):
        catalogue.apply(
            [
                record(f"tea{number}", unit(1, 0, 0.1 * number, 0), category=["tea"], price=float(number)),
                record(f"fan{number}", unit(0, 1, 0.1 * number, 0), category=["fan"], price=float(number)),
            ]
        )
    yield catalogue
    catalogue.close()


TEA_NOW_FANS_LATER = UserView(np.stack([unit(1, 0.1, 0, 0), unit(0.1, 1, 0, 0)]))


def ids(catalogue: Catalogue, query: Query, user: UserView = TEA_NOW_FANS_LATER, **more: Any) -> list[str]:
    context, popularity = more.get("context", ContextView()), more.get("popularity", NOBODY)
    found = recommend(query, user, catalogue, context, popularity, NOW_MS, more.get("weights", PLAIN))
    return [entry.item_id for entry in found.items]


def test_each_slot_has_its_vector_and_mixed_takes_turns(shop: Catalogue) -> None:
    assert ids(shop, Query(3, "next")) == ["tea0", "tea1", "tea2"]
    assert ids(shop, Query(3, "general")) == ["fan0", "fan1", "fan2"]
    assert ids(shop, Query(5, "mixed")) == ["tea0", "fan0", "tea1", "fan1", "tea2"]


def test_mixed_lists_each_item_once_and_says_which_slot_chose_it(shop: Catalogue) -> None:
    only_tea = UserView(np.stack([unit(1, 0, 0, 0), unit(1, 0, 0.05, 0)]))
    found = recommend(Query(12), only_tea, shop, ContextView(), NOBODY, NOW_MS, PLAIN)
    assert len({entry.item_id for entry in found.items}) == 12
    assert [entry.slot for entry in found.items[:4]] == ["next", "general", "next", "general"]


def test_seen_items_are_left_out_unless_asked_for(shop: Catalogue) -> None:
    bought = {"tea1": NOW_MS - 10, "tea2": NOW_MS - PLAIN.purchase_ms}  # the second one long ago
    user = UserView(TEA_NOW_FANS_LATER.vectors, frozenset({"tea0"}), bought)
    assert ids(shop, Query(2, "next"), user) == ["tea2", "tea3"]
    assert ids(shop, Query(2, "next", include_seen=True), user) == ["tea0", "tea1"]


def test_the_window_and_purchases_of_the_last_time_count_as_seen() -> None:
    weights = Weights(purchase_ms=100)
    purchases = {"now": 1000, "lately": 901, "long ago": 900}
    assert seen_items(["viewed", "now"], purchases, 1000, weights) == {"viewed", "now", "lately"}
    assert seen_items(frozenset(), {}, 1000, weights) == frozenset()


def test_excluded_and_filtered_items_are_replaced_by_the_next_ones(shop: Catalogue) -> None:
    cheap = parse_filter({"field": "price", "gte": 2})
    assert ids(shop, Query(3, "next", cheap, frozenset({"tea3"}))) == ["tea2", "tea4", "tea5"]


@pytest.mark.parametrize(
    ("location", "teas"),
    [("", ["tea0", "tea1", "tea2"]), ("FR", ["tea1", "tea2", "tea3"]), ("DE-BY", ["tea0", "tea1", "tea2"])],
)
def test_an_item_with_regions_is_listed_in_them_and_where_no_location_is_given(
    shop: Catalogue, location: str, teas: list[str]
) -> None:
    german = ItemRecord("tea0", 2, {"title": "tea0", "regions": ["DE"]}, None, (), "e", None, None, unit(1, 0, 0, 0))
    shop.apply([german])
    context = ContextView(location)
    assert ids(shop, Query(3, "next"), context=context) == teas
    cold = ids(shop, Query(12), UserView(None), context=context)
    assert ("tea0" in cold) == (teas[0] == "tea0")
    removed = recommend(Query(3), TEA_NOW_FANS_LATER, shop, context, NOBODY, NOW_MS, PLAIN).removed
    assert removed.get("region") == (None if not location else int(location == "FR"))


def test_a_filter_reaches_what_lies_far_away(shop: Catalogue) -> None:
    assert ids(shop, Query(9, "next", parse_filter({"field": "category", "in": ["fan"]}))) == [
        f"fan{number}" for number in range(6)
    ]


def test_hard_rules_hold_whatever_is_asked(shop: Catalogue) -> None:
    later = 5
    changes: dict[str, dict[str, Any]] = {
        "tea0": {"available": False},
        "tea1": {"starts_ms": NOW_MS + 1},
        "tea2": {"ends_ms": NOW_MS},
    }
    for item_id, fields in changes.items():
        shop.apply([ItemRecord(item_id, later, fields, None, (), "e", None, None, shop.vector(item_id))])
    shop.apply([ItemRecord("tea3", later, None, None, (), "e", None, None, shop.vector("tea3"))])
    shop.apply([ItemRecord("tea4", later, {}, None, (), None, None, None, None)])
    assert ids(shop, Query(2, "next"))[0] == "tea5"
    everything = ids(shop, Query(50, include_seen=True, tree=parse_filter({"field": "price", "lte": 1e9})))
    assert not set(everything) & {"tea0", "tea1", "tea2", "tea3", "tea4"}


def test_the_context_moves_both_vectors_and_shows_its_part(shop: Catalogue) -> None:
    heat = ContextView("oslo", np.array([0, 2, 0, 0], np.float32))
    found = recommend(Query(2, "next"), TEA_NOW_FANS_LATER, shop, heat, NOBODY, NOW_MS, PLAIN)
    assert [entry.item_id for entry in found.items] == ["fan0", "fan1"]
    assert found.items[0].parts["context"] == pytest.approx(2.0)
    assert found.items[0].parts["cosine"] == pytest.approx(float(unit(1, 0.1, 0, 0)[1]), abs=1e-6)


def test_a_cold_user_gets_the_popular_ones_moved_by_the_context(shop: Catalogue) -> None:
    newcomer, popularity = UserView(None), counted({"fan3": 9, "tea2": 5, "gone": 99})
    assert ids(shop, Query(4), newcomer, popularity=popularity) == ["fan3", "tea2", "fan0", "fan1"]
    tea_time = ContextView("", np.array([5, 0, 0, 0], np.float32))
    assert ids(shop, Query(3), newcomer, popularity=popularity, context=tea_time) == ["tea2", "tea0", "tea1"]


def test_popularity_at_the_location_counts(shop: Catalogue) -> None:
    popularity = counted({"tea5": 3}, location="oslo")
    assert ids(shop, Query(1), UserView(None), popularity=popularity, context=ContextView("oslo")) == ["tea5"]


def test_popularity_may_only_break_near_ties(shop: Catalogue) -> None:
    popularity = counted({"tea1": 1000, "fan0": 100_000})
    assert ids(shop, Query(2, "next"), popularity=popularity, weights=Weights()) == ["tea1", "tea0"]


@pytest.mark.parametrize(
    "promotion", [{"category": "fan"}, {"item": "fan4"}, {"tag": "sale"}], ids=["category", "item", "tag"]
)
def test_a_promotion_lifts_even_what_lies_far_away_but_not_beyond_its_limit(
    shop: Catalogue, promotion: Mapping[str, Any]
) -> None:
    fan4 = {"title": "fan4", "category": ["fan"], "tags": ["sale"]}
    shop.apply([ItemRecord("fan4", 9, fan4, None, (), "e", None, None, shop.vector("fan4"))])
    context = ContextView(promotions=[{**promotion, "strength": 1e6, "starts_ms": None, "ends_ms": NOW_MS + 1}])
    strong = Weights(popularity=0, promotion_limit=1.5)
    assert ids(shop, Query(1, "next"), context=context, weights=strong)[0].startswith("fan")
    found = recommend(Query(12, "next"), TEA_NOW_FANS_LATER, shop, context, NOBODY, NOW_MS, PLAIN)
    assert found.items[0].item_id == "tea0"
    assert [round(e.parts["promotion"], 6) for e in found.items if e.item_id == "fan4"] == [0.3]


def test_a_promotion_outside_its_window_does_nothing(shop: Catalogue) -> None:
    for window in ({"ends_ms": NOW_MS}, {"starts_ms": NOW_MS + 1}):
        context = ContextView(promotions=[{"category": "fan", "strength": 9.0, **window}])
        found = recommend(Query(1, "next"), TEA_NOW_FANS_LATER, shop, context, NOBODY, NOW_MS)
        assert found.items[0].item_id == "tea0" and "promotion" not in found.items[0].parts


def test_a_negative_promotion_pushes_down(shop: Catalogue) -> None:
    context = ContextView(promotions=[{"item": "tea0", "strength": -1.0}])
    assert ids(shop, Query(1, "next"), context=context) == ["tea1"]


def test_a_promotion_reaches_cold_users_too(shop: Catalogue) -> None:
    context = ContextView(promotions=[{"item": "fan5", "strength": 1.0}])
    assert ids(shop, Query(1), UserView(None), context=context) == ["fan5"]


def test_equal_scores_are_ordered_by_id(shop: Catalogue) -> None:
    shop.apply([record(name, unit(0, 0, 0, 1)) for name in ("z", "a", "m")])
    towards = UserView(np.stack([unit(0, 0, 0, 1)] * 2))
    assert ids(shop, Query(3, "next"), towards) == ["a", "m", "z"]


def test_what_was_removed_and_retrieved_is_counted(shop: Catalogue) -> None:
    shop.apply([ItemRecord("tea0", 9, {"available": False}, None, (), "e", None, None, shop.vector("tea0"))])
    user = UserView(TEA_NOW_FANS_LATER.vectors, frozenset({"tea1", "tea2", "unknown"}))
    query = Query(3, "mixed", parse_filter({"field": "category", "in": ["tea"]}), frozenset({"tea3", "tea1"}))
    found = recommend(query, user, shop, ContextView(), NOBODY, NOW_MS)
    assert found.removed == {"rules": 1, "filter": 6, "seen": 2, "excluded": 1}
    assert found.retrieved == {"next": 2, "general": 2, "promoted": 0, "popular": 0}
    assert [entry.item_id for entry in found.items] == ["tea4", "tea5"]


def test_a_catalogue_without_items_gives_an_empty_list() -> None:
    empty = Catalogue("m-1", DIM)
    assert ids(empty, Query(5)) == [] == ids(empty, Query(5), UserView(None))


VECTORS = unit_in_halves(np.random.default_rng(0).standard_normal((40, DIM)))
CLICKS = {f"i{n:02d}": n % 7 for n in range(0, 40, 3) if n % 7}
POPULAR = counted(CLICKS)


LABELS: dict[str, dict[str, Any]] = {
    f"i{n:02d}": {"category": ["even" if n % 2 == 0 else "odd", f"c{n % 5}"][: 1 + n % 4], "subclass": f"s{n % 7}"}
    | ({"brand": f"b{n % 3}"} if n % 6 else {})
    for n in range(40)
}
KIND_WEIGHTS = (1, 5, -2, -1)
EVENTS = st.lists(  # item, code of the kind, age in ms: the last one is the newest
    st.tuples(st.integers(0, 41), st.sampled_from(range(4)), st.integers(0, 60 * DAY_MS)), max_size=12
).map(lambda found: sorted(found, key=lambda event: -event[2]))


def opinion(events: Sequence[tuple[str, int, int]]) -> Rated | None:
    state = UserState(
        items=[item for item, _, _ in events],
        kinds=[code for _, code, _ in events],
        ts_ms=[NOW_MS - age_ms for *_, age_ms in events],
    )
    return rated(state, KIND_WEIGHTS)


def lost_by(
    events: Sequence[tuple[str, int, int]], labels: Mapping[str, Mapping[str, Any]], vectors: Mapping[str, Vector]
) -> dict[str, float]:
    rows = [(item, KIND_WEIGHTS[code], NOW_MS - age_ms) for item, code, age_ms in events]
    return {item: Weights().negative * part for item, part in taken_off(rows, NOW_MS, labels, vectors).items()}


def world(graph: bool) -> Catalogue:
    search = HnswIndex(DIM, exact_bytes=0, background=False) if graph else None
    catalogue = Catalogue("m-1", DIM, search)
    catalogue.apply(
        [record(f"i{n:02d}", VECTORS[n], **LABELS[f"i{n:02d}"], price=float(n), available=n != 5) for n in range(40)]
    )
    if isinstance(search, HnswIndex):
        search.maintain()
    return catalogue


WORLDS = {graph: world(graph) for graph in (False, True)}


@settings(max_examples=150, deadline=None)
@given(
    graph=st.booleans(),
    count=st.integers(1, 60),
    slot=st.sampled_from(["next", "general", "mixed"]),
    seen=st.sets(st.integers(0, 39), max_size=38),
    price=st.none() | st.integers(0, 40),
    seed=st.integers(0, 9),
    known=st.booleans(),
    promoted=st.sampled_from([None, "even", "odd"]),
    context=st.booleans(),
    events=EVENTS,
)
def test_any_query_gives_what_ranking_everything_gives(
    graph: bool,
    count: int,
    slot: Any,
    seen: set[int],
    price: int | None,
    seed: int,
    known: bool,
    promoted: str | None,
    context: bool,
    events: list[tuple[int, int, int]],
) -> None:
    """With 40 items every source reaches all of them, so the pipeline must equal a full ranking."""
    random = np.random.default_rng(seed)
    h = random.standard_normal((2, DIM)).astype(np.float32)
    delta = 0.3 * random.standard_normal(DIM).astype(np.float32) if context else None
    promotions = [{"category": promoted, "strength": 1.0}] if promoted else []
    tree = None if price is None else parse_filter({"field": "price", "gte": price})
    weights, rated = Weights(), [(f"i{n:02d}", code, age_ms) for n, code, age_ms in events]
    user = UserView(h if known else None, frozenset(f"i{n:02d}" for n in seen), rated=opinion(rated))
    lost = lost_by(rated, LABELS, dict(zip(LABELS, VECTORS, strict=True)))
    view = ContextView("", delta, promotions)
    found = recommend(Query(count, slot, tree), user, WORLDS[graph], view, POPULAR, NOW_MS, weights)

    def score(n: int, aim: Vector) -> float:
        share = np.log1p(POPULAR.weight(f"i{n:02d}")) / np.log1p(max(map(POPULAR.weight, CLICKS)))
        boost = weights.promotion if promoted == ("even" if n % 2 == 0 else "odd") else 0.0
        moved = aim if delta is None else aim + delta
        return float(VECTORS[n] @ moved + (weights.popularity if known else 1.0) * share + boost + lost[f"i{n:02d}"])

    left = [n for n in range(40) if n != 5 and n not in seen and (price is None or n >= price)]
    aims = [h[0], h[1]] if known else [np.zeros(DIM, np.float32)]
    if known and slot != "mixed":
        aims = [h[0 if slot == "next" else 1]]
    lists = [sorted(left, key=lambda n, aim=aim: (-score(n, aim), n)) for aim in aims]  # type: ignore[misc]
    expected: list[int] = []
    while len(expected) < min(count, len(left)):
        ranked = lists[len(expected) % len(lists)]
        expected.append(next(n for n in ranked if n not in expected))
    places = [int(entry.item_id[1:]) for entry in found.items]
    assert len(set(places)) == len(places) == len(expected) and set(places) <= set(left)
    for at, (place, n) in enumerate(zip(places, expected, strict=True)):  # of equal scores either may come first
        aim = aims[at % len(aims)]
        assert score(place, aim) == pytest.approx(score(n, aim), abs=1e-6)
    for place, entry in enumerate(found.items):
        assert entry.score == pytest.approx(sum(entry.parts.values()))
        assert entry.score == pytest.approx(score(expected[place], aims[place % len(aims)]), abs=1e-5)


# Larger worlds, where a source does not reach everything: how deep it goes has to follow from what re-scoring can do.


def clumps(seed: int, size: int, spread: float) -> tuple[Catalogue, dict[str, int], list[dict[str, Any]]]:
    """Items in two clumps; in tight ones cosines are so close that popularity and promotions decide."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((2, 8))
    catalogue = Catalogue("m-1", 8)
    for n in range(size):
        vector = unit(*(centres[n % 2] + spread * random.standard_normal(8)))
        fields = {"category": [f"c{random.integers(4)}"], "tags": [f"t{random.integers(3)}"]}
        catalogue.apply([record(f"i{n:04d}", vector, **fields)])
    clicks = {
        f"i{n:04d}": int(count) for n, count in zip(random.permutation(size), random.zipf(1.3, 200), strict=False)
    }
    return catalogue, {item: min(count, 1000) for item, count in clicks.items()}, [
        {"category": "c1"}, {"tag": "t2"}, {"item": f"i{size - 1:04d}"}, {"tag": "t0"},
    ]  # fmt: skip


CLUMPS = {spread: clumps(1, 800, spread) for spread in (0.001, 0.03, 1.0)}
CLUMPS_POPULAR = {spread: counted(clicks) for spread, (_, clicks, _) in CLUMPS.items()}


@settings(max_examples=60, deadline=None)
@given(
    spread=st.sampled_from(sorted(CLUMPS)),
    count=st.integers(1, 30),
    seed=st.integers(0, 1000),
    strengths=st.lists(st.sampled_from([-3.0, -0.2, 0.01, 0.5, 3.0]), max_size=4),
    moved=st.booleans(),
    known=st.booleans(),
    disliked=st.sampled_from([None, "near", "all of it", "anywhere"]),
)
def test_scores_are_those_of_the_best_of_all_items_however_close_they_lie(
    spread: float, count: int, seed: int, strengths: list[float], moved: bool, known: bool, disliked: str | None
) -> None:
    (catalogue, clicks, targets), popularity = CLUMPS[spread], CLUMPS_POPULAR[spread]
    random = np.random.default_rng(seed)
    h = np.stack([unit(*random.standard_normal(8)) for _ in range(2)])
    delta = 0.2 * random.standard_normal(8).astype(np.float32) if moved else None
    promotions = [{**target, "strength": strength} for target, strength in zip(targets, strengths, strict=False)]
    weights, ids = Weights(popularity=0.05), catalogue.item_ids()
    vectors = np.stack([vector for item in ids if (vector := catalogue.vector(item)) is not None]).astype(np.float64)
    nearest = [ids[row] for row in np.argsort(-vectors @ h[1])]
    events = [(item, 2, 0) for item in _disliked(disliked, nearest, catalogue, random)] + [(nearest[9], 0, 0)]
    user = UserView(h if known else None, rated=opinion(events))
    found = recommend(
        Query(count, "general"), user, catalogue, ContextView("", delta, promotions), popularity, NOW_MS, weights
    )

    aim = (h[1] if known else np.zeros(8)) + (0.0 if delta is None else delta)
    boosts = np.zeros(len(ids))
    for promotion in promotions:
        boost = min(0.3, max(-0.3, weights.promotion * promotion["strength"]))
        boosts[[_names(promotion, catalogue, item) for item in ids]] += boost
    shares = np.array([np.log1p(clicks.get(item, 0)) for item in ids]) / np.log1p(max(clicks.values()))
    records = {item: found_item.catalogue or {} for item in ids if (found_item := catalogue.get(item))}
    lost = lost_by(events, records, dict(zip(ids, vectors.astype(np.float32), strict=True)))
    scores = (
        np.array([lost[item] for item in ids])
        + vectors @ aim
        + np.clip(boosts, -0.3, 0.3)
        + (weights.popularity if known else 1.0) * shares
    )
    by_id = dict(zip(ids, scores, strict=True))
    best = np.sort(scores)[::-1][:count]
    # Which of two items comes first is left open where fp32 cannot tell.
    np.testing.assert_allclose([by_id[entry.item_id] for entry in found.items], best, atol=2e-6)
    np.testing.assert_allclose([entry.score for entry in found.items], best, atol=2e-6)


def _disliked(which: str | None, nearest: list[str], catalogue: Catalogue, random: np.random.Generator) -> list[str]:
    """Five of what lies nearest to the user, half of the items of its category there, or five of all."""
    if which == "all of it":
        first = catalogue.get(nearest[0])
        assert first is not None and first.catalogue is not None
        return [item for item in nearest if _names({"category": first.catalogue["category"][0]}, catalogue, item)][::2]
    return {"near": nearest[:5], "anywhere": [nearest[at] for at in random.permutation(len(nearest))[:5]]}.get(
        which or "", []
    )


def _names(promotion: Mapping[str, Any], catalogue: Catalogue, item_id: str) -> bool:
    item = catalogue.get(item_id)
    assert item is not None and item.catalogue is not None
    return (
        promotion.get("item") == item_id
        or promotion.get("category") in item.catalogue["category"]
        or promotion.get("tag") in item.catalogue["tags"]
    )


@pytest.mark.parametrize("name", ["popularity", "promotion", "promotion_limit", "negative"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_weight_that_bounds_nothing_is_refused(name: str, value: float) -> None:
    numbers: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"weight {name}"):
        Weights(**numbers)


def test_a_cold_user_gets_the_allowed_ones_though_the_popular_ones_are_gone(shop: Catalogue) -> None:
    popularity = counted({**{f"gone{number}": 1000 for number in range(3000)}, "fan2": 1})
    assert ids(shop, Query(3), UserView(None), popularity=popularity) == ["fan2", "fan0", "fan1"]
