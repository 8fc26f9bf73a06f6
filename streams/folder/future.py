"""Says what of a data folder has not happened yet, which nobody trains on, replays or converts.

As for records of the topics, producers' clocks may run five minutes ahead.
"""

from __future__ import annotations

import time

from streams.events import FAST_CLOCK_MS, MalformedError

IN_FUTURE = "is in the future"


def latest_ms(now_ms: int | None = None) -> int:
    """The latest time that counts as past, at `now_ms` (None: by the wall clock)."""
    return (time.time_ns() // 1_000_000 if now_ms is None else now_ms) + FAST_CLOCK_MS


def check_past(name: str, ts_ms: float, until_ms: int) -> None:
    """Raises MalformedError, which names the field, for a time after `until_ms`."""
    if ts_ms > until_ms:
        raise MalformedError(name, IN_FUTURE)
