"""Answers requests for recommendations and similar items over HTTP.

Reads the user, places the context, ranks, renders, exposes. The service level is decided here, `personal` with vectors
and a recent confirmation of the worker, `stale` with vectors whose currency nobody confirmed lately, `popular` without
vectors or without Redis.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar, cast

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ValidationError

from context.json_words import json_word
from index.api.auth import require
from index.api.errors import InvalidRecordError, ProblemError, invalid_request, json_response, read_json
from index.api.loaded_model import Assigned, LoadedModel, Services
from index.api.schemas.lists import RecommendationsAnswer, RecommendationsRequest, SimilarAnswer, UserRequest
from index.api.schemas.shapes import (
    DEFAULT_COUNT,
    PROBLEMS,
    WRITE_PROBLEMS,
    After,
    Count,
    Explain,
    IncludeSeen,
    ItemId,
    ListName,
    Location,
    UserId,
    problems,
)
from index.items.filters import Filter, parse_filter
from index.query.list_sample import ListSample, SampledFeatures
from index.query.live_user import LiveUser
from index.query.recommend import (
    ContextView,
    Query,
    Ranked,
    Recommendations,
    UserView,
    answer_in_process,
    plan_searches,
)
from index.query.served_ranker import FIRST_STAGE
from index.query.shadow import ShadowList, ShadowLists
from index.ranking.ranker import ListSource
from index.state.keys import partition_of
from index.state.store import StoreUnavailableError

R = TypeVar("R", bound=UserRequest)
EXPOSURES = "exposures"
_TITLE_CHARACTERS = 200  # of a title in a list; all of it is in `GET /v1/items/{item_id}`


async def answer(services: Services, request: RecommendationsRequest, tree: Filter | None = None) -> dict[str, Any]:
    """One recommendation among what `tree` lets pass, exposed. Raises ProblemError 503 without a usable index."""
    assigned, started = services.assigned(request.user_id), time.perf_counter()
    serving = assigned.loaded
    sample = services.rankers.sample(serving)
    user = await read_user(services, serving, request, placed=sample is not None)
    read = time.perf_counter()
    served_by, now_ms = service_level(services, user), services.now_ms()
    context = context_of(serving, request, user, now_ms)
    found, sources = await _rank(services, serving, request, tree, user, context, now_ms, sample)
    services.metrics.sources(sources)
    count_order(services, serving, "retrieved", found)
    ranked = time.perf_counter()
    body = _render(services, serving, request, user, served_by, context, found, sources)
    features = None if sample is None else sample.found(user, serving.catalogue.ids_of, request.context)
    _expose(services, request, body, now_ms, assigned, features)
    _shadow(services, request, tree, body["recommendation_id"])
    services.metrics.answer(served_by, read=read - started, rank=ranked - read, render=time.perf_counter() - ranked)
    return body


async def answer_posted(services: Services, request: Request) -> Response:
    """The answer to a request in a body. Raises as `answer`, and ProblemError 400 or 415 for the body."""
    return json_response(await answer(services, *_checked(services, await read_json(request))))


def service_level(services: Services, user: LiveUser | None) -> Literal["personal", "stale", "popular"]:
    """The service level: what the answer can be made of, and whether somebody vouches for its currency."""
    if user is None or user.vectors is None:
        return "popular"
    lag_ms = services.liveness.lag_ms(user.partition)
    return "personal" if lag_ms is not None and lag_ms <= services.settings.stale_ms else "stale"


async def read_user(
    services: Services, serving: LoadedModel, request: UserRequest, placed: bool = False
) -> LiveUser | None:
    """The user, None when the store does not answer; while it is known to be away it is not even asked."""
    if not services.liveness.reachable:
        return None
    reader = replace(services.reader(serving), placed=True) if placed else services.reader(serving)
    try:
        waits_ms, idle = (services.settings.after_wait_ms, _vectors_wait_ms(services, request)), services.turns.idle
        if request.after is None:
            user = await reader.read(request.user_id, request.location, None, *waits_ms, idle)
        else:
            with idle():
                user = await reader.read(request.user_id, request.location, request.after, *waits_ms)
    except StoreUnavailableError:
        services.liveness.reachable = False  # until the next poll finds it
        return None
    services.liveness.note(user.partition, user.beat)
    return user


def _vectors_wait_ms(services: Services, request: UserRequest) -> float:
    """How long vectors are waited for that a user lacks: not at all while no worker says that it is there."""
    settings = services.settings
    lag_ms = services.liveness.lag_ms(partition_of(request.user_id, services.liveness.partitions or 1))
    return settings.vectors_wait_ms if lag_ms is not None and lag_ms <= settings.stale_ms else 0.0


def context_of(serving: LoadedModel, request: UserRequest, user: LiveUser | None, now_ms: int) -> ContextView:
    location = user.location if user is not None else request.location or ""
    record = request.context if request.context is not None else user.context if user is not None else None
    return ContextView.at(location, record, now_ms, serving.model.offset)


async def _rank(
    services: Services,
    serving: LoadedModel,
    request: RecommendationsRequest,
    tree: Filter | None,
    user: LiveUser | None,
    context: ContextView,
    now_ms: int,
    sample: ListSample | None = None,
) -> tuple[Recommendations, Mapping[str, str | None]]:
    """The list and, where there is an Elasticsearch, who filtered and who searched."""
    slot, user_view, weights = request.slot or serving.model.slot, view_of(services, user), serving.model.weights
    query = Query(request.count, slot, tree, frozenset(request.exclude), request.include_seen)
    about = (user_view, serving.catalogue, context, services.popularity, now_ms, weights)
    plan = partial(plan_searches, query, *about, ranker=services.rankers.order(serving, "retrieved", sample=sample))
    if serving.elastic is None:
        return await services.turns.take(lambda: answer_in_process(plan())), {}
    return await serving.elastic.recommend(plan, tree, context.location, now_ms)


def view_of(services: Services, user: LiveUser | None) -> UserView:
    """What is known of a user; nothing while the store is away."""
    return UserView(None) if user is None else UserView.of(user.vectors, user.state, services.settings.kind_weights)


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
    user = await services.reader(loaded).read(request.user_id, request.location, vectors_wait_ms=None)
    context = context_of(loaded, request, user, now_ms)
    found, _ = await _rank(services, loaded, request, tree, user, context, now_ms)
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


def answered(
    services: Services,
    serving: LoadedModel,
    request: UserRequest,
    user: LiveUser | None,
    context: ContextView,
    found: Recommendations,
) -> dict[str, Any]:
    """What every answer with a user's list says beside it."""
    liveness = services.liveness
    partition = partition_of(request.user_id, liveness.partitions or 1) if user is None else user.partition
    return {
        "user_id": request.user_id,
        "model": serving.model.version,
        "as_of": liveness.as_of(partition, user, None if request.after is None else False),
        "index": serving.index_state(),
        "context": {
            "location": context.location,
            "ts_ms": context.ts_ms,
            "applied": [{"feature": name, "strength": round(norm, 6)} for name, norm in context.applied],
            "bounded": context.bounded,
        },
        "ranked_by": found.ranked_by or FIRST_STAGE,
    }


