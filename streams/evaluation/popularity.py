"""Counts recent and all-time popularity as events come, the lists that every table has to be read beside."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from context.units import WEEK_MS

_COLUMNS = ("counts", "latest", "allowed")  # of `RecentPopularity`, one entry an item


class RecentPopularity:
    """The most chosen items of the last days, counted as events come: the list to beat.

    An event counts 1 while event time is less than `horizon_ms` past it; without a horizon, for ever. Ties, and items
    no longer chosen at all, go by the latest choice first; items never chosen come last, in the order in which they
    became known.
    """

    def __init__(self, horizon_ms: int | None = WEEK_MS) -> None:
        self._horizon_ms = horizon_ms
        self._ids: list[str] = []
        self._row: dict[str, int] = {}
        self._counts: NDArray[np.int64] = np.zeros(1024, np.int64)  # [capacity] by row
        self._latest: NDArray[np.int64] = np.zeros(1024, np.int64)  # number of the latest choice, 0 = never
        self._allowed: NDArray[np.bool_] = np.zeros(1024, np.bool_)
        self._recent: deque[tuple[int, int]] = deque()  # (ts_ms, row) inside the horizon, in order of arrival
        self._choices = 0

    def set_candidate(self, item_id: str, allowed: bool = True) -> None:
        """Makes an item a candidate, or no longer one."""
        row = self._row_of(item_id)  # may grow the arrays
        self._allowed[row] = allowed

    def count(self, item_id: str) -> int:
        """How often an item was chosen within the horizon."""
        row = self._row.get(item_id)
        return 0 if row is None else int(self._counts[row])

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

    def state_dict(self) -> dict[str, Any]:
        """What has been counted, as plain values for JSON."""
        n = len(self._ids)
        columns = {name: getattr(self, f"_{name}")[:n].tolist() for name in _COLUMNS}
        return {"ids": self._ids, "recent": list(self._recent), "choices": self._choices, **columns}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` said."""
        self._ids, self._choices = list(state["ids"]), state["choices"]
        self._row = {item_id: row for row, item_id in enumerate(self._ids)}
        self._recent = deque((ts_ms, row) for ts_ms, row in state["recent"])
        for name in _COLUMNS:
            column = np.zeros(max(1024, 2 * len(self._ids)), getattr(self, f"_{name}").dtype)
            column[: len(self._ids)] = state[name]
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
                for name in (f"_{column}" for column in _COLUMNS):
                    setattr(self, name, np.concatenate([getattr(self, name), np.zeros_like(getattr(self, name))]))
        return row


class PopularityLists:
    """Lists without a model, by name: popularity of the last days and of all time, over the same candidates.

    The second one is there because recent popularity starves where events are rare.
    """

    names = ("recent popularity", "all-time popularity")

    def __init__(self, horizon_ms: int = WEEK_MS) -> None:
        self._counts = (RecentPopularity(horizon_ms), RecentPopularity(None))

    def set_candidate(self, item_id: str, allowed: bool = True) -> None:
        for counts in self._counts:
            counts.set_candidate(item_id, allowed)

    def add(self, item_id: str, ts_ms: int) -> None:
        for counts in self._counts:
            counts.add(item_id, ts_ms)

    def chosen(self, item_id: str) -> int:
        """How often an item was ever chosen."""
        return self._counts[-1].count(item_id)

    def lists(self, k: int, now_ms: int, without: Collection[str] = ()) -> dict[str, list[str]]:
        """The k best of each, without the items of `without`."""
        tops = (counts.top(k, now_ms, without) for counts in self._counts)
        return dict(zip(self.names, tops, strict=True))

    def state_dict(self) -> list[dict[str, Any]]:
        return [counts.state_dict() for counts in self._counts]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        for counts, found in zip(self._counts, state, strict=True):
            counts.load_state_dict(found)
