"""Defines the live state as an interface of claims, guarded atomic writes, reads, and the item log.

Two implementations keep this contract under one suite, `index.state.redis_store` (production) and
`index.state.memory_store` (replay, tests). Writes are lists of plain operations, guarded by token and position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from index.state.keys import Keys

_POSITION = "pos:"  # of a topic, in a tag's owner hash


class StoreUnavailableError(Exception):
    """The store did not answer. The write may or may not have happened; the same write can be repeated safely."""


class FencedError(Exception):
    """A write was refused: another owner claimed the tag, or the position is not the expected one."""

    def __init__(
        self, tag: str, topic: str, reason: Literal["token", "position", "position of another topic"], position: int
    ) -> None:
        super().__init__(f"write to {tag} for {topic} refused: {reason} differs, stored position {position}")
        self.tag, self.topic, self.reason, self.position = tag, topic, reason, position


class ClaimRefusedError(Exception):
    """A claim came with an older consumer-group generation than the one stored."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation on one key; a batch of them is applied atomically.

    `hset` fields {name: bytes} · `hdel` names · `hkeep` of the fields that begin with names[0] only names[1:] ·
    `haside` of fields names[2:], which belong to what field names[0] says: if that is not names[1], each goes to
    `<field>:<what it said>`, and those that lay aside for names[1] go away ·
    `hincr` {name: int} · `delete` · `zadd` {member: score} · `zrem` names · `sadd`/`srem` names · `log` one item id
    (names[0]) is appended to the item log: the item's hash (`key`) gets the new position, and the item index too.
    """

    kind: Literal["hset", "hdel", "hkeep", "haside", "hincr", "delete", "zadd", "zrem", "sadd", "srem", "log"]
    key: str
    values: Mapping[str, bytes] | Mapping[str, int] = field(default_factory=dict)
    names: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class LogIdentity:
    """Which log a position counts in: cluster and, where the broker has one, topic id."""

    cluster_id: str
    topic_id: str = ""

    def __str__(self) -> str:
        return f"{self.cluster_id}/{self.topic_id}"


Logs = Mapping[str, LogIdentity]  # by topic
Fields = Mapping[str, bytes | None]  # of a hash; None is one that is not there


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write one tag. `positions` are the next offsets to apply, by topic."""

    tag: str
    token: str
    positions: Mapping[str, int]
    previous_token: str = ""  # who held the tag before; the same owner's caches stay valid
    new_logs: tuple[str, ...] = ()  # topics whose log is another one than the stored position counted in


@dataclass(frozen=True, slots=True)
class Commit:
    """One atomic write: move `topic`'s position from `expected` to `position` and apply `ops`.

    `beside` are the positions that the tag's other topics must have: what is written may hold what came from them, and
    a store that has lost some of it must not take the rest.
    """

    tag: str
    token: str
    topic: str
    expected: int
    position: int
    ops: Sequence[Op] = ()
    beside: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogPage:
    """A piece of the item log: `items` changed up to `position` of log `generation`.

    `reload` is true when following is impossible from where the reader stood (new generation, trimmed tail).
    `positions` are the applied ones of the items' topics, if nothing was behind the page when they were read.
    """

    generation: str
    position: int
    items: tuple[str, ...]
    reload: bool
    positions: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class TagState:
    """Some hashes of a tag as they were at one moment, and which positions the tag's topics had reached then."""

    positions: Mapping[str, int]  # by topic: next offset to apply
    hashes: Sequence[Mapping[str, bytes]]  # what is there of the fields that were asked for


