"""Runs the embed process, which turns catalogue texts into item vectors on the `item-vectors` topic."""

from __future__ import annotations

import asyncio
from typing import Any

from deploy.runtime.process import log_to_stderr, on_signals, open_store, running
from deploy.runtime.producer import EventProducer
from deploy.settings import Settings
from encoder.model.document import read_document


def run_embed(settings: Settings) -> None:
    """Turns catalogue texts into item vectors until stopped. Raises ValueError when the model does not fit."""
    log_to_stderr(settings)
    asyncio.run(_embed(settings))


async def _embed(settings: Settings) -> None:
    from deploy.texts.models import TextSource
    from streams.embedding import EmbeddingService
    from streams.kafka.catalog_consumer import KafkaCatalog

    document, source = read_document(settings.model), TextSource(settings)
    model = source.model(document)
    store, producer, stop = open_store(settings), EventProducer(settings.kafka_config()), asyncio.Event()
    role = EmbeddingService(store, settings.rules(), model, source.memory, producer.send)
    # A group for each model: a new one brings other vectors or tags, so it begins with the whole catalogue.
    catalog = KafkaCatalog(settings.kafka_config(), f"{settings.group}-embed-{document['version']}")

    def report() -> dict[str, Any]:
        return {"counters": {**role.report(), **model.counts}, "position": role.read_to}

    def end() -> None:
        stop.set()
        model.close()  # whatever waits for an endpoint ends, too

    try:
        async with running(store, "embed", report):
            on_signals(end)
            await role.run(catalog, stop)
    finally:
        source.close()
        producer.close()
        await store.close()
