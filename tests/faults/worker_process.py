"""One worker in a process of its own, as small as it can be: the engine, the stream worker, and a status file.

Runs below a fork server that has the imports already, so that a killed worker's successor starts at once. Mutations
(`tests.faults.mutations`) are applied here and nowhere else. It does not know which fault it is part of.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy.runtime import process
from deploy.runtime.producer import EventProducer
from index.items.follower import ItemFollower
from index.state.keys import Keys
from index.state.redis_store import RedisStore
from index.state.store import Commit
from streams.attribution.engine import AttributionEngine
from streams.attribution.joining import JoinRules
from streams.events import Rules
from streams.kafka.config import KafkaConfig
from streams.kafka.worker import StreamWorker, WorkerSettings
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.encoders import Encoders
from streams.pipeline.engine import Engine
from streams.pipeline.intake import KafkaDeadLetterSink
from tests.faults.mutations import mutate_worker, mutated_store
from tests.faults.process_files import ProcessFiles, write_json
from tests.faults.vectors import VERSION, new_encoder, publish

RULES = Rules(embedders={"toy": 4}, showings=True)
# A window of the traffic's time, in which a run takes days; a third of its events are one user's.
JOIN = JoinRules(window_ms=6 * 3_600_000, max_lists=100_000, max_actions=100_000)
_BATCH, _PENDING = 2048, 4096  # as in production, unless a run is dragged
SELDOM_S = 0.1  # where more processes than usual share the cores
STATUS_S = 0.02  # how often the status file is renewed; a case that waits for it polls at the same pace


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker needs to know; `mutation` names one of `tests.faults.mutations`, "" is the real thing."""

    files: ProcessFiles
    access: KafkaConfig
    group: str
    redis_url: str
    prefix: str
    partitions: int
    session_s: float
    mutation: str = ""
    encode: bool = False
    attribution: bool = False  # it joins clicks to lists, too
    models: bool = False  # it follows the models' aliases; the registry lies beside its files
    fill_share: float = 0.0  # of its time for completing vectors
    max_batch: int = _BATCH
    max_pending: int = _PENDING
    write_delay_s: float = 0.0  # a slow store makes a backlog last as long as a fault needs, until `hurry` exists

    @property
    def hurry(self) -> Path:
        return self.files.folder / "hurry"


def run(options: WorkerOptions) -> None:
    """Entry point of the process."""
    options.files.adopt()
    asyncio.run(_serve(options))


async def _serve(options: WorkerOptions) -> None:
    store = mutated_store(options.mutation, options.redis_url, Keys(options.prefix))
    slow_down(store, options)
    producer = EventProducer(options.access)
    encoder = EncoderThread(new_encoder(), VERSION) if options.encode else None
    follower = None if encoder is None else ItemFollower(store, VERSION, encoder, text_vectors=True)

    async def announce() -> None:
        await store.ensure_cluster(options.partitions, [kind.name for kind in RULES.kinds])
        await publish(store)

    encoders = Encoders(*([] if encoder is None else [encoder]))
    engine = Engine(store, RULES, options.partitions, KafkaDeadLetterSink(producer.send), encoders, announce=announce)
    settings = WorkerSettings(
        options.access,
        options.group,
        session_s=options.session_s,
        max_batch=options.max_batch,
        max_pending=options.max_pending,
    )
    worker = StreamWorker(engine, settings, None if follower is None else follower.run)
    mutate_worker(options.mutation, worker)
    joining = _joining(store, producer, options, settings) if options.attribution else None

    def stop() -> None:
        for running in (worker, joining):
            if running is not None:
                running.stop()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    telling = asyncio.create_task(tell(worker, options))
    try:
        if follower is not None:
            await follower.catch_up()
        process.freeze_gc()  # as the role
        await asyncio.gather(worker.run(), *([] if joining is None else [joining.run()]))
    finally:
        telling.cancel()
        if encoder is not None:
            encoder.close()
        await store.close()
        producer.close()


def _joining(
    store: RedisStore, producer: EventProducer, options: WorkerOptions, settings: WorkerSettings
) -> StreamWorker:
    """What an attribution process runs; here beside the worker, so that both die at once."""
    sink = KafkaDeadLetterSink(producer.send)
    engine = AttributionEngine(store, RULES, options.partitions, sink, JOIN)
    return StreamWorker(engine, replace(settings, group=f"{options.group}-attribution"))


def slow_down(store: RedisStore, options: WorkerOptions) -> None:
    commit = store.commit

    async def slow(commits: Sequence[Commit]) -> None:
        if not _told(options.hurry):
            await asyncio.sleep(options.write_delay_s)
        await commit(commits)

    if options.write_delay_s:
        store.commit = slow  # type: ignore[method-assign]


async def tell(worker: StreamWorker, options: WorkerOptions, more: Callable[[], Mapping[str, Any]] = dict) -> None:
    """Says which tags are claimed and settled, the counters, and what else there is."""
    while True:
        if _told(options.hurry):
            worker.settings = replace(worker.settings, max_batch=_BATCH)
            for lane in worker.lanes:
                lane.max_pending = _PENDING
        tags = sorted(set(worker.engine.leases) - worker.claims.unsettled)
        write_json(options.files.status, {"tags": tags, "counts": worker.engine.counts.as_dict(), **more()})
        await asyncio.sleep(SELDOM_S if options.models else STATUS_S)


def _told(hurry: Path) -> bool:
    """Whether the harness wants no more drag."""
    return hurry.exists()
