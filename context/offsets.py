"""`ContextOffset` gives Δ(t, location) = W_c · [τ(t); g(t, location)], which a query adds to both user vectors (STARS,
arXiv 2512.10149).

The length of Δ is bounded, so that a wrong offset cannot take over a list, and what was applied is listed with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from context.features import CYCLES, ContextFeatures, FloatArray

DEFAULT_MAX_NORM = 0.5  # half of a user vector's length
_SECOND_MS = 1000
_MOST_KEPT = 256  # records whose last offset is kept
MIN_SHOWN = 1e-6  # contributions shorter than this are rounding


class Offset(NamedTuple):
    """Δ float32 [d], what it is made of as (name, length) longest first, and whether the bound shortened it."""

    delta: FloatArray
    applied: list[tuple[str, float]]
    bounded: bool


class ContextOffset:
    """Turns a moment and a context record into an offset.

    `weight` float32 [d, F] over `features`. Raises ValueError when they do not fit or a number is not finite.
    """

    def __init__(self, weight: npt.ArrayLike, features: ContextFeatures, max_norm: float = DEFAULT_MAX_NORM) -> None:
        matrix = np.array(weight, np.float32)  # [d, F]
        if matrix.ndim != 2 or matrix.shape[1] != len(features):
            raise ValueError(f"weight {matrix.shape} does not fit {len(features)} features; load both from one model")
        if not np.isfinite(matrix).all():
            raise ValueError("weight has a value that is not finite; train the model again")
        if not (np.isfinite(max_norm) and max_norm >= 0):
            raise ValueError(f"max_norm {max_norm} must be a finite number >= 0; 0 switches context off")
        self.features = features
        self.max_norm = float(max_norm)
        self._weight = matrix
        groups: dict[str, list[int]] = {}
        for column, feature in enumerate(features.features):
            name = feature.name.partition(".")[0] if feature.kind == "time" else feature.name
            groups.setdefault(name, []).append(column)
        self._calendar = {name: np.array(groups.pop(name)) for name in CYCLES if name in groups}
        self._single = list(groups.items())
        self._length = np.linalg.norm(matrix, axis=0)  # [F]
        self._kept: dict[int, tuple[Mapping[str, Any] | None, int, Offset]] = {}  # by identity of the record

    def offset(self, ts_ms: int, record: Mapping[str, Any] | None) -> Offset:
        """Δ at `ts_ms` under the location's last `record` (None: the calendar alone).

        The calendar is that of the whole second, so that all queries of a second and a record share what is made of
        them; what begins or ends within the second does so to the millisecond.
        """
        second = ts_ms // _SECOND_MS
        kept = self._kept.get(id(record))
        if kept is not None and kept[0] is record and kept[1] == second:
            return kept[2]
        began_ms = second * _SECOND_MS
        bounds = [bound for entry in self.features.entries(record) for bound in (entry.starts_ms, entry.ends_ms)]
        if any(began_ms < bound < began_ms + _SECOND_MS for bound in bounds):
            return self._offset(ts_ms, record)
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        found = self._offset(began_ms, record)
        self._kept[id(record)] = record, second, found  # with the record, whose identity is its own as long as it lives
        return found

    def _offset(self, ts_ms: int, record: Mapping[str, Any] | None) -> Offset:
        values = self.features.encode(ts_ms, record)  # [F]
        delta = self._weight @ values  # [d]
        norm = float(np.linalg.norm(delta))
        bounded = norm > self.max_norm
        shrink = self.max_norm / norm if bounded else 1.0
        return Offset((delta * np.float32(shrink)).astype(np.float32), self._applied(values, shrink), bounded)

    def _applied(self, values: FloatArray, shrink: float) -> list[tuple[str, float]]:
        """A cycle's sines and cosines make one line; everything else is a line of its own."""
        parts = [
            (name, float(np.linalg.norm(self._weight[:, columns] @ values[columns])))
            for name, columns in self._calendar.items()
        ]
        parts += [(name, float(abs(values[at]) * self._length[at])) for name, (at, *_) in self._single if values[at]]
        shown = [(name, length * shrink) for name, length in parts if length * shrink > MIN_SHOWN]
        return sorted(shown, key=lambda part: (-part[1], part[0]))
