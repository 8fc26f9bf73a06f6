"""Finds the nearest items to a vector by inner product, exactly; also the interface of every search backend.

Assumes L2-normalised item vectors, which are kept in halves; queries may have any length. What is allowed arrives as a
mask over labels, the catalogue's small integers. A list is as long as asked while enough items are allowed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from index.items.filters import Mask, fitted
from index.state.records import Vector

Labels = NDArray[np.int64]  # [m]
Halves = NDArray[np.float16]  # [n, d]

_GROWTH = 1.5  # room beyond what is needed now, so that growing stays rare; untouched pages cost no memory
_UPSERT_ROWS = 2048  # rows written per lock: under a millisecond, which is how long a search may have to wait
_BLOCK_BYTES = 1 << 19  # of vectors in fp32 that stay in a core's own cache while all queries use them
_SCAN_SHARE = 0.4  # of all rows: to scan more than this, reading everything is cheaper than gathering


class HeldRows(NamedTuple):
    """What an index has by label: which labels have a vector [capacity], and halves [capacity, d]; all below `end`.

    `graph` is a compiled one with its labels by node and its nodes by label, None where there is none.
    """

    live: Mask
    halves: Halves
    end: int
    graph: tuple[Any, Labels, NDArray[np.int32]] | None = None


class Walk(NamedTuple):
    """How many nodes a walk is to keep on its way, to how many it may go, and labels [n] beside the graph."""

    wide: int
    steps: int
    beside: Labels


class SearchIndex(Protocol):
    """What both backends do. All methods may be called from any thread."""

    def upsert(self, labels: Sequence[int] | Labels, vectors: Vector) -> None:
        """Sets vectors [n, d] of distinct labels [n], rounded to halves; visible to the next search."""

    def remove(self, labels: Sequence[int] | Labels) -> None:
        """Forgets labels; unknown ones are ignored."""

    def search(self, queries: Vector, k: int, allowed: Mask | None = None) -> tuple[Labels, Vector]:
        """The nearest labels [q, m] to queries [q, d] and their inner products [q, m], best first.

        `allowed` [n] is by label; labels beyond its end are not allowed. m = min(k, allowed labels with a vector).
        """

    def vectors(self, labels: Sequence[int] | Labels) -> Vector:
        """Stored vectors [n, d] of known labels [n], in fp32."""

    def __len__(self) -> int:
        """Number of labels with a vector."""

    def close(self) -> None:
        """Ends background work."""


class ExactIndex:
    """Brute force over a contiguous matrix of halves: the oracle, and the backend of small catalogues."""

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim {dim} must be at least 1")
        self.dim = dim
        self._lock = threading.Lock()
        self._halves: Halves = np.zeros((0, dim), np.float16)  # [capacity, d]
        self._live: Mask = np.zeros(0, np.bool_)  # [capacity]
        self._end = 0  # labels in use lie below
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def upsert(self, labels: Sequence[int] | Labels, vectors: Vector) -> None:
        rows, values = checked(labels, vectors, self.dim)
        for at in range(0, len(rows), _UPSERT_ROWS):
            with self._lock:
                self._set(rows[at : at + _UPSERT_ROWS], values[at : at + _UPSERT_ROWS])

    def remove(self, labels: Sequence[int] | Labels) -> None:
        rows = np.asarray(labels, np.int64)
        with self._lock:
            rows = rows[rows < self._end]
            self._live[rows] = False
            self._count = int(np.count_nonzero(self._live[: self._end]))

    def search(self, queries: Vector, k: int, allowed: Mask | None = None) -> tuple[Labels, Vector]:
        asked = checked_queries(queries, k, self.dim)
        with self._lock:
            usable = self._usable(allowed)
            return self._scan(asked, k, usable, int(np.count_nonzero(usable)))

    def vectors(self, labels: Sequence[int] | Labels) -> Vector:
        rows = np.asarray(labels, np.int64)
        with self._lock:
            found = self._halves[rows]
        return found.astype(np.float32)

    @contextmanager
    def held(self) -> Iterator[HeldRows]:
        """Its rows, which do not change meanwhile."""
        with self._lock:
            yield HeldRows(self._live, self._halves, self._end)

    def walk(self, queries: Vector, k: int, count: int) -> Walk | None:
        """How to walk for k of `count` allowed labels; None where a scan does as well. For use while `held`."""
        return None

    def close(self) -> None:
        return None

    def _set(self, rows: Labels, values: Halves) -> None:
        end = max(self._end, int(rows.max()) + 1)
        if end > len(self._halves):
            self._grow(int(end * _GROWTH) + 1024)
        self._halves[rows] = values
        self._count += int(np.count_nonzero(~self._live[rows]))
        self._live[rows] = True
        self._end = end

    def _grow(self, capacity: int) -> None:
        halves = np.zeros((capacity, self.dim), np.float16)
        halves[: self._end] = self._halves[: self._end]
        self._halves, self._live = halves, fitted(self._live, capacity)

    def _usable(self, allowed: Mask | None) -> Mask:
        """[end] labels that have a vector and are allowed."""
        live = self._live[: self._end]
        return live if allowed is None else live & fitted(allowed, self._end)

    def _scan(self, queries: Vector, k: int, usable: Mask, count: int) -> tuple[Labels, Vector]:
        if count < _SCAN_SHARE * self._end:
            rows = np.flatnonzero(usable)
            found, scores = best(self._products(queries, rows), k)
            return rows[found], scores
        scores = self._products(queries)
        if count < self._end:
            scores[:, ~usable] = -np.inf
        return best(scores, min(k, count))

    def _products(self, queries: Vector, rows: Labels | None = None) -> Vector:
        """Inner products [q, n] with some rows [n], or with all: block by block, so that memory is read once."""
        count, step = self._end if rows is None else len(rows), max(1, _BLOCK_BYTES // (4 * self.dim))
        products = np.empty((len(queries), count), np.float32)
        for at in range(0, count, step):
            part = slice(at, min(at + step, count))
            block = (self._halves[part] if rows is None else self._halves[rows[part]]).astype(np.float32)
            # One product per query is faster than one for all: OpenBLAS has no good path for so flat a matrix.
            for query, found in zip(queries, products, strict=True):
                np.dot(block, query, out=found[part])
        return products


def checked(labels: Sequence[int] | Labels, vectors: Vector, dim: int) -> tuple[Labels, Halves]:
    """Labels [n] and vectors [n, d] as arrays; ValueError for what no index can hold."""
    rows = np.asarray(labels, np.int64)
    with np.errstate(over="ignore"):  # what no half can hold is not finite
        values = np.asarray(vectors, np.float32).astype(np.float16)
    if values.shape != (len(rows), dim):
        raise ValueError(f"vectors {values.shape} do not fit {len(rows)} labels of an index with d={dim}")
    if len(rows) and rows.min() < 0:
        raise ValueError(f"label {rows.min()} is negative; the catalogue gives labels from 0")
    if len(np.unique(rows)) != len(rows):
        raise ValueError(f"{len(rows)} labels hold {len(np.unique(rows))} different ones; give each once")
    if not np.isfinite(values).all():
        raise ValueError("a vector has a number that is not finite in halves; refuse it where it comes in")
    return rows, values


def checked_queries(queries: Vector, k: int, dim: int) -> Vector:
    """Queries [q, d] as an array; ValueError for another shape, or k below 1."""
    asked = np.ascontiguousarray(queries, np.float32)
    if asked.ndim != 2 or asked.shape[1] != dim or not len(asked):
        raise ValueError(f"queries {asked.shape} must be [q, {dim}] with q >= 1")
    if k < 1:
        raise ValueError(f"k {k} must be at least 1")
    return asked


def best(scores: Vector, k: int) -> tuple[Labels, Vector]:
    """Columns of the k highest scores of each row of [q, n], best first; equal ones by column."""
    count = scores.shape[1]
    k = min(k, count)
    if k < count:
        columns = np.sort(np.argpartition(scores, count - k, axis=1)[:, count - k :], axis=1)
    else:
        columns = np.broadcast_to(np.arange(count), scores.shape)
    chosen = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-chosen, axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(chosen, order, axis=1)
