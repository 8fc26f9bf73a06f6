"""Recommendations and similar items over HTTP: read the user, place the context, rank, say how old it all is, expose.

The service level is decided here: `personal` with vectors and a recent confirmation of the worker,
`stale` with vectors whose currency nobody confirmed lately, `popular` without vectors or without Redis. How items are
found and scored is `index.query.recommend`'s.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import ValidationError

from context.features import is_active
from context.offsets import Offset
from index.api.auth import require
from index.api.errors import InvalidRecordError, ProblemError, invalid_request, json_response
from index.api.ingest import read_json
from index.api.loaded_model import LoadedModel, Services
from index.api.lookup import as_of, index_state
from index.api.schemas import (
    DEFAULT_COUNT,
    After,
    Count,
    ItemId,
    Location,
    Problem,
    RecommendationsAnswer,
    RecommendationsRequest,
    SimilarAnswer,
    UserId,
)
from index.items.filters import Filter, Mask, parse_filter
from index.items.search import SearchIndex
from index.query.live_user import LiveUser
from index.query.model import RequestedList
from index.query.recommend import ContextView, Ranked, Recommendations, UserView, recommend
from index.query.recommend import Query as Wanted
from index.state.keys import partition_of
from index.state.store import StoreUnavailableError

_PROBLEMS: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (400, 401, 403, 503)}
EXPOSURES = "exposures"
SLOTS = "next: what now, general: long-term taste, mixed: both; default: what was best when the model was trained"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request for recommendations, checked. `context` is a record that stands in for the location's own.

    Without a `slot` the list is the one that the served model is best with.
    """

    user_id: str
    count: int = DEFAULT_COUNT
    slot: RequestedList | None = None
    location: str | None = None
    tree: Filter | None = None
    exclude: frozenset[str] = frozenset()
    include_seen: bool = False
    explain: bool = False
    after: str | None = None
    scenario: str | None = None
    page_id: str | None = None
    context: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """Time and place of one answer: the record in force there, and the offset it makes."""

    location: str
    record: Mapping[str, Any] | None
    offset: Offset


async def answer(services: Services, asked: Asked) -> dict[str, Any]:
    """One recommendation, exposed.

    Raises:
        ProblemError: 503 when there is no index to answer from.
    """
    serving, started = services.serving(), time.perf_counter()
    user = await _read_user(services, serving, asked)
    read = time.perf_counter()
    served_by, now_ms = service_level(services, user), services.now_ms()
    placed = _place(serving, asked, user, now_ms)
    found, sources = await _rank(services, serving, asked, user, placed, now_ms)
    ranked = time.perf_counter()
    body = _render(services, serving, asked, user, served_by, placed, found)
    body["index"].update(sources)
    _expose(services, asked, body, now_ms)
    services.metrics.stage("read", read - started)
    services.metrics.stage("rank", ranked - read)
    services.metrics.stage("render", time.perf_counter() - ranked)
    services.metrics.answer(served_by)
    return body


def service_level(services: Services, user: LiveUser | None) -> Literal["personal", "stale", "popular"]:
    """The service level: what the answer can be made of, and whether somebody vouches for its currency."""
    if user is None or user.vectors is None:
        return "popular"
    lag_ms = services.liveness.lag_ms(user.partition)
    return "personal" if lag_ms is not None and lag_ms <= services.settings.stale_ms else "stale"


async def _read_user(services: Services, serving: LoadedModel, asked: Asked) -> LiveUser | None:
    """The user, None when the store does not answer; while it is known to be away it is not even asked."""
    if not services.liveness.reachable:
        return None
    reader = services.reader(serving)
    try:
        with nullcontext() if asked.after is None else services.turns.idle():
            user = await reader.read(asked.user_id, asked.location, asked.after, services.settings.after_wait_ms)
    except StoreUnavailableError:
        services.liveness.reachable = False  # until the next poll finds it
        return None
    services.liveness.note(user.partition, user.beat)
    return user


def _place(serving: LoadedModel, asked: Asked, user: LiveUser | None, now_ms: int) -> Placed:
    location = user.location if user is not None else asked.location or ""
    record = asked.context if asked.context is not None else user.context if user is not None else None
    active = record if is_active(record, now_ms) else None
    return Placed(location, active, serving.model.offset.offset(now_ms, active))


