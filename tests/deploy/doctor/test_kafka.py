"""The doctor on Kafka, real and secured, and on ports where there is none: what it says and what it advises."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from kafka.admin import ConfigResource, ConfigResourceType

from deploy.doctor.finding import Finding
from deploy.doctor.kafka import check_kafka
from deploy.servers.redis import RedisServer
from deploy.servers.topics import create_topics, open_admin
from deploy.settings import Settings, load
from streams.kafka.config import KafkaConfig
from tests.conftest import eventually
from tests.support.secured_kafka import PASSWORD, SecuredKafka

pytestmark = pytest.mark.servers

PARTITIONS = 2
WRONG = "another-secret-word"


def settings_of(access: KafkaConfig, **more: object) -> Settings:
    """The settings that say the same as an access."""
    settings = load(
        {},
        kafka=access.bootstrap,
        kafka_security=access.security,
        kafka_mechanism=access.mechanism,
        kafka_user=access.user,
        kafka_password=access.password,
        kafka_ca=access.ca,
        kafka_cert=access.cert,
        kafka_key=access.key,
        topic_prefix=access.topic_prefix,
        **{"partitions": PARTITIONS, **more},
    )
    assert settings.kafka_config() == access
    return settings


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    assert finding.state == "wrong"
    return finding


@pytest.mark.parametrize("way", ["scram-512", "plain", "without-tls", "certificate"])
def test_a_healthy_cluster_is_named_with_our_topics(secured_kafka: SecuredKafka, topic_prefix: str, way: str) -> None:
    access = secured_kafka.way(way, topic_prefix)
    create_topics(access, PARTITIONS)
    kafka, topics = check_kafka(settings_of(access))
    assert (kafka.name, kafka.state, topics.name, topics.state) == ("kafka", "ok", "topics", "ok")
    assert kafka.address == access.bootstrap and f"1 broker(s), {access.security}" in kafka.what
    assert f"{topic_prefix}clickstream 2" in topics.what


@pytest.mark.parametrize("way", ["scram-512", "plain"])
def test_a_wrong_password_is_named_and_not_shown(secured_kafka: SecuredKafka, way: str) -> None:
    begin = time.monotonic()
    finding = only(check_kafka(settings_of(replace(secured_kafka.way(way), password=WRONG))))
    assert time.monotonic() - begin < 5
    assert "Authentication failed" in finding.what
    assert "PERSEID_KAFKA_PASSWORD" in finding.remedy
    assert WRONG not in str(finding) and PASSWORD not in str(finding)


@pytest.mark.parametrize(
    ("way", "change", "what", "remedy"),
    [
        ("plain", {"ca": ""}, "certificate is not trusted", "PERSEID_KAFKA_CA"),
        ("plain", {"security": "sasl_plaintext", "ca": ""}, "wants TLS", "PERSEID_KAFKA_SECURITY"),
        ("without-tls", {"security": "sasl_ssl"}, "TLS", "PERSEID_KAFKA_SECURITY"),
        ("certificate", {"cert": "", "key": ""}, "wants a certificate", "PERSEID_KAFKA_CERT"),
        (
            "without-tls",
            {"security": "plaintext", "user": "", "password": "", "mechanism": ""},
            "",
            "PERSEID_KAFKA_SECURITY",
        ),
    ],
)
def test_what_the_listener_wants_is_said(
    secured_kafka: SecuredKafka, way: str, change: dict[str, str], what: str, remedy: str
) -> None:
    finding = only(check_kafka(settings_of(replace(secured_kafka.way(way), **change))))
    assert what in finding.what
    assert remedy in finding.remedy


def test_nothing_there() -> None:
    finding = only(check_kafka(settings_of(KafkaConfig("127.0.0.1:1"))))
    assert "nothing listens on 127.0.0.1:1" in finding.what
    assert "PERSEID_KAFKA" in finding.remedy


def test_another_server_on_that_port_is_told_from_kafka(redis_server: RedisServer) -> None:
    finding = only(check_kafka(settings_of(KafkaConfig(redis_server.address))))
    assert "not as Kafka does" in finding.what
    assert "Kafka's own port" in finding.remedy


def test_a_second_server_is_asked_when_the_first_is_away(kafka_config: KafkaConfig) -> None:
    create_topics(kafka_config, PARTITIONS)
    both = replace(kafka_config, bootstrap=f"127.0.0.1:1,{kafka_config.bootstrap}")
    assert [finding.state for finding in check_kafka(settings_of(both))] == ["ok", "ok"]


def test_missing_topics_and_other_counts_are_named(kafka_config: KafkaConfig) -> None:
    admin = AdminClient(kafka_config.librdkafka())
    names = {"clickstream": 3, "users": PARTITIONS, "exposures": PARTITIONS, "context": 1, "dead-letters": 1}
    new = [NewTopic(kafka_config.topic(name), count, 1) for name, count in names.items()]
    for future in admin.create_topics(new, operation_timeout=20).values():
        future.result()
    eventually(lambda: _led(admin, kafka_config, len(names)), 20.0, "the new topics have leaders")
    kafka, missing, differing = check_kafka(settings_of(kafka_config))
    assert kafka.state == "ok"
    prefix = kafka_config.topic_prefix
    assert missing.state == "wrong" and f"{prefix}catalog (1), {prefix}item-vectors (1)" in missing.what
    assert differing.what == f"{prefix}clickstream has 3 partitions, not {PARTITIONS}"
    assert "PERSEID_PARTITIONS" in differing.remedy


def test_a_topic_that_takes_records_from_the_future_is_noted(kafka_config: KafkaConfig) -> None:
    create_topics(kafka_config, PARTITIONS)
    assert len(check_kafka(settings_of(kafka_config))) == 2
    with open_admin(kafka_config, 20.0) as (admin, _):
        config = {"message.timestamp.after.max.ms": str(2**63 - 1)}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, kafka_config.topic("users"), config)])
    eventually(lambda: len(check_kafka(settings_of(kafka_config))) == 3, 20.0, "the broker knows the configuration")
    note = check_kafka(settings_of(kafka_config))[-1]
    assert note.state == "note" and note.what.startswith(f"{kafka_config.topic('users')}: records from the future")
    assert "message.timestamp.after.max.ms=3600000" in note.remedy


def test_an_advertised_address_that_leads_nowhere_is_named(secured_kafka: SecuredKafka, topic_prefix: str) -> None:
    create_topics(secured_kafka.way("plain", topic_prefix), PARTITIONS)
    kafka, topics = check_kafka(settings_of(replace(secured_kafka.astray, topic_prefix=topic_prefix)))
    assert kafka.state == "wrong"
    assert kafka.what.startswith("broker 1 calls itself 127.0.0.1:1, which cannot be reached from here")
    assert "advertised.listeners" in kafka.remedy
    assert topics.state == "ok" and f"{topic_prefix}clickstream 2" in topics.what


def _led(admin: AdminClient, access: KafkaConfig, count: int) -> bool:
    """Whether so many topics of ours are there, each partition with a leader."""
    ours = [topic for name, topic in admin.list_topics(timeout=10).topics.items() if access.owns(name)]
    partitions = [partition for topic in ours for partition in topic.partitions.values()]
    return len(ours) == count and all(partition.leader >= 0 for partition in partitions)
