"""Lists what a user did before, viewed lately or bought and due again, from the user's state alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from context.units import DAY_MS, HOUR_MS
from index.state.user_columns import UserState

USUAL_INTERVAL_MS = 30 * DAY_MS  # between two purchases of an item, of a user of whom nothing is known
_SHORTEST_MS = 12 * HOUR_MS  # two purchases nearer to each other are one errand


class Viewed(NamedTuple):
    """An item and the latest time."""

    item_id: str
    ts_ms: int


class Due(NamedTuple):
    """An item that was bought at `ts_ms`; `share` is the time since then in intervals of `interval_ms`."""

    item_id: str
    ts_ms: int
    interval_ms: int
    share: float

    @property
    def score(self) -> float:
        """r · e^(1 − r) of the share r: 0 when just bought, 1 when due, .41 after three intervals."""
        return self.share * math.exp(1 - self.share)


def recently_viewed(state: UserState, kind_weights: Sequence[int]) -> Iterator[Viewed]:
    """The window's items, newest first, each once; one whose latest event is of a negative kind is left out.

    `kind_weights` are by code; without one a kind is not negative.
    """
    met = set[str]()
    for item_id, kind, ts_ms in zip(reversed(state.items), reversed(state.kinds), reversed(state.ts_ms), strict=True):
        if item_id not in met:
            met.add(item_id)
            if kind >= len(kind_weights) or kind_weights[kind] >= 0:
                yield Viewed(item_id, ts_ms)


def buy_again(state: UserState, bought: Collection[int], now_ms: int) -> list[Due]:
    """What the user bought, by how due it is: `Due.score`, ties by id; `bought` are codes of kinds of purchases.

    The interval is the median time between the user's purchases of the item, else between those of any item that was
    bought more than once, else USUAL_INTERVAL_MS. Evicted purchases are remembered with their latest time only.
    """
    times = _purchases(state, bought)
    gaps = {item_id: _gaps(bought_ms) for item_id, bought_ms in times.items()}
    known = [gap for of_item in gaps.values() for gap in of_item]
    usual_ms = round(median(known)) if known else USUAL_INTERVAL_MS
    found = []
    for item_id, bought_ms in times.items():
        interval_ms = round(median(gaps[item_id])) if gaps[item_id] else usual_ms
        share = max(0, now_ms - bought_ms[-1]) / interval_ms
        found.append(Due(item_id, bought_ms[-1], interval_ms, share))
    return sorted(found, key=lambda due: (-due.score, due.item_id))


def _purchases(state: UserState, bought: Collection[int]) -> dict[str, list[int]]:
    """Times of purchases by item, oldest first."""
    times: defaultdict[str, list[int]] = defaultdict(list)
    for item_id, ts_ms in state.purchases.items():
        times[item_id].append(ts_ms)
    kinds = bytes(state.kinds)
    if any(code in kinds for code in bought):
        for item_id, kind, ts_ms in zip(state.items, kinds, state.ts_ms, strict=True):
            if kind in bought:
                times[item_id].append(ts_ms)
    return {item_id: sorted(bought_ms) for item_id, bought_ms in times.items()}


def _gaps(bought_ms: Sequence[int]) -> list[int]:
    """Times between purchases of an item; what lies nearer than an errand takes is one of them."""
    starts = list(bought_ms[:1])
    for ts_ms in bought_ms[1:]:
        if ts_ms - starts[-1] >= _SHORTEST_MS:
            starts.append(ts_ms)
    return [later - earlier for earlier, later in pairwise(starts)]
