"""How good a model is on the held-out part of a data folder, without streaming: one pass over the global timeline.

Successive protocol: every held-out choice is predicted from all events before it (EVIDENCE: global time split). Uses
the pure state functions and the encoder, and ranks by plain products and popularity, without promotions, so it also
checks replay, which asks the production path. PopularityLists are asked the same. It knows no broker, store or index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from context.offsets import ContextOffset
from context.timeline import ContextTimeline
from encoder.inference.incremental import EncodeRequest, IncrementalEncoder
from encoder.model.config import ModelConfig
from encoder.training.popularity import DecayedCounts
from index.query.live_user import profile_location
from index.state.records import UserState
from streams.evaluation.comparison import Comparison
from streams.evaluation.held_out import HeldOut, QuestionSettings
from streams.evaluation.popularity import PopularityLists
from streams.evaluation.rankers import ModelRanker, Question, Ranker, best_lists, masked_scores
from streams.evaluation.slices import Facts
from streams.events import Click, Rules
from streams.folder.reader import Folder
from streams.item_vectors import ItemVectors

_BATCH = 64  # questions encoded and ranked together


def evaluate(
    folder: Folder,
    vectors: ItemVectors,
    encoder: IncrementalEncoder | None,
    offset: ContextOffset | None,
    rules: Rules,
    ask: QuestionSettings,
    progress: Callable[[int], None] | None = None,
    rankers: Sequence[Ranker] = (),
    baskets: bool = False,
    popularity: float = 0.0,
) -> dict[str, Any]:
    """Metrics of `ask.slots`, of `rankers` and of popularity on the folder's events from `ask.start_ms` on.

    Candidates of a question are the items that have a vector, had arrived and pass the live catalogue's hard rules at
    that time; items seen are left out unless `ask.repeats`; a cold user gets the recently popular list from everyone.
    With `baskets` all that a user chose at one time is one question, asked before it: its targets are the items of it
    that are new, and their order says nothing. `popularity` is the weight with which an item's share of the popularity
    then and there is added to the model's cosines. Without an encoder only `rankers` are measured. `progress` is told
    how many of `len(folder.events)` events are done.

    Raises:
        ValueError: there is neither encoder nor ranker, or two lists have one name.
    """
    held = HeldOut(folder, vectors, rules, ask)
    run = _Evaluation(held, encoder, offset, rankers, baskets, popularity)
    for now_ms, event in held.events(progress):
        run.take(now_ms, event)
    run.answer()
    return run.result()


@dataclass(slots=True)
class _Question:
    """What is known when a question comes up; its vectors are computed with others'."""

    asked: Question
    seen: frozenset[str]
    baselines: dict[str, list[str]]
    targets: set[str] = field(default_factory=set)
    facts: Facts | None = None  # of the first target


@dataclass(slots=True)
class _User:
    state: UserState = field(default_factory=UserState)
    keep: int = 0  # leading events unchanged since the user's last encode
    choice_ms: int | None = None  # time of the newest choice


