"""What was shown: the records of `exposures`, which the API writes, parsed for training.

The rules are those of `streams.events`: a record is judged by itself and its Kafka timestamp, unknown fields are
ignored. The pipeline applies no exposure, so nothing here is part of the live state. It does not know what was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from streams.events import FAST_CLOCK_MS, MAX_ID_BYTES, YEAR_2000_MS, MalformedError, Record


@dataclass(frozen=True, slots=True)
class Exposure:
    """One list as a user was shown it, best first; `ts_ms` is clamped as that of clicks."""

    recommendation_id: str
    user_id: str
    ts_ms: int
    shown: tuple[str, ...]
    page_id: str = ""
    location: str = ""
    model: str = ""
    served_by: str = ""


def parse_exposure(record: Record) -> Exposure:
    """The exposure a record carries.

    Raises:
        MalformedError: it is none; says which field and why.
    """
    if record.value is None:
        raise MalformedError("value", "null")
    try:
        body = orjson.loads(record.value)
    except orjson.JSONDecodeError as error:
        raise MalformedError("value", f"not JSON: {error}") from error
    if not isinstance(body, dict):
        raise MalformedError("value", f"expected an object, got {type(body).__name__}")
    user_id = _identifier("user_id", body.get("user_id"))
    if record.key is not None and record.key != user_id.encode():
        raise MalformedError("key", "differs from the record's id")
    return Exposure(
        recommendation_id=_identifier("recommendation_id", body.get("recommendation_id")),
        user_id=user_id,
        ts_ms=_time(body.get("ts_ms"), record.timestamp_ms),
        shown=tuple(_item(n, entry) for n, entry in enumerate(_items(body))),
        **{name: _label(body, name) for name in ("page_id", "location", "model", "served_by")},
    )


def _items(body: Mapping[str, Any]) -> list[Any]:
    items = body.get("items")
    if not isinstance(items, list):
        raise MalformedError("items", f"expected a list of objects, got {type(items).__name__}")
    return items


def _item(number: int, entry: Any) -> str:
    return _identifier(f"items[{number}].item_id", entry.get("item_id") if isinstance(entry, dict) else None)


def _label(body: Mapping[str, Any], name: str) -> str:
    return "" if body.get(name) in (None, "") else _identifier(name, body[name])


def _identifier(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise MalformedError(name, f"expected a string, got {type(value).__name__}")
    if not 1 <= len(value.encode()) <= MAX_ID_BYTES or not value.isprintable():
        raise MalformedError(name, f"must have 1 to {MAX_ID_BYTES} bytes and no control or separator characters")
    return value


def _time(value: Any, timestamp_ms: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < YEAR_2000_MS:
        raise MalformedError("ts_ms", f"expected milliseconds since the epoch after 2000, got {value!r:.40}")
    clamped = timestamp_ms >= YEAR_2000_MS and value > timestamp_ms + FAST_CLOCK_MS
    return timestamp_ms if clamped else value
