"""Recall@100 of the search that queries use, against brute force, at 200,000 items.

Clustered vectors (d=256), users between two clusters, the index as an API process opens it. Measured with a fresh
graph; while every item gets another vector and searches go on (each answer must hold its hundred items); after that;
and under filters that let 50 %, 5 % and 0.5 % of the items pass, which are independent of the vectors. Times are those
of one search for one vector on one thread, beside the exact scan's.

    python -m tests.bench.recall [--items 200000] [--queries 200]
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np

from index.items.filters import Mask
from index.items.hnsw import HnswIndex
from index.items.search import ExactIndex
from index.state.records import Vector
from tests.bench.report import Row, result, show
from tests.bench.synthetic import SHARES, Synthetic

K, GOAL = 100, 0.99
_REPLACED_AT_ONCE = 200  # items per upsert, as a follower hands them over


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=200)
    given = parser.parse_args(arguments)
    results = measure(Synthetic(given.items, users=0), given.queries)
    for row in results:
        print(f"{row['name']:28} {row['value']:10.4f} {row['unit']}", file=sys.stderr)
    show("recall", results, "1 thread per search")


def measure(world: Synthetic, count: int) -> list[Row]:
    """All figures for one world."""
    queries = world.user_vectors(count)[:, 0]
    index, exact, labels = HnswIndex(world.dim), ExactIndex(world.dim), np.arange(world.items)
    began = time.perf_counter()
    _fill(index, exact, world.item_vectors())
    _wait(index, world.items)
    results = [result("build", time.perf_counter() - began, "s")]
    results += _compared("fresh", index, exact, queries, None)
    short = _replace(index, exact, world.item_vectors(seed=5), queries)
    results.append(result("replacing_short_lists", short, "lists", 0, at_most=True))
    results += _compared("replacing", index, exact, queries, None)
    _wait(index, world.items)
    results += _compared("replaced", index, exact, queries, None)
    drawn = np.random.default_rng(7).random(world.items)
    for share in SHARES:
        allowed: Mask = drawn[labels] < share
        results += _compared(f"allowed_{share}", index, exact, queries, allowed)
    index.close()
    return results


def _fill(index: HnswIndex, exact: ExactIndex, vectors: Vector) -> None:
    for at in range(0, len(vectors), _REPLACED_AT_ONCE):
        labels = np.arange(at, min(at + _REPLACED_AT_ONCE, len(vectors)))
        index.upsert(labels, vectors[labels])
        exact.upsert(labels, vectors[labels])


def _replace(index: HnswIndex, exact: ExactIndex, vectors: Vector, queries: Vector) -> int:
    """Gives every item another vector while another thread searches; how many lists came back short."""
    done, short = threading.Event(), 0

    def search() -> None:
        nonlocal short
        while not done.is_set():
            for query in queries:
                short += index.search(query[None], K)[0].shape[1] < K

    searching = threading.Thread(target=search)
    searching.start()
    _fill(index, exact, vectors)
    done.set()
    searching.join()
    return short


def _wait(index: HnswIndex, items: int) -> None:
    """Until the keeper has nothing left to build or to insert."""
    index.rebuild()
    while index.graph is None or index.delta or len(index) < items:
        time.sleep(0.1)


def _compared(name: str, index: HnswIndex, exact: ExactIndex, queries: Vector, allowed: Mask | None) -> list[Row]:
    """Recall, lists that came back short, and both sides' median times."""
    found, short, times = [], 0, np.zeros((len(queries), 2))
    for at, query in enumerate(queries):
        began = time.perf_counter()
        labels, _ = index.search(query[None], K, allowed)
        between = time.perf_counter()
        wanted, _ = exact.search(query[None], K, allowed)
        times[at] = between - began, time.perf_counter() - between
        short += labels.shape[1] < wanted.shape[1]
        found.append(len(np.intersect1d(labels, wanted)) / wanted.shape[1])
    walked, scanned = np.median(times, axis=0) * 1e3
    return [
        result(f"{name}_recall_{K}", float(np.mean(found)), "share", GOAL),
        result(f"{name}_short", short, "lists", 0, at_most=True),
        result(f"{name}_search", walked, "ms"),
        result(f"{name}_exact", scanned, "ms"),
    ]


if __name__ == "__main__":
    main()
