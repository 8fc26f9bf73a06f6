"""A graph that hnswlib began and compiled code goes on with: what it finds, and damaged ones that it refuses."""

from __future__ import annotations

import os
from typing import Any

import hnswlib
import numpy as np
import pytest

from index.items import native
from index.items.hnsw import HnswIndex
from index.state.records import Vector

if native.COMPILED is None:
    assert not os.environ.get("CI"), "the first stage is not compiled"
    pytest.skip("the first stage is not compiled here", allow_module_level=True)
NATIVE, DIM = native.COMPILED, 20


def unit(count: int, seed: int) -> Vector:
    drawn = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def built(count: int) -> tuple[dict[str, Any], Any]:
    """hnswlib's parameters of a graph, and its vectors in halves."""
    vectors, index = unit(count, 0), hnswlib.Index("ip", DIM)
    index.init_index(count, M=8, ef_construction=60, random_seed=1)
    index.add_items(vectors, np.arange(count), num_threads=1)
    return index.__getstate__()[0], vectors.astype(np.float16).view(np.uint16)


def found(graph: Any, vectors: Vector, query: Vector, k: int) -> list[int] | None:
    places = np.arange(len(vectors)), np.arange(len(vectors), dtype=np.int32)
    answer = graph.nearest(query[None], k, 200, 10**6, np.ones(len(vectors), np.bool_), *places)
    return None if answer is None else answer[0][0].tolist()


def test_nodes_of_hnswlib_and_later_ones_are_found() -> None:
    parameters, halves = built(400)
    vectors = np.concatenate([unit(400, 0), unit(400, 1)])
    graph = NATIVE.Graph(parameters, halves, 800)
    for at in range(400, 800, 4):
        assert graph.add(vectors[at : at + 4].astype(np.float16).view(np.uint16)) == at
    hits = 0
    for query in unit(50, 2):
        answer = found(graph, vectors, query, 10)
        assert answer is not None
        hits += len({*answer} & {*np.argsort(-(vectors @ query))[:10].tolist()})
    assert hits > 0.98 * 500
    with pytest.raises(ValueError, match="no room"):
        graph.add(halves[:1])


def test_a_walk_that_finds_too_few_or_goes_too_far_says_so() -> None:
    parameters, halves = built(300)
    graph, vectors = NATIVE.Graph(parameters, halves, 300), unit(300, 0)
    places = np.arange(300), np.arange(300, dtype=np.int32)
    few = np.zeros(300, np.bool_)
    few[:5] = True
    assert graph.nearest(vectors[:1], 6, 50, 10**6, few, *places) is None
    assert graph.nearest(vectors[:1], 5, 50, 10, few, *places) is None
    assert sorted(graph.nearest(vectors[:1], 5, 50, 10**6, few, *places)[0][0].tolist()) == [*range(5)]


@pytest.mark.parametrize("seed", range(60))
def test_damaged_parameters_are_refused_or_walked_without_harm(seed: int) -> None:
    parameters, halves = built(200)
    rng = np.random.default_rng(seed)
    for name in ("data_level0", "link_lists"):
        column = parameters[name].copy()
        column[rng.integers(0, len(column), rng.choice((1, 5, 200)))] = rng.integers(-128, 128)
        parameters[name] = column[: rng.choice((len(column), len(column) // 2, 3))]
    changed = rng.choice(("enterpoint_node", "max_level", "M", "size_links_per_element", "cur_element_count", "none"))
    if changed in parameters:
        parameters[changed] = int(rng.choice((0, 1, 7, 300, 2**30)))
    try:
        graph = NATIVE.Graph(parameters, halves, 200)
    except (ValueError, MemoryError):
        return
    found(graph, unit(200, 0), unit(1, 3)[0], 10)


def test_recall_stays_while_all_vectors_are_replaced() -> None:
    index = HnswIndex(DIM, exact_bytes=0, background=False)
    index.upsert(range(1500), unit(1500, 4))
    index.maintain()
    for at in range(0, 1500, 100):
        index.upsert(range(at, at + 100), unit(1500, 5)[at : at + 100])
        index.maintain()
    for query in unit(20, 6):
        index.search(query[None], 50)
    recall = index.canary(50)
    assert recall is not None and recall > 0.98
