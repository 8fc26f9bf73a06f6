"""Finds what is bought together with a basket, from the rows of its items that the workers count.

Assumes rows in buckets of event time (`PairRow`). What was read of an item is kept some seconds, so most baskets cost
no round trip, and none costs two.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from index.query.counts.popularity import Popularity
from index.state.keys import partition_tag
from index.state.pair_rows import PAIR_BUCKET_MS, PAIR_BUCKETS, PairRow
from index.state.store import LiveStore

KEPT_MS = 10_000.0
_MOST_KEPT = 10_000  # items
_MOST_OTHERS = 200  # of an item: as many as item-kNN keeps
MOST_BASKET = 20  # items of a basket that are looked at, the latest


@dataclass(slots=True)
class Companions:
    """Decayed counts of one item: baskets, and those of them that held each of the others."""

    baskets: float = 0.0
    others: dict[str, float] = field(default_factory=dict)

    def add(self, row: PairRow, weight: float) -> None:
        """The counts of a row of a bucket that weighs so much."""
        self.baskets += weight * row.baskets
        others, known = self.others, self.others.get  # thousands of pairs
        for other, count in row.others.items():
            others[other] = known(other, 0.0) + weight * count

    def prune(self) -> None:
        """Keeps the most frequent others; ties by id."""
        if len(self.others) > _MOST_OTHERS:
            least = sorted(self.others.values(), reverse=True)[_MOST_OTHERS - 1]
            kept = {other: count for other, count in self.others.items() if count > least}
            level = sorted(other for other, count in self.others.items() if count == least)
            self.others = kept | dict.fromkeys(level[: _MOST_OTHERS - len(kept)], least)


class Together:
    """Reads and keeps rows; a bucket weighs half of the one after it."""

    def __init__(self, store: LiveStore) -> None:
        self._store = store
        self._kept: OrderedDict[str, tuple[float, Companions]] = OrderedDict()  # by item: when it was read, and what

    async def companions(
        self, item_ids: Iterable[str], partitions: int, now_ms: int, monotonic_ms: float
    ) -> dict[str, Companions]:
        """Of items that were bought, in at most one round trip. Raises StoreUnavailableError."""
        wanted = [*dict.fromkeys(item_ids)]
        since_ms = monotonic_ms - KEPT_MS
        missing = [item_id for item_id in wanted if self._kept.get(item_id, (-math.inf,))[0] < since_ms]
        if missing:
            for item_id, found in zip(missing, await self._read(missing, partitions, now_ms), strict=True):
                self._kept[item_id] = monotonic_ms, found
                self._kept.move_to_end(item_id)
            while len(self._kept) > max(_MOST_KEPT, len(wanted)):
                self._kept.popitem(last=False)
        return {item_id: self._kept[item_id][1] for item_id in wanted}

    async def _read(self, item_ids: Sequence[str], partitions: int, now_ms: int) -> list[Companions]:
        newest, keys = now_ms // PAIR_BUCKET_MS, self._store.keys
        ages = [age for _ in range(partitions) for age in range(PAIR_BUCKETS)]
        tags = [partition_tag(number) for number in range(partitions) for _ in range(PAIR_BUCKETS)]
        requests = [(keys.pairs(tag, newest - age), item_ids) for tag, age in zip(tags, ages, strict=True)]
        found = [Companions() for _ in item_ids]
        for age, rows in zip(ages, await self._store.read(requests), strict=True):
            for companions, data in zip(found, rows, strict=True):
                if data is not None:
                    companions.add(PairRow.of_stored(data), 2.0**-age)
        for companions in found:
            companions.prune()
        return found


def together_scores(
    companions: Mapping[str, Companions], popularity: Popularity, location: str = ""
) -> dict[str, float]:
    """Of all other items: Σ over the basket of c / √(n · (w + 1)).

    c is how many baskets held both, n how many the basket's item, and w the other item's decayed popularity: a cosine
    of sets of baskets, but that what is popular now stands for the baskets of the other item, which nobody reads.
    """
    found: dict[str, float] = {}
    for one in companions.values():
        scale = math.sqrt(max(one.baskets, 1.0))
        for other, count in one.others.items():
            if other not in companions:
                found[other] = found.get(other, 0.0) + count / scale
    scores = np.fromiter(found.values(), np.float64, len(found)) / np.sqrt(popularity.weights([*found], location) + 1)
    return dict(zip(found, scores.tolist(), strict=True))
