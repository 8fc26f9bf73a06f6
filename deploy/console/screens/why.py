"""Asks why an item is not on a user's list, by the rules that remove it or its rank and what it lacks."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.console.api_client import ApiRefusalError
from deploy.console.pages import console_of, page, reads
from deploy.console.people import active_users
from deploy.console.places import places
from deploy.console.screens.ask import SLOTS, request_of

_FIELDS = ("user", "item", "count", "slot", "location", "weather", "category", "most", "filter", "include_seen")


@reads
async def _why(request: Request) -> Response:
    console, visitor = console_of(request), console_of(request).visitor(request)
    wanted = {name: request.query_params.get(name, "").strip() for name in _FIELDS}
    values: dict[str, Any] = {"wanted": wanted, "slots": SLOTS, "answer": None, "refused": ""}
    values["places"] = [place.location for place in await places(console)]
    values["users"] = await active_users(console, 4) if not wanted["user"] else []
    values["found"] = console.items.search("", "any", 12)[0] if not wanted["item"] else []
    if wanted["user"] and wanted["item"]:
        try:
            asked = {"user_id": wanted["user"], "item_id": wanted["item"], **request_of(wanted)}
            path = "/v1/recommendations/why"
            values["answer"] = await console.api.call("POST", path, key=visitor.key, body=asked)
        except ApiRefusalError as error:
            values["refused"] = error.said
        except ValueError as error:
            values["refused"] = str(error)
    return page(request, "why.html", **values)


ROUTES = [Route("/why", _why)]
