"""Watches a running worker for being caught up, for writes the store has lost, and for logs that were replaced.

Confirms to the API, tag by tag, that everything up to the log's end is applied. It only asks for claims and seeks,
which `streams.kafka.claims` makes. An unreachable broker or store is a warning; the next look may do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import faust
from faust.types import TP

from context.counting import counted
from index.state.store import FencedError, StoreUnavailableError
from streams.events import CONSUMED, PARTITIONED
from streams.kafka.claims import Claims
from streams.kafka.consumer import StateConsumer
from streams.kafka.log_identity import LogLookup
from streams.pipeline.lease import LeasedEngine, PartitionLease

_LOGS_S = 1.0  # between two looks at the topics: a recreated one is noticed this soon
_REPORT_EVERY = 10  # beats between commits of offsets to Kafka, which are only a gauge

log = logging.getLogger(__name__)


def partition_count_error(counts: Mapping[str, int], partitions: int, topics: Iterable[str] = CONSUMED) -> str:
    """What is wrong with the topics' partition counts, with the remedy; "" when they fit."""
    for topic in topics:
        wanted = partitions if topic in PARTITIONED else 1
        if counts.get(topic) != wanted:
            found = f"has {counted(counts[topic], 'partition')}" if topic in counts else "does not exist"
            return (
                f"topic {topic} {found}, the live state needs {wanted}: create it with {counted(wanted, 'partition')}, "
                "or use another key prefix with the partition count that the topics have"
            )
    return ""


class LogMonitor:
    """Looks after the leases of one engine."""

    def __init__(self, engine: LeasedEngine[Any], claims: Claims, lookup: LogLookup) -> None:
        self._engine, self._claims, self._lookup = engine, claims, lookup
        self._turn = 0
        self._behind: dict[TP, int] = {}  # positions that were not at their log's end in the last beat

    async def beats(self, consumer: StateConsumer, every_s: float) -> None:
        """Confirms for ever. Raises RuntimeError when the worker cannot go on."""
        while True:
            await asyncio.sleep(every_s)
            consumer.check_alive()
            try:
                await self._beat(consumer)
            except (TimeoutError, StoreUnavailableError, FencedError, OSError) as error:
                log.warning("cannot confirm being caught up: %s", error or type(error).__name__)
            except faust.exceptions.ConsumerNotStarted:
                continue

    async def logs(self) -> None:
        """Looks for ever whether positions count in the same logs. Raises ValueError for another partition count."""
        while True:
            await asyncio.sleep(_LOGS_S)
            try:
                await self._look_at_logs()
            except (ConnectionError, TimeoutError) as error:
                log.warning("cannot look at the topics: %s", error)

    def _settled(self) -> dict[str, PartitionLease]:
        return {tag: t for tag, t in self._engine.leases.items() if tag not in self._claims.unsettled}

    async def _beat(self, consumer: StateConsumer) -> None:
        leases = self._settled()
        tps = {tp for tp in consumer.assigned() if self._tag(tp) in leases}
        await consumer.check_membership()
        ends = await consumer.log_ends(tps)
        await self._check_stored(leases)
        behind = {tp: self._position(leases, tp) for tp, end in ends.items() if self._position(leases, tp) < end}
        await self._pass_over(consumer, {tp for tp, at in behind.items() if self._behind.get(tp) == at})
        self._behind = behind
        by_tag: dict[str, dict[str, int]] = {}
        for tp, end in ends.items():
            by_tag.setdefault(self._tag(tp), {})[tp.topic] = end
        await asyncio.gather(*(self._confirm(leases[tag], mine) for tag, mine in by_tag.items()))
        self._turn += 1
        if self._turn % _REPORT_EVERY == 0:
            await consumer.report_positions({tp: self._position(leases, tp) for tp in tps})

    async def _confirm(self, lease: PartitionLease, ends: Mapping[str, int]) -> None:
        """One tag's beat: the ends of its logs, and whether everything up to them is applied."""
        if lease.tag in self._claims.unsettled or self._engine.leases.get(lease.tag) is not lease:
            return
        caught_up = set(ends) == set(lease.positions) and all(lease.positions[t] >= end for t, end in ends.items())
        lease.caught_up = caught_up
        if not await self._engine.store.beat(lease.tag, lease.token, ends, caught_up):
            self._engine.counts.add("fenced")
            self._claims.request_reclaim(lease.tag, claim=True)

    async def _check_stored(self, leases: Mapping[str, PartitionLease]) -> None:
        """Claims anew what a restarted store took back: without new records no refused write would tell."""
        keys, written = self._engine.store.keys, {tag: dict(t.positions) for tag, t in leases.items()}
        rows = await self._engine.store.read(
            [(keys.owner(tag), [f"pos:{topic}" for topic in positions]) for tag, positions in written.items()]
        )
        for (tag, positions), stored in zip(written.items(), rows, strict=True):
            if tag in self._claims.unsettled or self._engine.leases.get(tag) is not leases[tag]:
                continue  # claimed anew while the store was asked
            if any(int(value or 0) < position for value, position in zip(stored, positions.values(), strict=True)):
                log.warning("the store has lost writes to %s: reading them once more", tag)
                self._claims.request_reclaim(tag, claim=True)

    async def _pass_over(self, consumer: StateConsumer, behind: set[TP]) -> None:
        """Moves positions past the end markers of transactions, which Kafka delivers to nobody.

        Under the consumer's lock nothing is fetched, and what was fetched in whole is in the lanes: where they hold
        nothing of a tag, all records before the place up to which the consumer has delivered are applied. It keeps
        fetching waiting, so it is for positions that have stood still for a beat: others are on their way.
        """
        if not self._idle(behind):
            return
        async with consumer.reading:
            for tp, reached in consumer.handed(self._idle(behind)).items():
                if self._tag(tp) not in self._claims.unsettled:
                    await self._engine.pass_over(tp.topic, self._tag(tp), reached)

    def _idle(self, tps: set[TP]) -> set[TP]:
        """Those of whose tag nothing is in the lanes."""
        busy = self._claims.busy_tags()
        return {tp for tp in tps if self._tag(tp) not in busy}

    async def _look_at_logs(self) -> None:
        counts = await self._lookup.partition_counts()
        topics = self._engine.topics
        wrong = partition_count_error(counts, self._engine.partitions, topics)
        if wrong and all(topic in counts for topic in topics):
            raise ValueError(wrong)
        if wrong:
            log.warning("%s", wrong)
        identities = await self._lookup.identities([topic for topic in topics if topic in counts])
        for tag, lease in self._settled().items():
            others = [t for t, known in lease.logs.items() if t in identities and identities[t] != known]
            if others:
                log.warning("%s of %s: another log than before, recreated or on another cluster", others, tag)
                self._claims.request_reclaim(tag, claim=True)

    def _position(self, leases: Mapping[str, PartitionLease], tp: TP) -> int:
        return leases[self._tag(tp)].positions[tp.topic]

    def _tag(self, tp: TP) -> str:
        return self._engine.tag_of(tp.topic, tp.partition)
