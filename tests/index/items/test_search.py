"""Both search backends under one contract, with brute force as the oracle; then what only the graph has."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.items import native
from index.items.filters import Mask
from index.items.hnsw import HnswIndex
from index.items.search import ExactIndex, SearchIndex
from index.state.records import Vector
from tests.conftest import eventually
from tests.support.halves import in_halves, unit_in_halves

DIM = 16
MAKERS: dict[str, Callable[[], SearchIndex]] = {
    "exact": lambda: ExactIndex(DIM),
    "hnsw": lambda: HnswIndex(DIM, exact_bytes=0, background=False),
    "hnsw, not compiled": lambda: HnswIndex(DIM, exact_bytes=0, background=False),
    "hnsw over some rows": lambda: HnswIndex(DIM, exact_bytes=50 * DIM * 2, background=False),
}


def unit(rows: int, seed: int = 0, dim: int = DIM) -> Vector:
    return unit_in_halves(np.random.default_rng(seed).standard_normal((rows, dim)))


@pytest.fixture(params=MAKERS)
def index(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SearchIndex]:
    if "not compiled" in request.param:
        monkeypatch.setattr(native, "COMPILED", None)
    made = MAKERS[request.param]()
    yield made
    made.close()


def settle(index: SearchIndex) -> None:
    if isinstance(index, HnswIndex):
        index.maintain()


def brute(vectors: dict[int, Vector], query: Vector, k: int, allowed: Mask | None) -> list[int]:
    usable = [label for label in vectors if allowed is None or (label < len(allowed) and allowed[label])]
    return sorted(usable, key=lambda label: (-float(vectors[label] @ query), label))[:k]


def agree(index: SearchIndex, vectors: dict[int, Vector], k: int, allowed: Mask | None = None) -> None:
    """Graphs of a few hundred nodes find everything, so approximate must equal exact here."""
    queries = unit(3, seed=99)
    labels, scores = index.search(queries, k, allowed)
    for row, query in enumerate(queries):
        assert labels[row].tolist() == brute(vectors, query, k, allowed)
        wanted = [float(vectors[label] @ query) for label in labels[row].tolist()]
        np.testing.assert_allclose(scores[row], wanted, atol=1e-4)  # halves are not quite of length 1


def test_it_finds_the_nearest(index: SearchIndex) -> None:
    vectors = unit(300)
    index.upsert(range(300), vectors)
    settle(index)
    agree(index, dict(enumerate(vectors)), 10)


def test_an_empty_index_and_an_empty_mask_give_empty_lists(index: SearchIndex) -> None:
    assert index.search(unit(2), 5)[0].shape == (2, 0)
    index.upsert([3], unit(1))
    settle(index)
    assert index.search(unit(2), 5, np.zeros(4, np.bool_))[0].shape == (2, 0)
    assert index.search(unit(2), 5)[0].tolist() == [[3], [3]]


def test_an_upsert_is_seen_by_the_next_search_and_replaces_the_vector(index: SearchIndex) -> None:
    vectors = unit(100)
    index.upsert(range(100), vectors)
    settle(index)
    query = unit(1, seed=5)
    index.upsert([41], query)
    labels, scores = index.search(query, 1)
    assert labels.tolist() == [[41]] and scores[0, 0] == pytest.approx(1.0, abs=1e-3)
    assert len(index) == 100
    settle(index)
    agree(index, {**dict(enumerate(vectors)), 41: query[0]}, 100)


def test_a_removed_label_is_gone_and_may_come_back(index: SearchIndex) -> None:
    vectors = unit(60)
    index.upsert(range(60), vectors)
    settle(index)
    index.remove([7, 7000])
    assert len(index) == 59
    agree(index, {label: row for label, row in enumerate(vectors) if label != 7}, 60)
    index.upsert([7], vectors[7:8])
    agree(index, dict(enumerate(vectors)), 60)
    np.testing.assert_array_equal(index.vectors([7, 3]), vectors[[7, 3]])


@pytest.mark.parametrize("share", [0.9, 0.5, 0.05, 0.0])
def test_a_mask_never_makes_the_list_short(index: SearchIndex, share: float) -> None:
    vectors = unit(400)
    index.upsert(range(400), vectors)
    settle(index)
    index.upsert(range(400, 420), unit(20, seed=3))  # beside the graph
    known = {**dict(enumerate(vectors)), **dict(enumerate(unit(20, seed=3), 400))}
    allowed = np.random.default_rng(1).random(420) < share
    agree(index, known, 30, allowed)
    agree(index, known, 30, allowed[:200])  # labels beyond the mask are not allowed


def test_a_mask_without_the_whole_neighbourhood_does_not_make_it_short(index: SearchIndex) -> None:
    vectors = unit(1000)
    index.upsert(range(1000), vectors)
    settle(index)
    query = unit(1, seed=8)
    near = brute(dict(enumerate(vectors)), query[0], 500, None)
    allowed = np.ones(1000, np.bool_)
    allowed[near] = False
    assert index.search(query, 20, allowed)[0][0].tolist() == brute(dict(enumerate(vectors)), query[0], 20, allowed)


def test_equal_scores_come_in_the_order_of_labels(index: SearchIndex) -> None:
    index.upsert(range(9), np.repeat(unit(1), 9, axis=0))
    assert index.search(unit(1), 9)[0][0].tolist() == list(range(9))


def test_what_does_not_fit_is_refused(index: SearchIndex) -> None:
    with pytest.raises(ValueError, match=r"vectors \(2, 16\) do not fit 1 labels"):
        index.upsert([1], unit(2))
    with pytest.raises(ValueError, match="label -1 is negative"):
        index.upsert([-1], unit(1))
    with pytest.raises(ValueError, match="2 labels hold 1 different"):
        index.upsert([4, 4], unit(2))
    with pytest.raises(ValueError, match="not finite"):
        index.upsert([1], np.full((1, DIM), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"queries \(16,\) must be"):
        index.search(unit(1)[0], 1)
    with pytest.raises(ValueError, match="k 0 must be"):
        index.search(unit(1), 0)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(MAKERS)),
    st.lists(
        st.tuples(
            st.sampled_from(["upsert", "remove", "settle"]),
            st.lists(st.integers(0, 80), min_size=1, max_size=30, unique=True),
        ),
        max_size=12,
    ),
    st.integers(1, 40),
    st.floats(0, 1),
)
def test_any_history_of_changes_gives_what_brute_force_gives(
    maker: str, changes: list[tuple[str, list[int]]], k: int, share: float
) -> None:
    index = MAKERS[maker]()
    truth: dict[int, Vector] = {}
    for seed, (change, labels) in enumerate(changes):
        if change == "upsert":
            vectors = unit(len(labels), seed)
            index.upsert(labels, vectors)
            truth.update(zip(labels, vectors, strict=True))
        elif change == "remove":
            index.remove(labels)
            truth = {label: row for label, row in truth.items() if label not in labels}
        else:
            settle(index)
        assert len(index) == len(truth)
        agree(index, truth, k)
        agree(index, truth, k, np.random.default_rng(seed).random(81) < share)


def test_an_unchanged_vector_costs_no_node() -> None:
    index = HnswIndex(DIM, exact_bytes=0, background=False)
    index.upsert(range(50), unit(50))
    index.maintain()
    index.upsert(range(50), unit(50))
    assert index.delta == 0
    index.upsert(range(50), unit(50, seed=1))
    assert index.delta == 50


def test_the_graph_appears_above_a_size_and_grows_ahead() -> None:
    index = HnswIndex(DIM, exact_bytes=100 * DIM * 2, background=False)
    vectors, seen = unit(3000, seed=2), []
    for rows in (100, 200):
        index.upsert(range(rows), vectors[:rows])
        index.maintain()
        seen.append(index.graph is not None)
    assert seen == [False, True]
    index.upsert(range(200, 3000), vectors[200:])  # more than the graph has room for
    assert index.delta == 2800
    index.maintain()
    assert index.delta == 0
    agree(index, dict(enumerate(vectors)), 20)


def test_recall_stays_after_everything_was_replaced_under_a_filter() -> None:
    dim, rows = 32, 1500
    index = HnswIndex(dim, exact_bytes=0, background=False)
    centres = unit(40, seed=4, dim=dim)
    for seed in range(3):
        vectors = centres[np.arange(rows) % 40] + 0.7 * unit(rows, seed, dim)
        vectors = unit_in_halves(vectors)
        for at in range(0, rows, 500):
            index.upsert(range(at, at + 500), vectors[at : at + 500])
            index.maintain()
    for share in (1.0, 0.5, 0.05):
        allowed = np.random.default_rng(5).random(rows) < share
        queries = unit(20, seed=6, dim=dim)
        labels, _ = index.search(queries, 50, allowed)
        truth = [brute(dict(enumerate(vectors)), query, 50, allowed) for query in queries]
        found = [len(set(a) & set(b)) / 50 for a, b in zip(labels.tolist(), truth, strict=True)]
        assert np.mean(found) >= 0.99
    assert index.canary(k=50) is not None
    assert index.recall is not None and index.recall >= 0.99


def test_a_graph_that_finds_too_little_is_built_anew() -> None:
    index = HnswIndex(DIM, exact_bytes=0, background=False, min_recall=1.1)
    index.upsert(range(100), unit(100))
    index.maintain()
    index.search(unit(1), 5)
    before = index.graph
    index.canary(k=5)
    index.maintain()
    assert index.graph is not before
    agree(index, dict(enumerate(unit(100))), 5)


class Meanwhile(threading.Event):
    """Of an index; does something in the first pause of what it does in the background."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._acts, self.pauses = [act], 0

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses += 1
        for act in self._acts[:1]:
            self._acts.clear()
            act()
        return self.is_set()


