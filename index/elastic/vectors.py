"""Keeps a bounded number of item vectors, the latest used, for a process whose searches Elasticsearch does.

It also knows which labels have a vector that is not kept. That counts as zero, so a search here is exact over what is
kept and never short. `index.elastic.search` fetches what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from index.items.filters import Mask, fitted
from index.items.search import Labels, best, checked, checked_queries
from index.state.records import Vector

_LEAST = 1024  # rows, whatever the bound: a page of candidates has to fit
_GROWTH = 1.5


class HeldVectors:
    """A `SearchIndex` over the vectors of all labels, of which at most `limit_bytes` are kept. For one thread.

    `changes` counts calls that changed vectors, so that who fetched one can tell whether it is still the label's.
    """

    def __init__(self, dim: int, limit_bytes: int) -> None:
        if dim < 1:
            raise ValueError(f"dim {dim} must be at least 1")
        self.dim, self.changes = dim, 0
        self._limit = max(_LEAST, limit_bytes // (4 * dim))
        self._matrix: Vector = np.zeros((0, dim), np.float32)  # [rows, d]
        self._label_of: Labels = np.zeros(0, np.int64)  # by row; −1 is free
        self._row: dict[int, int] = {}  # label → row, least recently used first
        self._free: list[int] = []
        self._has: Mask = np.zeros(0, np.bool_)  # by label

    def __len__(self) -> int:
        return int(np.count_nonzero(self._has))

    def upsert(self, labels: Sequence[int] | Labels, vectors: Vector) -> None:
        rows, values = checked(labels, vectors, self.dim)
        self.changes += 1
        self._make_labels(int(rows.max(initial=-1)) + 1)
        self._has[rows] = True
        self.keep(rows, values.astype(np.float32))

    def remove(self, labels: Sequence[int] | Labels) -> None:
        self.changes += 1
        known = [label for label in np.asarray(labels, np.int64).tolist() if label < len(self._has)]
        self._has[known] = False
        for label in known:
            row = self._row.pop(label, None)
            if row is not None:
                self._label_of[row] = -1
                self._free.append(row)

    def keep(self, labels: Labels, vectors: Vector) -> None:
        """Keeps vectors [n, d] of labels [n] that have them, in place of the least recently used ones."""
        for label, vector in zip(labels.tolist(), vectors, strict=True):
            row = self._row.pop(label, None)
            if row is None:
                row = self._free_row()
            self._row[label], self._label_of[row], self._matrix[row] = row, label, vector

    def has(self, size: int) -> Mask:
        """[size] labels that have a vector, kept or not."""
        return fitted(self._has, size).copy()

    def missing(self, labels: Labels) -> Labels:
        """Those of labels [n] that have a vector which is not kept."""
        return np.array([label for label in labels.tolist() if label not in self._row and self._has[label]], np.int64)

    def vectors(self, labels: Sequence[int] | Labels) -> Vector:
        """Vectors [n, d] of labels [n]; zero where it is not kept."""
        found = np.zeros((len(labels), self.dim), np.float32)
        for at, label in enumerate(np.asarray(labels, np.int64).tolist()):
            row = self._row.pop(label, None)
            if row is not None:
                self._row[label] = row  # the latest used now
                found[at] = self._matrix[row]
        return found

    def search(self, queries: Vector, k: int, allowed: Mask | None = None) -> tuple[Labels, Vector]:
        """The nearest among what is kept, then what is not; as `SearchIndex` says."""
        asked = checked_queries(queries, k, self.dim)
        usable = self._has if allowed is None else self._has & fitted(allowed, len(self._has))
        labels = np.flatnonzero(usable)
        scores = np.zeros((len(asked), len(self._has)), np.float32)  # [q, labels]
        kept = self._label_of >= 0
        scores[:, self._label_of[kept]] = (self._matrix[kept] @ asked.T).T
        places, found = best(scores[:, labels], k)
        return labels[places], found

    def close(self) -> None:
        return None

    def _make_labels(self, size: int) -> None:
        if size > len(self._has):
            self._has = fitted(self._has, int(size * _GROWTH) + _LEAST)

    def _free_row(self) -> int:
        if self._free:
            return self._free.pop()
        used = len(self._row)
        if used >= self._limit:
            return self._row.pop(next(iter(self._row)))
        if used == len(self._matrix):
            rows = min(self._limit, int(used * _GROWTH) + _LEAST)
            matrix, labels = np.zeros((rows, self.dim), np.float32), np.full(rows, -1, np.int64)
            matrix[:used], labels[:used] = self._matrix, self._label_of
            self._matrix, self._label_of = matrix, labels
        return used
