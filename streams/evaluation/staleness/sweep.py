"""What each second of delay costs: one held-out stream, answered as if parts of the live state had been late.

Successive protocol as in `streams.evaluation.timeline`, whose questions and ranking these are: the fresh arm equals its
result. One pass over the timeline answers every question once per arm (`streams.evaluation.staleness.delays`); arms
that know equally much share their encodes and lists. A model's weights are never late here. It knows no broker, store
or index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from context.features import valid_until_ms
from context.offsets import ContextOffset
from context.timeline import ContextTimeline
from encoder.inference.incremental import EncodeRequest, IncrementalEncoder
from index.query.live_user import profile_location
from index.query.model import RequestedList
from index.state.records import UserState
from streams.evaluation.comparison import Comparison
from streams.evaluation.held_out import HeldOut, QuestionSettings
from streams.evaluation.popularity import RecentPopularity
from streams.evaluation.rankers import ModelRanker, best_lists
from streams.evaluation.slices import Facts
from streams.evaluation.staleness.delays import FRESH, NOW, Arm, Delay
from streams.evaluation.staleness.late_views import DelayedPopularity, DelayedUser, Shares, View
from streams.events import Click, Rules
from streams.folder.reader import Folder
from streams.item_vectors import ItemVectors

POPULAR = "recent popularity"
_BATCH = 64  # questions encoded and ranked together
_UNKNOWN_ITEM = ""  # no item has this id: its token is one without a vector


def sweep(
    folder: Folder,
    vectors: ItemVectors,
    encoder: IncrementalEncoder,
    offset: ContextOffset,
    rules: Rules,
    ask: QuestionSettings,
    arms: Sequence[Arm],
    progress: Callable[[int], None] | None = None,
    popularity: float = 0.0,
) -> Sweep:
    """Asks every question of the folder from `ask.start_ms` on in every arm; `progress` is told of events done.

    `popularity` is the weight of an item's share of the popularity, as an arm knows it, beside the cosine.
    """
    held = HeldOut(folder, vectors, rules, ask)
    run = Sweep(held, encoder, offset, arms, popularity)
    for now_ms, event in held.events(progress):
        run.take(now_ms, event)
    run.answer()
    return run


def list_name(arm: Arm, way: str) -> str:
    """How an arm's list is called in the comparison: `user 10s: next`."""
    return f"{arm.name}: {way}"


@dataclass(slots=True)
class _Window:
    """A user's window as some arms know it, and its vectors: those of a view, or to be encoded."""

    pair: NDArray[np.float32] | None  # [2, d]
    request: EncodeRequest | None = None
    view: View | None = None  # that keeps the vectors


@dataclass(slots=True)
class _Counted:
    """Recent popularity after the first `known` choices."""

    counts: RecentPopularity
    known: int = 0


@dataclass(slots=True)
class _Known:
    """What one arm knows when a question comes up."""

    window: _Window | None  # None of a cold user
    context: int  # number of the context record in force, -1 without one
    items: int  # how many items have arrived, by the order of their arrival
    seen: frozenset[str]
    popular: list[str]
    shares: Shares | None  # None where popularity has no weight


@dataclass(slots=True)
class _DelayedQuestion:
    """A question, and what each arm knows."""

    target: str
    ts_ms: int
    facts: Facts
    known: list[_Known]  # one for each arm

    @property
    def windows(self) -> list[_Window]:
        """The different ones."""
        return list({id(known.window): known.window for known in self.known if known.window is not None}.values())


