"""Our topics on a real Kafka: what is missing is made, what differs is refused, nothing is ever changed.

Before that the contract with kafka-python: each call of its admin client on the embedded broker and on real ones.
"""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.cimpl import NewTopic
from kafka.admin import ConfigResource as Resource
from kafka.admin import ConfigResourceType, KafkaAdminClient
from kafka.errors import KafkaError

from context.units import HOUR_MS
from deploy.runtime.producer import EventProducer
from deploy.servers.mock_kafka import Broker, topic_partitions
from deploy.servers.topics import AHEAD, AHEAD_MS, REPLAY_HORIZON_MS, create_topics, open_admin, topics_without_limit
from streams.events import DEAD_LETTERS
from streams.kafka.config import KafkaConfig
from tests.conftest import eventually
from tests.support.secured_kafka import PASSWORD, SecuredKafka

pytestmark = pytest.mark.servers

TIMEOUT_S = 20.0


def admin_of(access: KafkaConfig) -> AdminClient:
    return AdminClient(access.librdkafka())


def retention_of(admin: KafkaAdminClient, topic: str) -> str:
    found = admin.describe_configs([Resource(ConfigResourceType.TOPIC, topic)], config_filter="all")
    return str(found["topic"][topic]["retention.ms"]["value"])


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """What is left open is found by the collector, in whichever test it comes next."""
    gc.collect()
    with warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always", ResourceWarning)
        yield
        gc.collect()
    assert not left


@pytest.mark.parametrize("way", ["scram-512", "plain", "without-tls", "certificate"])
@pytest.mark.parametrize("version", [None, (2, 3)])
def test_kafka_python_administers_a_real_kafka(
    secured_kafka: SecuredKafka, topic_prefix: str, way: str, version: tuple[int, int] | None
) -> None:
    config, topic = secured_kafka.way(way, topic_prefix), f"{topic_prefix}made"
    with nothing_left_open(), open_admin(config, TIMEOUT_S, api_version=version) as (admin, cluster):
        assert cluster.cluster_id == admin.describe_cluster()["cluster_id"]
        assert [broker.node_id for broker in cluster.brokers()] == [1]
        assert topic not in cluster.topics()
        admin.create_topics(
            {topic: {"num_partitions": 2, "replication_factor": 1, "configs": {"retention.ms": "7000"}}}
        )
        admin.wait_for_topics([topic])
        (described,) = admin.describe_topics([topic])
        assert [partition["leader_id"] for partition in described["partitions"]] == [1, 1]
        assert retention_of(admin, topic) == "7000"
        admin.alter_configs([Resource(ConfigResourceType.TOPIC, topic, {"retention.ms": "8000"})])
        eventually(lambda: retention_of(admin, topic) == "8000", TIMEOUT_S, "the broker knows the new configuration")
        admin.create_partitions({topic: 3})
        eventually(lambda: len(admin.describe_topics([topic])[0]["partitions"]) == 3, TIMEOUT_S, "three partitions")
        admin.delete_topics([topic])


def test_kafka_python_looks_at_the_embedded_broker_and_cannot_administer_it(tmp_path: Path) -> None:
    """Why librdkafka keeps the embedded broker: the day this fails, `deploy.servers.topics` may do more."""
    with (
        Broker(topic_partitions(4), tmp_path / "log") as broker,
        nothing_left_open(),
        open_admin(KafkaConfig(broker.address), TIMEOUT_S, api_version=(2, 3)) as (admin, cluster),
    ):
        assert cluster.cluster_id == admin.describe_cluster()["cluster_id"]
        counts = {topic: len(cluster.partitions_for_topic(topic)) for topic in cluster.topics()}
        assert counts == topic_partitions(4)
        assert {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics()} == counts
        assert not any(cluster.topic_id(topic) for topic in counts)
        with pytest.raises(KafkaError):
            admin.create_topics({"made": {"num_partitions": 1, "replication_factor": 1}})
        with pytest.raises(KafkaError):
            retention_of(admin, "catalog")
        with pytest.raises(KafkaError):
            admin.alter_configs([Resource(ConfigResourceType.TOPIC, "catalog", {"retention.ms": "8000"})])


