"""Reads one user's live state for one answer, with the context record of the user's location.

Assumes a store that answers the reads of one call in their order. The position is read before the state, so it never
claims more than the state holds; how old it is says `index.api.liveness`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import orjson

from index.state.keys import CONTEXT_TAG, partition_of, partition_tag
from index.state.records import PROFILE, STATE, Vector, decode_vectors, load_context, vector_field
from index.state.store import LiveStore, StoreUnavailableError
from index.state.stored_user import StoredUser
from index.state.user_columns import UserState, event_key

# How an event is waited for, which becomes visible some milliseconds after Kafka has it: each look is one round trip,
# so the pauses grow with the time already waited. What is seen is at most a fifth of it late.
_LOOK_S, _LOOK_SHARE = 0.001, 0.2
USER_PART, CONTEXT_PART = "user", "context"  # of `LiveUser.read`
_POSITION, _BEAT = "pos:clickstream", "beat"
_load_context = lru_cache(256)(load_context)  # one object for each content: most locations change once an hour
_Raw = tuple[bytes | None, bytes | None]  # state and profile as stored
_Request = tuple[str, Sequence[str]]  # fields of a hash
_Read = Mapping[str, Mapping[str, int]]  # part → topic → position


@dataclass(frozen=True, slots=True)
class LiveUser:
    """What one answer knows about its user.

    `vectors` is [2, d] (h_next, h_gen) of the model asked for, None while there are none. `offset` is the partition's
    applied position, `beat` its confirmation counter. `includes_after` is None when no event was waited for. `read`
    says from which positions of which topics user and context are, where that was asked for.
    """

    user_id: str
    stored: StoredUser
    vectors: Vector | None
    partition: int
    offset: int
    beat: int
    location: str
    context: Mapping[str, Any] | None
    includes_after: bool | None = None
    read: Mapping[str, Mapping[str, int]] | None = None
    rules: Mapping[str, bytes | None] = field(default_factory=dict)  # of the scenarios asked for, as they are stored

    @property
    def state(self) -> UserState:
        """The user's state, decoded."""
        return self.stored.state

    @property
    def known(self) -> bool:
        """Whether anything is stored about the user, a forget mark aside."""
        return bool(self.stored.kinds or self.stored.bought or self.stored.profile)

    @property
    def has_window(self) -> bool:
        """Whether there is something that vectors can be made of."""
        return bool(self.stored.kinds or self.stored.profile)

    @property
    def newest_ms(self) -> int | None:
        """Time of the newest event of the window."""
        return self.stored.newest_ms


