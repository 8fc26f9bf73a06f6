"""The calls that show what is there: one item, one user, the deployment's status, health, and Prometheus metrics.

Item and user are read from the live state; status, health and metrics from what the background tasks know, so they
answer also when Redis does not. Nothing here ranks.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from index.api.admission import require
from index.api.errors import ProblemError, json_response
from index.api.liveness import Liveness, PartitionState, TopicState
from index.api.loaded_model import Services, Serving
from index.api.parameters import ItemId, UserId
from index.api.schemas import ItemAnswer, Problem, StatusAnswer, UserAnswer
from index.query.live_user import LiveUser
from index.state.keys import partition_tag
from index.state.records import ITEM_FIELDS, load_item, vector_field
from index.state.store import LiveStore, StoreUnavailableError

_USERS_SHARE = 50  # counting users takes at most a fiftieth of the time
_PROBLEMS: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (400, 401, 403, 503)}


class UserCount:
    """How many users the live state holds, counted partition by partition in the background."""

    def __init__(self, store: LiveStore, liveness: Liveness, every_ms: float) -> None:
        self._store, self._liveness, self._every_s = store, liveness, every_ms / 1000
        self.users: int | None = None

    async def count(self) -> None:
        """Counts once. An unreachable store keeps the last number."""
        if self._liveness.partitions is None:
            return
        try:
            tags = [partition_tag(number) for number in range(self._liveness.partitions)]
            self.users = sum([await self._store.count(self._store.keys.users(tag)) for tag in tags])
        except StoreUnavailableError:
            pass

    async def run(self) -> None:
        """Counts for ever."""
        while True:
            started = time.monotonic()
            await self.count()
            await asyncio.sleep(max(self._every_s, _USERS_SHARE * (time.monotonic() - started)))


def index_state(serving: Serving) -> dict[str, Any]:
    """How current this process's knowledge about items is, as in every answer."""
    age_ms = serving.follower.age_ms
    return {
        "items": len(serving.catalogue),
        "position": serving.follower.position,
        "age_ms": _rounded(age_ms),
    }


def as_of(user: LiveUser, liveness: Liveness) -> dict[str, Any]:
    """How current the knowledge about a user is, as in every answer."""
    lag_ms = liveness.lag_ms(user.partition)
    return {
        "ts_ms": user.newest_ms,
        "partition": user.partition,
        "offset": user.offset,
        "lag_ms": _rounded(lag_ms),
        "includes_after": user.includes_after,
    }


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 1)


async def describe_item(services: Services, item_id: str) -> dict[str, Any]:
    """One item as the live state holds it. Raises ProblemError 404 when there is no such item."""
    serving = services.serving()
    fields = [*ITEM_FIELDS, vector_field(serving.model.version)]
    (values,) = await services.store.read([(services.store.keys.item(item_id), fields)])
    if values[0] is None:
        raise ProblemError(404, f"no item {item_id!r}")
    item = load_item(item_id, values)
    return {
        "item_id": item_id,
        "position": item.position,
        "catalogue": item.catalogue,
        "tags": list(item.tags),
        "embedder": item.embedder,
        "vector_pending": item.vector_pending or item.embedder not in ("", serving.model.embedder, None),
        "indexed": item.retrieval is not None,
        "index": index_state(serving),
    }


async def describe_user(services: Services, user_id: str) -> dict[str, Any]:
    """One user's live state; of a stranger an empty one."""
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
        "as_of": as_of(user, services.liveness),
    }


def describe_deployment(services: Services, users: int | None) -> dict[str, Any]:
    """`/v1/status`: never touches Redis or Kafka, so it answers when they do not."""
    liveness, serving, roles = services.liveness, services.keeper.current, services.liveness.roles()
    return {
        "kafka": services.settings.kafka,
        "redis": services.settings.redis,
        "redis_up": liveness.reachable,
        "topics": {
            name: {**_lag(topic), "partitions": [_lag(partition) for partition in topic.partitions]}
            for name, topic in liveness.topics.items()
        },
        "events_per_s": round(liveness.events_per_s, 1),
        "freshness_ms": slowest_freshness(roles),
        "items": len(serving.catalogue) if serving else 0,
        "users": users,
        "partitions": liveness.partitions,
        "model": serving.model.version if serving else liveness.model,
        "index": index_state(serving) if serving else None,
        "elasticsearch": serving.elastic.state() if serving and serving.elastic else None,
        "roles": roles,
        "counters": total_counters(roles, services.metrics.counters()),
    }


def _lag(state: TopicState | PartitionState) -> dict[str, Any]:
    return {"lag": state.lag, "position": state.position, "lag_ms": _rounded(state.lag_ms)}


