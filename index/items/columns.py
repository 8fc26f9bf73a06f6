"""Holds what is known of each item as numbers by label, and the hard rules of what may be shown.

One meaning for the live catalogue and offline passes over a folder. An item must be listed, in stock, and inside its
time window, from `starts_ms` to just before `ends_ms`; a missing bound is infinite. Assumes checked fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from index.items.filters import Label, LabelField, Mask
from index.items.search import Labels

FieldValue = tuple[LabelField, str]
ClassField = Literal["brand", "subclass", "category", "group"]  # what an item has one code of

ALWAYS_MS, NEVER_MS = -(2**63), 2**63 - 1  # missing starts, missing ends


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """What catalogue records say of items [n]: codes of labels (0: none), log prices and levels (NaN: not known).

    A level is the log price less that of the median of the item's subclass.
    """

    brand: NDArray[np.int32]
    subclass: NDArray[np.int32]
    category: NDArray[np.int32]  # the first of its path
    price: NDArray[np.float32]
    level: NDArray[np.float32]


class ItemColumns:
    """Columns [capacity], grown ahead of need; a label that was never described is not listed."""

    def __init__(self, capacity: int) -> None:
        self.position = np.full(capacity, -1, np.int64)
        self.price = np.full(capacity, np.nan)
        self.starts = np.full(capacity, ALWAYS_MS, np.int64)
        self.ends = np.full(capacity, NEVER_MS, np.int64)
        self.classes = np.zeros(capacity, np.int32)  # how many categories and subclasses
        # Codes of labels, 0: none; of a category the first of its path.
        self.brand, self.subclass, self.category, self.group = np.zeros((4, capacity), np.int32)
        self._codes: dict[str, int] = {"": 0}  # of brands, subclasses, categories and groups alike
        self._usual = _Medians()
        self.listed, self.stock, self.vector, self.regionless, self.window = np.zeros((5, capacity), np.bool_)

    def make_room(self, size: int) -> None:
        """Makes labels below `size` usable."""
        capacity = len(self.position)
        if size <= capacity:
            return
        larger = ItemColumns(max(size, capacity * 3 // 2))
        for name, column in vars(larger).items():
            if isinstance(column, np.ndarray):
                column[:capacity] = getattr(self, name)
                setattr(self, name, column)

    def describe(self, label: int, catalogue: Mapping[str, Any] | None) -> None:
        """Takes over an item's catalogue record; None: withdrawn."""
        fields = catalogue or {}
        price, starts, ends = fields.get("price"), fields.get("starts_ms"), fields.get("ends_ms")
        self.price[label] = np.nan if price is None else price
        self.starts[label] = ALWAYS_MS if starts is None else starts
        self.ends[label] = NEVER_MS if ends is None else ends
        self.window[label] = starts is not None or ends is not None
        self.listed[label] = catalogue is not None
        self.stock[label] = catalogue is not None and fields.get("available") is not False
        self.regionless[label] = catalogue is not None and not fields.get("regions")
        self._usual.forget(int(self.subclass[label]))
        named = fields.get("brand"), fields.get("subclass"), next(iter(fields.get("category") or ()), None)
        codes = [self._codes.setdefault(name or "", len(self._codes)) for name in named]
        self.brand[label], self.subclass[label], self.category[label] = codes
        group = str(fields.get("group_id") or "")
        self.group[label] = self._codes.setdefault(group, len(self._codes))
        self._usual.forget(codes[1])

    def facts(self, labels: Labels) -> ItemFacts:
        """What is known of items [n], nothing of label −1."""
        known = labels >= 0
        brand, subclass, category = (
            np.where(known, column[labels], np.int32(0)) for column in (self.brand, self.subclass, self.category)
        )
        prices = self.price[labels]
        price = np.log(np.where(known & (prices > 0), prices, np.nan)).astype(np.float32)
        self._find_medians(subclass)
        return ItemFacts(brand, subclass, category, price, price - self._usual.of[subclass])

    @property
    def usual(self) -> NDArray[np.float32]:
        """[codes] median of the log prices of a subclass; NaN of none, infinite where `facts` has to be asked first."""
        return self._usual.of

    def _find_medians(self, subclasses: NDArray[np.int32]) -> None:
        """Of subclasses by code; NaN of none, or without a price."""
        self._usual.make_room(len(self._codes))
        lacking = np.unique(subclasses[np.isinf(self._usual.of[subclasses])])
        if not len(lacking):
            return
        rows = np.flatnonzero(np.isin(self.subclass, lacking))  # one look at all items, however many subclasses
        rows = rows[self.listed[rows] & (self.price[rows] > 0)]
        rows = rows[np.argsort(self.subclass[rows], kind="stable")]
        codes, starts = np.unique(self.subclass[rows], return_index=True)
        groups = np.split(np.log(self.price[rows]), starts[1:])
        self._usual.of[lacking] = np.nan
        for code, group in zip(codes.tolist(), groups, strict=False):
            self._usual.of[code] = np.median(group)

    def may_show(self, size: int, now_ms: int) -> Mask:
        """[size] labels that the hard rules let pass: in stock, hence listed, and inside the time window."""
        found = self.stock[:size].copy()
        timed = self.timed(size)  # few: most items have no window
        found[timed] &= self.is_open(timed, now_ms)
        return found

    def is_open(self, labels: Labels, now_ms: int) -> Mask:
        """Which of the labels are inside their time window."""
        found: Mask = self.starts[labels] <= now_ms
        found &= self.ends[labels] > now_ms
        return found

    def unchanged(self, size: int, now_ms: int) -> tuple[int, int]:
        """From when, and until just before when, all time windows are open or closed as they are at `now_ms`."""
        timed = self.timed(size)
        times = np.concatenate((self.starts[timed], self.ends[timed]))
        before, after = times[times <= now_ms], times[times > now_ms]
        return int(before.max(initial=ALWAYS_MS)), int(after.min(initial=NEVER_MS))

    def timed(self, size: int) -> Labels:
        """Labels below `size` whose window has a start or an end."""
        return np.flatnonzero(self.window[:size])


