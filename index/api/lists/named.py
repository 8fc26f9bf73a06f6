"""Answers requests for a named list, `GET` and `POST /v1/lists/{list}`, renders it and exposes it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from index.api.auth import require
from index.api.errors import ProblemError, json_response, read_json
from index.api.lists.answers import reason_of, shown_item
from index.api.lists.kinds import MadeList, WantedList, make
from index.api.lists.moment import ListMoment, Sources, read_moment
from index.api.lists.requests import checked, read_filter
from index.api.loaded_model import Services
from index.api.schemas.named_lists import (
    FROM_ITEMS,
    OF_USER,
    SEEDED,
    ItemIds,
    ListAnswer,
    ListRequest,
    ListShape,
    NamedList,
    SomeCategory,
    SomeUser,
)
from index.api.schemas.shapes import (
    DEFAULT_COUNT,
    PROBLEMS,
    WRITE_PROBLEMS,
    After,
    Count,
    Explain,
    IncludeSeen,
    ListName,
    Location,
    Scenario,
    json_body,
)
from index.items.filters import And, AnyOf, Filter
from index.query.question import ContextView
from index.query.served_ranker import FIRST_STAGE

EXPOSURES = "exposures"
ListPath = Annotated[NamedList, Path(alias="list", description="which list", examples=["similar"])]


async def answer_list(services: Services, name: NamedList, request: ListRequest) -> dict[str, Any]:
    """One list, exposed. Raises ProblemError 400 for what the list cannot be made of, 503 without a usable index."""
    wanted, started = wanted_list(name, request, request.user_id), time.perf_counter()
    moment = await read_moment(services, request, request.user_id, [request.scenario])
    read = time.perf_counter()
    made = await make(moment, wanted)
    if not made.found.items:
        services.serving()  # the store may have been emptied meanwhile
    ranked = time.perf_counter()
    body = {**render(moment, request, made), **said_once(moment, made.context, made.sources)}
    expose(moment, request, made, body)
    rendered = time.perf_counter() - ranked
    services.metrics.answer(made.served_by, read=read - started, rank=ranked - read, render=rendered)
    return body


async def answer_posted_list(services: Services, name: NamedList, request: Request) -> Response:
    """The answer to a request in a body. Raises as `answer_list`, and ProblemError 400 or 415 for the body."""
    return json_response(await answer_list(services, name, checked(services, ListRequest, await read_json(request))))


def wanted_list(
    name: NamedList, shape: ListShape, user_id: str | None, place: str = "", exclude: frozenset[str] = frozenset()
) -> WantedList:
    """A list as it is asked for at `place` of a body. Raises ProblemError 400 that names what it cannot be made of."""
    if user_id is None and name in OF_USER:
        raise refusal("user_id", f"missing; {name} lists what a user did")
    if user_id is None and shape.after is not None:
        raise refusal("after", "names an event of a user; give the user_id, too")
    if shape.items and name not in FROM_ITEMS:
        raise refusal(f"{place}items", f"{name} is not made from items; leave them out")
    if user_id is None and not shape.items and name in SEEDED:
        raise refusal(f"{place}items", "missing; name an item, or a user whose last viewed item is taken")
    tree, parts = read_filter(shape.filter, place), list[Filter]()
    parts += [] if shape.category is None else [AnyOf("category", (shape.category,))]
    parts += [] if tree is None else [tree]
    return WantedList(
        name,
        shape.count,
        tuple(dict.fromkeys(reversed(shape.items)))[::-1],  # of one that is named twice the newest place counts
        And(tuple(parts)) if len(parts) > 1 else next(iter(parts), None),
        exclude.union(shape.exclude),
        shape.include_seen,
        shape.slot,
        shape.explain,
        shape.scenario,
    )


def refusal(field: str, reason: str) -> ProblemError:
    """A 400 that names a field."""
    return ProblemError(400, f"{field}: {reason}", members={"errors": [{"field": field, "reason": reason}]})


def said_once(moment: ListMoment, context: ContextView, sources: Sources) -> dict[str, Any]:
    """What an answer says of all its lists."""
    return {
        "user_id": moment.user_id,
        "model": moment.serving.model.version,
        "as_of": moment.as_of(),
        "index": {**moment.serving.index_state(), **sources},
        "context": {
            "location": context.location,
            "ts_ms": context.ts_ms,
            "applied": [{"feature": name, "strength": round(norm, 6)} for name, norm in context.applied],
            "bounded": context.bounded,
        },
    }


def render(moment: ListMoment, request: ListShape, made: MadeList) -> dict[str, Any]:
    """What is said of one list."""
    serving, found = moment.serving, made.found
    moment.services.metrics.sources(made.sources)
    body: dict[str, Any] = {
        "list": made.wanted.name,
        "recommendation_id": None if moment.user_id is None else uuid.uuid4().hex,
        "served_by": made.served_by,
        "ranked_by": found.ranked_by or FIRST_STAGE,
        "seeds": list(made.seeds),
        "items": [shown_item(serving, entry, request.explain) for entry in found.items],
    }
    for item in body["items"] if made.about else ():
        more = made.about.get(item["item_id"], {})
        item |= {name: value for name, value in more.items() if name != "explain"}
        if request.explain:
            item["explain"] |= more.get("explain", {})
    if request.scenario is not None:
        body["scenario"] = request.scenario
    if made.rule is not None:
        body["rules"] = made.rule.said
    if request.explain:
        body["explain"] = {"retrieved": dict(found.retrieved), "removed": dict(found.removed)}
        if made.wanted.name == "recommended":
            body["explain"] |= reason_of(serving, "retrieved", found)
    return body


def expose(moment: ListMoment, request: ListShape, made: MadeList, body: Mapping[str, Any]) -> None:
    """Sends to Kafka what was shown to a user, with the list's name; for a guest there is no key that it could have."""
    if moment.user_id is None:
        return
    partition = moment.as_of()["partition"]
    record = {
        "recommendation_id": body["recommendation_id"],
        "user_id": moment.user_id,
        "items": [{name: item[name] for name in ("item_id", "slot", "score")} for item in body["items"]],
        "ts_ms": moment.now_ms,
        "page_id": request.page_id or body["recommendation_id"],
        "model": moment.serving.model.version,
        "served_by": made.served_by,
        "location": made.context.location,
        "list": made.wanted.name,
    }
    if request.scenario is not None:
        record["scenario"] = request.scenario
    if made.rule is not None:
        record["rules"] = made.rule.said
    if body["ranked_by"] != FIRST_STAGE:
        record["ranker"] = body["ranked_by"]
    if moment.assigned.experiment:
        record |= {"experiment": moment.assigned.experiment, "arm": moment.assigned.arm}
    moment.services.kafka.expose(EXPOSURES, moment.user_id.encode(), orjson.dumps(record), partition)
    moment.services.metrics.exposure()


