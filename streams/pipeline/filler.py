"""Completes vectors beside the stream, so that all users and items have those of every model that is written.

A pass over a tag looks at everyone, newest first, encodes who lacks a vector and removes those of other models. A pass
that had nothing to write is noted at the tag. What a killed worker had begun begins anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from index.state.keys import ITEMS_TAG
from index.state.records import vector_field
from streams.events import CLICKSTREAM
from streams.pipeline.encoders import Encoders
from streams.pipeline.engine import Engine
from streams.pipeline.lease import PartitionLease

_LOOK = 200  # users looked at in one round trip
_ITEMS = 50  # looked at and written at once
_PIECE_S = 0.008  # of encoding users at once, for which clicks may have to wait
_MOST_USERS = 64  # encoded at once
_IDLE_S = 0.1  # between two looks for users who are waited for, when nothing is to fill; else …
_MOST_REST_S = 1.0  # a step of seconds has waited for the batch in work, on a machine that is busy with other things
_GLANCE_S = 0.02  # … so long at most, also while it rests: an API process waits for 0.1 s
# Before items whose text vectors are still to come are looked through again: some times as long as that took.
_WAIT_S, _MOST_WAIT_S, _WAIT_PASSES = 1.0, 60.0, 4


@dataclass(slots=True)
class _Pass:
    """One look at all users or items of a tag, as they were at its beginning: who comes later is written anew."""

    token: str  # of the claim under which it began
    mark: str  # as of `Encoders.mark`
    removing: bool  # vectors of other models may be there
    began_s: float
    names: Sequence[str]  # newest first; in pages of the store's order whoever moves or leaves would hide another
    looked: int = 0
    written: int = 0
    waiting: int = 0  # items that wait for the text vector of another embedder
    lacking: list[tuple[str, frozenset[str]]] = field(default_factory=list)  # users found and not yet encoded

    def next(self, most: int) -> Sequence[str]:
        """The names that are looked at next."""
        found = self.names[self.looked : self.looked + most]
        self.looked += len(found)
        return found


class VectorFiller:
    """Fills what an engine's claimed tags lack, in at most a `share` of the time, unless users are waited for."""

    def __init__(self, engine: Engine, share: float, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._share, self._now_s = engine, share, monotonic_s
        self._passes: dict[str, _Pass] = {}
        self._rests_until_s = -math.inf
        self._turn = 0
        self._users = 1  # to encode at once
        self._rest: tuple[str, float] = "", 0.0  # with these models no look at the items before that time

    async def turn(self) -> float:
        """A piece of work, if there is one and it has rested long enough; returns after how many seconds to call again.

        Raises StoreUnavailableError, FencedError: what was not written is found again.
        """
        if await self.serve_wanted():
            return 0.0
        began_s = self._now_s()
        if began_s >= self._rests_until_s:
            if not await self.step():
                return _IDLE_S
            took_s = self._now_s() - began_s
            self._engine.counts.add("fill_ms", round(1000 * took_s))
            rest_s = min(_MOST_REST_S, took_s * (1 / self._share - 1))
            self._rests_until_s = began_s + took_s + rest_s
        return min(_GLANCE_S, max(0.0, self._rests_until_s - self._now_s()))

    async def serve_wanted(self) -> int:
        """Encodes the users of our partitions who asked and have no vectors; how many those were."""
        store = self._engine.store
        wanted = {user_id: tag.decode() for user_id, tag in (await store.read_all(store.keys.wanted())).items()}
        served = 0
        for tag, lease in list(self._engine.leases.items()):
            users = [user_id for user_id, home in wanted.items() if home == tag]
            if users and not lease.unsure and CLICKSTREAM in lease.positions:
                lacking = await self._users_lacking(lease, users)
                for at in range(0, len(lacking), _MOST_USERS):
                    served += await self._engine.fill_users(lease, dict(lacking[at : at + _MOST_USERS]))
                await store.remove(store.keys.wanted(), users)
        return served

    async def step(self) -> bool:
        """One piece of work at one tag, the items before the users; False when all tags are complete."""
        due = [lease for lease in self._engine.leases.values() if self._is_due(lease)]
        tags = {lease.tag for lease in due}
        self._passes = {tag: found for tag, found in self._passes.items() if tag in tags}  # others may be elsewhere now
        if not due:
            return False
        self._turn += 1
        lease = next((lease for lease in due if lease.tag == ITEMS_TAG), due[self._turn % len(due)])
        now = await self._pass(lease)
        try:
            await (self._items_step(lease, now) if lease.tag == ITEMS_TAG else self._users_step(lease, now))
        except BaseException:
            self._passes.pop(lease.tag, None)  # what it has looked at and not written is looked for again
            raise
        return True

    def report(self) -> dict[str, Any]:
        """Passes under way, by tag; empty when all tags of this worker are complete.

        `looked` of `total` users or items are done, for `written` of them something was missing, in `seconds` by now.
        """
        return {
            tag: {
                "total": len(found.names),
                "looked": found.looked - len(found.lacking),
                "written": found.written,
                "seconds": round(self._now_s() - found.began_s, 1),
            }
            for tag, found in self._passes.items()
        }

    def _is_due(self, lease: PartitionLease) -> bool:
        has_vectors = lease.tag == ITEMS_TAG or CLICKSTREAM in lease.positions
        encoders = self._encoders(lease)
        if lease.tag == ITEMS_TAG and self._rest[0] == encoders.mark and self._now_s() < self._rest[1]:
            return False
        return has_vectors and not lease.unsure and bool(encoders) and lease.models != encoders.mark

    def _encoders(self, lease: PartitionLease) -> Encoders:
        return self._engine.item_encoders if lease.tag == ITEMS_TAG else self._engine.encoders

    async def _pass(self, lease: PartitionLease) -> _Pass:
        """The tag's pass; a new one after another claim or change of the models."""
        found = self._passes.get(lease.tag)
        if found is None or (found.token, found.mark) != (lease.token, self._encoders(lease).mark):
            found = await self._begin(lease)
        return found

    async def _begin(self, lease: PartitionLease) -> _Pass:
        encoders, began_s = self._encoders(lease), self._now_s()
        scores = await self._engine.store.scores(self._members(lease))
        names = sorted(scores, key=scores.__getitem__, reverse=True)
        removing = encoders.leaves(lease.models)
        found = self._passes[lease.tag] = _Pass(lease.token, encoders.mark, removing, began_s, names)
        return found

    async def _items_step(self, lease: PartitionLease, now: _Pass) -> None:
        items = now.next(_ITEMS)
        if not items:
            return await self._end(lease, now)
        if not now.removing:
            hashes, versions = map(self._engine.store.keys.item, items), self._engine.item_encoders.versions
            items = [item_id for item_id, _ in await self._lacking(hashes, items, versions)]
        if items:
            # While a model is filled that nobody can have loaded, its followers have nothing to learn.
            completed = await self._engine.fill_items(lease, items, logged=not lease.models)
            self._wrote(now, completed.filled)
            now.waiting += completed.waiting
        return None

    async def _users_step(self, lease: PartitionLease, now: _Pass) -> None:
        if not now.lacking:
            page = now.next(_LOOK)
            if not page:
                return await self._end(lease, now)
            if now.removing:
                await self._engine.keep_vectors(lease, page)
            now.lacking = await self._users_lacking(lease, page)
            if not now.lacking:
                return None
        began, users = self._now_s(), dict(now.lacking[: self._users])
        self._wrote(now, await self._engine.fill_users(lease, users))
        del now.lacking[: len(users)]
        took_s = max(self._now_s() - began, 1e-4)
        self._users = max(1, min(_MOST_USERS, 2 * self._users, int(len(users) * _PIECE_S / took_s)))
        return None

    def _wrote(self, now: _Pass, count: int) -> None:
        now.written += count
        self._engine.counts.add("filled", count)

    async def _lacking(
        self, hashes: Iterable[str], names: Sequence[str], versions: Sequence[str]
    ) -> list[tuple[str, frozenset[str]]]:
        """Those users or items who lack vectors of models, with the versions that they lack."""
        places = [(key, vector_field(version)) for key in hashes for version in versions]
        there = iter(await self._engine.store.present(places))
        lacking = [(name, frozenset(version for version in versions if not next(there))) for name in names]
        return [(name, missing) for name, missing in lacking if missing]

    async def _users_lacking(self, lease: PartitionLease, user_ids: Sequence[str]) -> list[tuple[str, frozenset[str]]]:
        keys, versions = self._engine.store.keys, self._engine.encoders.versions
        return await self._lacking([keys.user(lease.tag, user_id) for user_id in user_ids], user_ids, versions)

    async def _end(self, lease: PartitionLease, now: _Pass) -> None:
        """Notes a pass that had nothing to write; after another one it is looked for whom it has passed over.

        Items that wait for text vectors are looked at again later.
        """
        del self._passes[lease.tag]
        if now.written or now.mark != self._encoders(lease).mark:
            return
        if now.waiting:
            now_s = self._now_s()
            rest_s = min(_MOST_WAIT_S, max(_WAIT_S, _WAIT_PASSES * (now_s - now.began_s)))
            self._rest = now.mark, now_s + rest_s
        else:
            await self._engine.mark(lease, now.mark)

    def _members(self, lease: PartitionLease) -> str:
        keys = self._engine.store.keys
        return keys.item_index() if lease.tag == ITEMS_TAG else keys.users(lease.tag)