class LiveStore(Protocol):
    """The live state. Every method may raise `StoreUnavailableError`."""

    keys: Keys
    # Why the store refused this process's last `write` although it answers; "" when it took it, None before the first.
    refusal: str | None

    async def ensure_cluster(self, partitions: int, kinds: Sequence[str]) -> None:
        """Writes the deployment's partition count and kinds once; later a different one is refused (ValueError)."""

    async def claim(self, tag: str, token: str, generation: int, logs: Logs, group: str = "") -> Claim:
        """Takes `tag` for `token` and reads its positions, atomically.

        A topic whose stored log identity differs from `logs` starts at 0 in a new log. Claiming the items tag opens a
        new item log when there is none, or when the store was restarted since it was opened. `group` names the
        consumer group and cluster that `generation` counts in; generations of different groups are not compared.
        Raises ClaimRefusedError when the stored generation of this group is higher.
        """

    async def commit(self, commits: Sequence[Commit]) -> None:
        """Applies each commit atomically, in order; repeating an applied one with the same token is a no-op.

        Raises FencedError when token or position differ; earlier commits of the list stay applied.
        """

    async def beat(self, tag: str, token: str, ends: Mapping[str, int], caught_up: bool) -> bool:
        """Records the log ends the owner saw and, when it had applied up to them, confirms that it is caught up.

        False when the token is no longer the owner's; nothing was written then.
        """

    async def read(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[bytes | None]]:
        """Values of named fields of hashes, one list per request; one round trip."""

    async def read_all(self, key: str) -> dict[str, bytes]:
        """All fields of one hash."""

    async def read_at(self, tag: str, requests: Sequence[tuple[str, Sequence[str] | None]]) -> TagState:
        """Fields of hashes of one tag, or by None all of a hash, with the tag's positions, in one atomic step."""

    async def write(self, key: str, fields: Mapping[str, bytes]) -> None:
        """Sets fields of a hash that no claim guards (cluster facts, models, heartbeats)."""

    async def remove(self, key: str, fields: Sequence[str]) -> None:
        """Removes fields of a hash that no claim guards."""

    async def swap(self, key: str, expected: Fields, fields: Fields) -> bool:
        """Sets fields of a hash that no claim guards, or removes one by None, if all `expected` ones are as given.

        False, and nothing is changed, when one is not; None expects that it is not there.
        """

    async def present(self, places: Sequence[tuple[str, str]]) -> list[bool]:
        """Of each (hash, field) whether it is there, without reading it; one round trip."""

    async def highest(self, key: str, start: int, limit: int) -> list[tuple[str, int]]:
        """Members of a sorted set with their scores, the highest first, from rank `start` on."""

    async def scores(self, key: str) -> dict[str, int]:
        """All members of a sorted set with their scores; of those that come or go meanwhile some."""

    async def count(self, key: str) -> int:
        """How many members a sorted set has, without reading them."""

    async def lowest(self, key: str, below_score: int, limit: int, from_score: int = -(2**53)) -> list[str]:
        """Up to `limit` members with `from_score` <= score < `below_score`, the lowest first, ties by name."""

    async def members(self, key: str) -> set[str]:
        """All members of a set."""

    async def read_log(self, generation: str, position: int, wait_ms: int) -> LogPage:
        """Item changes after `position`; waits up to `wait_ms` for the first. An unknown generation asks to reload."""

    async def close(self) -> None:
        """Releases connections."""


def positions_of(owner: Mapping[str, bytes]) -> dict[str, int]:
    """Next offsets by topic, from the fields of a tag's owner hash."""
    return {name.removeprefix(_POSITION): int(value) for name, value in owner.items() if name.startswith(_POSITION)}


def raise_if_refused(commit: Commit, verdict: str, stored: int) -> None:
    """Turns a store's verdict on a commit into `FencedError`, unless the commit had been applied before."""
    if verdict == "token":
        raise FencedError(commit.tag, commit.topic, "token", stored)
    if verdict == "beside":
        raise FencedError(commit.tag, commit.topic, "position of another topic", stored)
    # Only the owner moves its position, so "already there" means that an answer to this very write was lost.
    if verdict == "position" and stored != commit.position:
        raise FencedError(commit.tag, commit.topic, "position", stored)


def check_cluster(partitions: int, kinds: Sequence[str], stored_partitions: int, stored_kinds: Sequence[str]) -> None:
    """Refuses another partition count or reordered kinds: both would silently misread the stored state."""
    if stored_partitions != partitions:
        raise ValueError(
            f"the live state was made with {stored_partitions} user partitions, settings say {partitions}: "
            "set partitions back, or use another key prefix and rebuild from Kafka"
        )
    if list(kinds[: len(stored_kinds)]) != list(stored_kinds):
        raise ValueError(
            f"event kinds {list(kinds)} do not begin with the stored ones {list(stored_kinds)}: "
            "new kinds may only be appended"
        )
