"""Checks that Kafka can be reached, with TLS, login, advertised addresses, and our topics.

A connection to each server tells a dead port, and TLS that does not fit, from the rest. kafka-python then asks one
server for brokers and topics, and does not leave it for the addresses that it is told there, as librdkafka would.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping

from kafka.admin import KafkaAdminClient
from kafka.cluster import ClusterMetadata
from kafka.errors import KafkaError

from context.counting import counted
from deploy.doctor.finding import CONNECT_S, Finding
from deploy.servers.mock_kafka import topic_partitions
from deploy.servers.topics import AHEAD, AHEAD_MS, connect, open_admin, topics_without_limit
from deploy.settings import Settings
from streams.events import DEAD_LETTERS
from streams.kafka.config import KafkaConfig
from streams.kafka.log_identity import EMBEDDED

_ANSWER_S = 2.0  # shorter than elsewhere: the reason for a failure is asked for afterwards
_VERSION = (2, 3)  # as the embedded broker needs it; newer ones understand it
_MOST_BROKERS = 5  # looked at, to stay within the time

_START = "start Kafka, or set PERSEID_KAFKA to it"
_LOGIN = "check PERSEID_KAFKA_USER, PERSEID_KAFKA_PASSWORD and PERSEID_KAFKA_MECHANISM"
_TRUST = "set PERSEID_KAFKA_CA to the PEM file of the authority that signed Kafka's certificate"
_OWN_CERTIFICATE = "set PERSEID_KAFKA_CERT and PERSEID_KAFKA_KEY to this client's certificate and key"
_USE_TLS = "set PERSEID_KAFKA_SECURITY to ssl or sasl_ssl (and PERSEID_KAFKA_CA)"
_OTHER_PORT = "set PERSEID_KAFKA to Kafka's own port, and PERSEID_KAFKA_SECURITY to what it speaks there"
_NO_TLS = "set PERSEID_KAFKA_SECURITY to plaintext or sasl_plaintext, or PERSEID_KAFKA to the TLS port"


def check_kafka(settings: Settings) -> list[Finding]:
    """The cluster and our topics in it."""
    config = settings.kafka_config()
    at = Finding("kafka", address=config.bootstrap)
    errors = {server: connect(config, server) for server in config.servers[:_MOST_BROKERS]}
    server, error = list(errors.items())[-1]
    if all(errors.values()):
        return [at.wrong(*_unreachable(config, server, error))]
    try:
        with open_admin(config, _ANSWER_S, api_version=_VERSION) as (admin, cluster):
            wanted = topic_partitions(settings.partitions)
            brokers, topics = _cluster(at, config.security, cluster), _topics(config, cluster, wanted)
            if cluster.cluster_id.startswith(EMBEDDED) or any(found.state == "wrong" for found in brokers):
                return brokers + topics
            return brokers + topics + _limits(config, admin, cluster, wanted)
    except ConnectionError as error:
        return [at.wrong(*_refused(config, server, str(error)))]


def _unreachable(config: KafkaConfig, server: str, error: OSError | None) -> tuple[str, str]:
    """What is wrong with a server that takes no connection of ours, and the remedy."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"{server}: its certificate is not trusted: {error.verify_message}", _TRUST
        case ssl.SSLError():
            return f"{server} does not speak TLS as expected ({error.reason})", _NO_TLS
        case ConnectionRefusedError():
            return f"nothing listens on {server}", _START
        case TimeoutError():
            return f"{server} does not answer, or not as Kafka does", f"{_START}; {_OTHER_PORT}"
    return f"{server} cannot be reached: {error}", _NO_TLS if config.tls else _START


def _refused(config: KafkaConfig, server: str, reason: str) -> tuple[str, str]:
    """What is wrong with a server that takes connections and does not answer, and the remedy."""
    if not config.tls and _speaks_tls(server):
        return f"{server} wants TLS", _USE_TLS
    if "alert" in reason and "certificate" in reason:
        return f"{server} wants a certificate of this client: {reason}", _OWN_CERTIFICATE
    if "SASL" in reason or "uthentication" in reason:
        return reason, _LOGIN
    return f"{server} does not answer, or not as Kafka does", f"{_START}; {_OTHER_PORT}"


def _speaks_tls(server: str) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent
    host, _, port = server.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S) as connection:
            context.wrap_socket(connection).close()
    except OSError:
        return False
    return True


def _cluster(at: Finding, security: str, cluster: ClusterMetadata) -> list[Finding]:
    """The cluster, or its brokers whose own word for their address does not lead to them from here."""
    brokers, findings = cluster.brokers(), []
    if cluster.cluster_id.startswith(EMBEDDED):
        return [at.ok(f"the embedded broker, {cluster.cluster_id}")]
    for broker in brokers[:_MOST_BROKERS]:
        try:
            socket.create_connection((broker.host, broker.port), CONNECT_S / 2).close()
        except OSError as error:
            address = f"{broker.host}:{broker.port}"
            what = f"broker {broker.node_id} calls itself {address}, which cannot be reached from here ({error})"
            remedy = "set advertised.listeners of that broker to an address that its clients can reach"
            findings.append(at.wrong(what, remedy))
    return findings or [at.ok(f"cluster {cluster.cluster_id}, {len(brokers)} broker(s), {security}")]


def _topics(config: KafkaConfig, cluster: ClusterMetadata, wanted: Mapping[str, int]) -> list[Finding]:
    """Topics that are missing or have another partition count, or all of them."""
    counts = {name: len(cluster.partitions_for_topic(config.topic(name)) or ()) for name in wanted}
    missing = ", ".join(f"{config.topic(name)} ({wanted[name]})" for name, count in counts.items() if not count)
    differing = "; ".join(
        f"{config.topic(name)} has {counted(count, 'partition')}, not {wanted[name]}"
        for name, count in counts.items()
        if count not in (0, wanted[name])
    )
    create = "create these topics with the partition counts in brackets; a worker does not start without them"
    change = "set PERSEID_PARTITIONS to the topics' count (with a new PERSEID_PREFIX), or create the topics anew"
    at = Finding("topics", address=config.bootstrap)
    found = ", ".join(f"{config.topic(name)} {count}" for name, count in wanted.items())
    return at.all_wrong(
        (bool(missing), f"missing: {missing}", create),
        (bool(differing), differing, change),
    ) or [at.ok(found)]


def _limits(
    config: KafkaConfig, admin: KafkaAdminClient, cluster: ClusterMetadata, wanted: Mapping[str, int]
) -> list[Finding]:
    """Our topics into whose future a producer can write."""
    names = [config.topic(name) for name in wanted if name != DEAD_LETTERS]
    try:
        open_ended = topics_without_limit(admin, [name for name in names if name in cluster.topics()])
    except KafkaError as error:
        return [Finding("topics", address=config.bootstrap).note(f"their configuration cannot be read: {error}")]
    if not open_ended:
        return []
    what = f"{', '.join(open_ended)}: records from the future are taken, which can make users of a partition idle"
    remedy = f"kafka-configs.sh --alter --entity-type topics --entity-name TOPIC --add-config {AHEAD}={AHEAD_MS}"
    return [Finding("topics", address=config.bootstrap).note(what, remedy)]
