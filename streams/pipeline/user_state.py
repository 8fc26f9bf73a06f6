"""How one event changes one user: the pure core of the live state.

Each function takes a `UserState`, changes it in place and says what happened; the same records in the same order give
the same state, whatever was restarted in between. Nothing here knows Kafka, Redis, clocks or vectors.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum

from index.state.records import UserState, event_hash
from streams.events import Click, Forget, Profile

MAX_PURCHASES = 64  # evicted purchases remembered per user, newest first


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

    Args:
        remembered: codes of the kinds that stay "seen" after they leave the window.
        horizon_ms: older clicks are dropped, so that a resend cannot bring back what was removed as idle.
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

    The mark also covers window events whose clock ran ahead of the forget's: nothing that was removed can come back
    as a resend.
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
