"""What was shown: the records of `exposures`, which the API writes, parsed for training.

The rules are those of `streams.events`: a record is judged by itself and its Kafka timestamp, unknown fields are
ignored. The pipeline applies no exposure, so nothing here is part of the live state. It does not know what was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streams.events import Body, MalformedError, Record, check_key, read_body


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
    body = read_body(record)
    user_id = body.identifier("user_id")
    check_key(record, user_id)
    items = body.body.get("items")
    if not isinstance(items, list):
        raise MalformedError("items", f"expected a list of objects, got {type(items).__name__}")
    return Exposure(
        recommendation_id=body.identifier("recommendation_id"),
        user_id=user_id,
        ts_ms=body.time()[0],
        shown=tuple(_item(n, entry) for n, entry in enumerate(items)),
        **{name: body.label(name) for name in ("page_id", "location", "model", "served_by")},
    )


def _item(number: int, entry: Any) -> str:
    try:
        return Body(entry if isinstance(entry, dict) else {}, 0).identifier("item_id")
    except MalformedError as error:
        raise MalformedError(f"items[{number}].{error.field}", error.reason) from error
