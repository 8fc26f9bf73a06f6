"""Applies one event to one user's state, as the pure core of the live state.

Each function changes a `UserState` in place and says what happened; the same records in the same order give the same
state, whatever was restarted in between. It reads no wall clock: a partition's time is that of its clicks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from context.units import DAY_MS, HOUR_MS
from index.state.user_columns import UserState, event_key
from streams.events import RELOAD_MS, Click, Forget, Profile, Rules

# Of what is decided here. Version 1 counted every click alike, folded none, and had a clock that 32 clicks moved;
# version 2 did not count by kind, version 3 not what is bought together.
RULES_VERSION = 4
MAX_PURCHASES = 64  # evicted purchases remembered per user, newest first
MAX_IN_A_ROW = 10  # views of one item; further ones are reloads. Fewer would fold what people look at again (trivago)
MAX_FOLDED = 256  # event ids of folded reloads remembered per user, so that a resend of one is known
BUCKET_MS = 6 * HOUR_MS
VIEW = "view"  # the kind whose immediate repeats are reloads of a page

UserEvent = Click | Forget | Profile


@dataclass(frozen=True, slots=True)
class WindowLimits:
    """The window grows to `size + slack` events and is then cut to its last `size` (DESIGN, delivery)."""

    size: int = 200
    slack: int = 56


@dataclass(frozen=True, slots=True)
class WindowRules:
    """What `apply_click` goes by; the same for worker, replay, training and evaluation."""

    limits: WindowLimits = field(default_factory=WindowLimits)
    remembered: frozenset[int] = frozenset()  # codes of kinds that stay "seen" after they leave the window
    view: int | None = None  # code of the kind that folds
    reload_ms: int = RELOAD_MS  # a reload folds this long after the view before it; 0: never
    bucket_ms: int = BUCKET_MS  # repeats within a popularity bucket count less and less

    @classmethod
    def of(cls, rules: Rules, limits: WindowLimits, bucket_ms: int = BUCKET_MS) -> WindowRules:
        """The rules for a deployment's kinds."""
        remembered = frozenset(code for code, kind in enumerate(rules.kinds) if kind.remembered)
        return cls(limits, remembered, rules.kind_code(VIEW), rules.reload_ms, bucket_ms)


class Outcome(StrEnum):
    """What became of an event. Everything but APPLIED and FOLDED leaves the state as it was."""

    APPLIED = "applied"
    FOLDED = "folded"  # a reload: remembered as applied, the window stays as it is
    DUPLICATE = "duplicate"  # its id is among the remembered ones
    LATE = "late"  # older than the newest evicted event, or than what an idle user is remembered for
    FORGOTTEN = "forgotten"  # at or before the forget mark
    OUTDATED = "outdated"  # a profile older than the stored one


class Change(NamedTuple):
    """`keep` leading events of the window are as before; 0 means that everything after it is to be encoded anew."""

    outcome: Outcome
    keep: int = 0
    was_idle: bool = False  # what the user had done before was removed
    repeats: int = 0  # of an applied click: how many of the same kind, item and popularity bucket the window had


def rules_of(owner: Mapping[str, bytes | None]) -> str:
    """The versions that a partition's stored facts name, "" of a new one; version 1 named none."""
    return (owner.get("rules") or b"").decode() or ("1" if owner.get("clock") else "")


def rules_applied(stored: str) -> str:
    """The versions of these rules under which a partition's events are applied, oldest first, with the present one.

    `stored` are those so far, "" for a new partition. Raises ValueError for a version that this build does not know.

    >>> rules_applied(""), rules_applied("1"), rules_applied("1,2")
    ('4', '1,4', '1,2,4')
    """
    versions = {int(version) for version in stored.split(",") if version}
    if max(versions, default=0) > RULES_VERSION:
        raise ValueError(
            f"the live state was applied under rules {stored}, this build knows up to {RULES_VERSION}: run the build "
            "that wrote it, or set a new PERSEID_PREFIX and let this one rebuild the state from the topics"
        )
    return ",".join(map(str, sorted(versions | {RULES_VERSION})))


def apply_event(state: UserState, event: UserEvent, rules: WindowRules, horizon_ms: int) -> Change:
    """Removes what lies beyond the horizon of an idle user, then applies the event; arguments as of `apply_click`."""
    was_idle = leave_if_idle(state, horizon_ms)
    if isinstance(event, Click):
        change = apply_click(state, event, rules, horizon_ms)
    else:
        change = apply_forget(state, event) if isinstance(event, Forget) else apply_profile(state, event)
    return change._replace(was_idle=True) if was_idle else change


def leave_if_idle(state: UserState, horizon_ms: int) -> bool:
    """Removes what a user did when all of it is older than `horizon_ms`; says whether there was something.

    Whoever touches a user calls this first, so it makes no difference when the removal reaches the store. The profile
    and the forget mark stay: one is the shop's to remove, the other is for ever.
    """
    if state.last_ms >= horizon_ms or not len(state):
        return False
    state.clear()
    return True