@pytest.mark.parametrize("rows", [3000, 900])
def test_recall_is_measured_in_parts_and_of_what_nobody_writes_meanwhile(rows: int) -> None:
    index, vectors = HnswIndex(DIM, exact_bytes=0, background=False, ef=rows), unit(rows)
    index.upsert(range(rows), vectors)
    index.maintain()
    query, new = unit(1, 7), unit(1, 7)[0]
    before = index.search(query, 60)[0][0]

    def change() -> None:
        """The nearest are gone or are the farthest now, and what was far away or is new is the nearest."""
        index.remove(before[:20])
        index.upsert(before[20:40], np.tile(-new, (20, 1)))
        index.upsert([*range(rows, rows + 40)], np.tile(new, (40, 1)))

    index._closed = meanwhile = Meanwhile(change)
    assert index.canary(k=60) == 1.0
    assert meanwhile.pauses == -(-rows // 1024) + len(index._recent)
    labels = index.search(query, 60)[0][0]
    assert {*range(rows, rows + 40)} <= {*labels.tolist()} and not {*before[:40].tolist()} & {*labels.tolist()}


def test_an_index_that_is_closed_ends_its_measurement() -> None:
    index = HnswIndex(DIM, exact_bytes=0, background=False)
    index.upsert(range(5000), unit(5000))
    index.maintain()
    index.search(unit(1), 5)
    index._closed = closed = Meanwhile(lambda: index._closed.set())
    assert index.canary() is None
    assert closed.pauses <= 2 and not index._must_build()


def test_a_measurement_finds_what_a_graph_has_lost() -> None:
    index = HnswIndex(DIM, exact_bytes=0, background=False, ef=2000)
    index.upsert(range(2000), unit(2000))
    index.maintain()
    nearest = index.search(unit(1, 7), 40)[0][0]
    index._node[nearest[:10]] = -1  # as if their nodes were dead
    assert index.canary(k=40) == pytest.approx(0.75)


def test_without_queries_or_graph_there_is_no_recall_to_report() -> None:
    assert HnswIndex(DIM, background=False).canary() is None


def test_searches_are_right_and_quick_while_another_thread_writes() -> None:
    index = HnswIndex(DIM, exact_bytes=0)
    fixed = unit(500, seed=1)
    index.upsert(range(500), fixed)
    stop = threading.Event()
    wrong: list[list[int]] = []

    def write() -> None:
        seed = 10
        while not stop.is_set():
            seed += 1
            # Far away from the queries: their answers are known at every moment.
            index.upsert(range(500, 900), -np.abs(unit(400, seed)))
            index.remove(range(700, 900))

    writer = threading.Thread(target=write)
    writer.start()
    query = np.abs(unit(1, seed=3))
    expected = brute(dict(enumerate(fixed)), query[0], 5, None)
    longest, deadline = 0.0, time.monotonic() + 2.0
    try:
        while time.monotonic() < deadline and not wrong:
            started = time.perf_counter()
            found = index.search(query, 5)[0][0].tolist()
            longest = max(longest, time.perf_counter() - started)
            if found != expected:
                wrong.append(found)
    finally:
        stop.set()
        writer.join()
    assert wrong == []
    assert longest < 0.5, "a search waited for a build"
    eventually(lambda: index.delta < 256 and index.graph is not None, 10, "the keeper inserts the delta")
    agree(index, dict(enumerate(fixed)), 5, np.arange(900) < 500)
    index.close()


def test_closing_ends_a_build_under_way() -> None:
    index = HnswIndex(64, exact_bytes=0)
    index.upsert(range(20_000), unit(20_000, dim=64))
    started = time.monotonic()
    index.close()
    assert time.monotonic() - started < 2.0


def test_a_process_that_ends_during_a_build_ends_well() -> None:
    code = (
        "import numpy as np; from index.items.hnsw import HnswIndex; index = HnswIndex(64, exact_bytes=0)\n"
        "index.upsert(range(20_000), np.random.default_rng(0).standard_normal((20_000, 64)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3, 0.05])
def test_a_walk_misses_hardly_any_of_the_last_places_under_a_filter(share: float) -> None:
    random = np.random.default_rng(3)
    vectors = in_halves(random.standard_normal((4000, 16)))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    graph, scan = HnswIndex(16, ef=60, exact_bytes=0, background=False), ExactIndex(16)
    for index in (graph, scan):
        index.upsert(np.arange(4000), vectors)
    graph.maintain()
    allowed, queries = random.random(4000) < share, vectors[:100] + np.float32(0.01)
    found, truth = (index.search(queries, 60, allowed)[0] for index in (graph, scan))
    assert found.shape == truth.shape == (100, 60) and allowed[found].all()
    assert np.mean([len(np.intersect1d(*rows)) / 60 for rows in zip(found, truth, strict=True)]) >= 0.99
