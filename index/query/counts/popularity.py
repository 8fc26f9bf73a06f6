"""Sums the workers' click counts over partitions and decays them by age, as the popularity of items now.

Assumes counts in buckets of event time whose totals only grow; a bucket is read again when its total differs. The
weights make the fallback list and a small part of every score.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from context.units import DAY_MS
from index.items.catalogue import Catalogue
from index.items.search import Labels
from index.query.counts.fields import Amounts, CountedFields, Counts, summed
from index.query.counts.showings import Showings
from index.state.keys import partition_tag
from index.state.store import LiveStore

HALF_LIFE_MS = 3.0 * DAY_MS

_LOOKS = 3  # at a partition whose counts grow while they are read, until none has: each takes a millisecond or two
_FIRST = 256  # items ordered at first
_MOST_TOPS = 64  # kept as labels, of locations and lengths of lists
_UNKNOWN = -2  # number of an item that nobody has looked up yet
_NEXT = -2  # age in buckets of the next one: clocks may run ahead a little; what lies beyond does not count yet
_NEGLIGIBLE = 1e-6  # a bucket that weighs less (20 half-lives) changes nothing anybody sees


@dataclass(frozen=True, slots=True)
class CountsRead:
    """From which positions counts come, by topic of each partition, and at what time they were decayed."""

    positions: Sequence[Mapping[str, int]]
    now_ms: int


@dataclass(slots=True)
class _Look:
    """Of one partition the totals of its buckets, and the counts of those that grew."""

    totals: dict[tuple[int, int], bytes] = field(default_factory=dict)
    counts: dict[tuple[int, int], Counts] = field(default_factory=dict)
    by_kind: dict[tuple[int, int], Counts] = field(default_factory=dict)
    positions: Mapping[str, int] | None = None


@dataclass(slots=True)
class _Kept:
    """What is known of a catalogue's labels, as long as `of` is what it was: names of either side, and weights."""

    of: tuple[int, int, int]
    numbers: Labels = field(default_factory=lambda: np.zeros(0, np.int64))  # [size] of the item, −1: it has none
    tops: dict[tuple[str, int], tuple[Labels, float]] = field(default_factory=dict)  # by location and how many


class WeightColumns(NamedTuple):
    """Numbers of items by label (−2: look it up in `items`; −1: it has none), weights by number, and the highest."""

    numbers: NDArray[np.int64]
    items: dict[str, int]
    weights: Amounts
    most: float


class CountColumns(NamedTuple):
    """Numbers as of `WeightColumns`, weights and the highest, at all and at a location, and counts by class."""

    numbers: NDArray[np.int64]
    popular: tuple[Amounts, float]
    here: tuple[Amounts, float]
    by_class: list[list[Amounts]]  # several of one class count together


