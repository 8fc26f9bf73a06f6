"""Sums the workers' counts of showings over partitions and decays them by age, as how far items were seen of late.

Only whole buckets of event time that have ended count, so that the list which an answer leads to, or which a question
of training is about, is never among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from index.query.counts.fields import Counts, in_pieces
from index.state.keys import showings_tag
from index.state.store import LiveStore

LOOK_MS = 60_000  # between two looks within a bucket, for lists that come late


class Showings:
    """Decayed counts by item, in showings at a list's first place; a bucket's weight is as that of clicks."""

    def __init__(self, store: LiveStore, half_life_ms: float) -> None:
        self._store, self._half_life_ms = store, half_life_ms
        self._totals: dict[tuple[int, int], bytes] = {}  # (partition, bucket) → lists when it was read
        self._counts: dict[tuple[int, int], Counts] = {}
        self._items: dict[str, int] = {}  # item → number of the item
        self._seen = np.zeros(0)  # [items]
        self._began, self._looked_ms = -1, -1  # bucket that had begun at the last look, and when that was

    async def refresh(self, partitions: int, bucket_ms: int, now_ms: int) -> None:
        """Reads what ended or grew, and weighs anew. StoreUnavailableError changes nothing."""
        began = now_ms // bucket_ms
        if began == self._began and 0 <= now_ms - self._looked_ms < LOOK_MS:
            return
        keys, present = self._store.keys, dict[tuple[int, int], bytes]()
        for partition in range(partitions):
            lists = await self._store.read_all(keys.showing_buckets(showings_tag(partition)))
            present |= {(partition, int(bucket)): count for bucket, count in lists.items() if int(bucket) < began}
        read = {
            where: await self._numbered(await self._store.read_all(keys.showings(showings_tag(where[0]), where[1])))
            for where, count in present.items()
            if self._totals.get(where) != count
        }
        if present != self._totals or began != self._began:
            self._counts = {where: read.get(where) or self._counts[where] for where in present}
            self._totals = present
            self._decay(bucket_ms, began)
        self._began, self._looked_ms = began, now_ms

    def seen(self, item_ids: Sequence[str]) -> NDArray[np.float64]:
        """How often items [m] were shown, as if each time at a first place; 0 of an unknown one."""
        numbers = np.array([self._items.get(item_id, -1) for item_id in item_ids], np.int64)
        known = (numbers >= 0) & (numbers < len(self._seen))
        found = np.zeros(len(numbers))
        found[known] = self._seen[numbers[known]]
        return found

    async def _numbered(self, counts: Mapping[str, bytes]) -> Counts:
        numbers, found = list[int](), list[int]()
        async for part in in_pieces(counts):
            numbers += [self._items.setdefault(item_id, len(self._items)) for item_id, _ in part]
            found += [int(count) for _, count in part]
        return np.array(numbers, np.int64), np.array(found, np.float64) / 1000

    def _decay(self, bucket_ms: int, began: int) -> None:
        seen = np.zeros(len(self._items))
        for (_, bucket), (numbers, counts) in self._counts.items():
            seen[numbers] += 2.0 ** (-(began - bucket - 1) * bucket_ms / self._half_life_ms) * counts
        self._seen = seen
