"""Works out what a batch of user events changes, as the operations of one write for each partition.

State, then vectors, then operations. Assumes that the users are loaded into their partition's lease; writes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from encoder.inference.batching import EncodeRequest
from index.state.keys import LOCATION_SEPARATOR, Keys
from index.state.pair_rows import PairRow
from index.state.records import MODELS, PROFILE, STATE, encode_vectors, vector_field
from index.state.store import LiveStore, Op
from index.state.stored_user import encode_profile
from index.state.user_columns import UserState, encode_state
from streams.events import Click, Forget, Rules
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.encoders import Encoders
from streams.pipeline.lease import PartitionLease
from streams.pipeline.metrics import PipelineCounters, WorkerMetrics
from streams.pipeline.partition_clock import PartitionClock
from streams.pipeline.together import Purchase, add_purchase, last_expired, purchase_of
from streams.pipeline.user_state import (
    Change,
    EngineSettings,
    Outcome,
    UserEvent,
    WindowRules,
    apply_event,
    leave_if_idle,
    rules_applied,
    voice,
)


@dataclass(slots=True)
class Touched:
    """A user changed by the batch: `keep` leading events of the window are as they were."""

    state: UserState
    keep: int
    emptied: bool = False  # forgotten, or removed as idle: vectors and caches go too
    profiled: bool = False
    encode: bool = False
    only: frozenset[str] | None = None  # versions to encode; None: all
    vectors: dict[str, bytes] = field(default_factory=dict)  # by version
    missing: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by version: its items without a vector

    @property
    def settled(self) -> bool:
        """Whether the vectors are written anew, or go: only then is it known which items `missing` names."""
        return self.encode or self.emptied


@dataclass(slots=True)
class UserPlan:
    """What one partition's part of a batch will write: `ops`, and `topic` moves to `position`."""

    lease: PartitionLease
    topic: str
    position: int
    filling: bool = False  # vectors are completed, for nobody who waits
    events: Sequence[UserEvent] = ()  # to be applied; or none, and …
    touched: dict[str, Touched] = field(default_factory=dict)  # … users to be written as they are by now
    popularity: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    # By bucket: kind and item → first events of users.
    kinds: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    purchases: list[Purchase] = field(default_factory=list)  # that were applied, in their order
    pairs: dict[int, dict[str, PairRow]] = field(default_factory=dict)  # rows that they change, by bucket and item
    expired_pairs: list[int] = field(default_factory=list)  # buckets of pairs that lie beyond the horizon now
    expired: list[int] = field(default_factory=list)  # popularity buckets that lie beyond the horizon now
    clock: PartitionClock = field(default_factory=PartitionClock)
    ticked: bool = False  # a click was applied
    rules: str = ""  # as of `PartitionLease`, …
    models: str = ""  # … and this
    ops: list[Op] = field(default_factory=list)
    written: bool = False

    @property
    def users(self) -> list[str]:
        """Who has to be loaded."""
        return list(dict.fromkeys(event.user_id for event in self.events) or self.touched)