class Popularity:
    """Decayed counts by location and overall.

    A bucket of age a weighs 2^(−a / half_life), a counted from its end in whole buckets: all processes have the same
    weights until the next bucket begins. At a location its own counts decide; the overall ones together count as one
    click there, so that they order what the location does not know.
    """

    def __init__(
        self,
        store: LiveStore,
        *,
        half_life_ms: float = HALF_LIFE_MS,
        kinds: bool = False,
        placed: bool = False,
        showings: bool = False,
    ) -> None:
        if half_life_ms <= 0:
            raise ValueError(f"half life {half_life_ms} ms must be positive")
        self._store, self._half_life_ms = store, half_life_ms
        self.showings = Showings(store, half_life_ms) if showings else None  # read as counts by kind are
        self._totals: dict[tuple[int, int], bytes] = {}  # (partition, bucket) → increments when it was read
        self._counts: dict[tuple[int, int], Counts] = {}
        self._items: dict[str, int] = {}  # item → number of the item
        self._names: list[str] = []  # item by number
        self._fields, self._kind_fields = CountedFields(self._item), CountedFields(self._item)
        self._counted: frozenset[str] = frozenset()  # locations where anything has weight now, in all processes alike
        self._by_field: Amounts = np.zeros(0)  # [fields] decayed weights
        self._weights: dict[str, Amounts] = {"": np.zeros(0)}  # location → [items], made when asked for
        self._tops: dict[str, tuple[int, list[str]]] = {}  # location → how many were asked for, and these
        self._most: dict[str, float] = {}  # location → the highest weight
        self._version = 0  # grows when weights change
        self._kept = WeakKeyDictionary[Catalogue, _Kept]()
        self._began: tuple[int, int] | None = None  # bucket that had begun at the last look, and its width
        self.kinds = kinds  # whether counts by kind are read as well, from the next look on
        self._placed = placed  # whether `read` is to be known where counts by kind are read: one more look at what grew
        self.read: CountsRead | None = None  # where these counts come from, if that is one position of each partition
        self._kind_counts: dict[tuple[int, int], Counts] = {}
        self._by_kind: dict[int, Amounts] = {}  # kind → [items] decayed counts

    @property
    def version(self) -> int:
        """Grows when weights change."""
        return self._version

    async def refresh(self, partitions: int, bucket_ms: int, now_ms: int) -> int:
        """Reads what grew, weighs anew; returns how many buckets it read. StoreUnavailableError changes nothing."""
        kinds = self.kinds  # which may be wanted while this waits for Redis
        looks = [await self._look(partition, kinds) for partition in range(partitions)]
        present = {where: total for look in looks for where, total in look.totals.items()}
        read = {where: counts for look in looks for where, counts in look.counts.items()}
        by_kind = {where: counts for look in looks for where, counts in look.by_kind.items()}
        if kinds and self.showings is not None:
            await self.showings.refresh(partitions, bucket_ms, now_ms)
        began = now_ms // bucket_ms, bucket_ms
        if present != self._totals or began != self._began or read or by_kind:
            self._counts = {where: read.get(where) or self._counts[where] for where in present}
            known = {**self._kind_counts, **by_kind}
            self._kind_counts = {where: known[where] for where in present} if kinds else {}
            self._totals, self._began = present, began
            self._decay(bucket_ms, now_ms)
        places = [look.positions for look in looks if look.positions is not None]
        self.read = CountsRead(places, now_ms) if kinds and len(places) == partitions else None
        return len(read)

    async def _look(self, partition: int, kinds: bool) -> _Look:
        """What grew of one partition."""
        keys, tag, look = self._store.keys, partition_tag(partition), _Look()
        changed: set[tuple[int, int]] = set()
        placed = self._placed and kinds
        for _ in range(_LOOKS if placed else 1):
            before, totals = look.totals, await self._totals_of(tag, look, placed)
            look.totals = {(partition, int(bucket)): total for bucket, total in totals.items()}
            grown = {
                where for where, total in look.totals.items() if (before.get(where) or self._totals.get(where)) != total
            }
            unread = {where for where in look.totals if where not in self._kind_counts and where not in look.by_kind}
            changed = grown | unread if kinds else grown
            if not changed:
                return look
            for where in sorted(grown):
                found = await self._store.read_all(keys.popularity(tag, where[1]))
                look.counts[where] = await self._fields.counted(found)
            for where in sorted(changed if kinds else ()):
                found = await self._store.read_all(keys.kinds(tag, where[1]))
                look.by_kind[where] = await self._kind_fields.counted(found)
        if placed:
            await self._settle(partition, look, sorted(changed))
        return look

    async def _settle(self, partition: int, look: _Look, growing: Sequence[tuple[int, int]]) -> None:
        """Reads buckets that grow all the time at once with the position, which keeps Redis from everybody else."""
        keys, tag = self._store.keys, partition_tag(partition)
        counts = [(keys.popularity(tag, bucket), None) for _, bucket in growing]
        by_kind = [(keys.kinds(tag, bucket), None) for _, bucket in growing]
        found = await self._store.read_at(tag, [(keys.popularity_buckets(tag), None), *counts, *by_kind])
        before, (totals, *hashes) = look.totals, found.hashes
        look.totals = {(partition, int(bucket)): total for bucket, total in totals.items()}
        for where, of, of_kinds in zip(growing, hashes[: len(counts)], hashes[len(counts) :], strict=True):
            look.counts[where] = await self._fields.counted(of)
            look.by_kind[where] = await self._kind_fields.counted(of_kinds)
        settled = all(where in growing or before.get(where) == total for where, total in look.totals.items())
        look.positions = found.positions if settled else None

    async def _totals_of(self, tag: str, look: _Look, placed: bool) -> Mapping[str, bytes]:
        """Increments of the buckets; counts that have not grown since were those of the positions noted with them."""
        buckets = self._store.keys.popularity_buckets(tag)
        if not placed:
            return await self._store.read_all(buckets)
        found = await self._store.read_at(tag, [(buckets, None)])
        look.positions = found.positions
        return found.hashes[0]

    def top(self, location: str = "", count: int | None = None) -> Sequence[str]:
        """The `count` items of the highest positive weight, or all; most popular first, ties by id."""
        where = location if location in self._counted else ""
        weights = self._of(where)
        wanted = len(weights) if count is None else min(count, len(weights))
        known = self._tops.get(where)
        if known is None or known[0] < wanted:
            # Some more than asked for: ordering all of a large catalogue would take longer than the query.
            ordered = min(len(weights), max(_FIRST, 2 * wanted))
            known = self._tops[where] = ordered, self.best(weights, ordered)
        return known[1][:wanted]

    def best(self, weights: Amounts, count: int) -> list[str]:
        """Names of the `count` items [items] of the highest positive weight, in order; ties by id."""
        items, names = np.flatnonzero(weights > 0), self._names
        last: list[int] = []
        if len(items) > count:
            least = np.partition(weights[items], -count)[-count]
            tied = items[weights[items] == least].tolist()
            items = items[weights[items] > least]
            last = heapq.nsmallest(count - len(items), tied, key=names.__getitem__)
        first = sorted(items.tolist(), key=lambda item: (-weights[item], names[item]))
        return [names[item] for item in first + last]

    def top_of(self, catalogue: Catalogue, location: str, count: int) -> tuple[Labels, float]:
        """Labels of those of the `top` that the catalogue knows, and the share of the next one."""
        kept, wanted = self._kept_of(catalogue), (location, count)
        if wanted not in kept.tops:
            if len(kept.tops) >= _MOST_TOPS:
                kept.tops.clear()
            top = self.top(location, count + 1)
            kept.tops[wanted] = (
                catalogue.labels_of(top[:count]),
                float(self.shares(top[count:], location).max(initial=0)),
            )
        return kept.tops[wanted]

    def shares_of(self, catalogue: Catalogue, labels: Labels, location: str) -> Amounts:
        """`shares` of items [m] of a catalogue by label."""
        return self.shares_at(self.numbers_of(catalogue, labels), location)

    def columns(self, catalogue: Catalogue, location: str) -> WeightColumns:
        """What `shares_of` is made from."""
        where = location if location in self._counted else ""
        weights = self._of(where)
        return WeightColumns(self._numbers_by_label(catalogue), self._items, weights, self._highest(where))

    def count_columns(self, catalogue: Catalogue, location: str, classes: Sequence[Sequence[int]]) -> CountColumns:
        """What `shares_at` and `kind_counts_at` are made from, kinds by class."""
        where = location if location in self._counted else ""
        counts = [[self._by_kind[kind] for kind in kinds if kind in self._by_kind] for kinds in classes]
        popular, here = ((self._of(place), self._highest(place)) for place in ("", where))
        return CountColumns(self._numbers_by_label(catalogue), popular, here, counts)

    def _numbers_by_label(self, catalogue: Catalogue) -> NDArray[np.int64]:
        """Numbers by label, one more than there are labels: label −1 is looked up like the others."""
        kept = self._kept_of(catalogue)
        if len(kept.numbers) <= catalogue.size:
            kept.numbers = np.full(catalogue.size * 5 // 4 + 64, _UNKNOWN, np.int64)
        return kept.numbers

    def numbers_of(self, catalogue: Catalogue, labels: Labels) -> NDArray[np.int64]:
        """Numbers, for `shares_at` and `kind_counts_at`, of items [m] of a catalogue by label; −1 of label −1."""
        numbers = self._numbers_by_label(catalogue)
        unknown = labels[(labels >= 0) & (numbers[labels] == _UNKNOWN)]
        if len(unknown):
            numbers[unknown] = self._numbers(catalogue.ids_of(unknown))
        return np.where(labels >= 0, numbers[labels], -1)

    def _kept_of(self, catalogue: Catalogue) -> _Kept:
        kept, present = self._kept.get(catalogue), (catalogue.named, self._version, len(self._names))
        if kept is None or kept.of != present:
            kept = self._kept[catalogue] = _Kept(present)
        return kept

    def weight(self, item_id: str, location: str = "") -> float:
        """Decayed count of an item; at a location plus its share of all clicks anywhere."""
        number, weights = self._items.get(item_id, -1), self._of(location)
        return float(weights[number]) if 0 <= number < len(weights) else 0.0

    def weights(self, item_ids: Sequence[str], location: str = "") -> Amounts:
        """`weight` of items [m]."""
        return _at(self._of(location), self._numbers(item_ids))

    def shares(self, item_ids: Sequence[str], location: str = "") -> Amounts:
        """log(1 + weight) over that of the most popular item, in [0, 1], of items [m]; 0 for unknown ones."""
        return self.shares_at(self._numbers(item_ids), location)

    def shares_at(self, numbers: NDArray[np.int64], location: str = "") -> Amounts:
        """`shares` of items by number."""
        where = location if location in self._counted else ""
        found = _at(self._of(where), numbers)
        most = self._highest(where)
        return np.log1p(found) / np.log1p(most) if most > 0 else found

    def pace(self, half_life_ms: float, location: str = "") -> tuple[Amounts, Amounts]:
        """Counts of items by number, decayed by this half-life and by the usual one, at a location that counts."""
        by_field = np.zeros(len(self._by_field))
        began, bucket_ms = self._began or (0, 1)
        for (_, bucket), (fields, counts) in self._counts.items():
            age = began - bucket - 1
            decay = 2.0 ** (-max(0, age) * bucket_ms / half_life_ms)
            if age >= _NEXT and decay >= _NEGLIGIBLE:
                by_field[fields] += decay * counts
        where = location if location in self._counted else ""
        return self._by_item(by_field, where), self._by_item(self._by_field, where)

    def _by_item(self, by_field: Amounts, where: str) -> Amounts:
        """Sums of fields [fields] by item [items], of all or of those at a location; of those that are weighed now."""
        items, size = self._fields.items[: len(by_field)], len(self._weights[""])
        if not where:
            return summed(items, by_field, size)
        there = self._fields.at(where)[: len(by_field)]
        return summed(items[there], by_field[there], size)

    def _highest(self, where: str) -> float:
        """The highest weight at a location that counts."""
        if where not in self._most:
            self._most[where] = float(self._of(where).max(initial=0.0))
        return self._most[where]

    def kind_counts(self, kinds: Sequence[int], item_ids: Sequence[str]) -> Amounts:
        """Decayed counts of kinds of events, by code, of items [kinds, m]: each user's first in a bucket."""
        return self.kind_counts_at(kinds, self._numbers(item_ids))

    def kind_counts_at(self, kinds: Sequence[int], numbers: NDArray[np.int64]) -> Amounts:
        """`kind_counts` of items by number."""
        found = np.zeros((len(kinds), len(numbers)))
        for row, kind in zip(found, kinds, strict=True):
            if kind in self._by_kind:
                row[:] = _at(self._by_kind[kind], numbers)
        return found

    def _numbers(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """Numbers of items [m]; −1 of an unknown one."""
        return np.array([self._items.get(item_id, -1) for item_id in item_ids], np.int64)

    def _of(self, location: str) -> Amounts:
        where = location if location in self._counted else ""
        if where not in self._weights:
            overall = self._weights[""]
            self._weights[where] = overall / max(1.0, float(overall.sum())) + self._by_item(self._by_field, where)
        return self._weights[where]

    def _item(self, item_id: str) -> int:
        item = self._items.setdefault(item_id, len(self._items))
        if item == len(self._names):
            self._names.append(item_id)
        return item

    def _decay(self, bucket_ms: int, now_ms: int) -> None:
        by_field, by_kind = np.zeros(len(self._fields)), np.zeros(len(self._kind_fields))
        for where, (fields, counts) in self._counts.items():
            age = now_ms // bucket_ms - where[1] - 1
            decay = 2.0 ** (-max(0, age) * bucket_ms / self._half_life_ms)
            if age >= _NEXT and decay >= _NEGLIGIBLE:
                by_field[fields] += decay * counts
                if where in self._kind_counts:
                    fields, counts = self._kind_counts[where]
                    by_kind[fields] += decay * counts
        self._counted = frozenset(self._fields.places_of(by_field)) - {""}
        size, items = len(self._names), self._kind_fields.items
        overall = summed(self._fields.items, by_field, size)
        self._by_field, self._weights, self._tops, self._most = by_field, {"": overall}, {}, {}
        self._by_kind = {
            int(kind): summed(items[of], by_kind[of], size)
            for kind in self._kind_fields.places_of(by_kind)
            for of in (self._kind_fields.at(kind),)
        }
        self._version += 1


def _at(weights: Amounts, numbers: NDArray[np.int64]) -> Amounts:
    """The weights of items by number [m]; 0 of one that has none."""
    known = (numbers >= 0) & (numbers < len(weights))
    found = np.zeros(len(numbers))
    found[known] = weights[numbers[known]]
    return found
