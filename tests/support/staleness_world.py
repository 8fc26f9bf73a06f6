"""A stream with something on every boundary of every delay, and what each arm of a sweep must answer, by brute force.

All times are whole steps from a midnight, or one millisecond before or after one: whatever is late by some steps has
news that is just known and news that just is not. The oracle scans the stream anew for every question and takes nothing
from `streams.evaluation.staleness.sweep`, `streams.evaluation.timeline` or `streams.evaluation.staleness.delays` but
the names of an arm's parts. Ranks are places in lists sorted by hand; the encoder, the offset and the state of one user
are production's and have tests of their own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from context.features import ContextFeatures
from context.offsets import ContextOffset
from encoder.inference.batching import EncodeRequest
from encoder.training.popularity import HALF_LIFE_MS
from index.query.question import Weights
from index.state.user_columns import UserState
from streams.evaluation.held_out import QuestionSettings
from streams.evaluation.staleness.delays import Arm, Delay
from streams.events import CLICKSTREAM, RELOAD_MS, USERS, Click, Profile, Record
from streams.folder.reader import Folder, read_folder
from streams.folder.records import records
from streams.item_vectors import ItemVectors
from streams.parsing import parse
from streams.pipeline.user_state import BUCKET_MS, WindowLimits, WindowRules, apply_click, apply_profile
from tests.support.feedback_oracle import taken_off
from tests.support.folders import item, write_folder
from tests.support.replay_world import CONFIG, RULES, encoder

STEP_MS, DAY_MS = 10_000, 86_400_000
MIDNIGHT_MS = 18_600 * DAY_MS
ITEMS, USER_COUNT, PER_STEP = 36, 8, 18
STEPS = range(-5, 8)
HORIZON_MS = 4 * STEP_MS
POPULAR = "recent popularity"
RULED: Mapping[int, Mapping[str, Any]] = {
    1: {"ends_ms": MIDNIGHT_MS + 2 * STEP_MS},
    2: {"starts_ms": MIDNIGHT_MS - STEP_MS},
    3: {"available": False},
}
LABELS = [{"category": ["all", f"c{n % 3}"], "brand": f"b{n % 4}"} for n in range(ITEMS)]
Row = tuple[str, str, str, int, str, int]


def lattice_ms(rng: random.Random, step: int) -> int:
    return MIDNIGHT_MS + step * STEP_MS + rng.choice((-1, 0, 1))


def stream(path: Path, seed: int = 5) -> Folder:
    """Clicks on items, mostly new ones, that arrive on the way, under weather that changes about every step."""
    rng = random.Random(seed)
    early = MIDNIGHT_MS - 9 * STEP_MS
    arrivals = [early if n < 8 else lattice_ms(rng, rng.choice(STEPS)) for n in range(ITEMS)]
    times = sorted(lattice_ms(rng, step) for step in STEPS for _ in range(PER_STEP))
    clicks = [_click(rng, ts_ms, arrivals) for ts_ms in times]
    return read_folder(
        write_folder(
            path,
            clicks,
            [item(f"i{n}", ts_ms=arrivals[n], **LABELS[n], **RULED.get(n, {})) for n in range(ITEMS)],
            header="user_id,item_id,event_type,timestamp,location,ts_ms",
            context=[_weather(rng, place, step) for place in ("oslo", "rome") for step in STEPS],
            users=[_profile(f"u{n}", lattice_ms(rng, STEPS[0] - 1)) for n in range(4)],
        ),
        RULES,
    )


def _profile(user_id: str, ts_ms: int) -> dict[str, Any]:
    """Before the user's first click: a later one acts only when the window is next encoded as a whole."""
    return {"user_id": user_id, "categorical": {"location": "rome"}, "ts_ms": ts_ms}


def _click(rng: random.Random, ts_ms: int, arrivals: Sequence[int]) -> Row:
    here = sorted((n for n in range(ITEMS) if arrivals[n] <= ts_ms), key=lambda n: arrivals[n])
    chosen = rng.choice(here[-5:] if rng.random() < 0.5 else here)
    kind = rng.choice(("view", "view", "purchase", "dislike"))
    return f"u{rng.randrange(USER_COUNT)}", f"i{chosen}", kind, ts_ms // 1000, rng.choice(("oslo", "", "")), ts_ms


def _weather(rng: random.Random, location: str, step: int) -> dict[str, Any]:
    ts_ms = lattice_ms(rng, step)
    until_ms = ts_ms + rng.randint(1, 5) * STEP_MS + rng.choice((-1, 0, 1))
    said = {"weather": {"sky": f"sky {rng.randrange(5)}"}, "events": [], "promotions": []}
    return {"location": location, "ts_ms": ts_ms, "valid_until_ms": until_ms, **said}


def vectors_of(folder: Folder) -> ItemVectors:
    matrix = np.random.default_rng(2).standard_normal((ITEMS, 4)).astype(np.float32)
    return ItemVectors("toy", folder.item_ids, matrix, [[] for _ in folder.item_ids])


