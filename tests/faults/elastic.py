"""Elasticsearch under faults: the server, the indexer process that fills it, and the items that it then holds.

One server serves all runs that need it, each with indices of its own; it is started by the first of them.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from deploy.servers.elasticsearch import ElasticsearchServer
from deploy.servers.ports import HOST, is_free
from index.elastic.client import alias_of, open_client, pattern_of
from index.elastic.indexer import ItemIndexer
from index.elastic.settings import ElasticSettings
from index.state.keys import Keys
from index.state.redis_store import RedisStore
from tests.faults.main_thread import in_main_thread
from tests.faults.process_files import ProcessFiles, write_json
from tests.faults.vectors import VERSION
from tests.index.elastic.compare import read_items

_STATUS_S = 0.02
_GONE_S = 10.0
_PATIENCE_S = 30.0  # of one bulk call, as in production
_FIELDS = ("brand", "price", "category", "subclass", "region")


class ElasticHost:
    """An Elasticsearch that can be killed."""

    def __init__(self, server: ElasticsearchServer) -> None:
        self._server = server

    def __enter__(self) -> ElasticHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()

    def settings(self, run: str) -> ElasticSettings:
        """For the indices of one run; starts the server unless it runs."""
        if self._server.pid is None:
            in_main_thread(self._server.start)
        return ElasticSettings(self._server.url, prefix=run)

    def forget(self, settings: ElasticSettings) -> None:
        """Deletes the indices of a run, unless it left the server dead."""

        async def delete() -> None:
            async with open_client(settings, _PATIENCE_S) as client:
                found = await client.indices.get(index=pattern_of(settings.prefix))
                if found:
                    await client.indices.delete(index=list(found))

        if self._server.pid is not None:
            asyncio.run(delete())

    def kill(self) -> None:
        """SIGKILL to launcher and server; waits for the port, since only the launcher's end is seen."""
        self._server.kill()
        deadline = time.monotonic() + _GONE_S
        while not is_free(HOST, self._server.port):
            assert time.monotonic() < deadline, "the killed server still listens"
            time.sleep(_STATUS_S)

    def restart(self) -> None:
        """Starts the killed server on its data; returns when it is healthy."""
        in_main_thread(self._server.start)


@dataclass(frozen=True, slots=True)
class IndexerOptions:
    """What an indexer process needs to know."""

    files: ProcessFiles
    redis_url: str
    prefix: str
    elastic: ElasticSettings


def run(options: IndexerOptions) -> None:
    """Entry point of the process."""
    options.files.adopt()
    asyncio.run(_serve(options))


async def _serve(options: IndexerOptions) -> None:
    store, client = RedisStore(options.redis_url, Keys(options.prefix)), open_client(options.elastic, _PATIENCE_S)
    indexer, stop = ItemIndexer(store, client, options.elastic, random.Random()), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    following = asyncio.create_task(indexer.run())
    try:
        while not stop.is_set():
            write_json(options.files.status, {"position": indexer.position, "counts": dict(indexer.counts)})
            await asyncio.sleep(_STATUS_S)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await client.close()
        await store.close()


def held_items(settings: ElasticSettings, generation: str) -> dict[str, list[Any]]:
    """What Elasticsearch holds of an item log's items: id → [available, tags, further fields]."""

    async def read() -> Mapping[str, Mapping[str, Any]]:
        async with open_client(settings, _PATIENCE_S) as client:
            return await read_items(client, alias_of(settings.prefix, generation, VERSION))

    found = asyncio.run(read())
    return {
        item_id: [body["available"], sorted(body["tags"]), *(body.get(name) or None for name in _FIELDS)]
        for item_id, body in found.items()
        if not body["gone"]
    }


def wanted_items(catalogue: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The same from the oracle's items: id → [record, tags, embedder, …]."""
    wanted = {}
    for item_id, (record, tags, *_) in catalogue.items():
        fields = record or {}
        further = ("brand", "price", "category", "subclass", "regions")
        labels = sorted({*tags, *fields.get("tags", ())})
        wanted[item_id] = [bool(fields.get("available")), labels, *(fields.get(name) or None for name in further)]
    return wanted
