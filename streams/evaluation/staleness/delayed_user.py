"""One user as seen with several delays: the live state at each of several earlier moments, kept up as time goes on.

Assumes a user's events in the order of their times; each view applies them with the functions of production
(`streams.pipeline.user_state`). Views that know equally much are equal, so one encode serves them. It knows no other
users.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
