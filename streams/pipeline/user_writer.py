"""From a batch of clicks and profiles to one atomic write per partition: state, vectors, popularity, position.

Reads as prepare → load → change → encode → write. When any step fails, what was changed in memory is dropped, so the
batch can be applied again from the store's truth.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence

import orjson

from encoder.inference.incremental import EncodeRequest
from index.state.keys import LOCATION_SEPARATOR
from index.state.records import PROFILE, STATE, UserState, encode_vectors, load_user
from index.state.store import LiveStore
from streams.events import CLICKSTREAM, Click, Forget, Profile, Record, Rules
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.intake import Intake
from streams.pipeline.lease import PartitionLease
from streams.pipeline.metrics import PipelineCounters, WorkerMetrics
from streams.pipeline.user_state import (
    Change,
    EngineSettings,
    Outcome,
    PartitionClock,
    apply_click,
    apply_forget,
    apply_profile,
    leave_if_idle,
)
from streams.pipeline.write_ops import Plan, Touched, expired_buckets, user_topic_ops

SWEEP_USERS = 100  # idle users removed at a time: some milliseconds


class UserWriter:
    """Applies the records of the user topics (`clickstream`, `users`)."""

    def __init__(
        self,
        store: LiveStore,
        rules: Rules,
        intake: Intake,
        encoder: EncoderThread | None,
        settings: EngineSettings,
        counts: PipelineCounters,
        metrics: WorkerMetrics,
    ) -> None:
        self._metrics = metrics
        self._store, self._intake, self._encoder = store, intake, encoder
        self._settings, self._counts = settings, counts
        self._weights = [kind.weight for kind in rules.kinds]
        self._remembered = {code for code, kind in enumerate(rules.kinds) if kind.remembered}
        self._one_at_a_time = asyncio.Lock()

    async def open(self, lease: PartitionLease) -> None:
        """Reads what a new lease has to know of its partition."""
        keys, tag = self._store.keys, lease.tag
        clock, idle_ms = (await self._store.read([(keys.owner(tag), ["clock", "idle_ms"])]))[0]
        lease.clock, lease.idle_ms = PartitionClock.decode(clock), int(idle_ms or -1)
        lease.buckets = {int(bucket) for bucket in await self._store.read_all(keys.popularity_buckets(tag))}
        lease.waiting = dict.fromkeys(sorted(await self._store.members(keys.waiting(tag))), ())

    async def apply(self, topic: str, parts: Sequence[tuple[PartitionLease, Sequence[Record]]]) -> None:
        """Applies one topic's records, by partition."""
        async with self._one_at_a_time:
            plans = [Plan(lease, topic, records[-1].offset + 1) for lease, records in parts if records]
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
                        await self._drop(plan.lease)
                raise

    async def sweep_waiting(self, leases: Sequence[PartitionLease]) -> int:
        """Re-encodes users whose missing items have a vector by now. Changes no state and no position."""
        if self._encoder is None:
            return 0
        async with self._one_at_a_time:
            return await self._rewrite([self._waiting_plan(t) for t in leases if t.waiting])

    async def sweep_idle(self, lease: PartitionLease) -> int:
        """Removes some users of a partition who have been idle for too long; returns how many.

        Who counts as idle does not depend on this: it frees the memory of those who already do.
        """
        async with self._one_at_a_time:
            horizon_ms = lease.clock.before(self._settings.idle_ms)
            users = self._store.keys.users(lease.tag)
            found = await self._store.lowest(users, horizon_ms, SWEEP_USERS, from_score=1) if horizon_ms > 1 else []
            plan = self._still_plan(lease, found)
            for touched in plan.touched.values():
                touched.emptied = True
            removed = await self._rewrite([plan])
            self._counts.add("idle_swept", removed)
            return removed

    async def pass_over(self, lease: PartitionLease, topic: str, offset: int) -> None:
        """Moves a position and writes nothing else."""
        async with self._one_at_a_time:
            try:
                await lease.commit(self._store, topic, offset, [])
            except BaseException:
                lease.unsure = True
                raise

    async def _rewrite(self, plans: Sequence[Plan]) -> int:
        """Writes users as they are by now, at the position where the partition stands; returns how many."""
        plans = [plan for plan in plans if plan.touched]
        try:
            await self._load(plans)
            for plan in plans:
                for user_id, touched in plan.touched.items():
                    touched.state = plan.lease.users[user_id]
                    leave_if_idle(touched.state, plan.clock.before(self._settings.idle_ms))
                    touched.keep = 0 if touched.emptied else len(touched.state.ts_ms)
                    touched.encode = bool(touched.state.ts_ms) or touched.state.profile is not None
            await self._encode(plans)
            await self._write(plans)
        except BaseException:
            for plan in plans:
                await self._drop(plan.lease)
            raise
        return sum(len(plan.touched) for plan in plans)

    def _waiting_plan(self, lease: PartitionLease) -> Plan:
        assert self._encoder is not None
        known = self._encoder.encoder.items
        ready = [user for user, items in lease.waiting.items() if not items or any(item in known for item in items)]
        return self._still_plan(lease, ready)

    def _still_plan(self, lease: PartitionLease, user_ids: Sequence[str]) -> Plan:
        plan = Plan(lease, CLICKSTREAM, lease.positions[CLICKSTREAM], clock=lease.clock)
        plan.touched = {user_id: Touched(UserState(), 0) for user_id in user_ids}
        return plan

    async def _drop(self, lease: PartitionLease) -> None:
        lease.unsure = True
        lease.users.clear()
        if self._encoder is not None:
            await self._encoder.drop_tag(lease.tag)

    async def _load(self, plans: Iterable[Plan]) -> None:
        wanted = []
        for plan in plans:
            users = dict.fromkeys(event.user_id for event in plan.events) or plan.touched
            wanted += [(plan.lease, user_id) for user_id in plan.lease.missing(users)]
        if not wanted:
            return
        keys = self._store.keys
        found = await self._store.read([(keys.user(lease.tag, user), (STATE, PROFILE)) for lease, user in wanted])
        for (lease, user_id), fields in zip(wanted, found, strict=True):
            lease.remember(user_id, load_user(fields))

    def _change(self, plan: Plan) -> None:
        plan.clock = plan.lease.clock.copy()
        for event in plan.events:
            state = plan.lease.users[event.user_id]
            plan.lease.remember(event.user_id, state)
            horizon_ms = plan.clock.before(self._settings.idle_ms)
            if leave_if_idle(state, horizon_ms):
                self._counts.add("idle")
                if event.user_id in plan.touched:  # while this very batch was applied
                    plan.touched[event.user_id] = Touched(state, 0, emptied=True, encode=state.profile is not None)
            change = self._apply(state, event, horizon_ms)
            self._counts.add(change.outcome)
            if change.outcome is Outcome.APPLIED:
                self._touch(plan, event, state, change)

    def _apply(self, state: UserState, event: Click | Forget | Profile, horizon_ms: int) -> Change:
        if isinstance(event, Click):
            return apply_click(state, event, self._settings.limits, self._remembered, horizon_ms)
        return apply_forget(state, event) if isinstance(event, Forget) else apply_profile(state, event)

    def _touch(self, plan: Plan, event: Click | Forget | Profile, state: UserState, change: Change) -> None:
        touched = plan.touched.setdefault(event.user_id, Touched(state, change.keep))
        touched.keep = min(touched.keep, change.keep)
        if isinstance(event, Click):
            touched.encode = plan.ticked = True
            plan.clock.observe(event.ts_ms)
            self._count_popularity(plan, event)
        elif isinstance(event, Forget):
            touched.emptied = True
        else:
            touched.profiled = True
        if not state.ts_ms:
            touched.encode = state.profile is not None

    def _count_popularity(self, plan: Plan, click: Click) -> None:
        width, horizon = self._settings.bucket_ms, self._settings.horizon_buckets
        bucket, weight = click.ts_ms // width, self._weights[click.kind]
        if weight > 0 and bucket > plan.clock.now_ms // width - horizon:
            name = f"{click.location}{LOCATION_SEPARATOR}{click.item_id}"
            plan.popularity.setdefault(bucket, Counter())[name] += weight

    async def _encode(self, plans: Sequence[Plan]) -> None:
        if self._encoder is None:
            return
        for plan in plans:
            for user_id, touched in plan.touched.items():
                if touched.emptied:
                    await self._encoder.drop(plan.lease.tag, user_id)
        jobs = [(plan, user, t) for plan in plans for user, t in plan.touched.items() if t.encode]
        if not jobs:
            return
        started = time.perf_counter()
        result = await self._encoder.encode([_request(plan.lease.tag, user, t) for plan, user, t in jobs])
        self._metrics.encoded(len(jobs), time.perf_counter() - started)
        for (_, _, touched), vectors, missing in zip(jobs, result.vectors, result.missing, strict=True):
            touched.vectors = encode_vectors(vectors, self._settings.half_vectors)
            touched.missing = missing
        self._counts.add("encoded", len(jobs))

    async def _write(self, plans: Sequence[Plan]) -> None:
        async def write(plan: Plan) -> None:
            version = None if self._encoder is None else self._encoder.version
            ops = user_topic_ops(self._store.keys, plan, self._settings, version)
            await plan.lease.commit(self._store, plan.topic, plan.position, ops)
            plan.written = True
            self._settle(plan)

        results = await asyncio.gather(*(write(plan) for plan in plans), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _settle(self, plan: Plan) -> None:
        """Takes over in memory what was just written."""
        lease = plan.lease
        expired = set(expired_buckets(plan, self._settings))
        lease.buckets = (lease.buckets | set(plan.popularity)) - expired
        lease.clock, lease.idle_ms = plan.clock, self._settings.idle_ms
        for user_id, touched in plan.touched.items():
            lease.waiting.pop(user_id, None)
            if touched.missing:
                lease.waiting[user_id] = touched.missing
        lease.trim()


def _request(tag: str, user_id: str, touched: Touched) -> EncodeRequest:
    state = touched.state
    profile = orjson.loads(state.profile) if state.profile is not None else None
    return EncodeRequest((tag, user_id), state.items, state.kinds, state.ts_ms, profile, touched.keep)
