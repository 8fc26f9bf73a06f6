"""`DecayedCounts` counts how popular items are as time goes by, overall and by place, halving with age.

It serves those who go through events in order; the live counterpart is `index.query.counts.popularity`.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from encoder.model.features import DAY_MS

HALF_LIFE_MS = 3.0 * DAY_MS  # as the API's default
_MOST_HALVES = 500.0  # half-lives between two moves of the origin: 2 to this fits float64


class DecayedCounts:
    """Decayed counts of items 0..items − 1. At a place that has counts its own decide; the overall ones together count
    as one event there, so that they order what the place does not know.
    """

    def __init__(self, items: int, half_life_ms: float = HALF_LIFE_MS) -> None:
        self._overall = np.zeros(items)  # as they would be at the origin
        self._places: dict[Hashable, dict[int, float]] = {}  # place → item → the same
        self._half_life_ms = half_life_ms
        self._origin_ms: int | None = None

    def add(self, item: int, amount: float, ts_ms: int, place: Hashable = None) -> None:
        """Counts an event; none may be older than an earlier call's time by more than a few years."""
        amount *= self._growth(ts_ms)
        self._overall[item] += amount
        if place is not None:
            here = self._places.setdefault(place, {})
            here[item] = here.get(item, 0.0) + amount

    def shares(self, now_ms: int, place: Hashable = None) -> NDArray[np.float64]:
        """log(1 + count) over that of the most popular item, in [0, 1], of all items."""
        decay = 1.0 / self._growth(now_ms)
        counts: NDArray[np.float64] = self._overall * decay
        here = self._places.get(place)
        if here is not None:
            counts /= max(1.0, float(counts.sum()))
            counts[list(here)] += np.fromiter(here.values(), np.float64) * decay
        most = float(counts.max(initial=0.0))
        return np.log1p(counts) / np.log1p(most) if most > 0 else counts

    def _growth(self, now_ms: int) -> float:
        """2 to the half-lives since the origin, which moves when that grows too large."""
        if self._origin_ms is None:
            self._origin_ms = now_ms
        halves = (now_ms - self._origin_ms) / self._half_life_ms
        if halves > _MOST_HALVES:
            shrink = 2.0**-halves
            self._overall *= shrink
            self._places = {
                place: {item: count * shrink for item, count in here.items()} for place, here in self._places.items()
            }
            self._origin_ms, halves = now_ms, 0.0
        return float(2.0**halves)
