"""Answers with the neighbours of an item, `GET /v1/items/{item_id}/similar`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from index.api.auth import require
from index.api.errors import ProblemError, json_response
from index.api.lists.answers import shown_item
from index.api.loaded_model import Services
from index.api.schemas.lists import SimilarAnswer
from index.api.schemas.shapes import DEFAULT_COUNT, PROBLEMS, Count, ItemId, problems
from index.query.pool import Ranked


def similar_router(services: Services) -> APIRouter:
    """`GET /v1/items/{item_id}/similar`."""
    allowed = require("read", services.settings.keys, services.metrics)
    router = APIRouter(tags=["recommendations"], dependencies=allowed, responses=PROBLEMS)

    @router.get(
        "/v1/items/{item_id:path}/similar",
        operation_id="get_similar_items",
        summary="Neighbours of an item",
        response_model=SimilarAnswer,
        responses=problems(404),
    )
    async def similar(item_id: ItemId, count: Count = DEFAULT_COUNT) -> Response:
        """The nearest other items that may be shown; none while the item has no vector."""
        return json_response(await _similar(services, item_id, count))

    return router


async def _similar(services: Services, item_id: str, count: int) -> dict[str, Any]:
    serving, now_ms = services.serving(), services.now_ms()
    if serving.catalogue.get(item_id) is None:
        raise ProblemError(404, f"no item {item_id!r}")
    sources: Mapping[str, str | None] = {}
    if serving.elastic is None:
        found = await services.turns.take(lambda: serving.catalogue.similar(item_id, count, now_ms))
    else:
        found, sources = await serving.elastic.similar(item_id, count, now_ms)
    services.metrics.sources(sources)
    items = [shown_item(serving, Ranked(other, cosine, "next", {}), explain=False) for other, cosine in found]
    for item in items:
        del item["slot"]
    known = {"item_id": item_id, "model": serving.model.version, "index": {**serving.index_state(), **sources}}
    return {**known, "items": items}
