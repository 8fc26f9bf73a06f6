"""TODO docstring of streams.evaluation.staleness.late_views."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from encoder.training.popularity import DecayedCounts
from index.state.records import UserState
from streams.evaluation.held_out import Apply
from streams.evaluation.staleness.delays import Delay
from streams.events import Event


@dataclass(slots=True)
class View:
    """What is known of a user with one delay: the state after the first `known` of the user's events."""

    state: UserState = field(default_factory=UserState)
    known: int = 0
    keep: int = 0  # leading events unchanged since this view's last encode
    pair: NDArray[np.float32] | None = None  # [2, d] of the state as it is; None when it changed since the encode


@dataclass(slots=True)
class DelayedUser:
    """A user's events, and a view for each delay that was asked for."""

    events: list[tuple[int, Any]] = field(default_factory=list)  # (arrival in ms, event)
    views: dict[Delay, View] = field(default_factory=dict)

    def take(self, now_ms: int, event: Event) -> None:
        """Notes an event; views learn of it when they are asked."""
        self.events.append((now_ms, event))

    def view(self, delay: Delay, now_ms: int, apply: Apply) -> View:
        """What is known at `now_ms` with a delay. `now_ms` never falls."""
        view = self.views.setdefault(delay, View())
        cut_ms = delay.cut_ms(now_ms)
        while view.known < len(self.events) and self.events[view.known][0] <= cut_ms:
            keep = apply(view.state, self.events[view.known][1])
            view.known += 1
            if keep is not None:
                view.keep, view.pair = min(view.keep, keep), None
        return view

    def pair_of(self, known: int) -> NDArray[np.float32] | None:
        """Vectors [2, d] of a view that knows so many events, None where none has them."""
        found = (view.pair for view in self.views.values() if view.known == known and view.pair is not None)
        return next(found, None)


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

    def add_choice(self, ts_ms: int, row: int, weight: int, place: str) -> None:
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
