"""Applies records to the live state, as the one pipeline of the worker, of replay and of the tests.

Knows records, positions and leases, not how records arrive: a transport (Kafka) or a player hands batches to `apply`.
Every batch ends in one atomic write per topic and partition; after an error the same batch can be applied again.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry

from index.state.keys import ITEMS_TAG
from index.state.records import MODELS
from index.state.store import ClaimRefusedError, FencedError, LiveStore, LogIdentity, Op
from streams.events import (
    CATALOG,
    CLICKSTREAM,
    CONTEXT,
    EXPOSURES,
    ITEM_VECTORS,
    SCENARIO_RULES,
    USER_TOPICS,
    Exposure,
    MalformedError,
    Record,
    Rules,
    is_showings,
    tag_of,
)
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.encoders import Encoders
from streams.pipeline.intake import DeadLetterSink, Intake
from streams.pipeline.item_ops import Completed, complete_items, context_ops, item_ops, scenario_ops
from streams.pipeline.lease import PartitionLease
from streams.pipeline.metrics import PipelineCounters, WorkerMetrics
from streams.pipeline.showings import ShowingsWriter
from streams.pipeline.user_state import EngineSettings
from streams.pipeline.user_writer import UserWriter
from streams.pipeline.write_plan import UserPlan, UserPlanner

log = logging.getLogger(__name__)


class GapError(Exception):
    """The first record after a claim or seek does not continue the position: it is to be read once more from there."""

    def __init__(self, topic: str, partition: int, position: int, offset: int) -> None:
        super().__init__(f"{topic}[{partition}] continues at {offset}, position is {position}: reading it once more")
        self.topic, self.partition, self.position = topic, partition, position


class Engine:
    """Applies records to the live state; calls with different tags may be concurrent, those with the same one not."""

    def __init__(
        self,
        store: LiveStore,
        rules: Rules,
        partitions: int,
        sink: DeadLetterSink,
        encoders: Encoders | None = None,
        settings: EngineSettings | None = None,
        announce: Callable[[], Awaitable[None]] | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self.store, self.rules, self.partitions, self.sink = store, rules, partitions, sink
        self.encoders = encoders if encoders is not None else Encoders()
        self.item_encoders = Encoders(*self.encoders)  # these, and those of models that have too few items for users
        self._announce = announce  # writes the deployment's facts and model into a store that does not have them
        self._unannounced = False
        self._swept = 0  # turns of the idle sweep
        self.settings = settings or EngineSettings()
        self.leases: dict[str, PartitionLease] = {}
        self.counts = PipelineCounters()
        self.metrics = WorkerMetrics(registry or CollectorRegistry(), self.counts)
        self.intake = Intake(rules, partitions, sink, self.counts)
        planner = UserPlanner(store, rules, self.encoders, self.settings, self.counts, self.metrics)
        self._one_at_a_time: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # of items, contexts and rules, by tag
        self._users = UserWriter(store, planner, self.encoders, self.settings, self.counts)
        self._showings = ShowingsWriter(store, self.settings, self.counts)

    async def claim(
        self, tag: str, generation: int, logs: Mapping[str, LogIdentity], group: str = ""
    ) -> PartitionLease:
        """Takes a tag and reads its positions; caches survive when nobody else held it in between.

        Raises ClaimRefusedError, StoreUnavailableError.
        """
        claim = await self.store.claim(tag, uuid.uuid4().hex, generation, logs, group)
        self._unannounced |= not claim.previous_token  # a new store, or one that was emptied
        if self._unannounced and self._announce is not None:
            await self._announce()
        self._unannounced = False
        lease = self.leases.get(tag)
        # What was written without moving a position, and whose answer was lost, may be there: the mark of models.
        is_known = lease is not None and not lease.unsure and lease.positions == claim.positions
        if lease is not None and is_known and claim.previous_token == lease.token:
            lease.token = claim.token
        else:
            lease = PartitionLease(tag, claim.token, dict(claim.positions), self.settings.cached_users)
            await (self._showings if is_showings(tag) else self._users).open(lease)
            await self.release(tag)
        lease.generation, lease.logs, lease.group = generation, logs, group
        lease.fresh, lease.reread, lease.unsure = set(logs), set(), False
        self.counts.add("claims")
        self.counts.add("new_logs", len(claim.new_logs))
        self.leases[tag] = lease
        return lease

    async def release(self, tag: str) -> None:
        """Forgets a tag and everything cached for it."""
        if self.leases.pop(tag, None) is not None:
            await self.encoders.drop_tag(tag)

    async def apply(self, records: Sequence[Record]) -> None:
        """Applies a batch; within a topic and partition the records are in offset order.

        Raises:
            StoreUnavailableError: unsure whether it was written; call again with the same batch.
            FencedError: somebody else owns a tag, or its position moved: claim it anew.
            GapError: seek to the position and read on from there.
            KeyError: a record belongs to a tag that was not claimed.
        """
        batches: dict[tuple[str, str], list[Record]] = defaultdict(list)
        for record in records:
            batches[record.topic, tag_of(record.topic, record.partition)].append(record)
        for tag in dict.fromkeys(tag for _, tag in batches):
            if self.leases[tag].unsure:
                await self._renew(tag)
        for topic in USER_TOPICS:
            await self._apply_users(topic, {tag: part for (name, tag), part in batches.items() if name == topic})
        for topic in (CATALOG, ITEM_VECTORS, CONTEXT, SCENARIO_RULES):
            tag = tag_of(topic, 0)
            if (topic, tag) in batches:
                await self._apply_single(topic, tag, self._next(topic, tag, batches[topic, tag]))
        for (topic, tag), part in batches.items():
            if topic == EXPOSURES:
                await self._apply_showings(tag, self._next(topic, tag, part))

    async def _apply_users(self, topic: str, parts: Mapping[str, Sequence[Record]]) -> None:
        """Clicks and profiles: validated, planned and written by partition, encoded in one batch."""
        due = [(self.leases[tag], records) for tag in parts if (records := self._next(topic, tag, parts[tag]))]
        plans = [UserPlan(lease, topic, records[-1].offset + 1) for lease, records in due]
        for plan, (_, records) in zip(plans, due, strict=True):
            plan.events = await self.intake.accept_users(records)
        if plans:
            await self._users.apply(plans)

    async def _renew(self, tag: str) -> None:
        """Claims anew after a write of unknown outcome: a late arrival of it is fenced, and how far it got is read."""
        before = self.leases[tag]
        positions = dict(before.positions)
        first = next(iter(positions))
        try:
            lease = await self.claim(tag, before.generation, before.logs, before.group)
        except ClaimRefusedError as error:
            raise FencedError(tag, first, "token", positions[first]) from error
        for topic, stored in lease.positions.items():
            if stored < positions[topic]:  # the store lost writes that it had confirmed: read on from there
                raise FencedError(tag, topic, "position", stored)

    async def skip(self, record: Record, error: MalformedError) -> None:
        """Dead-letters a record that could not be applied because of a defect, and moves the position past it."""
        await self.sink.dead_letter(record, error)
        self.counts.add_malformed(record.topic, error.field)
        lease = self.leases.get(tag_of(record.topic, record.partition))
        if lease is not None and record.offset >= lease.positions[record.topic]:
            await lease.commit(self.store, record.topic, record.offset + 1, [])

    async def pass_over(self, topic: str, tag: str, offset: int) -> None:
        """Moves a position past what holds nothing to apply. Raises FencedError, StoreUnavailableError."""
        lease = self.leases.get(tag)
        if lease is not None and not lease.unsure and offset > lease.positions[topic]:
            log.info("%s: %s from %d to %d holds nothing to apply", tag, topic, lease.positions[topic], offset)
            self.counts.add("passed_over", offset - lease.positions[topic])
            await self._users.pass_over(lease, topic, offset)

    async def sweep_waiting(self) -> int:
        """Re-encodes users that waited for the vector of an item that is known now; returns how many."""
        return await self._users.sweep_waiting(self._user_leases())

    async def sweep_idle(self) -> int:
        """Removes some idle users of one partition, another one with each call; returns how many."""
        leases = self._user_leases()
        if not leases:
            return 0
        self._swept += 1
        return await self._users.sweep_idle(leases[self._swept % len(leases)])

    async def replace_encoders(
        self, threads: Sequence[EncoderThread], items_only: Sequence[EncoderThread] = ()
    ) -> list[EncoderThread]:
        """Writes vectors of other models from the next batch on, those of `items_only` for no users.

        Returns the encoders that nobody uses any more.
        """
        before, now = list(self.item_encoders), [*threads, *items_only]
        async with self._one_at_a_time[ITEMS_TAG]:
            await self._users.replace_encoders(threads)
            self.item_encoders.replace(now)
        return [thread for thread in before if thread not in now]

    async def fill_users(self, lease: PartitionLease, missing: Mapping[str, frozenset[str]]) -> int:
        """Gives users of a partition the vectors that they lack, by version; returns how many got some.

        As what follows it changes no state and no position. Raises StoreUnavailableError, FencedError.
        """
        return await self._users.fill(lease, missing)

    async def fill_items(self, lease: PartitionLease, item_ids: Sequence[str], *, logged: bool) -> Completed:
        """Gives items the retrieval vectors that they lack, from their stored text vectors.

        Vectors of other models and embedders than ours go. Followers of the item log get to know of it if it is
        `logged`.
        """
        async with self._one_at_a_time[lease.tag]:
            completed, ops = await complete_items(self.store, item_ids, self.item_encoders, logged=logged)
            await self._commit(lease, CATALOG, lease.positions[CATALOG], ops)
            return completed

    async def keep_vectors(self, lease: PartitionLease, user_ids: Sequence[str]) -> None:
        """Removes vectors of other models than ours from users of a partition."""
        await self._users.keep_vectors(lease, user_ids)

    async def mark(self, lease: PartitionLease, mark: str) -> None:
        """Notes at a tag whose vectors all of its users or items have (`Encoders.mark`)."""
        op = Op("hset", self.store.keys.owner(lease.tag), {MODELS: mark.encode()})
        if lease.tag == ITEMS_TAG:
            async with self._one_at_a_time[lease.tag]:
                await self._commit(lease, CATALOG, lease.positions[CATALOG], [op], mark)
        else:
            await self._users.note(lease, [op])
            lease.models = mark

    def _user_leases(self) -> list[PartitionLease]:
        return [lease for lease in self.leases.values() if CLICKSTREAM in lease.positions and not lease.unsure]

    def _next(self, topic: str, tag: str, records: Sequence[Record]) -> list[Record]:
        """The records at or after the position; a first one that does not continue it is not believed at once."""
        lease = self.leases[tag]
        position = lease.positions[topic]
        due = [record for record in records if record.offset >= position]
        self.counts.add("redelivered", len(records) - len(due))
        if not due:
            return due
        if due[0].offset > position and topic in lease.fresh and topic not in lease.reread:
            lease.reread.add(topic)
            raise GapError(topic, due[0].partition, position, due[0].offset)
        if due[0].offset > position:
            self.counts.add("gaps")
            log.info("%s: offsets %d to %d are not in the log", tag, position, due[0].offset)
        lease.fresh.discard(topic)
        return due

    async def _apply_single(self, topic: str, tag: str, records: Sequence[Record]) -> None:
        """Items, contexts and rules: last write wins by offset, one commit for the batch."""
        if not records:
            return
        accepted = await self.intake.accept(records)
        events = [event for _, event in accepted]
        lease = self.leases[tag]
        async with self._one_at_a_time[tag]:
            keys = self.store.keys
            if topic == CONTEXT:
                ops = context_ops(events, keys)
            elif topic == SCENARIO_RULES:
                ops = scenario_ops(accepted, keys)
            else:
                ops = await item_ops(events, keys, self.item_encoders)
            await self._commit(lease, topic, records[-1].offset + 1, ops)
        self.counts.add_applied(topic, len(events))

    async def _apply_showings(self, tag: str, records: Sequence[Record]) -> None:
        """Lists that were shown: counted where they lie, as nothing is kept of their users."""
        if records:
            shown = [event for _, event in await self.intake.accept(records) if isinstance(event, Exposure)]
            await self._showings.apply(self.leases[tag], shown, records[-1].offset + 1)

    async def _commit(
        self, lease: PartitionLease, topic: str, offset: int, ops: Sequence[Op], models: str | None = None
    ) -> None:
        """Writes items, contexts or rules; `models` is the mark to be kept, else what becomes of it by writing."""
        if models is None:
            models = self.item_encoders.written(lease.models)
            noted = [Op("hset", self.store.keys.owner(lease.tag), {MODELS: models.encode()})]
            ops = [*ops, *(noted if models != lease.models else [])]
        try:
            await lease.commit(self.store, topic, offset, ops)
        except BaseException:
            lease.unsure = True
            raise
        lease.models = models
