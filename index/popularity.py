"""How popular items are now: the workers' integer counts, summed over partitions and decayed by age.

Counts come in buckets of event time; only buckets that grew are read again. The scores serve as fallback list and as a
small part of every score. Knows no users and no vectors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from index.keys import partition_tag
from index.store import LiveStore

LOCATION_SEPARATOR = "\x1f"  # between location and item in a bucket's field
DAY_MS = 86_400_000

Counts = dict[str, dict[str, int]]  # location → item → weight


class Popularity:
    """Decayed counts by location and overall.

    A bucket of age a weighs 2^(−a / half_life); its age is measured from the bucket's end to `now_ms`.
    """

    def __init__(self, store: LiveStore, *, half_life_ms: float = 2 * DAY_MS) -> None:
        if half_life_ms <= 0:
            raise ValueError(f"half life {half_life_ms} ms must be positive")
        self._store, self._half_life_ms = store, half_life_ms
        self._totals: dict[tuple[int, int], bytes] = {}  # (partition, bucket) → increments when it was read
        self._buckets: dict[tuple[int, int], Counts] = {}
        self._scores: dict[str, dict[str, float]] = {"": {}}
        self._tops: dict[str, list[str]] = {}

    async def refresh(self, partitions: int, bucket_ms: int, now_ms: int) -> int:
        """Reads what grew and recomputes the scores; returns how many buckets were read.

        Raises:
            StoreUnavailableError: the scores are as they were.
        """
        keys, changed = self._store.keys, []
        present: dict[tuple[int, int], bytes] = {}
        for partition in range(partitions):
            for bucket, total in (
                await self._store.read_all(keys.popularity_buckets(partition_tag(partition)))
            ).items():
                where = partition, int(bucket)
                present[where] = total
                if self._totals.get(where) != total:
                    changed.append(where)
        found = {where: await self._read(*where) for where in changed}
        self._buckets = {where: self._buckets[where] for where in present if where not in found} | found
        self._totals = present
        self._recompute(bucket_ms, now_ms)
        return len(changed)

    def scores(self, location: str = "") -> Mapping[str, float]:
        """Item → decayed weight at a location; "" and unknown locations give the overall weights."""
        return self._scores.get(location) or self._scores[""]

    def top(self, location: str = "") -> list[str]:
        """All items with a positive score, most popular first; ties by id."""
        where = location if self._scores.get(location) else ""
        if where not in self._tops:
            scores = self._scores[where]
            self._tops[where] = sorted(scores, key=lambda item: (-scores[item], item))
        return self._tops[where]

    async def _read(self, partition: int, bucket: int) -> Counts:
        counts: Counts = defaultdict(dict)
        key = self._store.keys.popularity(partition_tag(partition), bucket)
        for name, count in (await self._store.read_all(key)).items():
            location, _, item = name.partition(LOCATION_SEPARATOR)
            counts[location][item] = int(count)
        return counts

    def _recompute(self, bucket_ms: int, now_ms: int) -> None:
        scores: dict[str, dict[str, float]] = {"": defaultdict(float)}
        for (_, bucket), counts in self._buckets.items():
            age_ms = max(0, now_ms - (bucket + 1) * bucket_ms)
            weight = 2.0 ** (-age_ms / self._half_life_ms)
            if weight < 1e-6:
                continue
            for location, items in counts.items():
                local = scores.setdefault(location, defaultdict(float)) if location else None
                for item, count in items.items():
                    scores[""][item] += weight * count
                    if local is not None:
                        local[item] += weight * count
        self._scores, self._tops = {name: dict(found) for name, found in scores.items()}, {}
