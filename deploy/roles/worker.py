"""Runs the worker process, which applies consumed topics to the live state and publishes the served model.

Assumes one role per process; torch and Faust are imported when it starts. Nothing here decides what an event does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.runtime import process
from deploy.runtime.producer import EventProducer
from deploy.runtime.state_sizes import engine_settings, keep_window
from deploy.settings import Settings
from index.state.store import LiveStore

if TYPE_CHECKING:
    from streams.pipeline.engine import Engine

# An encode is a hundred short tensor calls, each of which gives up Python's lock: by default a thread that polls Kafka
# may keep it for 5 ms before the next call goes on.
_SWITCH_S = 0.0005


def run_worker(settings: Settings) -> None:
    """Applies the five consumed topics until stopped. Raises ValueError when model, topics or state do not fit."""
    process.log_to_stderr(settings)
    process.limit_threads(settings.threads)
    sys.setswitchinterval(_SWITCH_S)
    process.run_until_done(_worker(settings))


async def _worker(settings: Settings) -> None:
    from deploy.models.open_model import open_model
    from index.items.follower import ItemFollower
    from streams.kafka.worker import StreamWorker, WorkerSettings
    from streams.pipeline.encoders import Encoders
    from streams.pipeline.engine import Engine
    from streams.pipeline.intake import KafkaDeadLetterSink

    model, rules = open_model(settings.model, settings), settings.rules()
    store = process.open_store(settings)
    sizes = engine_settings(settings, model.encoder.model.config)

    async def announce() -> None:
        await store.ensure_cluster(settings.partitions, [kind.name for kind in rules.kinds])
        await keep_window(store, sizes)
        await publish_model(store, settings.model, sizes.bucket_ms)

    await announce()
    encoder = model.thread()
    producer = EventProducer(settings.kafka_config())
    engine = Engine(
        store, rules, settings.partitions, KafkaDeadLetterSink(producer.send), Encoders(encoder), sizes, announce
    )
    follower = ItemFollower(store, model.version, encoder, text_vectors=True)
    options = WorkerSettings(settings.kafka_config(), settings.group)
    worker = StreamWorker(engine, options, follower.run)

    def report() -> dict[str, Any]:
        return {**worker_report(engine), "ready": worker.ready}

    try:
        # At rest nobody is active, so nobody's keys and values are kept: a next event encodes a whole window.
        async with process.running(store, "worker", report, encoder.release):
            process.on_signals(worker.stop)
            await encoder.prepare(options.max_batch)
            await follower.catch_up()  # a window encoded before its items are known would be encoded again
            process.freeze_gc()
            await worker.run()
    finally:
        encoder.close()
        producer.close()
        await store.close()


def worker_report(engine: Engine) -> dict[str, Any]:
    """A worker's share of its heartbeat."""
    stats = next((thread.encoder.stats for thread in engine.encoders), None)
    cache = {} if stats is None else {f"cache_{name}": getattr(stats, name) for name in ("hits", "misses", "evictions")}
    return {"counters": {**engine.counts.as_dict(), **cache}, "freshness_ms": engine.metrics.freshness.percentiles()}


async def publish_model(store: LiveStore, folder: Path, bucket_ms: int) -> str:
    """Writes what API processes need of a model, then names it the served one. Returns its version.

    Raises:
        ValueError: the folder holds no artefact.
    """
    from deploy.models.documents import published

    version, document, weight = published(folder)
    await store.write(store.keys.model(version), {"json": document, "context.weight": weight})
    await store.write(store.keys.cluster(), {"model": version.encode(), "bucket_ms": str(bucket_ms).encode()})
    return version
