"""A user's state as lists of Python objects, and what an event makes of it: slow, and the oracle of the byte columns.

It shares no code with `index.state.user_columns` but the hash of an event id.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import sub

import numpy as np

from index.state.user_columns import event_hash
from streams.events import Click, Forget
from streams.pipeline.user_state import MAX_FOLDED, MAX_IN_A_ROW, MAX_PURCHASES, Change, Outcome, WindowRules

_HEADER = struct.Struct("<BBHHHqqq")
_FOLDED = struct.Struct("<Hq")


@dataclass(slots=True)
class ListState:
    """The fields of `UserState`."""

    hashes: list[int] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    ts_ms: list[int] = field(default_factory=list)
    evicted: list[int] = field(default_factory=list)  # hashes of the latest evicted events, oldest first
    evicted_ms: int = -1  # time of the newest evicted event; older late events are dropped
    folded: list[int] = field(default_factory=list)  # hashes of the latest folded events (reloads), oldest first
    folded_ms: int = -1  # time of the newest folded event
    forgotten_ms: int = -1  # forget mark: events at or before it are ignored for ever
    purchases: dict[str, int] = field(default_factory=dict)  # evicted purchases: item → time
    profile: bytes | None = None  # canonical JSON of {"numeric", "categorical"}
    profile_ms: int = -1


def stored(state: ListState) -> bytes:
    """As `encode_state`."""
    count = len(state.hashes)
    gaps = _gaps(state.ts_ms)
    names = [*state.items, *state.purchases]
    text = "".join(names)
    ids = text.encode()
    sizes = [*map(len, names if len(ids) == len(text) else [name.encode() for name in names])]
    equal = bool(sizes) and sizes.count(sizes[0]) == len(sizes)
    hashes = np.frombuffer(array("Q", state.hashes + state.evicted + state.folded), np.uint8)
    flags = (1 if gaps.itemsize == 8 else 0) | (2 if equal else 0)
    sizes_of_lists = count, len(state.evicted), len(state.purchases)
    first_ms = state.ts_ms[0] if count else 0
    parts = (
        _HEADER.pack(3, flags, *sizes_of_lists, state.evicted_ms, state.forgotten_ms, first_ms),
        _FOLDED.pack(len(state.folded), state.folded_ms),
        gaps.tobytes(),
        hashes.reshape(-1, 8)[:, :7].tobytes(),
        bytes(state.kinds),
        array("q", state.purchases.values()).tobytes(),
        bytes([size - 1 for size in (sizes[:1] if equal else sizes)]),
        ids,
    )
    return b"".join(parts)


def _gaps(times_ms: Sequence[int]) -> array[int]:
    """Differences of rising times, in four bytes each if all of them fit."""
    try:
        return array("I", map(sub, times_ms[1:], times_ms))
    except OverflowError:
        return array("Q", map(sub, times_ms[1:], times_ms))


def _clear(state: ListState) -> None:
    state.hashes, state.items, state.kinds, state.ts_ms = [], [], [], []
    state.evicted, state.evicted_ms, state.purchases = [], -1, {}
    state.folded, state.folded_ms = [], -1


def apply_click(state: ListState, click: Click, rules: WindowRules, horizon_ms: int = -1) -> Change:
    """Inserts a click at its place by (`ts_ms`, arrival) and cuts the window when it is full; a reload only folds.

    Clicks before `horizon_ms` are dropped, so that a resend cannot bring back what was removed as idle.
    """
    if click.ts_ms <= state.forgotten_ms:
        return Change(Outcome.FORGOTTEN)
    hashed = event_hash(click.event_id)
    if hashed in state.hashes or hashed in state.evicted or hashed in state.folded:
        return Change(Outcome.DUPLICATE)
    if click.ts_ms < max(state.evicted_ms, horizon_ms):
        return Change(Outcome.LATE)
    place = bisect_right(state.ts_ms, click.ts_ms)
    if _is_reload(state, place, click, rules):
        state.folded = [*state.folded, hashed][-MAX_FOLDED:]
        state.folded_ms = max(state.folded_ms, click.ts_ms)
        return Change(Outcome.FOLDED, len(state.ts_ms))
    repeats = _repeats(state, click, rules.bucket_ms)
    state.hashes.insert(place, hashed)
    state.items.insert(place, click.item_id)
    state.kinds.insert(place, click.kind)
    state.ts_ms.insert(place, click.ts_ms)
    if len(state.ts_ms) >= rules.limits.size + rules.limits.slack:
        _cut(state, rules)
        place = 0
    return Change(Outcome.APPLIED, place, repeats=repeats)


def _is_reload(state: ListState, place: int, click: Click, rules: WindowRules) -> bool:
    """Whether a click that belongs at `place` is one more view of the item that was viewed just before, as of now."""
    first = place - MAX_IN_A_ROW
    if first < 0 or click.kind != rules.view or not click.ts_ms - state.ts_ms[place - 1] <= rules.reload_ms > 0:
        return False
    row = zip(state.items[first:place], state.kinds[first:place], strict=True)
    return all(item == click.item_id and kind == click.kind for item, kind in row)


def _repeats(state: ListState, click: Click, bucket_ms: int) -> int:
    """How many clicks of the same kind, item and popularity bucket the window holds."""
    if click.item_id not in state.items:
        return 0
    same, bucket = (click.item_id, click.kind), click.ts_ms // bucket_ms
    rows = zip(state.items, state.kinds, state.ts_ms, strict=True)
    return sum((item, kind) == same and ts_ms // bucket_ms == bucket for item, kind, ts_ms in rows)


def _cut(state: ListState, rules: WindowRules) -> None:
    out = len(state.ts_ms) - rules.limits.size
    for item, kind, ts_ms in zip(state.items[:out], state.kinds[:out], state.ts_ms[:out], strict=True):
        if kind in rules.remembered:
            state.purchases[item] = max(ts_ms, state.purchases.get(item, ts_ms))
    if len(state.purchases) > MAX_PURCHASES:
        newest = sorted(state.purchases.items(), key=lambda entry: (-entry[1], entry[0]))
        state.purchases = dict(newest[:MAX_PURCHASES])
    state.evicted = (state.evicted + state.hashes[:out])[-rules.limits.slack :]
    state.evicted_ms = state.ts_ms[out - 1]
    for column in (state.hashes, state.items, state.kinds, state.ts_ms):
        del column[:out]


def apply_forget(state: ListState, forget: Forget) -> Change:
    """Removes everything the user did and leaves a mark that ignores what they did before, for ever.

    The mark also covers window events whose clock ran ahead of the forget's: none can come back as a resend.
    """
    if forget.ts_ms <= state.forgotten_ms:
        return Change(Outcome.DUPLICATE)
    state.forgotten_ms = max([forget.ts_ms, state.evicted_ms, state.folded_ms, *state.ts_ms[-1:]])
    _clear(state)
    return Change(Outcome.APPLIED)
