"""Asks for a list as any user, with the parts of each score, and for a second one beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.console.api_client import ApiRefusalError
from deploy.console.lists import ask, change, ids_of, shown
from deploy.console.pages import Console, console_of, page, reads, whole_number
from deploy.console.people import active_users
from deploy.console.places import WEATHERS, places

SLOTS = ("next", "general", "mixed")
# What may differ in the second list: the same moment under other weather, the other taste, or another place.
_BESIDE = {
    **{f"weather: {name}": {"weather": name} for name in WEATHERS},
    **{f"list: {slot}": {"slot": slot} for slot in SLOTS},
    "with what was seen": {"include_seen": "on"},
    "without the filter": {"filter": "", "category": "", "most": ""},
}
_FIELDS = (
    "user",
    "count",
    "slot",
    "location",
    "weather",
    "category",
    "most",
    "filter",
    "include_seen",
    "beside",
    "place",
    "kept",
)


@reads
async def _ask(request: Request) -> Response:
    console, visitor = console_of(request), console_of(request).visitor(request)
    wanted = {name: request.query_params.get(name, "").strip() for name in _FIELDS}
    known = [place.location for place in await places(console)]
    values: dict[str, Any] = {"wanted": wanted, "places": known, "weathers": WEATHERS, "slots": SLOTS}
    values |= {
        "beside": [
            *_BESIDE,
            *(f"model: {version}" for version in _other_models(console)),
            *(f"place: {place}" for place in known),
        ],
        "first": None,
        "second": None,
        "refused": "",
    }
    values["users"] = await active_users(console, 4) if not wanted["user"] else []
    if wanted["user"]:
        try:
            values |= await _lists(console, visitor.key, wanted)
        except ApiRefusalError as error:
            values["refused"] = error.said
        except ValueError as error:
            values["refused"] = str(error)
    return page(request, "ask.html", **values)


async def _lists(console: Console, key: str, wanted: Mapping[str, str]) -> dict[str, Any]:
    """One list; with `beside` a second one, or with `kept` the list that was there before."""
    first = await ask(console, key, wanted["user"], **request_of(wanted))
    kept = [item_id for item_id in wanted["kept"].split("\n") if item_id]
    found: dict[str, Any] = {
        "first": first,
        "shown": shown(console, first, kept or None),
        "second_shown": None,
        "change": None,
    }
    found["kept"] = [console.items.title(item_id) for item_id in kept]
    if kept:
        found["change"] = change(console, kept, ids_of(first))
    if wanted["beside"]:
        name = wanted["beside"]
        second = await ask(console, key, wanted["user"], **request_of({**wanted, **_differing(name)}))
        found |= {"second": second, "second_shown": shown(console, second, ids_of(first))}
        found["change"] = change(console, ids_of(first), ids_of(second))
    return found


def _other_models(console: Console) -> list[str]:
    """The staged model and the one before, where there are."""
    models = (console.history.status or {}).get("models", {})
    return [version for alias in ("challenger", "previous") if (version := models.get(alias))]


def _differing(name: str) -> Mapping[str, str]:
    """The fields of the second list. Raises ValueError for a name that is none."""
    what, _, value = name.partition(": ")
    if what == "place":
        return {"location": value}
    if what == "model":
        return {"model": value}
    if name not in _BESIDE:
        raise ValueError(f"nothing to compare with is called {name!r}")
    return _BESIDE[name]


def request_of(wanted: Mapping[str, str]) -> dict[str, Any]:
    """The body of a request, from the fields of the form. Raises ValueError for what is no number or no JSON."""
    found: dict[str, Any] = {
        "count": whole_number("count", wanted["count"] or "10", 1, 200),
        "slot": wanted["slot"] or None,
        "location": wanted["location"] or None,
        "include_seen": bool(wanted["include_seen"]),
        "model": wanted.get("model"),
    }
    if wanted["weather"]:
        found["context"] = {"weather": WEATHERS.get(wanted["weather"], {})}
    conditions: list[Any] = []
    if wanted["category"]:
        conditions.append({"field": "category", "in": [wanted["category"]]})
    if wanted["most"]:
        conditions.append({"field": "price", "lte": _price(wanted["most"])})
    if wanted["filter"]:
        try:
            conditions.append(orjson.loads(wanted["filter"]))
        except orjson.JSONDecodeError as error:
            raise ValueError(f"the filter is no JSON: {error}") from error
    if conditions:
        found["filter"] = conditions[0] if len(conditions) == 1 else {"and": conditions}
    return found


def _price(text: str) -> float:
    """Raises ValueError that names it."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"price up to: expected a number, got {text!r:.40}")
    return found


ROUTES = [Route("/ask", _ask)]
