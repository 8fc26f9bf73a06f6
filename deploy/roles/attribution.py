"""Runs the attribution process, which joins clicks and purchases to the lists they came from.

It reads in a consumer group of its own and writes keys of its own, so workers and API never wait for it. Loads Faust,
no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from context.units import MINUTE_MS
from deploy.runtime import process
from deploy.runtime.producer import EventProducer
from deploy.settings import Settings
from index.results.cells import RECOMMENDED

_FETCH_WAIT_MS = 500  # nobody waits for a result within milliseconds, and an idle process costs next to nothing


def run_attribution(settings: Settings) -> None:
    """Joins until stopped. Raises ValueError when topics do not fit, or no window is set."""
    if not settings.attribution_min:
        raise ValueError("PERSEID_ATTRIBUTION_MIN is 0: set the minutes after a list in which a click belongs to it")
    process.log_to_stderr(settings)
    process.run_until_done(_attribution(settings))


def _results(results: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    """By the name of a list, then by measure."""
    named: dict[str, dict[str, int]] = {}
    for (name, measure), count in results.items():
        named.setdefault(name or RECOMMENDED, {})[measure] = count
    return named


async def _attribution(settings: Settings) -> None:
    from streams.attribution.engine import AttributionEngine
    from streams.attribution.joining import JoinRules
    from streams.kafka.worker import StreamWorker, WorkerSettings
    from streams.pipeline.intake import KafkaDeadLetterSink

    store, producer = process.open_store(settings), EventProducer(settings.kafka_config())
    join = JoinRules(window_ms=settings.attribution_min * MINUTE_MS)
    sink = KafkaDeadLetterSink(producer.send)
    engine = AttributionEngine(store, settings.rules(), settings.partitions, sink, join)
    group = f"{settings.group}-attribution"
    worker = StreamWorker(engine, WorkerSettings(settings.kafka_config(), group, fetch_wait_ms=_FETCH_WAIT_MS))

    def report() -> dict[str, Any]:
        # Not as `counters`: those of all processes are added up, and workers apply the same records.
        counts = {**engine.counts.as_dict(), **engine.outcomes}
        return {"attribution": counts, "results": _results(engine.results), "ready": worker.ready}

    try:
        async with process.running(store, "attribution", report):
            process.on_signals(worker.stop)
            process.freeze_gc()
            await worker.run()
    finally:
        producer.close()
        await store.close()
