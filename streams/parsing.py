"""Parses and validates records, and encodes bodies to be produced.

Acceptance depends on the record, its Kafka timestamp and the rules, never on a wall clock; unknown fields do not count.
Labels (brand, category, subclass, tags, regions, events, targets of promotions) are folded; ids are taken as they are.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from context.json_words import found_value, json_word
from context.times import YEAR_2000_MS, YEAR_2100_MS, check_ms
from index.state.records import canonical_json
from streams.events import (
    CATALOG,
    CLICKSTREAM,
    CONTEXT,
    EXPOSURES,
    FAST_CLOCK_MS,
    FORGET,
    ITEM_VECTORS,
    SCENARIO_RULES,
    USERS,
    CatalogueEntry,
    Click,
    ContextEntry,
    Event,
    Exposure,
    Forget,
    MalformedError,
    Profile,
    Record,
    Rules,
    ScenarioEntry,
    VectorEntry,
)
from streams.fields import MAX_ID_BYTES, Body, NotingBody, checked, identifier
from streams.item_vectors import vector_key
from streams.scenario_rules import scenario_entry

FORGET_HAS_NO_ITEM = f"a {FORGET} has none, it is about the whole user"


def parse(record: Record, rules: Rules) -> Event:
    """The event a record carries.

    Raises MalformedError with field and reason when it cannot be accepted, KeyError for a topic that no
    worker applies.
    """
    if record.topic == CLICKSTREAM and (click := _plain_click(record, rules)) is not None:
        return click
    if record.topic == EXPOSURES:
        return parse_exposure(record)
    parser = _PARSERS[record.topic]
    if record.value is None:
        check_timestamp(record)
        return _null(record)
    event = parser(read_body(record), rules)
    other = [vector_key(event.item_id, event.embedder)] if isinstance(event, VectorEntry) else []
    check_key(record, record_key(event), *other)
    return event


def read_body(record: Record) -> Body:
    """The JSON object that a record with a usable time carries. Raises MalformedError when it carries none."""
    check_timestamp(record)
    if record.value is None:
        raise MalformedError("value", "null")
    try:
        body = orjson.loads(record.value)
    except orjson.JSONDecodeError as error:
        raise MalformedError("value", f"not JSON: {error}") from error
    if not isinstance(body, dict):
        raise MalformedError("value", f"expected an object, got {json_word(body)}")
    return Body(body, record.timestamp_ms)


def encode_record(topic: str, body: Mapping[str, Any], timestamp_ms: int, rules: Rules) -> tuple[bytes, bytes]:
    """Key and value of `body` with this record timestamp.

    Raises MalformedError when a consumer would refuse it, with all other fields that are wrong; also for a forget that
    names an item, which may be a click with a wrong kind. Consumers obey one that is in a log: it erases in good faith.
    """
    try:
        value = orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise MalformedError("value", f"not JSON: {error}") from error
    record = Record(topic, 0, 0, timestamp_ms, None, value)
    try:
        event = parse(record, rules)
    except MalformedError as error:
        raise MalformedError(error.field, error.reason, faults(record, rules)[1:]) from error
    if isinstance(event, Forget) and body.get("item_id") not in (None, ""):
        raise MalformedError("item_id", FORGET_HAS_NO_ITEM)
    return record_key(event).encode(), value


def faults(record: Record, rules: Rules) -> list[MalformedError]:
    """What is wrong with a record's value, the first of each field: begins with what `parse` raises.

    At most `MOST_FAULTS`; keys are not looked at. Assumes a value that orjson has written.
    """
    try:
        strict = read_body(record)
    except MalformedError as error:
        return [error]
    body = NotingBody(strict.body, strict.timestamp_ms)
    body.read(lambda body: _PARSERS[record.topic](body, rules))
    return list(body.faults.values())


def record_key(event: Event) -> str:
    """The id that is the record's key."""
    match event:
        case Click() | Forget() | Profile() | Exposure():
            return event.user_id
        case CatalogueEntry() | VectorEntry():
            return event.item_id
        case ContextEntry():
            return event.location
        case ScenarioEntry():
            return event.scenario


