"""Runs the indexer process, which keeps Elasticsearch at the item log. Several at once do no harm.

Only where a deployment has an Elasticsearch; nothing else waits for this process, and an API process whose index is
missing or behind answers by itself. Neither torch nor Faust is loaded here.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from deploy.runtime.process import log_to_stderr, on_signals, open_store, running
from deploy.settings import Settings
from index.elastic.settings import ElasticSettings
from index.state.tasks import end_tasks

_PATIENCE_S = 30.0  # of one bulk call or refresh: a server that merges answers late, and nobody waits for it


def elastic_settings(settings: Settings) -> ElasticSettings | None:
    """How this deployment uses Elasticsearch; None when it has none."""
    url = settings.elasticsearch.get_secret_value()
    if not url:
        return None
    return ElasticSettings(
        url,
        api_key=settings.elasticsearch_api_key.get_secret_value(),
        ca=settings.elasticsearch_ca,
        use=settings.elasticsearch_use,
        prefix=settings.prefix,
        timeout_ms=settings.elasticsearch_timeout_ms,
        refresh_ms=settings.elasticsearch_refresh_ms,
        shards=settings.elasticsearch_shards,
        replicas=settings.elasticsearch_replicas,
        held_mb=settings.elasticsearch_held_mb,
    )


def run_indexer(settings: Settings) -> None:
    """Indexes until stopped. Raises ValueError when no Elasticsearch is configured."""
    elastic = elastic_settings(settings)
    if elastic is None:
        raise ValueError("no Elasticsearch is configured; set PERSEID_ELASTICSEARCH to its address")
    log_to_stderr(settings)
    asyncio.run(_indexer(settings, elastic))


async def _indexer(settings: Settings, elastic: ElasticSettings) -> None:
    from index.elastic.client import open_client
    from index.elastic.indexer import ItemIndexer

    store, client, stop = open_store(settings), open_client(elastic, _PATIENCE_S), asyncio.Event()
    # Only for the pauses between attempts, which are to differ from process to process.
    indexer = ItemIndexer(store, client, elastic, random.Random())

    def describe() -> dict[str, Any]:
        return {"counters": dict(indexer.counts), "position": indexer.position}

    try:
        async with running(store, "indexer", describe):
            on_signals(stop.set)
            following = asyncio.create_task(indexer.run())
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait((following, stopped), return_when=asyncio.FIRST_COMPLETED)
            await end_tasks([following])
            await asyncio.gather(following, return_exceptions=stop.is_set())
    finally:
        await client.close()
        await store.close()
