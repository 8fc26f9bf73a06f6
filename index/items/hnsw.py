"""Finds approximate nearest items in large catalogues, by an hnswlib graph and a scan of what it lacks.

`upsert` writes the matrix and is visible at once; rows that the graph lacks make the delta, which is scanned. A keeper
thread owns the graph, which no search sees change, and builds the next. A compiled walk takes it over.
"""

from __future__ import annotations

import atexit
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hnswlib
import numpy as np
from numpy.typing import NDArray

from index.items import native
from index.items.filters import Mask, fitted
from index.items.search import ExactIndex, Halves, HeldRows, Labels, Walk, best, checked_queries
from index.state.records import Vector

EXACT_BYTES = 5_000_000  # vectors that a scan reads in about half a millisecond: below, it is as fast as the graph
_INSERT_NODES = 4  # nodes inserted per lock, about a millisecond at d=128: how long a search may have to wait
_BUILD_NODES = 128  # nodes added between two looks at whether to stop; nobody waits for these
_DELTA_ROWS = 256  # rows outside the graph before the keeper inserts them: scanning so few costs microseconds
_ROOM = 1.5  # nodes of a new graph per row: changed vectors take new nodes
_MAX_DEAD = 0.2  # share of dead nodes at which a graph is built anew
_MAX_FETCH = 0.25  # of the graph; to walk more of it costs more than a scan
_OVER_FETCH = 1.3  # beyond what the share of allowed nodes suggests, so that a second try is rare
_WALK_ROWS = 12  # rows gathered and multiplied in the time that a walk takes per candidate (at d=256, more below) …
_COMPILED_ROWS = 30  # … and where both are compiled, for both vectors of a user at once
_SCANNED = 2  # times `exact_bytes` of allowed vectors are scanned at most
_EF_SHARE = 1.5  # candidates kept while walking, per node wanted: the last of so many would be missed with fewer
_CANARY_QUERIES = 32  # remembered to measure recall with
_NONE: Labels = np.zeros(0, np.int64)
_CANARY_S = 60.0  # between two measurements
_CANARY_ROWS = 1024  # copied per lock and multiplied with all remembered queries, about a millisecond at d=256 …
_CANARY_PAUSE_S = 0.01  # … and then a pause, so that a measurement takes a tenth of a processor


