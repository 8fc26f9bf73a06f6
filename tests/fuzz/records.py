"""Makes fuzzed records from a seed: good ones, wrong fields, mutated JSON, mutated bytes, nulls, odd Kafka times.

Ids come from small pools, so that records meet each other; none is that of a control (`control-…`).
"""

from __future__ import annotations

import base64
import copy
import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from index.state.keys import partition_of
from streams.events import (
    CATALOG,
    CLICKSTREAM,
    CONTEXT,
    EXPOSURES,
    ITEM_VECTORS,
    PARTITIONED,
    SCENARIO_RULES,
    USERS,
    Record,
)
from tests.faults.malformed import WRONG_TIMESTAMPS, malformed, wrong

NOW_MS = 1_760_000_000_000
TOPICS = {  # topic → weight
    CLICKSTREAM: 40, USERS: 15, CATALOG: 15, ITEM_VECTORS: 10, CONTEXT: 12, SCENARIO_RULES: 10, EXPOSURES: 8
}  # fmt: skip
KINDS = ("view", "cart", "purchase", "like", "dislike", "remove")
DAY_MS = 86_400_000

_TIMES: tuple[Any, ...] = (
    *(NOW_MS, NOW_MS + 299_999, NOW_MS + 300_001, 946_684_800_000, 4_102_444_800_000, 253_402_300_799_999),
    *WRONG_TIMESTAMPS,
    *(float(NOW_MS), 1.5, str(NOW_MS), "2026-01-01T00:00:00Z", True, None, [], {}, 1e300, -0.0),
)
_TEXTS: tuple[Any, ...] = (
    *("", " ", "a", "Home\u00a0& Garden", "茶\u3000園", "Cafe\u0301", "\ufeffTea", "a\u200bb", "می\u200cخواهم"),
    *(
        "👩\u200d🍳",
        "a\x00b",
        "a\x1fb",
        "\x7f",
        "\x9f",
        "\ud7ff",
        "\U0010ffff",
        "\u2028",
        "x" * 256,
        "x" * 257,
        "é" * 129,
    ),
    *("ﷺ" * 90, "../..", "%00", "{p0}", "-", "null", "\u202eabc", "İ", "ǰ", "é" * 129, "a" * 20_000),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**62, 2**63 - 1, -(2**63), 2**64 - 1, 1e308, -1e308, 5e-324, 0.1),
    *([], {}, [[]], [{}], [None], {"": ""}, {"a": {"b": [1]}}, [1] * 300, ["a"] * 300, {"a" * 300: 1}),
)


