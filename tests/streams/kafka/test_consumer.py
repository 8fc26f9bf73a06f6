"""Fetches that are kept apart: fewer of them under load, and every record in order."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiokafka
import pytest
from confluent_kafka import Producer

from deploy.servers.topics import create_topics
from streams.events import CLICKSTREAM
from streams.kafka.config import KafkaConfig
from streams.kafka.consumer import pace

RECORDS, GAP_S = 400, 0.001


def fetches_for(access: KafkaConfig, every_s: float | None) -> tuple[int, float, list[bytes]]:
    """Fetches that a consumer sends while records come one by one, the seconds it took, and the records."""
    topic = access.topic(CLICKSTREAM)

    async def run() -> tuple[int, float, list[bytes]]:
        consumer = aiokafka.AIOKafkaConsumer(fetch_max_wait_ms=10, **access.aiokafka())
        await consumer.start()
        sent = 0
        try:
            fetcher: Any = consumer._fetcher
            send = fetcher._proc_fetch_request

            async def counted(*arguments: Any) -> Any:
                nonlocal sent
                sent += 1
                return await send(*arguments)

            fetcher._proc_fetch_request = counted
            if every_s is not None:
                pace(fetcher, every_s)
            tp = aiokafka.TopicPartition(topic, 0)
            consumer.assign([tp])
            await consumer.seek_to_end(tp)
            await consumer.position(tp)
            producing = asyncio.get_running_loop().run_in_executor(None, produce, access, topic)
            values: list[bytes] = []
            sent, began = 0, time.monotonic()
            while len(values) < RECORDS:
                for records in (await consumer.getmany(timeout_ms=1000)).values():
                    values += [record.value for record in records]
            took_s = time.monotonic() - began
            await producing
            return sent, took_s, values
        finally:
            await consumer.stop()

    return asyncio.run(run())


def produce(access: KafkaConfig, topic: str) -> None:
    producer = Producer({"bootstrap.servers": access.bootstrap, "linger.ms": 0})
    for n in range(RECORDS):
        producer.produce(topic, b"%d" % n, partition=0)
        producer.poll(0)
        time.sleep(GAP_S)
    assert producer.flush(10) == 0


def test_records_come_in_fewer_fetches_and_all_of_them_in_order(kafka_config: KafkaConfig) -> None:
    create_topics(kafka_config, 1)
    expected = [b"%d" % n for n in range(RECORDS)]
    _, _, values = fetches_for(kafka_config, None)
    assert values == expected
    paced, paced_s, values = fetches_for(kafka_config, 0.05)
    assert values == expected
    assert paced <= paced_s / 0.05 + 2, (paced, paced_s)  # a bound in time: a busy machine takes longer


class Asked:
    """What aiokafka's fetcher is to `pace`."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def _get_actions_per_node(self, _: Any) -> Any:
        return self.answers.pop(0)


def test_only_a_fetch_that_follows_another_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    nothing: Any
    fetch: Any
    nothing, fetch = ([], {}, 9.0, False, []), ([(0, "request")], {}, 9.0, False, [])
    fetcher = Asked(nothing, fetch, fetch)
    pace(fetcher, 0.5)
    assert fetcher._get_actions_per_node(None) == nothing  # nothing was sent, so nothing has to wait
    assert fetcher._get_actions_per_node(None) == fetch
    now[0] += 0.25
    assert fetcher._get_actions_per_node(None) == ([], {}, 0.25, False, [])  # asked again when it is due
    now[0] += 0.25
    assert fetcher._get_actions_per_node(None) == fetch
