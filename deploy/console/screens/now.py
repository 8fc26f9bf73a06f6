"""Shows what a deployment does now, as rates, freshness, lag, service levels, topics and processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deploy.console.pages import console_of, page, reads

_LATE, _BEHIND = 1_000, 5_000  # milliseconds without a confirmation: answers are stale after a second
CHARTS = (
    ("Events applied a second", "events_per_s", "events/s"),
    ("Event in Kafka until visible, ms", "p50_ms p99_ms", "p50|p99"),
    ("Records that wait", "lag", "records"),
    ("Answers a second, by service level", "personal stale popular", "personal|stale|popular"),
)


@reads
async def _now(request: Request) -> Response:
    return page(request, "now.html", charts=CHARTS, **await _state(request))


@reads
async def _tables(request: Request) -> Response:
    return page(request, "now_tables.html", **await _state(request))


@reads
async def _columns(request: Request) -> Response:
    return JSONResponse(console_of(request).history.columns())


async def _state(request: Request) -> dict[str, Any]:
    console = console_of(request)
    visitor, status = console.visitor(request), console.history.status
    if status is None:
        status = await console.api.call("GET", "/v1/status", key=visitor.key)
    roles = [
        {"name": name, **beat, "counters": _largest(beat.get("counters") or {})}
        for name, beat in sorted((status.get("roles") or {}).items())
    ]
    topics = {name: {**topic, "strip": _strip(topic)} for name, topic in (status.get("topics") or {}).items()}
    times = await console.latency.look(console.api) if console.history.is_open or console.api.has_key else None
    point = console.history.last() or {}
    return {"state": status, "roles": roles, "topics": topics, "times": times, "point": point, "feed": console.feed}


def _largest(counters: Mapping[str, Any], most: int = 8) -> list[tuple[str, float]]:
    found = [(name, value) for name, value in counters.items() if isinstance(value, int | float) and value]
    return sorted(found, key=lambda entry: -entry[1])[:most]


def _strip(topic: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A cell for each partition: how long since it was confirmed to be caught up, and what waits."""
    found = []
    for number, partition in enumerate(topic.get("partitions") or ()):
        age_ms = partition.get("lag_ms")
        level = "behind" if age_ms is None or age_ms > _BEHIND else "late" if age_ms > _LATE else "good"
        found.append({"number": number, "level": level, "lag": partition.get("lag") or 0})
    return found


ROUTES = [Route("/now", _now), Route("/now/tables", _tables), Route("/now/columns", _columns)]
