"""kNN by Elasticsearch under the contract of every search backend, brute force the oracle; then what only it has."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
from elasticsearch import AsyncElasticsearch

from index.elastic.catalogue import ElasticSide
from index.elastic.client import ElasticUnavailableError, index_of, open_client, pattern_of
from index.elastic.indexer import ElasticWriter
from index.elastic.reader import ElasticReader
from index.elastic.search import ElasticSearch
from index.elastic.vectors import HeldVectors
from index.items.catalogue import Catalogue
from index.items.filters import Mask, parse_filter
from index.items.follower import ItemFollower
from index.items.search import ExactIndex, Labels
from index.query.counts.popularity import Popularity
from index.query.plan import SearchPlan
from index.query.question import ContextView, Query, UserView
from index.query.recommend import answer_in_process, plan_searches
from index.query.second_stage import ListRanker, SecondStage
from index.ranking.features import event_classes
from index.ranking.network import Network, Scaling
from index.ranking.ranker import ListScorer
from index.state.keys import Keys
from index.state.memory_store import MemoryStore
from index.state.records import ItemRecord, Vector
from index.state.user_columns import UserState
from tests.index.items import test_search as contract
from tests.index.items.test_search import DIM, agree, brute, unit
from tests.support.elastic_world import PATIENCE_S, settings_of

T = TypeVar("T")
MODEL = "m-1"


class Indexed:
    """A `SearchIndex` whose every upsert is also a write to Elasticsearch; label n is item `i<n>`."""

    def __init__(self, url: str, prefix: str, held_rows: int = 1 << 20, dim: int = DIM) -> None:
        self.dim, self.position, self.written = dim, 0, True
        self.loop = asyncio.new_event_loop()
        self.held = HeldVectors(dim, 4 * dim * held_rows)
        self.catalogue = Catalogue(MODEL, dim, self.held)
        self.settings = settings_of(url, prefix)
        self.client: AsyncElasticsearch = self.run(self._open())
        self.follower = ItemFollower(MemoryStore(), MODEL, self.catalogue)
        self.follower.generation = "g"
        self.reader = ElasticReader(self.client, self.settings, self.follower, MODEL)
        self.counts: Counter[str] = Counter()
        self.writer = ElasticWriter(self.client, self.settings, MODEL, dim, lambda: "g", self.counts, random.Random(0))
        self.put([], None)

    async def _open(self) -> AsyncElasticsearch:
        return open_client(self.settings, PATIENCE_S)

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)

    def put(self, numbers: Sequence[int], vectors: Vector | None, fields: Sequence[dict[str, object]] = ()) -> None:
        """Items with a vector each, or without; written unless `written` is false."""
        records = []
        for at, number in enumerate(numbers):
            self.position += 1
            body = fields[at] if fields else {}
            vector = None if vectors is None else vectors[at]
            records.append(ItemRecord(f"i{number}", self.position, body, None, (), "e", None, None, vector))
        for at in range(0, len(records), 500):
            if self.written:
                self.writer.apply(records[at : at + 500])
                self.run(self.writer.flush())
        self.catalogue.apply(records)
        if self.written:
            self.run(self.writer.complete(self.position))
            self.run(self.reader.look())
        self.follower.position = self.position

    def upsert(self, labels: Sequence[int] | Labels, vectors: Vector) -> None:
        numbers = list(map(int, labels))
        missing = [number for number in range(max(numbers) + 1) if f"i{number}" not in self.catalogue]
        if missing != numbers:  # labels are given in the order of first appearance
            self.put(missing, None)
        self.put(numbers, vectors)

    def remove(self, labels: Sequence[int] | Labels) -> None:
        self.put([label for label in map(int, labels) if f"i{label}" in self.catalogue], None)

    def search(self, queries: Vector, k: int, allowed: Mask | None = None) -> tuple[Labels, Vector]:
        mask = np.ones(self.catalogue.size, np.bool_) if allowed is None else allowed
        search = ElasticSearch(self.reader, self.catalogue, self.held)
        found = self.run(search.search(queries, k, lambda: mask))
        assert self.counts["refused"] == 0
        return found

    def vectors(self, labels: Sequence[int] | Labels) -> Vector:
        ids = self.catalogue.ids_of(np.asarray(labels, np.int64))
        return self.run(ElasticSearch(self.reader, self.catalogue, self.held).vectors(ids))

    def __len__(self) -> int:
        return len(self.held)

    def close(self) -> None:
        async def end() -> None:
            for name in await self.client.indices.get(index=pattern_of(self.settings.prefix)):
                await self.client.indices.delete(index=name)
            await self.client.close()

        self.run(end())
        self.loop.close()


@pytest.fixture
def make(elasticsearch_url: str, keys: Keys) -> Iterator[Callable[..., Indexed]]:
    made: list[Indexed] = []

    def opened(held_rows: int = 1 << 20, dim: int = DIM) -> Indexed:
        made.append(Indexed(elasticsearch_url, keys.prefix, held_rows, dim))
        return made[-1]

    yield opened
    for index in made:
        index.close()


@pytest.fixture
def index(make: Callable[..., Indexed]) -> Indexed:
    """Under the name that the contract's tests use."""
    return make()


