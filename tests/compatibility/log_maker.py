"""Makes the fixed log: good, resent, late, misrouted, forgotten, fast-clock and malformed records on every topic.

Run by `make_fixtures` only; the tests read the log that was written at 9afcd80.
"""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import numpy as np

from index.state.keys import partition_of
from streams.events import CATALOG, CLICKSTREAM, CONTEXT, EXPOSURES, ITEM_VECTORS, USERS
from tests.compatibility.world import DAY_MS, NOW_MS, PARTITIONS, text

ITEMS, USERS_COUNT = 24, 9
START_MS = NOW_MS - 40 * DAY_MS
_KINDS = ("view", "view", "view", "cart", "purchase", "like", "dislike", "remove")
_HASH = "0" * 64
_BAD: dict[str, list[Any]] = {
    CLICKSTREAM: [
        b"no json", b"[1]", None, b'{"user_id": "a"}',
        {"kind": "view", "ts_ms": 5, "event_id": "b1", "user_id": "user-1", "item_id": "item-1"},
        {"kind": "wink", "ts_ms": START_MS, "event_id": "b2", "user_id": "user-1", "item_id": "item-1"},
        {"kind": "view", "ts_ms": "now", "event_id": "b3", "user_id": "user-1", "item_id": "item-1"},
        {"kind": "view", "ts_ms": START_MS, "event_id": "", "user_id": "user-1", "item_id": "item-1"},
        {"kind": "view", "ts_ms": START_MS, "event_id": "b4", "user_id": 7, "item_id": "item-1"},
        {"kind": "view", "ts_ms": START_MS, "event_id": "b5", "user_id": "user-1"},
        {"kind": "view", "ts_ms": START_MS, "event_id": "b6", "user_id": "user-1", "item_id": "i\n"},
        {"kind": "view", "ts_ms": START_MS, "event_id": "b7", "user_id": "user-1", "item_id": "i", "session_id": 1},
        {"kind": "view", "ts_ms": START_MS, "event_id": "b8", "user_id": "somebody", "item_id": "i"},
    ],
    USERS: [
        b"\xff", {"user_id": "user-1"}, {"user_id": "user-1", "ts_ms": START_MS, "numeric": {"age": "x"}},
        {"user_id": "user-1", "ts_ms": START_MS, "categorical": {"Ort": 1}},
        {"user_id": "user-1", "ts_ms": START_MS, "numeric": []},
    ],
    CATALOG: [
        {"item_id": "item-1", "ts_ms": START_MS}, {"item_id": "item-1", "title": "t"},
        {"item_id": "item-1", "title": "t", "ts_ms": START_MS, "price": True},
        {"item_id": "item-1", "title": "t", "ts_ms": START_MS, "tags": ["a", 1]},
        {"item_id": "item-1", "title": "t", "ts_ms": START_MS, "available": "yes"},
        {"item_id": "item-1", "title": "t", "ts_ms": START_MS, "starts_ms": 1.5},
    ],
    ITEM_VECTORS: [
        {"item_id": "item-1", "embedder": "unknown", "vector": [1, 2, 3, 4], "ts_ms": START_MS},
        {"item_id": "item-1", "embedder": "toy", "vector": [1, 2], "ts_ms": START_MS},
        {"item_id": "item-1", "embedder": "toy", "vector": "?", "ts_ms": START_MS},
        {"item_id": "item-1", "embedder": "toy", "vector": [0, 0, 0, 0], "ts_ms": START_MS},
        {"item_id": "item-1", "embedder": "toy", "ts_ms": START_MS},
    ],
    CONTEXT: [
        {"location": "oslo", "ts_ms": START_MS}, {"location": "", "ts_ms": START_MS, "valid_until_ms": 1},
        {"location": "oslo", "ts_ms": START_MS, "valid_until_ms": 1, "weather": {"t": None}},
        {"location": "oslo", "ts_ms": START_MS, "valid_until_ms": 1, "promotions": {}},
        {"location": "oslo", "ts_ms": START_MS, "valid_until_ms": 1, "promotions": [{"strength": 1}]},
    ],
}  # fmt: skip


