"""Filters in Elasticsearch and in process: the same items for every filter, at every moment, and who answers when."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pytest
from elasticsearch import AsyncElasticsearch
from hypothesis import given, settings
from hypothesis import strategies as st

from index.elastic.client import alias_of
from index.elastic.documents import document, items_only, query_of
from index.elastic.filters import ElasticFilters
from index.elastic.indexer import ElasticWriter
from index.elastic.reader import ElasticReader
from index.elastic.settings import ElasticSettings
from index.items.catalogue import Catalogue
from index.items.filters import MAX_DEPTH, Filter, parse_filter
from index.items.follower import ItemFollower
from index.state.keys import Keys
from index.state.memory_store import MemoryStore
from index.state.records import ItemRecord
from tests.index.items.test_filters import FILTERS, ITEMS, SHOP, depth, record
from tests.support.elastic_world import PATIENCE_S, Gate, indexing, reached, server, settings_of
from tests.support.index_api_world import DIM, MODEL, World, until

TREES = FILTERS.filter(lambda body: depth(body) <= MAX_DEPTH)


def known_filters() -> list[Any]:
    """Those whose meaning is known, from the suite of the language itself."""
    from tests.index.items.test_filters import test_a_filter_has_one_known_meaning as known

    (mark,) = known.pytestmark
    return list(mark.args[1])


@dataclass
class Both:
    """The same items in a catalogue and in an index."""

    catalogue: Catalogue
    client: AsyncElasticsearch
    alias: str

    async def matching(self, tree: Filter) -> set[str]:
        """Item ids that Elasticsearch lets pass."""
        answer = await self.client.search(index=self.alias, query=items_only(query_of(tree)), size=10_000, source=False)
        return {hit["_id"] for hit in answer["hits"]["hits"]}

    def passing(self, tree: Filter) -> set[str]:
        """Item ids that the catalogue lets pass; a free label has no id."""
        return set(self.catalogue.ids_of(np.flatnonzero(self.catalogue.filter_mask(tree)))) - {""}


@asynccontextmanager
async def both(url: str, prefix: str, records: list[ItemRecord]) -> AsyncIterator[Both]:
    given_settings = settings_of(url, prefix)
    catalogue = Catalogue("m-1", 2)
    try:
        async with server(given_settings) as client:
            counts: Counter[str] = Counter()
            writer = ElasticWriter(client, given_settings, "m-1", 2, lambda: "g", counts, random.Random(0))
            for at in range(0, len(records), 500):
                writer.apply(records[at : at + 500])
                await writer.flush()
            await writer.complete(len(records))
            assert counts["refused"] == 0
            catalogue.apply(records)
            yield Both(catalogue, client, alias_of(prefix, "g", "m-1"))
    finally:
        catalogue.close()


def gone(number: int) -> ItemRecord:
    """An item of which nothing is left."""
    return ItemRecord(f"i{number}", number + 1, None, None, (), None, None, None, None)


def test_every_known_filter_means_the_same(elasticsearch_url: str, keys: Keys) -> None:
    async def scenario() -> None:
        records = [record(n, fields, ("sweet",) if n == 1 else ()) for n, fields in enumerate(SHOP)]
        async with both(elasticsearch_url, keys.prefix, [*records, gone(3)]) as pair:
            for body, expected in known_filters():
                tree = parse_filter(body)
                assert await pair.matching(tree) == expected, body
                assert pair.passing(tree) == expected, body

    asyncio.run(scenario())


def test_random_filters_let_the_same_items_pass_of_random_catalogues(elasticsearch_url: str, keys: Keys) -> None:
    """Hypothesis on both sides: catalogues are drawn first and indexed at once, filters then meet them all."""
    shops: list[Any] = []

    @settings(max_examples=60, deadline=None, database=None)
    @given(ITEMS)
    def draw(shop: list[Any]) -> None:
        shops.extend(shop)

    draw()
    loop = asyncio.new_event_loop()
    records = [record(n, fields, tuple(tags)) for n, (fields, tags) in enumerate(shops)]
    records += [gone(len(records)), record(len(records) + 1, {"price": -0.0}), record(len(records) + 2, None)]
    opened = both(elasticsearch_url, keys.prefix, records)
    pair = loop.run_until_complete(opened.__aenter__())

    @settings(max_examples=250, deadline=None)
    @given(TREES | st.sampled_from([{"field": "price", "lte": 0}, {"field": "price", "gte": -0.0}]))
    def same(body: Any) -> None:
        tree = parse_filter(body)
        assert loop.run_until_complete(pair.matching(tree)) == pair.passing(tree)

    try:
        assert len(records) > 200
        same()
    finally:
        loop.run_until_complete(opened.__aexit__(None, None, None))
        loop.close()


class Process:
    """What an API process has: a catalogue that follows, and filters that ask."""

    def __init__(self, store: MemoryStore, client: AsyncElasticsearch, given_settings: ElasticSettings) -> None:
        self.catalogue = Catalogue(MODEL, DIM)
        self.follower = ItemFollower(store, MODEL, self.catalogue)
        self.reader = ElasticReader(client, given_settings, self.follower, MODEL)
        self.filters = ElasticFilters(self.reader, self.catalogue)

    async def current(self) -> None:
        await self.follower.catch_up()
        await self.reader.look()

    async def same(self, body: Any) -> bool | None:
        """Whether both give the same; None when Elasticsearch was not asked."""
        tree = parse_filter(body)
        found = await self.filters.mask(tree)
        listed = np.array([bool(item) for item in self.catalogue.ids_of(np.arange(self.catalogue.size))])
        return None if found is None else np.array_equal(found & listed, self.catalogue.filter_mask(tree) & listed)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


CHEAP = {"field": "price", "lte": 4}
BODIES = [CHEAP, {"not": CHEAP}, {"field": "category", "in": ["tea"]}, {"field": "available", "in": [False]}]


def test_a_mask_equals_the_one_in_process_while_the_index_is_behind(elasticsearch_url: str, keys: Keys) -> None:
    async def scenario() -> None:
        store, given_settings = MemoryStore(keys), settings_of(elasticsearch_url, keys.prefix)
        world = await World(store).start(items=10)
        async with server(given_settings) as client:
            async with indexing(store, client, given_settings) as indexer:
                await reached(indexer, store)
            process = Process(store, client, given_settings)
            await process.current()
            assert [await process.same(body) for body in BODIES] == [True] * 4
            # Nobody indexes any more; the process goes on following.
            for number in range(10):
                await world.put_item(f"tea{number}", "tea", number, price=10.0 - number, available=number % 3 > 0)
            await world.put_item("late", "tea", 1, price=1.0)
            await world.withdraw("fan2")
            await process.current()
            assert [await process.same(body) for body in BODIES] == [True] * 4
            assert await process.same({"field": "item_id", "in": ["late", "fan2"]}) is True  # asked for the first time
            await process.filters.close()
            process.catalogue.close()

    run(scenario)


def test_nothing_is_asked_of_an_index_that_is_not_complete(elasticsearch_url: str, keys: Keys) -> None:
    async def scenario() -> None:
        store, given_settings = MemoryStore(keys), settings_of(elasticsearch_url, keys.prefix)
        await World(store).start(items=2)
        async with server(given_settings) as client:
            process = Process(store, client, given_settings)
            await process.current()
            assert process.reader.position is None and await process.same(CHEAP) is None
            async with indexing(store, client, given_settings) as indexer:
                await reached(indexer, store)
            await process.reader.look()
            assert await process.same(CHEAP) is True
            process.follower.start_from("another log", 0)  # Redis was emptied, say: nothing is known of its index
            assert process.reader.position is None and await process.same(CHEAP) is None
            process.catalogue.close()

    run(scenario)


@pytest.mark.parametrize("how", ["shut", "stall"])
def test_a_server_that_is_away_or_slow_is_left_alone_and_then_asked_again(
    elasticsearch_url: str, keys: Keys, how: str
) -> None:
    async def scenario() -> None:
        store, direct = MemoryStore(keys), settings_of(elasticsearch_url, keys.prefix)
        await World(store).start(items=5)
        async with Gate(elasticsearch_url) as gate, server(direct) as client:
            async with indexing(store, client, direct) as indexer:
                await reached(indexer, store)
            through = settings_of(gate.url, keys.prefix, timeout_ms=200.0)
            async with server(through) as patient:
                process = Process(store, patient.options(request_timeout=0.2), through)
                await process.current()

                async def is_answered() -> bool:  # 200 ms may be too few on a busy machine
                    await process.reader.look()
                    return await process.same(CHEAP) is True

                await until(is_answered, "Elasticsearch answers through the gate", PATIENCE_S)
                getattr(gate, how)()
                started = asyncio.get_running_loop().time()
                assert await process.same({"field": "price", "gte": 2}) is None  # within its patience
                await process.reader.look()
                assert process.reader.position is None and await process.same(CHEAP) is None
                assert asyncio.get_running_loop().time() - started < 2.0
                gate.open()

                async def is_asked() -> bool:
                    await process.reader.look()
                    return await process.same({"field": "price", "gte": 2}) is True

                await until(is_asked, "Elasticsearch is asked again", PATIENCE_S)
                await process.filters.close()
                process.catalogue.close()

    run(scenario)


def test_a_filter_of_very_many_values_is_answered_in_process(elasticsearch_url: str, keys: Keys) -> None:
    async def scenario() -> None:
        store, given_settings = MemoryStore(keys), settings_of(elasticsearch_url, keys.prefix)
        await World(store).start(items=2)
        async with server(given_settings) as client, indexing(store, client, given_settings) as indexer:
            await reached(indexer, store)
            process = Process(store, client, given_settings)
            await process.current()
            many = {"field": "tags", "all": [f"t{number}" for number in range(1000)]}
            huge = {"and": [many] * 60}  # seconds of work for Elasticsearch
            assert await process.same(huge) is None
            assert await process.same(CHEAP) is True  # and nobody else suffers
            process.catalogue.close()

    run(scenario)


def test_a_document_holds_what_the_filters_look_at() -> None:
    fields = {"price": -0.0, "brand": "", "regions": [], "ends_ms": 7}
    body = document(ItemRecord("a", 3, fields, None, ("x",), "e", None, None, np.array([0, 0], np.float32)), 2)
    assert orjson.loads(orjson.dumps(body)) == {
        "item_id": "a",
        "position": 3,
        "gone": False,
        "available": True,
        "regionless": True,
        "region": [],
        "category": [],
        "tags": ["x"],
        "starts": -(2**63),
        "ends": 7,
        "price": 0.0,
    }
