"""Reads what a list is made from, the checked request, the user's state and the context of the moment.

Decides the service level: `personal` with vectors and a recent confirmation of the worker, `stale` with vectors whose
currency nobody confirmed lately, `popular` without vectors or without Redis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, cast

import orjson
from pydantic import BaseModel, ValidationError

from context.json_words import json_word
from context.units import MINUTE_MS
from index.api.errors import InvalidRecordError, ProblemError, invalid_request
from index.api.loaded_model import Assigned, LoadedModel, Services
from index.api.schemas.lists import AnyListRequest, RecommendationsRequest, UserRequest
from index.items.filters import Filter, parse_filter
from index.query.live_user import LiveUser
from index.query.question import ContextView, UserView
from index.state.keys import partition_of
from index.state.store import StoreUnavailableError

R = TypeVar("R", bound=AnyListRequest)
S = TypeVar("S", bound=BaseModel)
Scenarios = Sequence[str | None]


def checked(services: Services, shape: type[R], body: Any) -> R:
    """A request's body with its context as a record. Raises ProblemError 400 that names what is wrong."""
    request = checked_shape(shape, body)
    return request.model_copy(update={"context": _given_context(services, request)})


def checked_shape(shape: type[S], body: Any) -> S:
    """A body of this shape. Raises ProblemError 400 that names what is wrong."""
    if not isinstance(body, Mapping):
        reason = f"expected an object, got {json_word(body)}"
        raise ProblemError(400, f"the body: {reason}", members={"errors": [{"field": "", "reason": reason}]})
    try:
        return shape.model_validate(body, strict=True)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False), shape.model_fields) from error


def checked_with_filter(services: Services, body: Any) -> tuple[RecommendationsRequest, Filter | None]:
    """A request and its filter. Raises ProblemError 400 that names what is wrong."""
    request = checked(services, RecommendationsRequest, body)
    return request, read_filter(request.filter)


def assigned(services: Services, user_id: str, version: str | None) -> Assigned:
    """Who answers: a version that is asked for, else the user's. Raises ProblemError 409 for one that cannot here.

    Raises ProblemError 503 without a usable index.
    """
    if version is None:
        return services.assigned(user_id)
    able = {services.serving().version: services.serving()}
    able |= {found.version: found for found in services.keeper.loaded() if not found.missing(services.liveness)}
    if version not in able:
        raise ProblemError(409, f"the model {version!r} is not loaded here; loaded: {', '.join(able)}")
    return Assigned(able[version])


def read_filter(body: Any, place: str = "") -> Filter | None:
    """A request's filter, which stands at `place` of its body. Raises ProblemError 400 that names what is wrong."""
    try:
        return None if body is None else parse_filter(body)
    except ValueError as error:
        field, _, reason = f"{place}{error}".partition(": ")  # a path holds none
        members = {"errors": [{"field": field, "reason": reason}]}
        raise ProblemError(400, f"{place}{error}", members=members) from error


def _given_context(services: Services, request: AnyListRequest) -> Mapping[str, Any] | None:
    """The request's own context as a record, by the rules of the topic; it is in force for this one answer."""
    if request.context is None:
        return None
    now_ms = services.now_ms()
    until_ms = now_ms + MINUTE_MS  # in force for longer than reading the user may take
    defaults = {"location": request.location or "-", "ts_ms": now_ms, "valid_until_ms": until_ms}
    try:
        _, value = services.kafka.validate("context", {**request.context, **defaults})
    except InvalidRecordError as error:
        errors = [{"field": f"context.{field}", "reason": reason} for field, reason in error.errors]
        raise ProblemError(400, f"context.{error}", members={"errors": errors}) from error
    return cast(Mapping[str, Any], orjson.loads(value))


async def read_user(
    services: Services, serving: LoadedModel, request: UserRequest, placed: bool = False, scenarios: Scenarios = ()
) -> LiveUser | None:
    """The user, None when the store does not answer; while it is known to be away it is not even asked.

    With the rules of the `scenarios` that are named.
    """
    if not services.liveness.reachable:
        return None
    reader = services.reader(serving)
    named = tuple(dict.fromkeys(filter(None, scenarios)))
    if placed or named:
        reader = replace(reader, placed=placed, scenarios=named)
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


def service_level(services: Services, user: LiveUser | None) -> Literal["personal", "stale", "popular"]:
    """The service level: what the answer can be made of, and whether somebody vouches for its currency."""
    if user is None or user.vectors is None:
        return "popular"
    lag_ms = services.liveness.lag_ms(user.partition)
    return "personal" if lag_ms is not None and lag_ms <= services.settings.stale_ms else "stale"


def context_of(serving: LoadedModel, request: AnyListRequest, user: LiveUser | None, now_ms: int) -> ContextView:
    location = user.location if user is not None else request.location or ""
    record = request.context if request.context is not None else user.context if user is not None else None
    return ContextView.at(location, record, now_ms, serving.model.offset)


def view_of(services: Services, user: LiveUser | None) -> UserView:
    """What is known of a user; nothing while the store is away."""
    if user is None:
        return UserView(None)
    return UserView.of_stored(user.vectors, user.stored, services.settings.kind_weights)