class LogMaker:
    """Rows of the log, numbered as a broker numbers them."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self._rng = random.Random(9)
        self._ends: dict[tuple[str, int], int] = {}

    def make(self) -> list[list[Any]]:
        """All rows."""
        for number in range(ITEMS):
            self._item(number)
        self._contexts()
        self._profiles()
        for topic, bodies in _BAD.items():
            for body in bodies:
                key = b"user-1" if topic in (CLICKSTREAM, USERS) else None
                partition = partition_of("user-1", PARTITIONS) if key else 0
                self._add(topic, partition, key, body, START_MS)
        self._clicks()
        self._changes()
        self._exposures()
        return self.rows

    def _add(self, topic: str, partition: int, key: bytes | None, body: Any, timestamp_ms: int, skip: int = 0) -> None:
        value = body if body is None or isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        offset = self._ends.get((topic, partition), 0) + skip
        self._ends[topic, partition] = offset + 1
        self.rows.append([topic, partition, offset, timestamp_ms, text(key), text(value)])

    def _item(self, number: int) -> None:
        name, rng = f"item-{number}", np.random.default_rng(number)
        body: dict[str, Any] = {"item_id": name, "title": f"Tee № {number}", "ts_ms": START_MS + number}
        if number % 2:
            body |= {
                "description": "grün, lose", "brand": f"b{number % 3}", "category": ["tea", f"c{number % 4}"],
                "subclass": "s", "price": 1.5 * number, "tags": ["red", f"t{number}"], "unknown": 1,
            }  # fmt: skip
        if number % 5 == 4:
            body |= {"available": number != 4, "regions": ["oslo"], "starts_ms": START_MS, "ends_ms": NOW_MS + DAY_MS}
        self._add(CATALOG, 0, name.encode(), body, START_MS + number, skip=0 if number else 2)
        vector: Any = rng.standard_normal(4).astype("<f4")
        coded = vector.tolist() if number % 2 else base64.b64encode(vector.tobytes()).decode()
        entry = {"item_id": name, "embedder": "toy", "vector": coded, "ts_ms": START_MS + number}
        entry |= {"tags": ["red"]} if number % 2 else {"text_hash": _HASH}
        if number < ITEMS - 2:  # the last two get theirs later, or never
            self._add(ITEM_VECTORS, 0, name.encode() if number % 3 else None, entry, START_MS + number)

    def _contexts(self) -> None:
        promotions = [
            {"item": "item-3", "strength": 0.5, "ends_ms": NOW_MS + DAY_MS}, {"tag": "red"}, {"category": "c1"},
        ]  # fmt: skip
        for location, until in (("oslo", NOW_MS + DAY_MS), ("bergen", NOW_MS - 1), ("old", NOW_MS)):
            body = {
                "location": location, "ts_ms": START_MS, "valid_until_ms": until, "events": ["fair"],
                "weather": {"sky": "blue", "heat": True, "degrees": 21.5}, "promotions": promotions,
            }  # fmt: skip
            self._add(CONTEXT, 0, location.encode(), body, START_MS)
        self._add(CONTEXT, 0, b"old", None, START_MS + 1)

    def _profiles(self) -> None:
        for user, ts_ms, numeric in (("user-1", 5, {"age": 40}), ("user-2", 5, {}), ("user-1", 4, {"age": 39})):
            body = {"user_id": user, "ts_ms": START_MS + ts_ms, "numeric": numeric, "categorical": {"location": "oslo"}}
            self._add(USERS, partition_of(user, PARTITIONS), user.encode(), body, START_MS)
        self._add(USERS, partition_of("user-2", PARTITIONS), b"user-2", None, START_MS + 10)
        only = {"user_id": "profile-only", "ts_ms": START_MS, "categorical": {"size": "XL"}}
        self._add(USERS, (partition_of("profile-only", PARTITIONS) + 1) % PARTITIONS, b"profile-only", only, START_MS)

    def _clicks(self) -> None:
        rng, now = self._rng, START_MS
        sent: list[dict[str, Any]] = []
        for n in range(260):
            now += 60_000 if n != 90 else 35 * DAY_MS
            user = f"user-{n % USERS_COUNT if n < 90 else n % (USERS_COUNT - 2)}"
            if n % 3 == 0:
                user = "user-1"
            item = f"item-{rng.randrange(ITEMS)}"
            body: dict[str, Any] = {
                "event_id": f"e{n}", "user_id": user, "item_id": item, "kind": rng.choice(_KINDS), "ts_ms": now,
            }  # fmt: skip
            if n % 4 == 0:
                body |= {"location": "oslo", "session_id": "s", "recommendation_id": "r", "page_id": "p"}
            if n % 11 == 5:
                body["ts_ms"] -= 30 * 60_000  # late
            if n % 29 == 7:
                body["ts_ms"] += 3_600_000  # a fast clock
            if n % 13 == 6 and sent:
                body = sent[-rng.randrange(1, 6)]
            if n in (60, 200):
                body = {"event_id": f"e{n}", "user_id": "user-3", "kind": "forget", "ts_ms": now}
            if n in (61, 201):
                body = {**body, "event_id": f"before-{n}", "user_id": "user-3", "ts_ms": now - 120_000}
            if n in (150, 151):
                body = {**body, "event_id": f"long-ago-{n}", "user_id": "user-1", "ts_ms": START_MS}
            sent.append(body)
            partition = partition_of(str(body["user_id"]), PARTITIONS)
            away = (partition + 1) % PARTITIONS if n % 17 == 3 else partition
            key = None if n % 7 == 2 else str(body["user_id"]).encode()
            self._add(CLICKSTREAM, away, key, body, now, skip=3 if n in (100, 101) else 0)

    def _changes(self) -> None:
        """Withdrawn and relisted items, a removed vector, one of another embedder, a last one that comes late."""
        now = NOW_MS - DAY_MS
        for number in (5, 6):
            self._add(CATALOG, 0, f"item-{number}".encode(), None, now)
        self._add(CATALOG, 0, b"item-6", {"item_id": "item-6", "title": "wieder da", "ts_ms": now}, now)
        self._add(ITEM_VECTORS, 0, b"item-7", None, now)
        other = {"item_id": "item-8", "embedder": "other", "vector": [1, 0, 0, 0], "ts_ms": now}
        self._add(ITEM_VECTORS, 0, b"item-8", other, now)
        late = {"item_id": "item-22", "embedder": "toy", "vector": [0.5, -1, 0, 2], "tags": ["blue"], "ts_ms": now}
        self._add(ITEM_VECTORS, 0, b"item-22", late, now)

    def _exposures(self) -> None:
        """What the API showed: one list before a click that names it, and one of a stranger."""
        for user, when in (("user-1", START_MS), ("nobody", START_MS + 1)):
            items = [{"item_id": f"item-{number}", "slot": "next", "score": 0.5} for number in range(ITEMS)]
            body = {
                "recommendation_id": "r" if user == "user-1" else "r2", "user_id": user, "items": items[:12],
                "ts_ms": when, "page_id": "p", "model": "m-00000000", "served_by": "personal", "location": "oslo",
            }  # fmt: skip
            self._add(EXPOSURES, partition_of(user, PARTITIONS), user.encode(), body, when)
