"""Reads the counts of what was clicked and bought of lists, of all partitions and some days."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from index.results.cells import GROUPS, ResultPlace, decode_field
from index.state.keys import attribution_tag
from index.state.store import LiveStore

Counts = dict[ResultPlace, NDArray[np.int64]]  # [GROUPS] each


async def read_counts(store: LiveStore, partitions: int, days: Iterable[int] | None = None) -> Counts:
    """Counts by place, those of other `days` since 1970 left out. Raises StoreUnavailableError."""
    wanted = None if days is None else set(days)
    found: Counts = defaultdict(lambda: np.zeros(GROUPS, np.int64))
    for tag in map(attribution_tag, range(partitions)):
        known = map(int, await store.read_all(store.keys.result_days(tag)))
        asked = sorted(day for day in known if wanted is None or day in wanted)
        hashes = await asyncio.gather(*(store.read_all(store.keys.results(tag, day)) for day in asked))
        for day, fields in zip(asked, hashes, strict=True):
            for name, count in fields.items():
                group, place = decode_field(day, name)
                found[place][group] += int(count)
    return {place: counts for place, counts in found.items() if counts.any()}
