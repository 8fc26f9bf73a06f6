"""Answers every held-out question of a data folder in one pass, as if parts of the live state had been late.

Successive protocol: a choice is predicted from all events before it (EVIDENCE: global time split). Arms that know
equally much share encodes and lists. With the fresh arm alone this is offline evaluation
(`streams.evaluation.timeline`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product

from context.timeline import ContextTimeline
from encoder.model.config import ModelConfig
from index.state.records import UserState
from streams.evaluation.comparison import Comparison
from streams.evaluation.held_out import HeldOut, UserEvent
from streams.evaluation.popularity import PopularityLists, RecentPopularity
from streams.evaluation.rankers import OfflineModel, Ranker
from streams.evaluation.staleness.answers import ModelAnswers, rank_fresh
from streams.evaluation.staleness.delays import FRESH, NOW, Arm
from streams.evaluation.staleness.knowledge import HeldOutQuestion, Moment, Sources
from streams.evaluation.staleness.late_views import Choice, DelayedPopularity, DelayedUser
from streams.events import Click

POPULAR, ALL_TIME = PopularityLists.names
_BATCH = 64  # questions encoded and ranked together


def sweep(
    held: HeldOut, model: OfflineModel, arms: Sequence[Arm], progress: Callable[[int], None] | None = None
) -> Sweep:
    """Asks every question in every arm; the lists of all late arms are compared with the fresh one's.

    `progress` is told how many of the folder's events are done.
    """
    ways = [*held.ask.slots, POPULAR]
    late = [arm for arm in arms if arm != FRESH]
    first = list_name(FRESH, ways[0])
    others = [name for arm, way in product(arms, ways) if (name := list_name(arm, way)) != first]
    pairs = [(list_name(arm, way), list_name(FRESH, way)) for arm, way in product(late, ways)]
    run = Sweep(held, model, arms, Comparison([first], others, held.ask.ks, pairs=pairs, sliced=False))
    run.run(progress)
    return run


def list_name(arm: Arm, way: str) -> str:
    """How an arm's list is called in the comparison: `user 10s: next`, and `next` with no delay."""
    return way if arm == FRESH else f"{arm.name}: {way}"


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
        rankers: Sequence[Ranker] = (),
        baskets: bool = False,
    ) -> None:
        if FRESH not in arms:
            raise ValueError("a sweep is read against what knows everything; put FRESH among the arms")
        self.arms, self.comparison, self._rankers, self._baskets = list(arms), comparison, rankers, baskets
        self._held, self._items = held, held.items
        contexts = ContextTimeline(held.folder.contexts)
        self._answers = None if model is None else ModelAnswers(model, held, contexts)
        self._apply = held.applier(ModelConfig() if model is None else model.encoder.model.config)
        self._users: dict[str, DelayedUser] = {}
        self._late = any(delay != NOW for arm in arms for delay in (arm.user, arm.seen))
        shared = model is not None and model.weights.popularity > 0
        delays = {arm.popularity for arm in arms}
        self._popularity = DelayedPopularity(len(held.items.item_ids), delays, held.ask.baseline_ms, shared)
        self._all_time = RecentPopularity(None)
        self._counts_all_time = ALL_TIME in comparison.outcomes.names
        self._sources = Sources(held, self._apply, self._popularity, contexts)
        self._batch: dict[str, HeldOutQuestion] = {}  # by user
        self.targets: Counter[str] = Counter()  # those that no list could hold, by reason

    @property
    def catalogue_size(self) -> int:
        """Items that could be shown at the end."""
        return self._items.size

    @property
    def skipped(self) -> dict[str, int]:
        """Events that no question was asked about, by reason."""
        return dict(self._held.selection.skipped)

    def run(self, progress: Callable[[int], None] | None = None) -> None:
        """Goes through the whole folder."""
        for now_ms, event in self._held.events(progress):
            self._take(now_ms, event)
        self._answer()

    def _take(self, now_ms: int, event: UserEvent) -> None:
        """Asks about a click, then applies it; profiles and forgets are only applied."""
        user = self._users.setdefault(event.user_id, DelayedUser(self._late))
        for item_id, shown in self._items.arrive(now_ms):
            self._popularity.set_candidate(item_id, shown)
            self._all_time.set_candidate(item_id, shown)
        if isinstance(event, Click):
            (self._in_basket if self._baskets else self._alone)(event, now_ms, user)
            if self._held.selection.is_choice(event):
                self._choose(event, now_ms)
        user.take(now_ms, event, self._apply)

    def _choose(self, click: Click, now_ms: int) -> None:
        row, weight = self._items.row.get(click.item_id), self._held.kind_weights[click.kind]
        self._popularity.add(Choice(now_ms, click.item_id, row, weight, click.location))
        self._all_time.add(click.item_id, now_ms)

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
            state = self._now(user, now_ms)
            question.facts = self._held.facts(click, state, now_ms, chosen, question.events)
        question.targets.add(click.item_id)

    def _answer(self, before_ms: int | None = None) -> None:
        """Ranks and scores the questions that wait, or those of them that were asked before a time."""
        waiting = {u: q for u, q in self._batch.items() if before_ms is not None and q.now_ms >= before_ms}
        questions = [question for user, question in self._batch.items() if user not in waiting]
        self._batch = waiting
        if self._answers is not None:
            self._answers.rank(questions)
        fresh = self.arms.index(FRESH)
        others = rank_fresh(self._rankers, questions, [question.popular[fresh] for question in questions], self._held)
        for question, ranked in zip(questions, others, strict=True):
            for target in question.targets:
                if not self._items.can_show(target, question.now_ms):
                    self.targets["not to be shown" if target in self._items.row else "not in the catalogue"] += 1
            if question.facts is not None:  # else nothing in the basket was new
                self.comparison.add(ranked | self._lists(question), question.targets, question.facts)

    def _lists(self, question: HeldOutQuestion) -> dict[str, list[str]]:
        """The lists of all arms, and of all-time popularity."""
        found = {ALL_TIME: question.all_time}
        slots = self._held.ask.slots if self._answers is not None else ()
        for arm, known, popular in zip(self.arms, question.known, question.popular, strict=True):
            for slot in slots:
                found[list_name(arm, slot)] = popular if known is None else known.lists[slot]
            found[list_name(arm, POPULAR)] = popular
        return found

    def _ask(self, click: Click, now_ms: int, user: DelayedUser) -> HeldOutQuestion:
        """A question that waits for its answer, with what each arm knows now."""
        moment = Moment(self._sources, click.user_id, user, click.location, now_ms)
        seen = moment.seen(FRESH)
        question = self._batch[click.user_id] = HeldOutQuestion(
            now_ms,
            len(moment.state.items),
            [None if self._answers is None else moment.knowledge(arm) for arm in self.arms],
            [moment.popular(arm) for arm in self.arms],
            self._all_time.top(max(self._held.ask.ks), now_ms, seen | moment.outside) if self._counts_all_time else [],
            moment.history(seen) if self._rankers else None,
        )
        return question

    def _now(self, user: DelayedUser, now_ms: int) -> UserState:
        return user.view(NOW, now_ms, self._apply).state