async def _rank(
    services: Services, serving: LoadedModel, asked: Asked, user: LiveUser | None, placed: Placed, now_ms: int
) -> tuple[Recommendations, Mapping[str, str | None]]:
    """The list and, where there is an Elasticsearch, who filtered and who searched."""
    view = UserView(None)
    if user is not None:
        view = UserView(user.vectors, frozenset(user.state.items), user.state.purchases)
    promotions = (placed.record or {}).get("promotions") or ()
    context = ContextView(placed.location, placed.offset.delta if placed.offset.applied else None, promotions)
    slot = asked.slot or serving.model.slot
    wanted = Wanted(asked.count, slot, asked.tree, asked.exclude, asked.include_seen)

    def ranked(passing: Mask | None, search: SearchIndex | None) -> Recommendations:
        query = replace(wanted, passing=passing, search=search)
        return recommend(query, view, serving.catalogue, context, services.popularity, now_ms, serving.model.weights)

    return await _answered(services, serving, ranked, asked.tree, now_ms)


async def _answered(
    services: Services,
    serving: LoadedModel,
    ask: Callable[[Mask | None, SearchIndex | None], T],
    tree: Filter | None,
    now_ms: int,
) -> tuple[T, Mapping[str, str | None]]:
    if serving.elastic is None:
        return await services.turns.take(lambda: ask(None, None)), {}
    found, sources = await serving.elastic.answered(ask, tree, now_ms)
    for what, where in sources.items():
        if where is not None:
            services.metrics.source(what, where)
    return found, sources


def _render(
    services: Services,
    serving: LoadedModel,
    asked: Asked,
    user: LiveUser | None,
    served_by: str,
    placed: Placed,
    found: Recommendations,
) -> dict[str, Any]:
    body = {
        "recommendation_id": uuid.uuid4().hex,
        "user_id": asked.user_id,
        "model": serving.model.version,
        "served_by": served_by,
        "as_of": _unknown(services, asked) if user is None else as_of(user, services.liveness),
        "index": index_state(serving),
        "context": {
            "location": placed.location,
            "ts_ms": None if placed.record is None else placed.record.get("ts_ms"),
            "applied": [{"feature": name, "strength": round(norm, 6)} for name, norm in placed.offset.applied],
            "bounded": placed.offset.bounded,
        },
        "items": [_shown(serving, entry, asked.explain) for entry in found.items],
    }
    if asked.scenario is not None:
        body["scenario"] = asked.scenario
    if asked.explain:
        body["explain"] = {"retrieved": dict(found.retrieved), "removed": dict(found.removed)}
    return body


def _unknown(services: Services, asked: Asked) -> dict[str, Any]:
    """`as_of` of an answer that knows nothing about its user, because the live state did not answer."""
    partition = partition_of(asked.user_id, services.liveness.partitions or 1)
    lag_ms = services.liveness.lag_ms(partition)
    return {
        "ts_ms": None,
        "partition": partition,
        "offset": None,
        "lag_ms": None if lag_ms is None else round(lag_ms, 1),
        "includes_after": None if asked.after is None else False,
    }


def _shown(serving: LoadedModel, entry: Ranked, explain: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"item_id": entry.item_id, "score": round(entry.score, 6), "slot": entry.slot}
    item = serving.catalogue.get(entry.item_id)
    if item is not None and item.title:
        shown["title"] = item.title
    if explain:
        shown["explain"] = {name: round(part, 6) for name, part in entry.parts.items()}
    return shown


def _expose(services: Services, asked: Asked, body: Mapping[str, Any], now_ms: int) -> None:
    """Sends what was shown to Kafka without waiting: negatives for training, attribution of later clicks."""
    record = {
        "recommendation_id": body["recommendation_id"],
        "user_id": asked.user_id,
        "items": [{name: item[name] for name in ("item_id", "slot", "score")} for item in body["items"]],
        "ts_ms": now_ms,
        "page_id": asked.page_id or body["recommendation_id"],
        "model": body["model"],
        "served_by": body["served_by"],
        "location": body["context"]["location"],
    }
    if asked.scenario is not None:
        record["scenario"] = asked.scenario
    partition = partition_of(asked.user_id, services.liveness.partitions or 1)
    services.kafka.expose(EXPOSURES, asked.user_id.encode(), orjson.dumps(record), partition)
    services.metrics.exposure()


