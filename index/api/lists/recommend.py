"""Answers requests for recommendations over HTTP.

Reads the user, places the context, ranks, renders, exposes.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from index.api.auth import require
from index.api.errors import json_response, read_json
from index.api.lists.answers import answered, count_order, reason_of, shown_item
from index.api.lists.requests import assigned, checked_with_filter, context_of, read_user, service_level, view_of
from index.api.lists.ruled import rule_of, under
from index.api.loaded_model import Assigned, LoadedModel, Services
from index.api.schemas.lists import RecommendationsAnswer, RecommendationsRequest
from index.api.schemas.shapes import (
    DEFAULT_COUNT,
    MODEL_PROBLEMS,
    PROBLEMS,
    After,
    Count,
    Explain,
    IncludeSeen,
    ListName,
    Location,
    Scenario,
    UserId,
    json_body,
)
from index.items.filters import Filter
from index.query.list_sample import ListSample, SampledFeatures
from index.query.live_user import LiveUser
from index.query.question import ContextView, Query
from index.query.recommend import Recommendations, plan_searches, recommend
from index.query.rules.scenario import ScenarioRule
from index.query.served_ranker import FIRST_STAGE
from index.query.shadow import ShadowList, ShadowLists

EXPOSURES = "exposures"


async def answer(services: Services, request: RecommendationsRequest, tree: Filter | None = None) -> dict[str, Any]:
    """One recommendation among what `tree` lets pass, exposed. Raises ProblemError 503 without a usable index."""
    answering, started = assigned(services, request.user_id, request.model), time.perf_counter()
    serving = answering.loaded
    sample = services.rankers.sample(serving)
    user = await read_user(services, serving, request, sample is not None, [request.scenario])
    read = time.perf_counter()
    served_by, now_ms = service_level(services, user), services.now_ms()
    context = context_of(serving, request, user, now_ms)
    rule = rule_of(services, request.scenario, user, now_ms)
    found, sources = await rank(services, serving, request, tree, user, context, now_ms, sample, rule)
    if not found.items:
        services.serving()  # the store may have been emptied meanwhile
    services.metrics.sources(sources)
    count_order(services, serving, "retrieved", found)
    ranked = time.perf_counter()
    body = _render(services, serving, request, user, served_by, context, found, sources)
    if rule is not None:
        body["rules"] = rule.said
    features = None if sample is None else sample.found(user, serving.catalogue.ids_of, request.context)
    _expose(services, request, body, now_ms, answering, features)
    _shadow(services, request, tree, body["recommendation_id"])
    services.metrics.answer(served_by, read=read - started, rank=ranked - read, render=time.perf_counter() - ranked)
    return body


async def answer_posted(services: Services, request: Request) -> Response:
    """The answer to a request in a body. Raises as `answer`, and ProblemError 400 or 415 for the body."""
    return json_response(await answer(services, *checked_with_filter(services, await read_json(request))))


async def rank(
    services: Services,
    serving: LoadedModel,
    request: RecommendationsRequest,
    tree: Filter | None,
    user: LiveUser | None,
    context: ContextView,
    now_ms: int,
    sample: ListSample | None = None,
    rule: ScenarioRule | None = None,
) -> tuple[Recommendations, Mapping[str, str | None]]:
    """The list under a rule and, where there is an Elasticsearch, who filtered and who searched."""
    user_view, weights = view_of(services, user), serving.model.weights
    slot = request.slot or (rule and rule.slot) or serving.model.slot
    query = Query(request.count, slot, tree, frozenset(request.exclude), request.include_seen)
    query, user_view, context = under(services, serving, rule, query, user_view, context, now_ms)
    about = (user_view, serving.catalogue, context, services.popularity, now_ms, weights)
    ranker = services.rankers.order(serving, "retrieved", sample=sample)
    if serving.elastic is None:
        return await services.turns.take(lambda: recommend(query, *about, ranker)), {}
    plan = partial(plan_searches, query, *about, ranker=ranker)
    return await serving.elastic.recommend(plan, query.tree, context.location, now_ms)


def _shadow(services: Services, request: RecommendationsRequest, tree: Filter | None, recommendation_id: str) -> None:
    """Has a request of the shadow's share ranked by both models, once it is answered."""
    aliases, champion = services.liveness.aliases, services.keeper.current
    shadow = aliases.shadowed
    if shadow is None or champion is None or champion.version != aliases.champion or not shadow.has(recommendation_id):
        return
    if services.challenger() is not None:
        key = (aliases.champion, shadow.model, shadow.since_ms)
        services.shadow.offer(key, partial(_rank_by_both, services, request, tree, shadow.model))


