"""Ranks by counts, which are popularity, item-kNN and co-visitation from other users' histories, text-kNN from
contents.

Each is a pure function of training sequences over candidates' rows (text-kNN: of the candidates' vectors). Candidates
that the counts say nothing about follow by popularity. Only what was trained on is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from encoder.baselines.sequences import Sequences
from streams.evaluation.rankers import FloatArray, IntArray, Question

_BLOCK = 8 << 20  # counts, and pairs to be counted, held at a time: 64 MB each
_TIE = 1e-6  # what the most popular item gains: below any similarity that counts


class PopularityRanker:
    """How often each candidate was chosen; with `horizon_ms` only in so long a time before the question.

    Without a horizon all of the training part counts, whenever the question is asked.
    """

    def __init__(self, name: str, data: Sequences, horizon_ms: int | None = None) -> None:
        self.lists: Mapping[str, Sequence[int]] = {name: (0,)}
        order = np.argsort(data.ts_ms, kind="stable")
        self._items, self._ts_ms = data.items[order], data.ts_ms[order]
        self._total = data.counts.astype(np.float32)
        self._horizon_ms = horizon_ms

    def scores(self, questions: Sequence[Question]) -> Sequence[FloatArray]:
        if self._horizon_ms is None:
            return [np.tile(self._total, (len(questions), 1))]
        return [np.stack([self._recent(question.now_ms, self._horizon_ms) for question in questions])]

    def _recent(self, now_ms: int, horizon_ms: int) -> FloatArray:
        """Choices in (now − horizon, now), as `RecentPopularity` counts them before an event."""
        low = int(np.searchsorted(self._ts_ms, now_ms - horizon_ms, side="right"))
        high = int(np.searchsorted(self._ts_ms, now_ms, side="left"))
        return np.bincount(self._items[low:high], minlength=len(self._total)).astype(np.float32)


class Neighbours:
    """Scores by what the items of a window have beside them: Σ over the window of decay^age · similarity.

    Args:
        near: for each item its neighbours [items, k], -1 where there are fewer.
        weight: how similar those are [items, k].
        decay: what the next older item of the window counts, as a share.
    """

    def __init__(self, name: str, near: IntArray, weight: FloatArray, popular: FloatArray, decay: float = 1.0) -> None:
        self.lists: Mapping[str, Sequence[int]] = {name: (0,)}
        self.near, self.weight, self._decay = near, np.where(near < 0, 0, weight), decay
        self._popular = popular * (_TIE / max(1.0, float(popular.max(initial=0))))

    def scores(self, questions: Sequence[Question]) -> Sequence[FloatArray]:
        return [np.stack([self._of(question.chosen) for question in questions])]

    def _of(self, chosen: IntArray) -> FloatArray:
        rows, first = np.unique(chosen[::-1], return_index=True)  # an item counts once, where it was chosen last
        share = self._decay**first
        weight = (self.weight[rows] * share[:, None]).ravel()
        near = np.maximum(self.near[rows], 0).ravel()
        found = np.bincount(near, weights=weight, minlength=len(self.near)) + self._popular
        return found.astype(np.float32)


def item_knn(name: str, data: Sequences, k: int = 200) -> Neighbours:
    """Item-based collaborative filtering: cosine of the sets of users, |i ∩ j| / √(|i| |j|), of the k nearest items."""
    pairs = np.unique(data.users * np.int64(data.catalogue) + data.items)
    users, items = pairs // data.catalogue, pairs % data.catalogue
    size = np.sqrt(np.maximum(np.bincount(items, minlength=data.catalogue), 1))
    near, weight = _allocate(data.catalogue, k)
    for start, both in _together(users, items, data.catalogue):
        rows = np.arange(start, start + len(both))
        cosine = both / (size[rows][:, None] * size)
        cosine[np.arange(len(rows)), rows] = 0  # an item is no neighbour of its own
        near[rows], weight[rows] = _nearest(cosine, near.shape[1])
    return Neighbours(name, near, weight, data.counts.astype(np.float32))


def _together(users: IntArray, items: IntArray, catalogue: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Users that a block of items shares with every item [block, catalogue]; pairs are distinct and sorted by user."""
    user_ptr = np.searchsorted(users, np.arange(users[-1] + 2))
    order = np.argsort(items, kind="stable")
    item_ptr = np.searchsorted(items[order], np.arange(catalogue + 1))
    sizes = np.diff(user_ptr)
    work = np.concatenate([[0], np.cumsum(np.bincount(items, weights=sizes[users], minlength=catalogue) + catalogue)])
    start = 0
    while start < catalogue:
        stop = max(start + 1, int(np.searchsorted(work, work[start] + _BLOCK, side="right")) - 1)
        some = order[item_ptr[start] : item_ptr[stop]]  # pairs of these items
        first, count = user_ptr[users[some]], sizes[users[some]]
        at = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())  # all pairs of those users
        codes = np.repeat(items[some] - start, count) * catalogue + items[at]
        both = np.bincount(codes, minlength=(stop - start) * catalogue)
        yield start, both.reshape(stop - start, catalogue).astype(np.float64)
        start = stop