@dataclass(frozen=True, slots=True)
class UserReader:
    """Reads users of a deployment with `partitions` user partitions, for a model with vectors of `dim` numbers.

    With `placed` users know which positions they are of, as each part is read in one step with its positions. With
    `scenarios` their rules are read beside them.
    """

    store: LiveStore
    partitions: int
    model: str
    dim: int
    placed: bool = False
    scenarios: tuple[str, ...] = ()

    async def read(
        self,
        user_id: str,
        location: str | None = None,
        after: str | None = None,
        wait_ms: float = 0.0,
        vectors_wait_ms: float | None = 0.0,
        idle: Callable[[], AbstractContextManager[None]] = nullcontext,  # held while vectors are waited for
    ) -> LiveUser:
        """The user now, or up to `wait_ms` later when the event `after` is not among the remembered ones yet.

        A user who has something to encode and no vectors, as after a change of the model, is said to be wanted, and
        waited for up to `vectors_wait_ms`; with None nobody is told.
        Without a `location` it is the profile's categorical `location`, else "". One round trip each time, and one
        more when the location had to be taken from a profile that was not known before. Raises StoreUnavailableError,
        or ValueError when the state was written by another version.
        """
        began = time.monotonic()
        deadline = began + wait_ms / 1000
        wanted = None if after is None else event_key(after)
        user, raw = await self._look(user_id, location)
        found = wanted is not None and user.state.remembers(wanted)
        while wanted is not None and not found and time.monotonic() < deadline:
            await asyncio.sleep(max(_LOOK_S, _LOOK_SHARE * (time.monotonic() - began)))
            place = location if location is not None else profile_location(user.stored.profile)
            user, raw = await self._look(user_id, place, user, raw)
            found = user.state.remembers(wanted)
        if vectors_wait_ms is not None and user.vectors is None and user.has_window:
            with idle():
                user = await self._encoded(user, vectors_wait_ms)
        return await self._placed(user, None if after is None else found, asked=location)

    async def _encoded(self, user: LiveUser, wait_ms: float) -> LiveUser:
        """The user with vectors, if a worker encodes them in time."""
        began = time.monotonic()
        try:
            await self.store.write(self.store.keys.wanted(), {user.user_id: partition_tag(user.partition).encode()})
        except StoreUnavailableError:  # it may take no writes, and the user is here
            return user
        while user.vectors is None and (waited := time.monotonic() - began) < wait_ms / 1000:
            await asyncio.sleep(max(_LOOK_S, _LOOK_SHARE * waited))
            user, _ = await self._look(user.user_id, user.location)
        return user

    async def _look(
        self, user_id: str, location: str | None, last: LiveUser | None = None, last_raw: _Raw = (None, None)
    ) -> tuple[LiveUser, _Raw]:
        """One round trip; an unchanged state is not decoded again."""
        keys, partition = self.store.keys, partition_of(user_id, self.partitions)
        tag = partition_tag(partition)
        owner, wanted = (keys.owner(tag), [_POSITION, _BEAT]), [STATE, PROFILE, vector_field(self.model)]
        requests = [owner, (keys.user(tag, user_id), wanted), (keys.contexts(), [location or ""])]
        if self.scenarios:
            requests.append((keys.scenario_rules(), [*self.scenarios]))
        rows, read = (await self._at_once(tag, requests)) if self.placed else (await self.store.read(requests), None)
        (position, beat), (state, profile, vectors), (context,), *others = rows
        raw = (state, profile)
        user = LiveUser(
            user_id=user_id,
            stored=last.stored if last is not None and raw == last_raw else StoredUser(*raw),
            vectors=decode_vectors(vectors, 2, self.dim) if vectors else None,
            partition=partition,
            offset=int(position or 0),
            beat=int(beat or 0),
            location=location or "",
            context=_load_context(context),
            read=read,
            rules=dict(zip(self.scenarios, others[0], strict=True)) if others else {},
        )
        return user, raw

    async def _at_once(self, tag: str, requests: Sequence[_Request]) -> tuple[list[list[bytes | None]], _Read]:
        """As `read`, two requests of `tag`, one of contexts and others, with the positions of tag and contexts."""
        user, context, others = await asyncio.gather(
            self.store.read_at(tag, requests[:2]),
            self.store.read_at(CONTEXT_TAG, requests[2:3]),
            self.store.read(requests[3:]),
        )
        found = zip((*user.hashes, *context.hashes), requests[:3], strict=True)
        rows = [[fields.get(name) for name in names] for fields, (_, names) in found] + others
        return rows, {USER_PART: user.positions, CONTEXT_PART: context.positions}

    async def _placed(self, user: LiveUser, includes_after: bool | None, asked: str | None) -> LiveUser:
        """The user at the location that counts: the one asked for, else the profile's."""
        location, context, read = user.location, user.context, user.read
        counts = profile_location(user.stored.profile) if asked is None else asked
        if counts != location:
            request = (self.store.keys.contexts(), [counts])
            if read is None:
                ((found,),) = await self.store.read([request])
            else:
                state = await self.store.read_at(CONTEXT_TAG, [request])
                found, read = state.hashes[0].get(counts), {**read, CONTEXT_PART: state.positions}
            location, context = counts, _load_context(found)
        return replace(user, location=location, context=context, includes_after=includes_after, read=read)


def profile_location(profile: bytes | None) -> str:
    """The categorical `location` of a profile's canonical JSON, "" without one."""
    if not profile:
        return ""
    location = orjson.loads(profile).get("categorical", {}).get("location", "")
    return location if isinstance(location, str) else ""