def check_key(record: Record, *keys: str) -> None:
    """Raises MalformedError when a record has another key than those that it may have."""
    if record.key is not None and record.key not in [key.encode() for key in keys]:
        raise MalformedError("key", "differs from the record's id")


def check_timestamp(record: Record) -> None:
    """Raises MalformedError when Kafka's time of a record is missing or of another unit."""
    if record.timestamp_ms == -1:
        raise MalformedError("timestamp", "Kafka's own is missing (-1), expected milliseconds since the epoch")
    checked("timestamp", check_ms, record.timestamp_ms)


def _null(record: Record) -> Event:
    if record.topic == CLICKSTREAM:
        raise MalformedError("value", "null")
    try:
        key = identifier("key", (record.key or b"").decode())
    except UnicodeDecodeError as error:
        raise MalformedError("key", "not UTF-8") from error
    if record.topic == CATALOG:
        return CatalogueEntry(key, None)
    if record.topic == ITEM_VECTORS:
        return VectorEntry(key, "", None, (), None)
    if record.topic == CONTEXT:
        return ContextEntry(key, None)
    if record.topic == SCENARIO_RULES:
        return ScenarioEntry(key, None)
    return Profile(key, None, record.timestamp_ms)


def _plain_click(record: Record, rules: Rules) -> Click | None:
    """The click that a record plainly carries; None for whatever has to be looked at more closely.

    Takes a quarter of the time of `_click`, which accepts all of these as they are here.
    """
    latest_ms = record.timestamp_ms + FAST_CLOCK_MS
    if record.value is None or not YEAR_2000_MS <= record.timestamp_ms <= YEAR_2100_MS:
        return None
    try:
        body = orjson.loads(record.value)
    except orjson.JSONDecodeError:
        return None
    if type(body) is not dict:
        return None
    get: Callable[[str], Any] = body.get
    event_id, user_id, item_id, name, ts_ms = get("event_id"), get("user_id"), get("item_id"), get("kind"), get("ts_ms")
    for value in (event_id, user_id, item_id):
        if type(value) is not str or not _is_plain(value):
            return None
    kind = rules.codes.get(name) if type(name) is str and name != FORGET else None
    if kind is None or type(ts_ms) is not int or not YEAR_2000_MS <= ts_ms <= latest_ms or ts_ms > YEAR_2100_MS:
        return None
    if record.key is not None and record.key != user_id.encode():
        return None
    if len(body) == _PLAIN_FIELDS:
        return Click(event_id, user_id, item_id, kind, ts_ms, ts_ms)
    optional = ["" if (value := get(field)) is None else value for field in _OF_CLICKS]
    for value in optional:
        if value != "" and (type(value) is not str or not _is_plain(value)):
            return None
    return Click(event_id, user_id, item_id, kind, ts_ms, ts_ms, *optional)


def _is_plain(value: str) -> bool:
    """Whether a string is an id of one byte a character."""
    return 0 < len(value) <= MAX_ID_BYTES and value.isascii() and value.isprintable() and not value.isspace()


def _click(body: Body, rules: Rules) -> Event:
    name = body.text("kind", required=True)
    ts_ms, raw_ts_ms = body.time()
    event_id, user_id = body.identifier("event_id"), body.identifier("user_id")
    if name == FORGET:
        return Forget(event_id, user_id, ts_ms, raw_ts_ms)
    kind = rules.kind_code(name)
    if kind is None:
        body.refuse("kind", f"expected one of {', '.join(k.name for k in rules.kinds)}, got {found_value(name)}")
    return Click(
        event_id,
        user_id,
        body.identifier("item_id"),
        kind or 0,
        ts_ms,
        raw_ts_ms,
        location=body.optional_identifier("location"),
        session_id=body.optional_identifier("session_id"),
        recommendation_id=body.optional_identifier("recommendation_id"),
        page_id=body.optional_identifier("page_id"),
    )


