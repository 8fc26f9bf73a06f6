"""Applies records to the live state, as the one pipeline of the worker, of replay and of the tests.

Knows records, positions and leases, not how records arrive: a transport (Kafka) or a player hands batches to `apply`.
Every batch ends in one atomic write per topic and partition; after an error the same batch can be applied again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry

from index.state.keys import ITEMS_TAG
from index.state.records import MODELS
from index.state.store import Claim, LiveStore, Op
from streams.events import (
    CATALOG,
    CLICKSTREAM,
    CONTEXT,
    EXPOSURES,
    ITEM_VECTORS,
    SCENARIO_RULES,
    USER_TOPICS,
    USERS,
    Exposure,
    Record,
    Rules,
    is_showings,
    tag_of,
    topics_of,
)
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.encoders import Encoders
from streams.pipeline.intake import DeadLetterSink
from streams.pipeline.item_ops import Completed, complete_items, context_ops, item_ops, scenario_ops
from streams.pipeline.lease import LeasedEngine, PartitionLease
from streams.pipeline.showings import ShowingsWriter
from streams.pipeline.user_state import EngineSettings
from streams.pipeline.user_writer import UserWriter
from streams.pipeline.write_plan import UserPlan, UserPlanner

_LANES = (
    frozenset({USERS, CLICKSTREAM}),
    frozenset({CATALOG, ITEM_VECTORS}),
    frozenset({CONTEXT}),
    frozenset({SCENARIO_RULES}),
    frozenset({EXPOSURES}),
)
_IDLE_EVERY = 5  # sweeps between two looks for idle users, each at one partition


class Engine(LeasedEngine[PartitionLease]):
    """Applies records to the live state."""

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
        super().__init__(store, rules, partitions, sink, registry)
        self.encoders = encoders if encoders is not None else Encoders()
        self.item_encoders = Encoders(*self.encoders)  # these, and those of models that have too few items for users
        self._announce = announce  # writes the deployment's facts and model into a store that does not have them
        self._unannounced = False
        self._sweeps, self._swept = 0, 0  # turns of the sweep, and of its part that looks for idle users
        self.settings = settings or EngineSettings()
        planner = UserPlanner(store, rules, self.encoders, self.settings, self.counts, self.metrics)
        self._one_at_a_time: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # of items, contexts and rules, by tag
        self._users = UserWriter(store, planner, self.encoders, self.settings, self.counts)
        self._showings = ShowingsWriter(store, self.settings, self.counts)

    @property
    def topics(self) -> Sequence[str]:
        return self.rules.consumed

    @property
    def lanes(self) -> Sequence[frozenset[str]]:
        """A flood of clicks does not delay a stock-out."""
        return [lane & set(self.topics) for lane in _LANES if lane & set(self.topics)]

    def tag_of(self, topic: str, partition: int) -> str:
        return tag_of(topic, partition)

    def topics_of(self, tag: str) -> Sequence[str]:
        return topics_of(tag)

    def waits(self, tag: str) -> bool:
        """Nobody waits for showings: a log of some weeks may have to be counted first."""
        return not is_showings(tag)

    async def after_claim(self, claim: Claim) -> None:
        """A new store, or one that was emptied, gets the deployment's facts and model."""
        self._unannounced |= not claim.previous_token
        if self._unannounced and self._announce is not None:
            await self._announce()
        self._unannounced = False

    async def open_lease(self, claim: Claim) -> PartitionLease:
        lease = PartitionLease(claim.tag, claim.token, dict(claim.positions), self.settings.cached_users)
        await (self._showings if is_showings(claim.tag) else self._users).open(lease)
        return lease

    async def release(self, tag: str) -> None:
        if self.leases.pop(tag, None) is not None:
            await self.encoders.drop_tag(tag)

    async def apply_parts(self, parts: Mapping[tuple[str, str], Sequence[Record]]) -> None:
        """Users first, then items, contexts and rules, then showings."""
        for topic in USER_TOPICS:
            await self._apply_users(topic, {tag: part for (name, tag), part in parts.items() if name == topic})
        for topic in (CATALOG, ITEM_VECTORS, CONTEXT, SCENARIO_RULES):
            tag = tag_of(topic, 0)
            if (topic, tag) in parts:
                await self._apply_single(topic, tag, self.next_records(topic, tag, parts[topic, tag]))
        for (topic, tag), part in parts.items():
            if topic == EXPOSURES:
                await self._apply_showings(tag, self.next_records(topic, tag, part))

    async def _apply_users(self, topic: str, parts: Mapping[str, Sequence[Record]]) -> None:
        """Clicks and profiles: validated, planned and written by partition, encoded in one batch."""
        due = [(self.leases[tag], records) for tag in parts if (records := self.next_records(topic, tag, parts[tag]))]
        plans = [UserPlan(lease, topic, records[-1].offset + 1) for lease, records in due]
        for plan, (_, records) in zip(plans, due, strict=True):
            plan.events = await self.intake.accept_users(records)
        if plans:
            await self._users.apply(plans)

    async def move(self, lease: PartitionLease, topic: str, offset: int) -> None:
        await self._users.pass_over(lease, topic, offset)

    async def sweep(self) -> None:
        """Re-encodes users whose items got their vectors after the click; now and then it removes idle users."""
        self._sweeps += 1
        await self.sweep_waiting()
        if self._sweeps % _IDLE_EVERY == 0:
            await self.sweep_idle()

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
