"""Answers every held-out question of a data folder in one pass, as if parts of the live state had been late.

Successive protocol: a choice is predicted from all events before it (EVIDENCE: global time split), by products,
popularity and negative feedback. A model's weights are never late. With the fresh arm alone this is offline evaluation
(`streams.evaluation.timeline`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from context.timeline import ContextTimeline
from encoder.model.config import ModelConfig
from index.query.feedback import NegativeFeedback
from index.state.user_columns import UserState
from streams.evaluation.comparison import Comparison
from streams.evaluation.held_out import HeldOut, all_out_of_reach, applier, window_rules
from streams.evaluation.outcomes import Outcomes
from streams.evaluation.popularity import PopularityLists, RecentPopularity
from streams.evaluation.rankers import ModelRanker, OfflineModel, OfflineRanker, best_lists, masked_scores
from streams.evaluation.slices import Facts
from streams.evaluation.staleness.delays import FRESH, NOW, Arm
from streams.evaluation.staleness.late_views import (
    Choice,
    DelayedPopularity,
    DelayedUser,
    HeldOutQuestion,
    Knowledge,
    Moment,
    Sources,
    Window,
)
from streams.events import Click
from streams.pipeline.user_state import UserEvent, counted

POPULAR, ALL_TIME = PopularityLists.names
_BATCH = 64  # questions, and states of knowledge, that are encoded and ranked together


def sweep(
    held: HeldOut,
    model: OfflineModel,
    arms: Sequence[Arm],
    progress: Callable[[int, int], None] | None = None,
    second: SecondStageAnswers | None = None,
) -> Sweep:
    """Asks every question in every arm; the lists of all late arms are compared with the fresh one's.

    `progress` is told how many of the folder's events are done, of how many. `second` asks the same of a second stage.
    """
    ways, late = [*held.ask.slots, POPULAR], [arm for arm in arms if arm != FRESH]
    first, *others = [*ways, *(list_name(arm, way) for arm, way in product(late, ways))]
    pairs = [(list_name(arm, way), way) for arm, way in product(late, ways)]
    run = Sweep(held, model, arms, Comparison([first], others, held.ask.ks, pairs=pairs, sliced=False))
    run.run(progress)
    if second is not None:
        run.stand_beside(second(run.questions, run.arms), held.ask.slots[0])
    return run


def list_name(arm: Arm, way: str) -> str:
    """How an arm's list is called in the comparison: `user 10s: next`, and `next` with no delay."""
    return way if arm == FRESH else f"{arm.name}: {way}"


@dataclass(frozen=True, slots=True)
class SweptQuestion:
    """A question of a sweep, asked just before the record of users and clicks that has number `place`."""

    place: int
    now_ms: int
    user_id: str
    location: str
    targets: frozenset[str]
    facts: Facts


SecondStageAnswers = Callable[
    [Sequence[SweptQuestion], Sequence[Arm]], Outcomes
]  # its lists by arm, the fresh one first


