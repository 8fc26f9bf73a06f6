"""Assembles the HTTP query API as one application, with its background tasks.

All parts are passed in, Kafka as injected functions. Assumes an ASGI server that runs the application's lifespan. Reads
no environment and starts no process. Every error is a problem document, every answer says how old its knowledge is.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from index.api.admission import AdmissionController, AdmissionMiddleware
from index.api.errors import install_handlers
from index.api.ingest import Ingest, ingest_router
from index.api.liveness import Liveness
from index.api.loaded_model import Background, ModelLoader, Services, follow_popularity
from index.api.lookup import state_router
from index.api.metrics import ApiMetrics
from index.api.operations import UserCount, operations_router
from index.api.recommend import recommend_router
from index.api.settings import ApiSettings, KafkaSide
from index.query.popularity import Popularity
from index.state.store import LiveStore

VERSION = "1"
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
    keeper = ModelLoader(store, liveness, settings, background, on_loaded)
    popularity = Popularity(store)
    turns = AdmissionController(settings.answers)
    services = Services(store, settings, kafka, metrics, liveness, keeper, popularity, turns, background, wall_ms)
    users = UserCount(store, liveness, settings.users_ms)
    app = FastAPI(
        title="perseid",
        version=VERSION,
        description=_DESCRIPTION,
        lifespan=_lifespan(services, users),
        redoc_url=None,
        telemetry=_NO_TELEMETRY,
    )
    app.state.services = services
    install_handlers(app)
    app.add_middleware(AdmissionMiddleware, metrics=metrics, in_flight=settings.in_flight, turns=services.turns)
    ingest = Ingest(kafka, lambda: liveness.partitions, services.now_ms, metrics)
    app.include_router(recommend_router(services))
    app.include_router(ingest_router(ingest, settings.keys, metrics))
    app.include_router(state_router(services))
    app.include_router(operations_router(services, users))
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
        try:
            yield
        finally:
            await background.stop()
            await services.keeper.close()

    return lifespan
