"""Applies events of users to the live state, with one write for each partition.

Loads the users, has their change worked out, and writes it. When any step fails, what was changed in memory is
dropped, so the batch can be applied again from the store's truth.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from index.state.records import MODELS, PROFILE, STATE
from index.state.store import LiveStore, Op
from index.state.stored_user import load_user
from index.state.user_columns import UserState
from streams.events import CLICKSTREAM
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.encoders import Encoders
from streams.pipeline.lease import PartitionLease
from streams.pipeline.metrics import PipelineCounters
from streams.pipeline.partition_clock import PartitionClock
from streams.pipeline.user_state import EngineSettings, rules_applied, rules_of
from streams.pipeline.write_plan import Touched, UserPlan, UserPlanner, still_waiting

SWEEP_USERS = 100  # idle users removed at a time: some milliseconds


class UserWriter:
    """Writes the users of claimed partitions; one batch at a time."""

    def __init__(
        self,
        store: LiveStore,
        planner: UserPlanner,
        encoders: Encoders,
        settings: EngineSettings,
        counts: PipelineCounters,
    ) -> None:
        self._store, self._planner, self._encoders = store, planner, encoders
        self._settings, self._counts = settings, counts
        self._one_at_a_time = asyncio.Lock()

    async def open(self, lease: PartitionLease) -> None:
        """Reads what a new lease has to know of its partition. Raises ValueError when a later build applied it."""
        keys, tag = self._store.keys, lease.tag
        facts = ["clock", "idle_ms", "rules", MODELS]
        ((clock, idle_ms, rules, models),) = await self._store.read([(keys.owner(tag), facts)])
        lease.clock, lease.idle_ms = PartitionClock.decode(clock), int(idle_ms or -1)
        lease.rules = rules_of({"rules": rules, "clock": clock})
        rules_applied(lease.rules)
        lease.models = (models or b"").decode()
        lease.buckets = {int(bucket) for bucket in await self._store.read_all(keys.popularity_buckets(tag))}
        lease.pair_buckets = {int(bucket) for bucket in await self._store.read_all(keys.pair_buckets(tag))}
        lease.waiting = {user_id: {} for user_id in sorted(await self._store.members(keys.waiting(tag)))}

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
        lease.pair_buckets.update(plan.pairs)
        lease.pair_buckets.difference_update(plan.expired_pairs)
        lease.clock, lease.idle_ms = plan.clock, self._settings.idle_ms
        lease.rules, lease.models = plan.rules, plan.models
        for user_id, touched in plan.touched.items():
            if touched.settled:
                missing = still_waiting(lease.waiting.pop(user_id, None), touched)
                if missing is not None:
                    lease.waiting[user_id] = missing
        lease.trim()

    async def _drop(self, lease: PartitionLease) -> None:
        lease.unsure = True
        lease.users.clear()
        await self._encoders.drop_tag(lease.tag)

    async def sweep_waiting(self, leases: Sequence[PartitionLease]) -> int:
        """Re-encodes users whose missing items have a vector by now. Changes no state and no position."""
        async with self._one_at_a_time:
            if not self._encoders:
                return 0
            plans = []
            for lease in leases:
                ready = [user for user, missing in lease.waiting.items() if self._encoders.can_help(missing)]
                plans.append(_rewriting(lease, ready))
            return await self._rewrite(plans)

    async def fill(self, lease: PartitionLease, missing: Mapping[str, frozenset[str]]) -> int:
        """Encodes users by the versions of models whose vectors they lack; returns how many it wrote.

        They are written as they are stored, at the position where the partition stands.
        """
        async with self._one_at_a_time:
            plan = _rewriting(lease, [*missing])
            plan.filling = True
            for user_id, touched in plan.touched.items():
                touched.only = missing[user_id]
            await self._rewrite([plan])
            return sum(bool(touched.vectors) for touched in plan.touched.values())

    async def keep_vectors(self, lease: PartitionLease, user_ids: Sequence[str]) -> None:
        """Removes the vectors of models that are not ours from these users."""
        keys, kept = self._store.keys, self._encoders.kept_fields
        await self.note(lease, [Op("hkeep", keys.user(lease.tag, user_id), names=kept) for user_id in user_ids])

    async def note(self, lease: PartitionLease, ops: Sequence[Op]) -> None:
        """Writes what changes no state, at the position where the partition stands."""
        async with self._one_at_a_time:
            await self._commit(lease, CLICKSTREAM, lease.positions[CLICKSTREAM], ops)

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
            await self._commit(lease, topic, offset, [])

    async def replace_encoders(self, threads: Sequence[EncoderThread]) -> None:
        """Encodes by other models from the next batch on."""
        async with self._one_at_a_time:
            self._encoders.replace(threads)

    async def _commit(self, lease: PartitionLease, topic: str, offset: int, ops: Sequence[Op]) -> None:
        try:
            await lease.commit(self._store, topic, offset, ops)
        except BaseException:
            lease.unsure = True
            raise


def _rewriting(lease: PartitionLease, user_ids: Sequence[str], *, emptied: bool = False) -> UserPlan:
    plan = UserPlan(lease, CLICKSTREAM, lease.positions[CLICKSTREAM])
    plan.touched = {user_id: Touched(UserState(), 0, emptied=emptied) for user_id in user_ids}
    return plan
