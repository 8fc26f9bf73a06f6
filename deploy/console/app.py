"""Assembles the console as one application with its background tasks, screens and static files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from deploy.console.pages import Console, console_of, problem, reads
from deploy.console.screens import (
    ask,
    catalogue,
    context,
    dead_letters,
    events,
    item,
    models,
    now,
    results,
    rules,
    sign_in,
    start,
    user,
    why,
)
from deploy.console.security import HEALTH, GuardMiddleware
from deploy.console.streams import StreamSlots
from index.state.tasks import end_tasks

_SCREENS = (start, now, events, ask, why, user, item, catalogue, context, rules, dead_letters, models, results, sign_in)


def create_console(console: Console, hosts: Sequence[str] = ()) -> Starlette:
    """The application; `hosts` are names by which browsers reach it, beside those of this machine."""
    routes = [route for screen in _SCREENS for route in screen.ROUTES]
    app = Starlette(
        routes=[
            *routes,
            Route("/pulse", _pulse),
            Route(HEALTH, _health),
            Mount("/static", _Static(packages=[("deploy.console", "static")])),
        ],
        middleware=[Middleware(GuardMiddleware, hosts=hosts)],
        exception_handlers={HTTPException: _no_page},
        lifespan=_lifespan,
    )
    app.state.console, app.state.streams = console, StreamSlots()
    return app


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    console: Console = app.state.console
    await console.history.look()  # whether the API is open has to be known before the first page
    console.feed.start()
    tasks = [asyncio.create_task(console.history.run()), asyncio.create_task(console.items.run())]
    try:
        yield
    finally:
        await end_tasks(tasks)
        await asyncio.to_thread(console.feed.stop)
        await console.api.close()


class _Static(StaticFiles):
    """Static files that browsers ask about again: an upgrade is seen at once."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["cache-control"] = "no-cache"
        return response


@reads
async def _pulse(request: Request) -> Response:
    """The newest numbers, once a second."""
    history, sent = console_of(request).history, 0

    def look() -> tuple[str, object, int] | None:
        nonlocal sent
        if history.number == sent:
            return None
        sent = history.number
        return "point", history.last(), sent

    streams: StreamSlots = request.app.state.streams
    return streams.response(request, look)


async def _health(_: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _no_page(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 405:
        return problem(request, 405, "Not this way", "This address takes forms of the console alone.")
    return problem(request, status, "No such page", "There is nothing at this address.")