class UserPlanner:
    """Fills plans in: changes the users in memory, encodes them by every model, and lists the operations."""

    def __init__(
        self,
        store: LiveStore,
        rules: Rules,
        encoders: Encoders,
        settings: EngineSettings,
        counts: PipelineCounters,
        metrics: WorkerMetrics,
    ) -> None:
        self._store, self._keys, self._encoders, self._settings = store, store.keys, encoders, settings
        self._counts, self._metrics = counts, metrics
        self._weights = [kind.weight for kind in rules.kinds]
        self._rules = WindowRules.of(rules, settings.limits, settings.bucket_ms)

    async def fill(self, plans: Sequence[UserPlan]) -> None:
        """State, then vectors in one encoder batch, then operations."""
        for plan in plans:
            plan.clock, plan.rules = plan.lease.clock.copy(), plan.lease.rules
            plan.models = self._encoders.written(plan.lease.models)
            self._revisit(plan)
            self._change(plan)
        await self._pair(plans)
        await self._encode(plans)
        for plan in plans:
            plan.ops = self._ops(plan)

    def _revisit(self, plan: UserPlan) -> None:
        """Takes users as they are by now."""
        horizon_ms = plan.clock.before(self._settings.idle_ms)
        for user_id, touched in plan.touched.items():
            touched.state = plan.lease.users[user_id]
            if leave_if_idle(touched.state, horizon_ms):
                touched.only = None
            touched.keep = 0 if touched.emptied else len(touched.state)
            touched.encode = bool(len(touched.state)) or touched.state.profile is not None

    def _change(self, plan: UserPlan) -> None:
        outcomes, users, idle_ms = Counter[Outcome](), plan.lease.users, self._settings.idle_ms
        for event in plan.events:
            state = users[event.user_id]
            users.move_to_end(event.user_id)
            horizon_ms = plan.clock.before(idle_ms)
            change = apply_event(state, event, self._rules, horizon_ms)
            if change.was_idle:
                self._counts.add("idle")
                if event.user_id in plan.touched:  # while this very batch was applied
                    plan.touched[event.user_id] = Touched(state, 0, emptied=True, encode=state.profile is not None)
            outcomes[change.outcome] += 1
            if change.outcome is Outcome.APPLIED or change.outcome is Outcome.FOLDED:
                self._touch(plan, event, state, change)
        for outcome, count in outcomes.items():
            self._counts.add(outcome, count)

    def _touch(self, plan: UserPlan, event: UserEvent, state: UserState, change: Change) -> None:
        touched = plan.touched.get(event.user_id)
        if touched is None:
            touched = plan.touched[event.user_id] = Touched(state, change.keep)
        elif change.keep < touched.keep:
            touched.keep = change.keep
        if isinstance(event, Click):
            plan.ticked = True
            plan.clock.observe(event.ts_ms)
            if change.outcome is Outcome.APPLIED:
                touched.encode = True
                self._count_popularity(plan, event, change.repeats)
                purchase = purchase_of(state, event, self._rules.remembered, plan.clock)
                if purchase is not None:
                    plan.purchases.append(purchase)
        elif isinstance(event, Forget):
            touched.emptied = True
        else:
            touched.profiled = True
        if not len(state):
            touched.encode = state.profile is not None

    def _count_popularity(self, plan: UserPlan, click: Click, repeats: int) -> None:
        width, horizon = self._settings.bucket_ms, self._settings.horizon_buckets
        bucket, weight = click.ts_ms // width, voice(self._weights[click.kind], repeats)
        if weight > 0 and bucket > plan.clock.now_ms // width - horizon:
            name = f"{click.location}{LOCATION_SEPARATOR}{click.item_id}"
            plan.popularity[bucket][name] += weight
            if not repeats:
                plan.kinds[bucket][f"{click.kind}{LOCATION_SEPARATOR}{click.item_id}"] += 1

    async def _pair(self, plans: Sequence[UserPlan]) -> None:
        """Counts what was bought together in the rows as they are stored, which are read in one round trip."""
        wanted = []
        for plan in plans:
            for purchase in plan.purchases:
                rows = plan.pairs.setdefault(purchase.bucket, {})
                rows.update((item_id, PairRow()) for item_id in purchase.items if item_id not in rows)
            wanted += [(plan, bucket, [*rows]) for bucket, rows in plan.pairs.items()]
        if not wanted:
            return
        keys = self._keys
        found = await self._store.read([(keys.pairs(plan.lease.tag, bucket), names) for plan, bucket, names in wanted])
        for (plan, bucket, names), stored in zip(wanted, found, strict=True):
            plan.pairs[bucket].update(zip(names, map(PairRow.of_stored, stored), strict=True))
        for plan in plans:
            for purchase in plan.purchases:
                add_purchase(plan.pairs[purchase.bucket], purchase)

    async def _encode(self, plans: Sequence[UserPlan]) -> None:
        for plan in plans:
            for user_id, touched in plan.touched.items():
                if touched.emptied:
                    await self._encoders.drop(plan.lease.tag, user_id)
        if self._encoders and any(touched.encode for plan in plans for touched in plan.touched.values()):
            started = time.perf_counter()
            counts = await asyncio.gather(*(self._encode_by(thread, plans) for thread in self._encoders))
            self._metrics.encoded(sum(counts), time.perf_counter() - started)
            self._counts.add("encoded", sum(counts))

    async def _encode_by(self, thread: EncoderThread, plans: Sequence[UserPlan]) -> int:
        """Vectors of one model; how many users that were."""
        version = thread.version
        jobs = [
            (plan, user, touched)
            for plan in plans
            for user, touched in plan.touched.items()
            if touched.encode and (touched.only is None or version in touched.only)
        ]
        if not jobs:
            return 0
        encode = thread.fill if all(plan.filling for plan in plans) else thread.encode
        result = await encode([_request(plan.lease.tag, user, touched) for plan, user, touched in jobs])
        for (_, _, touched), vectors, missing in zip(jobs, result.vectors, result.missing, strict=True):
            touched.vectors[version] = encode_vectors(vectors, self._settings.half_vectors)
            touched.missing[version] = missing
        return len(jobs)

    def _ops(self, plan: UserPlan) -> list[Op]:
        keys, tag = self._keys, plan.lease.tag
        ops: list[Op] = []
        for user_id, touched in plan.touched.items():
            ops += _user_ops(keys.user(tag, user_id), touched, self._encoders)
        ops += _index_ops(keys, plan) + _waiting_ops(keys, plan) + self._popularity_ops(plan) + self._pair_ops(plan)
        idle_ms = self._settings.idle_ms
        if plan.ticked or plan.lease.idle_ms != idle_ms:
            if plan.ticked or not plan.rules:
                plan.rules = rules_applied(plan.rules)
            facts = {"clock": plan.clock.encode(), "idle_ms": str(idle_ms).encode(), "rules": plan.rules.encode()}
            ops.append(Op("hset", keys.owner(tag), facts))
        if plan.models != plan.lease.models:
            ops.append(Op("hset", keys.owner(tag), {MODELS: plan.models.encode()}))
        return ops

    def _pair_ops(self, plan: UserPlan) -> list[Op]:
        keys, tag, ops = self._keys, plan.lease.tag, list[Op]()
        for bucket, rows in plan.pairs.items():
            ops.append(Op("hset", keys.pairs(tag, bucket), {item_id: row.stored() for item_id, row in rows.items()}))
        if plan.purchases:
            counts = Counter(str(purchase.bucket) for purchase in plan.purchases)
            ops.append(Op("hincr", keys.pair_buckets(tag), dict(counts)))
        last = last_expired(plan.clock)
        if last != last_expired(plan.lease.clock):
            plan.expired_pairs = sorted(
                bucket for bucket in plan.lease.pair_buckets.union(plan.pairs) if bucket <= last
            )
        for bucket in plan.expired_pairs:
            ops += [Op("delete", keys.pairs(tag, bucket)), Op("hdel", keys.pair_buckets(tag), names=(str(bucket),))]
        return ops

    def _popularity_ops(self, plan: UserPlan) -> list[Op]:
        keys, tag, ops = self._keys, plan.lease.tag, list[Op]()
        for bucket, counts in plan.popularity.items():
            ops.append(Op("hincr", keys.popularity(tag, bucket), dict(counts)))
            ops.append(Op("hincr", keys.popularity_buckets(tag), {str(bucket): counts.total()}))
        ops += [Op("hincr", keys.kinds(tag, bucket), dict(counts)) for bucket, counts in plan.kinds.items()]
        width, horizon = self._settings.bucket_ms, self._settings.horizon_buckets
        last = plan.clock.now_ms // width - horizon
        if last != plan.lease.clock.now_ms // width - horizon:  # only then: there may be thousands of buckets
            plan.expired = sorted(bucket for bucket in plan.lease.buckets.union(plan.popularity) if bucket <= last)
        for bucket in plan.expired:
            ops += [Op("delete", keys.popularity(tag, bucket)), Op("delete", keys.kinds(tag, bucket))]
            ops.append(Op("hdel", keys.popularity_buckets(tag), names=(str(bucket),)))
        return ops