def count_order(services: Services, serving: LoadedModel, source: ListSource, found: Recommendations) -> None:
    """Counts what ordered a list; of an empty one nobody could."""
    services.metrics.ranked(found.ranked_by is not None, bool(found.items) and source in serving.ranking.orders)


def reason_of(serving: LoadedModel, source: ListSource, found: Recommendations) -> dict[str, str]:
    """Why the first stage made the order, where it did."""
    said = serving.ranking.said(source, found.ranked_by)
    return {"first_stage": said} if said else {}


def shown_item(serving: LoadedModel, entry: Ranked, explain: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"item_id": entry.item_id, "score": round(entry.score, 6), "slot": entry.slot}
    if (title := serving.catalogue.title_of(entry.item_id)) is not None:
        shown["title"] = title if len(title) <= _TITLE_CHARACTERS else f"{title[: _TITLE_CHARACTERS - 1]}…"
    if explain:
        shown["explain"] = {name: round(part, 6) for name, part in entry.parts.items()}
    return shown


def _expose(
    services: Services,
    request: RecommendationsRequest,
    body: Mapping[str, Any],
    now_ms: int,
    assigned: Assigned,
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
    if body["ranked_by"] != FIRST_STAGE:
        record["ranker"] = body["ranked_by"]
        if features is not None:
            record["features"] = features.to_dict()
    if assigned.experiment:
        record |= {"experiment": assigned.experiment, "arm": assigned.arm}
    key, partition = request.user_id.encode(), body["as_of"]["partition"]
    services.kafka.expose(EXPOSURES, key, orjson.dumps(record), partition)
    services.metrics.exposure()


def checked(services: Services, shape: type[R], body: Any) -> R:
    """A request's body with its context as a record. Raises ProblemError 400 that names what is wrong."""
    if not isinstance(body, Mapping):
        reason = f"expected an object, got {json_word(body)}"
        raise ProblemError(400, f"the body: {reason}", members={"errors": [{"field": "", "reason": reason}]})
    try:
        request = shape.model_validate(body, strict=True)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False), shape.model_fields) from error
    return request.model_copy(update={"context": _given_context(services, request)})


