"""Lists that a ranker orders: its order, sums of parts, what weighs beside it, and when the first stage answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from index.items import native
from index.items.catalogue import Catalogue
from index.query import recommend as recommending
from index.query.counts.popularity import Popularity
from index.query.question import ContextView, Query, UserView, Weights
from index.query.recommend import recommend
from index.query.second_stage import ListRanker, SecondStage
from index.ranking.features import FEATURES, event_classes
from index.ranking.network import Network, Scaling
from index.ranking.ranker import ListScorer
from index.state.keys import LOCATION_SEPARATOR, partition_tag
from index.state.memory_store import MemoryStore
from index.state.records import ItemRecord, Vector
from index.state.user_columns import UserState
from tests.support.halves import unit_in_halves

NOW_MS, DIM, ITEMS = 1_000_000_000, 4, 60
KIND_WEIGHTS = [1, 3, 5, 2, -2, -1]
CLASSES = event_classes(KIND_WEIGHTS, [False, False, True, False, False, False])


def unit(values: Any) -> Vector:
    return unit_in_halves(values)


@pytest.fixture
def shop() -> Iterator[Catalogue]:
    """Items of random vectors; the price of item n is n + 1."""
    catalogue, rng = Catalogue("m-1", DIM), np.random.default_rng(0)
    catalogue.apply(
        [
            ItemRecord(
                f"i{number:02d}",
                number + 1,
                {"title": "", "price": float(number + 1), "subclass": f"s{number % 3}", "brand": f"b{number % 5}"},
                None,
                (),
                "e",
                None,
                None,
                unit(rng.normal(size=DIM)),
            )
            for number in range(ITEMS)
        ]
    )
    yield catalogue
    catalogue.close()


def counted(clicks: Mapping[str, int], kinds: Mapping[str, int] | None = None) -> Popularity:
    async def made() -> Popularity:
        store, tag = MemoryStore(), partition_tag(0)
        fields = {f"{LOCATION_SEPARATOR}{item}": str(count).encode() for item, count in clicks.items()}
        await store.write(store.keys.popularity(tag, 0), fields)
        by_kind = {name: str(count).encode() for name, count in (kinds or {}).items()}
        if by_kind:
            await store.write(store.keys.kinds(tag, 0), by_kind)
        await store.write(store.keys.popularity_buckets(tag), {"0": b"1"})
        found = Popularity(store, kinds=True)
        await found.refresh(1, 1, 0)
        return found

    return asyncio.run(made())


NOBODY = counted({})


def by(feature: str, weight: float = 1.0) -> ListScorer:
    """A scorer that scores by one feature, over values from 0 to 5."""
    scaling = Scaling.of(np.linspace(0, 5, 500, dtype=np.float32)[:, None])
    layers = [(np.array([[weight], [0], [0]], np.float32), np.zeros(1, np.float32))]
    return ListScorer(Network(scaling, layers), (feature,))


def on(catalogue: Catalogue, scorer: ListScorer, popularity: Popularity = NOBODY) -> ListRanker:
    return ListRanker(SecondStage(catalogue, popularity, CLASSES), scorer, "r-1")


def view(state: UserState | None = None) -> UserView:
    vectors = np.stack([unit([1, 0.2, 0, 0]), unit([0, 1, 0.3, 0])])
    return UserView.of(vectors, state or UserState(), KIND_WEIGHTS)


def test_the_ranker_orders_what_was_found_and_parts_sum_up(shop: Catalogue) -> None:
    ranker = on(shop, by("price", -1.0))
    found = recommend(Query(10), view(), shop, ContextView(), NOBODY, NOW_MS, ranker=ranker)
    assert [entry.item_id for entry in found.items] == [f"i{number:02d}" for number in range(10)]
    assert found.ranked_by == "r-1"
    for entry in found.items:
        assert entry.score == pytest.approx(sum(entry.parts.values()))
        assert entry.parts.keys() >= {"cosine", "popularity", "ranker"}


def test_promotions_weigh_beside_the_ranker(shop: Catalogue) -> None:
    ranker = on(shop, by("price", -1.0))
    context = ContextView(promotions=[{"item": "i40", "strength": 2.0}])
    plain = recommend(Query(60), view(), shop, ContextView(), NOBODY, NOW_MS, ranker=ranker)
    found = recommend(Query(60), view(), shop, context, NOBODY, NOW_MS, ranker=ranker)
    places = [[entry.item_id for entry in answer.items].index("i40") for answer in (plain, found)]
    assert places[0] == 40 and places[1] < 30
    assert next(entry for entry in found.items if entry.item_id == "i40").parts["promotion"] > 0


def test_negative_feedback_weighs_beside_the_ranker(shop: Catalogue) -> None:
    disliked = [f"i{number:02d}" for number in range(30, 45, 3)]  # of subclass s0
    state = UserState(
        hashes=list(range(5)), items=disliked, kinds=[4] * 5, ts_ms=[NOW_MS - 1000 * n for n in range(5, 0, -1)]
    )
    ranker = on(shop, by("price", -1.0))
    before = recommend(Query(20), view(), shop, ContextView(), NOBODY, NOW_MS, ranker=ranker)
    after = recommend(Query(20), view(state), shop, ContextView(), NOBODY, NOW_MS, ranker=ranker)

    def share(items: Any) -> float:
        return float(np.mean([int(entry.item_id[1:]) % 3 == 0 for entry in items]))

    assert share(after.items) < share(before.items)
    assert any(entry.parts.get("negative", 0) < 0 for entry in after.items)


def test_counts_by_kind_reach_the_ranker(shop: Catalogue) -> None:
    popularity = counted({"i50": 9}, {f"2{LOCATION_SEPARATOR}i50": 7, f"0{LOCATION_SEPARATOR}i51": 90})
    ranker = on(shop, by("purchases"), popularity)
    found = recommend(Query(3), view(), shop, ContextView(), popularity, NOW_MS, ranker=ranker)
    assert found.items[0].item_id == "i50"


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("slot", ["next", "general", "mixed"])
def test_what_a_ranker_finds_alike_is_ordered_by_id(
    shop: Catalogue, slot: Any, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    popularity = counted({"i50": 9}, {f"2{LOCATION_SEPARATOR}i50": 7})
    if not compiled:
        monkeypatch.setattr(native, "COMPILED", None)
    ranker = on(shop, by("purchases"), popularity)
    found = recommend(Query(12, slot), view(), shop, ContextView(), popularity, NOW_MS, ranker=ranker)
    assert [entry.item_id for entry in found.items] == ["i50", *(f"i{number:02d}" for number in range(11))]


def test_a_ranker_that_says_nothing_leaves_the_order_to_the_first_stage(shop: Catalogue) -> None:
    broken, constant = by("price", np.inf), by("price", 0.0)
    first = recommend(Query(10), view(), shop, ContextView(), NOBODY, NOW_MS)
    for ranker in (broken, constant):
        found = recommend(Query(10), view(), shop, ContextView(), NOBODY, NOW_MS, ranker=on(shop, ranker))
        assert found.items == first.items and found.ranked_by is None


def test_where_a_ranker_says_nothing_the_first_stage_searches_as_deep_as_it_needs() -> None:
    rng, size = np.random.default_rng(2), 3000
    large = Catalogue("m-1", DIM)
    vectors = [unit(rng.normal(size=DIM)) for _ in range(size)]
    large.apply([ItemRecord(f"i{n:04d}", n + 1, {}, None, (), "e", None, None, vectors[n]) for n in range(size)])
    far = [1 - float(vector @ unit([1, 0.6, 0.1, 0])) for vector in vectors]  # what is popular is not what is near
    popularity = counted({f"i{n:04d}": 1 + int(200 * far[n]) for n in range(size)})
    broken, weights = by("price", np.inf), Weights(popularity=1.0)
    found = recommend(
        Query(20), view(), large, ContextView(), popularity, NOW_MS, weights, on(large, broken, popularity)
    )
    first = recommend(Query(20), view(), large, ContextView(), popularity, NOW_MS, weights)
    every = recommend(Query(size), view(), large, ContextView(), popularity, NOW_MS, weights)
    assert [entry.item_id for entry in found.items] == [entry.item_id for entry in first.items]
    assert [entry.score for entry in found.items] == pytest.approx([entry.score for entry in first.items])
    assert found.ranked_by is None
    assert [entry.item_id for entry in found.items] == [entry.item_id for entry in every.items][:20]
    assert max(found.retrieved.values()) > 100, "the first round would have done"
    large.close()


def test_a_ranker_orders_the_best_of_a_large_pool(shop: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommending, "_MOST_RANKED", 8)
    popularity = counted({f"i{number:02d}": number + 1 for number in range(ITEMS)})
    ranker = on(shop, by("price", -1.0), popularity)
    found = recommend(Query(5), UserView(None), shop, ContextView(), popularity, NOW_MS, ranker=ranker)
    assert [entry.item_id for entry in found.items] == ["i52", "i53", "i54", "i55", "i56"]
    more = recommend(Query(30), UserView(None), shop, ContextView(), popularity, NOW_MS, ranker=ranker)
    assert [entry.item_id for entry in more.items] == [f"i{number}" for number in range(30, 60)]


def test_without_a_ranker_nothing_of_it_is_computed(shop: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Catalogue, "facts", None)
    monkeypatch.setattr(SecondStage, "features", None)
    found = recommend(Query(5), view(), shop, ContextView(), NOBODY, NOW_MS)
    assert found.ranked_by is None and all("ranker" not in entry.parts for entry in found.items)


@pytest.mark.parametrize("slot", ["next", "general", "mixed"])
@pytest.mark.parametrize("count", [1, 20, 60, 100])
def test_a_ranked_list_is_never_short_and_holds_no_item_twice(shop: Catalogue, slot: Any, count: int) -> None:
    ranker = on(shop, by("price"))
    for user in (view(), UserView(None)):
        found = recommend(Query(count, slot), user, shop, ContextView(), NOBODY, NOW_MS, ranker=ranker)
        assert len({entry.item_id for entry in found.items}) == len(found.items) == min(count, ITEMS)


def test_a_stranger_is_ranked_too(shop: Catalogue) -> None:
    ranker = on(shop, by("price", -1.0))
    found = recommend(Query(5), UserView(None), shop, ContextView(), NOBODY, NOW_MS, Weights(), ranker=ranker)
    assert [entry.item_id for entry in found.items] == [f"i{number:02d}" for number in range(5)]
    assert {entry.slot for entry in found.items} == {"popular"}
    assert len(FEATURES) > 40
