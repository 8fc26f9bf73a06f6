"""Shows one item with its record, the state of its vector, and its neighbours; hides it and shows it again."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.console.api_client import segment
from deploy.console.feed import SeenRecord
from deploy.console.pages import console_of, page, reads
from streams.events import CLICKSTREAM

_NEIGHBOURS, _EVENTS = 12, 12


@reads
async def _item(request: Request) -> Response:
    console, visitor = console_of(request), console_of(request).visitor(request)
    item_id = request.query_params.get("item", "").strip()
    values: dict[str, Any] = {"item_id": item_id, "item": None, "neighbours": [], "events": [], "found": []}
    if item_id:
        path = f"/v1/items/{segment(item_id)}"
        values["item"] = item = await console.api.call("GET", path, key=visitor.key)
        if item["indexed"]:
            similar = await console.api.call("GET", f"{path}/similar", key=visitor.key, query={"count": _NEIGHBOURS})
            values["neighbours"] = similar["items"]

        def matches(seen: SeenRecord) -> bool:
            return item_id.encode() in (seen.record.value or b"") and _is_of(seen.body, item_id)

        values["events"] = [seen.body for seen in console.feed.newest(CLICKSTREAM, _EVENTS, matches)]
    else:
        values["found"], _ = console.items.search("", "any", 12)
    return page(request, "item.html", **values)


def _is_of(body: dict[str, Any], item_id: str) -> bool:
    """Whether a record is an event of an item, whatever else producers wrote."""
    return body.get("item_id") == item_id and all(isinstance(body.get(name), str) for name in ("user_id", "kind"))


ROUTES = [Route("/item", _item)]
