"""Works out what a purchase adds to the counts of items that are bought together.

A basket is what one user buys within an hour around a purchase. It is a pure function of the user's window at the
moment when the purchase is applied, so the counts are one of the partition's log.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from context.units import HOUR_MS
from index.state.pair_rows import PAIR_BUCKET_MS, PAIR_BUCKETS, PairRow
from index.state.user_columns import UserState
from streams.events import Click
from streams.pipeline.partition_clock import PartitionClock

BASKET_MS = HOUR_MS  # between a purchase and another one of the same basket
MOST_OTHERS = 20  # of a basket, the latest ones: a wholesaler's hundred lines would make ten thousand pairs


class Purchase(NamedTuple):
    """An item that came into a basket with these others, within a bucket."""

    bucket: int
    item_id: str
    others: tuple[str, ...]

    @property
    def items(self) -> Iterator[str]:
        """All whose rows change."""
        yield self.item_id
        yield from self.others


def purchase_of(state: UserState, click: Click, bought: Collection[int], clock: PartitionClock) -> Purchase | None:
    """What an applied click adds, with the state after it; `bought` are codes of kinds of purchases.

    None for another kind, for an item that was in the basket already, and for a bucket beyond the horizon.
    """
    bucket = click.ts_ms // PAIR_BUCKET_MS
    if click.kind not in bought or bucket <= last_expired(clock):
        return None
    others, same = dict[str, None](), 0
    for item_id, kind, ts_ms in zip(state.items, state.kinds, state.ts_ms, strict=True):
        if kind not in bought or abs(ts_ms - click.ts_ms) > BASKET_MS:
            continue
        if item_id == click.item_id:
            same += 1
        else:
            others.pop(item_id, None)
            others[item_id] = None
    return None if same > 1 else Purchase(bucket, click.item_id, tuple(others)[-MOST_OTHERS:])


def add_purchase(rows: Mapping[str, PairRow], purchase: Purchase) -> None:
    """Counts it in the rows of its items."""
    rows[purchase.item_id].bought_with(purchase.others)
    for other in purchase.others:
        rows[other].joined_by(purchase.item_id)


def last_expired(clock: PartitionClock) -> int:
    """The newest bucket that lies beyond the horizon."""
    return clock.now_ms // PAIR_BUCKET_MS - PAIR_BUCKETS
