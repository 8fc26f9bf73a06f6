"""Holds what a process has of claimed tags, which are tokens, positions, and users it need not read again.

Everything here is disposable: it can be rebuilt from the store, and is dropped when a write was refused or unsure.
"""

from __future__ import annotations

import logging
import uuid
from abc import ABC, abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry

from index.state.store import Claim, ClaimRefusedError, Commit, FencedError, LiveStore, LogIdentity, Op
from index.state.user_columns import UserState
from streams.events import MalformedError, Record, Rules
from streams.pipeline.intake import DeadLetterSink, Intake
from streams.pipeline.metrics import PipelineCounters, WorkerMetrics
from streams.pipeline.partition_clock import PartitionClock

log = logging.getLogger(__name__)


class GapError(Exception):
    """The first record after a claim or seek does not continue the position: it is to be read once more from there."""

    def __init__(self, topic: str, partition: int, position: int, offset: int) -> None:
        super().__init__(f"{topic}[{partition}] continues at {offset}, position is {position}: reading it once more")
        self.topic, self.partition, self.position = topic, partition, position


@dataclass(slots=True)
class PartitionLease:
    """The right to write `tag` under `token`, with the caches that are valid only under it."""

    tag: str
    token: str
    positions: dict[str, int]
    cached_users: int
    generation: int = 0
    logs: Mapping[str, LogIdentity] = field(default_factory=dict)
    group: str = ""
    unsure: bool = False  # a write failed: whether it was applied is known after the next claim
    caught_up: bool = False  # as of the last look at the logs' ends
    fresh: set[str] = field(default_factory=set)  # topics without a record since the claim or the last seek
    reread: set[str] = field(default_factory=set)  # sought once: their first record did not continue the position
    users: OrderedDict[str, UserState] = field(default_factory=OrderedDict)
    # Users whose window holds items without a vector, and which by model version; empty where that is not known.
    waiting: dict[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    clock: PartitionClock = field(default_factory=PartitionClock)
    idle_ms: int = -1  # for how long users are kept, as stored beside the clock; -1 while it is not
    buckets: set[int] = field(default_factory=set)  # buckets of popularity, or of showings, that exist
    pair_buckets: set[int] = field(default_factory=set)  # buckets of what was bought together that exist
    lists: dict[str, int] = field(default_factory=dict)  # of showings: hashes of the latest lists and their numbers
    models: str = ""  # whose vectors all users or items of the tag have, and, after `~`, some; "" is not known
    rules: str = ""  # versions of the rules that the partition's events were applied under, as stored

    def remember(self, user_id: str, state: UserState) -> None:
        self.users[user_id] = state
        self.users.move_to_end(user_id)

    def trim(self) -> None:
        """Keeps the most recently used users; called when no batch is in work."""
        while len(self.users) > self.cached_users:
            self.users.popitem(last=False)

    async def commit(self, store: LiveStore, topic: str, position: int, ops: Sequence[Op]) -> None:
        """Writes `ops` and moves the topic's position, atomically. Raises FencedError, StoreUnavailableError."""
        beside = {other: at for other, at in self.positions.items() if other != topic}
        await store.commit([Commit(self.tag, self.token, topic, self.positions[topic], position, ops, beside)])
        self.positions[topic] = position


Lease = TypeVar("Lease", bound=PartitionLease)


class LeasedEngine(ABC, Generic[Lease]):
    """What reads records under leases: a transport hands it batches, and every one ends in writes at their positions.

    Calls with different tags may be concurrent, those with the same one not.
    """

    def __init__(
        self, store: LiveStore, rules: Rules, partitions: int, sink: DeadLetterSink, registry: CollectorRegistry | None
    ) -> None:
        self.store, self.rules, self.partitions, self.sink = store, rules, partitions, sink
        self.leases: dict[str, Lease] = {}
        self.counts = PipelineCounters()
        self.metrics = WorkerMetrics(registry or CollectorRegistry(), self.counts)
        self.intake = Intake(rules, partitions, sink, self.counts)

    @property
    @abstractmethod
    def topics(self) -> Sequence[str]:
        """The topics that are read."""

    @property
    @abstractmethod
    def lanes(self) -> Sequence[frozenset[str]]:
        """The topics of each lane: records wait in it for those before them, and not for those of other lanes."""

    @abstractmethod
    def tag_of(self, topic: str, partition: int) -> str:
        """The unit of atomic writing that a topic's partition belongs to."""

    @abstractmethod
    def topics_of(self, tag: str) -> Sequence[str]:
        """The topics whose positions are kept under a tag."""

    @abstractmethod
    async def open_lease(self, claim: Claim) -> Lease:
        """Reads what has to be known of a tag that somebody else held."""

    @abstractmethod
    async def apply_parts(self, parts: Mapping[tuple[str, str], Sequence[Record]]) -> None:
        """Applies records by topic and tag; all tags are claimed and sure."""

    async def after_claim(self, claim: Claim) -> None:
        """Called before a lease is handed out."""

    async def sweep(self) -> None:
        """Called now and then, for what is done beside the stream."""

    def waits(self, tag: str) -> bool:
        """Whether a process is ready only when it has applied all of this tag."""
        return True

    async def claim(self, tag: str, generation: int, logs: Mapping[str, LogIdentity], group: str = "") -> Lease:
        """Takes a tag and reads its positions; caches survive when nobody else held it in between.

        Raises ClaimRefusedError, StoreUnavailableError.
        """
        claim = await self.store.claim(tag, uuid.uuid4().hex, generation, logs, group)
        await self.after_claim(claim)
        lease = self.leases.get(tag)
        # What was written without moving a position, and whose answer was lost, may be there: the mark of models.
        is_known = lease is not None and not lease.unsure and lease.positions == claim.positions
        if lease is not None and is_known and claim.previous_token == lease.token:
            lease.token = claim.token
        else:
            lease = await self.open_lease(claim)
            await self.release(tag)
        lease.generation, lease.logs, lease.group = generation, logs, group
        lease.fresh, lease.reread, lease.unsure = set(logs), set(), False
        self.counts.add("claims")
        self.counts.add("new_logs", len(claim.new_logs))
        self.leases[tag] = lease
        return lease

    async def release(self, tag: str) -> None:
        """Forgets a tag and everything cached for it."""
        self.leases.pop(tag, None)

    async def apply(self, records: Sequence[Record]) -> None:
        """Applies a batch; within a topic and partition the records are in offset order.

        Raises:
            StoreUnavailableError: unsure whether it was written; call again with the same batch.
            FencedError: somebody else owns a tag, or its position moved: claim it anew.
            GapError: seek to the position and read on from there.
            KeyError: a record belongs to a tag that was not claimed.
        """
        read: dict[tuple[str, int], list[Record]] = defaultdict(list)
        for record in records:
            read[record.topic, record.partition].append(record)
        parts: dict[tuple[str, str], list[Record]] = {}
        for (topic, partition), part in read.items():
            parts.setdefault((topic, self.tag_of(topic, partition)), []).extend(part)
        for tag in dict.fromkeys(tag for _, tag in parts):
            if self.leases[tag].unsure:
                await self._renew(tag)
        await self.apply_parts(parts)

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
        lease = self.leases.get(self.tag_of(record.topic, record.partition))
        if lease is not None and record.offset >= lease.positions[record.topic]:
            await lease.commit(self.store, record.topic, record.offset + 1, [])

    async def pass_over(self, topic: str, tag: str, offset: int) -> None:
        """Moves a position past what holds nothing to apply. Raises FencedError, StoreUnavailableError."""
        lease = self.leases.get(tag)
        if lease is not None and not lease.unsure and offset > lease.positions[topic]:
            log.info("%s: %s from %d to %d holds nothing to apply", tag, topic, lease.positions[topic], offset)
            self.counts.add("passed_over", offset - lease.positions[topic])
            await self.move(lease, topic, offset)

    async def move(self, lease: Lease, topic: str, offset: int) -> None:
        """Writes nothing but a position. Raises FencedError, StoreUnavailableError."""
        try:
            await lease.commit(self.store, topic, offset, [])
        except BaseException:
            lease.unsure = True
            raise

    def next_records(self, topic: str, tag: str, records: Sequence[Record]) -> list[Record]:
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
