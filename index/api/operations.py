"""Shows the deployment's status, health, readiness and Prometheus metrics.

All of it comes from what the background tasks know, so these calls answer also when Redis and Kafka do not.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from index.api.auth import require
from index.api.errors import ProblemError, json_response, known_parameters
from index.api.liveness import Liveness, PartitionState, TopicState, rounded
from index.api.loaded_model import Services
from index.api.schemas.shapes import KEY_PROBLEMS, OPEN_PROBLEMS, problems
from index.api.schemas.status import StatusAnswer
from index.query.shadow import ShadowCounts
from index.state.keys import partition_tag
from index.state.store import LiveStore, StoreUnavailableError

_USERS_SHARE = 50  # counting users takes at most a fiftieth of the time,
_MOST_S = 10.0  # but is done so often all the same: it is slow where the process has much to load


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
            await asyncio.sleep(max(self._every_s, min(_MOST_S, _USERS_SHARE * (time.monotonic() - started))))


def describe_deployment(services: Services, users: int | None) -> dict[str, Any]:
    """`/v1/status`: never touches Redis or Kafka, so it answers when they do not."""
    liveness, serving, roles = services.liveness, services.keeper.current, services.liveness.roles()
    return {
        "now": _now(services),
        "kafka": services.settings.kafka,
        "redis": services.settings.redis,
        "redis_up": liveness.reachable,
        "redis_writes": _writes(services),
        "topics": {
            name: {**_lag(topic), "partitions": [_lag(partition) for partition in topic.partitions]}
            for name, topic in liveness.topics.items()
        },
        "events_per_s": round(liveness.events_per_s, 1),
        "freshness_ms": slowest_freshness(roles),
        "items": len(serving.catalogue) if serving else 0,
        "users": users,
        "partitions": liveness.partitions,
        "model": serving.version if serving else liveness.aliases.champion or None,
        "models": {
            **_aliases(liveness),
            "loaded": services.keeper.report(),
            "embedding": _embedding(roles),
            **_trials(services, roles),
        },
        "index": serving.index_state() if serving else None,
        "elasticsearch": serving.elastic.state() if serving and serving.elastic else None,
        "roles": roles,
        "counters": total_counters(roles, services.metrics.counters()),
    }


def _embedding(roles: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How far texts are, by version, as embed processes say."""
    found: dict[str, Any] = {}
    for heartbeat in roles.values():
        said = heartbeat.get("embedding")
        found |= said if isinstance(said, Mapping) else {}
    return found


def _aliases(liveness: Liveness) -> dict[str, str | None]:
    aliases = liveness.aliases
    found = {"champion": aliases.champion, "challenger": aliases.challenger, "previous": aliases.previous}
    return {name: version or None for name, version in found.items()}