def apply_click(state: UserState, click: Click, rules: WindowRules, horizon_ms: int = -1) -> Change:
    """Inserts a click at its place by (`ts_ms`, arrival) and cuts the window when it is full; a reload only folds.

    Clicks before `horizon_ms` are dropped, so that a resend cannot bring back what was removed as idle.
    """
    if click.ts_ms <= state.forgotten_ms:
        return Change(Outcome.FORGOTTEN)
    key = event_key(click.event_id)
    if state.remembers(key):
        return Change(Outcome.DUPLICATE)
    if click.ts_ms < max(state.evicted_ms, horizon_ms):
        return Change(Outcome.LATE)
    place = state.place_of(click.ts_ms)
    if _is_reload(state, place, click, rules):
        state.fold(key, click.ts_ms, MAX_FOLDED)
        return Change(Outcome.FOLDED, len(state))
    repeats = _repeats(state, place, click, rules.bucket_ms)
    state.insert(place, key, click.item_id, click.kind, click.ts_ms)
    if len(state) >= rules.limits.size + rules.limits.slack:
        _cut(state, rules)
        place = 0
    return Change(Outcome.APPLIED, place, repeats=repeats)


def _is_reload(state: UserState, place: int, click: Click, rules: WindowRules) -> bool:
    """Whether a click that belongs at `place` is one more view of the item that was viewed just before, as of now."""
    if click.kind != rules.view or not state.repeated(place, MAX_IN_A_ROW, click.item_id, click.kind):
        return False
    return click.ts_ms - state.ts_ms[place - 1] <= rules.reload_ms > 0


def _repeats(state: UserState, place: int, click: Click, bucket_ms: int) -> int:
    """How many clicks of the same kind, item and popularity bucket the window holds; `click` belongs at `place`."""
    bucket = click.ts_ms // bucket_ms
    if place == len(state):
        return state.count(click.item_id, click.kind, bucket * bucket_ms)
    same, rows = (click.item_id, click.kind), zip(state.items, state.kinds, state.ts_ms, strict=True)
    return sum((item, kind) == same and ts_ms // bucket_ms == bucket for item, kind, ts_ms in rows)


def voice(weight: int, repeats: int) -> int:
    """What a click counts for popularity: half as much, rounded down, with every repeat.

    A user's clicks of one kind on one item count less than twice the first one within a bucket.

    >>> [voice(5, repeats) for repeats in range(4)]
    [5, 2, 1, 0]
    """
    return weight >> repeats if weight > 0 else 0


def counted(state: UserState, click: Click, weight: int, rules: WindowRules) -> int:
    """What a click of this weight will count for popularity when it is applied to `state`."""
    place = state.place_of(click.ts_ms)
    if _is_reload(state, place, click, rules):
        return 0
    return voice(weight, _repeats(state, place, click, rules.bucket_ms))


def _cut(state: UserState, rules: WindowRules) -> None:
    out = len(state) - rules.limits.size
    for item, kind, ts_ms in zip(state.items[:out], state.kinds[:out], state.ts_ms[:out], strict=True):
        if kind in rules.remembered:
            state.purchases[item] = max(ts_ms, state.purchases.get(item, ts_ms))
    if len(state.purchases) > MAX_PURCHASES:
        newest = sorted(state.purchases.items(), key=lambda entry: (-entry[1], entry[0]))
        state.purchases = dict(newest[:MAX_PURCHASES])
    state.evict(out, rules.limits.slack)


def apply_forget(state: UserState, forget: Forget) -> Change:
    """Removes everything the user did and leaves a mark that ignores what they did before, for ever.

    The mark also covers window events whose clock ran ahead of the forget's: none can come back as a resend.
    """
    if forget.ts_ms <= state.forgotten_ms:
        return Change(Outcome.DUPLICATE)
    state.forgotten_ms = max(forget.ts_ms, state.evicted_ms, state.folded_ms, state.last_ms)
    state.clear()
    return Change(Outcome.APPLIED)


def apply_profile(state: UserState, profile: Profile) -> Change:
    """Keeps the newest profile by (`ts_ms`, arrival); a removed one keeps its time."""
    if profile.ts_ms < state.profile_ms:
        return Change(Outcome.OUTDATED)
    state.profile, state.profile_ms = profile.content, profile.ts_ms
    # The window's cached tokens stay valid under the old prefix; the profile acts from the next rebuild on.
    return Change(Outcome.APPLIED, keep=len(state))


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes of the live state; the same values give the same digest."""

    limits: WindowLimits = field(default_factory=WindowLimits)
    bucket_ms: int = BUCKET_MS  # popularity is counted in buckets of this width …
    horizon_buckets: int = 120  # … and forgotten after this many (30 days)
    idle_ms: int = 400 * DAY_MS  # users are removed so long after their last event, by the partition's clock; 0: never
    cached_users: int = 2000  # decoded users kept per partition, about 10 KB each
    half_vectors: bool = True  # user vectors in fp16; replay keeps fp32
