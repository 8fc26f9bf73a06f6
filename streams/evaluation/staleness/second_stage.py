"""Asks the second stage the questions of a sweep, by the serving code over live states that are as late as each arm.

A live state in memory for each delay applies the log up to what is known with it. So lists are those of production but
for promotions, which the first stage of a sweep leaves out too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import orjson

from encoder.inference.batching import EncodeRequest
from index.query.feedback import rated
from index.query.live_user import profile_location
from index.query.question import ContextView, Query, UserView
from index.query.recommend import answer_in_process, plan_searches
from index.query.second_stage import SecondStage
from index.state.records import Vector
from index.state.user_columns import UserState
from streams.evaluation.held_out import HeldOut
from streams.evaluation.outcomes import Outcomes
from streams.evaluation.rankers import OfflineModel
from streams.evaluation.staleness.delays import NOW, Arm, Delay
from streams.evaluation.staleness.sweep import SweptQuestion, list_name
from streams.events import CLICKSTREAM, USERS, Record
from streams.pipeline.engine import Engine
from streams.ranking.pools import ListPool, PoolRecorder
from streams.ranking.rows import TWO_STAGE, RankedRow
from streams.ranking.walk import ChoiceQuestion, ListQuestion, RankingWalk

_CHUNK = 512  # records applied at once
_UNKNOWN_ITEM = ""  # no item has this id: its token is one without a vector
Log = Callable[[], Iterable[Record]]


class _LateState(RankingWalk):
    """A live state that knows the log up to some place."""

    def __init__(self, engine: Engine, log: Iterable[Record], held: HeldOut, model: OfflineModel) -> None:
        super().__init__(engine, model.encoder, model.offset, model.weights, held.rules)
        self._log = iter(log)
        self._next = next(self._log, None)
        self._taken = 0  # records of users and clicks

    async def advance(self, delay: Delay, question: SweptQuestion) -> None:
        """Applies what is known with a delay when a question is asked."""
        cut_ms = delay.cut_ms(question.now_ms)
        while (record := self._next) is not None:
            own = record.topic in (USERS, CLICKSTREAM)
            if record.timestamp_ms > cut_ms or (delay == NOW and own and self._taken == question.place):
                break
            self._taken += own
            self._pending.append(record)
            if len(self._pending) >= _CHUNK:
                await self._flush()
            self._next = next(self._log, None)
        await self._flush()
        await self._refresh(cut_ms)

    async def user(self, question: SweptQuestion) -> UserState:
        """The user as known here."""
        state, _ = await self._read(ChoiceQuestion(0, question.now_ms, question.user_id, ""))
        return state

    async def context_known(self, question: SweptQuestion, location: str) -> ContextView:
        """The context of a place as known here; what has expired is always known to have. No promotions."""
        _, found = await self._read(ListQuestion(0, question.now_ms, question.user_id, (), location))
        return replace(found, promotions=())

    @property
    def stage(self) -> SecondStage:
        return self._stage


class SecondStageSweep:
    """The lists of a row in several arms, question by question.

    Args:
        log: everything that happened, from the beginning, each time it is called.
        engine: gives a new engine on a live state of its own, without an encoder.
    """

    def __init__(
        self,
        held: HeldOut,
        model: OfflineModel,
        row: RankedRow,
        log: Log,
        engine: Callable[[], Awaitable[Engine]],
    ) -> None:
        self._held, self._model, self._row, self._log, self._engine = held, model, row, log, engine
        self._kind_weights = [kind.weight for kind in held.rules.kinds]
        self._states: dict[Delay, _LateState] = {}
        self._made: dict[Hashable, object] = {}  # of one question, by what it was made from

    async def run(
        self,
        questions: Sequence[SweptQuestion],
        arms: Sequence[Arm],
        progress: Callable[[int, int], None] | None = None,
    ) -> Outcomes:
        """Outcomes of `questions` in their order, a list for each arm.

        `progress` is told how many of the folder's events are done, of how many.
        """
        names = [list_name(arm, TWO_STAGE) for arm in arms]
        trainings = {name: own for each in names for name, own in self._row.trainings(each).items()}
        parts = dict.fromkeys(delay for arm in arms for delay in _delays(arm))
        self._states = {
            delay: _LateState(await self._engine(), self._log(), self._held, self._model) for delay in parts
        }
        found: dict[int, dict[str, list[str]]] = {}
        events = self._held.folder.events
        for at in sorted(range(len(questions)), key=lambda at: questions[at].place):
            found[at] = await self._ask(questions[at], arms)
            if progress is not None:
                progress(events.before(questions[at].now_ms), len(events))
        outcomes = Outcomes(names, trainings)
        for at, question in enumerate(questions):
            outcomes.add(found[at], question.targets, question.facts)
        return outcomes

    async def _ask(self, question: SweptQuestion, arms: Sequence[Arm]) -> dict[str, list[str]]:
        for delay, state in self._states.items():
            await state.advance(delay, question)
        self._made, found = {}, dict[str, list[str]]()
        for arm in arms:
            pool = await self._pool(question, arm)
            found |= self._row.lists(pool, max(self._held.ask.ks), list_name(arm, TWO_STAGE))
        return found

    async def _pool(self, question: SweptQuestion, arm: Arm) -> ListPool:
        """What the list of an arm is made of; arms that know the same share it."""
        now_ms, ask, weights = question.now_ms, self._held.ask, self._model.weights
        state = await self._states[arm.user].user(question)
        seen = self._held.left_out(await self._states[arm.seen].user(question), now_ms)
        location = question.location or profile_location(state.profile)
        context = await self._states[arm.context].context_known(question, location)
        items, counts = self._states[arm.vectors].stage, self._states[arm.popularity].stage
        known = _known(state), seen, location, context.ts_ms, arm.vectors, arm.popularity
        if known not in self._made:
            stage = replace(items, popularity=counts.popularity)
            view = UserView(self._vectors_of(state, stage), seen, {}, rated(state, self._kind_weights), state)
            query, recorder = Query(max(ask.ks), ask.slots[0], include_seen=ask.repeats), PoolRecorder(stage)
            about = view, stage.catalogue, context, stage.popularity, now_ms, weights
            plan = plan_searches(query, *about, ranker=recorder)
            answer_in_process(plan)
            self._made[known] = recorder.pool(plan)
        pool = self._made[known]
        assert isinstance(pool, ListPool)
        return pool

    def _vectors_of(self, state: UserState, stage: SecondStage) -> Vector | None:
        """h_next and h_gen [2, d]; what has no vector yet is a token without one. None of a cold user."""
        if not state.items and not state.profile:
            return None
        there = stage.catalogue.places(state.items) >= 0
        known = "vectors", _known(state), there.tobytes()
        if known not in self._made:
            items = [item if has else _UNKNOWN_ITEM for item, has in zip(state.items, there.tolist(), strict=True)]
            profile = orjson.loads(state.profile) if state.profile else None
            request = EncodeRequest(0, items, list(state.kinds), list(state.ts_ms), profile, 0)
            self._made[known] = self._model.encoder.encode_whole([request]).vectors[0].copy()
        found = self._made[known]
        assert isinstance(found, np.ndarray)
        return found


def _delays(arm: Arm) -> tuple[Delay, ...]:
    return arm.user, arm.seen, arm.vectors, arm.context, arm.popularity


def _known(state: UserState) -> Hashable:
    """What vectors and features of a user follow from."""
    return tuple(state.items), tuple(state.kinds), tuple(state.ts_ms), state.profile
