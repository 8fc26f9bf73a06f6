"""The newest records of topics, without a group, on the embedded broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.runtime.producer import EventProducer
from deploy.servers.mock_kafka import Broker
from deploy.servers.ports import free_port
from streams.events import CATALOG, CLICKSTREAM, Record
from streams.kafka.config import KafkaConfig
from streams.kafka.tail import TopicTail, records_between

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaConfig]:
    """Two partitions of clicks with ten records each, and a catalogue without any."""
    with Broker({CLICKSTREAM: 2, CATALOG: 1}, tmp_path_factory.mktemp("broker") / "log") as broker:
        config = KafkaConfig(broker.address)
        send(config, [(CLICKSTREAM, number % 2, f"old {number}") for number in range(20)])
        yield config


def send(kafka: KafkaConfig, records: list[tuple[str, int, str]]) -> None:
    producer = EventProducer(kafka)

    async def all_of_them() -> None:
        for topic, partition, value in records:
            await producer.send(topic, b"k", value.encode(), partition)

    asyncio.run(all_of_them())
    producer.close()


def polled(tail: TopicTail, count: int, most: int = 100) -> list[Record]:
    found: list[Record] = []
    deadline = time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < deadline, found
        found += tail.poll(most, 0.1)
    return found


def values(records: list[Record], partition: int) -> list[str]:
    return [(record.value or b"").decode() for record in records if record.partition == partition]


def test_the_last_records_come_first_and_then_what_is_sent(kafka: KafkaConfig) -> None:
    tail = TopicTail(kafka, {CLICKSTREAM: 3, CATALOG: 100, "no-such-topic": 5})
    assert tail.topics == (CLICKSTREAM, CATALOG)
    found = polled(tail, 6)
    ends = [records_between(kafka, CLICKSTREAM, partition, most=3) for partition in (0, 1)]
    for partition, last in enumerate(ends):
        assert values(found, partition) == [(record.value or b"").decode() for record in last]
    send(kafka, [(CATALOG, 0, "new item"), (CLICKSTREAM, 1, "new click")])
    assert sorted((record.topic, record.value) for record in polled(tail, 2)) == [
        (CATALOG, b"new item"),
        (CLICKSTREAM, b"new click"),
    ]
    assert tail.poll(10, 0.2) == [] and tail.trouble == ""
    tail.close()


def test_of_what_is_skipped_only_the_last_records_come_and_none_twice(kafka: KafkaConfig) -> None:
    tail = TopicTail(kafka, {CLICKSTREAM: 3, CATALOG: 3})
    polled(tail, 6)
    first = polled_all(tail)
    send(kafka, [(CLICKSTREAM, 0, f"many {number}") for number in range(50)])
    send(kafka, [(CATALOG, 0, f"few {number}") for number in range(2)])
    begun = [record for record in polled(tail, 1, most=1) if record.topic == CLICKSTREAM]
    time.sleep(0.3)  # the broker's next answer tells the ends
    tail.skip()
    rest = polled_all(tail)
    clicks = [(record.value or b"").decode() for record in begun + rest if record.topic == CLICKSTREAM]
    assert clicks[-3:] == ["many 47", "many 48", "many 49"]
    assert len(clicks) == len(set(clicks)) < 50
    assert [record.value for record in rest if record.topic == CATALOG] == [b"few 0", b"few 1"]
    tail.skip()  # nothing is behind: nothing comes again
    assert polled_all(tail) == []
    assert first == []
    tail.close()


def polled_all(tail: TopicTail) -> list[Record]:
    """What comes until nothing has come for a while."""
    found: list[Record] = []
    while more := tail.poll(100, 0.5):
        found += more
    return found


def test_records_are_read_by_place(kafka: KafkaConfig) -> None:
    assert [record.value for record in records_between(kafka, CLICKSTREAM, 0, start=2, most=3)] == [
        b"old 4",
        b"old 6",
        b"old 8",
    ]
    assert [record.offset for record in records_between(kafka, CLICKSTREAM, 1, start=4)] == [4]
    assert records_between(kafka, CLICKSTREAM, 1, start=10_000) == []
    assert len(records_between(kafka, CLICKSTREAM, 1, most=5)) == 5


def test_a_broker_that_is_away_is_an_error_that_says_so(tmp_path: Path) -> None:
    away = KafkaConfig(f"127.0.0.1:{free_port()}")
    with pytest.raises(ConnectionError, match="Kafka does not"):
        records_between(away, CLICKSTREAM, 0, timeout_s=0.5)
