"""Answers requests for a page of several lists that share no item, `POST /v1/pages`."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from index.api.auth import require
from index.api.errors import json_response, read_json
from index.api.lists.kinds import MadeList, WantedList, make
from index.api.lists.moment import ListMoment, read_moment
from index.api.lists.named import expose, refusal, render, said_once, wanted_list
from index.api.lists.requests import checked
from index.api.loaded_model import Services
from index.api.schemas.named_lists import OF_USER, ListRequest
from index.api.schemas.pages import PageAnswer, PageList, PageRequest
from index.api.schemas.shapes import WRITE_PROBLEMS, json_body
from index.query.lists.page import decode_token, encode_token, shown_last
from index.query.recommend import Recommendations
from index.query.rules.arrange import placed


async def answer_page(services: Services, request: PageRequest) -> dict[str, Any]:
    """The lists of a page, exposed. Raises ProblemError 400 for a bad list or token, 503 without a usable index."""
    shapes = [_shape(request, one) for one in request.lists]
    named = enumerate(zip(request.lists, shapes, strict=True))
    wanted = [wanted_list(one.list, shape, request.user_id, f"lists.{at}.") for at, (one, shape) in named]
    before = [] if request.page_token is None else _items(request.page_token, request.user_id, "page_token")
    visits = [_items(token, request.user_id, f"rotate.{at}") for at, token in enumerate(request.rotate)]
    started = time.perf_counter()
    moment = await read_moment(services, request, request.user_id, [shape.scenario for shape in shapes])
    last = shown_last(visits, set(moment.view.decoded().window))
    read = time.perf_counter()
    made = await make_page(moment, wanted, before, last)
    shown = [*before, *(entry.item_id for one in made for entry in one.found.items)]
    if len(shown) == len(before):
        services.serving()  # the store may have been emptied meanwhile
    ranked, page_id = time.perf_counter(), uuid.uuid4().hex
    lists = []
    for asked, shape, one in zip(request.lists, shapes, made, strict=True):
        body = render(moment, shape, one)
        expose(moment, shape.model_copy(update={"page_id": page_id}), one, body)
        if asked.scenario is None:
            body.pop("scenario", None)
        lists.append(body)
    rendered = time.perf_counter() - ranked
    services.metrics.answer(moment.level, read=read - started, rank=ranked - read, render=rendered)
    return {
        "page_id": page_id,
        **said_once(moment, moment.context, {}),
        "lists": lists,
        "page_token": encode_token(shown, request.user_id) if any(map(_goes_on, made)) else None,
        **({} if request.scenario is None else {"scenario": request.scenario}),
    }


async def make_page(
    moment: ListMoment, wanted: list[WantedList], before: list[str], last: frozenset[str] = frozenset()
) -> list[MadeList]:
    """Lists that share no item with each other and with `before`; items of `last` come after all others but pins."""
    shown, found = set(before), list[MadeList]()
    for one in wanted:
        one = replace(one, exclude=one.exclude.union(shown))
        made = await (make(moment, one) if one.name in OF_USER or not last else _rotated(moment, one, last))
        shown.update(entry.item_id for entry in made.found.items)
        found.append(made)
    return found


def _goes_on(made: MadeList) -> bool:
    """Whether a next page may have more: of a list that was full, or that caps or groups cut short."""
    arrangement = None if made.rule is None else made.rule.arrangement
    is_cut = arrangement is not None and arrangement.limits
    return len(made.found.items) == made.wanted.count or bool(is_cut and made.found.items)


async def _rotated(moment: ListMoment, wanted: WantedList, last: frozenset[str]) -> MadeList:
    """The list without these items, but for pinned ones, and they at its end where it is short."""
    rule = moment.rules.get(wanted.scenario or "")
    pins = {} if rule is None or rule.arrangement is None else dict(rule.arrangement.pins)
    made = await make(moment, replace(wanted, exclude=wanted.exclude.union(last.difference(pins.values()))))
    listed = made.found.items
    left = wanted.count - len(listed)
    if not left:
        return replace(made, wanted=wanted)
    names = tuple(entry.item_id for entry in listed)
    others = wanted.exclude.union(names)
    rest = (await make(moment, replace(wanted, count=left, exclude=others, begins=names))).found
    retrieved = {**made.found.retrieved, "rotated": len(rest.items)}
    at = {name: place for place, name in pins.items() if place < wanted.count}
    pinned = {at[entry.item_id]: entry for entry in listed if entry.item_id in at}
    queue = (entry for entry in [*listed, *rest.items] if entry.item_id not in at)
    items = placed(pinned, queue, wanted.count)
    found = Recommendations(items, made.found.removed, retrieved, made.found.ranked_by)
    return replace(made, wanted=wanted, found=found)


def _shape(request: PageRequest, one: PageList) -> ListRequest:
    """One list of a page as a request of its own."""
    return ListRequest.model_construct(
        user_id=request.user_id,
        items=list(one.items),
        count=one.count,
        category=one.category,
        filter=one.filter,
        slot=one.slot or request.slot,
        exclude=request.exclude,
        include_seen=one.include_seen,
        explain=request.explain,
        after=request.after,
        scenario=request.scenario if one.scenario is None else one.scenario,
    )


def _items(token: str, user_id: str | None, field: str) -> list[str]:
    try:
        return decode_token(token, user_id)
    except ValueError as error:
        raise refusal(field, str(error)) from error


def pages_router(services: Services) -> APIRouter:
    """`POST /v1/pages`."""
    allowed = require("read", services.settings.keys, services.metrics)
    router = APIRouter(tags=["lists"], dependencies=allowed, responses=WRITE_PROBLEMS)

    @router.post(
        "/v1/pages",
        operation_id="post_page",
        summary="Several lists that share no item",
        response_model=PageAnswer,
        openapi_extra=json_body(PageRequest, lists=PageList),
    )
    async def post(request: Request) -> Response:
        """Each as a named list; `page_token` goes on with what was not shown yet."""
        return json_response(await answer_page(services, checked(services, PageRequest, await read_json(request))))

    return router
