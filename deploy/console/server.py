"""Runs the console process, the application of `deploy.console.app` under uvicorn.

One event loop, and a thread that reads Kafka. Neither torch nor Faust is loaded here.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import uvicorn
import uvloop
from starlette.applications import Starlette

from deploy.console.api_client import ApiClient
from deploy.console.app import create_console
from deploy.console.catalogue import ItemMirror
from deploy.console.feed import RecordFeed
from deploy.console.history import StatusHistory
from deploy.console.pages import Console
from deploy.models.registry import open_registry
from deploy.models.rollout import Rollout
from deploy.runtime.process import log_to_stderr, open_store, running
from deploy.settings import Settings
from index.state.store import LiveStore

_EVERYWHERE = ("0.0.0.0", "::", "")  # addresses to listen on that no browser asks for
_SHUTDOWN_S = 2  # pages under way may end within this


def run_console(settings: Settings) -> None:
    """Shows pages until SIGTERM or SIGINT. Raises OSError when the port is taken."""
    log_to_stderr(settings)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else it tells of every call
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


class ConsoleServer(uvicorn.Server):
    """A server that ends its streams before it waits for requests to end."""

    async def shutdown(self, sockets: Any = None) -> None:
        app: Any = self.config.app
        app.state.streams.end()
        await super().shutdown(sockets)


async def _serve(settings: Settings) -> None:
    store = open_store(settings)
    app = open_console(settings, store)
    console: Console = app.state.console
    config = uvicorn.Config(
        app,
        host=settings.console_host,
        port=settings.console_port,
        log_config=None,  # ours, set up above
        access_log=False,
        timeout_graceful_shutdown=_SHUTDOWN_S,
        server_header=False,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)

    def report() -> dict[str, Any]:
        feed = console.feed
        return {"counters": {"records_seen": feed.number, "records_skipped": feed.skipped}, "items": len(console.items)}

    try:
        async with running(store, "console", report):
            await ConsoleServer(config).serve()
    finally:
        await store.close()


def open_console(settings: Settings, store: LiveStore) -> Starlette:
    """The application of a deployment."""
    api = ApiClient(api_address(settings), settings.console_api_key.get_secret_value())
    kafka, rules = settings.kafka_config(), settings.rules()
    console = Console(
        api=api,
        feed=RecordFeed(kafka),
        history=StatusHistory(api),
        items=ItemMirror(store),
        store=store,
        kafka=kafka,
        rollouts=lambda: Rollout(store, open_registry(settings), embedders=rules.embedders),
        kinds=tuple(kind.name for kind in rules.kinds),
    )
    hosts = [name.strip() for name in settings.console_hosts.split(",") if name.strip()]
    if settings.console_host not in _EVERYWHERE:
        hosts.append(settings.console_host)
    return create_console(console, hosts)


def api_address(settings: Settings) -> str:
    """Where the API is: as the settings say, or on this machine."""
    if settings.console_api:
        return settings.console_api
    host = "127.0.0.1" if settings.api_host in _EVERYWHERE else settings.api_host
    return f"http://{host}:{settings.api_port}"
