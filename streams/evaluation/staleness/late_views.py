"""Holds users and popularity as they were known with each delay, brought up to date when somebody asks.

Times of calls never fall.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from encoder.training.popularity import DecayedCounts
from index.state.records import UserState
from streams.evaluation.held_out import Apply, UserEvent
from streams.evaluation.popularity import RecentPopularity
from streams.evaluation.staleness.delays import NOW, Delay

_NEGLIGIBLE = 1e-9  # of a share of at most 1: beside a cosine it is lost in float32


@dataclass(slots=True)
class View:
    """What is known of a user with one delay: the state after the first `known` of the user's events."""

    state: UserState = field(default_factory=UserState)
    known: int = 0
    keep: int = 0  # leading events unchanged since this view's last encode
    pair: NDArray[np.float32] | None = None  # [2, d] of the state as it is; None when it changed since the encode


@dataclass(slots=True)
class DelayedUser:
    """A user's events, and a view for each delay that was asked for. With `late` False nobody asks for one but NOW."""

    late: bool
    choice_ms: int | None = None  # time of the newest choice
    views: dict[Delay, View] = field(default_factory=dict)
    _events: list[tuple[int, UserEvent]] = field(default_factory=list)  # (arrival in ms, event)
    _dropped: int = 0  # events that every view knows

    def take(self, now_ms: int, event: UserEvent, apply: Apply) -> None:
        """Notes an event; views learn of it when they are asked."""
        self._events.append((now_ms, event))
        if not self.late:
            self.view(NOW, now_ms, apply)
            self._events.clear()
            self._dropped += 1

    def view(self, delay: Delay, now_ms: int, apply: Apply) -> View:
        """What is known at `now_ms` with a delay."""
        view = self.views.setdefault(delay, View())
        cut_ms = delay.cut_ms(now_ms)
        while (at := view.known - self._dropped) < len(self._events) and self._events[at][0] <= cut_ms:
            keep = apply(view.state, self._events[at][1])
            view.known += 1
            if keep is not None:
                view.keep, view.pair = min(view.keep, keep), None
        return view

    def pair_of(self, known: int) -> NDArray[np.float32] | None:
        """Vectors [2, d] of a view that knows so many events, None where none has them."""
        found = (view.pair for view in self.views.values() if view.known == known and view.pair is not None)
        return next(found, None)


class Shares(NamedTuple):
    """Items with a share that counts, by row [m], and their shares [m]."""

    rows: NDArray[np.int64]
    values: NDArray[np.float32]


class Choice(NamedTuple):
    """That somebody chose an item; `row` is None of one that is no candidate."""

    ts_ms: int
    item_id: str
    row: int | None
    weight: int
    place: str


@dataclass(slots=True)
class _Late:
    recent: RecentPopularity
    decayed: DecayedCounts
    known: int = 0  # choices counted


class DelayedPopularity:
    """Recent popularity, and shares of `items` items, as each of `delays` knows them.

    Args:
        horizon_ms: how long a choice counts for recent popularity.
        shared: whether shares are asked for.
    """

    def __init__(self, items: int, delays: Iterable[Delay], horizon_ms: int, shared: bool) -> None:
        self._late = {d: _Late(RecentPopularity(horizon_ms), DecayedCounts(items if shared else 0)) for d in delays}
        self._shared = shared
        self._choices: list[Choice] = []  # but the first `_dropped`, which all know
        self._dropped = 0

    def set_candidate(self, item_id: str, allowed: bool) -> None:
        """Makes an item a candidate of recent popularity, or no longer one."""
        for late in self._late.values():
            late.recent.set_candidate(item_id, allowed)

    def add(self, choice: Choice) -> None:
        """A choice; from now on those see it whose delay has passed."""
        self._choices.append(choice)
        for delay in self._late:
            self._advance(delay, choice.ts_ms)
        known = min(late.known for late in self._late.values())
        if 2 * (known - self._dropped) > len(self._choices):  # so that what stays is moved no more often than it grew
            del self._choices[: known - self._dropped]
            self._dropped = known

    def top(self, delay: Delay, now_ms: int, count: int, without: Iterable[str]) -> list[str]:
        """The most chosen items when the knowledge of `delay` ends: the horizon is as late as the counts."""
        return self._advance(delay, now_ms).recent.top(count, delay.cut_ms(now_ms), without)

    def shares(self, delay: Delay, now_ms: int, place: str) -> Shares | None:
        """As they were, at a place, when the knowledge of `delay` ends; None where nobody asks for shares."""
        if not self._shared:
            return None
        shares = self._advance(delay, now_ms).decayed.shares(delay.cut_ms(now_ms), place or None)
        rows = np.flatnonzero(shares > _NEGLIGIBLE)
        return Shares(rows, shares[rows].astype(np.float32))

    def _advance(self, delay: Delay, now_ms: int) -> _Late:
        late, cut_ms = self._late[delay], delay.cut_ms(now_ms)
        while (at := late.known - self._dropped) < len(self._choices) and self._choices[at].ts_ms <= cut_ms:
            choice = self._choices[at]
            late.recent.add(choice.item_id, choice.ts_ms)
            if self._shared and choice.row is not None:
                late.decayed.add(choice.row, choice.weight, choice.ts_ms, choice.place or None)
            late.known += 1
        return late
