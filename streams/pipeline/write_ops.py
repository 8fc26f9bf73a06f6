"""Turns applied events into the writes of one atomic step: users, profiles, popularity, clocks, items, contexts.

Last write wins by offset. A withdrawn item keeps its vector. A vector of another embedder than the encoder's is stored
and not used: the item keeps the retrieval vector it has, if any, until one of the right embedder comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from encoder.text.item_text import canonical_text, text_hash
from index.state.keys import Keys
from index.state.records import (
    CATALOGUE,
    EMBEDDER,
    PROFILE,
    STATE,
    TAGS,
    TEXT_HASH,
    TEXT_VECTOR,
    VECTOR_HASH,
    UserState,
    canonical_json,
    encode_profile,
    encode_state,
    encode_vectors,
    vector_field,
)
from index.state.store import Op
from streams.events import CatalogueEntry, Click, ContextEntry, Event, Forget, Profile, VectorEntry
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.lease import PartitionLease
from streams.pipeline.user_state import EngineSettings, PartitionClock


@dataclass(slots=True)
class Touched:
    """A user changed by the batch: `keep` leading events of the window are as they were."""

    state: UserState
    keep: int
    emptied: bool = False  # forgotten, or removed as idle: vectors and caches go too
    profiled: bool = False
    encode: bool = False
    vectors: bytes | None = None
    missing: tuple[str, ...] = ()


@dataclass(slots=True)
class Plan:
    """What one partition's part of a batch will write."""

    lease: PartitionLease
    topic: str
    position: int
    events: list[Click | Forget | Profile] = field(default_factory=list)
    touched: dict[str, Touched] = field(default_factory=dict)
    popularity: dict[int, Counter[str]] = field(default_factory=dict)
    clock: PartitionClock = field(default_factory=PartitionClock)
    ticked: bool = False  # a click was applied
    written: bool = False


def expired_buckets(plan: Plan, settings: EngineSettings) -> list[int]:
    """Popularity buckets that lie beyond the horizon now."""
    last = plan.clock.now_ms // settings.bucket_ms - settings.horizon_buckets
    return sorted(bucket for bucket in plan.lease.buckets | set(plan.popularity) if bucket <= last)


def user_topic_ops(keys: Keys, plan: Plan, settings: EngineSettings, version: str | None) -> list[Op]:
    """Everything a plan writes beside its position; `version` is the encoder's model, None without an encoder."""
    tag = plan.lease.tag
    ops: list[Op] = []
    for user_id, touched in plan.touched.items():
        ops += _user_ops(keys.user(tag, user_id), touched, version)
    ops += _index_ops(keys, plan) + _waiting_ops(keys, plan)
    for bucket, counts in plan.popularity.items():
        ops.append(Op("hincr", keys.popularity(tag, bucket), dict(counts)))
        ops.append(Op("hincr", keys.popularity_buckets(tag), {str(bucket): counts.total()}))
    for bucket in expired_buckets(plan, settings):
        ops.append(Op("delete", keys.popularity(tag, bucket)))
        ops.append(Op("hdel", keys.popularity_buckets(tag), names=(str(bucket),)))
    if plan.ticked or plan.lease.idle_ms != settings.idle_ms:
        facts = {"clock": plan.clock.encode(), "idle_ms": str(settings.idle_ms).encode()}
        ops.append(Op("hset", keys.owner(tag), facts))
    return ops


def _user_ops(key: str, touched: Touched, version: str | None) -> list[Op]:
    state = touched.state
    if state.empty:
        return [Op("delete", key)]
    fields = {STATE: encode_state(state)}
    if touched.profiled or (touched.emptied and state.profile_ms >= 0):
        fields[PROFILE] = encode_profile(state.profile, state.profile_ms)
    ops = [Op("delete", key)] if touched.emptied else []
    if version is not None:
        if touched.vectors is not None:
            fields[vector_field(version)] = touched.vectors
        elif not state.ts_ms and not touched.emptied:  # the profile was all there was, and it is gone
            ops.append(Op("hdel", key, names=(vector_field(version),)))
    return [*ops, Op("hset", key, fields)]


