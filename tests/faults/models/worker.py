"""One worker in a process of its own that writes every model that has an alias, and completes what they lack.

It is put together as `deploy.roles.worker` does, from the same parts. Mutations of `tests.faults.models.mutations` are
applied here.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from deploy.models.open_model import open_model
from deploy.models.registry import artefact, open_registry
from deploy.models.rollout import settle_document
from deploy.models.written import WrittenModels
from deploy.roles.worker import name_champion, publish_models
from deploy.runtime.process import running
from deploy.runtime.producer import EventProducer
from deploy.runtime.state_sizes import engine_settings, keep_window
from index.state.keys import Keys
from streams.kafka.worker import StreamWorker, WorkerSettings
from streams.pipeline.encoders import Encoders
from streams.pipeline.engine import Engine
from streams.pipeline.filler import VectorFiller
from streams.pipeline.intake import KafkaDeadLetterSink
from tests.faults.models.mutations import mutate_filling
from tests.faults.models.toys import settings_of
from tests.faults.mutations import mutated_store
from tests.faults.worker_process import RULES, WorkerOptions, slow_down, tell


def run(options: WorkerOptions) -> None:
    """Entry point of the process."""
    options.files.adopt()
    asyncio.run(_serve(options))


async def _serve(options: WorkerOptions) -> None:
    settings = settings_of(options.files.folder)
    store = mutated_store(options.mutation, options.redis_url, Keys(options.prefix))
    slow_down(store, options)
    mutate_filling(options.mutation)
    producer, sizes = EventProducer(options.access), engine_settings(settings, None)

    async def announce() -> None:
        await store.ensure_cluster(options.partitions, [kind.name for kind in RULES.kinds])
        await keep_window(store, sizes)
        await publish_models(store, settings, sizes.bucket_ms)

    await name_champion(store, settings)
    await announce()
    sink, encoders = KafkaDeadLetterSink(producer.send), Encoders()
    engine = Engine(store, RULES, options.partitions, sink, encoders, sizes, announce)
    written = WrittenModels(
        store,
        engine,
        lambda version: open_model(artefact(settings, version), settings, live=True).thread(),
        settings.cache_mb << 20,
        options.max_batch,
        lambda version: settle_document(store, open_registry(settings), version),
    )
    filler = VectorFiller(engine, options.fill_share)
    reading = WorkerSettings(
        options.access,
        options.group,
        session_s=options.session_s,
        max_batch=options.max_batch,
        max_pending=options.max_pending,
    )
    worker = StreamWorker(engine, reading, written.run, filler.turn)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)

    def report() -> dict[str, Any]:
        return {"models": written.versions, "refused": written.refused, "filling": filler.report()}

    telling = asyncio.create_task(tell(worker, options, report))
    try:
        async with running(store, "worker", report, encoders.release):
            await written.start()
            await worker.run()
    finally:
        telling.cancel()
        await written.close()
        producer.close()
        await store.close()
