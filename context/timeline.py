"""`ContextTimeline` finds the context record in force at a location and a time, for training and evaluation.

A record is in force from its `ts_ms` until the next one of its location or its own `valid_until_ms`; of two with one
time the later in the list wins. A removal is a record whose `valid_until_ms` is its `ts_ms`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from context.features import IntArray, valid_until_ms


class ContextTimeline:
    """Context records by location and time. Raises ValueError for a record without a location or an integer `ts_ms`."""

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self.records = tuple(records)
        by_location: dict[str, list[tuple[int, int]]] = {}
        for number, record in enumerate(self.records):
            location, ts_ms = record.get("location"), record.get("ts_ms")
            if not isinstance(location, str) or not isinstance(ts_ms, int):
                raise ValueError(
                    f"context record {number} needs a string location and an integer ts_ms: {record!r:.99}"
                )
            by_location.setdefault(location, []).append((ts_ms, number))
        self._until = np.array([valid_until_ms(record) for record in self.records])  # [records], may be ±inf
        self._places = {location: np.array(sorted(rows), np.int64) for location, rows in by_location.items()}  # [m, 2]

    def index(self, locations: Sequence[str | None], ts_ms: npt.ArrayLike) -> IntArray:
        """For each (location, time) the number of the record in force, −1 where there is none: int64 [n]."""
        times = np.asarray(ts_ms, np.int64)  # [n]
        if len(locations) != len(times):
            raise ValueError(f"{len(locations)} locations for {len(times)} times; give one for each")
        found = np.full(len(times), -1, np.int64)
        members: dict[str | None, list[int]] = {}
        for row, location in enumerate(locations):
            members.setdefault(location, []).append(row)
        for location, rows in members.items():
            place = self._places.get(location) if location is not None else None
            if place is not None:
                at = np.searchsorted(place[:, 0], times[rows], side="right") - 1
                found[rows] = np.where(at >= 0, place[at, 1], -1)
        known = np.flatnonzero(found >= 0)
        found[known[times[known] >= self._until[found[known]]]] = -1
        return found

    def active(self, location: str | None, ts_ms: int) -> Mapping[str, Any] | None:
        """The record in force at `location` at `ts_ms`, or None."""
        number = int(self.index([location], [ts_ms])[0])
        return self.records[number] if number >= 0 else None
