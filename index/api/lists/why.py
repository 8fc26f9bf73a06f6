"""Answers why an item is or is not on a user's list, `POST /v1/recommendations/why`.

The list is made as for a client, and exposed to nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from index.api.auth import require
from index.api.errors import json_response, read_json
from index.api.lists.moment import ListMoment, read_moment
from index.api.lists.named import said_once
from index.api.lists.requests import checked, read_filter
from index.api.lists.ruled import under
from index.api.loaded_model import Services
from index.api.schemas.shapes import MODEL_PROBLEMS, json_body
from index.api.schemas.why import WhyAnswer, WhyRequest
from index.items.search import ExactIndex
from index.query.lists.why import Reason, Standing, listed_standing, off_list_standing, reasons, score_all, shut_out
from index.query.question import Query
from index.query.recommend import Recommendations, plan_searches
from index.query.rules.scenario import ScenarioRule
from index.query.served_ranker import FIRST_STAGE

_RANKED = 256  # places that a ranker orders, at most


async def answer_why(services: Services, request: WhyRequest) -> dict[str, Any]:
    """Where the item stands and why. Raises ProblemError 400 for a bad filter, 503 without a usable index."""
    tree = read_filter(request.filter)
    moment = await read_moment(services, request, request.user_id, [request.scenario], request.model)
    rule = moment.rules.get(request.scenario or "")
    slot = request.slot or (rule and rule.slot) or moment.serving.model.slot
    query = Query(request.count, slot, tree, frozenset(request.exclude), request.include_seen)
    asked = under(services, moment.serving, rule, query, moment.view, moment.context, moment.now_ms)
    query, moment = asked[0], replace(moment, view=asked[1], context=asked[2])
    ranker = services.rankers.order(moment.serving, "retrieved")
    found, sources = await moment.ranked(query, moment.view, moment.context, ranker=ranker)
    standing = listed_standing(request.item_id, found.items, request.count)
    removed, listed = [], standing is not None
    if standing is None:
        removed = _reasons(moment, request, query, rule)
        if not removed:
            standing = await _off_list(moment, query, request.item_id, found)
            if query.arrangement is not None:
                removed = shut_out(request.item_id, found.items, moment.serving.catalogue, query.arrangement)
            if standing is not None and standing.rank is not None:  # a rule can make a list shorter than its count
                standing = replace(standing, rank=max(standing.rank, request.count + 1))
    return {
        **({} if rule is None else {"rules": rule.said}),
        **said_once(moment, moment.context, sources),
        "item_id": request.item_id,
        "served_by": moment.level,
        "ranked_by": found.ranked_by or FIRST_STAGE,
        "count": request.count,
        "listed": listed,
        "reasons": [{"rule": one.rule, "text": one.text, **one.about} for one in removed],
        **_shown(standing),
    }


def _reasons(moment: ListMoment, request: WhyRequest, query: Query, rule: ScenarioRule | None) -> list[Reason]:
    """What removes the item."""
    return reasons(
        request.item_id,
        moment.serving.catalogue,
        moment.view,
        moment.context.location,
        request.filter,
        request.exclude,
        query.include_seen,
        moment.now_ms,
        moment.serving.model.weights,
        rule,
    )


async def _off_list(moment: ListMoment, query: Query, item_id: str, found: Recommendations) -> Standing | None:
    """Where an allowed item stands that is not on the list."""
    services, serving = moment.services, moment.serving
    if found.ranked_by is not None and query.count < _RANKED:
        ranker = services.rankers.order(serving, "retrieved")
        longer = replace(query, count=_RANKED)
        ranked, _ = await moment.ranked(longer, moment.view, moment.context, ranker=ranker)
        standing = listed_standing(item_id, ranked.items, query.count)
        if standing is not None:
            rank = max(standing.rank or 0, query.count + 1)  # a longer list has more candidates, and another order
            return replace(standing, rank=rank)
    about = moment.view, serving.catalogue, moment.context, services.popularity, moment.now_ms
    plan = await services.turns.take(lambda: plan_searches(query, *about, serving.model.weights))
    scored = []
    if isinstance(serving.catalogue.search, ExactIndex):
        pieces = score_all(plan)
        while (piece := await services.turns.take(lambda: next(pieces, None))) is not None:
            scored.append(piece)
    else:
        await moment.vectors([item_id])
    return off_list_standing(item_id, plan, found.items, scored)


def _shown(standing: Standing | None) -> Mapping[str, Any]:
    if standing is None:
        return {"rank": None, "slot": None, "score": None, "parts": {}, "last": None, "lacks": None}
    entry, last = standing.entry, standing.last
    return {
        "rank": standing.rank,
        "slot": entry.slot,
        "score": round(entry.score, 6),
        "parts": {name: round(part, 6) for name, part in entry.parts.items()},
        "last": None if last is None else {"item_id": last.item_id, "score": round(last.score, 6)},
        "lacks": round(standing.lacks, 6),
    }


def why_router(services: Services) -> APIRouter:
    """`POST /v1/recommendations/why`."""
    allowed = require("read", services.settings.keys, services.metrics)
    router = APIRouter(tags=["recommendations"], dependencies=allowed, responses=MODEL_PROBLEMS)

    @router.post(
        "/v1/recommendations/why",
        operation_id="post_why",
        summary="Why an item is not on a user's list",
        response_model=WhyAnswer,
        openapi_extra=json_body(WhyRequest),
    )
    async def post(request: Request) -> Response:
        """All rules that remove it; else its rank, the parts of its score, and what it lacks to the last place."""
        body = checked(services, WhyRequest, await read_json(request))
        return json_response(await answer_why(services, body))

    return router
