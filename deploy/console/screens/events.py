"""Shows records as they come, and what an event changed in its user's list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from deploy.console.feed import BACKS, SeenRecord
from deploy.console.lists import ask, change, ids_of, shown
from deploy.console.pages import Console, asked, console_of, fragment, page, place_in, reads
from deploy.console.streams import StreamSlots, begin_after
from streams.events import CLICKSTREAM, DEAD_LETTERS, EXPOSURES

_ROWS = 60  # that a page begins with
_MOST_NEW = 12  # rows sent at a look: some 50 a second, more than anybody reads
TOPICS = tuple(BACKS)
_SHOWN_BY_DEFAULT = tuple(topic for topic in BACKS if topic != EXPOSURES)
_FIELDS = ("topic", "user", "item", "kind")


@reads
async def _events(request: Request) -> Response:
    console, wanted = console_of(request), _wanted(request)
    number = console.feed.number  # what comes from here on is the stream's
    found = [seen for topic in _topics(wanted) for seen in console.feed.newest(topic, _ROWS, matcher(wanted))]
    found = sorted((seen for seen in found if seen.number <= number), key=lambda seen: -seen.number)
    rows = [row_of(console, seen) for seen in found[:_ROWS]]
    values: dict[str, Any] = {"rows": rows, "wanted": wanted, "topics": TOPICS, "kinds": console.kinds}
    return page(request, "events.html", feed=console.feed, query=urlencode({**wanted, "after": number}), **values)


@reads
async def _stream(request: Request) -> Response:
    """New rows that match, at most so many at a time, and how many were left out."""
    console, wanted = console_of(request), _wanted(request)
    topics, matches, last = _topics(wanted), matcher(wanted), begin_after(request, console.feed.number)

    def look() -> tuple[str, Any, int] | None:
        nonlocal last
        newest = console.feed.number
        if newest == last:
            return None
        found, left_out = console.feed.since(last, topics, _MOST_NEW, matches)
        last = newest
        if not found:
            return None
        rows = [fragment("events_row.html", row=row_of(console, seen)) for seen in found]
        return "rows", {"rows": rows, "left_out": left_out}, newest

    streams: StreamSlots = request.app.state.streams
    return streams.response(request, look)


@reads
async def _change(request: Request) -> Response:
    """The list of an event's user now, beside the last one that was shown before the event."""
    console, visitor = console_of(request), console_of(request).visitor(request)
    seen = console.feed.get(CLICKSTREAM, *place_in(request.query_params))
    if seen is None:
        return PlainTextResponse("This event is not kept any more.")
    body = seen.body
    user_id, event_id = str(body.get("user_id", "")), body.get("event_id")
    before = shown_before(console, user_id, seen)
    answer = await ask(console, visitor.key, user_id, after=event_id)
    known = None if before is None else before["shown"]
    values: dict[str, Any] = {
        "answer": answer,
        "shown": shown(console, answer, known),
        "before": before,
        "user_id": user_id,
    }
    values["change"] = None if known is None else change(console, known, ids_of(answer))
    return page(request, "events_change.html", body=body, **values)


@reads
async def _record(request: Request) -> Response:
    """All of a record that is kept."""
    console, topic = console_of(request), asked(request, "topic")
    seen = console.feed.get(topic, *place_in(request.query_params)) if topic in BACKS else None
    return page(request, "events_record.html", seen=seen, text=text_of(seen) if seen else "")


def text_of(seen: SeenRecord) -> str:
    """A value as text; bytes that are none are marked."""
    return (seen.record.value or b"").decode("utf-8", "replace")


def shown_before(console: Console, user_id: str, seen: SeenRecord) -> dict[str, Any] | None:
    """The last list of at least ten items that the API gave the user before a record came; None if none is kept."""

    def matches(other: SeenRecord) -> bool:
        return other.number < seen.number and other.key == user_id and "served_by" in other.body

    found = console.feed.newest(EXPOSURES, 1, matches)
    if not found:
        return None
    items = [str(entry["item_id"]) for entry in found[0].body["items"][:10]]
    return {"shown": items, "ts_ms": found[0].body.get("ts_ms")}


def _wanted(request: Request) -> dict[str, str]:
    return {name: request.query_params.get(name, "").strip() for name in _FIELDS}


def _topics(wanted: Mapping[str, str]) -> tuple[str, ...]:
    return (wanted["topic"],) if wanted["topic"] in BACKS else _SHOWN_BY_DEFAULT


def matcher(wanted: Mapping[str, str]) -> Any:
    """Whether a record is of the wanted user, item and kind; what is not said is not looked at."""
    user, item, kind = (wanted.get(name, "") for name in ("user", "item", "kind"))

    def matches(seen: SeenRecord) -> bool:
        if not (user or item or kind):
            return True
        body = seen.body
        return (
            (not user or user in (body.get("user_id"), seen.key))
            and (not item or body.get("item_id") == item or (seen.record.topic == "catalog" and seen.key == item))
            and (not kind or body.get("kind") == kind)
        )

    return matches


def row_of(console: Console, seen: SeenRecord) -> dict[str, Any]:
    """What a row says of a record."""
    body, topic = seen.body, seen.record.topic
    item_id = body.get("item_id")
    row: dict[str, Any] = {
        "topic": topic,
        "partition": seen.record.partition,
        "offset": seen.record.offset,
        "seen_ms": seen.seen_ms,
        "user": str(body["user_id"]) if "user_id" in body and topic != DEAD_LETTERS else "",
        "item": str(item_id) if isinstance(item_id, str) and topic != DEAD_LETTERS else "",
        "said": _said(seen, body),
        "is_event": topic == CLICKSTREAM and isinstance(body.get("event_id"), str) and bool(body.get("user_id")),
    }
    row["title"] = console.items.title(row["item"]) if row["item"] else ""
    return row


def _said(seen: SeenRecord, body: Mapping[str, Any]) -> str:
    """The gist of a record, in a few words."""
    topic = seen.record.topic
    if topic == DEAD_LETTERS:
        headers = {name: content.decode("utf-8", "replace") for name, content in seen.record.headers}
        return f"{headers.get('topic', '?')}: {headers.get('reason', '')}"
    if seen.record.value is None:
        return "removed" if topic != "catalog" else f"{seen.key} withdrawn"
    if topic == CLICKSTREAM:
        return str(body.get("kind", ""))
    if topic == EXPOSURES:
        items = body.get("items")
        by = body.get("scenario") or body.get("served_by") or body.get("model", "")
        return f"{len(items) if isinstance(items, list) else 0} shown, {by}"
    if topic == "context":
        weather = body["weather"] if isinstance(body.get("weather"), dict) else {}
        return f"{body.get('location', '')}: " + ", ".join(f"{name} {value}" for name, value in [*weather.items()][:4])
    if topic == "rules":
        return f"{seen.key}: " + ", ".join(name for name in body if name not in ("scenario", "ts_ms"))
    if topic == "catalog":
        return ("available" if body.get("available", True) else "not available") + f", {body.get('price', 'no price')}"
    return "profile"


ROUTES = [
    Route("/events", _events),
    Route("/events/stream", _stream),
    Route("/events/change", _change),
    Route("/events/record", _record),
]