class HnswIndex(ExactIndex):
    """A graph over most rows, and a scan of everything whenever that is cheaper or the graph comes back short."""

    def __init__(
        self,
        dim: int,
        *,
        ef: int = 100,  # candidates kept while walking the graph; higher finds more and takes longer
        links: int = 16,  # neighbours per node (hnswlib's M)
        ef_construction: int = 200,  # `ef` while building
        exact_bytes: int = EXACT_BYTES,  # no graph below; no scan of allowed vectors that take more than twice that
        min_recall: float = 0.98,  # a graph that finds less on recent queries is built anew
        background: bool = True,  # False leaves `maintain` to the caller (tests)
    ) -> None:
        super().__init__(dim)
        if ef < 1 or links < 2 or ef_construction < 1:
            raise ValueError(f"ef {ef}, links {links}, ef_construction {ef_construction}: at least 1, 2, 1 are needed")
        self._ef, self._links, self._ef_construction = ef, links, ef_construction
        self._exact_rows = exact_bytes // (2 * dim)
        self._min_recall = min_recall
        self.graph: _Graph | None = None  # what searches without a filter walk
        self._node: NDArray[np.int32] = np.zeros(0, np.int32)  # [capacity] node with the label's present vector, or −1
        self._outside: Mask = np.zeros(0, np.bool_)  # [capacity] the delta: live labels without a node
        self.delta = 0  # how many these are
        self._changed: Mask | None = None  # [capacity] labels written since the build under way began
        self._written: Mask | None = None  # [capacity] labels written since the measurement under way began
        self._recent: deque[Vector] = deque(maxlen=_CANARY_QUERIES)
        self._rebuild = False
        self.recall: float | None = None  # of the last canary
        self._wake, self._closed = threading.Event(), threading.Event()
        self._background, self._keeper = background, threading.Thread(target=self._keep, name="hnsw", daemon=True)

    def remove(self, labels: Sequence[int] | Labels) -> None:
        rows = np.asarray(labels, np.int64)
        with self._lock:
            rows = rows[rows < self._end]
            self._forget(rows)
            self._live[rows] = False
            self._count = int(np.count_nonzero(self._live[: self._end]))

    def search(self, queries: Vector, k: int, allowed: Mask | None = None) -> tuple[Labels, Vector]:
        asked = checked_queries(queries, k, self.dim)
        with self._lock:
            usable = self._usable(allowed)
            count = int(np.count_nonzero(usable))
            if self.graph is None or count <= min(_SCANNED * self._exact_rows, self._scan_rows(k, count)):
                return self._scan(asked, k, usable, count)
            self._recent.append(asked[0])
            return self._walk(self.graph, asked, k, usable, count) or self._scan(asked, k, usable, count)

    @contextmanager
    def held(self) -> Iterator[HeldRows]:
        with self._lock:
            graph = self.graph
            compiled = None if graph is None or graph.compiled is None else (graph.compiled, graph.labels, self._node)
            yield HeldRows(self._live, self._halves, self._end, compiled)

    def walk(self, queries: Vector, k: int, count: int) -> Walk | None:
        graph = self.graph
        if graph is None or count <= min(_SCANNED * self._exact_rows, self._scan_rows(k, count, _COMPILED_ROWS)):
            return None
        self._recent.append(queries[0])
        return Walk(graph.wide(k), _steps(count), np.flatnonzero(self._outside[: self._end]) if self.delta else _NONE)

    def maintain(self) -> None:
        """Does all the work there is on the graph; the keeper's job, or the caller's without a keeper."""
        while not self._closed.is_set():
            if self._must_build():
                self._build()
            elif self.graph is not None and self.delta:
                started = time.perf_counter()
                self._insert(self.graph)
                # The lock is not a fair one: as long a pause lets every waiting search go first.
                self._closed.wait(time.perf_counter() - started)
            else:
                return

    def canary(self, k: int = 100) -> float | None:
        """Measures recall@k on recent queries against a scan, and has the graph built anew where it is too low.

        Searches wait for a copy of a few rows, or for one walk. What is written meanwhile is left out.
        """
        queries, found = list(self._recent), list[float]()
        if self.graph is not None and queries:
            with self._lock:
                self._written, end = np.zeros(len(self._live), np.bool_), self._end
            nearest = self._nearest(np.stack(queries), k, end)
            for query, labels in zip(queries, nearest, strict=True):
                if self._closed.wait(_CANARY_PAUSE_S):
                    return self.recall
                with self._lock:
                    found += self._share_found(query, labels, k)
            with self._lock:
                self._written = None
        self.recall = float(np.mean(found)) if found else None
        if self.recall is not None and self.recall < self._min_recall:
            self.rebuild()
        return self.recall

    def _nearest(self, queries: Vector, k: int, end: int) -> Labels:
        """Of rows below `end` the k nearest of each query [q, k], by a scan of a part after the other until closed."""
        labels, scores = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
        for at in range(0, end, _CANARY_ROWS):
            with self._lock:
                rows = at + np.flatnonzero(self._live[at : min(at + _CANARY_ROWS, end)])
                halves = self._halves[rows]
            scores = np.concatenate((scores, queries @ halves.astype(np.float32).T), axis=1)
            labels = np.concatenate((labels, np.broadcast_to(rows, (len(queries), len(rows)))), axis=1)
            column, scores = best(scores, k)
            labels = np.take_along_axis(labels, column, axis=1)
            if self._closed.wait(_CANARY_PAUSE_S):
                break
        return labels

    def _share_found(self, query: Vector, nearest: Labels, k: int) -> list[float]:
        """The share of the nearest that a walk finds; nothing where there is no walk to that many."""
        usable = self._live[: self._end].copy()
        if self._written is not None:
            usable &= ~self._written[: self._end]
        nearest = nearest[usable[nearest]]
        walked = self._walk(self.graph, query[None], k, usable, int(usable.sum())) if self.graph else None
        if walked is None or not len(nearest):
            return []
        return [len(np.intersect1d(walked[0][0, : len(nearest)], nearest)) / len(nearest)]

    def rebuild(self) -> None:
        """Asks the keeper to build the graph anew."""
        self._rebuild = True
        self._call_keeper()

    def close(self) -> None:
        self._closed.set()
        self._wake.set()
        atexit.unregister(self.close)
        if self._keeper.is_alive():
            self._keeper.join()

    def _call_keeper(self) -> None:
        self._wake.set()
        # Started when first needed: most catalogues are small and never have a graph.
        if self._background and self._keeper.ident is None and not self._closed.is_set():
            # A thread that still runs inside hnswlib when the interpreter ends would abort the process.
            atexit.register(self.close)
            self._keeper.start()

    def _keep(self) -> None:
        while not self._closed.is_set():
            if self._wake.wait(_CANARY_S):
                self._wake.clear()
                self.maintain()
            else:
                self.canary()

    def _scan_rows(self, k: int, count: int, rows: int = _WALK_ROWS) -> float:
        """Rows that can be scanned in the time of a walk that ends with k of `count` allowed labels."""
        return rows * max(self._ef, _EF_SHARE * _OVER_FETCH * k * self._count / max(1, count))

    def _walk(self, graph: _Graph, queries: Vector, k: int, usable: Mask, count: int) -> tuple[Labels, Vector] | None:
        """Graph and delta together; None when the graph would have to be walked too far, or came back short."""
        rows = np.flatnonzero(usable & self._outside[: self._end]) if self.delta else _NONE
        inside = count - len(rows)
        found = self._inside(graph, queries, k, usable, inside) if inside > 0 else None
        if found is None or not len(rows):
            return found
        labels, similar = found
        beside = self._halves[rows].astype(np.float32) @ queries.T  # [delta, q]
        labels = np.concatenate((labels, np.broadcast_to(rows, (len(queries), len(rows)))), axis=1)
        column, scores = best(np.concatenate((similar, beside.T), axis=1), k)
        return np.take_along_axis(labels, column, 1), scores

    def _inside(
        self, graph: _Graph, queries: Vector, k: int, usable: Mask, inside: int
    ) -> tuple[Labels, Vector] | None:
        """The nearest of `inside` usable labels that the graph has."""
        if graph.compiled is not None:
            about = usable, graph.labels, self._node
            walked: tuple[Labels, Vector] | None = graph.compiled.nearest(
                queries, min(k, inside), graph.wide(k), _steps(inside), *about
            )
            return walked
        fetch = k if inside == graph.used else math.ceil(k * _OVER_FETCH * graph.used / inside) + 8
        if fetch > max(k, _MAX_FETCH * graph.used):
            return None
        found = graph.nearest(queries, fetch)
        if found is None:
            return None
        nodes, similar = found
        labels = graph.labels[nodes]  # [q, fetch]
        good = (self._node[labels] == nodes) & usable[labels]
        wanted = min(k, inside)
        if int(good.sum(axis=1).min()) < wanted:
            return None
        if not good[:, :wanted].all():
            first = np.stack([np.flatnonzero(row)[:wanted] for row in good])  # the good ones, in order of similarity
            row = np.arange(len(queries))[:, None]
            labels, similar = labels[row, first], similar[row, first]
        return labels[:, :wanted], similar[:, :wanted]

    def _set(self, rows: Labels, values: Halves) -> None:
        end = min(self._end, int(rows.max()) + 1)
        known = rows < end
        same = np.zeros(len(rows), np.bool_)
        same[known] = self._live[rows[known]] & (self._halves[rows[known]] == values[known]).all(axis=1)
        rows, values = rows[~same], values[~same]  # an unchanged vector must not cost a node
        if not len(rows):
            return
        super()._set(rows, values)
        self._forget(rows)
        self._outside[rows] = True
        self.delta += len(rows)
        if self.delta >= _DELTA_ROWS or self._must_build():
            self._call_keeper()

    def _grow(self, capacity: int) -> None:
        super()._grow(capacity)
        self._node = np.pad(self._node, (0, capacity - len(self._node)), constant_values=-1)
        self._outside = fitted(self._outside, capacity)
        if self._changed is not None:
            self._changed = fitted(self._changed, capacity)
        if self._written is not None:
            self._written = fitted(self._written, capacity)

    def _forget(self, rows: Labels) -> None:
        """Takes rows out of the graph and the delta."""
        self._node[rows] = -1
        self.delta -= int(np.count_nonzero(self._outside[rows]))
        self._outside[rows] = False
        if self._changed is not None:
            self._changed[rows] = True
        if self._written is not None:
            self._written[rows] = True

    def _halves_of(self, rows: Labels) -> Halves:
        with self._lock:
            return np.asarray(self._halves[rows])

    def _must_build(self) -> bool:
        graph = self.graph
        if graph is None:
            return self._count > self._exact_rows
        dead = graph.used - (self._count - self.delta)
        return self._rebuild or dead > _MAX_DEAD * graph.used or graph.used + self.delta > graph.capacity

    def _insert(self, graph: _Graph) -> None:
        """Moves a few rows from the delta into the graph."""
        with self._lock:
            room = min(_INSERT_NODES, graph.capacity - graph.used)  # the delta may have grown meanwhile
            rows = np.flatnonzero(self._outside[: self._end])[:room]
            if len(rows):
                self._node[rows] = graph.add(rows, self._halves[rows])
                self._outside[rows] = False
                self.delta -= len(rows)

    def _build(self) -> None:
        """Builds a graph of all live rows beside the present one, and puts it in its place."""
        with self._lock:
            self._rebuild = False
            rows = np.flatnonzero(self._live[: self._end])
            self._changed = np.zeros(len(self._live), np.bool_)
        capacity = int(len(rows) * _ROOM) + 1024
        graph = _Graph(self.dim, capacity, self._ef, self._links, self._ef_construction)
        nodes = np.zeros(len(rows), np.int32)
        for at in range(0, len(rows), _BUILD_NODES):
            if self._closed.is_set():
                return
            part = rows[at : at + _BUILD_NODES]
            nodes[at : at + _BUILD_NODES] = graph.add(part, self._halves_of(part))
            graph.compile()  # at once: hnswlib hands a graph over under Python's lock, half a second for 50,000 nodes
        with self._lock:
            kept = ~self._changed[rows]  # the others were written or removed meanwhile: their nodes are dead
            self._node[: self._end] = -1
            self._node[rows[kept]] = nodes[kept]
            self._outside[: self._end] = self._live[: self._end] & (self._node[: self._end] < 0)
            self.delta = int(np.count_nonzero(self._outside[: self._end]))
            self.graph, self._changed = graph, None