# The contract of every backend, with the fixture above as the index.
test_it_finds_the_nearest = contract.test_it_finds_the_nearest
test_empty = contract.test_an_empty_index_and_an_empty_mask_give_empty_lists
test_upsert = contract.test_an_upsert_is_seen_by_the_next_search_and_replaces_the_vector
test_remove = contract.test_a_removed_label_is_gone_and_may_come_back
test_mask = contract.test_a_mask_never_makes_the_list_short
test_neighbourhood = contract.test_a_mask_without_the_whole_neighbourhood_does_not_make_it_short


def test_what_the_index_does_not_show_yet_is_found_in_process(index: Indexed) -> None:
    vectors = unit(400)
    index.upsert(range(400), vectors)
    index.written = False  # the indexer has stopped
    changed = unit(50, seed=7)
    index.put(range(380, 430), changed)
    agree(index, {**dict(enumerate(vectors)), **dict(enumerate(changed, 380))}, 60)


def test_a_process_that_keeps_few_vectors_finds_the_same(make: Callable[..., Indexed]) -> None:
    vectors = unit(1600)
    index = make(held_rows=1)  # 1,024 are the least
    index.upsert(range(1600), vectors)
    assert len(index) == 1600 and len(index.held.missing(np.arange(1600))) == 1600 - 1024
    agree(index, dict(enumerate(vectors)), 50)
    np.testing.assert_array_equal(index.vectors(range(0, 1600, 7)), vectors[::7])
    assert not len(index.held.missing(np.arange(0, 1600, 7)))  # they are kept now


def test_a_filter_inside_the_search_and_the_mask_agree(index: Indexed) -> None:
    vectors = unit(6000)
    fields = [
        {"category": ["even" if number % 2 == 0 else "odd"], "available": number % 5 > 0} for number in range(5000)
    ]
    index.put(range(5000), vectors, fields)
    tree = parse_filter({"field": "category", "in": ["even"]})
    inside = index.catalogue.filter_mask(tree)
    allowed = inside & index.catalogue.available()
    allowed[np.arange(0, 600)] = False  # seen
    queries = unit(2, seed=42)
    search = ElasticSearch(index.reader, index.catalogue, index.held, tree, inside)
    labels, _ = index.run(search.search(queries, 100, lambda: allowed))
    for row, query in enumerate(queries):
        wanted = brute(dict(enumerate(vectors)), query, 100, allowed)
        assert len(set(labels[row].tolist()) & set(wanted)) >= 99
        assert len(labels[row]) == 100 and allowed[labels[row]].all()


def by_nearness() -> ListScorer:
    """A scorer that wants what is near to what the user looked at."""
    scaling = Scaling.of(np.linspace(-1, 1, 500, dtype=np.float32)[:, None])
    layers = [(np.array([[1], [0], [0]], np.float32), np.zeros(1, np.float32))]
    return ListScorer(Network(scaling, layers), ("near_recent",))