def offset_of(folder: Folder) -> ContextOffset:
    """Each sky moves a question by its own unit vector among the axes that untrained items lie on; the hour by none."""
    features = ContextFeatures.build(folder.contexts)
    weight = np.random.default_rng(3).standard_normal((CONFIG.d_model, len(features))).astype(np.float32) * 4
    weight[CONFIG.d_text :] = 0
    weight[:, [feature.kind == "time" for feature in features.features]] = 0
    return ContextOffset(weight, features, max_norm=1.0)


def asked(repeats: bool) -> QuestionSettings:
    return QuestionSettings(("mixed", "next", "general"), (ITEMS,), repeats=repeats, baseline_ms=HORIZON_MS)


def cut_ms(delay: Delay, now_ms: int) -> int:
    """The newest time that is known at `now_ms`; a nightly batch knows what came before midnight."""
    return now_ms - delay.ms if delay.ms is not None else now_ms - now_ms % DAY_MS - 1


def may_show(number: int, now_ms: int) -> bool:
    """The hard rules, which are about now whatever is known late."""
    rules = RULED.get(number, {})
    inside = rules.get("starts_ms", 0) <= now_ms < rules.get("ends_ms", 2 * MIDNIGHT_MS)
    return bool(inside and rules.get("available", True))


class Oracle:
    """What arms answer to a folder. Ways: the slots, and POPULAR."""

    def __init__(self, folder: Folder, repeats: bool, popularity: float = 0.0) -> None:
        self._folder, self._repeats, self._weight = folder, repeats, popularity
        self._encoder, self._offset, vectors = encoder(), offset_of(folder), vectors_of(folder)
        self._encoder.items.put(vectors.item_ids, vectors.vectors, vectors.tags)
        self._matrix = self._encoder.items.retrieval(vectors.item_ids)
        self._arrival_ms = dict(zip(folder.item_ids, folder.arrivals_ms.tolist(), strict=True))
        self._pairs: dict[Any, NDArray[np.float32]] = {}

    @cached_property
    def events(self) -> list[tuple[int, Any]]:
        found = records(self._folder, topics={USERS, CLICKSTREAM})
        return [(r.timestamp_ms, parse(Record(r.topic, 0, 0, r.timestamp_ms, r.key, r.value), RULES)) for r in found]

    @cached_property
    def questions(self) -> list[int]:
        """Which events are asked about: choices, of items not seen yet unless repeats count."""
        return [
            at
            for at, (now_ms, event) in enumerate(self.events)
            if self._chooses(event) and event.item_id not in self._seen(self._state(at, event.user_id, now_ms))
        ]

    def ranks(self, arm: Arm) -> dict[str, list[int]]:
        """Places of the targets by way, in the order of the questions, 0 where a list lacks its target."""
        found: dict[str, list[int]] = {}
        for at in self.questions:
            for way, ranked in self._lists(at, arm).items():
                target = self.events[at][1].item_id
                found.setdefault(way, []).append(ranked.index(target) + 1 if target in ranked else 0)
        return found

    def _lists(self, at: int, arm: Arm) -> dict[str, list[str]]:
        now_ms, click = self.events[at]
        state = self._state(at, click.user_id, cut_ms(arm.user, now_ms))
        seen = self._seen(self._state(at, click.user_id, cut_ms(arm.seen, now_ms)))
        here = {name for name, ms in self._arrival_ms.items() if ms <= cut_ms(arm.vectors, now_ms)}
        allowed = {name for name in here - seen if may_show(int(name[1:]), now_ms)}
        popular = self._popular(at, cut_ms(arm.popularity, now_ms), allowed)
        if not state.items and state.profile is None:
            return dict.fromkeys(("mixed", "next", "general", POPULAR), popular)
        moved = self._pair(state, here) + self._delta(click, state, now_ms, cut_ms(arm.context, now_ms))
        shares = self._shares(at, cut_ms(arm.popularity, now_ms), click, state)
        lost = self._lost(state, now_ms, here)
        following, general = (self._sorted(vector, shares, lost, allowed) for vector in moved)
        return {"next": following, "general": general, "mixed": alternating(following, general), POPULAR: popular}

    def _state(self, at: int, user_id: str, until_ms: int) -> UserState:
        state, rules = UserState(), WindowRules.of(RULES, WindowLimits(CONFIG.window, CONFIG.slack))
        for ts_ms, event in self.events[:at]:
            if event.user_id == user_id and ts_ms <= until_ms:
                if isinstance(event, Click):
                    apply_click(state, event, rules)
                elif isinstance(event, Profile):
                    apply_profile(state, event)
        return state

    def _seen(self, state: UserState) -> set[str]:
        return set() if self._repeats else {*state.items, *state.purchases}

    def _chooses(self, event: Any) -> bool:
        return isinstance(event, Click) and RULES.kinds[event.kind].weight > 0

    def _popular(self, at: int, until_ms: int, allowed: set[str]) -> list[str]:
        """By choices of the last HORIZON_MS, then the later choice first, then the earlier arrival."""
        chosen = [(ts_ms, e.item_id) for ts_ms, e in self.events[:at] if ts_ms <= until_ms and self._chooses(e)]
        recent = [name for ts_ms, name in chosen if ts_ms > until_ms - HORIZON_MS]
        latest = {name: number for number, (_, name) in enumerate(chosen)}
        rows = {name: row for row, name in enumerate(self._folder.item_ids)}
        return sorted(
            allowed, key=lambda name: (-recent.count(name), -latest.get(name, -1), self._arrival_ms[name], rows[name])
        )

    def _pair(self, state: UserState, here: set[str]) -> NDArray[np.float32]:
        """Both vectors [2, d] of a window in which items that are not here yet say nothing."""
        items = tuple(name if name in here else "" for name in state.items)
        what = items, tuple(state.kinds), tuple(state.ts_ms), state.profile
        if what not in self._pairs:
            profile = orjson.loads(state.profile) if state.profile else None
            request = EncodeRequest("u", items, state.kinds, state.ts_ms, profile, 0)
            self._pairs[what] = self._encoder.encode_whole([request]).vectors[0]
        return self._pairs[what]

    def _delta(self, click: Click, state: UserState, now_ms: int, until_ms: int) -> NDArray[np.float32]:
        location = click.location or ("rome" if state.profile else "")
        sent = [record for record in self._folder.contexts if record["location"] == location]
        newest = [record for record in sent if record["ts_ms"] <= until_ms][-1:]
        in_force: Mapping[str, Any] | None = next((r for r in newest if now_ms < r["valid_until_ms"]), None)
        return self._offset.offset(now_ms, in_force).delta

    def _shares(self, at: int, until_ms: int, click: Click, state: UserState) -> NDArray[np.float64]:
        """Of the logarithm of decayed choices here, those anywhere counting as one together, over the largest."""
        location = click.location or ("rome" if state.profile else "")
        counts: dict[str, dict[str, float]] = {}
        for n, (ts_ms, e) in enumerate(self.events[:at]):
            if ts_ms <= until_ms and self._chooses(e):
                decayed = self._voice(n, ts_ms, e) * 2.0 ** ((ts_ms - until_ms) / HALF_LIFE_MS)
                for place in {"", e.location}:
                    here = counts.setdefault(place, {})
                    here[e.item_id] = here.get(e.item_id, 0.0) + decayed
        overall, here = counts.get("", {}), counts.get(location, {}) if location else {}
        total = max(1.0, sum(overall.values()))
        amounts = [
            overall.get(name, 0.0) / (total if here else 1) + here.get(name, 0.0) for name in self._folder.item_ids
        ]
        logarithms: NDArray[np.float64] = np.log1p(amounts)
        return logarithms / max(float(logarithms.max()), 1e-300)

    def _voice(self, at: int, ts_ms: int, click: Click) -> int:
        """What a click counts: nothing as a reload, and half as much with every repeat in the window."""
        known = self._state(at, click.user_id, ts_ms)
        rows = list(zip(known.items, known.kinds, known.ts_ms, strict=True))
        last = [(item, kind) for item, kind, _ in rows][-10:]
        if click.kind == 0 and last == [(click.item_id, 0)] * 10 and ts_ms - rows[-1][2] <= RELOAD_MS:
            return 0
        same = click.item_id, click.kind, ts_ms // BUCKET_MS
        repeats = [row for row in rows if (row[0], row[1], row[2] // BUCKET_MS) == same]
        return int(RULES.kinds[click.kind].weight / 2 ** len(repeats))

    def _lost(self, state: UserState, now_ms: int, here: set[str]) -> NDArray[np.float64]:
        """What the user's dislikes of items that are here take off each item's score."""
        columns = zip(state.items, state.kinds, state.ts_ms, strict=True)
        events = [(name, RULES.kinds[kind].weight, ts_ms) for name, kind, ts_ms in columns]
        ids = self._folder.item_ids
        known = {name: vector for name, vector in zip(ids, self._matrix, strict=True) if name in here}
        found = taken_off(events, now_ms, {name: LABELS[int(name[1:])] for name in ids}, known)
        return Weights().negative * np.array([found[name] for name in ids])

    def _sorted(
        self,
        vector: NDArray[np.float32],
        shares: NDArray[np.float64],
        lost: NDArray[np.float64],
        allowed: set[str],
    ) -> list[str]:
        scored = self._matrix @ vector + np.float32(self._weight) * shares.astype(np.float32) + lost.astype(np.float32)
        scores = dict(zip(self._folder.item_ids, scored.tolist(), strict=True))
        return sorted(allowed, key=lambda name: -scores[name])


def alternating(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """The best of both in turn that is not there yet; both hold the same items."""
    found: list[str] = []
    while len(found) < len(one):
        found.append(next(name for name in (one, other)[len(found) % 2] if name not in found))
    return found
