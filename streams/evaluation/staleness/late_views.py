"""Holds users and popularity as they were known with each delay, and gathers what each arm of a sweep knows.

Views are brought up to date when somebody asks; times of calls never fall. What several arms know alike is gathered
once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from context.features import valid_until_ms
from context.timeline import ContextTimeline
from encoder.inference.batching import EncodeRequest
from encoder.training.popularity import DecayedCounts
from index.items.filters import Mask
from index.query.feedback import NegativeFeedback
from index.query.live_user import profile_location
from index.state.user_columns import UserState
from streams.evaluation.held_out import Apply, HeldOut
from streams.evaluation.popularity import RecentPopularity
from streams.evaluation.rankers import Question
from streams.evaluation.slices import Facts
from streams.evaluation.staleness.delays import NOW, Arm, Delay
from streams.pipeline.user_state import UserEvent

_NEGLIGIBLE = 1e-9  # of a share of at most 1: beside a cosine it is lost in float32
_UNKNOWN_ITEM = ""  # no item has this id: its token is one without a vector
T = TypeVar("T")


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


@dataclass(slots=True)
class Window:
    """A user's window as some arms know it, and its vectors: those of a view, or to be encoded."""

    pair: NDArray[np.float32] | None  # [2, d]
    request: EncodeRequest | None = None
    view: View | None = None  # takes the vectors if it still knows as much
    known: int = 0  # events that the view knew


@dataclass(slots=True)
class Knowledge:
    """What some arms know when a question comes up, and the lists that follow from it."""

    window: Window
    context: int  # number of the context record in force, -1 without one
    arrived: int  # how many items have, by the order of their arrival
    seen: frozenset[str]
    shares: Shares | None  # None where popularity has no weight
    feedback: NegativeFeedback | None  # None without any
    lists: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class HeldOutQuestion:
    """A question, what each arm knows, and what was chosen; `place` is the number of the event that it comes before."""

    place: int
    user_id: str
    location: str
    now_ms: int
    events: int  # of the user's window
    known: list[Knowledge | None]  # one for each arm, None of a cold user
    popular: list[list[str]]  # one for each arm
    all_time: list[str]
    history: tuple[Question, Mask] | None  # for rankers that know everything, with what to hide; None of a cold user
    targets: set[str] = field(default_factory=set)
    facts: Facts | None = None  # of the first target


@dataclass(frozen=True, slots=True)
class Sources:
    """What a sweep keeps up to date, beside users: where knowledge comes from."""

    held: HeldOut
    apply: Apply
    popularity: DelayedPopularity
    contexts: ContextTimeline


class Moment:
    """What is known of a user at `now_ms`, as a click at `location` is about to come."""

    def __init__(self, sources: Sources, user_id: str, user: DelayedUser, location: str, now_ms: int) -> None:
        self._sources, self._held, self._items = sources, sources.held, sources.held.items
        self._user_id, self._user, self._location, self.now_ms = user_id, user, location, now_ms
        self._made: dict[Hashable, object] = {}

    @cached_property
    def state(self) -> UserState:
        """The user as everything so far has made it."""
        return self._view(NOW).state

    @cached_property
    def outside(self) -> frozenset[str]:
        """Items whose time window is not open now, which is known in every arm."""
        return self._items.outside(self.now_ms)

    def seen(self, arm: Arm) -> frozenset[str]:
        """Items that the arm leaves out of its lists as seen."""
        view = self._view(arm.seen)
        return self._once(("seen", view.known), lambda: self._held.left_out(view.state, self.now_ms))

    def popular(self, arm: Arm) -> list[str]:
        """Recent popularity as the arm knows it."""
        arrived, seen = self._arrived(arm), self.seen(arm)

        def top() -> list[str]:
            pending = {self._items.item_ids[row] for row in self._items.order[arrived : self._items.arrived]}
            without = seen | pending | self.outside
            return self._sources.popularity.top(arm.popularity, self.now_ms, max(self._held.ask.ks), without)

        return self._once(("popular", arm.popularity, arrived, id(seen)), top)

    def knowledge(self, arm: Arm) -> Knowledge | None:
        """What the model's lists of an arm follow from; None of a cold user."""
        view, arrived, seen = self._view(arm.user), self._arrived(arm), self.seen(arm)
        if not view.state.items and not view.state.profile:
            return None
        window = self._window(view, arm, arrived)
        place = self._location or profile_location(view.state.profile)
        context = self._context(place, arm.context)
        shares = self._once(
            ("shares", arm.popularity, place),
            lambda: self._sources.popularity.shares(arm.popularity, self.now_ms, place),
        )
        return self._once(
            ("knowledge", id(window), context, arrived, id(seen), id(shares)),
            lambda: Knowledge(window, context, arrived, seen, shares, self._feedback(view, arrived)),
        )

    def _feedback(self, view: View, arrived: int) -> NegativeFeedback | None:
        return self._held.feedback(view.state, self.now_ms, self._pending(view.state, arrived))

    def history(self, seen: frozenset[str]) -> tuple[Question, Mask] | None:
        """What the user has chosen, and rows to hide, for rankers that know everything; None of a cold user."""
        state = self.state
        if not state.items and not state.profile:
            return None
        rows = np.array([self._items.row.get(item, -1) for item in state.items], np.int64)
        kept = (rows >= 0) & np.array([self._held.selection.choices[kind] for kind in state.kinds], bool)
        hidden = self._items.hidden(self.now_ms, seen, self._items.arrived)
        return Question(rows[kept], np.array(state.ts_ms, np.int64)[kept], self.now_ms), hidden

    def _once(self, what: Hashable, make: Callable[[], T]) -> T:
        if what not in self._made:
            self._made[what] = make()
        found: T = self._made[what]  # type: ignore[assignment]
        return found

    def _view(self, delay: Delay) -> View:
        return self._user.view(delay, self.now_ms, self._sources.apply)

    def _arrived(self, arm: Arm) -> int:
        return int(np.searchsorted(self._items.times_ms, arm.vectors.cut_ms(self.now_ms), side="right"))

    def _context(self, place: str, delay: Delay) -> int:
        """The context record that is believed to be in force; what has expired is always known to have."""
        if not place:
            return -1
        contexts = self._sources.contexts
        number = int(contexts.index([place], [delay.cut_ms(self.now_ms)])[0])
        return number if number >= 0 and self.now_ms < valid_until_ms(contexts.records[number]) else -1

    def _window(self, view: View, arm: Arm, arrived: int) -> Window:
        """What an arm reads of the user."""
        pending = self._pending(view.state, arrived)

        def make() -> Window:
            state, pair = view.state, None if pending else self._user.pair_of(view.known)
            if pair is not None:
                return Window(pair)
            items = [_UNKNOWN_ITEM if item in pending else item for item in state.items]
            profile = orjson.loads(state.profile) if state.profile else None
            key = (self._user_id, arm.user.name, arm.vectors.name if pending else "")
            keep = 0 if pending else view.keep
            request = EncodeRequest(key, items, list(state.kinds), list(state.ts_ms), profile, keep)
            if pending:
                return Window(None, request)
            view.keep = len(state.items)
            return Window(None, request, view, view.known)

        return self._once(("window", view.known, arrived if pending else -1), make)

    def _pending(self, state: UserState, arrived: int) -> set[str]:
        """Items of the window that have not arrived yet, as far as the arm knows."""
        if arrived == self._items.arrived:
            return set()
        after_ms = self._items.times_ms[arrived - 1] if arrived else -1
        row, arrivals_ms = self._items.row, self._items.arrivals_ms
        return {item for item in state.items if item in row and arrivals_ms[row[item]] > after_ms}
