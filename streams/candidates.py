"""Items of a data folder by row, as an offline pass over its timeline comes to know them.

Assumes that an item counts from its arrival on (`streams.folder`) and has a vector from then on; time only moves
forward. It does not know users or scores; the live path's counterpart is `index.catalogue`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from streams.folder import Folder
from streams.folder_records import ItemVectors
from streams.slices import UNKNOWN

Mask = NDArray[np.bool_]  # [n] by row


class Candidates:
    """The items of `vectors`, numbered as there."""

    def __init__(self, folder: Folder, vectors: ItemVectors) -> None:
        self.item_ids = list(vectors.item_ids)
        self.row = {item_id: row for row, item_id in enumerate(self.item_ids)}
        arrivals = dict(zip(folder.item_ids, folder.arrivals_ms.tolist(), strict=True))
        hidden = {item["item_id"] for item in folder.items if item.get("available") is False}
        described = {item["item_id"] for item in folder.items}
        self.shown = np.array([i in described and i not in hidden for i in self.item_ids], bool)  # [n]
        self.arrivals_ms = np.array([arrivals[item_id] for item_id in self.item_ids], np.int64)  # [n]
        self.order = np.argsort(self.arrivals_ms, kind="stable")  # [n] rows by arrival
        self.times_ms = self.arrivals_ms[self.order]  # [n], rising
        self.arrived = 0  # how many of `order` have
        self._next_ms = self._arrival_of(0)
        self._categories = {item["item_id"]: next(iter(item.get("category") or ()), "") for item in folder.items}

    @property
    def size(self) -> int:
        """How many of those that have arrived may be shown."""
        return int(np.count_nonzero(self.shown[self.order[: self.arrived]]))

    def arrive(self, now_ms: int) -> Iterator[tuple[str, bool]]:
        """Items that have arrived since the last call, each with whether it may be shown."""
        while self._next_ms is not None and self._next_ms <= now_ms:
            row = int(self.order[self.arrived])
            self.arrived += 1
            self._next_ms = self._arrival_of(self.arrived)
            yield self.item_ids[row], bool(self.shown[row])

    def hidden(self, now_ms: int, seen: Iterable[str]) -> Mask:
        """Rows that a question may not show."""
        hidden: Mask = ~self.shown | (self.arrivals_ms > now_ms)
        hidden[self.rows(seen)] = True
        return hidden

    def can_show(self, item_id: str, now_ms: int) -> bool:
        """Whether an item could be in a list at `now_ms`."""
        row = self.row.get(item_id)
        return row is not None and bool(self.shown[row] and self.arrivals_ms[row] <= now_ms)

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
