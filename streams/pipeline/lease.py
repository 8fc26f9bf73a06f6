"""Holds what a worker has of one claimed tag, which are its token, its positions, and users it need not read again.

Everything here is disposable: it can be rebuilt from the store, and is dropped when a write was refused or unsure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from index.state.store import Commit, LiveStore, LogIdentity, Op
from index.state.user_columns import UserState
from streams.pipeline.partition_clock import PartitionClock


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
