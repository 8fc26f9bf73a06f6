"""Applies a log to a live state in memory and stops at each list, to compute its features by the serving code.

Ask first, then apply: what happens in the millisecond of the question, or later, is not known yet. Users are encoded
when they are asked about, so that a long log costs no encoding.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson

from context.offsets import ContextOffset
from encoder.inference.batching import EncodeRequest
from encoder.inference.incremental import IncrementalEncoder
from index.items.catalogue import Catalogue
from index.items.follower import ItemFollower
from index.items.search import Labels
from index.query.counts.popularity import Popularity
from index.query.feedback import NegativeFeedback, rated
from index.query.live_user import profile_location
from index.query.model import RequestedList
from index.query.question import ContextView, Query, UserView, Weights
from index.query.recommend import answer_in_process, plan_searches, seen_items
from index.query.rerank import known_labels, plan_list, rank_list
from index.query.second_stage import Asker, GivenList, SecondStage
from index.ranking.features import Floats, event_classes
from index.state.keys import partition_of, partition_tag
from index.state.records import (
    PROFILE,
    STATE,
    ItemRecord,
    Vector,
    decode_vectors,
    encode_vectors,
    load_context,
)
from index.state.store import LiveStore
from index.state.stored_user import load_user
from index.state.user_columns import UserState
from streams.events import CATALOG, CONTEXT, EXPOSURES, ITEM_VECTORS, TOPIC_ORDER, Record, Rules
from streams.pipeline.engine import Engine
from streams.pipeline.lease import GapError
from streams.pipeline.user_state import BUCKET_MS
from streams.ranking.pools import ListPool, PoolRecorder

_CHUNK = 512  # records applied at once while nothing is asked
_REFRESH_MS = 60_000  # an API process sums popularity every few seconds; here: not more often than this …
_REFRESH_EVENTS = 25  # … or than after so many events
_ORDER = {topic: rank for rank, topic in enumerate((CATALOG, ITEM_VECTORS, CONTEXT, *TOPIC_ORDER, EXPOSURES))}


@dataclass(frozen=True, slots=True)
class ListQuestion:
    """A list of items to order for a user, as of just before `ts_ms`; `number` tells it from others.

    `positions` are places on the provider's list, None where they are not known.
    """

    number: int
    ts_ms: int
    user_id: str
    item_ids: Sequence[str]
    location: str = ""
    positions: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """An item that a user is about to choose: from what list, just before `ts_ms`?

    From what is retrieved for them, or from what they are `shown`, at these `positions`.
    """

    number: int
    ts_ms: int
    user_id: str
    item_id: str
    location: str = ""
    shown: Sequence[str] | None = None
    positions: Sequence[float] | None = None


Question = ListQuestion | ChoiceQuestion


@dataclass(frozen=True, slots=True)
class AskedList:
    """A question with its features [m, F]; `cold`: nothing at all was known of the user."""

    question: ListQuestion
    features: Floats
    cold: bool


@dataclass(frozen=True, slots=True)
class AskedPool:
    """A question with its list, as far as items are known; `place` is that of the choice, −1 where it is not there."""

    question: ChoiceQuestion
    pool: ListPool
    place: int


class RankingWalk:
    """One pass over a log; `seen` counts choices of what their users had seen, which no list holds.

    Args:
        engine: applies records; it needs no encoder.
        encoder: of the model whose vectors are features; it is given the items.
        slot: which list is asked for.
        stored: user vectors are those of the live state, in half precision where it has them so.
    """

    def __init__(
        self,
        engine: Engine,
        encoder: IncrementalEncoder,
        offset: ContextOffset,
        weights: Weights,
        rules: Rules,
        slot: RequestedList = "mixed",
        stored: bool = False,
    ) -> None:
        self._engine, self._encoder, self._offset = engine, encoder, offset
        self._store: LiveStore = engine.store
        self._catalogue = Catalogue("", encoder.model.config.d_model)
        self._popularity = Popularity(self._store, kinds=True, showings=rules.showings)
        self._follower = ItemFollower(self._store, "", _Tower(self._catalogue, encoder), text_vectors=True)
        self._weights, self._kind_weights = weights, [kind.weight for kind in rules.kinds]
        classes = event_classes(self._kind_weights, [kind.remembered for kind in rules.kinds])
        self._stage = SecondStage(self._catalogue, self._popularity, classes)
        self._pending: list[Record] = []
        self._refreshed_ms, self._since = -1, 0
        self._slot: RequestedList = slot
        self._query, self.seen = Query(slot=slot), 0
        self._rounded = stored and engine.settings.half_vectors

    async def run(
        self,
        records: Iterable[Record],
        questions: Iterable[Question],
        progress: Callable[[int], None] | None = None,
    ) -> AsyncIterator[AskedList | AskedPool]:
        """The lists with their features, in the order of time; both come sorted by it.

        Records after the last question are not read. `progress` is told how many questions are done.
        """
        coming = iter(records)
        record = next(coming, None)
        for done, question in enumerate(questions):
            while record is not None and record.timestamp_ms < question.ts_ms:
                self._pending.append(record)
                if len(self._pending) >= _CHUNK:
                    await self._flush()
                record = next(coming, None)
            await self._flush()
            await self._refresh(question.ts_ms)
            state, context = await self._read(question)
            if isinstance(question, ListQuestion):
                yield self.ask(question, state, context)
            elif question.shown is None and self._has_seen(state, question):
                self.seen += 1
            else:
                yield self._pool(question, state, context)
            if progress is not None:
                progress(done + 1)

    async def look(self, now_ms: int) -> None:
        """Takes over all items and counts that the engine has written, and weighs these as of `now_ms`."""
        await self._follower.catch_up()
        await self._popularity.refresh(self._engine.partitions, self._engine.settings.bucket_ms, now_ms)

    def context(self, location: str, record: Mapping[str, Any] | None, now_ms: int) -> ContextView:
        """What the model makes of a location's record."""
        return ContextView.at(location, record, now_ms, self._offset)

    def ask(self, question: ListQuestion, state: UserState, context: ContextView) -> AskedList:
        """The features of a list for a user in this state, by the items and counts that were taken over."""
        known = _is_known(state)
        labels = self._catalogue.places(question.item_ids)
        given = GivenList(None if question.positions is None else np.array(question.positions, np.float32))
        user = self._vectors(state) if known else None
        asker = Asker(state, user, question.location, context.delta, question.ts_ms)
        vectors = self._stage.vectors_of(labels)
        negative = self._negative(labels, vectors, asker)
        return AskedList(question, self._stage.features(labels, vectors, asker, negative, given), not known)

    def _pool(self, question: ChoiceQuestion, state: UserState, context: ContextView) -> AskedPool:
        user = UserView.of(self._vectors(state) if _is_known(state) else None, state, self._kind_weights)
        about = user, self._catalogue, context, self._popularity, question.ts_ms, self._weights
        if question.shown is None:
            recorder = PoolRecorder(self._stage)
            plan = plan_searches(self._query, *about, ranker=recorder)
            answer_in_process(plan)
        else:
            labels, places = known_labels(self._catalogue, question.shown)
            positions = None if question.positions is None else np.array(question.positions, np.float32)[places]
            recorder = PoolRecorder(self._stage, GivenList(positions))
            plan = plan_list(labels, self._slot, *about, recorder)
            rank_list(plan, labels)
        pool = recorder.pool(plan)
        return AskedPool(question, pool, pool.place(question.item_id))

    def _has_seen(self, state: UserState, question: ChoiceQuestion) -> bool:
        return question.item_id in seen_items(state.items, state.purchases, question.ts_ms, self._weights)

    def _negative(self, labels: Labels, vectors: Vector, asker: Asker) -> Floats | None:
        """What negative feedback takes off first-stage scores [m]."""
        events, weights, size = rated(asker.state, self._kind_weights), self._weights, self._catalogue.size
        if events is None or not weights.negative:
            return None
        feedback = NegativeFeedback.of(
            events, self._catalogue, size, asker.now_ms, weights.negative, weights.negative_ms
        )
        if feedback is None:
            return None
        away = feedback.away(self._catalogue.search.vectors(feedback.labels))
        return np.asarray(feedback.part(vectors @ away, labels), np.float32)

    async def _read(self, question: Question) -> tuple[UserState, ContextView]:
        """The user, and the context where they are: as the question says, of a choice else as the profile says."""
        keys = self._store.keys
        tag = partition_tag(partition_of(question.user_id, self._engine.partitions))
        (fields,) = await self._store.read([(keys.user(tag, question.user_id), (STATE, PROFILE))])
        state, location = load_user(fields), question.location
        if isinstance(question, ChoiceQuestion):
            location = location or profile_location(state.profile)
        ((record,),) = await self._store.read([(keys.contexts(), [location])])
        return state, self.context(location, load_context(record), question.ts_ms)

    def _vectors(self, state: UserState) -> Vector:
        profile = orjson.loads(state.profile) if state.profile else None
        request = EncodeRequest(0, state.items, state.kinds, state.ts_ms, profile, 0)
        found: Vector = self._encoder.encode_whole([request]).vectors[0]
        return decode_vectors(encode_vectors(found), *found.shape) if self._rounded else found

    async def _refresh(self, now_ms: int) -> None:
        elapsed = self._refreshed_ms < 0 or now_ms - self._refreshed_ms >= _REFRESH_MS
        if self._refreshed_ms < 0 or (elapsed and self._since >= _REFRESH_EVENTS):
            await self._popularity.refresh(self._engine.partitions, BUCKET_MS, now_ms)
            self._refreshed_ms, self._since = now_ms, 0

    async def _flush(self) -> None:
        """Applies what is pending, items first, as they would be known by then."""
        batch, self._pending = sorted(self._pending, key=lambda record: _ORDER[record.topic]), []
        self._since += sum(record.topic != EXPOSURES for record in batch)
        items = [record for record in batch if record.topic in (CATALOG, ITEM_VECTORS)]
        for part in (items, batch[len(items) :]):
            while part:
                try:
                    await self._engine.apply(part)
                    break
                except GapError:
                    continue  # a log that begins later is accepted at the second look
        if items:
            await self._follower.catch_up()


def _is_known(state: UserState) -> bool:
    return bool(state.items or state.profile)


class _Tower:
    """Fills catalogue and encoder alike: retrieval vectors are made of the stored text vectors."""

    def __init__(self, catalogue: Catalogue, encoder: IncrementalEncoder) -> None:
        self._catalogue, self._items = catalogue, encoder.items

    def apply(self, records: Sequence[ItemRecord]) -> None:
        known = [(record, record.text_vector) for record in records if record.text_vector is not None]
        made: dict[str, Vector] = {}
        if known:
            ids = [record.item_id for record, _ in known]
            self._items.put(ids, np.stack([vector for _, vector in known]), [record.tags for record, _ in known])
            made = dict(zip(ids, self._items.retrieval(ids), strict=True))
        self._catalogue.apply([replace(record, retrieval=made.get(record.item_id)) for record in records])

    def reset(self, item_ids: Set[str]) -> None:
        self._catalogue.reset(item_ids)


def in_time(questions: Iterable[Question]) -> Iterator[Question]:
    """Questions by time, as `RankingWalk.run` wants them."""
    return iter(sorted(questions, key=lambda question: (question.ts_ms, question.number)))
