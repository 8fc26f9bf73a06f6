"""What the tests of Elasticsearch share: an indexer that runs, and a gate before the server that can be shut or slow.

The server is the run's real one; each test has its own prefix and deletes its indices. It is no test itself.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from elasticsearch import AsyncElasticsearch

from index.elastic.client import open_client, pattern_of
from index.elastic.indexer import ItemIndexer
from index.elastic.settings import ElasticSettings
from index.state.store import LiveStore
from tests.support.index_api_world import until
from tests.support.tcp_proxy import close_server

PATIENCE_S = 30.0  # of a test's own calls, on a machine that does other work too


def settings_of(url: str, prefix: str, **given: object) -> ElasticSettings:
    """Settings for tests: a second for one call, because the cores are shared."""
    return ElasticSettings(url, prefix=prefix, **{"timeout_ms": 1000.0, "refresh_ms": 20.0, "poll_ms": 20.0, **given})  # type: ignore[arg-type]


@asynccontextmanager
async def server(settings: ElasticSettings) -> AsyncIterator[AsyncElasticsearch]:
    """A patient client; in the end all indices of the prefix are deleted."""
    client = open_client(settings, PATIENCE_S)
    try:
        yield client
        # An indexer that was just stopped may have asked for the deletion of some: what is gone is no error.
        found = await client.options(ignore_status=404).indices.get(index=pattern_of(settings.prefix))
        for name in found if "error" not in found else ():
            await client.options(ignore_status=404).indices.delete(index=name)
    finally:
        await client.close()


@asynccontextmanager
async def indexing(
    store: LiveStore, client: AsyncElasticsearch, settings: ElasticSettings
) -> AsyncIterator[ItemIndexer]:
    """An indexer that runs meanwhile."""
    indexer = ItemIndexer(store, client, settings, random.Random(0))
    task = asyncio.create_task(indexer.run())
    try:
        yield indexer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def reached(indexer: ItemIndexer, store: LiveStore) -> None:
    """Waits until the indexer has said that it is at the end of the item log."""
    page = await store.read_log("", 0, 0)

    async def is_there() -> bool:
        return indexer.position is not None and indexer.position >= page.position

    await until(is_there, f"the index is complete up to {page.position}", PATIENCE_S)


class Gate:
    """A TCP way to a server that can be shut (connections end) or made to stall (nothing gets through)."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._open = asyncio.Event()
        self._open.set()
        self._is_shut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Gate:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await close_server(self._server)
        self._end()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def shut(self) -> None:
        """Ends all connections and every new one."""
        self._is_shut = True
        self._end()

    def stall(self) -> None:
        """Takes connections and bytes, and passes nothing on."""
        self._open.clear()

    def open(self) -> None:
        """As before."""
        self._is_shut = False
        self._open.set()

    def _end(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if self._is_shut:
                return
            inner_reader, inner = await asyncio.open_connection(self._host, self._port)
            self._writers.add(inner)
            try:
                await asyncio.gather(self._pump(reader, inner), self._pump(inner_reader, writer))
            finally:
                inner.close()
                self._writers.discard(inner)
        finally:
            writer.close()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