def _profile(body: Body, rules: Rules) -> Event:
    user_id, (ts_ms, _) = body.identifier("user_id"), body.time()
    numeric = {name: body.finite(f"numeric.{name}", value) for name, value in body.mapping("numeric").items()}
    categorical = body.mapping("categorical")
    for name, value in categorical.items():
        if not isinstance(value, str):
            body.refuse(f"categorical.{name}", f"expected a string, got {found_value(value)}")
    return Profile(user_id, canonical_json({"numeric": numeric, "categorical": categorical}), ts_ms)


def _catalogue_entry(body: Body, rules: Rules) -> Event:
    item_id, (ts_ms, _) = body.identifier("item_id"), body.time()
    fields: dict[str, Any] = {
        "title": body.title(),
        "description": body.prose("description"),
        "brand": body.label("brand"),
        "category": body.labels("category"),
        "subclass": body.label("subclass"),
        "price": body.amount("price"),
        "tags": body.labels("tags"),
        "available": body.flag("available", default=True),
        "regions": body.labels("regions"),
    }
    fields["starts_ms"], fields["ends_ms"] = body.window()
    fields["ts_ms"] = ts_ms
    if group_id := body.optional_identifier("group_id"):  # few items have one: records of others stay as they were
        fields["group_id"] = group_id
    sent = fields | {name: body.body.get(name) or fields[name] for name in ("brand", "category", "subclass", "tags")}
    return CatalogueEntry(item_id, fields, sent if sent != fields else None)


def _vector_entry(body: Body, rules: Rules) -> Event:
    item_id, embedder = body.identifier("item_id"), body.identifier("embedder")
    body.time()
    dim = rules.embedders.get(embedder)
    if dim is None:
        raise MalformedError(
            "embedder", f"expected one of {', '.join(sorted(rules.embedders))}, got {found_value(embedder)}"
        )
    vector = _vector(body.body.get("vector"))
    if vector.shape != (dim,):
        raise MalformedError("vector", f"has {vector.size} numbers, {embedder} has {dim}")
    with np.errstate(over="ignore", under="ignore"):
        length = float(np.dot(vector, vector))  # in fp32, as whoever normalises it will have it
    if not 0 < length < math.inf:
        raise MalformedError("vector", "has no finite length above zero in 32-bit floats")
    return VectorEntry(
        item_id, embedder, vector, tuple(body.labels("tags")), body.optional_identifier("text_hash") or None
    )


def _vector(value: Any) -> NDArray[np.float32]:
    if isinstance(value, str):
        try:
            return np.frombuffer(base64.b64decode(value, validate=True), np.dtype("<f4")).astype(np.float32)
        except (binascii.Error, ValueError) as error:
            raise MalformedError("vector", "not base64 of little-endian float32") from error
    if not isinstance(value, list) or not all(type(x) in (int, float) for x in value):
        raise MalformedError("vector", "missing" if value is None else "expected a list of numbers or base64")
    with np.errstate(over="ignore"):  # 1e300 becomes infinite in fp32 and is refused as such
        return np.asarray(value, dtype=np.float64).astype(np.float32)


def _context_entry(body: Body, rules: Rules) -> Event:
    location, (ts_ms, _) = body.identifier("location"), body.time()
    valid_until_ms = body.time_ms("valid_until_ms", open_end=True)
    if valid_until_ms is None:
        body.refuse("valid_until_ms", "missing")
    promotions = body.body.get("promotions")
    promotions = [] if promotions is None else promotions
    if not isinstance(promotions, list) or not all(isinstance(entry, dict) for entry in promotions):
        body.refuse("promotions", f"expected a list of objects, got {promotions!r:.60}")
        promotions = []
    content = {
        "location": location,
        "ts_ms": ts_ms,
        "valid_until_ms": valid_until_ms,
        "weather": _weather(body),
        "events": body.labels("events"),
        "promotions": [body.part(f"promotions[{i}]", entry, _promotion) for i, entry in enumerate(promotions)],
    }
    return ContextEntry(location, canonical_json(content))


