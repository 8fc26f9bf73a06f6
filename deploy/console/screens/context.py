"""Shows the places with what is in force there, and sets a record."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from context.units import MINUTE_MS
from deploy.console.feed import SeenRecord
from deploy.console.pages import FormFields, console_of, page, reads, whole_number, writes
from deploy.console.places import place_of, places
from streams.events import CONTEXT

_MOST_PLACES = 200
_RECORDS = 20
_MOST_MINUTES = 366 * 24 * 60
_EMPTY = {"weather": {"temp_c": 20.0, "heat_wave": False}, "events": [], "promotions": []}


@reads
async def _context(request: Request) -> Response:
    console, known = console_of(request), await places(console_of(request))
    location = request.query_params.get("location", "").strip()
    place = place_of(known, location)
    record = {name: place.record[name] for name in _EMPTY if name in place.record} if place is not None else _EMPTY

    def matches(seen: SeenRecord) -> bool:
        return seen.key == location

    past = [seen.body for seen in console.feed.newest(CONTEXT, _RECORDS, matches)] if location else []
    values: dict[str, Any] = {"places": known[:_MOST_PLACES], "total": len(known), "location": location, "place": place}
    return page(request, "context.html", record=record, past=past, **values)


@writes
async def _set(request: Request, fields: FormFields) -> Response:
    """Sends a record for a place, for so many minutes."""
    console, key = console_of(request), console_of(request).visitor(request).key
    try:
        found = orjson.loads(fields["record"])
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the record is no JSON object: {error}") from error
    minutes = whole_number("minutes", fields["minutes"], 1, _MOST_MINUTES)
    if not isinstance(found, dict):
        raise ValueError("the record is no JSON object")
    now_ms = console.now_ms()
    place = place_of(await places(console), fields["location"])
    ts_ms = max(now_ms, int(place.record.get("ts_ms") or 0) + 1) if place is not None and place.is_in_force else now_ms
    body = {**found, "location": fields["location"], "ts_ms": ts_ms, "valid_until_ms": ts_ms + minutes * MINUTE_MS}
    answer = await console.api.call("POST", "/v1/context", key=key, body=body)
    where = answer["records"][0]
    said = f"In force at {fields['location']} for {minutes} min (offset {where['offset']})."
    if answer.get("ignored"):
        said += f" Unknown fields were left out: {', '.join(answer['ignored'])}."
    return page(request, "done.html", said=said)


ROUTES = [Route("/context", _context), Route("/context/set", _set, methods=["POST"])]
