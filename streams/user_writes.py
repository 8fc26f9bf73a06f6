"""From a batch of clicks and profiles to one atomic write per partition: state, vectors, popularity, position.

Reads as prepare → load → change → encode → write. When any step fails, what was changed in memory is dropped, so the
batch can be applied again from the store's truth.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import orjson

from encoder.incremental import EncodeRequest
from index.keys import Keys
from index.metrics import WorkerMetrics
from index.records import (
    PROFILE,
    STATE,
    UserState,
    encode_profile,
    encode_state,
    encode_vectors,
    load_user,
    vector_field,
)
from index.store import LiveStore, Op
from streams.encoder_thread import EncoderThread
from streams.events import CLICKSTREAM, Click, Forget, Profile, Record, Rules
from streams.intake import Intake
from streams.state import Outcome, WindowLimits, apply_click, apply_forget, apply_profile
from streams.tenure import Tenure

LOCATION_SEPARATOR = "\x1f"  # between location and item in a popularity field; ids never hold it


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes of the live state; the same values give the same digest."""

    limits: WindowLimits = field(default_factory=WindowLimits)
    bucket_ms: int = 6 * 3600 * 1000  # popularity is counted in buckets of this width …
    horizon_buckets: int = 120  # … and forgotten after this many (30 days)
    cached_users: int = 2000  # decoded users kept per partition, about 10 KB each
    half_vectors: bool = True  # user vectors in fp16; replay keeps fp32


@dataclass(slots=True)
class _Touched:
    """A user changed by the batch: `keep` leading events of the window are as they were."""

    state: UserState
    keep: int
    forgotten: bool = False
    profiled: bool = False
    encode: bool = False
    vectors: bytes | None = None
    missing: tuple[str, ...] = ()


@dataclass(slots=True)
class _Plan:
    """What one partition's part of a batch will write."""

    tenure: Tenure
    topic: str
    position: int
    events: list[Click | Forget | Profile] = field(default_factory=list)
    touched: dict[str, _Touched] = field(default_factory=dict)
    popularity: dict[int, Counter[str]] = field(default_factory=dict)
    clock_ms: int = -1
    written: bool = False