class RecordMaker:
    """Records without an offset; the same seed gives the same ones."""

    def __init__(self, seed: int, partitions: int) -> None:
        self._rng, self._partitions, self._made = random.Random(seed), partitions, 0
        self._ways: list[Callable[[str], tuple[bytes | None, bytes | None]]] = []
        for way, weight in (
            *((self._good, 35), (self._wrong, 10), (self._mutated, 30), (self._broken, 15), (self._null, 4)),
            *((self._noise, 4), (self._listed, 2)),
        ):
            self._ways += [way] * weight

    def make(self) -> Record:
        """One more record; its offset is 0."""
        self._made += 1
        topic = self._rng.choices(list(TOPICS), list(TOPICS.values()))[0]
        key, value = self._rng.choice(self._ways)(topic)
        return Record(topic, self._partition(topic, key, value), 0, self._timestamp_ms(), key, value, self._headers())

    def _timestamp_ms(self) -> int:
        roll = self._rng.random()
        if roll < 0.9:
            return NOW_MS + self._rng.randrange(-DAY_MS, DAY_MS)
        return int(self._rng.choice(WRONG_TIMESTAMPS)) if roll < 0.97 else self._rng.randrange(-(2**63), 2**63)

    def _partition(self, topic: str, key: bytes | None, value: bytes | None) -> int:
        """Mostly the home of the user whom a record names."""
        if topic not in PARTITIONED:
            return 0
        if self._rng.random() < 0.1:
            return self._rng.randrange(self._partitions)
        try:
            name = (key or b"").decode() if value is None else orjson.loads(value)["user_id"]
            return partition_of(name, self._partitions)
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._rng.randrange(self._partitions)

    def _headers(self) -> tuple[tuple[str, bytes], ...]:
        return () if self._rng.random() < 0.98 else ((self._rng.choice(["sent-ms", "x"]), self._rng.randbytes(9)),)

    def _id(self, kind: str) -> str:
        return f"{kind}-{min(int(self._rng.paretovariate(0.6)), 400)}"

    def _labels(self) -> list[str]:
        return [f"label {self._rng.randrange(30)}" for _ in range(self._rng.randrange(4))]

    def _time(self) -> int:
        return NOW_MS + self._rng.randrange(-30 * DAY_MS, DAY_MS)

    def _body(self, topic: str) -> dict[str, Any]:
        """A good record."""
        rng = self._rng
        user, item, ts_ms = self._id("u"), self._id("i"), self._time()
        if topic == CLICKSTREAM:
            kind = "forget" if rng.random() < 0.01 else rng.choice(KINDS)
            event_id = f"e{self._made if rng.random() < 0.9 else rng.randrange(1, self._made + 1)}"
            body = {"event_id": event_id, "user_id": user, "item_id": item, "kind": kind, "ts_ms": ts_ms}
            if kind == "forget":
                del body["item_id"]
            return body if rng.random() < 0.5 else {**body, "location": self._id("l"), "session_id": "s"}
        if topic == USERS:
            profile = {"numeric": {"age": rng.randrange(99)}, "categorical": {"location": self._id("l")}}
            return {"user_id": user, "ts_ms": ts_ms, **profile}
        if topic == CATALOG:
            labels = {name: self._labels() for name in ("category", "tags", "regions")}
            window = {"starts_ms": rng.choice([None, 0, ts_ms]), "ends_ms": rng.choice([None, ts_ms + DAY_MS])}
            more = {"brand": f"brand {rng.randrange(9)}", "price": rng.random() * 100, "available": rng.random() < 0.9}
            return {"item_id": item, "title": f"Item {item}", "ts_ms": ts_ms, **labels, **window, **more}
        if topic == ITEM_VECTORS:
            numbers = [rng.gauss(0, 1) for _ in range(4)]
            vector = numbers if rng.random() < 0.5 else base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()
            return {"item_id": item, "embedder": "toy", "vector": vector, "tags": self._labels(), "ts_ms": ts_ms}
        if topic == CONTEXT:
            promotion = {rng.choice(["item", "tag", "category"]): "x", "strength": rng.random(), "ends_ms": ts_ms}
            more = {"weather": {"t": rng.random()}, "events": self._labels(), "promotions": [promotion]}
            return {"location": self._id("l"), "ts_ms": ts_ms, "valid_until_ms": ts_ms + DAY_MS, **more}
        if topic == SCENARIO_RULES:
            condition = {"field": rng.choice(["brand", "tags", "price"]), rng.choice(["in", "not_in", "gte"]): ["x"]}
            body = {"scenario": self._id("s"), "ts_ms": ts_ms, "caps": {"brand": rng.randrange(1, 9)}, "group": True}
            body |= {"boosts": [{rng.choice(["item", "tag", "brand"]): "x"}], "exclude": [item], "diversity": 0.5}
            body |= {
                "pins": [{"item": item, "place": rng.randrange(1, 9)}],
                "repeat": {"view": rng.choice([3, "never"])},
            }
            return body if rng.random() < 0.7 else {**body, "filter": {"and": [condition]}, "starts_ms": ts_ms}
        shown = [{"item_id": self._id("i"), "slot": "next", "score": rng.random()} for _ in range(3)]
        return {"recommendation_id": f"r{self._made}", "user_id": user, "items": shown, "ts_ms": ts_ms}

    def _good(self, topic: str) -> tuple[bytes | None, bytes | None]:
        body = self._body(topic)
        key = body.get("user_id") or body.get("item_id") or body.get("location") or body["scenario"]
        return key.encode() if self._rng.random() < 0.9 else None, orjson.dumps(body)

    def _wrong(self, topic: str) -> tuple[bytes | None, bytes | None]:
        """One field wrong, as it is known to be."""
        if topic == EXPOSURES:
            return self._mutated(topic)
        return None, self._rng.choice(_wrongs(topic))

    def _mutated(self, topic: str) -> tuple[bytes | None, bytes | None]:
        """Some fields anywhere in a good record are others, gone, or new."""
        body = copy.deepcopy(self._body(topic))
        for _ in range(self._rng.choice((1, 1, 1, 2, 4))):
            self._mutate(body)
        return None, orjson.dumps(body)

    def _mutate(self, body: Any) -> None:
        rng, at = self._rng, body
        while True:
            places = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not places:
                return
            place = rng.choice(places)
            if isinstance(at[place], (dict, list)) and at[place] and rng.random() < 0.7:
                at = at[place]
                continue
            roll = rng.random()
            if roll < 0.1:
                del at[place]
            elif roll < 0.2 and isinstance(at, dict):
                at[str(rng.choice(_TEXTS))] = copy.deepcopy(rng.choice(_VALUES))
            else:
                at[place] = self._other(str(place))
            return

    def _other(self, name: str) -> Any:
        rng, roll = self._rng, self._rng.random()
        if name.endswith("_ms") and roll < 0.7:
            value = rng.choice(_TIMES) if roll < 0.5 else rng.randrange(946_684_800_000, 4_102_444_800_001)
        elif roll < 0.5:
            value = rng.choice(_TEXTS)
        elif roll < 0.6:
            value = [rng.choice(_TEXTS) for _ in range(rng.randrange(3))]
        elif roll < 0.7:
            value = "".join(chr(rng.randrange(0xD800)) for _ in range(rng.randrange(20)))
        else:
            value = rng.choice(_VALUES)
        return copy.deepcopy(value)

    def _broken(self, topic: str) -> tuple[bytes | None, bytes | None]:
        """Some bytes of a good record are others, gone, twice, or cut off."""
        value = bytearray(orjson.dumps(self._body(topic)))
        for _ in range(self._rng.choice((1, 1, 2, 5))):
            at = self._rng.randrange(len(value) or 1)
            roll = self._rng.random()
            if roll < 0.4:
                value[at : at + 1] = self._rng.randbytes(1)
            elif roll < 0.6:
                del value[at : at + self._rng.randrange(1, 4)]
            elif roll < 0.8:
                value[at:at] = value[at : at + self._rng.randrange(1, 9)]
            else:
                del value[at:]
        return None, bytes(value)

    def _null(self, topic: str) -> tuple[bytes | None, bytes | None]:
        kind = {CATALOG: "i", ITEM_VECTORS: "i", CONTEXT: "l", SCENARIO_RULES: "s"}.get(topic, "u")
        key = self._id(kind).encode() if self._rng.random() < 0.6 else self._rng.choice((None, b"", b"\xff", b"a\nb"))
        return key, None

    def _noise(self, topic: str) -> tuple[bytes | None, bytes | None]:
        return self._rng.choice((None, self._rng.randbytes(5))), self._rng.randbytes(self._rng.randrange(80))

    def _listed(self, topic: str) -> tuple[bytes | None, bytes | None]:
        """From the list of what producers are known to send, without the largest."""
        return self._rng.choice(_known(CATALOG if topic == EXPOSURES else topic))


@lru_cache
def _wrongs(topic: str) -> list[bytes]:
    return [orjson.dumps(body) for _, body in wrong(topic)]


@lru_cache
def _known(topic: str) -> list[tuple[bytes | None, bytes | None]]:
    found = malformed(topic, 500, seed=3, large=0)
    return [(key, value) for key, value in found if len(value or b"") + len(key or b"") < 10_000]
