"""Ranking metrics with exact definitions, and the recent-popularity list that every table has to be read beside.

A list is item ids, best first, without repeats; a target set is what the user then chose. All functions are pure and
work on one list; `Scoreboard` averages them as questions are answered. It does not know where lists come from, and
every question counts, those whose target nobody could have recommended too: misses are never filtered away here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

DAY_MS = 86_400_000


def hit_rate(ranked: Sequence[str], targets: Collection[str], k: int) -> float:
    """HR@k = 1 if any target is among the first k, else 0.

    >>> hit_rate(["a", "b", "c"], {"c"}, 2), hit_rate(["a", "b", "c"], {"c", "b"}, 2)
    (0.0, 1.0)
    """
    return float(any(item in targets for item in _top(ranked, targets, k)))


def recall(ranked: Sequence[str], targets: Collection[str], k: int) -> float:
    """Recall@k = |first k ∩ targets| / |targets|; with one target it is HR@k.

    >>> recall(["a", "b", "c"], {"b", "x"}, 3)  # one of two found
    0.5
    """
    return sum(item in targets for item in _top(ranked, targets, k)) / len(targets)


def ndcg(ranked: Sequence[str], targets: Collection[str], k: int) -> float:
    """NDCG@k = Σ_{r ≤ k, item r is a target} 1/log2(r + 1), divided by the most that is achievable:
    Σ_{r ≤ min(k, |targets|)} 1/log2(r + 1). With one target at rank r it is 1/log2(r + 1).

    >>> ndcg(["a", "b", "c"], {"a"}, 3), ndcg(["a", "b", "c"], {"c"}, 3)  # rank 1; rank 3: 1/log2(4)
    (1.0, 0.5)
    >>> ndcg(["a", "b"], {"a", "b", "c"}, 2)  # a third target cannot be in a list of two
    1.0
    """
    gained = sum(1 / math.log2(rank + 1) for rank, item in enumerate(_top(ranked, targets, k), 1) if item in targets)
    return gained / sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(targets)) + 1))


def reciprocal_rank(ranked: Sequence[str], targets: Collection[str], k: int) -> float:
    """1 / rank of the first target among the first k, 0 without one; its mean is MRR@k.

    >>> reciprocal_rank(["a", "b", "c", "d"], {"d", "b"}, 4)
    0.5
    """
    return next((1 / rank for rank, item in enumerate(_top(ranked, targets, k), 1) if item in targets), 0.0)


def coverage(shown: Collection[str], catalogue_size: int) -> float:
    """Coverage@k = |items in any list's first k| / |items that could have been shown|; 0 for an empty catalogue.

    >>> coverage({"a", "b"}, 8)
    0.25
    """
    return len(shown) / catalogue_size if catalogue_size else 0.0


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of McNemar's exact test on paired hits: only questions that one list hits and the other misses
    count, and each falls to either side with chance 1/2 if the lists are equally good. (arXiv 1504.08175 proposes such
    a test for prequential evaluation.)

    >>> sign_test(5, 5), sign_test(10, 0)  # 2 · 2^-10
    (1.0, 0.001953125)
    """
    n, fewer = wins + losses, min(wins, losses)
    log_chances = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(fewer + 1)]
    tail = sum(math.exp(chance - n * math.log(2)) for chance in log_chances)
    return min(1.0, round(2 * tail, 12))


def _top(ranked: Sequence[str], targets: Collection[str], k: int) -> Sequence[str]:
    if k < 1:
        raise ValueError(f"k is {k}; a list has at least one place")
    if not targets:
        raise ValueError("a question without a target has no score; leave it out")
    top = ranked[:k]
    if len(set(top)) != len(top):
        raise ValueError(f"a list holds an item twice: {top!r:.200}")
    return top


METRICS = {"HR": hit_rate, "Recall": recall, "NDCG": ndcg, "MRR": reciprocal_rank}