@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize("disliking", [False, True])
def test_a_plan_gets_the_list_of_a_process_that_keeps_all_vectors(
    make: Callable[..., Indexed], disliking: bool, ranked: bool
) -> None:
    vectors, index = unit(1600), make(held_rows=1)
    index.upsert(range(1600), vectors)
    everything = Catalogue(MODEL, DIM, ExactIndex(DIM))
    everything.apply([ItemRecord(f"i{n}", n + 1, {}, None, (), "e", None, None, vectors[n]) for n in range(1600)])
    # What a user disliked or looked at is among what is not kept: its vectors are fetched.
    missing = index.catalogue.ids_of(index.held.missing(np.arange(1600)))[:3]
    kinds = [1, 1, 1, 0] if disliking else [0] * 4
    user = UserView.of(unit(2, seed=3), UserState(items=[*missing, "i7"], kinds=kinds, ts_ms=[0] * 4), (1, -2))

    def plan(catalogue: Catalogue) -> SearchPlan:
        popularity = Popularity(MemoryStore())
        stage = SecondStage(catalogue, popularity, event_classes((1, -2), (False, False)))
        ranker = ListRanker(stage, by_nearness(), "r-1")
        asked = Query(20), user, catalogue, ContextView(), popularity, 0
        return plan_searches(*asked, ranker=ranker if ranked else None)

    expected = answer_in_process(plan(everything))
    search = ElasticSearch(index.reader, index.catalogue, index.held)
    found = index.run(search.recommend(lambda: plan(index.catalogue)))
    assert [entry.item_id for entry in found.items] == [entry.item_id for entry in expected.items]
    assert found.retrieved == expected.retrieved and found.removed == expected.removed
    assert [entry.parts for entry in found.items] == [pytest.approx(entry.parts, abs=1e-6) for entry in expected.items]
    assert all(("negative" in entry.parts) == disliking for entry in found.items)
    assert all(("ranker" in entry.parts) == ranked for entry in found.items)


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_a_locations_region_is_a_rule_of_the_search(make: Callable[..., Indexed], share: float) -> None:
    vectors, index = unit(6000), make()
    fields: list[dict[str, object]] = [
        {} if n % 2 else {"regions": ["DE" if n % 200 < 200 * share else "FR"]} for n in range(6000)
    ]
    index.put(range(6000), vectors, fields)
    user = UserView(unit(2, seed=3))
    side = ElasticSide.__new__(ElasticSide)
    side._catalogue, side._held, side.reader = index.catalogue, index.held, index.reader

    def plan() -> SearchPlan:
        context = ContextView("DE-BY")
        return plan_searches(Query(20), user, index.catalogue, context, Popularity(MemoryStore()), 0)

    expected = answer_in_process(plan())
    found = index.run(side.search(None, 0, "DE-BY").recommend(plan))
    assert [entry.item_id for entry in found.items] == [entry.item_id for entry in expected.items]
    assert found.removed == expected.removed and expected.removed["region"] == 3000 - 3000 * share
    assert all(fields[int(entry.item_id[1:])] != {"regions": ["FR"]} for entry in found.items)


def test_an_item_that_goes_while_elasticsearch_is_asked_is_not_in_the_list(index: Indexed) -> None:
    vectors = unit(100)
    index.upsert(range(100), vectors)
    user, plans = UserView(np.stack([vectors[7], vectors[7]])), 0

    def plan() -> SearchPlan:
        nonlocal plans
        plans += 1
        if plans == 2:  # the first one was asked about, and is being answered
            gone = ItemRecord("i7", index.position + 1, {"available": False}, None, (), "e", None, None, vectors[7])
            index.catalogue.apply([gone])
        return plan_searches(Query(5), user, index.catalogue, ContextView(), Popularity(MemoryStore()), 0)

    found = index.run(ElasticSearch(index.reader, index.catalogue, index.held).recommend(plan))
    assert plans == 2 and len(found.items) == 5 and "i7" not in [entry.item_id for entry in found.items]


def test_a_zero_query_gets_a_full_list(index: Indexed) -> None:
    index.upsert(range(20), unit(20))
    labels, scores = index.search(np.zeros((1, DIM), np.float32), 5)
    assert len(set(labels[0].tolist())) == 5 and not scores.any()


def test_a_search_that_is_not_answered_is_refused_and_the_process_searches_what_it_keeps(index: Indexed) -> None:
    vectors = unit(100)
    index.upsert(range(100), vectors)
    search = ElasticSearch(index.reader, index.catalogue, index.held)
    index.reader.shut()
    with pytest.raises(ElasticUnavailableError):
        ElasticSearch(index.reader, index.catalogue, index.held)
    index.run(index.client.indices.delete(index=index_of(index.reader.alias)))
    with pytest.raises(ElasticUnavailableError):
        index.run(search.search(vectors[:1], 5, lambda: np.ones(100, np.bool_)))
    labels, _ = index.held.search(vectors[:1], 5)
    assert labels[0].tolist() == brute(dict(enumerate(vectors)), vectors[0], 5, None)


def test_kept_vectors_obey_their_bound_and_the_latest_used_stay() -> None:
    held, exact, vectors = HeldVectors(DIM, 0), ExactIndex(DIM), unit(2000)
    held.upsert(range(1000), vectors[:1000])
    held.vectors(range(10))  # used
    held.upsert(range(1000, 2000), vectors[1000:])
    assert len(held) == 2000 and not len(held.missing(np.arange(10))) and len(held.missing(np.arange(2000))) == 976
    kept = np.setdiff1d(np.arange(2000), held.missing(np.arange(2000)))
    exact.upsert(kept, vectors[kept])
    queries, allowed = unit(3, seed=5), np.isin(np.arange(2000), kept)
    np.testing.assert_array_equal(held.search(queries, 10, allowed)[0], exact.search(queries, 10)[0])
    labels, scores = held.search(queries, 2000)  # an unkept one counts as zero: the list is full
    assert labels.shape == (3, 2000) and np.count_nonzero(scores[0] == 0) == 976
    held.remove([5, 9999])
    assert len(held) == 1999 and 5 not in held.search(queries, 2000)[0]
