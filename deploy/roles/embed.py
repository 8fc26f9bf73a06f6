"""Runs the embed process, which turns catalogue texts into item vectors on the `item-vectors` topic.

It tags items as the champion among the models wants them, and begins anew when another one is promoted.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from deploy.models.registry import artefact, first_aliases
from deploy.runtime.process import log_to_stderr, on_signals, open_store, running, until_answered
from deploy.runtime.producer import EventProducer
from deploy.settings import Settings
from encoder.model.document import read_document
from index.state.aliases import read_aliases
from index.state.store import LiveStore, StoreUnavailableError

_LOOK_S = 2.0  # between two looks at which model is the champion

log = logging.getLogger(__name__)


def run_embed(settings: Settings) -> None:
    """Turns catalogue texts into item vectors until stopped. Raises ValueError when the model does not fit."""
    log_to_stderr(settings)
    asyncio.run(_embed(settings))


async def _embed(settings: Settings) -> None:
    store, stop = open_store(settings), asyncio.Event()
    try:
        on_signals(stop.set)
        while not stop.is_set():
            aliases = await until_answered("see which model is served", lambda: read_aliases(store))
            champion = aliases.champion or first_aliases(settings).champion
            await _embed_for(champion, store, settings, stop)
    finally:
        await store.close()


async def _embed_for(champion: str, store: LiveStore, settings: Settings, stop: asyncio.Event) -> None:
    """Embeds until `stop` or until another model is the champion."""
    from deploy.texts.models import TextSource
    from streams.embedding import EmbeddingService
    from streams.kafka.catalog_consumer import KafkaCatalog

    document, source = read_document(artefact(settings, champion)), TextSource(settings)
    model = source.model(document)
    producer, done = EventProducer(settings.kafka_config()), asyncio.Event()
    role = EmbeddingService(store, settings.rules(), model, source.memory, producer.send)
    # A group for each model: a new one brings other vectors or tags, so it begins with the whole catalogue.
    catalog = KafkaCatalog(settings.kafka_config(), f"{settings.group}-embed-{champion}")

    def report() -> dict[str, Any]:
        return {"counters": {**role.report(), **model.counts}, "position": role.read_to, "model": champion}

    async def watch() -> None:
        while not stop.is_set() and not await _is_another(champion, store):
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _LOOK_S)
        done.set()
        model.close()  # whatever waits for an endpoint ends, too

    watching = asyncio.create_task(watch())
    try:
        async with running(store, "embed", report):
            await role.run(catalog, done)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        source.close()
        producer.close()


async def _is_another(champion: str, store: LiveStore) -> bool:
    try:
        found = (await read_aliases(store)).champion
    except StoreUnavailableError:
        return False
    if found in ("", champion):
        return False
    log.info("model %s is the champion now: the catalogue is looked through for it", found)
    return True
