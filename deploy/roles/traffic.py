"""Runs the traffic process, which sends what a traffic plan says."""

from __future__ import annotations

import asyncio
from pathlib import Path

from deploy.runtime.process import log_to_stderr, on_signals, open_store, running
from deploy.runtime.producer import EventProducer
from deploy.settings import Settings


def run_traffic(settings: Settings, plan_file: Path) -> None:
    """Sends what a traffic plan says until stopped."""
    log_to_stderr(settings)
    asyncio.run(_traffic(settings, plan_file))


async def _traffic(settings: Settings, plan_file: Path) -> None:
    from deploy.texts.models import known_vectors
    from deploy.traffic.plan import TrafficPlan
    from deploy.traffic.traffic import Traffic

    plan = TrafficPlan.read(plan_file)
    store, producer, stop = open_store(settings), EventProducer(settings.kafka_config()), asyncio.Event()
    traffic = Traffic(plan, settings, store, producer, lambda folder: known_vectors(folder, plan, settings))
    try:
        async with running(store, "traffic", traffic.counters):
            on_signals(stop.set)
            await traffic.run(stop)
    finally:
        producer.close()
        await store.close()
