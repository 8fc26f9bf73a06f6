"""Assembles the HTTP query API as one application, with its background tasks and its documentation.

All parts are passed in, Kafka as injected functions. Assumes an ASGI server that runs the application's lifespan. Reads
no environment and starts no process. `/docs` asks no other host, as its scripts come from the package fastapi-offline.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response
from fastapi.telemetry import TelemetryConfig
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from index.api.admission import AdmissionController, AdmissionMiddleware
from index.api.auth import scopes_of
from index.api.errors import (
    PROBLEM_JSON,
    ProblemError,
    install_handlers,
    json_response,
    known_parameters,
    problem_response,
    store_away,
)
from index.api.ingest import Ingest, ingest_router
from index.api.item_changes import changes_router
from index.api.lists.named import answer_list, answer_posted_list, lists_router
from index.api.lists.pages import pages_router
from index.api.lists.recommend import answer, answer_posted, recommend_router
from index.api.lists.rerank import rerank_router
from index.api.lists.similar import similar_router
from index.api.lists.why import why_router
from index.api.liveness import Liveness
from index.api.loaded_model import Background, ModelLoader, Services, follow_log_ends, follow_popularity
from index.api.lookup import state_router
from index.api.metrics import ApiMetrics
from index.api.operations import UserCount, operations_router
from index.api.rankers import Rankers
from index.api.results.router import results_router
from index.api.rules import rules_router
from index.api.schemas.lists import RecommendationsRequest
from index.api.schemas.named_lists import NAMED_LISTS, ListRequest, NamedList
from index.api.schemas.plain import plain_list_request, plain_request
from index.api.schemas.shapes import OPEN_PROBLEMS
from index.api.schemas.state import RootAnswer
from index.api.settings import ApiSettings, KafkaSide
from index.query.counts.popularity import Popularity
from index.query.lists.together import Together
from index.query.lists.trending import Trends
from index.query.shadow import ShadowRanking
from index.state.store import LiveStore, StoreUnavailableError

VERSION = "1"
LISTS, NAMED = "/v1/recommendations", "/v1/lists"
_STATIC = "/docs/static"
_VALIDATION = ("HTTPValidationError", "ValidationError")  # schemas of FastAPI's 422
_DESCRIPTION = "Live recommendations: events go into Kafka, the next answer knows them and says how old that is."
# Off altogether: metrics are our own, and its default would look at the environment.
_NO_TELEMETRY = TelemetryConfig(tracing=False, metrics=False, logs=False, operation_spans=False, auto_configure=False)


def create_app(
    store: LiveStore,  # for Redis with a timeout of 0.1 s and one retry, so that no request hangs
    settings: ApiSettings,
    kafka: KafkaSide,
    metrics: ApiMetrics,  # on a registry of this application's own; `metrics.counters()` is for the heartbeat
    *,
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,  # used where no player's clock is published
    monotonic_ms: Callable[[], float] = lambda: time.monotonic() * 1000,  # the clock of ages
    on_loaded: Callable[[], None] = lambda: None,  # a model's items are loaded and those of the one before let go
) -> FastAPI:
    """The application; `app.state.services` holds its parts, for the process that owns it."""
    liveness = Liveness(store, monotonic_ms)
    background = Background()
    sampled = settings.feature_share > 0 and not settings.showings  # as `Rankers.sample` says
    popularity = Popularity(store, placed=sampled, showings=settings.showings)
    rankers, trends = Rankers(store, settings, popularity), Trends(popularity)
    keeper = ModelLoader(store, liveness, settings, background, rankers, on_loaded)
    turns = AdmissionController(settings.answers)
    shadow = ShadowRanking(lambda: turns.busy, metrics.shadow)
    services = Services(
        store,
        settings,
        kafka,
        metrics,
        liveness,
        keeper,
        popularity,
        trends,
        Together(store),
        rankers,
        turns,
        background,
        shadow,
        wall_ms,
    )
    users = UserCount(store, liveness, settings.users_ms)
    app = DocumentedApp(
        title="perseid",
        version=VERSION,
        description=_DESCRIPTION,
        lifespan=_lifespan(services, users),
        docs_url=None,
        redoc_url=None,
        telemetry=_NO_TELEMETRY,
    )
    app.state.services = services
    install_handlers(app)
    app.add_middleware(PlainListRoute, services=services)  # inside the next one
    app.add_middleware(AdmissionMiddleware, metrics=metrics, in_flight=settings.in_flight, turns=services.turns)
    ingest = Ingest(kafka, lambda: liveness.partitions, services.now_ms, metrics, liveness.items_position)
    for router in (recommend_router, why_router, similar_router, lists_router, pages_router, rerank_router):
        app.include_router(router(services))
    app.include_router(ingest_router(ingest, settings.keys, metrics))
    for router in (state_router, results_router):
        app.include_router(router(services))
    app.include_router(changes_router(services, ingest))
    app.include_router(rules_router(services, ingest))
    app.include_router(operations_router(services, users))
    install_documentation(app)
    return app


def _lifespan(services: Services, users: UserCount) -> Callable[[FastAPI], Any]:
    """Background tasks of a running application."""
    settings = services.settings

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await services.liveness.poll()
        background = services.background
        background.start("liveness", services.liveness.run(settings.poll_ms))
        background.start("index", services.keeper.run())
        background.start("users", users.run())
        background.start("popularity", follow_popularity(services))
        background.start("rankers", services.rankers.run(services.keeper.loaded))
        background.start("log ends", follow_log_ends(services))
        background.start("shadow", services.shadow.run())
        try:
            yield
        finally:
            await background.stop()
            await services.keeper.close()

    return lifespan


class Counted(NamedTuple):
    """What a request is counted as."""

    path_format: str


_PLAIN, _POSTED, _NAMED = Counted(f"{LISTS}/{{user_id}}"), Counted(LISTS), Counted(f"{NAMED}/{{list}}")


class PlainListRoute:
    """ASGI layer that answers requests for a user's or a named list, in a fifth of the framework's time.

    A GET with anything unusual goes on to the framework's route, which judges bad input and missing keys; so does a
    POST with parameters. Bodies are judged by the functions that it calls, too.
    """

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app, self._services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = self._answering(scope, receive)
        if answering is None:
            await self._app(scope, receive, send)
            return
        try:
            response = await answering
        except ProblemError as error:
            response = problem_response(error)
        except StoreUnavailableError as error:
            response = store_away(error)
        await response(scope, receive, send)

    def _answering(self, scope: Scope, receive: Receive) -> Coroutine[Any, Any, Response] | None:
        """What answers the request, None where the framework is to look at it."""
        if scope["type"] != "http" or scope.get("root_path"):
            return None
        path, method, query = scope["path"], scope["method"], scope["query_string"]
        if method == "POST" and path == LISTS and not query and self._may_read(scope):
            scope["route"] = _POSTED
            return answer_posted(self._services, Request(scope, receive))
        if path.startswith(f"{NAMED}/") and self._may_read(scope):
            return self._named(scope, receive, path[len(NAMED) + 1 :])
        if method != "GET" or not path.startswith(f"{LISTS}/") or not self._may_read(scope):
            return None
        request = plain_request(path[len(LISTS) + 1 :], query)
        if request is None:
            return None
        scope["route"] = _PLAIN
        return self._answer(request)

    def _named(self, scope: Scope, receive: Receive, name: str) -> Coroutine[Any, Any, Response] | None:
        """Likewise, of a path of a named list."""
        known = next((one for one in NAMED_LISTS if one == name), None)
        method, query = scope["method"], scope["query_string"]
        if known is None or (query and method == "POST") or method not in ("GET", "POST"):
            return None
        request = plain_list_request(query)
        if request is None:
            return None
        scope["route"] = _NAMED
        if method == "POST":
            return answer_posted_list(self._services, known, Request(scope, receive))
        return self._list(known, request)

    async def _list(self, name: NamedList, request: ListRequest) -> Response:
        return json_response(await answer_list(self._services, name, request))

    async def _answer(self, request: RecommendationsRequest) -> Response:
        return json_response(await answer(self._services, request))

    def _may_read(self, scope: Scope) -> bool:
        keys = self._services.settings.keys
        if not keys:
            return True
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-api-key"]
        return len(given) == 1 and "read" in (scopes_of(given[0], keys) or ())


class DocumentedApp(FastAPI):
    """An application whose OpenAPI document says what it answers."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = _as_answered(super().openapi())
        return self.openapi_schema