class _Medians:
    """Of the log prices of subclasses, by code: `of` is infinite until somebody asks, and again when one changes."""

    def __init__(self) -> None:
        self.of = np.array([np.nan], np.float32)  # code 0 is no subclass

    def make_room(self, codes: int) -> None:
        if codes > len(self.of):
            self.of = np.concatenate((self.of, np.full(codes * 5 // 4 - len(self.of) + 1, np.inf, np.float32)))

    def forget(self, code: int) -> None:
        if 0 < code < len(self.of):
            self.of[code] = np.inf


class Posting:
    """Labels of the items that share one value: an int32 array with room, four bytes per item."""

    __slots__ = ("_count", "_labels")

    def __init__(self) -> None:
        self._labels: Label = np.zeros(4, np.int32)
        self._count = 0

    def labels(self) -> Label:
        """Of all items that have it now."""
        return self._labels[: self._count]

    def add(self, label: int) -> None:
        """One more item has it."""
        if self._count == len(self._labels):
            self._labels = np.concatenate((self._labels, np.zeros(max(4, self._count // 2), np.int32)))
        self._labels[self._count] = label
        self._count += 1

    def remove(self, label: int) -> None:
        """An item that had it has it no more."""
        at = int(np.flatnonzero(self.labels() == label)[0])
        self._count -= 1
        self._labels[at] = self._labels[self._count]


def values_of(catalogue: Mapping[str, Any], tags: Iterable[str] = ()) -> set[FieldValue]:
    """(field, value) pairs that a catalogue record is found by, further `tags` included."""
    found: set[FieldValue] = {("tags", tag) for tag in (*tags, *(catalogue.get("tags") or ()))}
    found.update(("category", value) for value in catalogue.get("category") or ())
    found.update(("region", value) for value in catalogue.get("regions") or ())
    for field in ("brand", "subclass"):
        if catalogue.get(field):
            found.add((field, catalogue[field]))
    return found


def count_classes(values: Iterable[FieldValue]) -> int:
    """How many of the values are categories or subclasses."""
    return sum(field in ("category", "subclass") for field, _ in values)