def lists_router(services: Services) -> APIRouter:
    """`GET` and `POST /v1/lists/{list}`."""
    allowed = require("read", services.settings.keys, services.metrics)
    router = APIRouter(tags=["lists"], dependencies=allowed, responses=PROBLEMS)

    @router.get("/v1/lists/{list}", operation_id="get_list", summary="A named list", response_model=ListAnswer)
    async def get(
        name: ListPath,
        user_id: SomeUser = None,
        item_id: ItemIds = None,
        count: Count = DEFAULT_COUNT,
        slot: ListName = None,
        location: Location = None,
        category: SomeCategory = None,
        include_seen: IncludeSeen = False,
        explain: Explain = False,
        after: After = None,
        scenario: Scenario = None,
    ) -> Response:
        """Similar, trending, recently viewed, to buy again, or recommended, also for a guest."""
        asked: dict[str, Any] = {"user_id": user_id, "items": item_id or [], "count": count, "slot": slot}
        asked |= {"location": location, "category": category, "include_seen": include_seen}
        asked |= {"explain": explain, "after": after, "scenario": scenario}
        request = ListRequest.model_validate(asked)
        return json_response(await answer_list(services, name, request))

    @router.post(
        "/v1/lists/{list}",
        operation_id="post_list",
        summary="A named list, with filter, exclusions and context",
        response_model=ListAnswer,
        responses=WRITE_PROBLEMS,
        openapi_extra=json_body(ListRequest),
    )
    async def post(name: ListPath, request: Request) -> Response:
        """As the GET, and `filter` (closed grammar), `exclude`, `scenario` and `context` in the body."""
        return await answer_posted_list(services, name, request)

    return router