class Sweep:
    """One pass: questions of several arms, scored in `comparison`.

    Args:
        model: None where only `rankers` and popularity are measured.
        rankers: further lists, which know everything at once.
        baskets: whether all that a user chose at one time is one question, asked before it. Its targets are those
            items of it that are new.

    Raises:
        ValueError: the fresh arm is missing.
    """

    def __init__(
        self,
        held: HeldOut,
        model: OfflineModel | None,
        arms: Sequence[Arm],
        comparison: Comparison,
        rankers: Sequence[OfflineRanker] = (),
        baskets: bool = False,
    ) -> None:
        if FRESH not in arms:
            raise ValueError("a sweep is read against what knows everything; put FRESH among the arms")
        self.arms, self.comparison, self._rankers, self._baskets = list(arms), comparison, rankers, baskets
        self._held, self._items = held, held.items
        contexts = ContextTimeline(held.folder.contexts)
        self._answers = None if model is None else _ModelAnswers(model, held, contexts)
        self._window = window_rules(held.rules, ModelConfig() if model is None else model.encoder.model.config)
        self._apply = applier(self._window)
        self._users: dict[str, DelayedUser] = {}
        self._late = any(delay != NOW for arm in arms for delay in (arm.user, arm.seen))
        shared = model is not None and model.weights.popularity > 0
        delays = {arm.popularity for arm in arms}
        self._popularity = DelayedPopularity(len(held.items.item_ids), delays, held.ask.baseline_ms, shared)
        self._all_time = RecentPopularity(None)
        self._sources = Sources(held, self._apply, self._popularity, contexts)
        self._batch: dict[str, HeldOutQuestion] = {}  # by user
        self._place = 0  # number of the event
        self.questions: list[SweptQuestion] = []  # in the order of the comparison
        self.targets: Counter[str] = Counter()  # those that no list could hold, by reason

    @property
    def catalogue_size(self) -> int:
        """Items that could be shown at the end."""
        return self._items.size

    @property
    def skipped(self) -> dict[str, int]:
        """Events that no question was asked about, by reason."""
        return dict(self._held.selection.skipped)

    def run(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Goes through the whole folder.

        Raises:
            ValueError: no list could hold a single target, so that all metrics would be 0 for this reason alone.
        """
        for place, (now_ms, event) in enumerate(self._held.events(progress)):
            self._place = place
            self._take(now_ms, event)
        self._answer()
        targets = int(self.comparison.outcomes.facts("targets").sum())
        reason = all_out_of_reach(self.targets, targets, self._held.folder.left_out)
        if reason is not None:
            raise ValueError(reason)

    def stand_beside(self, second: Outcomes, own: str) -> None:
        """Puts the lists of a second stage into the comparison, held against the list `own` that they re-order.

        The list of a late arm is held against that without delay instead, as of the first stage.
        """
        mine = self.comparison
        names = {name: ("first", name) for name in mine.outcomes.names} | {n: ("second", n) for n in second.names}
        fresh, *late = second.names
        pairs = [*mine.measured, *((name, fresh) for name in late), (fresh, own)]
        baselines = [*mine.baselines, *second.names]
        self.comparison = Comparison(mine.names, baselines, mine.ks, pairs, mine.seed, mine.sliced)
        self.comparison.outcomes = Outcomes.joined({"first": mine.outcomes, "second": second}, names)

    def _take(self, now_ms: int, event: UserEvent) -> None:
        """Asks about a click, then applies it; profiles and forgets are only applied."""
        user = self._users.setdefault(event.user_id, DelayedUser(self._late))
        for item_id, shown in self._items.arrive(now_ms):
            self._popularity.set_candidate(item_id, shown)
            self._all_time.set_candidate(item_id, shown)
        if isinstance(event, Click):
            (self._in_basket if self._baskets else self._alone)(event, now_ms, user)
            if self._held.selection.is_choice(event):
                row, weight = self._items.row.get(event.item_id), self._held.rules.kinds[event.kind].weight
                weight = counted(self._now(user, now_ms), event, weight, self._window)
                self._popularity.add(Choice(now_ms, event.item_id, row, weight, event.location))
                self._all_time.add(event.item_id, now_ms)
        user.take(now_ms, event, self._apply)

    def _alone(self, click: Click, now_ms: int, user: DelayedUser) -> None:
        """A question about one choice."""
        if self._held.selection.takes(click, now_ms) and self._held.is_new(click, self._now(user, now_ms), now_ms):
            if click.user_id in self._batch or len(self._batch) == _BATCH:
                self._answer()
            self._expect(self._ask(click, now_ms, user), click, now_ms, user)

    def _in_basket(self, click: Click, now_ms: int, user: DelayedUser) -> None:
        """A question about a basket begins, or has one more target; those at this time may still grow."""
        selection = self._held.selection
        begins = not selection.is_choice(click) or user.choice_ms != now_ms
        if begins and selection.takes(click, now_ms):
            if click.user_id in self._batch or len(self._batch) >= _BATCH:
                self._answer(now_ms)
            self._ask(click, now_ms, user)
        if not selection.is_choice(click):
            return
        question = self._batch.get(click.user_id)
        if question is not None and question.now_ms == now_ms:
            if self._held.is_new(click, self._now(user, now_ms), now_ms):
                self._expect(question, click, now_ms, user)
        elif not begins:
            selection.skipped["between questions"] += 1
        user.choice_ms = now_ms

    def _expect(self, question: HeldOutQuestion, click: Click, now_ms: int, user: DelayedUser) -> None:
        """A click's item is a target."""
        if question.facts is None:
            chosen = self._all_time.count(click.item_id)
            question.facts = self._held.facts(click, self._now(user, now_ms), now_ms, chosen, question.events)
        question.targets.add(click.item_id)

    def _ask(self, click: Click, now_ms: int, user: DelayedUser) -> HeldOutQuestion:
        """A question that waits for its answer, with what each arm knows now."""
        moment = Moment(self._sources, click.user_id, user, click.location, now_ms)
        seen, all_time = moment.seen(FRESH), list[str]()
        if ALL_TIME in self.comparison.outcomes.names:
            all_time = self._all_time.top(max(self._held.ask.ks), now_ms, seen | moment.outside)
        question = self._batch[click.user_id] = HeldOutQuestion(
            self._place,
            click.user_id,
            click.location,
            now_ms,
            len(moment.state.items),
            [None if self._answers is None else moment.knowledge(arm) for arm in self.arms],
            [moment.popular(arm) for arm in self.arms],
            all_time,
            moment.history(seen) if self._rankers else None,
        )
        return question

    def _answer(self, before_ms: int | None = None) -> None:
        """Ranks and scores the questions that wait, or those of them that were asked before a time."""
        waiting = {u: q for u, q in self._batch.items() if before_ms is not None and q.now_ms >= before_ms}
        questions = [question for user, question in self._batch.items() if user not in waiting]
        self._batch = waiting
        if self._answers is not None:
            self._answers.rank(questions)
        for question, ranked in zip(questions, self._rank_fresh(questions), strict=True):
            for target in question.targets:
                if not self._items.can_show(target, question.now_ms):
                    self.targets["not to be shown" if target in self._items.row else "not in the catalogue"] += 1
            if question.facts is not None:  # else nothing in the basket was new
                self.comparison.add(ranked | self._lists(question), question.targets, question.facts)
                about = question.place, question.now_ms, question.user_id, question.location
                self.questions.append(SweptQuestion(*about, frozenset(question.targets), question.facts))

    def _rank_fresh(self, questions: Sequence[HeldOutQuestion]) -> list[dict[str, list[str]]]:
        """The lists of rankers that know everything, by question; a cold user gets the recently popular one."""
        names, fresh = [name for ranker in self._rankers for name in ranker.lists], self.arms.index(FRESH)
        found = [dict.fromkeys(names, question.popular[fresh]) for question in questions]
        asked = {at: question.history for at, question in enumerate(questions) if question.history is not None}
        if not asked:
            return found
        histories, hidden = zip(*asked.values(), strict=True)
        for ranker in self._rankers:
            scores = masked_scores(ranker, histories, hidden)
            for name, rows in best_lists(scores, ranker.lists, max(self._held.ask.ks)).items():
                for at, row in zip(asked, rows, strict=True):
                    found[at][name] = self._items.ids(row)
        return found

    def _lists(self, question: HeldOutQuestion) -> dict[str, list[str]]:
        """The lists of all arms, and of all-time popularity."""
        found = {ALL_TIME: question.all_time}
        slots = self._held.ask.slots if self._answers is not None else ()
        for arm, known, popular in zip(self.arms, question.known, question.popular, strict=True):
            for slot in slots:
                found[list_name(arm, slot)] = popular if known is None else known.lists[slot]
            found[list_name(arm, POPULAR)] = popular
        return found

    def _now(self, user: DelayedUser, now_ms: int) -> UserState:
        return user.view(NOW, now_ms, self._apply).state


class _ModelAnswers:
    """A model's lists, from what arms know."""

    def __init__(self, model: OfflineModel, held: HeldOut, contexts: ContextTimeline) -> None:
        self._model, self._items, self._count = model, held.items, max(held.ask.ks)
        self._ranker = ModelRanker(model.encoder, held.vectors, held.ask.slots)
        self._contexts = contexts
        self._weight = np.float32(model.weights.popularity)

    def rank(self, questions: Sequence[HeldOutQuestion]) -> None:
        """Fills in the lists of everything that is known of the questions."""
        asked = [
            (question.now_ms, known)
            for question in questions
            for known in {id(known): known for known in question.known if known is not None}.values()
        ]
        self._encode(list({id(known.window): known.window for _, known in asked}.values()))
        for start in range(0, len(asked), _BATCH):
            self._rank(asked[start : start + _BATCH])

    def _encode(self, windows: Sequence[Window]) -> None:
        requests = [window.request for window in windows if window.request is not None]
        if not requests:
            return
        pairs = iter(self._model.encoder.encode(requests).vectors)  # each [2, d]
        for window in windows:
            if window.request is not None:
                window.pair = next(pairs).copy()
                if window.view is not None and window.view.known == window.known:
                    window.view.pair = window.pair

    def _rank(self, asked: Sequence[tuple[int, Knowledge]]) -> None:
        scores = self._ranker.cosines(np.stack([self._pair(now_ms, known) for now_ms, known in asked]))
        for row, (now_ms, known) in enumerate(asked):
            hidden = self._items.hidden(now_ms, known.seen, known.arrived)
            for matrix in scores:
                if known.shares is not None:
                    matrix[row, known.shares.rows] += self._weight * known.shares.values
                if known.feedback is not None:
                    matrix[row] += self._lost(known.feedback)
                matrix[row, hidden] = -np.inf
        best = best_lists(scores, self._ranker.lists, self._count)
        for row, (_, known) in enumerate(asked):
            known.lists = {name: self._items.ids(rows[row]) for name, rows in best.items()}

    def _lost(self, feedback: NegativeFeedback) -> NDArray[np.float32]:
        """What feedback takes off each candidate's score [candidates]."""
        matrix = self._ranker.matrix
        return feedback.part(matrix @ feedback.away(matrix[feedback.labels])).astype(np.float32)

    def _pair(self, now_ms: int, known: Knowledge) -> NDArray[np.float32]:
        """The user's vectors, shifted by context [2, d]."""
        assert known.window.pair is not None
        record = self._contexts.records[known.context] if known.context >= 0 else None
        return known.window.pair + self._model.offset.offset(now_ms, record).delta
