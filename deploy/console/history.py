"""Remembers the last minutes of a deployment's status, asked once a second whoever looks.

Assumes the JSON of `GET /v1/status`. Its counters are sums over all API processes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from deploy.console.api_client import ApiClient, ApiRefusalError

LEVELS = ("personal", "stale", "popular")
SERIES = ("time_s", "events_per_s", "p50_ms", "p99_ms", "lag", "age_ms", "answers_per_s", *LEVELS)
_EVERY_S = 1.0
_POINTS = 900  # a quarter of an hour
_OPEN_EVERY = 15  # looks between two questions whether the API is open to everybody

Point = dict[str, float | None]


class StatusHistory:
    """The present status and a point a second; `run` keeps them current."""

    def __init__(self, api: ApiClient, now_s: Callable[[], float] = time.time) -> None:
        self._api, self._now_s = api, now_s
        self._points: deque[Point] = deque(maxlen=_POINTS)
        self._counters: tuple[float, Mapping[str, float]] | None = None
        self._looks = 0
        self.status: Mapping[str, Any] | None = None
        self.trouble = "not asked yet"  # why there is no present status; "" where there is one
        self.is_open = False  # whether the API takes every call without a key
        self.number = 0  # of the newest point

    async def run(self) -> None:
        """Asks for ever."""
        while True:
            began_s = time.monotonic()
            await self.look()
            await asyncio.sleep(max(0.1, _EVERY_S - (time.monotonic() - began_s)))

    async def look(self) -> None:
        """Asks once."""
        try:
            if self._looks % _OPEN_EVERY == 0:
                self.is_open = await self._api.allows_admin("")
            if self.is_open or self._api.has_key:
                self.take(await self._api.call("GET", "/v1/status"))
                self.trouble = ""
            else:
                self.trouble = "no API key of scope admin: set PERSEID_CONSOLE_API_KEY for charts"
            self._looks += 1
        except ApiRefusalError as error:
            self.trouble = error.detail

    def take(self, status: Mapping[str, Any]) -> None:
        """Notes a status."""
        self.status, self.number = status, self.number + 1
        self._points.append(self._point(status))

    def columns(self) -> dict[str, list[float | None]]:
        """All points, one list for each of `SERIES`, oldest first."""
        points = list(self._points)
        return {name: [point[name] for point in points] for name in SERIES}

    def last(self) -> Point | None:
        """The newest point."""
        return self._points[-1] if self._points else None

    def _point(self, status: Mapping[str, Any]) -> Point:
        now_s = self._now_s()
        fresh, topics = status.get("freshness_ms") or {}, (status.get("topics") or {}).values()
        index = status.get("index") or {}
        rates = self._rates(now_s, status.get("counters") or {})
        return {
            "time_s": round(now_s, 2),
            "events_per_s": status.get("events_per_s"),
            "p50_ms": fresh.get("p50"),
            "p99_ms": fresh.get("p99"),
            "lag": sum(topic.get("lag") or 0 for topic in topics),
            "age_ms": index.get("age_ms"),
            "answers_per_s": round(sum(rates.values()), 2) if rates else None,
            **{level: round(rates[level], 2) if rates else None for level in LEVELS},
        }

    def _rates(self, now_s: float, counters: Mapping[str, float]) -> dict[str, float]:
        """Answers per second at each level since the look before; empty for the first one."""
        before, self._counters = self._counters, (now_s, counters)
        if before is None or now_s <= before[0]:
            return {}
        # A process that started again counts from 0: that is no rate below 0.
        return {
            level: max(0.0, counters.get(level, 0) - before[1].get(level, 0)) / (now_s - before[0]) for level in LEVELS
        }