def _request(tag: str, user_id: str, touched: Touched) -> EncodeRequest:
    state = touched.state
    profile = orjson.loads(state.profile) if state.profile is not None else None
    return EncodeRequest((tag, user_id), state.items, state.kinds, state.ts_ms, profile, touched.keep)


def _user_ops(key: str, touched: Touched, encoders: Encoders) -> list[Op]:
    state = touched.state
    if state.empty:
        return [Op("delete", key)]
    fields = {STATE: encode_state(state)}
    if touched.profiled or (touched.emptied and state.profile_ms >= 0):
        fields[PROFILE] = encode_profile(state.profile, state.profile_ms)
    ops = [Op("delete", key)] if touched.emptied else []
    fields |= {vector_field(version): vectors for version, vectors in touched.vectors.items()}
    if encoders and not touched.emptied and (touched.encode or not len(state)):
        # Vectors of a model that is not among ours would be those of a former window from now on.
        ops.append(Op("hkeep", key, names=encoders.kept_fields if touched.encode else encoders.kept_fields[:1]))
    return [*ops, Op("hset", key, fields)]


def _index_ops(keys: Keys, plan: UserPlan) -> list[Op]:
    """Users by the time of their newest event; 0 for those of whom only a profile or a forget mark is left."""
    index = keys.users(plan.lease.tag)
    times = {user: t.state.last_ms if len(t.state) else 0 for user, t in plan.touched.items() if not t.state.empty}
    gone = [user for user, touched in plan.touched.items() if touched.state.empty]
    return ([Op("zadd", index, times)] if times else []) + ([Op("zrem", index, names=gone)] if gone else [])


def _waiting_ops(keys: Keys, plan: UserPlan) -> list[Op]:
    waiting, before = keys.waiting(plan.lease.tag), plan.lease.waiting
    after = {
        user: still_waiting(before.get(user), touched) for user, touched in plan.touched.items() if touched.settled
    }
    now = [user for user, missing in after.items() if missing is not None and user not in before]
    done = [user for user, missing in after.items() if missing is None and user in before]
    return ([Op("sadd", waiting, names=now)] if now else []) + ([Op("srem", waiting, names=done)] if done else [])


def still_waiting(
    before: Mapping[str, tuple[str, ...]] | None, touched: Touched
) -> Mapping[str, tuple[str, ...]] | None:
    """Items without a vector by version after a settled user was written, as in `PartitionLease`; None for none."""
    found = {version: missing for version, missing in touched.missing.items() if missing}
    if touched.only is None:
        return found or None
    if before is None or not before:  # nobody waited, or it is not known for what
        return found or before
    others = {version: missing for version, missing in before.items() if version not in touched.missing}
    return {**others, **found} or None
