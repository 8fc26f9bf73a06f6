"""Elasticsearch beside this process on the same items: lists, recall and time of filters and of the nearest items.

A real server (`TEST_ELASTICSEARCH`, or one of its own) and 20,000 items with clustered vectors, d=256. Time is that of
ranking a whole list of ten for one user, both slots, one request after the other, server and client on the same
machine; recall is that of the nearest 100 against brute force. It measures no HTTP of ours and no load.

    python -m tests.bench.elastic
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from index.elastic.catalogue import ElasticSide, open_catalogue
from index.elastic.indexer import ElasticWriter
from index.items.catalogue import Catalogue
from index.items.filters import Filter, parse_filter
from index.items.follower import ItemFollower
from index.items.search import ExactIndex
from index.query.counts.popularity import Popularity
from index.query.plan import SearchPlan
from index.query.question import ContextView, Query, UserView
from index.query.recommend import Recommendations, answer_in_process, plan_searches
from index.state.memory_store import MemoryStore
from index.state.records import ItemRecord, Vector
from tests.bench.report import result, show
from tests.support import services
from tests.support.elastic_world import server, settings_of

DIM, CENTRES, NOW_MS = 256, 200, 1_760_000_000_000
SHARES = (0.5, 0.05, 0.005)  # of the items that a filter lets pass
MODEL = "m-1"
Ask = Callable[[Vector, Filter | None], Awaitable[Recommendations]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=200)
    given = parser.parse_args(arguments)
    with services.elasticsearch() as url:
        results = asyncio.run(measure(url, given.items, given.queries))
    for row in results:
        print(f"{row['name']}: {row['value']} {row['unit']}", file=sys.stderr)
    show("elastic", results)


async def measure(url: str, count: int, queries: int) -> list[dict[str, Any]]:
    """Everything, for the same items and users."""
    rng, prefix = np.random.default_rng(0), f"bench-{uuid.uuid4().hex[:8]}"
    centres = rng.standard_normal((CENTRES, DIM)).astype(np.float32)
    records = items(rng, centres, count)
    users = unit(centres[rng.integers(0, CENTRES, (queries, 2))] + 0.7 * rng.standard_normal((queries, 2, DIM)))
    results = []
    async with server(settings_of(url, prefix)) as direct:
        writer = ElasticWriter(direct, settings_of(url, prefix), MODEL, DIM, lambda: "g", Counter(), random.Random(0))
        began = time.perf_counter()
        for at in range(0, count, 250):
            writer.apply(records[at : at + 250])
            await writer.flush()
        await writer.complete(count)
        results.append(result("indexed", count / (time.perf_counter() - began), "items/s"))
        for name, use, held_mb in (("filters", "filters", 256), ("knn", "knn", 256), ("knn_keeps_1024", "knn", 1)):
            catalogue, side = await opened(url, prefix, use, held_mb, direct, records)
            if name == "filters":
                results += await timed("in_process", alone(catalogue), users)
            results += await timed(name, beside(side, catalogue), users)
            if name == "knn":
                results += await recall(side, records, users)
                await same_lists(beside(side, catalogue), records, users[:50])
            await side.close()
            catalogue.close()
    return results


def items(rng: np.random.Generator, centres: Vector, count: int) -> list[ItemRecord]:
    """Items around centres; `tags` tell for each share whether a filter of that share lets them pass."""
    vectors = unit(centres[rng.integers(0, CENTRES, count)] + 0.5 * rng.standard_normal((count, DIM)))
    drawn = rng.random(count)
    records = []
    for number in range(count):
        tags = tuple(f"share-{share}" for share in SHARES if drawn[number] < share)
        body = {"title": f"item {number}", "brand": f"b{number % 50}", "category": [f"c{number % 20}"], "price": 1.0}
        records.append(ItemRecord(f"i{number}", number + 1, body, None, tags, "e", None, None, vectors[number]))
    return records


async def opened(
    url: str, prefix: str, use: str, held_mb: int, client: Any, records: Sequence[ItemRecord]
) -> tuple[Catalogue, ElasticSide]:
    """An API process's catalogue with Elasticsearch beside it."""
    settings = settings_of(url, prefix, use=use, held_mb=held_mb, timeout_ms=10_000.0)
    catalogue = open_catalogue(settings, MODEL, DIM)
    catalogue.apply(records)
    follower = ItemFollower(MemoryStore(), MODEL, catalogue)
    follower.generation, follower.position = "g", len(records)
    side = ElasticSide(client, settings, catalogue, follower)
    await side.reader.look()
    return catalogue, side