def _steps(count: int) -> int:
    """To how many nodes a walk may go that a scan of `count` rows could replace."""
    return count * 3 // 2


class _Graph:
    """One hnswlib index whose nodes are numbered in order of insertion and never reused, or what was made of it."""

    def __init__(self, dim: int, capacity: int, ef: int, links: int, ef_construction: int) -> None:
        self.capacity, self.used = capacity, 0
        self.labels: Labels = np.zeros(capacity, np.int64)  # [capacity] label of each node
        self._index = hnswlib.Index("ip", dim)
        self._index.init_index(capacity, M=links, ef_construction=ef_construction, random_seed=1)
        self._ef = ef
        self.compiled: Any = None  # walks with any mask, and takes further nodes

    def compile(self) -> None:
        """Hands the nodes over to a compiled graph with vectors in halves, where there is one."""
        if native.COMPILED is None or self.compiled is not None or not self.used:
            return
        built = self._index.__getstate__()[0]
        begin, rows = built["offset_data"], built["data_level0"].reshape(self.used, -1)
        vectors = np.ascontiguousarray(rows[:, begin : begin + 4 * self._index.dim]).view(np.float32)
        self.compiled = native.COMPILED.Graph(built, vectors.astype(np.float16).view(np.uint16), self.capacity)
        del self._index

    def wide(self, k: int) -> int:
        """How many nodes to keep on the way to k."""
        return max(self._ef, math.ceil(_EF_SHARE * k))

    def add(self, labels: Labels, halves: Halves) -> NDArray[np.int32]:
        """Inserts vectors [n, d]; returns their nodes [n]."""
        nodes = np.arange(self.used, self.used + len(labels))
        if self.compiled is not None:
            self.compiled.add(halves.view(np.uint16))
        else:  # by one thread: the other cores belong to the queries
            self._index.add_items(halves.astype(np.float32), nodes, num_threads=1)
        self.labels[nodes] = labels
        self.used += len(labels)
        return nodes.astype(np.int32)

    def nearest(self, queries: Vector, count: int) -> tuple[Labels, Vector] | None:
        """Nodes [q, count] and inner products [q, count], best first; None if the walk does not reach so many."""
        self._index.set_ef(self.wide(count))
        try:
            nodes, distances = self._index.knn_query(queries, k=min(count, self.used), num_threads=1)
        except RuntimeError:  # hnswlib's way to say that it found fewer
            return None
        return nodes.astype(np.int64), 1.0 - distances
