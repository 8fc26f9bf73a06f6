"""Puts times, numbers and JSON into words for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson

_UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"))


def ago(ts_ms: Any, now_ms: float) -> str:
    """How long ago a time was; – for what is no time.

    >>> ago(0, 90_000), ago(5, 4), ago(None, 0), ago(0, 86_400_000)
    ('1 min ago', 'now', '–', '1 d ago')
    """
    if not isinstance(ts_ms, int | float):
        return "–"
    for size, unit in _UNITS:
        if now_ms - ts_ms >= size:
            return f"{int((now_ms - ts_ms) // size)} {unit} ago"
    return "now"


def time_of_day(ts_ms: float) -> str:
    """The time of the day, in UTC, of a time that is ours.

    >>> time_of_day(1_760_000_000_000)
    '08:53:20'
    """
    return f"{datetime.fromtimestamp(ts_ms / 1000, UTC):%H:%M:%S}"


def clock_time(ts_ms: Any) -> str:
    """A time in UTC; – for what is no time.

    >>> clock_time(1_760_000_000_000)
    '2025-10-09 08:53:20'
    """
    if not isinstance(ts_ms, int | float):
        return "–"
    try:
        return f"{datetime.fromtimestamp(ts_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return str(ts_ms)


def number(value: float | None, digits: int = 0) -> str:
    """A number with separators, – for none.

    >>> number(12345.67), number(0.5, 2), number(None)
    ('12,346', '0.50', '–')
    """
    return "–" if value is None else f"{value:,.{digits}f}"


def shown_json(value: Any) -> str:
    """JSON over several lines, for people."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
