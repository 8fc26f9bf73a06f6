"""The feed's memory is bounded, what it leaves out is counted, and it reads a real broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.console.feed import BACKS, KEPT_BYTES, RecordFeed, RecordRing, SeenRecord
from deploy.runtime.producer import EventProducer
from deploy.servers.mock_kafka import Broker
from deploy.servers.topics import create_topics
from streams.events import CATALOG, CLICKSTREAM, DEAD_LETTERS, EXPOSURES, Record
from streams.kafka.config import KafkaConfig

NOWHERE = KafkaConfig("127.0.0.1:1")


def record(offset: int = 0, topic: str = CLICKSTREAM, value: bytes = b"{}", key: bytes = b"u") -> Record:
    return Record(topic, 0, offset, 1_700_000_000_000, key, value)


@given(st.lists(st.integers(0, 400), max_size=60), st.integers(1, 10), st.integers(1, 1_000))
def test_a_ring_keeps_the_newest_within_both_bounds(sizes: list[int], most: int, most_bytes: int) -> None:
    ring = RecordRing(most, most_bytes)
    for number, size in enumerate(sizes):
        ring.add(SeenRecord(number, record(number, value=b"x" * size, key=b""), 0, size))
    kept = [seen.number for seen in ring]
    assert kept == list(range(len(sizes)))[::-1][: len(kept)]
    assert len(kept) <= most
    assert sum(sizes[number] for number in kept) <= most_bytes or len(kept) == 1
    if sizes:
        assert kept  # however long it is, the newest is there
        longer = kept[-1] - 1
        assert longer < 0 or len(kept) == most or sum(sizes[number] for number in [*kept, longer]) > most_bytes


def test_a_topic_does_not_take_the_place_of_another() -> None:
    feed = RecordFeed(NOWHERE)
    feed.take(record(0, DEAD_LETTERS))
    for offset in range(5_000):
        feed.take(record(offset, EXPOSURES))
    assert len(feed.newest(DEAD_LETTERS, 10)) == 1
    newest = feed.newest(EXPOSURES, 3)
    assert [seen.record.offset for seen in newest] == [4999, 4998, 4997]


def test_what_is_new_is_drawn_evenly_and_the_rest_counted() -> None:
    feed = RecordFeed(NOWHERE)
    for offset in range(100):
        feed.take(record(offset, key=b"odd" if offset % 2 else b"even"))
    found, left_out = feed.since(20, (CLICKSTREAM,), 4, lambda seen: seen.key == "odd")
    assert [seen.record.offset for seen in found] == [21, 41, 61, 81] and left_out == 36
    found, left_out = feed.since(98, (CLICKSTREAM, EXPOSURES), 4)
    assert [seen.record.offset for seen in found] == [98, 99] and left_out == 0


def test_a_long_value_is_cut_and_says_so() -> None:
    feed = RecordFeed(NOWHERE)
    feed.take(record(7, value=b"x" * (KEPT_BYTES + 1)))
    seen = feed.get(CLICKSTREAM, 0, 7)
    assert (
        seen is not None and seen.is_cut and seen.size == KEPT_BYTES + 1 and len(seen.record.value or b"") == KEPT_BYTES
    )
    assert seen.body == {}
    assert feed.get(CLICKSTREAM, 0, 8) is None


@pytest.mark.parametrize("value", [b"", b"null", b"[1]", b"\xff", b"{", b'"text"'])
def test_a_value_that_is_no_object_has_no_fields(value: bytes) -> None:
    feed = RecordFeed(NOWHERE)
    feed.take(record(value=value))
    assert feed.newest(CLICKSTREAM, 1)[0].body == {}


@pytest.mark.servers
def test_records_of_a_broker_are_seen_within_a_second_whatever_came_before(tmp_path: Path) -> None:
    with Broker(dict.fromkeys(BACKS, 1), tmp_path / "broker.log") as broker:
        config = KafkaConfig(broker.address)
        producer = EventProducer(config)
        for number in range(6_000):  # more than is looked at in two seconds
            assert producer.enqueue(CLICKSTREAM, b"u", orjson.dumps({"number": number}), 0) is not None
        feed = RecordFeed(config)
        feed.start()
        deadline = time.monotonic() + 20
        while not feed.newest(CLICKSTREAM, 1):
            assert time.monotonic() < deadline, feed.trouble
            time.sleep(0.02)
        took = []
        for number in range(5):
            asyncio.run(_send(producer, number))
            began = time.monotonic()
            while not feed.newest(DEAD_LETTERS, 1, lambda seen, number=number: seen.body == {"letter": number}):  # type: ignore[misc]
                assert time.monotonic() - began < 20
                time.sleep(0.005)
            took.append(time.monotonic() - began)
        assert min(took) < 1.0
        assert feed.trouble == ""
        feed.stop()
        producer.close()


@pytest.mark.servers
@pytest.mark.parametrize("topic", [CATALOG, CLICKSTREAM])
def test_a_flood_of_one_topic_does_not_hide_the_others(topic: str, kafka_config: KafkaConfig) -> None:
    flood = 30_000  # what is looked at in twelve seconds
    create_topics(kafka_config, 1)
    producer, feed = EventProducer(kafka_config), RecordFeed(kafka_config)

    def until(found: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not found():
            assert time.monotonic() < deadline, (feed.trouble, feed.skipped, feed.number)
            time.sleep(0.02)

    def shown(topic: str, body: dict[str, int]) -> list[SeenRecord]:
        return feed.newest(topic, 1, lambda seen: seen.body == body)

    asyncio.run(_send(producer, 0))
    feed.start()
    until(lambda: shown(DEAD_LETTERS, {"letter": 0}))
    for number in range(flood):
        while producer.enqueue(topic, b"k", orjson.dumps({"number": number}), 0) is None:
            time.sleep(0.01)
    asyncio.run(_send(producer, 1))
    until(lambda: feed.skipped and shown(topic, {"number": flood - 1}))
    assert feed.number < flood / 2  # the rest was skipped
    places = [seen.record.offset for seen in feed.newest(topic, flood)]
    assert places == sorted(set(places), reverse=True) and len(places) >= BACKS[topic]
    until(lambda: shown(DEAD_LETTERS, {"letter": 1}))
    feed.stop()
    producer.close()


async def _send(producer: EventProducer, number: int) -> None:
    await producer.send(DEAD_LETTERS, b"k", orjson.dumps({"letter": number}), 0)
