"""Keeps masks of all items for as long as nothing that they are made of changes.

A catalogue's version says whether anything did; the hard rules change with time as well, at the next start or end of
an item's time window. Assumes that the caller keeps the items from changing meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from index.items.columns import ItemColumns
from index.items.filters import Filter, Mask

_MOST_FILTERS = 64  # a byte for each item and filter
_FEW_ROWS = 0.25  # of all items: of fewer that are allowed it is kept which, as a scan then reads these alone


@dataclass(frozen=True, slots=True)
class Allowed:
    """Items [size] that may be listed for everybody who asks alike.

    `rows` [count] are their labels where they are few; `removed` says how many each rule took out.
    """

    mask: Mask
    count: int
    rows: NDArray[np.int32] | None
    removed: Mapping[str, int]

    @classmethod
    def of(cls, mask: Mask, removed: Mapping[str, int]) -> Allowed:
        count = int(np.count_nonzero(mask))
        rows = np.flatnonzero(mask).astype(np.int32) if count < _FEW_ROWS * len(mask) else None
        return cls(_locked(mask), count, rows, removed)


@dataclass(slots=True)
class KeptMasks:
    """Masks of the items of one version; they are shared, and must not be written to."""

    _version: int = -1
    _hard: Mask | None = None
    _from_ms: int = 0  # the hard rules say the same from here …
    _until_ms: int = 0  # … until just before here
    _passing: dict[Filter, Mask] = field(default_factory=dict)
    _allowed: dict[tuple[str, Filter | None], Allowed] = field(default_factory=dict)  # by location and filter

    def hard(self, version: int, columns: ItemColumns, size: int, now_ms: int) -> Mask:
        """[size] items that may be shown at all."""
        self._renew(version)
        if self._hard is None or not self._from_ms <= now_ms < self._until_ms:
            shown = columns.may_show(size, now_ms)
            shown &= columns.vector[:size]
            self._hard = _locked(shown)
            self._from_ms, self._until_ms = columns.unchanged(size, now_ms)
            self._allowed.clear()
        return self._hard

    def passing(self, version: int, tree: Filter, make: Callable[[], Mask]) -> Mask:
        """[size] items that a filter lets pass."""
        self._renew(version)
        if tree not in self._passing:
            if len(self._passing) >= _MOST_FILTERS:
                self._passing.clear()
            self._passing[tree] = _locked(make())
        return self._passing[tree]

    def allowed(self, location: str, tree: Filter | None, make: Callable[[], Allowed]) -> Allowed:
        """Items that the hard rules, a location and a filter let pass; `hard` must have been asked just before."""
        asked = location, tree
        if asked not in self._allowed:
            if len(self._allowed) >= _MOST_FILTERS:
                self._allowed.clear()
            self._allowed[asked] = make()
        return self._allowed[asked]

    def _renew(self, version: int) -> None:
        if version != self._version:
            self._version, self._hard = version, None
            self._passing.clear()
            self._allowed.clear()


def _locked(mask: Mask) -> Mask:
    mask.flags.writeable = False
    return mask
