"""Tracks how current the live state is, by partition, and the deployment's facts.

Polls the owner records and times their changes on this process's monotonic clock, so hosts need no common clock. A
confirmation that was never seen to change is of unknown age. What an API answers is decided elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from index.query.live_user import LiveUser
from index.state.aliases import ALIAS_FIELDS, Aliases
from index.state.keys import CONTEXT_TAG, ITEMS_TAG, RULES_TAG, partition_tag
from index.state.records import MODELS, complete_models
from index.state.store import LiveStore, StoreUnavailableError

CLICKSTREAM = "clickstream"
TOPICS_OF_USERS = (CLICKSTREAM, "users")
TOPICS_OF_ITEMS = ("catalog", "item-vectors")
TOPICS_OF_CONTEXT = ("context",)
TOPICS_OF_RULES = ("rules",)
_RATE_MS = 5_000.0  # events/s over so long: short enough to follow a burst, long enough to be steady
_ROLES_EVERY = 10  # heartbeats are written once a second, so one poll in ten looks at them
_ROLE_GONE_MS = 5_000.0  # five missed heartbeats
_UNCONFIRMED_MS = 1_000.0  # five missed confirmations: what the worker saw last may not be all there is by now
_FILLING = ("reading", "loading items", "opening the shop")  # what a traffic process does before items are in Kafka
_FACTS = ("partitions", "kinds", "clock_ms", "bucket_ms", *ALIAS_FIELDS)


@dataclass(frozen=True, slots=True)
class PartitionState:
    """One partition: records not applied, the next one to apply, and the age of its confirmation (or None)."""

    lag: int
    position: int
    lag_ms: float | None


@dataclass(frozen=True, slots=True)
class TopicState:
    """A consumed topic: sums over its partitions, and the age of the oldest confirmation (or None)."""

    partitions: tuple[PartitionState, ...]

    @property
    def lag(self) -> int:
        return sum(partition.lag for partition in self.partitions)

    @property
    def position(self) -> int:
        return sum(partition.position for partition in self.partitions)

    @property
    def lag_ms(self) -> float | None:
        return _oldest([partition.lag_ms for partition in self.partitions])


class _Beats:
    """When each confirmation counter last grew, on the monotonic clock; the first sighting tells nothing."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}
        self._grown_ms: dict[str, float] = {}

    def note(self, tag: str, count: int, now_ms: float) -> None:
        known = self._count.get(tag, count)
        self._count[tag] = count
        if count > known:  # a smaller one means that Redis was emptied, which confirms nothing
            self._grown_ms[tag] = now_ms

    def age_ms(self, tag: str, now_ms: float) -> float | None:
        grown = self._grown_ms.get(tag)
        return None if grown is None else now_ms - grown


