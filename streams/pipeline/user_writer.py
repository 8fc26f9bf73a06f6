"""Applies events of users to the live state, with one write for each partition.

Loads the users, has their change worked out, and writes it. When any step fails, what was changed in memory is
dropped, so the batch can be applied again from the store's truth.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from index.state.records import PROFILE, STATE, UserState, load_user
from index.state.store import LiveStore
from streams.events import CLICKSTREAM
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.lease import PartitionLease
from streams.pipeline.metrics import PipelineCounters
from streams.pipeline.partition_clock import PartitionClock
from streams.pipeline.user_state import EngineSettings, rules_applied
from streams.pipeline.write_plan import Touched, UserPlan, UserPlanner

_FORMER_RULES = "1"  # where a clock is stored and no version
SWEEP_USERS = 100  # idle users removed at a time: some milliseconds


class UserWriter:
    """Writes the users of claimed partitions; one batch at a time."""

    def __init__(
        self,
        store: LiveStore,
        planner: UserPlanner,
        encoder: EncoderThread | None,
        settings: EngineSettings,
        counts: PipelineCounters,
    ) -> None:
        self._store, self._planner, self._encoder = store, planner, encoder
        self._settings, self._counts = settings, counts
        self._one_at_a_time = asyncio.Lock()

    async def open(self, lease: PartitionLease) -> None:
        """Reads what a new lease has to know of its partition. Raises ValueError when a later build applied it."""
        keys, tag = self._store.keys, lease.tag
        clock, idle_ms, rules = (await self._store.read([(keys.owner(tag), ["clock", "idle_ms", "rules"])]))[0]
        lease.clock, lease.idle_ms = PartitionClock.decode(clock), int(idle_ms or -1)
        lease.rules = rules.decode() if rules else _FORMER_RULES if clock else ""
        rules_applied(lease.rules)
        lease.buckets = {int(bucket) for bucket in await self._store.read_all(keys.popularity_buckets(tag))}
        lease.waiting = dict.fromkeys(sorted(await self._store.members(keys.waiting(tag))), ())

    async def apply(self, plans: Sequence[UserPlan]) -> None:
        """Applies the events of plans, at most one plan a partition."""
        async with self._one_at_a_time:
            await self._apply(plans)

    async def _apply(self, plans: Sequence[UserPlan]) -> None:
        try:
            await self._load(plans)
            await self._planner.fill(plans)
            await self._write(plans)
        except BaseException:
            for plan in plans:
                if not plan.written:
                    await self._drop(plan.lease)
            raise

    async def _load(self, plans: Sequence[UserPlan]) -> None:
        """Reads the users that are not in memory, in one round trip."""
        wanted = [(plan.lease, user) for plan in plans for user in plan.users if user not in plan.lease.users]
        if not wanted:
            return
        keys = self._store.keys
        found = await self._store.read([(keys.user(lease.tag, user), (STATE, PROFILE)) for lease, user in wanted])
        for (lease, user_id), fields in zip(wanted, found, strict=True):
            lease.remember(user_id, load_user(fields))

    async def _write(self, plans: Sequence[UserPlan]) -> None:
        async def write(plan: UserPlan) -> None:
            await plan.lease.commit(self._store, plan.topic, plan.position, plan.ops)
            plan.written = True
            self._settle(plan)

        results = await asyncio.gather(*(write(plan) for plan in plans), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _settle(self, plan: UserPlan) -> None:
        """Takes over in memory what was just written."""
        lease = plan.lease
        lease.buckets.update(plan.popularity)
        lease.buckets.difference_update(plan.expired)
        lease.clock, lease.idle_ms, lease.rules = plan.clock, self._settings.idle_ms, plan.rules
        for user_id, touched in plan.touched.items():
            if touched.settled:
                lease.waiting.pop(user_id, None)
            if touched.missing:
                lease.waiting[user_id] = touched.missing
        lease.trim()

    async def _drop(self, lease: PartitionLease) -> None:
        lease.unsure = True
        lease.users.clear()
        if self._encoder is not None:
            await self._encoder.drop_tag(lease.tag)

    async def sweep_waiting(self, leases: Sequence[PartitionLease]) -> int:
        """Re-encodes users whose missing items have a vector by now. Changes no state and no position."""
        if self._encoder is None:
            return 0
        known = self._encoder.encoder.items
        async with self._one_at_a_time:
            plans = []
            for lease in leases:
                ready = [u for u, items in lease.waiting.items() if not items or any(item in known for item in items)]
                plans.append(_rewriting(lease, ready))
            return await self._rewrite(plans)

    async def sweep_idle(self, lease: PartitionLease) -> int:
        """Removes some users who have been idle for too long, which only frees memory; returns how many."""
        async with self._one_at_a_time:
            horizon_ms = lease.clock.before(self._settings.idle_ms)
            users = self._store.keys.users(lease.tag)
            found = await self._store.lowest(users, horizon_ms, SWEEP_USERS, from_score=1) if horizon_ms > 1 else []
            removed = await self._rewrite([_rewriting(lease, found, emptied=True)])
            self._counts.add("idle_swept", removed)
            return removed

    async def _rewrite(self, plans: Sequence[UserPlan]) -> int:
        """Writes users as they are by now, at the position where the partition stands; returns how many."""
        plans = [plan for plan in plans if plan.touched]
        await self._apply(plans)
        return sum(len(plan.touched) for plan in plans)

    async def pass_over(self, lease: PartitionLease, topic: str, offset: int) -> None:
        """Moves a position and writes nothing else."""
        async with self._one_at_a_time:
            try:
                await lease.commit(self._store, topic, offset, [])
            except BaseException:
                lease.unsure = True
                raise


def _rewriting(lease: PartitionLease, user_ids: Sequence[str], *, emptied: bool = False) -> UserPlan:
    plan = UserPlan(lease, CLICKSTREAM, lease.positions[CLICKSTREAM])
    plan.touched = {user_id: Touched(UserState(), 0, emptied=emptied) for user_id in user_ids}
    return plan