class UserWriter:
    """Applies the records of the user topics (`clickstream`, `users`)."""

    def __init__(
        self,
        store: LiveStore,
        rules: Rules,
        intake: Intake,
        encoder: EncoderThread | None,
        settings: EngineSettings,
        counts: Counter[str],
        metrics: WorkerMetrics,
    ) -> None:
        self._metrics = metrics
        self._store, self._intake, self._encoder = store, intake, encoder
        self._settings, self._counts = settings, counts
        self._weights = [kind.weight for kind in rules.kinds]
        self._remembered = {code for code, kind in enumerate(rules.kinds) if kind.remembered}
        self._one_at_a_time = asyncio.Lock()

    async def open(self, tenure: Tenure) -> None:
        """Reads what a new tenure has to know of its partition."""
        keys, tag = self._store.keys, tenure.tag
        clock = (await self._store.read([(keys.owner(tag), ["clock_ms"])]))[0][0]
        tenure.clock_ms = int(clock or -1)
        tenure.buckets = {int(bucket) for bucket in await self._store.read_all(keys.popularity_buckets(tag))}
        tenure.waiting = dict.fromkeys(await self._store.members(keys.waiting(tag)), ())

    async def apply(self, topic: str, parts: Sequence[tuple[Tenure, Sequence[Record]]]) -> None:
        """Applies one topic's records, by partition."""
        async with self._one_at_a_time:
            plans = [_Plan(tenure, topic, records[-1].offset + 1) for tenure, records in parts if records]
            batches = [records for _, records in parts if records]
            try:
                for plan, records in zip(plans, batches, strict=True):
                    plan.events = await self._intake.accept_at_home(records)
                await self._load(plans)
                for plan in plans:
                    self._change(plan)
                await self._encode(plans)
                await self._write(plans)
            except BaseException:
                for plan in plans:
                    if not plan.written:
                        await self._drop(plan.tenure)
                raise

    async def sweep_waiting(self, tenures: Sequence[Tenure]) -> int:
        """Re-encodes users whose missing items have a vector by now. Changes no state and no position."""
        if self._encoder is None:
            return 0
        async with self._one_at_a_time:
            plans = [self._waiting_plan(t) for t in tenures if t.waiting and CLICKSTREAM in t.positions]
            plans = [plan for plan in plans if plan.touched]
            try:
                await self._load(plans)
                for plan in plans:
                    for user_id, touched in plan.touched.items():
                        touched.state = plan.tenure.users[user_id]
                        touched.keep = len(touched.state.ts_ms)
                        touched.encode = bool(touched.state.ts_ms) or touched.state.profile is not None
                await self._encode(plans)
                await self._write(plans)
            except BaseException:
                for plan in plans:
                    await self._drop(plan.tenure)
                raise
            return sum(len(plan.touched) for plan in plans)

    def _waiting_plan(self, tenure: Tenure) -> _Plan:
        assert self._encoder is not None
        known = self._encoder.encoder.items
        ready = [user for user, items in tenure.waiting.items() if not items or any(item in known for item in items)]
        plan = _Plan(tenure, CLICKSTREAM, tenure.positions[CLICKSTREAM])
        plan.touched = {user_id: _Touched(UserState(), 0, encode=True) for user_id in ready}
        return plan

    async def _drop(self, tenure: Tenure) -> None:
        tenure.unsure = True
        tenure.users.clear()
        if self._encoder is not None:
            await self._encoder.drop_tag(tenure.tag)

    async def _load(self, plans: Iterable[_Plan]) -> None:
        wanted = []
        for plan in plans:
            users = dict.fromkeys(event.user_id for event in plan.events) or plan.touched
            wanted += [(plan.tenure, user_id) for user_id in plan.tenure.missing(users)]
        if not wanted:
            return
        keys = self._store.keys
        found = await self._store.read([(keys.user(tenure.tag, user), (STATE, PROFILE)) for tenure, user in wanted])
        for (tenure, user_id), fields in zip(wanted, found, strict=True):
            tenure.remember(user_id, load_user(fields))

    def _change(self, plan: _Plan) -> None:
        plan.clock_ms = plan.tenure.clock_ms
        for event in plan.events:
            state = plan.tenure.users[event.user_id]
            plan.tenure.remember(event.user_id, state)
            if isinstance(event, Click):
                change = apply_click(state, event, self._settings.limits, self._remembered)
            elif isinstance(event, Forget):
                change = apply_forget(state, event)
            else:
                change = apply_profile(state, event)
            self._counts[change.outcome.value] += 1
            if change.outcome is not Outcome.APPLIED:
                continue
            touched = plan.touched.setdefault(event.user_id, _Touched(state, change.keep))
            touched.keep = min(touched.keep, change.keep)
            if isinstance(event, Click):
                touched.encode = True
                self._count_popularity(plan, event)
            elif isinstance(event, Forget):
                touched.forgotten = True
            else:
                touched.profiled = True
            if not state.ts_ms:
                touched.encode = state.profile is not None

    def _count_popularity(self, plan: _Plan, click: Click) -> None:
        width, horizon = self._settings.bucket_ms, self._settings.horizon_buckets
        plan.clock_ms = max(plan.clock_ms, click.ts_ms)
        bucket, weight = click.ts_ms // width, self._weights[click.kind]
        if weight > 0 and bucket > plan.clock_ms // width - horizon:
            name = f"{click.location}{LOCATION_SEPARATOR}{click.item_id}"
            plan.popularity.setdefault(bucket, Counter())[name] += weight

    async def _encode(self, plans: Sequence[_Plan]) -> None:
        if self._encoder is None:
            return
        for plan in plans:
            for user_id, touched in plan.touched.items():
                if touched.forgotten:
                    await self._encoder.drop(plan.tenure.tag, user_id)
        jobs = [(plan, user, t) for plan in plans for user, t in plan.touched.items() if t.encode]
        if not jobs:
            return
        started = time.perf_counter()
        result = await self._encoder.encode([_request(plan.tenure.tag, user, t) for plan, user, t in jobs])
        self._metrics.encoded(len(jobs), time.perf_counter() - started)
        for (_, _, touched), vectors, missing in zip(jobs, result.vectors, result.missing, strict=True):
            touched.vectors = encode_vectors(vectors, self._settings.half_vectors)
            touched.missing = missing
        self._counts["encoded"] += len(jobs)

    async def _write(self, plans: Sequence[_Plan]) -> None:
        async def write(plan: _Plan) -> None:
            await plan.tenure.commit(self._store, plan.topic, plan.position, self._ops(plan))
            plan.written = True
            self._settle(plan)

        results = await asyncio.gather(*(write(plan) for plan in plans), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _settle(self, plan: _Plan) -> None:
        """Takes over in memory what was just written."""
        tenure = plan.tenure
        tenure.clock_ms = max(tenure.clock_ms, plan.clock_ms)
        tenure.buckets = (tenure.buckets | set(plan.popularity)) - set(self._expired(plan))
        for user_id, touched in plan.touched.items():
            tenure.waiting.pop(user_id, None)
            if touched.missing:
                tenure.waiting[user_id] = touched.missing
        tenure.trim()

    def _expired(self, plan: _Plan) -> list[int]:
        last = plan.clock_ms // self._settings.bucket_ms - self._settings.horizon_buckets
        return sorted(bucket for bucket in plan.tenure.buckets | set(plan.popularity) if bucket <= last)

    def _ops(self, plan: _Plan) -> list[Op]:
        keys, tag = self._store.keys, plan.tenure.tag
        ops: list[Op] = []
        for user_id, touched in plan.touched.items():
            ops += self._user_ops(keys.user(tag, user_id), touched)
        if plan.touched:
            times = {user_id: _last_ms(touched.state) for user_id, touched in plan.touched.items()}
            ops.append(Op("zadd", keys.users(tag), times))
        ops += self._waiting_ops(keys, plan)
        for bucket, counts in plan.popularity.items():
            ops.append(Op("hincr", keys.popularity(tag, bucket), dict(counts)))
            ops.append(Op("hincr", keys.popularity_buckets(tag), {str(bucket): counts.total()}))
        for bucket in self._expired(plan):
            ops.append(Op("delete", keys.popularity(tag, bucket)))
            ops.append(Op("hdel", keys.popularity_buckets(tag), names=(str(bucket),)))
        if plan.clock_ms > plan.tenure.clock_ms:
            ops.append(Op("hset", keys.owner(tag), {"clock_ms": str(plan.clock_ms).encode()}))
        return ops

    def _user_ops(self, key: str, touched: _Touched) -> list[Op]:
        state = touched.state
        fields = {STATE: encode_state(state)}
        if touched.profiled or (touched.forgotten and state.profile_ms >= 0):
            fields[PROFILE] = encode_profile(state.profile, state.profile_ms)
        ops = [Op("delete", key)] if touched.forgotten else []
        if self._encoder is not None:
            version = vector_field(self._encoder.version)
            if touched.vectors is not None:
                fields[version] = touched.vectors
            elif not state.ts_ms and not touched.forgotten:  # the profile was all there was, and it is gone
                ops.append(Op("hdel", key, names=(version,)))
        return [*ops, Op("hset", key, fields)]

    @staticmethod
    def _waiting_ops(keys: Keys, plan: _Plan) -> list[Op]:
        tag, before = plan.tenure.tag, plan.tenure.waiting
        now = [user for user, touched in plan.touched.items() if touched.missing and user not in before]
        done = [user for user, touched in plan.touched.items() if not touched.missing and user in before]
        ops = [Op("sadd", keys.waiting(tag), names=now)] if now else []
        return [*ops, Op("srem", keys.waiting(tag), names=done)] if done else ops


def _request(tag: str, user_id: str, touched: _Touched) -> EncodeRequest:
    state = touched.state
    profile = orjson.loads(state.profile) if state.profile is not None else None
    return EncodeRequest((tag, user_id), state.items, state.kinds, state.ts_ms, profile, touched.keep)


def _last_ms(state: UserState) -> int:
    return max([0, state.profile_ms, state.forgotten_ms, *state.ts_ms[-1:]])
