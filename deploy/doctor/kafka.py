"""What the doctor sees of Kafka: reachable, TLS, login, version, advertised addresses, and our topics.

A first look speaks to one server without any client library: one ApiVersions request, which Kafka answers before a
login, tells a dead port from a wrong one, TLS from plain text, and about how old the server is. The rest goes through
librdkafka as it does for all roles; where that finds no way, the bootstrap server itself is asked for its brokers,
because librdkafka leaves that server for the addresses it is told there. It creates nothing and reads no record.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from deploy.doctor.finding import ANSWER_S, CONNECT_S, Finding
from deploy.servers.mock_kafka import topic_partitions
from deploy.settings import Settings
from streams.kafka.bootstrap import Cluster, cluster_at_bootstrap
from streams.kafka.config import KafkaConfig, Reasons

# The newest request that a server knows tells its age: (its number, the release that brought it).
_RELEASES = ((76, "4.0"), (74, "3.7"), (65, "3.0"), (60, "2.8"), (50, "2.7"), (48, "2.6"), (45, "2.4"), (44, "2.3"))
OLDEST_KAFKA = "2.3"
_TOPIC_IDS = 60  # from this request on, the broker gives topics ids
_REQUEST = struct.pack(">hhih", 18, 0, 1, -1)  # ApiVersions version 0, correlation 1, no client id
_MOST_BYTES = 1 << 20  # an answer has some hundred; more is another protocol
_TLS_ALERT = b"\x15\x03"
_EMBEDDED = "mockCluster"
_MOST_BROKERS = 5  # looked at, to stay within the time

_START = "start Kafka, or set PERSEID_KAFKA to it"
_LOGIN = "check PERSEID_KAFKA_USER, PERSEID_KAFKA_PASSWORD and PERSEID_KAFKA_MECHANISM"
_TRUST = "set PERSEID_KAFKA_CA to the PEM file of the authority that signed Kafka's certificate"
_OWN_CERTIFICATE = "set PERSEID_KAFKA_CERT and PERSEID_KAFKA_KEY to this client's certificate and key"
_USE_TLS = "set PERSEID_KAFKA_SECURITY to ssl or sasl_ssl (and PERSEID_KAFKA_CA)"
_OTHER_PORT = "set PERSEID_KAFKA to Kafka's own port, and PERSEID_KAFKA_SECURITY to what it speaks there"
_NO_TLS = "set PERSEID_KAFKA_SECURITY to plaintext or sasl_plaintext, or PERSEID_KAFKA to the TLS port"


class _ProbeError(Exception):
    """The first look failed: what is wrong, and the remedy."""


def check_kafka(settings: Settings) -> list[Finding]:
    """The cluster and our topics in it."""
    access = settings.kafka_config()
    try:
        requests = _probe(access)
    except _ProbeError as error:
        what, remedy = error.args
        return [Finding("kafka", "wrong", what, remedy, access.bootstrap)]
    version = next((release for number, release in _RELEASES if number in requests), "")
    age = _age(access, requests, version)
    seen = _cluster(access)
    if isinstance(seen, Finding):
        return [*age, seen]
    if seen.name.startswith(_EMBEDDED):
        findings = [Finding("kafka", "ok", f"the embedded broker, {seen.name}", address=access.bootstrap)]
    else:
        findings = [*age, *_advertised(access, seen)]
        if not any(finding.state == "wrong" for finding in findings):
            what = f"cluster {seen.name}, {len(seen.brokers)} broker(s), {access.security}"
            findings.insert(0, Finding("kafka", "ok", what, "", access.bootstrap, f"Kafka {version} or newer"))
    counts = {access.name(name): count for name, count in seen.topics.items() if access.owns(name)}
    return [*findings, *_topics(access, counts, topic_partitions(settings.partitions))]


def _probe(access: KafkaConfig) -> set[int]:
    """The requests that the first reachable server knows. Raises _ProbeError of the last server tried."""
    failure = _ProbeError("no server is named", _START)
    for server in access.servers[:_MOST_BROKERS]:
        try:
            return _ask(access, server)
        except _ProbeError as error:
            failure = error
    raise failure


def _ask(access: KafkaConfig, server: str) -> set[int]:
    host, _, port = server.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S) as plain:
            plain.settimeout(ANSWER_S)
            if not access.tls:
                return _requests(plain, server)
            with access.ssl_context().wrap_socket(plain, server_hostname=host.strip("[]")) as secured:
                return _requests(secured, server)
    except ssl.SSLCertVerificationError as error:
        raise _ProbeError(f"{server}: its certificate is not trusted: {error.verify_message}", _TRUST) from error
    except ssl.SSLError as error:
        if "CERTIFICATE" in str(error.reason):
            raise _ProbeError(f"{server} wants a certificate of this client", _OWN_CERTIFICATE) from error
        raise _ProbeError(f"{server} does not speak TLS as expected ({error.reason})", _NO_TLS) from error
    except ConnectionRefusedError as error:
        raise _ProbeError(f"nothing listens on {server}", _START) from error
    except TimeoutError as error:
        raise _ProbeError(f"{server} does not answer, or not as Kafka does", f"{_START}; {_OTHER_PORT}") from error
    except OSError as error:
        remedy = _NO_TLS if access.tls else _START
        raise _ProbeError(f"{server} cannot be reached: {error.strerror or error}", remedy) from error


def _requests(connection: socket.socket, server: str) -> set[int]:
    """Numbers of the requests that the server knows, by ApiVersions."""
    connection.sendall(struct.pack(">i", len(_REQUEST)) + _REQUEST)
    head = _receive(connection, 4)
    if head.startswith(_TLS_ALERT):
        raise _ProbeError(f"{server} wants TLS", _USE_TLS)
    size = int.from_bytes(head, "big")
    body = _receive(connection, size) if len(head) == 4 and 10 <= size <= _MOST_BYTES else b""
    if len(body) < 10 or len(body) != size or (size - 10) % 6:
        hint = "" if body or head else ": it hangs up"
        raise _ProbeError(f"{server} is not Kafka, or expects TLS{hint}", _OTHER_PORT)
    return {number for number, _, _ in struct.iter_unpack(">hhh", body[10:])}


def _receive(connection: socket.socket, size: int) -> bytes:
    """That many bytes, or fewer when the server hangs up."""
    found = b""
    while len(found) < size and (part := connection.recv(size - len(found))):
        found += part
    return found


def _cluster(access: KafkaConfig) -> Cluster | Finding:
    """The cluster, known by either way."""
    answer = _metadata(access)
    if isinstance(answer, Cluster):
        return answer
    seen = cluster_at_bootstrap(access, access.servers[:_MOST_BROKERS], CONNECT_S)
    return seen if seen and _advertised(access, seen) else answer


def _metadata(access: KafkaConfig) -> Cluster | Finding:
    """What librdkafka is told of the cluster; a finding when it is told nothing."""
    reasons = Reasons()
    config: dict[str, Any] = {**access.librdkafka(), "log_level": 0, "error_cb": reasons}
    try:
        client = AdminClient(config)
    except KafkaException as error:
        return Finding("kafka", "wrong", error.args[0].str(), "check the PERSEID_KAFKA_* files", access.bootstrap)
    try:
        seen = client.list_topics(timeout=ANSWER_S)
    except KafkaException as error:
        client.poll(0.1)  # delivers the reasons
        what = reasons.recent or error.args[0].str()
        return Finding("kafka", "wrong", what, _remedy(access, what), access.bootstrap)
    brokers = [(broker.id, str(broker.host), broker.port) for broker in seen.brokers.values()]
    return Cluster(str(seen.cluster_id), brokers, {name: len(topic.partitions) for name, topic in seen.topics.items()})


def _remedy(access: KafkaConfig, reason: str) -> str:
    if "SASL" in reason or "uthentication" in reason:
        return _LOGIN
    if not access.sasl:
        return (
            "set PERSEID_KAFKA_SECURITY to what this port speaks, perhaps sasl_plaintext or sasl_ssl; look at its log"
        )
    return "look at Kafka's log; " + _LOGIN


def _age(access: KafkaConfig, requests: set[int], version: str) -> list[Finding]:
    if not version:
        remedy = f"use Kafka {OLDEST_KAFKA} or newer"
        return [Finding("kafka", "wrong", "too old", remedy, access.bootstrap, f"before Kafka {OLDEST_KAFKA}")]
    if _TOPIC_IDS not in requests:
        what = "topics have no ids: one that is deleted and made again under the same name is taken for the old one"
        remedy = "use Kafka 2.8 or newer, or a new PERSEID_PREFIX after making a topic anew"
        return [Finding("kafka", "note", what, remedy, access.bootstrap, f"Kafka {version}")]
    return []


def _advertised(access: KafkaConfig, seen: Cluster) -> list[Finding]:
    """Brokers whose own word for their address does not lead to them from here."""
    findings = []
    for number, host, port in seen.brokers[:_MOST_BROKERS]:
        try:
            socket.create_connection((host, port), CONNECT_S / 2).close()
        except OSError as error:
            what = f"broker {number} calls itself {host}:{port}, which cannot be reached from here"
            remedy = "set advertised.listeners of that broker to an address that its clients can reach"
            findings.append(Finding("kafka", "wrong", f"{what} ({error})", remedy, access.bootstrap))
    return findings


def _topics(access: KafkaConfig, counts: Mapping[str, int], wanted: Mapping[str, int]) -> list[Finding]:
    missing = [f"{access.topic(name)} ({count})" for name, count in wanted.items() if name not in counts]
    differing = [
        f"{access.topic(name)} has {counts[name]} partitions, not {count}"
        for name, count in wanted.items()
        if counts.get(name, count) != count
    ]
    findings = []
    if missing:
        remedy = "create these topics with the partition counts in brackets; a worker does not start without them"
        findings.append(Finding("topics", "wrong", f"missing: {', '.join(missing)}", remedy, access.bootstrap))
    if differing:
        remedy = "set PERSEID_PARTITIONS to the topics' count (with a new PERSEID_PREFIX), or create the topics anew"
        findings.append(Finding("topics", "wrong", "; ".join(differing), remedy, access.bootstrap))
    if not findings:
        found = ", ".join(f"{access.topic(name)} {count}" for name, count in wanted.items())
        findings.append(Finding("topics", "ok", found, address=access.bootstrap))
    return findings
