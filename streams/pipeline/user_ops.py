"""Which writes a batch's changes to users ask for: state, profile, vectors, popularity and the partition's clock.

Assumes that the changes were made in memory and that their vectors are encoded. Everything a plan writes lies under one
tag, so it goes into one atomic step; how that is done is the store's matter.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from index.state.keys import Keys
from index.state.records import PROFILE, STATE, UserState, encode_profile, encode_state, vector_field
from index.state.store import Op
from streams.events import Click, Forget, Profile
from streams.pipeline.clock import PartitionClock
from streams.pipeline.lease import Tenure
from streams.pipeline.user_state import WindowLimits

LOCATION_SEPARATOR = "\x1f"  # between location and item in a popularity field; ids never hold it
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes of the live state; the same values give the same digest."""

    limits: WindowLimits = field(default_factory=WindowLimits)
    bucket_ms: int = 6 * 3600 * 1000  # popularity is counted in buckets of this width …
    horizon_buckets: int = 120  # … and forgotten after this many (30 days)
    idle_ms: int = (
        400 * DAY_MS
    )  # users are removed this long after their last event, by their partition's clock; 0: never
    cached_users: int = 2000  # decoded users kept per partition, about 10 KB each
    half_vectors: bool = True  # user vectors in fp16; replay keeps fp32


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

    tenure: Tenure
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
    return sorted(bucket for bucket in plan.tenure.buckets | set(plan.popularity) if bucket <= last)


def user_topic_ops(keys: Keys, plan: Plan, settings: EngineSettings, version: str | None) -> list[Op]:
    """Everything a plan writes beside its position; `version` is the encoder's model, None without an encoder."""
    tag = plan.tenure.tag
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
    if plan.ticked or plan.tenure.idle_ms != settings.idle_ms:
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
    index = keys.users(plan.tenure.tag)
    times = {user: t.state.ts_ms[-1] if t.state.ts_ms else 0 for user, t in plan.touched.items() if not t.state.empty}
    gone = [user for user, touched in plan.touched.items() if touched.state.empty]
    return ([Op("zadd", index, times)] if times else []) + ([Op("zrem", index, names=gone)] if gone else [])


def _waiting_ops(keys: Keys, plan: Plan) -> list[Op]:
    waiting, before = keys.waiting(plan.tenure.tag), plan.tenure.waiting
    now = [user for user, touched in plan.touched.items() if touched.missing and user not in before]
    done = [user for user, touched in plan.touched.items() if not touched.missing and user in before]
    return ([Op("sadd", waiting, names=now)] if now else []) + ([Op("srem", waiting, names=done)] if done else [])