class Sweep:
    """The state of one pass."""

    def __init__(
        self,
        held: HeldOut,
        encoder: IncrementalEncoder,
        offset: ContextOffset,
        arms: Sequence[Arm],
        popularity: float,
    ) -> None:
        if FRESH not in arms:
            raise ValueError("a sweep is read against what knows everything; put FRESH among the arms")
        ask = held.ask
        self.arms, self._ask, self._encoder, self._offset = list(arms), ask, encoder, offset
        self._held, self._items = held, held.items
        self._apply = held.applier(encoder.model.config)
        self._timeline = ContextTimeline(held.folder.contexts)
        self._model = ModelRanker(encoder, held.vectors, ask.slots, encoder.encode)
        self._users: dict[str, DelayedUser] = {}
        self._choices: list[tuple[int, str]] = []  # (time, item) of all so far
        self._popular = {arm.popularity: _Counted(RecentPopularity(ask.baseline_ms)) for arm in arms}
        self._weight, late_arms = popularity, {arm.popularity for arm in arms}
        self._shares = DelayedPopularity(len(held.items.item_ids), late_arms) if popularity else None
        self._chosen: Counter[str] = Counter()
        self._batch: dict[str, _DelayedQuestion] = {}  # by user
        ways = [*ask.slots, POPULAR]
        late = [arm for arm in arms if arm != FRESH]
        self.comparison = Comparison(
            [list_name(FRESH, ask.slots[0])],
            [list_name(arm, way) for arm, way in product(arms, ways) if (arm, way) != (FRESH, ask.slots[0])],
            ask.ks,
            pairs=[(list_name(arm, way), list_name(FRESH, way)) for arm, way in product(late, ways)],
            sliced=False,
        )

    @property
    def catalogue_size(self) -> int:
        """Items that could be shown at the end."""
        return self._items.size

    @property
    def skipped(self) -> Mapping[str, int]:
        """Events that no question was asked about, by reason."""
        return self._held.selection.skipped

    def take(self, now_ms: int, event: Any) -> None:
        """Asks about a click, then lets it happen; profiles and forgets only happen."""
        if event.user_id in self._batch or len(self._batch) == _BATCH:
            self.answer()  # a view must not move on before its vectors are there
        user = self._users.setdefault(event.user_id, DelayedUser())
        for item_id, shown in self._items.arrive(now_ms):
            for popular in self._popular.values():
                popular.counts.set_candidate(item_id, shown)
        if isinstance(event, Click):
            if self._held.selection.takes(event, now_ms) and self._held.is_new(event, self._now(user, now_ms), now_ms):
                self._ask_about(event, now_ms, user)
            if self._held.selection.is_choice(event):
                self._choose(event, now_ms)
        user.take(now_ms, event)

    def _choose(self, click: Click, now_ms: int) -> None:
        self._choices.append((now_ms, click.item_id))
        self._chosen[click.item_id] += 1
        row = self._items.row.get(click.item_id)
        if self._shares is not None and row is not None:
            self._shares.add_choice(now_ms, row, self._held.weights[click.kind], click.location)

    def answer(self) -> None:
        """Encodes and ranks the questions that wait."""
        questions, self._batch = list(self._batch.values()), {}
        waiting = [window for question in questions for window in question.windows if window.request is not None]
        pairs = self._encoder.encode([window.request for window in waiting if window.request is not None]).vectors
        for window, pair in zip(waiting, pairs, strict=True):  # [2, d]
            window.pair = pair.copy()
            if window.view is not None:
                window.view.pair = window.pair
        for question in questions:
            self.comparison.add(self._lists(question), {question.target}, question.facts)

    def _ask_about(self, click: Click, now_ms: int, user: DelayedUser) -> None:
        facts = self._held.facts(click, self._now(user, now_ms), now_ms, self._chosen[click.item_id])
        question = _DelayedQuestion(click.item_id, now_ms, facts, [])
        seen: dict[int, frozenset[str]] = {}  # by how many events are known
        popular: dict[tuple[Delay, int, int], list[str]] = {}  # by delay, items and events known
        windows: dict[tuple[int, int], _Window] = {}
        shares: dict[tuple[Delay, str], Shares | None] = {}
        for arm in self.arms:
            view, items = user.view(arm.user, now_ms, self._apply), self._arrived_by(arm.vectors, now_ms)
            seeing = user.view(arm.seen, now_ms, self._apply)
            if seeing.known not in seen:
                seen[seeing.known] = self._held.left_out(seeing.state, now_ms)
            what = arm.popularity, items, seeing.known
            if what not in popular:
                popular[what] = self._popular_list(arm, now_ms, items, seen[seeing.known])
            window = None
            if view.state.items or view.state.profile:
                window = self._window(click.user_id, user, view, arm, items, windows)
            place = click.location or profile_location(view.state.profile)
            context = self._context(place, arm, now_ms)
            where = arm.popularity, place
            if where not in shares:
                shares[where] = None if self._shares is None else self._shares.shares(arm.popularity, now_ms, place)
            known = _Known(window, context, items, seen[seeing.known], popular[what], shares[where])
            question.known.append(known)
        self._batch[click.user_id] = question

    def _now(self, user: DelayedUser, now_ms: int) -> UserState:
        return user.view(NOW, now_ms, self._apply).state

    def _arrived_by(self, delay: Delay, now_ms: int) -> int:
        return int(np.searchsorted(self._items.times_ms, delay.cut_ms(now_ms), side="right"))

    def _context(self, location: str, arm: Arm, now_ms: int) -> int:
        """The context record that the arm believes to be in force; what has expired is always known to have."""
        if not location:
            return -1
        number = int(self._timeline.index([location], [arm.context.cut_ms(now_ms)])[0])
        return number if number >= 0 and now_ms < valid_until_ms(self._timeline.records[number]) else -1

    def _counts(self, delay: Delay, now_ms: int) -> RecentPopularity:
        """The popularity that is late by `delay`, brought up to date."""
        popular, cut_ms = self._popular[delay], delay.cut_ms(now_ms)
        while popular.known < len(self._choices) and self._choices[popular.known][0] <= cut_ms:
            ts_ms, item_id = self._choices[popular.known]
            popular.counts.add(item_id, ts_ms)
            popular.known += 1
        return popular.counts

    def _popular_list(self, arm: Arm, now_ms: int, items: int, seen: frozenset[str]) -> list[str]:
        """What was popular when the arm's knowledge ends: its horizon is as late as its counts."""
        pending = {self._items.item_ids[row] for row in self._items.order[items : self._items.arrived]}
        counts = self._counts(arm.popularity, now_ms)
        without = seen | pending | self._items.outside(now_ms)
        return counts.top(max(self._ask.ks), arm.popularity.cut_ms(now_ms), without)

    def _window(
        self,
        user_id: str,
        user: DelayedUser,
        view: View,
        arm: Arm,
        items: int,
        windows: dict[tuple[int, int], _Window],
    ) -> _Window:
        """What an arm reads of a user, one of `windows` where another arm reads the same."""
        state, pending = view.state, self._pending(view.state, items)
        what = view.known, items if pending else -1
        if what in windows:
            return windows[what]
        pair = None if pending else user.pair_of(view.known)
        if pair is not None:
            windows[what] = _Window(pair)
            return windows[what]
        known = [_UNKNOWN_ITEM if item in pending else item for item in state.items]
        profile = orjson.loads(state.profile) if state.profile else None
        key = (user_id, arm.user.name, arm.vectors.name if pending else "")
        keep = 0 if pending else view.keep
        request = EncodeRequest(key, known, list(state.kinds), list(state.ts_ms), profile, keep)
        windows[what] = _Window(None, request, None if pending else view)
        if not pending:
            view.keep = len(state.items)
        return windows[what]

    def _pending(self, state: UserState, items: int) -> set[str]:
        """Items of the window that have not arrived yet, as far as the arm knows."""
        if items == self._items.arrived:
            return set()
        after_ms = self._items.times_ms[items - 1] if items else -1
        row, arrivals_ms = self._items.row, self._items.arrivals_ms
        return {item for item in state.items if item in row and arrivals_ms[row[item]] > after_ms}

    def _lists(self, question: _DelayedQuestion) -> dict[str, list[str]]:
        """The lists of all arms; equal knowledge gives equal lists."""
        made: dict[tuple[int, int, int, int, int], dict[RequestedList, list[str]]] = {}
        found: dict[str, list[str]] = {}
        for arm, known in zip(self.arms, question.known, strict=True):
            pair = known.window.pair if known.window is not None else None
            if pair is None:
                ways: dict[RequestedList, list[str]] = dict.fromkeys(self._ask.slots, known.popular)
            else:
                what = id(pair), known.context, known.items, id(known.seen), id(known.shares)
                if what not in made:
                    made[what] = self._rank(question.ts_ms, known, pair)
                ways = made[what]
            found |= {list_name(arm, way): ranked for way, ranked in ways.items()}
            found[list_name(arm, POPULAR)] = known.popular
        return found

    def _rank(self, now_ms: int, known: _Known, pair: NDArray[np.float32]) -> dict[RequestedList, list[str]]:
        """The list of each slot, as `streams.evaluation.timeline` ranks, with popularity as the arm knows it."""
        record = self._timeline.records[known.context] if known.context >= 0 else None
        moved = pair + self._offset.offset(now_ms, record).delta  # [2, d]
        items, count = self._items, max(self._ask.ks)
        allowed = np.zeros(len(items.item_ids), bool)
        allowed[items.order[: known.items]] = True
        allowed &= items.may_show(now_ms)  # rules are about now, also for what is known late
        allowed[items.rows(known.seen)] = False
        cosines = [moved[at] @ self._model.matrix.T for at in self._model.used]
        if known.shares is not None:
            for cosine in cosines:
                cosine[known.shares.rows] += np.float32(self._weight) * known.shares.values
        scores = [np.where(allowed, cosine, -np.inf)[None] for cosine in cosines]
        best = best_lists(scores, self._model.lists, count)  # [1, count] each
        return {slot: [items.item_ids[row] for row in best[slot][0].tolist() if row >= 0] for slot in self._ask.slots}
