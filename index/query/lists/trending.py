"""Ranks items by how far their latest events are above what is usual for them, overall or at a location.

Reads the counts that `Popularity` holds, so all processes have the same order until the next bucket begins or counts
grow.
"""

from __future__ import annotations

import numpy as np

from context.units import HOUR_MS
from index.items.catalogue import Catalogue
from index.items.filters import Mask
from index.query.counts.fields import Amounts
from index.query.counts.popularity import Popularity

LATELY_MS = 6 * HOUR_MS  # half-life of what counts as now
_SMOOTHING = 10.0  # events that an item is expected to have beside its own: a few clicks are no trend
_MARGIN = 64  # items looked at beyond the wanted ones before all that are allowed are
_MOST_KEPT = 64  # locations


def rises(lately: Amounts, usually: Amounts) -> Amounts:
    """(R − X) / √(X + 10) of items with decayed counts R of late and U as usual; X = U · ΣR / ΣU is expected.

    A standardised Poisson residual, smoothed. More or fewer events of all items alike are no trend. 0 without events.

    >>> rises(np.array([30.0, 10.0]), np.array([30.0, 30.0])).round(3).tolist()  # 20 are expected of either
    [1.826, -1.826]
    """
    total = float(usually.sum())
    if total <= 0:
        return np.zeros(len(lately))
    expected = usually * (float(lately.sum()) / total)
    return np.asarray((lately - expected) / np.sqrt(expected + _SMOOTHING), np.float64)


class Trends:
    """What rises now, kept until the counts change."""

    def __init__(self, popularity: Popularity) -> None:
        self._popularity = popularity
        self._version = -1
        self._rises: dict[str, Amounts] = {}  # location → by number of the item
        self._tops: dict[str, list[str]] = {}
        self._whole = set[str]()  # locations whose top is all that rises

    def top(self, catalogue: Catalogue, allowed: Mask, count: int, location: str = "") -> list[tuple[str, float]]:
        """The `count` items that rise most, of those that do and that `allowed` [size] holds; ties by id."""
        rising = self._of(location)
        found = self._first(catalogue, allowed, count, location)
        if len(found) < count and location not in self._whole:  # what is allowed is rare among what rises
            labels = np.flatnonzero(allowed)
            numbers = self._popularity.numbers_of(catalogue, labels)
            numbers = numbers[(numbers >= 0) & (numbers < len(rising))]
            among = np.zeros(len(rising))
            among[numbers] = rising[numbers]
            found = self._popularity.best(among, count)
        numbers = self._popularity.numbers_of(catalogue, catalogue.labels_of(found))
        return list(zip(found, rising[numbers].tolist(), strict=True))

    def _first(self, catalogue: Catalogue, allowed: Mask, count: int, location: str) -> list[str]:
        """Those of the items that rise most anywhere."""
        wanted, top = count + _MARGIN, self._tops.get(location, [])
        if len(top) < wanted and location not in self._whole:
            top = self._tops[location] = self._popularity.best(self._rises[location], 2 * wanted)
            if len(top) < 2 * wanted:
                self._whole.add(location)
        found: list[str] = []
        for names in (top[: 2 * wanted], top):  # a rule may have asked for many more
            labels = catalogue.places(names)
            known = (labels >= 0) & (labels < len(allowed))
            passing = known & allowed[np.where(known, labels, 0)]
            found = [name for name, passes in zip(names, passing.tolist(), strict=True) if passes]
            if len(found) >= count or len(names) == len(top):
                break
        return found[:count]

    def _of(self, location: str) -> Amounts:
        if self._version != self._popularity.version or len(self._rises) > _MOST_KEPT:
            self._version = self._popularity.version
            self._rises.clear()
            self._tops.clear()
            self._whole.clear()
        if location not in self._rises:
            self._rises[location] = rises(*self._popularity.pace(LATELY_MS, location))
        return self._rises[location]