def slowest_freshness(roles: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Percentiles of the slowest process that reports them: those of several cannot be added."""
    reports = [heartbeat.get("freshness_ms") or {} for heartbeat in roles.values()]
    return {name: max((report[name] for report in reports if name in report), default=None) for name in ("p50", "p99")}


def total_counters(roles: Mapping[str, Mapping[str, Any]], own: Mapping[str, int]) -> dict[str, float]:
    """Counters of all processes that report some, summed by name, and this process's own where it reports none."""
    total: Counter[str] = Counter()
    for heartbeat in roles.values():
        counters = heartbeat.get("counters")
        if isinstance(counters, Mapping):
            total.update({name: value for name, value in counters.items() if isinstance(value, int | float)})
    if not any(heartbeat.get("role") == "api" for heartbeat in roles.values()):
        total.update(own)
    return dict(total)


def _seconds(milliseconds: float | None) -> float:
    return float("nan") if milliseconds is None else milliseconds / 1000


def show_deployment(services: Services, users: int | None) -> None:
    """Sets the gauges that describe the whole deployment, before a scrape."""
    show, liveness, roles = services.metrics.show, services.liveness, services.liveness.roles()
    show("redis_up", float(liveness.reachable))
    show("events_per_second", liveness.events_per_s)
    show("users", users or 0)
    for name, topic in liveness.topics.items():
        show("lag_records", topic.lag, name)
        show("applied_position", topic.position, name)
        show("lag_seconds", _seconds(topic.lag_ms), name)
        for number, partition in enumerate(topic.partitions):
            show("partition_lag_records", partition.lag, name, str(number))
            show("partition_lag_seconds", _seconds(partition.lag_ms), name, str(number))
    for name, value in slowest_freshness(roles).items():
        if value is not None:
            show("event_visible_seconds", value / 1000, "0.5" if name == "p50" else "0.99")
    for role, count in Counter(str(heartbeat.get("role", "")) for heartbeat in roles.values()).items():
        show("roles", count, role)
        own = {key: heartbeat for key, heartbeat in roles.items() if heartbeat.get("role") == role}
        for counter, value in total_counters(own, {}).items():
            show("role_counter", value, role, counter)
    if (serving := services.keeper.current) is not None:
        state = index_state(serving)
        show("index_items", state["items"])
        show("index_position", state["position"])
        if serving.elastic is not None:
            position = serving.elastic.reader.position
            show("elasticsearch_up", float(position is not None))
            show("elasticsearch_position", float("nan") if position is None else position)
        show("index_age_seconds", float("nan") if state["age_ms"] is None else state["age_ms"] / 1000)
    show("exposures_lost", services.kafka.dropped())


def state_router(services: Services) -> APIRouter:
    """`GET /v1/items/{item_id}` and `/v1/users/{user_id}`."""
    router = APIRouter(tags=["state"])
    keys, metrics = services.settings.keys, services.metrics

    @router.get(
        "/v1/items/{item_id:path}",
        operation_id="get_item",
        summary="One item",
        response_model=ItemAnswer,
        responses=_PROBLEMS | {404: {"model": Problem}},
        dependencies=require("read", keys, metrics),
    )
    async def item(item_id: ItemId) -> Response:
        """The item's record; an answer whose `index.position` is at or past its `position` knows this state of it."""
        return json_response(await describe_item(services, item_id))

    @router.get(
        "/v1/users/{user_id:path}",
        operation_id="get_user",
        summary="One user's live state",
        response_model=UserAnswer,
        responses=_PROBLEMS,
        dependencies=require("read", keys, metrics),
    )
    async def user(user_id: UserId) -> Response:
        """Window, profile and position, as the next answer will know them; empty for a stranger."""
        return json_response(await describe_user(services, user_id))

    return router


def operations_router(services: Services, users: UserCount) -> APIRouter:
    """`GET /v1/status`, `/healthz`, `/readyz` and `/metrics`."""
    router = APIRouter(tags=["operations"])
    keys, metrics = services.settings.keys, services.metrics

    @router.get(
        "/v1/status",
        operation_id="get_status",
        summary="State of the deployment",
        response_model=StatusAnswer,
        responses=_PROBLEMS,
        dependencies=require("admin", keys, metrics),
    )
    async def status() -> Response:
        """Addresses without credentials, lag, rates, freshness, sizes, running processes and their counters."""
        return json_response(describe_deployment(services, users.users))

    @router.get(
        "/healthz",
        operation_id="get_health",
        summary="Is the process alive",
        response_class=PlainTextResponse,
        responses={503: {"model": Problem}},
    )
    async def health() -> Response:
        """503 when a part of the process has stopped for good: it is to be restarted."""
        if services.background.failures:
            raise ProblemError(503, "a background task has ended; the process needs a restart")
        return PlainTextResponse("ok\n")

    @router.get(
        "/readyz",
        operation_id="get_readiness",
        summary="Can the process answer",
        response_class=PlainTextResponse,
        responses={503: {"model": Problem}},
    )
    async def readiness() -> Response:
        """503 until the items are loaded, and later while this process has not followed their changes for a minute."""
        services.serving()
        return PlainTextResponse("ready\n")

    @router.get(
        "/metrics",
        operation_id="get_metrics",
        summary="Prometheus metrics",
        response_class=PlainTextResponse,
        dependencies=require("admin", keys, metrics),
    )
    async def prometheus() -> Response:
        """This process's metrics, and gauges of the whole deployment."""
        show_deployment(services, users.users)
        return Response(generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router