def _checked(services: Services, body: Any) -> Asked:
    """A request's body, checked. Raises ProblemError 400 that names what is wrong."""
    try:
        request = RecommendationsRequest.model_validate(body, strict=True)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_input=False)) from error
    try:
        tree = None if request.filter is None else parse_filter(request.filter)
    except ValueError as error:
        raise ProblemError(400, str(error)) from error
    return Asked(
        user_id=request.user_id,
        count=request.count,
        slot=request.slot,
        location=request.location,
        tree=tree,
        exclude=frozenset(request.exclude),
        include_seen=request.include_seen,
        explain=request.explain,
        after=request.after,
        scenario=request.scenario,
        page_id=request.page_id,
        context=_given_context(services, request),
    )


def _given_context(services: Services, request: RecommendationsRequest) -> Mapping[str, Any] | None:
    """The request's own context as a record, by the rules of the topic; in force for this one answer."""
    if request.context is None:
        return None
    now_ms = services.now_ms()
    defaults = {"location": request.location or "-", "ts_ms": now_ms, "valid_until_ms": now_ms + 1}
    try:
        _, value = services.kafka.validate("context", {**request.context, **defaults})
    except InvalidRecordError as error:
        wrong = {"field": f"context.{error.field}", "reason": error.reason}
        raise ProblemError(400, f"context.{error.field}: {error.reason}", members={"errors": [wrong]}) from error
    record: Mapping[str, Any] = orjson.loads(value)
    return record


async def _similar(services: Services, item_id: str, count: int) -> dict[str, Any]:
    serving, now_ms = services.serving(), services.now_ms()
    if serving.catalogue.get(item_id) is None:
        raise ProblemError(404, f"no item {item_id!r}")

    def nearest(_: Mask | None, search: SearchIndex | None) -> list[tuple[str, float]]:
        return serving.catalogue.similar(item_id, count, now_ms, search=search)

    found, sources = await _answered(services, serving, nearest, None, now_ms)
    items = [_shown(serving, Ranked(other, cosine, "next", {}), explain=False) for other, cosine in found]
    for item in items:
        del item["slot"]
    index = {**index_state(serving), **sources}
    return {"item_id": item_id, "model": serving.model.version, "index": index, "items": items}


def recommend_router(services: Services) -> APIRouter:
    """`GET /v1/recommendations/{user_id}`, `POST /v1/recommendations`, `GET /v1/items/{item_id}/similar`."""
    router = APIRouter(tags=["recommendations"], dependencies=require("read", services.settings.keys, services.metrics))
    request_schema = RecommendationsRequest.model_json_schema()

    @router.get(
        "/v1/recommendations/{user_id:path}",
        operation_id="get_recommendations",
        summary="What to show a user now",
        response_model=RecommendationsAnswer,
        responses=_PROBLEMS,
    )
    async def get(
        user_id: UserId,
        count: Count = DEFAULT_COUNT,
        slot: Annotated[RequestedList | None, Query(description=SLOTS)] = None,
        location: Location = None,
        include_seen: Annotated[bool, Query(description="also items the user has seen")] = False,
        explain: Annotated[bool, Query(description="show the parts of each score")] = False,
        after: After = None,
    ) -> Response:
        """A list for anybody, also for cold users. `served_by` names the service level."""
        asked = Asked(user_id, count, slot, location, include_seen=include_seen, explain=explain, after=after)
        return json_response(await answer(services, asked))

    @router.post(
        "/v1/recommendations",
        operation_id="post_recommendations",
        summary="What to show a user now, with filter, exclusions and context",
        response_model=RecommendationsAnswer,
        responses=_PROBLEMS | {413: {"model": Problem}, 415: {"model": Problem}},
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": request_schema}}}},
    )
    async def post(request: Request) -> Response:
        """As the GET, and `filter` (closed grammar), `exclude`, `scenario` and `context` in the body."""
        return json_response(await answer(services, _checked(services, await read_json(request))))

    @router.get(
        "/v1/items/{item_id:path}/similar",
        operation_id="get_similar_items",
        summary="Neighbours of an item",
        response_model=SimilarAnswer,
        responses=_PROBLEMS | {404: {"model": Problem}},
    )
    async def similar(item_id: ItemId, count: Count = DEFAULT_COUNT) -> Response:
        """The nearest other items that may be shown; none while the item has no vector."""
        return json_response(await _similar(services, item_id, count))

    return router