def _as_answered(document: dict[str, Any]) -> dict[str, Any]:
    """The document with problem documents as such and without FastAPI's own 422, which is never answered."""
    for path in document["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            responses.pop("422", None)
            for status, response in responses.items():
                if status >= "400":
                    response["content"] = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for name in _VALIDATION:
        document["components"]["schemas"].pop(name, None)
    return document


def install_documentation(app: FastAPI) -> None:
    """Adds `/docs` with its scripts, and `/`, which says where they are."""
    app.mount(_STATIC, StaticFiles(packages=[("fastapi_offline", "static")]))

    async def page(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        return get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title} API",
            swagger_js_url=f"{root}{_STATIC}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{_STATIC}/swagger-ui.css",
            swagger_favicon_url=f"{root}{_STATIC}/favicon.png",
            swagger_ui_parameters={"validatorUrl": None},  # else it would ask a public validator
        )

    app.add_route("/docs", page, include_in_schema=False)
    router = APIRouter(tags=["operations"])
    answer = {"name": app.title, "version": app.version, "documentation": "/docs", "openapi": "/openapi.json"}

    async def root() -> Response:
        """Where the documentation is."""
        return json_response(answer)

    for method, name in (("GET", "get_root"), ("HEAD", "head_root")):
        router.add_api_route(
            "/",
            root,
            methods=[method],
            operation_id=name,
            summary="What this is",
            response_model=RootAnswer,
            responses=OPEN_PROBLEMS,
            dependencies=[Depends(known_parameters)],
        )
    app.include_router(router)
