"""Kafka access: contradictions are refused, secrets stay unseen, and every client works over SASL and TLS."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

import orjson
import pytest

from deploy.runtime.producer import DeliveryError, EventProducer
from deploy.servers.redis import RedisServer
from deploy.servers.topics import create_topics
from index.state.keys import Keys
from index.state.redis_store import RedisStore
from streams.events import CATALOG, CLICKSTREAM, Rules
from streams.kafka.catalog_consumer import KafkaCatalog
from streams.kafka.config import KafkaConfig, Reasons
from streams.kafka.log_identity import LogLookup
from streams.kafka.topic_reader import TopicReader
from streams.kafka.worker import StreamWorker, WorkerSettings
from streams.pipeline.digest import read_state
from streams.pipeline.engine import Engine
from streams.pipeline.intake import KafkaDeadLetterSink
from tests.support.secured_kafka import PASSWORD, USER, WAYS, SecuredKafka
from tests.support.streams_world import click

PARTITIONS = 2
WRONG = "another-secret-word"
TS_MS = 1_700_000_000_000
TIMEOUT_S = 30.0  # two busy cores


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """All that Python's loggers (at their most talkative) and the C libraries have said so far."""
    caplog.set_level(logging.DEBUG)

    def said() -> str:
        return caplog.text + "".join(capfd.readouterr())

    return said


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"security": "tls"}, "security 'tls' is none of plaintext, ssl"),
        ({"user": "me", "password": PASSWORD}, "need security sasl_plaintext or sasl_ssl, not plaintext"),
        ({"security": "ssl", "mechanism": "PLAIN"}, "need security sasl_plaintext or sasl_ssl, not ssl"),
        ({"security": "sasl_ssl", "user": "me"}, "needs a user and a password"),
        ({"security": "sasl_ssl", "password": PASSWORD}, "needs a user and a password"),
        (
            {"security": "sasl_ssl", "user": "me", "password": PASSWORD, "mechanism": "GSSAPI"},
            "mechanism 'GSSAPI' is none of PLAIN",
        ),
        ({"ca": "ca.pem"}, "certificate files need security ssl or sasl_ssl, not plaintext"),
        ({"security": "ssl", "cert": "me.pem"}, "give both or none"),
        ({"topic_prefix": "my shop/"}, "topic prefix 'my shop/' is not up to 200 letters"),
    ],
)
def test_contradictions_are_refused_without_the_password(parts: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        KafkaConfig("kafka:9092", **parts)
    assert PASSWORD not in str(caught.value)


def test_the_password_is_not_part_of_the_representation() -> None:
    access = KafkaConfig("kafka:9093", "sasl_ssl", user=USER, password=PASSWORD)
    assert PASSWORD not in repr(access) and PASSWORD not in str(access)


def test_topics_carry_the_prefix_for_clients_only() -> None:
    access = KafkaConfig("a:1, b:2", topic_prefix="shop1.")
    assert (access.topic(CATALOG), access.name("shop1.catalog")) == ("shop1.catalog", CATALOG)
    assert access.servers == ["a:1", "b:2"]
    assert not access.owns("catalog")
    with pytest.raises(ValueError, match=r"'catalog' does not begin with the prefix 'shop1\.'"):
        access.name("catalog")
    assert KafkaConfig("a:1").name("catalog") == "catalog"


def test_a_plaintext_cluster_needs_no_more_than_its_servers() -> None:
    access = KafkaConfig("a:1,b:2")
    assert access.librdkafka() == {"bootstrap.servers": "a:1,b:2", "security.protocol": "plaintext"}
    assert access.kafka_python() == {"bootstrap_servers": ["a:1", "b:2"], "security_protocol": "PLAINTEXT"}
    assert access.aiokafka() == {"bootstrap_servers": ["a:1", "b:2"], "security_protocol": "PLAINTEXT"}
    assert access.faust() == {"broker": ["aiokafka://a:1", "aiokafka://b:2"]}


@pytest.mark.parametrize("name", WAYS)
def test_every_client_works_and_tells_no_secret(
    name: str,
    secured_kafka: SecuredKafka,
    redis_server: RedisServer,
    keys: Keys,
    topic_prefix: str,
    everything_logged: Callable[[], str],
) -> None:
    access = secured_kafka.way(name, topic_prefix)
    assert CLICKSTREAM in create_topics(access, PARTITIONS)
    asyncio.run(_through_worker(access, redis_server.url, keys))
    with TopicReader(access) as reader:
        assert [(record.topic, record.key) for record in reader.records()] == [
            (CATALOG, b"tea"),
            (CLICKSTREAM, b"anna"),
        ]
        assert f"{CLICKSTREAM}[{PARTITIONS - 1}]" in reader.covers
    assert PASSWORD not in everything_logged()


async def _through_worker(access: KafkaConfig, redis_url: str, keys: Keys) -> None:
    """A click is produced and applied by a worker, a catalogue record is read by the embed role's source."""
    producer, store = EventProducer(access), RedisStore(redis_url, keys)
    engine = Engine(store, Rules(embedders={"toy": 4}), PARTITIONS, KafkaDeadLetterSink(producer.send))
    group = f"{access.topic_prefix}workers"
    worker = StreamWorker(engine, WorkerSettings(access, group=group, session_s=3.0, beat_s=0.05))
    running = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await producer.send(
                CLICKSTREAM, b"anna", orjson.dumps(click("anna", "tea", TS_MS, "e1")), timestamp_ms=TS_MS
            )
            while "anna" not in str(await read_state(store, PARTITIONS)):
                assert not running.done(), running.exception()
                await asyncio.sleep(0.02)
            await producer.send(CATALOG, b"tea", b"{}", timestamp_ms=TS_MS)
            assert await _first_taken(KafkaCatalog(access, f"{group}-embed")) == (CATALOG, b"tea")
        assert set(await LogLookup(access).partition_counts()) >= {CLICKSTREAM, CATALOG}
    finally:
        worker.stop()
        await running
        producer.close()
        await store.close()


async def _first_taken(source: KafkaCatalog) -> tuple[str, bytes | None]:
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while not (found := await source.take(1)):
            assert time.monotonic() < deadline, "no record came"
        return found[0].topic, found[0].key
    finally:
        await source.close()


@pytest.mark.parametrize("name", ["scram-512", "plain"])
def test_a_wrong_password_is_one_clear_error_and_told_nowhere(
    name: str, secured_kafka: SecuredKafka, everything_logged: Callable[[], str]
) -> None:
    access = replace(secured_kafka.way(name), password=WRONG)
    with pytest.raises(ConnectionError, match="Authentication failed") as caught:
        asyncio.run(LogLookup(access).partition_counts())
    said = str(caught.value)
    producer = EventProducer(access, delivery_timeout_ms=1_000)
    try:
        with pytest.raises(DeliveryError, match="Authentication failed") as refused:
            asyncio.run(producer.send(CATALOG, b"tea", b"{}"))
    finally:
        producer.close()
    source = KafkaCatalog(access, "wrong-password")
    deadline = time.monotonic() + TIMEOUT_S
    logged = ""
    while "cannot read" not in logged:
        assert asyncio.run(source.take(1)) == [] and time.monotonic() < deadline
        logged += everything_logged()
    asyncio.run(source.close())
    assert WRONG not in said + str(refused.value) + logged + everything_logged()


def test_an_unknown_authority_is_named_as_the_reason(secured_kafka: SecuredKafka) -> None:
    access = replace(secured_kafka.way("plain"), ca="")
    with pytest.raises(ConnectionError, match="certificate verify failed"):
        asyncio.run(LogLookup(access).partition_counts())


def test_a_reason_is_kept_without_its_timing_and_not_replaced_by_its_consequence() -> None:
    class Reported:
        def __init__(self, name: str, text: str) -> None:
            self._name, self._text = name, text

        def name(self) -> str:
            return self._name

        def str(self) -> str:
            return self._text

    reasons = Reasons()
    assert reasons.explain("no answer") == "no answer"
    reasons(Reported("_AUTHENTICATION", "kafka:9093: wrong password (after 301ms in state AUTH_REQ)"))  # type: ignore[arg-type]
    reasons(Reported("_ALL_BROKERS_DOWN", "1/1 brokers are down"))  # type: ignore[arg-type]
    assert reasons.explain("no answer") == "no answer: kafka:9093: wrong password"
