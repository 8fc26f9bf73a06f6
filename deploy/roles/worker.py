"""Runs the worker process, which applies consumed topics to the live state under every model that has an alias.

Assumes one role per process; torch and Faust are imported when it starts. Nothing here decides what an event does.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.models.documents import write_document, write_ranker
from deploy.models.registry import artefact, first_aliases, open_registry
from deploy.models.rollout import settle_document
from deploy.runtime import process
from deploy.runtime.producer import EventProducer
from deploy.runtime.state_sizes import engine_settings, keep_window
from deploy.settings import Settings
from encoder.model.document import DOCUMENT, read_document
from index.state.aliases import Aliases, change_aliases, read_aliases
from index.state.store import LiveStore

if TYPE_CHECKING:
    from streams.pipeline.engine import Engine

# An encode is a hundred short tensor calls, each of which gives up Python's lock: by default a thread that polls Kafka
# may keep it for 5 ms before the next call goes on.
_SWITCH_S = 0.0005

log = logging.getLogger(__name__)


def run_worker(settings: Settings) -> None:
    """Applies the five consumed topics until stopped. Raises ValueError when model, topics or state do not fit."""
    process.log_to_stderr(settings)
    process.limit_threads(settings.threads)
    sys.setswitchinterval(_SWITCH_S)
    process.run_until_done(_worker(settings))


async def _worker(settings: Settings) -> None:
    from deploy.models.open_model import open_model
    from deploy.models.written import WrittenModels
    from encoder.model.config import ModelConfig
    from streams.kafka.worker import StreamWorker, WorkerSettings
    from streams.pipeline.encoders import Encoders
    from streams.pipeline.engine import Engine
    from streams.pipeline.filler import VectorFiller
    from streams.pipeline.intake import KafkaDeadLetterSink

    rules, store = settings.rules(), process.open_store(settings)
    aliases = await process.until_answered("see which model is served", lambda: name_champion(store, settings))
    champion = read_document(written_artefact(settings, aliases.champion))
    sizes = engine_settings(settings, ModelConfig.from_dict(champion["config"]))

    async def announce() -> None:
        await store.ensure_cluster(settings.partitions, [kind.name for kind in rules.kinds])
        await keep_window(store, sizes)
        await publish_models(store, settings, sizes.bucket_ms)

    await process.until_answered("publish the model", announce)
    producer = EventProducer(settings.kafka_config())
    engine = Engine(store, rules, settings.partitions, KafkaDeadLetterSink(producer.send), Encoders(), sizes, announce)
    options = WorkerSettings(settings.kafka_config(), settings.group)
    written = WrittenModels(
        store,
        engine,
        lambda version: open_model(artefact(settings, version), settings, live=True).thread(),
        settings.cache_mb * 1024 * 1024,
        options.max_batch,
        lambda version: settle_document(store, open_registry(settings), version),
        process.settle,
    )
    filler = VectorFiller(engine, settings.fill_share)
    worker = StreamWorker(engine, options, written.run, filler.turn)

    def report() -> dict[str, Any]:
        models = {"models": written.versions, "refused": written.refused, "filling": filler.report()}
        return {**worker_report(engine), "ready": worker.ready, **models}

    try:
        # At rest nobody is active, so nobody's keys and values are kept: a next event encodes a whole window.
        async with process.running(store, "worker", report, engine.encoders.release):
            process.on_signals(worker.stop)
            await process.until_answered("read the items", written.start)
            process.freeze_gc()
            await worker.run()
    finally:
        await written.close()
        producer.close()
        await store.close()


def written_artefact(settings: Settings, champion: str) -> Path:
    """The artefact of the champion. Raises ValueError that says what to do when this worker has none."""
    try:
        return artefact(settings, champion)
    except ValueError as error:
        raise ValueError(
            f"this deployment serves model {champion}, which this worker cannot write: {error}. What is served is "
            "changed by `perseid models stage` and `promote`, never by a worker that starts"
        ) from error


async def name_champion(store: LiveStore, settings: Settings) -> Aliases:
    """The aliases of the live state; one that has none gets those to begin with.

    Raises ValueError when there is no model to begin with, StoreUnavailableError.
    """
    aliases = await read_aliases(store)
    if not aliases.champion:
        await change_aliases(store, aliases, first_aliases(settings))
        aliases = await read_aliases(store)  # another process may have been first
        _note_named(settings, aliases.champion)
    return aliases


def _note_named(settings: Settings, champion: str) -> None:
    if (settings.model / DOCUMENT).is_file() and read_document(settings.model)["version"] == champion:
        try:
            open_registry(settings).note_named(champion)
        except OSError as error:
            log.warning("the registry does not take a note of the model that this deployment began with: %s", error)


def worker_report(engine: Engine) -> dict[str, Any]:
    """A worker's share of its heartbeat."""
    stats = next((thread.encoder.stats for thread in engine.encoders), None)
    cache = {} if stats is None else {f"cache_{name}": getattr(stats, name) for name in ("hits", "misses", "evictions")}
    return {"counters": {**engine.counts.as_dict(), **cache}, "freshness_ms": engine.metrics.freshness.percentiles()}


async def publish_models(store: LiveStore, settings: Settings, bucket_ms: int) -> None:
    """Writes what API processes need of the models that have an alias, and how wide popularity buckets are."""
    published = (await name_champion(store, settings)).versions
    for version in published:
        try:
            await write_document(store, artefact(settings, version))
        except (ValueError, OSError) as error:
            log.warning("model %s is not published: %s", version, error)
            continue
        try:
            if ranker := open_registry(settings).ranker(version):
                await write_ranker(store, version, ranker)
        except (ValueError, OSError) as error:  # a registry that is away: the live state keeps the ranker it has
            log.warning("the ranker of %s is not published: %s", version, error)
    for version in set(published) - set((await read_aliases(store)).versions):
        await settle_document(store, open_registry(settings), version)  # it lost its alias meanwhile
    await store.write(store.keys.cluster(), {"bucket_ms": str(bucket_ms).encode()})