@dataclass(slots=True)
class Scoreboard:
    """Running means of the metrics of one way to make lists, at several cut-offs `ks`."""

    ks: Sequence[int] = (10,)
    questions: int = 0
    _sums: dict[str, float] = field(default_factory=dict)
    _shown: dict[int, set[str]] = field(default_factory=dict)

    def add(self, ranked: Sequence[str], targets: Collection[str]) -> None:
        """Scores one list. Raises ValueError for a repeated item or no target."""
        self.questions += 1
        for k in self.ks:
            for name, metric in METRICS.items():
                key = f"{name}@{k}"
                self._sums[key] = self._sums.get(key, 0.0) + metric(ranked, targets, k)
            self._shown.setdefault(k, set()).update(ranked[:k])

    def means(self, catalogue_size: int) -> dict[str, float]:
        """`{"HR@10": …, "Recall@10": …, "NDCG@10": …, "MRR@10": …, "coverage@10": …}`, empty without a question."""
        if not self.questions:
            return {}
        rows: dict[str, float] = {}
        for k in self.ks:
            rows |= {f"{name}@{k}": self._sums[f"{name}@{k}"] / self.questions for name in METRICS}
            rows[f"coverage@{k}"] = coverage(self._shown[k], catalogue_size)
        return rows

    def memory(self) -> dict[str, Any]:
        """What has been scored, as plain values for JSON."""
        shown = {str(k): sorted(items) for k, items in self._shown.items()}
        return {"questions": self.questions, "sums": self._sums, "shown": shown}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Goes on from what `memory` said."""
        self.questions, self._sums = memory["questions"], dict(memory["sums"])
        self._shown = {int(k): set(items) for k, items in memory["shown"].items()}


_COLUMNS = ("counts", "latest", "allowed")  # of `RecentPopularity`, one entry an item


class RecentPopularity:
    """The most chosen items of the last days, counted as events come: the list to beat.

    An event counts 1 while event time is less than `horizon_ms` past it; without a horizon, for ever. Ties, and items
    no longer chosen at all, go by the latest choice first; items never chosen come last, in the order in which they
    became known.
    """

    def __init__(self, horizon_ms: int | None = 7 * DAY_MS) -> None:
        self._horizon_ms = horizon_ms
        self._ids: list[str] = []
        self._row: dict[str, int] = {}
        self._counts: NDArray[np.int64] = np.zeros(1024, np.int64)  # [capacity] by row
        self._latest: NDArray[np.int64] = np.zeros(1024, np.int64)  # number of the latest choice, 0 = never
        self._allowed: NDArray[np.bool_] = np.zeros(1024, np.bool_)
        self._recent: deque[tuple[int, int]] = deque()  # (ts_ms, row) inside the horizon, in order of arrival
        self._choices = 0

    def know(self, item_id: str, allowed: bool = True) -> None:
        """Makes an item a candidate, or no longer one."""
        row = self._row_of(item_id)  # may grow the arrays
        self._allowed[row] = allowed

    def add(self, item_id: str, ts_ms: int) -> None:
        """Counts one choice, of a candidate or not; a late one is forgotten with the event that came before it."""
        self._forget(ts_ms)  # not only when asked: what is held is bounded by the horizon
        row = self._row_of(item_id)
        self._choices += 1
        self._counts[row] += 1
        self._latest[row] = self._choices
        if self._horizon_ms is not None:
            self._recent.append((ts_ms, row))

    def top(self, k: int, now_ms: int, without: Iterable[str] = ()) -> list[str]:
        """The k most chosen candidates at `now_ms`, but those of `without`."""
        self._forget(now_ms)
        n = len(self._ids)
        # One number per row orders by count, then by the latest choice: unique but for items never chosen.
        rank = self._counts[:n] * (self._choices + 1) + self._latest[:n]
        usable = self._allowed[:n].copy()
        usable[[self._row[item] for item in without if item in self._row]] = False
        rows = np.flatnonzero(usable)
        if len(rows) > 4 * k:
            smallest = np.partition(rank[rows], len(rows) - k)[len(rows) - k]
            rows = rows[rank[rows] >= smallest]
        best = rows[np.argsort(-rank[rows], kind="stable")][:k]
        return [self._ids[row] for row in best]

    def memory(self) -> dict[str, Any]:
        """What has been counted, as plain values for JSON."""
        n = len(self._ids)
        columns = {name: getattr(self, f"_{name}")[:n].tolist() for name in _COLUMNS}
        return {"ids": self._ids, "recent": list(self._recent), "choices": self._choices, **columns}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Goes on from what `memory` said."""
        self._ids, self._choices = list(memory["ids"]), memory["choices"]
        self._row = {item_id: row for row, item_id in enumerate(self._ids)}
        self._recent = deque((ts_ms, row) for ts_ms, row in memory["recent"])
        for name in _COLUMNS:
            column = np.zeros(max(1024, 2 * len(self._ids)), getattr(self, f"_{name}").dtype)
            column[: len(self._ids)] = memory[name]
            setattr(self, f"_{name}", column)

    def _forget(self, now_ms: int) -> None:
        while self._horizon_ms is not None and self._recent and self._recent[0][0] <= now_ms - self._horizon_ms:
            self._counts[self._recent.popleft()[1]] -= 1

    def _row_of(self, item_id: str) -> int:
        row = self._row.get(item_id)
        if row is None:
            row = self._row[item_id] = len(self._ids)
            self._ids.append(item_id)
            if row == len(self._counts):
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
                self._latest = np.concatenate([self._latest, np.zeros_like(self._latest)])
                self._allowed = np.concatenate([self._allowed, np.zeros_like(self._allowed)])
        return row


class Baselines:
    """Lists without a model, by name: popularity of the last days and of all time, over the same candidates.

    The second one is there because recent popularity starves where events are rare.
    """

    names = ("recent popularity", "all-time popularity")

    def __init__(self, horizon_ms: int = 7 * DAY_MS) -> None:
        self._counts = (RecentPopularity(horizon_ms), RecentPopularity(None))

    def know(self, item_id: str, allowed: bool = True) -> None:
        """Makes an item a candidate, or no longer one."""
        for counts in self._counts:
            counts.know(item_id, allowed)

    def add(self, item_id: str, ts_ms: int) -> None:
        """Counts one choice."""
        for counts in self._counts:
            counts.add(item_id, ts_ms)

    def lists(self, k: int, now_ms: int, without: Collection[str] = ()) -> dict[str, list[str]]:
        """The k best of each, without the items of `without`."""
        tops = (counts.top(k, now_ms, without) for counts in self._counts)
        return dict(zip(self.names, tops, strict=True))

    def memory(self) -> list[dict[str, Any]]:
        """What has been counted, as plain values for JSON."""
        return [counts.memory() for counts in self._counts]

    def remember(self, memory: Sequence[Mapping[str, Any]]) -> None:
        """Goes on from what `memory` said."""
        for counts, found in zip(self._counts, memory, strict=True):
            counts.remember(found)
