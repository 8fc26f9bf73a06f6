"""Shares of popularity that are known late: one count for each delay, brought up to date when it is asked.

Assumes that choices happen in the order of their times. It does not know who asks, nor what a share is worth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from encoder.training.popularity import DecayedCounts
from streams.evaluation.staleness.delays import Delay

_NEGLIGIBLE = 1e-6  # of a share of at most 1


class Shares(NamedTuple):
    """Items with a share that counts, by row [m], and their shares [m]."""

    rows: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(slots=True)
class _Late:
    counts: DecayedCounts
    known: int = 0  # choices counted


class DelayedPopularity:
    """Shares of `items` items as each of `delays` knows them."""

    def __init__(self, items: int, delays: Iterable[Delay]) -> None:
        self._late = {delay: _Late(DecayedCounts(items)) for delay in delays}
        self._choices: list[tuple[int, int, int, str]] = []  # (time, row, weight, place)

    def happen(self, ts_ms: int, row: int, weight: int, place: str) -> None:
        """A choice; from now on those see it whose delay has passed."""
        self._choices.append((ts_ms, row, weight, place))

    def shares(self, delay: Delay, now_ms: int, place: str) -> Shares:
        """As they were, at a place, when the knowledge of `delay` ends; times of calls may not fall."""
        late, cut_ms = self._late[delay], delay.cut_ms(now_ms)
        while late.known < len(self._choices) and self._choices[late.known][0] <= cut_ms:
            ts_ms, row, weight, where = self._choices[late.known]
            late.counts.add(row, weight, ts_ms, where or None)
            late.known += 1
        shares = late.counts.shares(cut_ms, place or None)
        rows = np.flatnonzero(shares > _NEGLIGIBLE)
        return Shares(rows, shares[rows].astype(np.float32))