async def _rank_by_both(
    services: Services, request: RecommendationsRequest, tree: Filter | None, version: str
) -> ShadowLists | None:
    """The lists of the champion and of the challenger as they are now, in either order alike often."""
    champion, challenger = services.keeper.current, services.challenger()
    if champion is None or challenger is None or challenger.version != version:
        return None
    second_first = services.shadow.counts is not None and services.shadow.counts.requests % 2
    order = (challenger, champion) if second_first else (champion, challenger)
    lists = {loaded.version: await _shadow_list(services, loaded, request, tree) for loaded in order}
    return ShadowLists(lists[champion.version], lists[version])


async def _shadow_list(
    services: Services, loaded: LoadedModel, request: RecommendationsRequest, tree: Filter | None
) -> ShadowList:
    started, now_ms = time.perf_counter(), services.now_ms()
    reader = replace(services.reader(loaded), scenarios=(request.scenario,) if request.scenario else ())
    user = await reader.read(request.user_id, request.location, vectors_wait_ms=None)
    context, rule = context_of(loaded, request, user, now_ms), rule_of(services, request.scenario, user, now_ms)
    found, _ = await rank(services, loaded, request, tree, user, context, now_ms, rule=rule)
    listed, seconds = [entry.item_id for entry in found.items], time.perf_counter() - started
    return ShadowList(listed, seconds, user.vectors is None and user.has_window)


def _render(
    services: Services,
    serving: LoadedModel,
    request: RecommendationsRequest,
    user: LiveUser | None,
    served_by: str,
    context: ContextView,
    found: Recommendations,
    sources: Mapping[str, str | None],
) -> dict[str, Any]:
    body = {
        "recommendation_id": uuid.uuid4().hex,
        "user_id": request.user_id,
        "model": serving.model.version,
        "served_by": served_by,  # stands where it always stood
        **answered(services, serving, request, user, context, found),
        "index": {**serving.index_state(), **sources},
        "items": [shown_item(serving, entry, request.explain) for entry in found.items],
    }
    if request.scenario is not None:
        body["scenario"] = request.scenario
    if request.explain:
        body["explain"] = {"retrieved": dict(found.retrieved), "removed": dict(found.removed)}
        body["explain"] |= reason_of(serving, "retrieved", found)
    return body


def _expose(
    services: Services,
    request: RecommendationsRequest,
    body: Mapping[str, Any],
    now_ms: int,
    answering: Assigned,
    features: SampledFeatures | None,
) -> None:
    """Sends what was shown to Kafka without waiting: negatives for training, attribution of later clicks."""
    record = {
        "recommendation_id": body["recommendation_id"],
        "user_id": request.user_id,
        "items": [{name: item[name] for name in ("item_id", "slot", "score")} for item in body["items"]],
        "ts_ms": now_ms,
        "page_id": request.page_id or body["recommendation_id"],
        "model": body["model"],
        "served_by": body["served_by"],
        "location": body["context"]["location"],
    }
    if request.scenario is not None:
        record["scenario"] = request.scenario
    if "rules" in body:
        record["rules"] = body["rules"]
    if body["ranked_by"] != FIRST_STAGE:
        record["ranker"] = body["ranked_by"]
        if features is not None:
            record["features"] = features.to_dict()
    if answering.experiment:
        record |= {"experiment": answering.experiment, "arm": answering.arm}
    key, partition = request.user_id.encode(), body["as_of"]["partition"]
    services.kafka.expose(EXPOSURES, key, orjson.dumps(record), partition)
    services.metrics.exposure()


def recommend_router(services: Services) -> APIRouter:
    """`GET /v1/recommendations/{user_id}` and `POST /v1/recommendations`."""
    allowed = require("read", services.settings.keys, services.metrics)
    router = APIRouter(tags=["recommendations"], dependencies=allowed, responses=PROBLEMS)

    @router.get(
        "/v1/recommendations/{user_id:path}",
        operation_id="get_recommendations",
        summary="What to show a user now",
        response_model=RecommendationsAnswer,
    )
    async def get(
        user_id: UserId,
        count: Count = DEFAULT_COUNT,
        slot: ListName = None,
        location: Location = None,
        include_seen: IncludeSeen = False,
        explain: Explain = False,
        after: After = None,
        scenario: Scenario = None,
    ) -> Response:
        """A list for anybody, also for cold users. `served_by` names the service level."""
        asked = {"user_id": user_id, "count": count, "slot": slot, "location": location}
        asked |= {"include_seen": include_seen, "explain": explain, "after": after, "scenario": scenario}
        return json_response(await answer(services, RecommendationsRequest.model_validate(asked)))

    @router.post(
        "/v1/recommendations",
        operation_id="post_recommendations",
        summary="What to show a user now, with filter, exclusions and context",
        response_model=RecommendationsAnswer,
        responses=MODEL_PROBLEMS,
        openapi_extra=json_body(RecommendationsRequest),
    )
    async def post(request: Request) -> Response:
        """As the GET, and `filter` (closed grammar), `exclude`, `scenario` and `context` in the body."""
        return await answer_posted(services, request)

    return router
