"""The producer against the embedded broker: acknowledgement, Kafka's own partitioner, size limit, drops."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from deploy.runtime.producer import EXPOSURE_LINGER_MS, DeliveryError, EventProducer, ExposureProducer
from deploy.servers.mock_kafka import Broker, topic_partitions
from index.state.keys import partition_of
from streams.kafka.config import KafkaConfig

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    broker = Broker(topic_partitions(8), Path(tmp_path_factory.mktemp("broker")) / "log")
    yield broker.start()
    broker.stop()


@pytest.fixture
def producer(bootstrap: str) -> Iterator[EventProducer]:
    producer = EventProducer(KafkaConfig(bootstrap))
    yield producer
    producer.close()


def test_a_send_returns_partition_and_offset_of_the_users_home(producer: EventProducer) -> None:
    async def run() -> list[tuple[int, int]]:
        return await asyncio.gather(*(producer.send("clickstream", f"u{n}".encode(), b"{}") for n in range(50)))

    acknowledged = asyncio.run(run())
    assert [partition for partition, _ in acknowledged] == [partition_of(f"u{n}", 8) for n in range(50)]
    assert len(set(acknowledged)) == 50
    assert producer.sent == 50


def test_a_named_partition_and_a_null_value_are_kept(producer: EventProducer) -> None:
    async def run() -> list[tuple[int, int]]:
        first = await producer.send("users", b"u", None, 3, timestamp_ms=946_684_800_000, headers=[("h", b"1")])
        return [first, await producer.send("users", b"u", b"x", 3)]

    first, second = asyncio.run(run())
    assert (first[0], second) == (3, (3, first[1] + 1))


def test_a_record_beyond_kafkas_limit_is_refused_at_once(producer: EventProducer) -> None:
    with pytest.raises(ValueError, match="too large"):
        asyncio.run(producer.send("catalog", b"i", b"x" * 1_100_000))


def test_a_record_beyond_its_topics_own_limit_is_refused_and_not_tried_for_ever(
    kafka_config: KafkaConfig,
) -> None:
    topic = NewTopic(kafka_config.topic("catalog"), 1, config={"max.message.bytes": "2000"})
    admin = AdminClient(kafka_config.librdkafka())
    for future in admin.create_topics([topic]).values():
        future.result()
    producer = EventProducer(kafka_config)
    with pytest.raises(ValueError, match="too large"):
        asyncio.run(producer.send("catalog", b"i", os.urandom(5000)))
    assert asyncio.run(producer.send("catalog", b"i", b"{}"))[0] == 0
    producer.close()


def test_exposures_that_find_a_full_queue_are_dropped_and_counted() -> None:
    producer = ExposureProducer(KafkaConfig("127.0.0.1:1"), queue_records=10, delivery_timeout_ms=1500)
    producer.expose("exposures", b"u", b"x" * 1_100_000)
    assert producer.dropped == 1, "beyond Kafka's limit"
    producer.dropped = 0
    for _ in range(25):
        producer.expose("exposures", b"u", b"{}")
    assert producer.dropped == 15
    producer.close(timeout_s=5.0)
    assert producer.dropped == 25


def test_exposures_go_together_within_a_second_and_at_the_end(bootstrap: str) -> None:
    """Read by the client that workers read with; what was queued last goes with `close`."""

    async def run() -> None:
        consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
        await consumer.start()
        partition = TopicPartition("exposures", 5)
        consumer.assign([partition])
        await consumer.seek_to_end(partition)
        producer = ExposureProducer(KafkaConfig(bootstrap))
        began = time.monotonic()
        for number in range(20):
            producer.expose("exposures", b"u", b'{"number": %d}' % number, 5)
        found = [await asyncio.wait_for(consumer.getone(), 10) for _ in range(20)]
        assert [record.value for record in found] == [b'{"number": %d}' % number for number in range(20)]
        assert time.monotonic() - began >= 0.5, "they waited for one another"
        began = time.monotonic()
        producer.expose("exposures", b"u", b"last", 5)
        assert producer.close() == 0 and producer.dropped == 0
        assert time.monotonic() - began < EXPOSURE_LINGER_MS / 1000
        assert (await asyncio.wait_for(consumer.getone(), 10)).value == b"last"
        await consumer.stop()

    asyncio.run(run())


def test_a_send_without_a_broker_fails_within_its_timeout() -> None:
    producer = EventProducer(KafkaConfig("127.0.0.1:1"), delivery_timeout_ms=300)
    with pytest.raises(DeliveryError, match="clickstream"):
        asyncio.run(producer.send("clickstream", b"u", b"{}"))
    assert producer.sent == 0
    producer.close(timeout_s=0.1)


def test_a_cancelled_send_does_not_stop_the_producer(producer: EventProducer) -> None:
    async def run() -> tuple[int, int]:
        given_up = asyncio.ensure_future(producer.send("catalog", b"i", b"{}"))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        return await producer.send("catalog", b"i", b"{}")

    assert asyncio.run(run())[0] == 0
