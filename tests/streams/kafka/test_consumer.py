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
from streams.kafka.consumer import hold, pace

RECORDS, GAP_S = 400, 0.001


def counted(fetcher: Any) -> list[Any]:
    """The requests that an aiokafka fetcher sends from now on."""
    send, sent = fetcher._proc_fetch_request, list[Any]()

    async def counting(assignment: Any, node_id: int, request: Any) -> Any:
        sent.append(request)
        return await send(assignment, node_id, request)

    fetcher._proc_fetch_request = counting
    return sent


def fetches_for(access: KafkaConfig, every_s: float | None) -> tuple[int, float, list[bytes]]:
    """Fetches that a consumer sends while records come one by one, the seconds it took, and the records."""
    topic = access.topic(CLICKSTREAM)

    async def run() -> tuple[int, float, list[bytes]]:
        consumer = aiokafka.AIOKafkaConsumer(fetch_max_wait_ms=10, **access.aiokafka())
        await consumer.start()
        try:
            fetcher: Any = consumer._fetcher
            sent = counted(fetcher)
            if every_s is not None:
                pace(fetcher, every_s)
            tp = aiokafka.TopicPartition(topic, 0)
            consumer.assign([tp])
            await consumer.seek_to_end(tp)
            await consumer.position(tp)
            producing = asyncio.get_running_loop().run_in_executor(None, produce, access, topic)
            values: list[bytes] = []
            sent.clear()
            began = time.monotonic()
            while len(values) < RECORDS:
                for records in (await consumer.getmany(timeout_ms=1000)).values():
                    values += [record.value for record in records]
            took_s = time.monotonic() - began
            await producing
            return len(sent), took_s, values
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


def test_an_idle_consumer_asks_seldom_and_a_record_does_not_wait_for_that(kafka_config: KafkaConfig) -> None:
    create_topics(kafka_config, 2)
    topic = kafka_config.topic(CLICKSTREAM)

    async def run() -> tuple[int, float]:
        consumer = aiokafka.AIOKafkaConsumer(fetch_max_wait_ms=10, **kafka_config.aiokafka())
        await consumer.start()
        try:
            fetcher: Any = consumer._fetcher
            sent = counted(fetcher)
            hold(fetcher, 2_000)
            consumer.assign([aiokafka.TopicPartition(topic, number) for number in range(2)])
            await consumer.seek_to_end()
            await consumer.getmany(timeout_ms=500)
            before = len(sent)
            assert await consumer.getmany(timeout_ms=1_000) == {}
            asked = len(sent) - before
            producer = Producer({"bootstrap.servers": kafka_config.bootstrap, "linger.ms": 0})
            producer.produce(topic, b"1", partition=1)
            assert await asyncio.to_thread(producer.flush, 10) == 0
            began = time.monotonic()
            [records] = (await consumer.getmany(timeout_ms=5_000)).values()
            assert [record.value for record in records] == [b"1"]
            return asked, time.monotonic() - began
        finally:
            await consumer.stop()

    asked, took_s = asyncio.run(run())
    assert asked <= 1, asked  # without `hold` it is about a hundred
    assert took_s < 1.0, took_s  # of the two seconds that the fetch may be held


def test_a_fetch_that_leaves_something_out_is_short() -> None:
    class State:
        has_valid_position, paused = True, False

    class Assignment:
        def __init__(self) -> None:
            self.tps = {tp: State() for tp in range(3)}
            self.state_value = self.tps.get

    fetcher = Asked(*[None] * 5)
    hold(fetcher, 100)
    assignment, waits = Assignment(), []

    def ask() -> None:
        fetcher._get_actions_per_node(assignment)
        waits.append(fetcher._fetch_max_wait_ms)

    ask()
    fetcher._records[0] = "fetched and not taken"
    ask()
    fetcher._records.clear()
    assignment.tps[1].paused = True
    ask()
    assignment.tps[1].paused, assignment.tps[2].has_valid_position = False, False
    ask()
    assignment.tps[2].has_valid_position = True
    ask()
    assert waits == [100, 10, 10, 10, 100]


class Asked:
    """What aiokafka's fetcher is to `pace` and `hold`."""

    _fetch_max_wait_ms = 10

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self._records: dict[int, str] = {}

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
