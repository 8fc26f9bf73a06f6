"""Kafka access: contradictions are refused, secrets stay unseen, and every client works over SASL and TLS."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from deploy.producer import DeliveryError, EventProducer
from deploy.redis_server import RedisServer
from deploy.stack_kafka import KafkaServer
from deploy.stack_ports import free_port
from deploy.topics import create_topics
from index.keys import Keys
from index.redis_store import RedisStore
from streams.catalog_source import KafkaCatalog
from streams.digest import read_state
from streams.engine import Engine
from streams.events import CATALOG, CLICKSTREAM, Rules
from streams.kafka_access import KafkaAccess, Reasons
from streams.logs import LogLookup
from streams.outlet import KafkaOutlet
from streams.topic_reader import TopicReader
from streams.worker import StreamWorker, WorkerSettings
from tests.streams_world import click

PARTITIONS = 2
USER, PASSWORD, WRONG = "perseid", "a-secret-word", "another-secret-word"
TS_MS = 1_700_000_000_000
TIMEOUT_S = 30.0  # two busy cores
TLS, SASL = ("sasl_ssl", 0), ("sasl_plaintext", 1)  # security, and which of the listeners
WAYS = {
    "scram-512": (*TLS, "SCRAM-SHA-512"),
    "scram-256": (*TLS, "SCRAM-SHA-256"),
    "plain": (*TLS, "PLAIN"),
    "without-tls": (*SASL, "PLAIN"),
    "certificate": ("ssl", 2, ""),
}


@dataclass(frozen=True)
class Certificates:
    """PEM files of one authority: its own certificate, a server's, a client's."""

    ca: Path
    server: Path
    cert: Path
    key: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    made = Certificates(*(folder / name for name in ("ca.pem", "server.pem", "client.pem", "client.key")))
    authority.cert_pem.write_to_path(str(made.ca))
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("client@shop.example")
    made.server.write_bytes(_pkcs8(server) + b"".join(pem.bytes() for pem in server.cert_chain_pems))
    made.key.write_bytes(_pkcs8(client))
    made.cert.write_bytes(client.cert_chain_pems[0].bytes())
    return made


def _pkcs8(certificate: trustme.LeafCert) -> bytes:
    """The private key in the only form that Kafka reads from PEM files."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[tuple[int, int, int]]:
    """A broker with listeners for SASL over TLS, SASL alone, and TLS with client certificates."""
    tls, sasl, mutual, inner, controller = (free_port() for _ in range(5))
    names = {"CLIENT": tls, "SASL": sasl, "MUTUAL": mutual, "INNER": inner}
    listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in names.items())
    login = "org.apache.kafka.common.security"
    properties = {
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": listeners,
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listener.security.protocol.map": (
            "CLIENT:SASL_SSL,SASL:SASL_PLAINTEXT,MUTUAL:SSL,INNER:PLAINTEXT,CONTROLLER:PLAINTEXT"
        ),
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates.server),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.ca),
        "listener.name.mutual.ssl.client.auth": "required",
    }
    for name in ("client", "sasl"):
        plain = f'{login}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        properties[f"listener.name.{name}.plain.sasl.jaas.config"] = plain
        for bits in (256, 512):
            scram = f"{login}.scram.ScramLoginModule required;"
            properties[f"listener.name.{name}.scram-sha-{bits}.sasl.jaas.config"] = scram
    users = [f"SCRAM-SHA-{bits}=[name={USER},password={PASSWORD}]" for bits in (256, 512)]
    arguments = [argument for user in users for argument in ("--add-scram", user)]
    folder = tmp_path_factory.mktemp("kafka")
    with KafkaServer(folder, port=tls, properties=properties, format_arguments=arguments):
        yield tls, sasl, mutual


Way = Callable[[str], KafkaAccess]


