"""Topics read back from a real (embedded) broker: merged by time, finite, honest about what the log still holds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from deploy.servers.mock_kafka import Broker, topic_partitions
from index.state.memory_store import MemoryStore
from streams.events import CATALOG, CLICKSTREAM, CONTEXT, ITEM_VECTORS, USERS, Record, Rules
from streams.kafka.config import KafkaConfig
from streams.kafka.topic_merge import Covers
from streams.kafka.topic_reader import Span, TopicReader
from streams.pipeline.digest import digest
from streams.replay.replay import SilentSink, folder_logs, open_engine
from tests.support.replay_world import PARTITIONS, lived, replay
from tests.support.streams_world import MemoryBroker, fill

pytestmark = pytest.mark.servers

NOW_MS = 1_700_000_000_000


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(topic_partitions(PARTITIONS), tmp_path / "broker.log") as running:
        yield running


def produce(broker: Broker, records: list[tuple[str, int, int, str]]) -> None:
    """Sends (topic, partition, milliseconds after NOW_MS, value), waiting for each: their order is that of the log."""
    producer = Producer({"bootstrap.servers": broker.address, "linger.ms": 0})
    for topic, partition, ms, value in records:
        producer.produce(topic, value.encode(), b"k", partition, timestamp=NOW_MS + ms)
        assert producer.flush(10) == 0


def read(broker: Broker, **more: object) -> tuple[list[tuple[str, int, int]], dict[str, Covers]]:
    """(value, partition, offset) of all records, and what was covered."""
    with TopicReader(KafkaConfig(broker.address), embedded=True, **more) as reader:  # type: ignore[arg-type]
        found = [((record.value or b"").decode(), record.partition, record.offset) for record in reader.records()]
        return found, reader.covers


def test_records_come_by_time_and_at_equal_times_by_topic(broker: Broker) -> None:
    produce(
        broker,
        [
            (CLICKSTREAM, 1, 5, "click 5"),
            (CONTEXT, 0, 5, "context 5"),
            (ITEM_VECTORS, 0, 5, "vector 5"),
            (CATALOG, 0, 5, "item 5"),
            (USERS, 2, 5, "user 5"),
            (CLICKSTREAM, 0, 4, "click 4"),
            (CLICKSTREAM, 0, 6, "click 6"),
            (CATALOG, 0, 1, "item 1, late in its log"),
        ],
    )
    found, covers = read(broker)
    assert [value for value, _, _ in found] == [
        "click 4", "user 5", "item 5", "item 1, late in its log", "vector 5", "context 5", "click 5", "click 6",
    ]  # fmt: skip
    assert covers["clickstream[0]"] == Covers(0, 0, 2, 2) and covers["users[0]"] == Covers(0, 0, 0, 0)


def test_reading_ends_where_the_logs_ended_when_it_began(broker: Broker) -> None:
    produce(broker, [(CLICKSTREAM, 0, n, f"early {n}") for n in range(3)])
    with TopicReader(KafkaConfig(broker.address), embedded=True) as reader:
        produce(broker, [(CLICKSTREAM, 0, 10, "later"), (CLICKSTREAM, 1, 10, "later")])
        assert reader.total == 3
        assert [record.offset for record in reader.records()] == [0, 1, 2]


def test_offsets_and_times_cut_a_piece_out(broker: Broker) -> None:
    produce(broker, [(CLICKSTREAM, p, ms, f"{p}:{ms}") for p in (0, 1) for ms in (0, 10, 20, 30)])
    found, covers = read(broker, spans={(CLICKSTREAM, 0): Span(2)})
    assert [value for value, _, _ in found] == ["1:0", "1:10", "0:20", "1:20", "0:30", "1:30"]
    assert covers["clickstream[0]"] == Covers(0, 2, 4, 4)
    found, covers = read(broker, start_ms=NOW_MS + 5, stop_ms=NOW_MS + 30)
    assert [value for value, _, _ in found] == ["0:10", "1:10", "0:20", "1:20"]
    assert covers["clickstream[1]"] == Covers(0, 1, 3, 4)
    found, covers = read(broker, start_ms=NOW_MS + 99)
    assert found == [] and covers["clickstream[1]"] == Covers(0, 4, 4, 4)


def test_a_time_of_another_unit_holds_up_nobody_and_neither_begins_nor_ends_a_range(broker: Broker) -> None:
    micro = 999 * NOW_MS  # with NOW_MS, about the same time in microseconds
    produce(broker, [(CLICKSTREAM, 0, ms, str(ms)) for ms in (0, micro, 10, micro + 1, 20, 30)])
    produce(broker, [(CLICKSTREAM, 1, 15, "15")])
    found, _ = read(broker)
    assert [value for value, _, _ in found] == ["0", str(micro), "10", str(micro + 1), "15", "20", "30"]
    found, covers = read(broker, start_ms=NOW_MS + 5, stop_ms=NOW_MS + 30)
    assert [value for value, _, _ in found] == ["10", str(micro + 1), "15", "20"]
    assert covers["clickstream[0]"] == Covers(0, 2, 5, 6)


def test_a_start_outside_the_log_and_a_missing_topic_are_refused(broker: Broker) -> None:
    produce(broker, [(CLICKSTREAM, 0, 0, "x")])
    with pytest.raises(ValueError, match=r"clickstream\[0\] cannot start at 7: its log holds 0 to 1"):
        read(broker, spans={(CLICKSTREAM, 0): Span(7)})
    with pytest.raises(ValueError, match="topic 'nonsense' does not exist"):
        read(broker, topics=("nonsense",))


def test_a_log_that_dropped_its_beginning_says_from_where_it_reaches(broker: Broker) -> None:
    produce(broker, [(CONTEXT, 0, n, "x" * 100_000) for n in range(80)])
    found, covers = read(broker, topics=(CONTEXT,))
    covered = covers["context[0]"]
    assert covered.first > 0 and covered.start == covered.first and covered.log_end == 80
    assert [offset for _, _, offset in found] == list(range(covered.first, 80))


def test_replaying_topics_gives_the_live_digest(broker: Broker) -> None:
    memory, store = MemoryBroker(), MemoryStore()
    fill(memory, PARTITIONS, seed=3, events=1200)

    async def live() -> str:
        await lived(memory, store, random.Random(3))
        return (await digest(store, PARTITIONS)).hex

    expected = asyncio.run(live())
    producer = Producer({"bootstrap.servers": broker.address})
    for (topic, partition), log in memory.logs.items():
        for record in log:
            producer.produce(topic, record.value, record.key, partition, timestamp=record.timestamp_ms)
    assert producer.flush(30) == 0

    async def again(records: Iterator[Record]) -> str:
        sink = SilentSink()
        engine = await open_engine(MemoryStore(), Rules(), PARTITIONS, sink, None, folder_logs("topics"))
        report = await replay("topics", records, engine, sink, covers=lambda: reader.covers)
        assert report.complete and report.counts["misrouted"] > 0
        return report.digest.hex

    with TopicReader(KafkaConfig(broker.address), embedded=True) as reader:
        assert asyncio.run(again(reader.records())) == expected