def _checked(services: Services, body: Any) -> tuple[RecommendationsRequest, Filter | None]:
    """A request and its filter. Raises ProblemError 400 that names what is wrong."""
    request = checked(services, RecommendationsRequest, body)
    try:
        tree = None if request.filter is None else parse_filter(request.filter)
    except ValueError as error:
        field, _, reason = str(error).partition(": ")  # a path holds none
        raise ProblemError(400, str(error), members={"errors": [{"field": field, "reason": reason}]}) from error
    return request, tree


def _given_context(services: Services, request: UserRequest) -> Mapping[str, Any] | None:
    """The request's own context as a record, by the rules of the topic; it is in force for this one answer."""
    if request.context is None:
        return None
    now_ms = services.now_ms()
    defaults = {"location": request.location or "-", "ts_ms": now_ms, "valid_until_ms": now_ms + 1}
    try:
        _, value = services.kafka.validate("context", {**request.context, **defaults})
    except InvalidRecordError as error:
        errors = [{"field": f"context.{field}", "reason": reason} for field, reason in error.errors]
        raise ProblemError(400, f"context.{error}", members={"errors": errors}) from error
    return cast(Mapping[str, Any], orjson.loads(value))


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


def recommend_router(services: Services) -> APIRouter:
    """`GET /v1/recommendations/{user_id}`, `POST /v1/recommendations`, `GET /v1/items/{item_id}/similar`."""
    allowed = require("read", services.settings.keys, services.metrics)
    router = APIRouter(tags=["recommendations"], dependencies=allowed, responses=PROBLEMS)
    request_schema = RecommendationsRequest.model_json_schema()

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
    ) -> Response:
        """A list for anybody, also for cold users. `served_by` names the service level."""
        asked = {"user_id": user_id, "count": count, "slot": slot, "location": location}
        asked |= {"include_seen": include_seen, "explain": explain, "after": after}
        return json_response(await answer(services, RecommendationsRequest.model_validate(asked)))

    @router.post(
        "/v1/recommendations",
        operation_id="post_recommendations",
        summary="What to show a user now, with filter, exclusions and context",
        response_model=RecommendationsAnswer,
        responses=WRITE_PROBLEMS,
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": request_schema}}}},
    )
    async def post(request: Request) -> Response:
        """As the GET, and `filter` (closed grammar), `exclude`, `scenario` and `context` in the body."""
        return await answer_posted(services, request)

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
