"""Holds what was bought together with an item within a bucket of time, as it is stored.

A row is bounded. Of one more item than it has room for the least counted gives way, the first that came of several,
and the new one goes on from its count (Metwally, Agrawal and El Abbadi, space saving, 2005).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import orjson

from context.units import DAY_MS

PAIR_BUCKET_MS = 28 * DAY_MS
PAIR_BUCKETS = 3  # that are kept: the present one of a partition's clock and those before it
ROW_ITEMS = 64  # of a row: in a partition and bucket few items are bought with more


@dataclass(slots=True)
class PairRow:
    """How many baskets an item was in, and how many of these held each of the others, in order of coming."""

    baskets: int = 0
    others: dict[str, int] = field(default_factory=dict)

    def bought_with(self, item_ids: Iterable[str]) -> None:
        """Another basket began to hold the item, and holds these others."""
        self.baskets += 1
        for item_id in item_ids:
            self.joined_by(item_id)

    def joined_by(self, item_id: str) -> None:
        """A basket that holds the item got another one."""
        others = self.others
        if item_id in others:
            others[item_id] += 1
        elif len(others) < ROW_ITEMS:
            others[item_id] = 1
        else:
            least = min(others, key=others.__getitem__)
            others[item_id] = others.pop(least) + 1

    def stored(self) -> bytes:
        return orjson.dumps([self.baskets, self.others])

    @classmethod
    def of_stored(cls, data: bytes | None) -> PairRow:
        """Inverse of `stored`; None gives a new row."""
        return cls(*orjson.loads(data)) if data else cls()
