"""Shows one user with window, profile, and what was shown and chosen, and forgets the user."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from context.units import MINUTE_MS
from deploy.console.api_client import segment
from deploy.console.feed import SeenRecord
from deploy.console.pages import FormFields, console_of, page, reads, writes
from deploy.console.people import active_users, lists_of
from deploy.console.streams import StreamSlots, begin_after
from streams.events import CLICKSTREAM, USERS

_AGAIN_S = 1.5
_PAUSE_MS = 30 * MINUTE_MS  # between two events, after which another visit begins


@reads
async def _user(request: Request) -> Response:
    console, visitor = console_of(request), console_of(request).visitor(request)
    user_id = request.query_params.get("user", "").strip()
    values: dict[str, Any] = {
        "number": console.feed.number,
        "user_id": user_id,
        "state": None,
        "lists": [],
        "unread": "",
        "visits": [],
    }
    values["users"] = await active_users(console, 8) if not user_id else []
    if user_id:
        values["state"] = await console.api.call("GET", f"/v1/users/{segment(user_id)}", key=visitor.key)
        values["visits"] = visits_of(values["state"]["events"])
        try:
            values["lists"] = await lists_of(console, user_id)
        except ConnectionError as error:
            values["unread"] = str(error)
    return page(request, "user.html", **values)


def visits_of(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Events, the newest first, cut where there was a long pause."""
    if not events:
        return []
    found = [[events[0]]]
    for later, earlier in pairwise(events):
        if later["ts_ms"] - earlier["ts_ms"] > _PAUSE_MS:
            found.append([])
        found[-1].append(earlier)
    return found


@reads
async def _stream(request: Request) -> Response:
    """Says that something of the user has come, so that the page asks anew."""
    console, user_id = console_of(request), request.query_params.get("user", "")
    last = begin_after(request, console.feed.number)

    def matches(seen: SeenRecord) -> bool:
        return seen.key == user_id

    again_s = math.inf  # the page may have asked before a worker had applied what came

    def look() -> tuple[str, Any, int] | None:
        nonlocal last, again_s
        newest, now_s = console.feed.number, time.monotonic()
        found, _ = console.feed.since(last, (CLICKSTREAM, USERS), 1, matches) if newest != last else ([], 0)
        last = newest
        if found:
            again_s = now_s + _AGAIN_S
        elif now_s < again_s:
            return None
        else:
            again_s = math.inf
        return "changed", {}, newest

    streams: StreamSlots = request.app.state.streams
    return streams.response(request, look)


@writes
async def _forget(request: Request, fields: FormFields) -> Response:
    """Forgets a user for good, when the id was typed once more."""
    console, user_id = console_of(request), fields["user"]
    if fields["again"].strip() != user_id:
        raise ValueError(f"type {user_id} to forget this user: it cannot be undone")
    key = console.visitor(request).key
    await console.api.call("DELETE", f"/v1/users/{segment(user_id)}", key=key)
    return page(request, "done.html", said=f"{user_id} is forgotten, and stays so after a rebuild from Kafka.")


ROUTES = [
    Route("/user", _user),
    Route("/user/stream", _stream),
    Route("/user/forget", _forget, methods=["POST"]),
]
