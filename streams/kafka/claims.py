"""Claims assigned partitions after a rebalance, and again whenever a write was refused or a gap was seen.

One place decides where reading goes on: it holds the consumer's `reading` lock, claims in the store, checks the
position against the log, clears what was fetched before, and seeks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from faust.types import TP

from index.state.store import ClaimRefusedError, LogIdentity, StoreUnavailableError
from streams.events import Record
from streams.kafka.consumer import StateConsumer
from streams.kafka.lanes import Lane
from streams.kafka.log_identity import LogLookup
from streams.pipeline.lease import LeasedEngine

_CONFIRM_S = 0.5  # brokers agree on a recreated topic within this
_RETRY_S = 0.25  # between attempts while the store or the broker is away
_REFUSED_RETRY_S = 2.0  # another member has a newer generation: our own next rebalance is the usual way out

log = logging.getLogger(__name__)


class PositionBeyondLogError(Exception):
    """The stored position lies beyond the end of the log it names: the log was cut, and nothing here may guess."""


class Claims:
    """Keeps the engine's leases in line with the consumer's assignment; the consumer's `PartitionOwner`."""

    def __init__(self, engine: LeasedEngine[Any], lookup: LogLookup, group: str, lanes: Sequence[Lane]) -> None:
        self._engine, self._lookup, self._group, self._lanes = engine, lookup, group, lanes
        self._identities: dict[str, LogIdentity] = {}
        self.unsettled: set[str] = set()  # tags to claim or seek; nothing of them is read or applied meanwhile
        self._seek_only: set[str] = set()
        self._requested: set[str] = set()  # since settling began: what was refused then is not settled by it
        self._assignment: set[TP] = set()  # as of the last rebalance, with its generation
        self._generation, self._takes = 0, 0
        self._wake, self._taken = asyncio.Event(), asyncio.Event()
        self._counts = engine.counts

    def on_assignment(self, assigned: set[TP], generation: int) -> None:
        """After a rebalance: everything assigned is claimed and sought anew, by `run`.

        Never waits: Faust gives up for good, and without a word, on a seek that takes longer than its own limit.
        """
        self._assignment, self._generation = set(assigned), generation
        self._takes += 1
        self.unsettled, self._seek_only = self._tags(assigned), set()
        self._wake.set()
        self._taken.set()

    def wanted(self, assigned: set[TP]) -> set[TP]:
        """All partitions but those of full lanes and of tags that are not settled."""
        full = {topic for lane in self._lanes if lane.full for topic in lane.topics}
        return {tp for tp in assigned if tp.topic not in full and self._engine.tag_of(*tp) not in self.unsettled}

    def deliver(self, records: Sequence[Record]) -> None:
        """Puts fetched records into their lanes."""
        for lane in self._lanes:
            if mine := [record for record in records if record.topic in lane.topics]:
                lane.put(mine)

    def reclaim(self, tps: set[TP]) -> None:
        """Has the tags of these partitions claimed anew, which finds out where to read on, and why."""
        for tag in self._tags(tps):
            self.request_reclaim(tag, claim=True)

    def request_reclaim(self, tag: str, *, claim: bool) -> None:
        """Asks for a new claim of a tag, or only for a seek back to its position."""
        if tag not in self.unsettled and not claim:
            self._seek_only.add(tag)
        if claim:
            self._seek_only.discard(tag)
        self.unsettled.add(tag)
        self._requested.add(tag)
        self._wake.set()

    def busy_tags(self) -> set[str]:
        """Tags of which something was fetched that is not applied yet."""
        return set[str]().union(*(lane.tags() for lane in self._lanes))

    async def run(self, consumer: StateConsumer) -> None:
        """Settles what is not settled, as long as the worker runs. Raises PositionBeyondLogError: no retry mends it."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._taken.clear()
            refused = self._counts["claims_refused"]
            async with consumer.reading:
                await self._settle(consumer)
            if self.unsettled:
                self._wake.set()
                pause_s = _RETRY_S if self._counts["claims_refused"] == refused else _REFUSED_RETRY_S
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._taken.wait(), pause_s)  # a new assignment cuts the pause short

    async def _settle(self, consumer: StateConsumer) -> None:
        take, assignment, generation = self._takes, self._assignment, self._generation
        self._requested.clear()
        gone = set(self._engine.leases) - self._tags(assignment)
        self.unsettled &= self._tags(assignment)
        by_tag: dict[str, set[TP]] = defaultdict(set)
        for tp in assignment & consumer.assigned():  # the next assignment may be under way
            by_tag[self._engine.tag_of(tp.topic, tp.partition)].add(TP(*tp))
        wanted = {tag: by_tag[tag] for tag in self.unsettled if tag in by_tag}
        for lane in self._lanes:
            lane.forget(gone | set(wanted))
        for tag in gone:
            await self._engine.release(tag)
        try:
            positions = await self._positions(consumer, wanted, generation)
            await consumer.move(positions)
        except (ConnectionError, TimeoutError, StoreUnavailableError) as error:
            log.warning("cannot settle %d partitions yet: %s", len(wanted), error)
            return
        except PositionBeyondLogError:
            if await self._are_same_logs(wanted):
                raise
            return
        # A tag of which only some topics are assigned (yet) is not: the others would be read from anywhere.
        settled = {tag for tag in wanted if _named(by_tag[tag] & set(positions)) == {*self._engine.topics_of(tag)}}
        if positions:
            log.info(
                "reading on at %s", " ".join(f"{tp.topic}[{tp.partition}]@{at}" for tp, at in sorted(positions.items()))
            )
        if take == self._takes:  # else this was the assignment before, which says nothing about the present one
            self.unsettled -= settled - self._requested
            self._seek_only -= settled - self._requested

    async def _are_same_logs(self, tags: Iterable[str]) -> bool:
        """Whether the tags' topics are still those they were claimed with: one recreated since is claimed anew."""
        await asyncio.sleep(_CONFIRM_S)
        try:
            now = await self._lookup.identities(self._topics(tags))
        except (ConnectionError, TimeoutError):
            return False
        leases = [self._engine.leases[tag] for tag in tags if tag in self._engine.leases]
        same = all(now.get(topic) == known for lease in leases for topic, known in lease.logs.items())
        if not same:
            log.warning("a topic was recreated while its partitions were claimed: claiming them anew")
            self._seek_only.clear()
        return same

    async def _positions(self, consumer: StateConsumer, wanted: dict[str, set[TP]], generation: int) -> dict[TP, int]:
        """Claims each tag and finds where to read on; a tag whose claim failed is left out."""
        leases = self._engine.leases
        claimed = {tag for tag in wanted if tag in self._seek_only and tag in leases}
        for tag in claimed:
            leases[tag].fresh = set(leases[tag].positions)
        if others := sorted(set(wanted) - claimed):
            self._identities = await self._lookup.identities(self._topics(others))
            claimed |= {tag for tag in others if await self._claim(tag, generation)}
        tps = {tp for tag in claimed for tp in wanted[tag]}
        starts, ends = await consumer.log_starts(tps), await consumer.log_ends(tps)
        return {tp: self._checked(tp, starts[tp], ends[tp]) for tp in tps}

    async def _claim(self, tag: str, generation: int) -> bool:
        topics = self._engine.topics_of(tag)
        identities = {topic: self._identities[topic] for topic in topics if topic in self._identities}
        if len(identities) < len(topics):
            log.warning("cannot claim %s: of %s only %s exist", tag, topics, sorted(identities))
            return False
        group = f"{self._group}@{next(iter(identities.values())).cluster_id}"
        try:
            await self._engine.claim(tag, generation, identities, group)
            return True
        except ClaimRefusedError as error:
            self._counts.add("claims_refused")
            log.warning("%s", error)
        return False

    def _checked(self, tp: TP, start: int, end: int) -> int:
        lease = self._engine.leases[self._engine.tag_of(tp.topic, tp.partition)]
        position: int = lease.positions[tp.topic]
        if position > end:
            raise PositionBeyondLogError(
                f"{tp.topic}[{tp.partition}]: stored position {position} is beyond the end {end} of the same log. "
                "The log was cut: restore it, or delete the live state and rebuild it from Kafka"
            )
        if position < start:
            self._counts.add("lost_to_retention", start - position)
            log.error("%s[%d]: offsets %d to %d left Kafka unread", tp.topic, tp.partition, position, start)
            lease.reread.add(tp.topic)  # this gap is known
            return start
        return position

    def _topics(self, tags: Iterable[str]) -> list[str]:
        return sorted({topic for tag in tags for topic in self._engine.topics_of(tag)})

    def _tags(self, tps: Iterable[TP]) -> set[str]:
        return {self._engine.tag_of(tp.topic, tp.partition) for tp in tps}


def _named(tps: Iterable[TP]) -> set[str]:
    return {tp.topic for tp in tps}