def _trials(services: Services, roles: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How the staged model is tried; a shadow's counts are those of all API processes."""
    aliases = services.liveness.aliases
    found: dict[str, Any] = {"shadow": None, "experiment": None}
    if (shadow := aliases.shadowed) is not None:
        reports = [heartbeat["shadow"] for heartbeat in roles.values() if heartbeat.get("shadow")]
        if not any(heartbeat.get("role") == "api" for heartbeat in roles.values()):
            reports = [services.shadow.report()]
        counts = ShadowCounts.merged((aliases.champion, shadow.model, shadow.since_ms), reports)
        found["shadow"] = {
            "model": shadow.model,
            "share": shadow.share,
            "since_ms": shadow.since_ms,
            **counts.summary(),
        }
    if (experiment := aliases.running) is not None:
        names = ("id", "champion", "model", "share", "since_ms")
        found["experiment"] = {name: getattr(experiment, name) for name in names}
    return found


def _now(services: Services) -> dict[str, Any]:
    """The time by which windows, promotions, contexts and popularity are judged."""
    now_ms = services.now_ms()
    time_of = f"{datetime.fromtimestamp(now_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return {"time": time_of, "ts_ms": now_ms, "clock": "wall" if services.liveness.clock_ms is None else "timeline"}


def _writes(services: Services) -> str | None:
    refusal = services.store.refusal
    if refusal is None or not services.liveness.reachable:
        return None
    return f"refused: {refusal}" if refusal else "accepted"


def _lag(state: TopicState | PartitionState) -> dict[str, Any]:
    return {"lag": state.lag, "position": state.position, "lag_ms": rounded(state.lag_ms)}


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


def _results(roles: Mapping[str, Mapping[str, Any]]) -> Counter[tuple[str, str]]:
    """What attribution processes have counted, by list and measure."""
    total: Counter[tuple[str, str]] = Counter()
    for heartbeat in roles.values():
        for name, measures in (heartbeat.get("results") or {}).items():
            total.update({(name, measure): count for measure, count in measures.items()})
    return total


def _seconds(milliseconds: float | None) -> float:
    return float("nan") if milliseconds is None else milliseconds / 1000


def show_deployment(services: Services, users: int | None) -> None:
    """Sets the gauges that describe the whole deployment, before a scrape."""
    show, liveness, roles = services.metrics.show, services.liveness, services.liveness.roles()
    show("redis_up", float(liveness.reachable))
    show("redis_writes", float(_writes(services) == "accepted"))
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
    for (name, measure), value in _results(roles).items():
        show("results", value, name, measure)
    if (serving := services.keeper.current) is not None:
        state = serving.index_state()
        show("index_items", state["items"])
        show("index_position", state["position"])
        if serving.elastic is not None:
            position = serving.elastic.reader.position
            show("elasticsearch_up", float(position is not None))
            show("elasticsearch_position", float("nan") if position is None else position)
        show("index_age_seconds", _seconds(state["age_ms"]))
    show("exposures_lost", services.kafka.dropped())


def operations_router(services: Services, users: UserCount) -> APIRouter:
    """`GET /v1/status`, `/healthz`, `/readyz` and `/metrics`."""
    router = APIRouter(tags=["operations"])
    keys, metrics = services.settings.keys, services.metrics

    @router.get(
        "/v1/status",
        operation_id="get_status",
        summary="State of the deployment",
        response_model=StatusAnswer,
        responses=KEY_PROBLEMS | problems(503),
        dependencies=require("admin", keys, metrics),
    )
    async def status() -> Response:
        """Addresses without credentials, lag, rates, freshness, sizes, running processes and their counters."""
        return json_response(describe_deployment(services, users.users))

    async def health() -> Response:
        """503 when a part of the process has stopped for good: it is to be restarted."""
        if services.background.failures:
            raise ProblemError(503, "a background task has ended; the process needs a restart")
        return PlainTextResponse("ok\n")

    async def readiness() -> Response:
        """503 until the items are loaded, and later while this process has not followed their changes for a minute.

        A live state that refuses writes is said: lists are answered still, from what was known before.
        """
        services.serving()
        refusal = services.store.refusal
        return PlainTextResponse(f"ready; the live state refuses writes: {refusal}\n" if refusal else "ready\n")

    async def prometheus() -> Response:
        """This process's metrics, and gauges of the whole deployment."""
        show_deployment(services, users.users)
        return Response(generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    _add_plain(router, "/healthz", health, "health", "Is the process alive", OPEN_PROBLEMS | problems(503))
    _add_plain(router, "/readyz", readiness, "readiness", "Can the process answer", OPEN_PROBLEMS | problems(503))
    needed = require("admin", keys, metrics)
    _add_plain(router, "/metrics", prometheus, "metrics", "Prometheus metrics", KEY_PROBLEMS, needed)
    return router


def _add_plain(
    router: APIRouter,
    path: str,
    answer: Callable[[], Awaitable[Response]],
    name: str,
    summary: str,
    responses: dict[int | str, dict[str, Any]],
    needed: Sequence[Any] = (Depends(known_parameters),),
) -> None:
    """Adds a call for probes and scrapers, which is text and may be asked by HEAD."""
    for method in ("GET", "HEAD"):
        router.add_api_route(
            path,
            answer,
            methods=[method],
            operation_id=f"{method.lower()}_{name}",
            summary=summary,
            response_class=PlainTextResponse,
            responses=responses,
            dependencies=needed,
        )