def _weather(body: Body) -> dict[str, Any]:
    weather = body.mapping("weather")
    for name, value in weather.items():
        if not isinstance(value, (str, bool)):
            body.finite(f"weather.{name}", value)
    return weather


def _promotion(body: Body) -> dict[str, Any]:
    named = [target for target in ("item", "tag", "category") if body.body.get(target) is not None]
    if len(named) != 1:
        raise MalformedError("item", "exactly one of item, tag and category is to be named")
    (target,) = named
    name = body.identifier(target) if target == "item" else body.named_label(target, body.body[target])
    strength = body.number("strength")
    starts_ms, ends_ms = body.window()
    return {target: name, "strength": 1.0 if strength is None else strength, "starts_ms": starts_ms, "ends_ms": ends_ms}


_PARSERS: Mapping[str, Callable[[Body, Rules], Event]] = {
    CLICKSTREAM: _click,
    USERS: _profile,
    CATALOG: _catalogue_entry,
    ITEM_VECTORS: _vector_entry,
    CONTEXT: _context_entry,
    SCENARIO_RULES: scenario_entry,
}


_PLAIN_FIELDS = 5  # that every click has
_OF_CLICKS = ("location", "session_id", "recommendation_id", "page_id")  # which may be missing, in this order
_OF_EXPOSURES = (  # which may be missing
    "page_id", "location", "model", "served_by", "experiment", "arm", "scenario", "list", "ranker",
)  # fmt: skip


def parse_exposure(record: Record) -> Exposure:
    """The exposure a record carries. Raises MalformedError with field and reason when it is none."""
    body = read_body(record)
    user_id = body.identifier("user_id")
    check_key(record, user_id)
    items = body.body.get("items")
    if not isinstance(items, list):
        raise MalformedError("items", f"expected a list of objects, got {json_word(items)}")
    shown = [
        _plain_item(entry) or body.part(f"items[{n}]", _object(entry), _shown_item) for n, entry in enumerate(items)
    ]
    return Exposure(
        recommendation_id=body.identifier("recommendation_id"),
        user_id=user_id,
        ts_ms=body.time()[0],
        shown=tuple(item_id for item_id, _ in shown),
        slots=tuple(slot for _, slot in shown),
        **{name: body.optional_identifier(name) for name in _OF_EXPOSURES},
    )


def _plain_item(entry: Any) -> tuple[str, str] | None:
    """What `_shown_item` gives of an entry that is plainly right; None for what has to be looked at more closely."""
    if type(entry) is not dict:
        return None
    item_id, slot = entry.get("item_id"), entry.get("slot")
    slot = "" if slot is None else slot
    if type(item_id) is not str or type(slot) is not str or not _is_plain(item_id) or not (not slot or _is_plain(slot)):
        return None
    return item_id, slot


def _object(entry: Any) -> Mapping[str, Any]:
    return entry if isinstance(entry, dict) else {}


def _shown_item(entry: Body) -> tuple[str, str]:
    return entry.identifier("item_id"), entry.optional_identifier("slot")


_FOUND = re.compile(r"^-?[\d.]+(e[+-]?\d+)? |, got .*$", re.DOTALL)
_REASONS = 100  # told apart: a reason may quote a field's name, of which there are any number


def reason_of(error: MalformedError) -> str:
    """Why a record was refused, without what was found, which would make a reason of its own of every record."""
    return f"{error.field}: {_FOUND.sub('', error.reason)}"


def note_reason(reasons: Counter[str], topic: str, error: MalformedError) -> None:
    """Counts a malformed record by topic and reason."""
    reason = f"{topic}: {reason_of(error)}"
    reasons[reason if reason in reasons or len(reasons) < _REASONS else f"{topic}: other reasons"] += 1