def plan_of(catalogue: Catalogue, user: Vector, tree: Filter | None) -> Callable[..., SearchPlan]:
    """One request, as the API plans it."""
    query, view, popularity = Query(10, "mixed", tree), UserView(user), Popularity(MemoryStore())
    return partial(plan_searches, query, view, catalogue, ContextView(), popularity, NOW_MS, None)


def alone(catalogue: Catalogue) -> Ask:
    async def ask(user: Vector, tree: Filter | None) -> Recommendations:
        return answer_in_process(plan_of(catalogue, user, tree)())

    return ask


def beside(side: ElasticSide, catalogue: Catalogue) -> Ask:
    async def ask(user: Vector, tree: Filter | None) -> Recommendations:
        found, _ = await side.recommend(plan_of(catalogue, user, tree), tree, "", NOW_MS)
        return found

    return ask


async def timed(name: str, ask: Ask, users: Vector) -> list[dict[str, Any]]:
    """p50 and p95 of a list, without a filter and with those of each share; the first of each filter apart."""
    found = []
    for share in (None, *SHARES):
        tree = None if share is None else parse_filter({"field": "tags", "in": [f"share-{share}"]})
        spent = []
        for user in users:
            began = time.perf_counter()
            answer = await ask(user, tree)
            spent.append((time.perf_counter() - began) * 1e3)
            assert len(answer.items) == 10
        label = f"{name}_{'all' if share is None else share}"
        found += [result(f"{label}_first", spent[0], "ms")] if share is not None else []
        found += [result(f"{label}_p{at}", float(np.percentile(spent[1:], at)), "ms") for at in (50, 95)]
    return found


async def recall(side: ElasticSide, records: Sequence[ItemRecord], users: Vector) -> list[dict[str, Any]]:
    """Share of brute force's nearest 100 that Elasticsearch finds, without and with filters."""
    exact, vectors = ExactIndex(DIM), [record.retrieval for record in records if record.retrieval is not None]
    exact.upsert(range(len(records)), np.stack(vectors))
    found = []
    for share in (None, *SHARES):
        tree = None if share is None else parse_filter({"field": "tags", "in": [f"share-{share}"]})
        allowed = np.array([share is None or f"share-{share}" in record.tags for record in records])
        hits, asked = 0.0, users[:50].reshape(-1, DIM)
        for query in asked:
            wanted, _ = exact.search(query[None], 100, allowed)
            labels, _ = await side.search(tree, NOW_MS).search(query[None], 100, allowed.copy)
            assert labels.shape == wanted.shape
            hits += len(set(labels[0].tolist()) & set(wanted[0].tolist())) / wanted.shape[1]
        found.append(result(f"recall_100_{'all' if share is None else share}", hits / len(asked), "share", 0.99))
    return found


async def same_lists(ask: Ask, records: Sequence[ItemRecord], users: Vector) -> None:
    """Compares whole lists with those of a process that scans everything. Prints how many are the same."""
    catalogue = Catalogue(MODEL, DIM, ExactIndex(DIM))
    catalogue.apply(records)
    tree, same = parse_filter({"field": "tags", "in": ["share-0.5"]}), 0
    for user in users:
        one, other = await ask(user, tree), await alone(catalogue)(user, tree)
        same += [entry.item_id for entry in one.items] == [entry.item_id for entry in other.items]
    print(f"{same} of {len(users)} lists are the same, item by item", file=sys.stderr)


def unit(vectors: Any) -> Vector:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


if __name__ == "__main__":
    main()