class _Evaluation:
    """The state of one pass."""

    def __init__(
        self,
        held: HeldOut,
        encoder: IncrementalEncoder | None,
        offset: ContextOffset | None,
        rankers: Sequence[Ranker],
        baskets: bool,
        popularity: float,
    ) -> None:
        self._baskets = baskets
        self._held, self._items, self._ask, self._offset = held, held.items, held.ask, offset
        self._apply = held.applier(ModelConfig() if encoder is None else encoder.model.config)
        self._timeline = ContextTimeline(held.folder.contexts)
        model = (
            []
            if encoder is None
            else [ModelRanker(encoder, held.vectors, self._ask.slots, encoder.encode, self._delta, popularity)]
        )
        self._popular = DecayedCounts(len(held.items.item_ids)) if popularity else None
        self._rankers: list[Ranker] = [*model, *rankers]
        self._users: dict[str, _User] = {}
        self._baselines = PopularityLists(held.ask.baseline_ms)
        self._batch: dict[str, _Question] = {}  # by user
        self.targets: Counter[str] = Counter()
        self.comparison = _comparison(model, rankers, held.ask)

    def take(self, now_ms: int, event: Any) -> None:
        """Asks about a click, then applies it; profiles and forgets are only applied."""
        user = self._users.setdefault(event.user_id, _User())
        for item_id, shown in self._items.arrive(now_ms):
            self._baselines.set_candidate(item_id, shown)
        if isinstance(event, Click):
            (self._in_basket if self._baskets else self._alone)(event, now_ms, user)
            if self._held.selection.is_choice(event):
                self._baselines.add(event.item_id, now_ms)
            self._count(event, now_ms)
        keep = self._apply(user.state, event)
        user.keep = user.keep if keep is None else min(user.keep, keep)

    def answer(self, before_ms: int | None = None) -> None:
        """Encodes and ranks the questions that wait, or those of them that were asked before a time."""
        waiting = {u: q for u, q in self._batch.items() if before_ms is not None and q.asked.now_ms >= before_ms}
        questions = [question for user, question in self._batch.items() if user not in waiting]
        self._batch = waiting
        if not questions:
            return
        asked = [question.asked for question in questions]
        hidden = [self._items.hidden(question.asked.now_ms, question.seen) for question in questions]
        ranked: dict[str, NDArray[np.int64]] = {}
        for ranker in self._rankers:
            ranked |= best_lists(masked_scores(ranker, asked, hidden), ranker.lists, max(self._ask.ks))
        for at, question in enumerate(questions):
            lists = {name: self._ids(question, rows[at]) for name, rows in ranked.items()} | question.baselines
            for target in question.targets:
                if not self._items.can_show(target, question.asked.now_ms):
                    self.targets["not to be shown" if target in self._items.row else "not in the catalogue"] += 1
            if question.facts is not None:  # else nothing in the basket was new
                self.comparison.add(lists, question.targets, question.facts)

    def result(self) -> dict[str, Any]:
        """As `streams.evaluation.prequential.PrequentialEvaluator.result`."""
        return {
            **self.comparison.result(self._items.size),
            "skipped": dict(self._held.selection.skipped),
            "targets_out_of_reach": dict(self.targets),
        }

    def _alone(self, click: Click, now_ms: int, user: _User) -> None:
        """A question about one choice."""
        if self._held.selection.takes(click, now_ms) and self._held.is_new(click, user.state, now_ms):
            if click.user_id in self._batch or len(self._batch) == _BATCH:
                self.answer()
            question = self._ask_about(click, now_ms, user)
            self._expect(question, click, now_ms, user, len(user.state.items))

    def _in_basket(self, click: Click, now_ms: int, user: _User) -> None:
        """A question about a basket begins, or has one more target; those at this time may still grow."""
        selection = self._held.selection
        begins = not selection.is_choice(click) or user.choice_ms != now_ms
        if begins and selection.takes(click, now_ms):
            if click.user_id in self._batch or len(self._batch) >= _BATCH:
                self.answer(now_ms)
            self._ask_about(click, now_ms, user)
        if not selection.is_choice(click):
            return
        question = self._batch.get(click.user_id)
        if question is not None and question.asked.now_ms == now_ms:
            if self._held.is_new(click, user.state, now_ms):
                self._expect(question, click, now_ms, user, len(question.asked.request.items))
        elif not begins:
            selection.skipped["between questions"] += 1
        user.choice_ms = now_ms

    def _expect(self, question: _Question, click: Click, now_ms: int, user: _User, history: int) -> None:
        """A click's item is a target."""
        if question.facts is None:
            chosen = self._baselines.chosen(click.item_id)
            question.facts = replace(self._held.facts(click, user.state, now_ms, chosen), history=history)
        question.targets.add(click.item_id)

    def _count(self, click: Click, now_ms: int) -> None:
        """A click for its item's popularity."""
        weight, row = self._held.weights[click.kind], self._items.row.get(click.item_id)
        if self._popular is not None and weight > 0 and row is not None:
            self._popular.add(row, weight, now_ms, click.location or None)

    def _ask_about(self, click: Click, now_ms: int, user: _User) -> _Question:
        """What is known of a user now."""
        state = user.state
        without = self._held.left_out(state, now_ms)
        profile = orjson.loads(state.profile) if state.profile else None
        columns = list(state.items), list(state.kinds), list(state.ts_ms)
        request = EncodeRequest(click.user_id, *columns, profile, user.keep)
        location = click.location or profile_location(state.profile)
        popular = None if self._popular is None else self._popular.shares(now_ms, location or None).astype(np.float32)
        question = self._batch[click.user_id] = _Question(
            asked=Question(request, *self._chosen(state), now_ms, location, popular),
            seen=without,
            baselines=self._baselines.lists(max(self._ask.ks), now_ms, without | self._items.outside(now_ms)),
        )
        user.keep = len(state.items)
        return question

    def _chosen(self, state: UserState) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and times of the candidates that were chosen, oldest first."""
        rows = np.array([self._items.row.get(item, -1) for item in state.items], np.int64)
        kept = (rows >= 0) & np.array([self._held.selection.choices[kind] for kind in state.kinds], bool)
        return rows[kept], np.array(state.ts_ms, np.int64)[kept]

    def _delta(self, question: Question) -> NDArray[np.float32]:
        """What time and place add to the user's vectors [d]."""
        assert self._offset is not None
        record = self._timeline.active(question.location, question.now_ms) if question.location else None
        delta: NDArray[np.float32] = self._offset.offset(question.now_ms, record).delta
        return delta

    def _ids(self, question: _Question, rows: NDArray[np.int64]) -> list[str]:
        """A list as ids; a cold user gets the recently popular one (the API adds context to it)."""
        if not question.asked.request.items and question.asked.request.profile is None:
            return question.baselines[PopularityLists.names[0]]
        return [self._items.item_ids[row] for row in rows.tolist() if row >= 0]


def _comparison(model: Sequence[Ranker], rankers: Sequence[Ranker], ask: QuestionSettings) -> Comparison:
    """The model's lists against all others; without a model the rankers' against popularity."""
    own, other = ([name for ranker in some for name in ranker.lists] for some in (model, rankers))
    names, baselines = (own, [*PopularityLists.names, *other]) if own else (other, [*PopularityLists.names])
    if len({*names, *baselines}) < len(names) + len(baselines):
        raise ValueError(f"two lists of one name among {[*names, *baselines]}; name each baseline once")
    return Comparison(names, baselines, ask.ks)
