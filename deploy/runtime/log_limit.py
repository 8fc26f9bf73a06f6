"""Keeps a log readable while a server is away by passing a few of alike messages and counting the rest.

Alike are messages of one logger with one template, what stands before the arguments. A client
that reports each attempt to connect says so a few times in ten seconds. Errors with a traceback always pass.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

_PERIOD_S = 10.0
_PASS = 3  # of alike messages in a period
_KINDS = 1000  # remembered at most: a template may hold what should have been an argument


@dataclass(slots=True)
class _Seen:
    since_s: float
    passed: int = 0
    held: int = 0


class RepeatFilter(logging.Filter):
    """Passes the first messages of a kind in each period, and says with the next one how many were held back."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now_s = monotonic_s
        self._seen: dict[tuple[str, str], _Seen] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown; the text of one that is may get a number of those that were not."""
        if record.exc_info:
            return True
        kind, now_s = (record.name, str(record.msg)[:60]), self._now_s()
        if len(self._seen) >= _KINDS:
            self._seen.clear()
        seen = self._seen.setdefault(kind, _Seen(now_s))
        held = seen.held
        if now_s - seen.since_s >= _PERIOD_S:
            seen = self._seen[kind] = _Seen(now_s)
            if held:
                record.msg, record.args = f"{record.getMessage()} ({held} more like this before)", ()
        if seen.passed < _PASS:
            seen.passed += 1
            return True
        seen.held += 1
        return False
