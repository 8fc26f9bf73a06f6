"""What broken, careless or hostile producers send: records of each consumed topic that must not be accepted.

Every value here is wrong for a reason; what is merely odd (unknown fields, no key) is not among them. Vectors are of
the embedder `toy` with four numbers.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from streams.events import (
    CATALOG,
    CLICKSTREAM,
    CONTEXT,
    EXPOSURES,
    ITEM_VECTORS,
    SCENARIO_RULES,
    USERS,
)

BIG = 900_000  # bytes: near the 1 MB at which Kafka refuses a record
TS_MS = 1_760_000_000_000

_TEXTS: list[Any] = [3, 1.5, True, [], {}, ["a"]]
_IDS: list[Any] = [*_TEXTS, "", " ", "   ", "x" * 257, "é" * 129, "a\nb", "a\x1fb", "\u2028"]
_OPTIONAL_IDS: list[Any] = [*_TEXTS, " ", "x" * 257, "a\tb", "\u2028"]
_CONTROL: list[Any] = ["a\x00b", "a\x1fb", "\x7f", "\x9f"]
_LABELS: list[Any] = [*_TEXTS, "x" * 257, *_CONTROL]
_LISTS: list[Any] = ["x", "", 3, True, {}, [3], [""], [" \u3000"], [None], [["a"]], ["x" * 257], ["a", "b\x00"]]
_NUMBERS: list[Any] = ["1", "cheap", True, [], {}]
_INTEGERS: list[Any] = ["1", 1.5, True, [], {}, 2**62, -(2**63), 1e300]
_UNITS: list[Any] = [1_760_000_000, 1_760_000_000_000_000, 1_760_000_000_000_000_000]  # seconds, micro, nano
_TIMES: list[Any] = [*_INTEGERS, *_UNITS, 1.76e12, "1760000000000", 0, -1, 946_684_799_999, 4_102_444_800_001]
_STARTS: list[Any] = [time for time in _TIMES if time != 0]
_ENDS: list[Any] = [time for time in _TIMES if time != 4_102_444_800_001] + [253_402_300_800_000]
_OBJECTS: list[Any] = ["x", 3, True, [], [1]]
_LISTED: list[Any] = ["x", 3, True, {}, ["i1"], [None], [{}], [{"item_id": ""}], [{"item_id": 3}]]


def _base64(*numbers: float) -> str:
    return base64.b64encode(np.asarray(numbers, dtype="<f4").tobytes()).decode()


_VECTORS: list[Any] = [
    *(3, True, {}, "", "!!!!", "AAAA", "é", [], [1, 2, 3], [1, 2, 3, 4, 5], ["a", 1, 2, 3], [True, 1, 2, 3]),
    *([None, 1, 2, 3], [0, 0, 0, 0], [[1], [2], [3], [4]], [1e300, 0, 0, 0], [1e30, 1e30, 0, 0], [1e-30, 0, 0, 0]),
    *(
        _base64(1, 2, 3),
        _base64(1, 2, 3, 4, 5),
        _base64(np.nan, 1, 2, 3),
        _base64(np.inf, 1, 2, 3),
        _base64(0, 0, 0, 0),
    ),
]
_PROMOTIONS: list[Any] = [
    *("x", 3, True, 0, "", {}, {"a": 1}, [3], [None], [{}], [{"item": ""}], [{"item": 3}], [{"item": "a", "tag": "b"}]),
    *([{"item": "a", "strength": "x"}], [{"tag": "a\x00"}], [{"category": "\u3000"}], [{"item": "a\u3000b"}]),
    *([{"tag": "a", "starts_ms": time}] for time in _STARTS),
    *([{"category": "a", "ends_ms": time}] for time in _ENDS),
    [{"item": "a", "starts_ms": TS_MS + 1, "ends_ms": TS_MS}],
]

_DAYS: list[Any] = [0, -1, 1.5, 3_651, True, "often", []]
_BOOSTS: list[Any] = [
    *("x", 3, True, {}, {"a": 1}, [3], [None], [{}], [{"item": ""}], [{"item": 3}], [{"item": "a", "tag": "b"}]),
    *([{"brand": "a", "strength": much}] for much in ("x", 0, -1, 10.1, True)),
    *([{"tag": "a\x00"}], [{"category": "\u3000"}], [{"item": "a\u3000b"}], [{"brand": "a"}] * 101),
]
_PINS: list[Any] = [
    *("x", 3, True, {}, {"a": 1}, [3], [None], [{}], [{"item": "a"}], [{"place": 1}], [{"item": "", "place": 1}]),
    *([{"item": "a", "place": place}] for place in (0, 201, 1.5, "1", True)),
    [{"item": "a", "place": 1}, {"item": "b", "place": 1}],
    [{"item": "a", "place": 1}, {"item": "a", "place": 2}],
]

REQUIRED: Mapping[str, Mapping[str, list[Any]]] = {
    CLICKSTREAM: {"event_id": _IDS, "user_id": _IDS, "item_id": _IDS, "kind": [*_TEXTS, "", "sneeze"], "ts_ms": _TIMES},
    USERS: {"user_id": _IDS, "ts_ms": _TIMES},
    CATALOG: {"item_id": _IDS, "title": [*_TEXTS, *_CONTROL], "ts_ms": _TIMES},
    ITEM_VECTORS: {"item_id": _IDS, "embedder": [*_IDS, "other"], "vector": _VECTORS, "ts_ms": _TIMES},
    CONTEXT: {"location": _IDS, "ts_ms": _TIMES, "valid_until_ms": _ENDS},
    SCENARIO_RULES: {"scenario": _IDS, "ts_ms": _TIMES},
    EXPOSURES: {"recommendation_id": _IDS, "user_id": _IDS, "items": _LISTED, "ts_ms": _TIMES},
}
OPTIONAL: Mapping[str, Mapping[str, list[Any]]] = {
    CLICKSTREAM: dict.fromkeys(("session_id", "location", "recommendation_id", "page_id"), _OPTIONAL_IDS),
    USERS: {
        "numeric": [*_OBJECTS, {"a": "b"}, {"a": None}, {"a": True}, {"a": []}],
        "categorical": [*_OBJECTS, {"a": 3}, {"a": None}, {"a": {}}, {"x" * 2000: 3}],
    },
    CATALOG: {
        "description": [*_TEXTS, *_CONTROL],
        "brand": _LABELS,
        "subclass": _LABELS,
        "price": [*_NUMBERS, -1, -0.01],
        "available": ["yes", 1, 0, [], {}],
        **dict.fromkeys(("category", "tags", "regions"), _LISTS),
        "starts_ms": _STARTS,
        "ends_ms": _ENDS,
        "group_id": _OPTIONAL_IDS,
    },
    ITEM_VECTORS: {"tags": _LISTS, "text_hash": _OPTIONAL_IDS},
    CONTEXT: {
        "weather": [*_OBJECTS, {"t": []}, {"t": None}, {"t": {}}],
        "events": _LISTS,
        "promotions": _PROMOTIONS,
    },
    SCENARIO_RULES: {
        "slot": ["", "popular", 3, True, [], {}],
        "filter": [*("x", 3, True, [], {}, {"field": "nothing", "in": ["a"]}, {"and": []}), {"field": "price"}],
        "exclude": [*("x", 3, True, {}, {"a": 1}, [3], [None], [""], ["a\x00"], [["a"]])],
        **dict.fromkeys(("boosts", "buries"), _BOOSTS),
        "pins": _PINS,
        "caps": [
            *_OBJECTS,
            {"price": 3},
            {"brand": 0},
            {"brand": 201},
            {"brand": 1.5},
            {"brand": True},
            {"brand": None},
        ],
        "diversity": [*_NUMBERS, -0.1, 1.1],
        "group": ["yes", 1, 0, [], {}],
        "repeat": [*_OBJECTS, {"sneeze": 3}, *({"view": value} for value in _DAYS)],
        "starts_ms": _STARTS,
        "valid_until_ms": _ENDS,
    },
    EXPOSURES: dict.fromkeys(("page_id", "location", "model", "served_by"), _OPTIONAL_IDS),
}
GOOD: Mapping[str, dict[str, Any]] = {
    CLICKSTREAM: {"event_id": "e1", "user_id": "u1", "item_id": "i1", "kind": "view", "ts_ms": TS_MS},
    USERS: {"user_id": "u1", "numeric": {"age": 3}, "categorical": {"location": "berlin"}, "ts_ms": TS_MS},
    CATALOG: {"item_id": "i1", "title": "Tea", "price": 2.5, "ts_ms": TS_MS},
    ITEM_VECTORS: {"item_id": "i1", "embedder": "toy", "vector": [1, 0, 0.5, 0], "tags": ["t"], "ts_ms": TS_MS},
    CONTEXT: {"location": "berlin", "ts_ms": TS_MS, "valid_until_ms": TS_MS + 1, "weather": {"heat_wave": True}},
    SCENARIO_RULES: {"scenario": "home", "ts_ms": TS_MS, "caps": {"brand": 2}, "repeat": {"view": "allowed"}},
    EXPOSURES: {"recommendation_id": "r1", "user_id": "u1", "items": [{"item_id": "i1"}], "ts_ms": TS_MS},
}
# Of the right type, and yet wrong: topic, what is changed in a good record, field, reason.
SENSELESS: tuple[tuple[str, dict[str, Any], str, str], ...] = (
    (CATALOG, {"price": -0.01}, "price", "-0.01 is below 0"),
    (CATALOG, {"title": "é" * 10_001}, "title", "a title has at most 10,000 characters, got 10,001"),
    (CATALOG, {"tags": ["t"] * 1_001}, "tags", "a list has at most 1,000 entries, got 1,001"),
    (CATALOG, {"category": ["t"] * 20_000}, "category", "a list has at most 1,000 entries, got 20,000"),
    (CONTEXT, {"events": ["t"] * 1_001}, "events", "a list has at most 1,000 entries, got 1,001"),
    (CATALOG, {"title": "a\x07"}, "title", "holds the control character U+0007"),
    (CATALOG, {"description": "line\n\x1b[0m"}, "description", "holds the control character U+001B"),
    (CATALOG, {"starts_ms": TS_MS + 1, "ends_ms": TS_MS}, "ends_ms", "is before starts_ms"),
    (SCENARIO_RULES, {"scenario": "x" * 65}, "scenario", "has 65 characters, a scenario has at most 64"),
    (
        SCENARIO_RULES,
        {"starts_ms": TS_MS + 1, "valid_until_ms": TS_MS},
        "valid_until_ms",
        "is before starts_ms",
    ),
    (
        SCENARIO_RULES,
        {"pins": [{"item": "a", "place": 1}, {"item": "b", "place": 1}]},
        "pins",
        "place 1 is there 2 times; name each once",
    ),
    (
        SCENARIO_RULES,
        {"exclude": ["x" * 256] * 300},
        "value",
        "a rule has at most 65,536 bytes, got 77,800",
    ),
    (
        SCENARIO_RULES,
        {"filter": {"and": [{"field": "price", "in": [3]}]}},
        "filter.and[0]",
        "price has no operator 'in'; it has gte, lte",
    ),
    (
        CONTEXT,
        {"promotions": [{"tag": "t"}, {"tag": "t", "starts_ms": TS_MS + 1, "ends_ms": TS_MS}]},
        "promotions[1].ends_ms",
        "is before starts_ms",
    ),
)
_DEEP = 100_000
_BODIES = (
    *(b"", b" ", b"null", b"3", b"true", b"[]", b'"x"', b"{}", b"[{}]", b"{", b"{]", b"nul", b'{"a":NaN}', b'{"a":'),
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b'{"user_id":"\xff"}', b'{"user_id":"\\ud800"}'),
    *(b"[" * _DEEP, b'{"a":' * _DEEP, b"[" * _DEEP + b"]" * _DEEP, b"\x80" * BIG, b"9" * BIG, b'"' + b"x" * BIG + b'"'),
)
_KEYS = (b"", b"\xff", b"another", b"u1 ", b"x" * 300, b"x" * 300_000)
_NULL_KEYS = (None, b"", b"\xff\xfe", b"x" * 257, b"a\nb", b"x" * 300_000)


# Kafka's own time of a record: none, another unit, or outside 2000 to 2100.
WRONG_TIMESTAMPS = (-1, 0, *_UNITS, 946_684_799_999, 4_102_444_800_001, -(2**63), 2**63 - 1)


def wrong(topic: str) -> list[tuple[str, dict[str, Any]]]:
    """(field, body): each body has one wrong or missing field."""
    good, out = GOOD[topic], []
    for name, values in {**REQUIRED[topic], **OPTIONAL[topic]}.items():
        out += [(name, {**good, name: value}) for value in values]
    if topic == CATALOG:
        out.append(("ends_ms", {**good, "starts_ms": TS_MS + 1, "ends_ms": TS_MS}))
    for name in REQUIRED[topic]:
        out.append((name, {key: value for key, value in good.items() if key != name}))
        out.append((name, {**good, name: None}))
    return out


def malformed(topic: str, count: int, seed: int, large: int = 20) -> list[tuple[bytes | None, bytes | None]]:
    """`count` pairs (key, value), at most about `large` of them near 1 MB."""
    rng = random.Random(seed)
    wrongs = [orjson.dumps(body) for _, body in wrong(topic)]
    good = orjson.dumps(GOOD[topic])
    small = [body for body in _BODIES if len(body) < 1000]
    out: list[tuple[bytes | None, bytes | None]] = []
    out += [(None, body) for body in _BODIES if len(body) >= 1000]
    out += [(None, _large(topic, rng)) for _ in range(large - len(out))]
    while len(out) < count:
        roll = rng.random()
        if roll < 0.5:
            out.append((None, rng.choice(wrongs)))
        elif roll < 0.6:
            out.append((None, rng.choice(small)))
        elif roll < 0.75:
            out.append((None, rng.randbytes(rng.randrange(200))))
        elif roll < 0.9:
            out.append((None, good[: rng.randrange(len(good))]))
        elif roll < 0.95:
            out.append((rng.choice(_KEYS), good))
        else:
            out.append((rng.choice(_NULL_KEYS), None))
    rng.shuffle(out)
    return out


def _large(topic: str, rng: random.Random) -> bytes:
    name = rng.choice([name for name, values in REQUIRED[topic].items() if values is _IDS])
    body = {**GOOD[topic], name: "x" * BIG}
    if topic == ITEM_VECTORS and rng.random() < 0.5:
        body = {**GOOD[topic], "vector": [rng.random() for _ in range(40_000)]}
    if topic == USERS and rng.random() < 0.5:
        body = {**GOOD[topic], "categorical": {"x" * BIG: 3}}
    return orjson.dumps(body)
