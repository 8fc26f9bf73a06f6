"""Applies one event to one user's state, as the pure core of the live state.

Each function changes a `UserState` in place and says what happened; the same records in the same order give the same
state, whatever was restarted in between. It reads no wall clock: a partition's time is that of its clicks.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field, replace
from enum import StrEnum

from context.units import DAY_MS, HOUR_MS
from index.state.records import UserState, event_hash
from streams.events import Click, Forget, Profile

MAX_PURCHASES = 64  # evicted purchases remembered per user, newest first
# Clicks that have to reach a time: with a fifth from producers that run ahead, 32 of them in a row are one in 10^22.
AGREEING = 32

UserEvent = Click | Forget | Profile


@dataclass(frozen=True, slots=True)
class WindowLimits:
    """The window grows to `size + slack` events and is then cut to its last `size` (DESIGN, delivery)."""

    size: int = 200
    slack: int = 56


class Outcome(StrEnum):
    """What became of an event. Everything but APPLIED leaves the state as it was."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"  # its id is among the remembered ones
    LATE = "late"  # older than the newest evicted event, or than what an idle user is remembered for
    FORGOTTEN = "forgotten"  # at or before the forget mark
    OUTDATED = "outdated"  # a profile older than the stored one


@dataclass(frozen=True, slots=True)
class Change:
    """`keep` leading events of the window are as before; 0 means that everything after it is to be encoded anew."""

    outcome: Outcome
    keep: int = 0
    was_idle: bool = False  # what the user had done before was removed


def apply_event(
    state: UserState, event: UserEvent, limits: WindowLimits, remembered: Container[int], horizon_ms: int
) -> Change:
    """Removes what lies beyond the horizon of an idle user, then applies the event; arguments as of `apply_click`."""
    was_idle = leave_if_idle(state, horizon_ms)
    if isinstance(event, Click):
        change = apply_click(state, event, limits, remembered, horizon_ms)
    else:
        change = apply_forget(state, event) if isinstance(event, Forget) else apply_profile(state, event)
    return replace(change, was_idle=True) if was_idle else change


def leave_if_idle(state: UserState, horizon_ms: int) -> bool:
    """Removes what a user did when all of it is older than `horizon_ms`; says whether there was something.

    Whoever touches a user calls this first, so it makes no difference when the removal reaches the store. The profile
    and the forget mark stay: one is the shop's to remove, the other is for ever.
    """
    if not state.ts_ms or state.ts_ms[-1] >= horizon_ms:
        return False
    _clear(state)
    return True


def _clear(state: UserState) -> None:
    state.hashes, state.items, state.kinds, state.ts_ms = [], [], [], []
    state.evicted, state.evicted_ms, state.purchases = [], -1, {}


def apply_click(
    state: UserState, click: Click, limits: WindowLimits, remembered: Container[int], horizon_ms: int = -1
) -> Change:
    """Inserts a click at its place by (`ts_ms`, arrival) and cuts the window when it is full.

    `remembered` are codes of kinds that stay "seen" after they leave the window. Clicks before `horizon_ms` are
    dropped, so that a resend cannot bring back what was removed as idle.
    """
    if click.ts_ms <= state.forgotten_ms:
        return Change(Outcome.FORGOTTEN)
    hashed = event_hash(click.event_id)
    if state.remembers(hashed):
        return Change(Outcome.DUPLICATE)
    if click.ts_ms < max(state.evicted_ms, horizon_ms):
        return Change(Outcome.LATE)
    place = bisect_right(state.ts_ms, click.ts_ms)
    state.hashes.insert(place, hashed)
    state.items.insert(place, click.item_id)
    state.kinds.insert(place, click.kind)
    state.ts_ms.insert(place, click.ts_ms)
    if len(state.ts_ms) >= limits.size + limits.slack:
        _cut(state, limits, remembered)
        place = 0
    return Change(Outcome.APPLIED, place)


def _cut(state: UserState, limits: WindowLimits, remembered: Container[int]) -> None:
    out = len(state.ts_ms) - limits.size
    for item, kind, ts_ms in zip(state.items[:out], state.kinds[:out], state.ts_ms[:out], strict=True):
        if kind in remembered:
            state.purchases[item] = max(ts_ms, state.purchases.get(item, ts_ms))
    if len(state.purchases) > MAX_PURCHASES:
        newest = sorted(state.purchases.items(), key=lambda entry: (-entry[1], entry[0]))
        state.purchases = dict(newest[:MAX_PURCHASES])
    state.evicted = (state.evicted + state.hashes[:out])[-limits.slack :]
    state.evicted_ms = state.ts_ms[out - 1]
    for column in (state.hashes, state.items, state.kinds, state.ts_ms):
        del column[:out]


def apply_forget(state: UserState, forget: Forget) -> Change:
    """Removes everything the user did and leaves a mark that ignores what they did before, for ever.

    The mark also covers window events whose clock ran ahead of the forget's: none can come back as a resend.
    """
    if forget.ts_ms <= state.forgotten_ms:
        return Change(Outcome.DUPLICATE)
    state.forgotten_ms = max([forget.ts_ms, state.evicted_ms, *state.ts_ms[-1:]])
    _clear(state)
    return Change(Outcome.APPLIED)


def apply_profile(state: UserState, profile: Profile) -> Change:
    """Keeps the newest profile by (`ts_ms`, arrival); a removed one keeps its time."""
    if profile.ts_ms < state.profile_ms:
        return Change(Outcome.OUTDATED)
    state.profile, state.profile_ms = profile.content, profile.ts_ms
    # The window's cached tokens stay valid under the old prefix; the profile acts from the next rebuild on.
    return Change(Outcome.APPLIED, keep=len(state.ts_ms))


@dataclass(slots=True)
class PartitionClock:
    """The time of a partition: what its latest `AGREEING` clicks have all reached; -1 until there are so many."""

    now_ms: int = -1
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=AGREEING))

    def observe(self, ts_ms: int) -> None:
        """One click of this time was applied."""
        self.recent.append(ts_ms)
        if len(self.recent) == AGREEING:
            self.now_ms = max(self.now_ms, min(self.recent))

    def before(self, span_ms: int) -> int:
        """The time `span_ms` ago; -1, before all events, when that is not known or the span is 0 (for ever)."""
        return self.now_ms - span_ms if span_ms and self.now_ms >= 0 else -1

    def copy(self) -> PartitionClock:
        """A clock that can run on without this one."""
        return PartitionClock(self.now_ms, deque(self.recent, AGREEING))

    def encode(self) -> bytes:
        """Little-endian int64: `now_ms`, then the recent times, oldest first (264 bytes)."""
        return struct.pack(f"<{1 + len(self.recent)}q", self.now_ms, *self.recent)

    @classmethod
    def decode(cls, data: bytes | None) -> PartitionClock:
        """Inverse of `encode`; None gives a clock that knows nothing."""
        if not data:
            return cls()
        now_ms, *recent = struct.unpack(f"<{len(data) // 8}q", data)
        return cls(now_ms, deque(recent, AGREEING))


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes of the live state; the same values give the same digest."""

    limits: WindowLimits = field(default_factory=WindowLimits)
    bucket_ms: int = 6 * HOUR_MS  # popularity is counted in buckets of this width …
    horizon_buckets: int = 120  # … and forgotten after this many (30 days)
    idle_ms: int = 400 * DAY_MS  # users are removed so long after their last event, by the partition's clock; 0: never
    cached_users: int = 2000  # decoded users kept per partition, about 10 KB each
    half_vectors: bool = True  # user vectors in fp16; replay keeps fp32