def test_kafka_python_needs_to_be_told_the_version_of_the_embedded_broker(tmp_path: Path) -> None:
    with (
        Broker({"one": 1}, tmp_path / "log") as broker,
        nothing_left_open(),
        pytest.raises(ConnectionError, match="does not answer"),
        open_admin(KafkaConfig(broker.address), 1.0),
    ):
        pass


@pytest.mark.parametrize("way", ["scram-512", "plain", "without-tls"])
def test_a_wrong_password_is_the_reason_and_told_nowhere(
    secured_kafka: SecuredKafka, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(secured_kafka.way(way), password="another-secret-word")
    with (
        nothing_left_open(),
        pytest.raises(ConnectionError, match="Authentication failed") as caught,
        open_admin(config, 1.0),
    ):
        pass
    assert PASSWORD not in str(caught.value) + caplog.text and config.password not in str(caught.value) + caplog.text


def test_missing_topics_are_created_once_with_their_counts(kafka_config: KafkaConfig) -> None:
    assert set(create_topics(kafka_config, 4)) == set(topic_partitions(4))
    assert create_topics(kafka_config, 4) == []
    access, topics = kafka_config, admin_of(kafka_config).list_topics(timeout=10).topics
    counts = {access.name(name): len(topic.partitions) for name, topic in topics.items() if access.owns(name)}
    assert counts == topic_partitions(4)


def test_compacted_topics_keep_the_replay_horizon(kafka_config: KafkaConfig) -> None:
    create_topics(kafka_config, 1)
    admin = admin_of(kafka_config)
    asked = [ConfigResource(ConfigResource.Type.TOPIC, kafka_config.topic(name)) for name in ("catalog", "clickstream")]
    catalog, clicks = (future.result() for future in admin.describe_configs(asked).values())
    assert catalog["cleanup.policy"].value == "compact"
    assert catalog["min.compaction.lag.ms"].value == str(REPLAY_HORIZON_MS)
    assert clicks["cleanup.policy"].value == "delete"


def test_no_producer_can_write_into_the_future(kafka_config: KafkaConfig) -> None:
    create_topics(kafka_config, 1)
    topics = [kafka_config.topic(name) for name in topic_partitions(1) if name != DEAD_LETTERS]
    now_ms = int(time.time() * 1000)

    async def send(topic: str, timestamp_ms: int) -> None:
        await producer.send(topic, b"k", b"{}", 0, timestamp_ms=timestamp_ms)

    producer = EventProducer(kafka_config)
    try:
        for name in ("clickstream", "users", "catalog", "context"):
            asyncio.run(send(name, now_ms))
            with pytest.raises(ValueError, match=name):
                asyncio.run(send(name, now_ms + 2 * HOUR_MS))
        asyncio.run(send(DEAD_LETTERS, now_ms + 2 * HOUR_MS))  # what came in before there was a limit
    finally:
        producer.close()
    with open_admin(kafka_config, TIMEOUT_S) as (admin, _):
        assert topics_without_limit(admin, topics) == []
        for config in ({AHEAD: str(2 * AHEAD_MS)}, {"message.timestamp.type": "LogAppendTime"}):
            admin.alter_configs([Resource(ConfigResourceType.TOPIC, topics[0], config)])
            expected = topics[:1] if AHEAD in config else []
            eventually(lambda: topics_without_limit(admin, topics) == expected, TIMEOUT_S, "the broker knows it")  # noqa: B023


def test_another_partition_count_is_refused_with_the_remedy_and_nothing_is_created(kafka_config: KafkaConfig) -> None:
    topic, admin = kafka_config.topic("users"), admin_of(kafka_config)
    admin.create_topics([NewTopic(topic, 3)], operation_timeout=10)[topic].result()
    with pytest.raises(ValueError, match=rf"topic {topic} has 3 partitions, not 8: set PERSEID_PARTITIONS"):
        create_topics(kafka_config, 8)
    assert [name for name in admin.list_topics(timeout=10).topics if kafka_config.owns(name)] == [topic]


def test_a_kafka_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.servers.topics._TIMEOUT_S", 0.3)
    with nothing_left_open(), pytest.raises(ConnectionError, match=r"Kafka 127\.0\.0\.1:1 does not answer"):
        create_topics(KafkaConfig("127.0.0.1:1"), 1)
