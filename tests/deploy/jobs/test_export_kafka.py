"""Export of a real Kafka: resends, late, misrouted and malformed records, and a forget that comes after the range."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from deploy.jobs.export import ExportPlan, export_topics
from deploy.jobs.replay import replay_folder, replay_topics
from deploy.jobs.replay_checkpoint import ReplayPlan
from deploy.settings import Settings, load
from index.state.keys import partition_of
from index.state.memory_store import MemoryStore
from streams.events import CLICKSTREAM, Record
from streams.folder.reader import read_folder
from streams.kafka.config import KafkaConfig
from streams.kafka.topic_reader import TopicReader
from streams.pipeline.digest import read_state
from tests.streams.folder.test_export import rows_in
from tests.support.export_oracle import expected
from tests.support.replay_log import DIM, EMBEDDER, START_MS, STEP_MS, fill

PARTITIONS, EVENTS, ITEMS = 4, 3_000, 60
WINDOW = 200  # users with fewer events have none evicted, so nothing is too late for them


class Kept(MemoryStore):
    """Stays readable after a replay has closed it."""

    async def close(self) -> None:
        return None


def settings_of(access: KafkaConfig) -> Settings:
    embedders = f"{EMBEDDER}:{DIM}"
    return load(
        {}, kafka=access.bootstrap, topic_prefix=access.topic_prefix, partitions=PARTITIONS, embedders=embedders
    )


def read(access: KafkaConfig) -> list[Record]:
    with TopicReader(access) as reader:
        return list(reader.records())


def users(store: MemoryStore) -> dict[str, Any]:
    state = asyncio.run(read_state(store, PARTITIONS))
    found = {name: user for part in state.values() for name, user in part.get("users", {}).items()}
    return {name: user for name, user in found.items() if len(user["window"]) < WINDOW}


def test_a_history_of_a_real_kafka(kafka_config: KafkaConfig, tmp_path: Path) -> None:
    fill(kafka_config, EVENTS, PARTITIONS, items=ITEMS, users=900)
    settings, found = settings_of(kafka_config), read(kafka_config)
    groups = AdminClient(kafka_config.librdkafka())
    before = {group.group_id for group in groups.list_consumer_groups().result().valid}
    facts = export_topics(tmp_path / "all", ExportPlan(), settings)
    assert {group.group_id for group in groups.list_consumer_groups().result().valid} == before
    folder = read_folder(tmp_path / "all")
    assert rows_in(folder) == expected(found, PARTITIONS, settings.rules())
    assert facts["removed"]["duplicates"] > 20 and facts["misrouted"] > 5 and not folder.impressions
    assert sum(facts["malformed"].values()) > 0 and "exposures" not in facts["logs"]
    # Nobody has forwarded what lies astray, so the replayed topics lack it: its users are left out here.
    misrouted = strays(found)
    live, again = Kept(), Kept()
    replay_topics(ReplayPlan(store=live), settings)
    replay_folder(tmp_path / "all", ReplayPlan(store=again), settings, {})
    first, second = ({u: s for u, s in users(store).items() if u not in misrouted} for store in (live, again))
    assert len(first) > 200 and first == second


def strays(found: list[Record]) -> set[str]:
    """Users with a click in a foreign partition."""
    clicks = [((record.key or b"").decode(), record.partition) for record in found if record.topic == CLICKSTREAM]
    return {user for user, partition in clicks if partition_of(user, PARTITIONS) != partition}


@pytest.mark.parametrize("part", [(0.25, 0.75), (0.5, None), (None, 0.5)])
def test_times_are_looked_up_at_the_broker_and_a_later_forget_counts(
    kafka_config: KafkaConfig, tmp_path: Path, part: tuple[float | None, float | None]
) -> None:
    fill(kafka_config, 1_000, PARTITIONS, items=10, users=50)
    forget = {"event_id": "f", "user_id": "u1", "kind": "forget", "ts_ms": START_MS + 1_000 * STEP_MS}
    producer = Producer(kafka_config.librdkafka())
    topic, home = kafka_config.topic(CLICKSTREAM), partition_of("u1", PARTITIONS)
    producer.produce(topic, orjson.dumps(forget), b"u1", home, timestamp=START_MS + 1_000 * STEP_MS)
    assert producer.flush(20) == 0
    start_ms, stop_ms = (None if share is None else START_MS + int(share * 1_000) * STEP_MS for share in part)
    export_topics(tmp_path / "part", ExportPlan(start_ms, stop_ms), settings_of(kafka_config))

    def inside(record: Record) -> bool:
        return (start_ms or 0) <= record.timestamp_ms < (stop_ms or 2**62)

    rows = rows_in(read_folder(tmp_path / "part"))
    assert rows == expected(read(kafka_config), PARTITIONS, settings_of(kafka_config).rules(), inside)
    assert len(rows) > 200 and all(row[1] != "u1" or row[3] == "forget" for row in rows)
