"""Our topics on a real Kafka: what is missing is made, what differs is refused, nothing is ever changed."""

from __future__ import annotations

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.cimpl import NewTopic

from deploy.servers.mock_kafka import topic_partitions
from deploy.servers.topics import REPLAY_HORIZON_MS, create_topics
from streams.kafka.config import KafkaConfig


def admin_of(access: KafkaConfig) -> AdminClient:
    return AdminClient(access.librdkafka())


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


def test_another_partition_count_is_refused_with_the_remedy_and_nothing_is_created(kafka_config: KafkaConfig) -> None:
    topic, admin = kafka_config.topic("users"), admin_of(kafka_config)
    admin.create_topics([NewTopic(topic, 3)], operation_timeout=10)[topic].result()
    with pytest.raises(ValueError, match=rf"topic {topic} has 3 partitions, not 8: set PERSEID_PARTITIONS"):
        create_topics(kafka_config, 8)
    assert [name for name in admin.list_topics(timeout=10).topics if kafka_config.owns(name)] == [topic]


def test_a_kafka_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.servers.topics._TIMEOUT_S", 0.3)
    with pytest.raises(ConnectionError, match=r"Kafka 127\.0\.0\.1:1 does not answer"):
        create_topics(KafkaConfig("127.0.0.1:1"), 1)
