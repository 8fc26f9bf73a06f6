"""The embed role's reader of the catalogue beside a thread that is still in a call."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from deploy.servers.mock_kafka import Broker, topic_partitions
from streams.kafka.catalog_consumer import KafkaCatalog
from streams.kafka.config import KafkaConfig


@pytest.mark.servers
def test_a_catalogue_is_not_closed_under_a_call(tmp_path: Path) -> None:
    async def scenario(address: str) -> None:
        catalog = KafkaCatalog(KafkaConfig(address), "embed")
        taking = asyncio.create_task(catalog.take(1))
        await asyncio.sleep(0.02)
        taking.cancel()  # the call goes on in its thread
        began = time.monotonic()
        await catalog.close()
        assert time.monotonic() - began > 0.1, "a look takes 0.25 s"
        assert await catalog.take(1) == []
        await catalog.commit(1)

    broker = Broker(topic_partitions(1), tmp_path / "broker.log")
    try:
        asyncio.run(scenario(broker.start()))
    finally:
        broker.stop()