def co_visitation(name: str, data: Sequences, reach: int = 5, k: int = 200, decay: float = 0.5) -> Neighbours:
    """What users chose next: Σ 1/distance over the `reach` choices after each choice of i, divided by how often i was
    chosen; the newest item of a window counts most.
    """
    users, codes, weights = data.users, [], []
    for distance in range(1, reach + 1):
        before, after = data.items[:-distance], data.items[distance:]
        real = (users[:-distance] == users[distance:]) & (before != after)
        codes.append(before[real] * np.int64(data.catalogue) + after[real])
        weights.append(np.full(np.count_nonzero(real), 1 / distance))
    found, place = np.unique(np.concatenate(codes), return_inverse=True)
    summed = np.bincount(place, weights=np.concatenate(weights), minlength=len(found))
    left, right = found // data.catalogue, found % data.catalogue
    ptr = np.searchsorted(left, np.arange(data.catalogue + 1))
    near, weight = _allocate(data.catalogue, k)
    for item in np.unique(left).tolist():
        part = slice(ptr[item], ptr[item + 1])
        best = np.argsort(-summed[part], kind="stable")[:k]
        near[item, : len(best)] = right[part][best]
        weight[item, : len(best)] = summed[part][best] / data.counts[item]
    return Neighbours(name, near, weight, data.counts.astype(np.float32), decay)


def _allocate(catalogue: int, k: int) -> tuple[IntArray, FloatArray]:
    shape = catalogue, min(k, catalogue)
    return np.full(shape, -1, np.int64), np.zeros(shape, np.float32)


def _nearest(similarity: NDArray[np.float64], k: int) -> tuple[IntArray, FloatArray]:
    """The k highest of each row, -1 for those that are 0; ties in row order but for the last place."""
    at = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(similarity, at, axis=1)
    return np.where(values > 0, at, -1).astype(np.int64), values.astype(np.float32)


class TextKnn:
    """Cosine between candidates' text vectors and the window's, the newest counting most; nothing is trained.

    Vectors are centred first: text models put all texts of one shop into one corner.
    """

    def __init__(self, name: str, vectors: FloatArray, decay: float = 0.8) -> None:
        self.lists: Mapping[str, Sequence[int]] = {name: (0,)}
        self._unit = _unit(vectors - vectors.mean(axis=0))
        self._decay = decay

    def scores(self, questions: Sequence[Question]) -> Sequence[FloatArray]:
        wanted = np.zeros((len(questions), self._unit.shape[1]), np.float32)
        for row, question in zip(wanted, questions, strict=True):
            share = self._decay ** np.arange(len(question.chosen))[::-1]
            row[:] = share @ self._unit[question.chosen]
        return [_unit(wanted) @ self._unit.T]


def _unit(rows: FloatArray) -> FloatArray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: FloatArray = (rows / np.maximum(length, 1e-12)).astype(np.float32)
    return unit
