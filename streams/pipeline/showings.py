"""Counts how far items were seen on the lists that users were shown, as a pure function of one partition's lists.

A list is looked at from the top, so a place counts 1 / log2(2 + place), in whole thousandths. Nothing is kept of the
user. A partition's time is that of its lists.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from index.state.keys import Keys
from index.state.store import LiveStore, Op
from index.state.user_columns import event_hash
from streams.events import EXPOSURES, Exposure
from streams.pipeline.lease import PartitionLease
from streams.pipeline.metrics import PipelineCounters
from streams.pipeline.partition_clock import PartitionClock
from streams.pipeline.user_state import EngineSettings, Outcome, rules_applied, rules_of

MOST_PLACES = 100  # of a list; hardly anybody looks further, and a longer one must not cost more
REMEMBERED_LISTS = 1024  # per partition, so that a list that is sent again within seconds is known


def place_thousandths(place: int) -> int:
    """How far an item at a place, from 0, is seen, in thousandths of one at the first place.

    >>> [place_thousandths(place) for place in (0, 1, 2, 98)]
    [1000, 631, 500, 151]
    """
    return round(1000 / math.log2(2 + place))


@dataclass(slots=True)
class ShowingsChange:
    """What a batch adds to a partition: counts by bucket and item, and lists by bucket."""

    clock: PartitionClock
    remembered: dict[str, int]  # hash of a list → its number, the latest last
    counts: dict[int, Counter[str]] = field(default_factory=dict)
    lists: Counter[int] = field(default_factory=Counter)

    def add(self, shown: Exposure, settings: EngineSettings) -> Outcome:
        """Counts a list, once; one beyond the horizon is late."""
        name = f"{event_hash(shown.recommendation_id):x}"
        if name in self.remembered:
            return Outcome.DUPLICATE
        self.remembered[name] = next(reversed(self.remembered.values()), 0) + 1
        if len(self.remembered) > REMEMBERED_LISTS:
            del self.remembered[next(iter(self.remembered))]
        self.clock.observe(shown.ts_ms)
        bucket = shown.ts_ms // settings.bucket_ms
        if bucket <= last_expired(self.clock, settings):
            return Outcome.LATE
        counts = self.counts.setdefault(bucket, Counter())
        for place, item_id in enumerate(islice(dict.fromkeys(shown.shown), MOST_PLACES)):
            counts[item_id] += place_thousandths(place)
        self.lists[bucket] += 1
        return Outcome.APPLIED


def last_expired(clock: PartitionClock, settings: EngineSettings) -> int:
    """The newest bucket that lies beyond the horizon."""
    return clock.now_ms // settings.bucket_ms - settings.horizon_buckets


class ShowingsWriter:
    """Writes the counts of claimed partitions of `exposures`; one batch of a partition at a time."""

    def __init__(self, store: LiveStore, settings: EngineSettings, counts: PipelineCounters) -> None:
        self._store, self._settings, self._counts = store, settings, counts

    async def open(self, lease: PartitionLease) -> None:
        """Reads what a new lease has to know of its partition. Raises ValueError when a later build applied it."""
        keys, tag = self._store.keys, lease.tag
        ((clock, rules),) = await self._store.read([(keys.owner(tag), ["clock", "rules"])])
        lease.clock, lease.rules = PartitionClock.decode(clock), rules_of({"rules": rules, "clock": clock})
        rules_applied(lease.rules)
        lease.buckets = {int(bucket) for bucket in await self._store.read_all(keys.showing_buckets(tag))}
        numbers = {name: int(number) for name, number in (await self._store.read_all(keys.shown_lists(tag))).items()}
        lease.lists = dict(sorted(numbers.items(), key=lambda entry: entry[1]))

    async def apply(self, lease: PartitionLease, shown: Sequence[Exposure], position: int) -> None:
        """Counts lists and moves the position past them, in one write. Raises FencedError, StoreUnavailableError."""
        change = ShowingsChange(lease.clock.copy(), lease.lists.copy())
        outcomes = Counter(change.add(one, self._settings) for one in shown)
        expired = self._expired(lease, change)
        try:
            await lease.commit(self._store, EXPOSURES, position, self._ops(lease, change, expired))
        except BaseException:
            lease.unsure = True
            raise
        if change.remembered != lease.lists:
            lease.rules = rules_applied(lease.rules)
        lease.clock, lease.lists = change.clock, change.remembered
        lease.buckets = (lease.buckets | change.counts.keys()) - set(expired)
        self._counts.add_applied(EXPOSURES, outcomes.pop(Outcome.APPLIED, 0))
        for outcome, count in outcomes.items():
            self._counts.add(outcome, count)

    def _expired(self, lease: PartitionLease, change: ShowingsChange) -> list[int]:
        last = last_expired(change.clock, self._settings)
        if last == last_expired(lease.clock, self._settings):  # only then: there may be thousands of buckets
            return []
        return sorted(bucket for bucket in lease.buckets | change.counts.keys() if bucket <= last)

    def _ops(self, lease: PartitionLease, change: ShowingsChange, expired: Sequence[int]) -> list[Op]:
        keys, tag, ops = self._store.keys, lease.tag, list[Op]()
        if change.remembered == lease.lists:
            return ops
        for bucket, counts in change.counts.items():
            ops.append(Op("hincr", keys.showings(tag, bucket), dict(counts)))
        if change.lists:
            ops.append(Op("hincr", keys.showing_buckets(tag), _named(change.lists)))
        for bucket in expired:
            ops.append(Op("delete", keys.showings(tag, bucket)))
        if expired:
            ops.append(Op("hdel", keys.showing_buckets(tag), names=[*map(str, expired)]))
        facts = {"clock": change.clock.encode(), "rules": rules_applied(lease.rules).encode()}
        return [*ops, *_list_ops(keys, tag, lease.lists, change.remembered), Op("hset", keys.owner(tag), facts)]


def _named(lists: Counter[int]) -> dict[str, int]:
    return {str(bucket): count for bucket, count in lists.items()}


def _list_ops(keys: Keys, tag: str, before: dict[str, int], after: dict[str, int]) -> list[Op]:
    """The lists that are remembered from now on, and those that no longer are."""
    new = {name: str(number).encode() for name, number in after.items() if before.get(name) != number}
    old = [name for name in before if name not in after]
    return [Op("hset", keys.shown_lists(tag), new)] + ([Op("hdel", keys.shown_lists(tag), names=old)] if old else [])
