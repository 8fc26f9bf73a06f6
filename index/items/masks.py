"""Keeps masks of all items for as long as nothing that they are made of changes.

A catalogue's version says whether anything did; the hard rules change with time as well, at the next start or end of
an item's time window. Assumes that the caller keeps the items from changing meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from index.items.columns import ItemColumns
from index.items.filters import Filter, Mask

_MOST_FILTERS = 64  # a byte for each item and filter


@dataclass(slots=True)
class KeptMasks:
    """Masks of the items of one version; they are shared, and must not be written to."""

    _version: int = -1
    _hard: Mask | None = None
    _from_ms: int = 0  # the hard rules say the same from here …
    _until_ms: int = 0  # … until just before here
    _passing: dict[Filter, Mask] = field(default_factory=dict)

    def hard(self, version: int, columns: ItemColumns, size: int, now_ms: int) -> Mask:
        """[size] items that may be shown at all."""
        self._renew(version)
        if self._hard is None or not self._from_ms <= now_ms < self._until_ms:
            shown = columns.may_show(size, now_ms)
            shown &= columns.vector[:size]
            self._hard = _locked(shown)
            self._from_ms, self._until_ms = columns.unchanged(size, now_ms)
        return self._hard

    def passing(self, version: int, tree: Filter, make: Callable[[], Mask]) -> Mask:
        """[size] items that a filter lets pass."""
        self._renew(version)
        if tree not in self._passing:
            if len(self._passing) >= _MOST_FILTERS:
                self._passing.clear()
            self._passing[tree] = _locked(make())
        return self._passing[tree]

    def _renew(self, version: int) -> None:
        if version != self._version:
            self._version, self._hard = version, None
            self._passing.clear()


def _locked(mask: Mask) -> Mask:
    mask.flags.writeable = False
    return mask
