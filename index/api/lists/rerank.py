"""Orders a list that the caller brings for one user, `POST /v1/rerank`.

Nothing is left out for rules or for what the user has seen, as the list is the caller's. It is not exposed: only the
caller knows whether it is shown.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from index.api.auth import require
from index.api.errors import json_response, read_json
from index.api.lists.answers import answered, count_order, reason_of, shown_item
from index.api.lists.requests import checked, context_of, read_user, service_level, view_of
from index.api.loaded_model import LoadedModel, Services
from index.api.schemas.lists import ListedItem, RerankAnswer, RerankRequest
from index.api.schemas.shapes import WRITE_PROBLEMS, json_body
from index.query.question import ContextView, UserView
from index.query.recommend import Recommendations
from index.query.rerank import known_labels, plan_list, rank_list
from index.query.second_stage import GivenList
from index.ranking.ranker import ListSource


async def answer(services: Services, request: RerankRequest) -> dict[str, Any]:
    """The list in its new order. Raises ProblemError 503 without a usable index."""
    serving = services.assigned(request.user_id).loaded
    user = await read_user(services, serving, request)
    now_ms, view = services.now_ms(), view_of(services, user)
    context = context_of(serving, request, user, now_ms)
    source: ListSource = "shown" if all(item.position is None for item in request.items) else "placed"
    if serving.elastic is not None:
        await serving.elastic.fetch([*(item.item_id for item in request.items), *view.state.items], now_ms)
    found, unknown = await services.turns.take(
        lambda: _ordered(services, serving, request, source, view, context, now_ms)
    )
    count_order(services, serving, source, found)
    body = {
        **answered(services, serving, request, user, context, found),
        "served_by": service_level(services, user),
        "items": [shown_item(serving, entry, request.explain) for entry in found.items],
        "unknown": unknown,
    }
    for item in body["items"]:
        del item["slot"]
    return {**body, "explain": reason_of(serving, source, found)} if request.explain else body


def _ordered(
    services: Services,
    serving: LoadedModel,
    request: RerankRequest,
    source: ListSource,
    view: UserView,
    context: ContextView,
    now_ms: int,
) -> tuple[Recommendations, list[str]]:
    """The known items in order, and the ids of the others."""
    catalogue, ids = serving.catalogue, [item.item_id for item in request.items]
    labels, places = known_labels(catalogue, ids)
    given = _given([request.items[place] for place in places], source)
    slot, ranker = request.slot or serving.model.slot, services.rankers.order(serving, source, given)
    weights = serving.model.weights
    plan = plan_list(labels, slot, view, catalogue, context, services.popularity, now_ms, weights, ranker)
    known = set(places)
    return rank_list(plan, labels), [name for place, name in enumerate(ids) if place not in known]


def _given(items: list[ListedItem], source: ListSource) -> GivenList:
    positions = np.array([np.nan if item.position is None else item.position for item in items], np.float32)
    prices = np.array([np.nan if item.price is None else item.price for item in items], np.float32)
    return GivenList(positions if source == "placed" else None, prices)


def rerank_router(services: Services) -> APIRouter:
    """`POST /v1/rerank`."""
    allowed = require("read", services.settings.keys, services.metrics)
    router = APIRouter(tags=["recommendations"], dependencies=allowed, responses=WRITE_PROBLEMS)

    @router.post(
        "/v1/rerank",
        operation_id="post_rerank",
        summary="A list of the caller's, ordered for a user",
        response_model=RerankAnswer,
        openapi_extra=json_body(RerankRequest, items=ListedItem),
    )
    async def post(request: Request) -> Response:
        """Every item that has a vector, best first; the others are named in `unknown`."""
        body = checked(services, RerankRequest, await read_json(request))
        return json_response(await answer(services, body))

    return router