def _index_ops(keys: Keys, plan: Plan) -> list[Op]:
    """Users by the time of their newest event; 0 for those of whom only a profile or a forget mark is left."""
    index = keys.users(plan.lease.tag)
    times = {user: t.state.ts_ms[-1] if t.state.ts_ms else 0 for user, t in plan.touched.items() if not t.state.empty}
    gone = [user for user, touched in plan.touched.items() if touched.state.empty]
    return ([Op("zadd", index, times)] if times else []) + ([Op("zrem", index, names=gone)] if gone else [])


def _waiting_ops(keys: Keys, plan: Plan) -> list[Op]:
    waiting, before = keys.waiting(plan.lease.tag), plan.lease.waiting
    now = [user for user, touched in plan.touched.items() if touched.missing and user not in before]
    done = [user for user, touched in plan.touched.items() if not touched.missing and user in before]
    return ([Op("sadd", waiting, names=now)] if now else []) + ([Op("srem", waiting, names=done)] if done else [])


def context_ops(events: Sequence[Event], keys: Keys) -> list[Op]:
    """Sets or removes the context of each location."""
    ops = []
    for event in events:
        assert isinstance(event, ContextEntry)
        if event.content is None:
            ops.append(Op("hdel", keys.contexts(), names=(event.location,)))
        else:
            ops.append(Op("hset", keys.contexts(), {event.location: event.content}))
    return ops


async def item_ops(events: Sequence[Event], keys: Keys, encoder: EncoderThread | None) -> list[Op]:
    """Writes each item's record and appends it to the item log, in offset order."""
    entries = [
        event
        for event in events
        if isinstance(event, VectorEntry) and event.vector is not None and encoder is not None
        if encoder.reads(event.embedder)
    ]
    retrieval = await _retrieval_vectors(entries, encoder)
    ops: list[Op] = []
    for event in events:
        if isinstance(event, CatalogueEntry):
            ops += _catalogue_ops(event, keys)
        elif isinstance(event, VectorEntry):
            ops += _vector_ops(event, keys, encoder, retrieval.get(id(event)))
    return ops


async def _retrieval_vectors(entries: Sequence[VectorEntry], encoder: EncoderThread | None) -> dict[int, bytes]:
    if encoder is None or not entries:
        return {}
    vectors = np.stack([entry.vector for entry in entries if entry.vector is not None])
    found = await encoder.retrieval([entry.item_id for entry in entries], vectors, [entry.tags for entry in entries])
    return {id(entry): encode_vectors(row, half=False) for entry, row in zip(entries, found, strict=True)}


def _catalogue_ops(event: CatalogueEntry, keys: Keys) -> list[Op]:
    key = keys.item(event.item_id)
    log = Op("log", key, names=(event.item_id,))
    if event.fields is None:
        return [Op("hdel", key, names=(CATALOGUE, TEXT_HASH)), log]
    fields = {
        CATALOGUE: canonical_json(event.fields),
        TEXT_HASH: text_hash(canonical_text(event.fields)).encode(),
    }
    return [Op("hset", key, fields), log]


def _vector_ops(event: VectorEntry, keys: Keys, encoder: EncoderThread | None, retrieval: bytes | None) -> list[Op]:
    key = keys.item(event.item_id)
    log = Op("log", key, names=(event.item_id,))
    versions = (vector_field(encoder.version),) if encoder else ()
    if event.vector is None:
        return [Op("hdel", key, names=(TEXT_VECTOR, TAGS, EMBEDDER, VECTOR_HASH, *versions)), log]
    fields = {
        TEXT_VECTOR: encode_vectors(event.vector, half=False),
        TAGS: canonical_json(list(event.tags)),
        EMBEDDER: event.embedder.encode(),
    }
    if event.text_hash:
        fields[VECTOR_HASH] = event.text_hash.encode()
    if encoder is not None and retrieval is not None:
        fields[vector_field(encoder.version)] = retrieval
    drop = [] if event.text_hash else [Op("hdel", key, names=(VECTOR_HASH,))]
    return [*drop, Op("hset", key, fields), log]
