"""Items of a data folder by row: which have arrived at a moment of its timeline, and which may be shown.

Hard rules are those of the live catalogue (`index.items.columns`), over the records that the folder's shop would have
produced; one that the topics would refuse lists nothing. Assumes that an item has its vector from its arrival on
(`streams.folder.reader`). It does not know users or scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from index.items.columns import ItemColumns
from index.items.filters import Mask
from streams.evaluation.slices import UNKNOWN
from streams.events import CATALOG, CatalogueEntry, MalformedError, Record, Rules
from streams.folder.reader import Folder
from streams.folder.records import ItemVectors, records
from streams.parsing import parse


class Candidates:
    """The items of `vectors`, numbered as there; masks are by row [n]."""

    def __init__(self, folder: Folder, vectors: ItemVectors, rules: Rules) -> None:
        self.item_ids = list(vectors.item_ids)
        self.row = {item_id: row for row, item_id in enumerate(self.item_ids)}
        arrivals = dict(zip(folder.item_ids, folder.arrivals_ms.tolist(), strict=True))
        self.arrivals_ms = np.array([arrivals[item_id] for item_id in self.item_ids], np.int64)  # [n]
        self.order = np.argsort(self.arrivals_ms, kind="stable")  # [n] rows by arrival
        self.times_ms = self.arrivals_ms[self.order]  # [n], rising
        self.arrived = 0  # how many of `order` have
        self._next_ms = self._arrival_of(0)
        self._columns = ItemColumns(len(self.item_ids))
        self._categories: dict[str, str] = {}
        for item_id, fields in _accepted(folder, rules):
            self._categories[item_id] = next(iter(fields["category"] or ()), "")
            if item_id in self.row:
                self._columns.describe(self.row[item_id], fields)
        self._timed = self._columns.timed(len(self.item_ids))  # rows with a time window

    @property
    def size(self) -> int:
        """How many have arrived and are in stock, whatever their time windows."""
        return int(np.count_nonzero(self._columns.stock[self.order[: self.arrived]]))

    def arrive(self, now_ms: int) -> Iterator[tuple[str, bool]]:
        """Items that have arrived since the last call, each with whether it is in stock."""
        while self._next_ms is not None and self._next_ms <= now_ms:
            row = int(self.order[self.arrived])
            self.arrived += 1
            self._next_ms = self._arrival_of(self.arrived)
            yield self.item_ids[row], bool(self._columns.stock[row])

    def hidden(self, now_ms: int, seen: Iterable[str]) -> Mask:
        """Rows that a question may not show."""
        hidden: Mask = ~self.may_show(now_ms) | (self.arrivals_ms > now_ms)
        hidden[self.rows(seen)] = True
        return hidden

    def may_show(self, now_ms: int) -> Mask:
        """Rows that the hard rules let pass, arrived or not."""
        return self._columns.may_show(len(self.item_ids), now_ms)

    def outside(self, now_ms: int) -> frozenset[str]:
        """Items whose time window is not open at `now_ms`."""
        closed = self._timed[~self._columns.is_open(self._timed, now_ms)]
        return frozenset(self.item_ids[row] for row in closed.tolist())

    def can_show(self, item_id: str, now_ms: int) -> bool:
        """Whether an item could be in a list at `now_ms`."""
        row = self.row.get(item_id)
        if row is None or self.arrivals_ms[row] > now_ms:
            return False
        return bool(self._columns.stock[row]) and bool(self._columns.is_open(np.array([row]), now_ms)[0])

    def rows(self, item_ids: Iterable[str]) -> list[int]:
        """Rows of those of the items that have one."""
        return [self.row[item_id] for item_id in item_ids if item_id in self.row]

    def age_ms(self, item_id: str, now_ms: int) -> int:
        """Time since the item's arrival, UNKNOWN of one that is no candidate."""
        row = self.row.get(item_id)
        return UNKNOWN if row is None else max(0, now_ms - int(self.arrivals_ms[row]))

    def category(self, item_id: str) -> str:
        """The first of the item's category path, "" without one."""
        return self._categories.get(item_id, "")

    def _arrival_of(self, place: int) -> int | None:
        return int(self.times_ms[place]) if place < len(self.order) else None


def _accepted(folder: Folder, rules: Rules) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The folder's catalogue, item by item, as consumers of the topic accept it."""
    for record in records(folder, topics={CATALOG}):
        try:
            entry = parse(Record(CATALOG, 0, 0, record.timestamp_ms, record.key, record.value), rules)
        except MalformedError:
            continue
        if isinstance(entry, CatalogueEntry) and entry.fields is not None:
            yield entry.item_id, entry.fields
