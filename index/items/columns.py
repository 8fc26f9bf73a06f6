"""Holds what is known of each item as numbers by label, and the hard rules of what may be shown.

One meaning for the live catalogue and offline passes over a folder. An item must be listed, in stock, and inside its
time window, from `starts_ms` to just before `ends_ms`; a missing bound is infinite. Assumes checked fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from index.items.filters import LabelField, Mask
from index.items.search import Labels

FieldValue = tuple[LabelField, str]

ALWAYS_MS, NEVER_MS = -(2**63), 2**63 - 1  # missing starts, missing ends


class ItemColumns:
    """Columns [capacity], grown ahead of need; a label that was never described is not listed."""

    def __init__(self, capacity: int) -> None:
        self.position = np.full(capacity, -1, np.int64)
        self.price = np.full(capacity, np.nan)
        self.starts = np.full(capacity, ALWAYS_MS, np.int64)
        self.ends = np.full(capacity, NEVER_MS, np.int64)
        self.classes = np.zeros(capacity, np.int32)  # how many categories and subclasses
        self.listed, self.stock, self.vector, self.regionless, self.window = np.zeros((5, capacity), np.bool_)

    def make_room(self, size: int) -> None:
        """Makes labels below `size` usable."""
        capacity = len(self.position)
        if size <= capacity:
            return
        larger = ItemColumns(max(size, capacity * 3 // 2))
        for name, column in vars(self).items():
            getattr(larger, name)[:capacity] = column
        vars(self).update(vars(larger))

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

    def timed(self, size: int) -> Labels:
        """Labels below `size` whose window has a start or an end."""
        return np.flatnonzero(self.window[:size])


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
