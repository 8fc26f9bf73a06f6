"""Applies `exposures` and `clickstream` to what users did with the lists they were shown, exactly once.

One tag a partition, with the positions of both topics: users, results and position are written in one step. Clicks
are those that workers apply; malformed and misrouted records are theirs to report, and are passed over here.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson
from prometheus_client import CollectorRegistry

from context.units import DAY_MS
from index.results.cells import Cell, decode_field
from index.state.keys import attribution_tag, partition_of
from index.state.store import Claim, LiveStore, Op
from streams.attribution.changes import Clocks, Done, Fact, JoinChange, JoinOutcome, hashed
from streams.attribution.joining import SKEW_MS, Action, JoinRules
from streams.attribution.stored import decode_join, join_ops
from streams.events import CLICKSTREAM, EXPOSURES, Click, Exposure, Forget, MalformedError, Record, Rules
from streams.parsing import parse
from streams.pipeline.intake import DeadLetterSink
from streams.pipeline.lease import LeasedEngine, PartitionLease
from streams.pipeline.partition_clock import PartitionClock

TOPICS = (EXPOSURES, CLICKSTREAM)
KEPT_DAYS = 100  # for which results are kept, by the newest day of a partition
MAX_CENTS = 10**13  # of one purchase; more is a producer's mistake
_SWEEP_USERS = 200  # users of whom nothing is left to remember, removed at a time


@dataclass(slots=True)
class JoinLease(PartitionLease):
    """A claimed partition, with the times of its topics and the kinds of lists that its days have."""

    clocks: Clocks = field(default_factory=Clocks)
    cells: dict[int, set[Cell]] = field(default_factory=dict)


class AttributionEngine(LeasedEngine[JoinLease]):
    """Joins what users did to what they were shown."""

    def __init__(
        self,
        store: LiveStore,
        rules: Rules,
        partitions: int,
        sink: DeadLetterSink,
        join: JoinRules | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        super().__init__(store, rules, partitions, sink, registry)
        self.join = join or JoinRules()
        self.outcomes: Counter[str] = Counter()  # what became of records
        self.results: Counter[tuple[str, str]] = Counter()  # list and measure → what came to it since the start
        self._swept = 0
        self._one_at_a_time = asyncio.Lock()

    @property
    def topics(self) -> Sequence[str]:
        return TOPICS

    @property
    def lanes(self) -> Sequence[frozenset[str]]:
        return [frozenset(TOPICS)]

    def tag_of(self, topic: str, partition: int) -> str:
        return attribution_tag(partition)

    def topics_of(self, tag: str) -> Sequence[str]:
        return TOPICS

    async def open_lease(self, claim: Claim) -> JoinLease:
        """Reads clocks and kinds of lists."""
        keys = self.store.keys
        lease = JoinLease(claim.tag, claim.token, dict(claim.positions), cached_users=0)
        ((shown, done),) = await self.store.read([(keys.owner(claim.tag), ["clock_shown", "clock_done"])])
        lease.clocks = Clocks(PartitionClock.decode(shown), PartitionClock.decode(done))
        for day in map(int, await self.store.read_all(keys.result_days(claim.tag))):
            found = await self.store.read_all(keys.results(claim.tag, day))
            places = [decode_field(day, name)[1] for name in found]
            lease.cells[day] = {place.cell for place in places if place.measure == "lists"}
        return lease

    async def apply_parts(self, parts: Mapping[tuple[str, str], Sequence[Record]]) -> None:
        """Lists before what was done with them; any order gives the same."""
        async with self._one_at_a_time:
            for topic in TOPICS:
                for (name, tag), part in parts.items():
                    if name == topic and (records := self.next_records(topic, tag, part)):
                        await self._apply(topic, self.leases[tag], records)

    async def _apply(self, topic: str, lease: JoinLease, records: Sequence[Record]) -> None:
        facts = [fact for record in records if (fact := self._fact(record)) is not None]
        keys, users = self.store.keys, list(dict.fromkeys(fact.user_id for fact in facts))
        stored: Sequence[Mapping[str, bytes]] = []
        if users:
            wanted = [(keys.join(lease.tag, user_id), None) for user_id in users]
            stored = (await self.store.read_at(lease.tag, wanted)).hashes
        before = dict(zip(users, stored, strict=True))
        change = JoinChange(
            self.join,
            lease.clocks.copy(),
            {day: cells.copy() for day, cells in lease.cells.items()},
            {user_id: decode_join(fields) for user_id, fields in before.items()},
        )
        change.apply(facts)
        expired = _expired(change)
        ops = self._ops(lease.tag, before, change, expired) if facts else []
        await self._commit(lease, topic, records[-1].offset + 1, ops)
        lease.clocks = change.clocks
        lease.cells = {day: cells for day, cells in change.cells.items() if day not in expired}
        self.results.update(+change.came)  # without what was taken back, as of a user who is forgotten
        self.counts.add_applied(topic, change.outcomes.pop(JoinOutcome.APPLIED, 0))
        self.outcomes.update({f"{topic}:{outcome}": count for outcome, count in change.outcomes.items()})

    def _fact(self, record: Record) -> Fact | None:
        """What a record says of lists and what was done with them; None of one that says nothing of it."""
        try:
            event = parse(record, self.rules)
        except MalformedError:
            return None
        if not isinstance(event, (Click, Exposure, Forget)):
            return None
        if record.partition != partition_of(event.user_id, self.partitions):
            return None  # a click's worker forwards it to its home
        if not isinstance(event, Click):
            return event
        kind = self.rules.kinds[event.kind]
        if kind.weight <= 0:
            return None
        cents = _cents(record) if kind.remembered else 0
        list_id = hashed(event.recommendation_id) if event.recommendation_id else ""
        action = Action(event.ts_ms, event.item_id, list_id, kind.remembered, cents)
        return Done(event.user_id, hashed(event.event_id), action)

    def _ops(
        self, tag: str, before: Mapping[str, Mapping[str, bytes]], change: JoinChange, expired: Sequence[int]
    ) -> list[Op]:
        keys, ops, times, gone = self.store.keys, list[Op](), dict[str, int](), list[str]()
        for user_id, user in change.users.items():
            ops += join_ops(keys.join(tag, user_id), before[user_id], user)
            if user.newest_ms >= 0:
                times[user_id] = user.newest_ms
            else:
                gone.append(user_id)
        ops += [Op("zadd", keys.joins(tag), times)] if times else []
        ops += [Op("zrem", keys.joins(tag), names=gone)] if gone else []
        counts = {day: added for day, added in change.added.items() if day not in expired and added}
        for day, added in counts.items():
            ops.append(Op("hincr", keys.results(tag, day), dict(added)))
        if counts:
            ops.append(Op("hincr", keys.result_days(tag), {str(day): 1 for day in counts}))
        for day in expired:
            ops += [Op("delete", keys.results(tag, day)), Op("hdel", keys.result_days(tag), names=(str(day),))]
        facts = {"clock_shown": change.clocks.shown.encode(), "clock_done": change.clocks.done.encode()}
        return [*ops, Op("hset", keys.owner(tag), facts)]

    async def sweep(self) -> None:
        """Removes some users of one partition of whom nothing needs to be remembered."""
        async with self._one_at_a_time:
            leases = [lease for lease in self.leases.values() if not lease.unsure]
            if not leases:
                return
            self._swept += 1
            lease = leases[self._swept % len(leases)]
            keys, tag, before_ms = self.store.keys, lease.tag, lease.clocks.let_go_ms(self.join)
            gone = await self.store.lowest(keys.joins(tag), before_ms - SKEW_MS, _SWEEP_USERS) if before_ms > 0 else []
            if gone:
                ops = [Op("delete", keys.join(tag, user_id)) for user_id in gone]
                ops.append(Op("zrem", keys.joins(tag), names=gone))
                await self._commit(lease, CLICKSTREAM, lease.positions[CLICKSTREAM], ops)

    async def move(self, lease: JoinLease, topic: str, offset: int) -> None:
        async with self._one_at_a_time:
            await self._commit(lease, topic, offset, [])

    async def _commit(self, lease: JoinLease, topic: str, offset: int, ops: Sequence[Op]) -> None:
        try:
            await lease.commit(self.store, topic, offset, ops)
        except BaseException:
            lease.unsure = True
            raise


def _expired(change: JoinChange) -> list[int]:
    """Days that are no longer kept: seen from the newest of the partition that its clock has reached."""
    today: int = change.clocks.shown.now_ms // DAY_MS
    return sorted(day for day in change.cells if day <= today - KEPT_DAYS) if today > 0 else []


def _cents(record: Record) -> int:
    """What was paid for a purchase, in hundredths of the shop's currency; 0 where its `value` is no such number."""
    value: object = orjson.loads(record.value or b"{}").get("value")
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not math.isfinite(value)
        or not 0 < value * 100 <= MAX_CENTS
    ):
        return 0
    return round(value * 100)