@pytest.fixture(scope="module")
def way(ports: tuple[int, int, int], certificates: Certificates) -> Way:
    """One of `WAYS` into the broker."""

    def make(name: str) -> KafkaAccess:
        security, listener, mechanism = WAYS[name]
        more = {"topic_prefix": f"{name}."} | ({"user": USER, "password": PASSWORD} if mechanism else {})
        if security.endswith("ssl"):
            more["ca"] = str(certificates.ca)
        if not mechanism:
            more |= {"cert": str(certificates.cert), "key": str(certificates.key)}
        return KafkaAccess(f"127.0.0.1:{ports[listener]}", security, mechanism, **more)

    return make


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
        KafkaAccess("kafka:9092", **parts)
    assert PASSWORD not in str(caught.value)


def test_the_password_is_not_part_of_the_representation() -> None:
    access = KafkaAccess("kafka:9093", "sasl_ssl", user=USER, password=PASSWORD)
    assert PASSWORD not in repr(access) and PASSWORD not in str(access)


def test_topics_carry_the_prefix_for_clients_only() -> None:
    access = KafkaAccess("a:1, b:2", topic_prefix="shop1.")
    assert (access.topic(CATALOG), access.name("shop1.catalog")) == ("shop1.catalog", CATALOG)
    assert access.servers == ["a:1", "b:2"]
    assert not access.owns("catalog")
    with pytest.raises(ValueError, match=r"'catalog' does not begin with the prefix 'shop1\.'"):
        access.name("catalog")
    assert KafkaAccess("a:1").name("catalog") == "catalog"


def test_a_plaintext_cluster_needs_no_more_than_its_servers() -> None:
    access = KafkaAccess("a:1,b:2")
    assert access.librdkafka() == {"bootstrap.servers": "a:1,b:2", "security.protocol": "plaintext"}
    assert access.kafka_python() == {"bootstrap_servers": ["a:1", "b:2"], "security_protocol": "PLAINTEXT"}
    assert access.aiokafka() == {"bootstrap_servers": ["a:1", "b:2"], "security_protocol": "PLAINTEXT"}
    assert access.faust() == {"broker": ["aiokafka://a:1", "aiokafka://b:2"]}


@pytest.mark.parametrize("name", WAYS)
def test_every_client_works_and_tells_no_secret(
    name: str,
    way: Way,
    redis_server: RedisServer,
    keys: Keys,
    everything_logged: Callable[[], str],
) -> None:
    access = way(name)
    assert CLICKSTREAM in create_topics(access, PARTITIONS)
    asyncio.run(_through_worker(access, redis_server.url, keys))
    with TopicReader(access) as reader:
        assert [(record.topic, record.key) for record in reader.records()] == [
            (CATALOG, b"tea"),
            (CLICKSTREAM, b"anna"),
        ]
        assert f"{CLICKSTREAM}[{PARTITIONS - 1}]" in reader.covers
    assert PASSWORD not in everything_logged()


async def _through_worker(access: KafkaAccess, redis_url: str, keys: Keys) -> None:
    """A click is produced and applied by a worker, a catalogue record is read by the embed role's source."""
    producer, store = EventProducer(access), RedisStore(redis_url, keys)
    engine = Engine(store, Rules(embedders={"toy": 4}), PARTITIONS, KafkaOutlet(producer.send))
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
            assert await asyncio.to_thread(_first_taken, KafkaCatalog(access, f"{group}-embed")) == (CATALOG, b"tea")
        assert set(await LogLookup(access).partition_counts()) >= {CLICKSTREAM, CATALOG}
    finally:
        worker.stop()
        await running
        producer.close()
        await store.close()


def _first_taken(source: KafkaCatalog) -> tuple[str, bytes | None]:
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while not (found := source.take(1)):
            assert time.monotonic() < deadline, "no record came"
        return found[0].topic, found[0].key
    finally:
        source.close()


@pytest.mark.parametrize("name", ["scram-512", "plain"])
def test_a_wrong_password_is_one_clear_error_and_told_nowhere(
    name: str, way: Way, everything_logged: Callable[[], str]
) -> None:
    access = replace(way(name), password=WRONG)
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
        assert source.take(1) == [] and time.monotonic() < deadline
        logged += everything_logged()
    source.close()
    assert WRONG not in said + str(refused.value) + logged + everything_logged()


def test_an_unknown_authority_is_named_as_the_reason(way: Way) -> None:
    access = replace(way("plain"), ca="")
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
