"""Shows one item or one user as the live state holds it.

Both are read anew for each call, so they answer only while Redis does.
"""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter
from fastapi.responses import Response

from index.api.auth import require
from index.api.errors import ProblemError, json_response
from index.api.loaded_model import Services
from index.api.schemas.shapes import PROBLEMS, ItemId, UserId, problems
from index.api.schemas.state import ItemAnswer, UserAnswer
from index.state.records import item_fields, load_item


async def describe_item(services: Services, item_id: str) -> dict[str, Any]:
    """One item as the live state holds it. Raises ProblemError 404 when there is no such item."""
    serving = services.serving()
    fields = item_fields(serving.model.version, serving.model.embedder)
    (values,) = await services.store.read([(services.store.keys.item(item_id), fields)])
    if values[0] is None:
        raise ProblemError(404, f"no item {item_id!r}")
    item = load_item(item_id, values, serving.model.embedder)
    return {
        "item_id": item_id,
        "position": item.position,
        "catalogue": item.catalogue,
        "tags": list(item.tags),
        "embedder": item.embedder,
        "vector_pending": item.vector_pending or item.embedder not in ("", serving.model.embedder, None),
        "indexed": item.retrieval is not None and item.catalogue is not None,
        "index": serving.index_state(),
    }


async def describe_user(services: Services, user_id: str) -> dict[str, Any]:
    """One user's live state; of a cold user an empty one."""
    user = await services.reader(services.serving()).read(user_id)
    state, kinds = user.state, services.liveness.kinds
    events = [
        {"item_id": item, "kind": kinds[kind] if kind < len(kinds) else str(kind), "ts_ms": ts_ms}
        for item, kind, ts_ms in zip(state.items, state.kinds, state.ts_ms, strict=True)
    ]
    return {
        "user_id": user_id,
        "known": user.known,
        "events": events[::-1],
        "profile": orjson.loads(state.profile) if state.profile else None,
        "purchases": state.purchases,
        "forgotten_ms": state.forgotten_ms if state.forgotten_ms >= 0 else None,
        "encoded": user.vectors is not None,
        "as_of": services.liveness.as_of(user.partition, user),
    }


def state_router(services: Services) -> APIRouter:
    """`GET /v1/items/{item_id}` and `/v1/users/{user_id}`."""
    allowed = require("read", services.settings.keys, services.metrics)
    router = APIRouter(tags=["state"], dependencies=allowed, responses=PROBLEMS)

    @router.get(
        "/v1/items/{item_id:path}",
        operation_id="get_item",
        summary="One item",
        response_model=ItemAnswer,
        responses=problems(404),
    )
    async def item(item_id: ItemId) -> Response:
        """The item's record; an answer whose `index.position` is at or past its `position` knows this state of it."""
        return json_response(await describe_item(services, item_id))

    @router.get(
        "/v1/users/{user_id:path}",
        operation_id="get_user",
        summary="One user's live state",
        response_model=UserAnswer,
    )
    async def user(user_id: UserId) -> Response:
        """Window, profile and position, as the next answer will know them; empty for a cold user."""
        return json_response(await describe_user(services, user_id))

    return router
