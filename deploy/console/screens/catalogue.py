"""Searches the catalogue by text and state, hides items and shows them again."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.console.api_client import segment
from deploy.console.catalogue import ItemsOfState
from deploy.console.pages import FormFields, console_of, page, reads, writes

_SAID = {"any": "all", "listed": "can be listed", "unavailable": "hidden or sold out", "waiting": "wait for a vector"}
_SHOWN = 50
_APPLIED_S, _LOOK_S = 3.0, 0.02  # a change is applied within some 10 ms


@reads
async def _catalogue(request: Request) -> Response:
    console = console_of(request)
    text, state = request.query_params.get("text", ""), request.query_params.get("state", "any")
    state = state if state in _SAID else "any"
    found, total = await asyncio.to_thread(console.items.search, text, cast(ItemsOfState, state), _SHOWN)
    values: dict[str, Any] = {
        "text": text,
        "state": state,
        "states": _SAID,
        "found": found,
        "total": total,
        "counts": console.items.counts(),
    }
    return page(request, "catalogue.html", **values)


@writes
async def _available(request: Request, fields: FormFields) -> Response:
    """Hides an item from all lists, or shows it again; the row as it is then."""
    console, key = console_of(request), console_of(request).visitor(request).key
    item_id, available = fields["item"], fields["available"] == "yes"
    await console.api.call("PATCH", f"/v1/items/{segment(item_id)}", key=key, body={"available": available})
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _APPLIED_S
    while (item := console.items.get(item_id)) is None or item.available != available:
        if loop.time() > deadline:
            raise ValueError("Kafka has it, but no worker has applied it yet; load the page again in a moment")
        await asyncio.sleep(_LOOK_S)
    return page(request, "catalogue_row.html", item=item)


ROUTES = [Route("/catalogue", _catalogue), Route("/catalogue/available", _available, methods=["POST"])]
