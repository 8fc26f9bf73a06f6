"""Guides a first visit. Pick a user, click as that user, add an item, change the weather, bring data of one's own."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.console.api_client import ApiRefusalError, segment
from deploy.console.lists import ask, ask_until, change, ids_of, shown
from deploy.console.pages import Console, FormFields, console_of, page, reads, writes
from deploy.console.people import active_users
from deploy.console.places import WEATHERS, place_of, places, record_with
from index.state.store import StoreUnavailableError

_LISTED = 8
_DEEP = 200  # the longest list that may be asked for
_SEEN_S = 3.0  # an event is visible after some 20 ms, on a busy machine after some 100
_INDEXED_S = 20.0  # a text model that is loaded takes some 100 ms
_LOOK_S = 0.05
_FEW = 6
_LIKE = ("description", "brand", "category", "subclass", "price", "tags")  # what a new item takes over


@reads
async def _start(request: Request) -> Response:
    console = console_of(request)
    visitor = console.visitor(request)
    user_id = request.query_params.get("user", "").strip()
    values: dict[str, Any] = {"user_id": user_id, "kinds": console.kinds, "weathers": WEATHERS}
    try:
        values["users"] = await active_users(console, _FEW)
    except StoreUnavailableError:
        values["users"] = []
    if user_id:
        values["users"] = [user_id, *(user for user in values["users"] if user != user_id)][:_FEW]
        answer = await ask(console, visitor.key, user_id, count=_LISTED)
        state = await console.api.call("GET", f"/v1/users/{segment(user_id)}", key=visitor.key)
        known = await places(console)
        location = answer["context"]["location"]
        values |= {"answer": answer, "shown": shown(console, answer), "state": state, "before": ids_of(answer)}
        values |= {"places": known, "location": location, "place": place_of(known, location)}
    return page(request, "start.html", **values)


@writes
async def _click(request: Request, fields: FormFields) -> Response:
    """Sends an event as the user, and waits for the list that knows it."""
    console, key = console_of(request), console_of(request).visitor(request).key
    user_id, event_id = fields["user"], f"console-{uuid.uuid4().hex[:16]}"
    event = {"event_id": event_id, "user_id": user_id, "item_id": fields["item"], "kind": fields["kind"]}
    if recommendation := fields.get("recommendation"):
        event["recommendation_id"] = recommendation
    before = [item_id for item_id in fields.get("before", "").split("\n") if item_id]
    began = time.perf_counter()
    await console.api.call("POST", "/v1/events", key=key, body={**event, "ts_ms": time.time_ns() // 1_000_000})
    acknowledged = time.perf_counter()
    answer = await ask_until(console, key, user_id, _includes, _SEEN_S, count=_LISTED, after=event_id)
    took = _took("the click", began, acknowledged, _includes(answer))
    return _changed(request, "start_list.html", answer, before, took, user_id, fields)


@writes
async def _item(request: Request, fields: FormFields) -> Response:
    """Adds an item like one that the user knows, and waits until it can be recommended."""
    console, key = console_of(request), console_of(request).visitor(request).key
    user_id, like = fields["user"], fields["like"]
    known = await console.api.call("GET", f"/v1/items/{segment(like)}", key=key)
    model: Mapping[str, Any] = known["catalogue"] or {}
    item_id = f"console-{uuid.uuid4().hex[:8]}"
    kept = {name: model[name] for name in _LIKE if model.get(name)}
    title = fields.get("title", "").strip() or f"Brand-new {model.get('title') or 'item'}"
    record = {**kept, "item_id": item_id, "title": title, "ts_ms": console.now_ms(), "available": True}
    began = time.perf_counter()
    await console.api.call("POST", "/v1/items", key=key, body=record)
    position = await _indexed(console, key, item_id)
    is_in = position is not None

    def knows(answer: Mapping[str, Any]) -> bool:
        return position is not None and answer["index"]["position"] >= position

    answer = await ask_until(console, key, user_id, knows, _SEEN_S if is_in else 0.0, count=_DEEP)
    took = {"all_ms": 1000 * (time.perf_counter() - began), "is_in": is_in}
    listed = shown(console, answer)
    place = next((entry for entry in listed if entry.item_id == item_id), None)
    values: dict[str, Any] = {
        "item_id": item_id,
        "title": title,
        "took": took,
        "place": place,
        "shown": listed[:_LISTED],
    }
    return page(request, "start_item.html", user_id=user_id, answer=answer, **values)


async def _indexed(console: Console, key: str, item_id: str) -> int | None:
    """The item-log position from which an item can be recommended; None when it takes too long."""
    deadline = time.monotonic() + _INDEXED_S
    while time.monotonic() < deadline:
        try:
            found = await console.api.call("GET", f"/v1/items/{segment(item_id)}", key=key)
            if found["indexed"] and not found["vector_pending"]:
                return int(found["position"])
        except ApiRefusalError as error:
            if error.status != 404:  # not applied yet
                raise
        await asyncio.sleep(_LOOK_S)
    return None


@writes
async def _withdraw(request: Request, fields: FormFields) -> Response:
    """Takes an item out again, and waits until no list has it."""
    console, key = console_of(request), console_of(request).visitor(request).key
    user_id, item_id = fields["user"], fields["item"]
    began = time.perf_counter()
    await console.api.call("DELETE", f"/v1/items/{segment(item_id)}", key=key)

    def is_gone(answer: Mapping[str, Any]) -> bool:
        return item_id not in ids_of(answer)

    answer = await ask_until(console, key, user_id, is_gone, _SEEN_S, count=_DEEP)
    took = {"all_ms": 1000 * (time.perf_counter() - began), "is_in": is_gone(answer)}
    return page(request, "start_withdrawn.html", item_id=item_id, took=took)


@writes
async def _weather(request: Request, fields: FormFields) -> Response:
    """Changes the weather at a place, and waits for the list that knows it."""
    console, key = console_of(request), console_of(request).visitor(request).key
    user_id, location = fields["user"], fields["location"]
    record = await record_with(console, location, fields["weather"])
    before = ids_of(await ask(console, key, user_id, count=_LISTED, location=location))
    began = time.perf_counter()
    await console.api.call("POST", "/v1/context", key=key, body=record)
    acknowledged = time.perf_counter()

    def knows(answer: Mapping[str, Any]) -> bool:
        return bool(answer["context"]["ts_ms"] == record["ts_ms"])

    answer = await ask_until(console, key, user_id, knows, _SEEN_S, count=_LISTED, location=location)
    took = _took("the weather", began, acknowledged, knows(answer))
    return _changed(request, "start_weather.html", answer, before, took, user_id, fields)


def _took(event: str, began: float, acknowledged: float, is_in: bool) -> dict[str, Any]:
    """What an event took until now, in milliseconds, and whether the list has it."""
    done = time.perf_counter()
    return {
        "event": event,
        "all_ms": 1000 * (done - began),
        "kafka_ms": 1000 * (acknowledged - began),
        "list_ms": 1000 * (done - acknowledged),
        "is_in": is_in,
    }


def _changed(
    request: Request,
    template: str,
    answer: Mapping[str, Any],
    before: list[str],
    took: Mapping[str, Any],
    user_id: str,
    fields: FormFields,
) -> Response:
    """A list beside the one before, with the milliseconds."""
    console = console_of(request)
    after = ids_of(answer)
    values: dict[str, Any] = {"answer": answer, "shown": shown(console, answer, before), "before": after, "took": took}
    values |= {"change": change(console, before, after), "user_id": user_id, "kinds": console.kinds}
    values |= {"fields": fields, "weathers": WEATHERS}
    return page(request, template, **values)


def _includes(answer: Mapping[str, Any]) -> bool:
    return bool(answer["as_of"]["includes_after"])


ROUTES = [
    Route("/", _start),
    Route("/visit/click", _click, methods=["POST"]),
    Route("/visit/item", _item, methods=["POST"]),
    Route("/visit/withdraw", _withdraw, methods=["POST"]),
    Route("/visit/weather", _weather, methods=["POST"]),
]