class Liveness:
    """Facts about the deployment, kept current by `run`; ages and rates are by the clock `monotonic_ms`."""

    def __init__(self, store: LiveStore, monotonic_ms: Callable[[], float]) -> None:
        self._store, self._now_ms = store, monotonic_ms
        self._beats = _Beats()
        self._facts: dict[str, str] = {}
        self.aliases = Aliases()  # without a champion until a worker has named it
        self.topics: Mapping[str, TopicState] = {}  # the consumed ones as of the last poll
        self._applied: deque[tuple[float, int]] = deque()  # (monotonic ms, sum of clickstream positions)
        self._roles: dict[str, dict[str, Any]] = {}
        self._seen_ms: dict[str, float] = {}
        self._polls = 0
        self.reachable = False
        self.log_ends: Mapping[tuple[str, int], int] = {}  # by topic and partition, where no worker tells of them
        self.item_log = ""  # as of the last poll
        self.item_logs: set[str] = set()  # with those that it goes on from: the items were not emptied in between
        self._items_position = 0
        # The item log and its position when it was first seen that the items' topics had been applied to their ends;
        # None as long as they were not. A log that goes on from a complete one begins with all items: position 0.
        self.complete: tuple[str, int] | None = None
        self._items_beat = 0
        # Versions of models whose vectors all items have; None where that is not known, and what items are given
        # comes by the item log.
        self.filled: frozenset[str] | None = None

    @property
    def partitions(self) -> int | None:
        """Number of user partitions; None until a worker has written it."""
        return int(self._facts["partitions"]) if "partitions" in self._facts else None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds of events, by code."""
        return tuple(self._facts["kinds"].split("\n")) if self._facts.get("kinds") else ()

    @property
    def clock_ms(self) -> int | None:
        """The time of the timeline that is replayed; None where there is none, or it has ended: wall time counts."""
        return int(self._facts["clock_ms"]) if self._facts.get("clock_ms") else None

    @property
    def bucket_ms(self) -> int | None:
        """Width of a popularity bucket; None until a worker has written it."""
        return int(self._facts["bucket_ms"]) if "bucket_ms" in self._facts else None

    @property
    def events_per_s(self) -> float:
        """Clickstream records applied per second over the last five seconds."""
        if len(self._applied) < 2:
            return 0.0
        (first_ms, first), (last_ms, last) = self._applied[0], self._applied[-1]
        return max(0.0, 1000.0 * (last - first) / (last_ms - first_ms)) if last_ms > first_ms else 0.0

    @property
    def unconfirmed(self) -> bool:
        """Whether some topic's worker has not confirmed lately that it is caught up."""
        ages = [topic.lag_ms for topic in self.topics.values()]
        return self.partitions is not None and any(age is None or age > _UNCONFIRMED_MS for age in ages)

    @property
    def filling(self) -> bool:
        """Whether a process says that it is going to send the catalogue."""
        return any(heartbeat.get("phase") in _FILLING for heartbeat in self.roles().values())

    def items_position(self) -> int:
        """Up to where `catalog` is applied, as of the last poll."""
        return self.topics["catalog"].position if "catalog" in self.topics else 0

    def roles(self) -> dict[str, dict[str, Any]]:
        """The latest heartbeat of every process that is still sending them, by role id."""
        since_ms = self._now_ms() - _ROLE_GONE_MS
        return {name: heartbeat for name, heartbeat in self._roles.items() if self._seen_ms[name] >= since_ms}

    def note(self, partition: int, beat: int) -> None:
        """A request read this partition's confirmation counter; fresher than the last poll."""
        self._beats.note(partition_tag(partition), beat, self._now_ms())

    def lag_ms(self, partition: int) -> float | None:
        """Time since the worker last confirmed that this partition is caught up; None when it never did so far."""
        return self._beats.age_ms(partition_tag(partition), self._now_ms())

    def as_of(self, partition: int, user: LiveUser | None, includes_after: bool | None = None) -> dict[str, Any]:
        """How current the knowledge about a user is, as in every answer; None when the live state did not answer."""
        return {
            "ts_ms": None if user is None else user.newest_ms,
            "partition": partition,
            "offset": None if user is None else user.offset,
            "lag_ms": rounded(self.lag_ms(partition)),
            "includes_after": includes_after if user is None else user.includes_after,
        }

    async def poll(self) -> None:
        """One look at everything, one round trip. An unreachable store keeps the last knowledge, which then ages."""
        partitions = self.partitions
        try:
            await self._read()
            if partitions != self.partitions:  # only now it is known which owners there are
                await self._read()
            self.reachable = True
        except StoreUnavailableError:
            self.reachable = False

    async def run(self, interval_ms: float) -> None:
        """Polls for ever, every `interval_ms`."""
        while True:
            await self.poll()
            await asyncio.sleep(interval_ms / 1000)

    async def _read(self) -> None:
        keys = self._store.keys
        tags = self._tags()
        requests = [
            (keys.owner(tag), ["beat", *(f"{what}:{topic}" for topic in topics for what in ("pos", "seen"))])
            for tag, topics in tags.items()
        ]
        items = (keys.owner(ITEMS_TAG), ["beat", "item_log", "item_position", MODELS])
        facts, found, *owners = await self._store.read([(keys.cluster(), _FACTS), items, *requests])
        self._take_items(found)
        self._facts = {name: value.decode() for name, value in zip(_FACTS, facts, strict=True) if value is not None}
        self.aliases = Aliases.of(self._facts)
        self._take(tags, owners)
        if self._polls % _ROLES_EVERY == 0:
            self._take_roles(await self._store.read_all(keys.roles()))
        self._polls += 1

    def _tags(self) -> dict[str, tuple[str, ...]]:
        users = {partition_tag(number): TOPICS_OF_USERS for number in range(self.partitions or 0)}
        return {**users, ITEMS_TAG: TOPICS_OF_ITEMS, CONTEXT_TAG: TOPICS_OF_CONTEXT, RULES_TAG: TOPICS_OF_RULES}

    def _take_items(self, found: Sequence[bytes | None]) -> None:
        beat, log, position, models = found
        self.filled = complete_models(models.decode()) if models else None
        self.item_log = (log or b"").decode()
        end = int(position or 0)
        if not self.item_log or end < self._items_position:
            self.item_logs.clear()
        self.item_logs |= {self.item_log} - {""}
        self._items_position = end
        before, self._items_beat = self._items_beat, int(beat or 0)
        if not self._items_beat:  # an emptied store, or another log of the items: confirmed is nothing yet
            self.complete = None
        elif self.complete is None or self.complete[0] != self.item_log:
            goes_on = self.complete is not None and self._items_beat >= before  # as after a restart of Redis
            self.complete = self.item_log, 0 if goes_on else end

    def _take(self, tags: Mapping[str, tuple[str, ...]], owners: list[list[bytes | None]]) -> None:
        now_ms = self._now_ms()
        found: dict[str, list[PartitionState]] = {}
        for (tag, topics), (beat, *values) in zip(tags.items(), owners, strict=True):
            self._beats.note(tag, int(beat or 0), now_ms)
            for at, topic in enumerate(topics):
                partitions = found.setdefault(topic, [])
                position, seen = int(values[2 * at] or 0), int(values[2 * at + 1] or 0)
                end = max(seen, self.log_ends.get((topic, len(partitions)), 0))
                partitions.append(PartitionState(max(0, end - position), position, self._beats.age_ms(tag, now_ms)))
        self.topics = {topic: TopicState(tuple(partitions)) for topic, partitions in found.items()}
        self._rate(now_ms)

    def _rate(self, now_ms: float) -> None:
        if CLICKSTREAM not in self.topics:
            return
        position = self.topics[CLICKSTREAM].position
        if self._applied and position < self._applied[-1][1]:
            self._applied.clear()  # another log, or an emptied Redis: rates do not span it
        self._applied.append((now_ms, position))
        while self._applied[0][0] < now_ms - _RATE_MS:
            self._applied.popleft()

    def _take_roles(self, found: Mapping[str, bytes]) -> None:
        now_ms = self._now_ms()
        for name, value in found.items():
            heartbeat = _heartbeat(value)
            known = self._roles.get(name)
            if known is None or known.get("beat_ms") != heartbeat.get("beat_ms"):
                self._seen_ms[name] = now_ms
            self._roles[name] = heartbeat
        for name in set(self._roles) - set(found):
            del self._roles[name], self._seen_ms[name]


def rounded(milliseconds: float | None) -> float | None:
    """An age as it is shown."""
    return None if milliseconds is None else round(milliseconds, 1)


def _oldest(ages: list[float | None]) -> float | None:
    """The largest age; unknown when any is."""
    known = [age for age in ages if age is not None]
    return max(known) if known and len(known) == len(ages) else None


def _heartbeat(value: bytes) -> dict[str, Any]:
    """A role's heartbeat; empty when it is not a JSON object, as of another version."""
    try:
        found = orjson.loads(value)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
