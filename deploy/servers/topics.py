"""Creates our topics on a real broker, and opens kafka-python's admin client for looks at brokers and topics.

Nothing is altered. librdkafka says why a client fails, since kafka-python drops an answer that comes with the end of
its connection, as that to a wrong password. It keeps topic ids, and the embedded broker's topics, where CreateTopics
does not answer.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.cluster import ClusterMetadata
from kafka.errors import (
    InvalidConfigurationError,
    KafkaError,
    RetriableError,
    TopicAlreadyExistsError,
    for_code,
)
from kafka.net.compat import KafkaNetClient

from context.counting import counted
from context.units import DAY_MS, HOUR_MS
from deploy.servers.mock_kafka import topic_partitions
from streams.events import COMPACTED, DEAD_LETTERS
from streams.kafka.config import KafkaConfig, Reasons

REPLAY_HORIZON_MS = 30 * DAY_MS  # compaction leaves younger records alone, so `replay` sees all of them
AHEAD = "message.timestamp.after.max.ms"  # Kafka 3.6 and later: the broker refuses records from further ahead
AHEAD_MS = HOUR_MS
_NO_LIMIT = 2**63 - 1
_TIMEOUT_S = 30.0  # a busy cluster may take seconds to elect leaders
_CONNECT_S = 1.0  # a server that is there accepts within milliseconds
_REASON_S = 1.0  # the broker delays its answer to a wrong password by a tenth of a second
_POLL_S = 0.05

log = logging.getLogger(__name__)


def create_topics(config: KafkaConfig, partitions: int) -> list[str]:
    """Creates the topics that are missing and waits until they have leaders; returns their logical names.

    Args:
        config: the cluster; its topic prefix is applied.
        partitions: of the topics keyed by user.

    Raises:
        ValueError: a topic has another count, or the broker refuses one; says the remedy.
        ConnectionError: the broker does not answer.
    """
    wanted, deadline = topic_partitions(partitions), time.monotonic() + _TIMEOUT_S
    try:
        with open_admin(config, _TIMEOUT_S) as (admin, _):
            missing = [name for name in wanted if name not in _ready(admin, config, wanted, deadline)]
            if missing:
                _create(admin, {config.topic(name): (wanted[name], topic_config(name)) for name in missing})
            while not all(_ready(admin, config, wanted, deadline).get(name) for name in wanted):
                if time.monotonic() > deadline:
                    what = f"not all topics have a leader after {_TIMEOUT_S:g} s: look at the brokers' logs"
                    raise ConnectionError(what)
                time.sleep(_POLL_S)  # a producer that asks before a topic is led gets an error
    except KafkaError as error:
        raise ConnectionError(f"Kafka {config.bootstrap} does not answer: {error}") from error
    return missing


def topic_config(name: str) -> dict[str, str]:
    """The configuration of a topic, as far as it must not be the broker's defaults.

    No producer may write into the future, by which users of its partition would become idle; dead letters keep what
    came in before there was a limit.
    """
    config = {AHEAD: str(_NO_LIMIT if name == DEAD_LETTERS else AHEAD_MS)}
    if name in COMPACTED:
        config |= {"cleanup.policy": "compact", "min.compaction.lag.ms": str(REPLAY_HORIZON_MS)}
    return config


@contextmanager
def open_admin(
    config: KafkaConfig, timeout_s: float, **options: Any
) -> Iterator[tuple[KafkaAdminClient, ClusterMetadata]]:
    """kafka-python's admin client, and what its bootstrap server said of all brokers and topics.

    Args:
        options: of the client. The embedded broker needs `api_version=(2, 3)`, which real ones understand as well.

    Raises:
        ConnectionError: no server answers within `timeout_s`; names the reason as far as librdkafka tells it.
    """
    deadline = time.monotonic() + timeout_s
    # A server that refuses connections is tried here: kafka-python leaves the sockets of failed attempts open.
    while not (servers := [server for server in config.servers if connect(config, server) is None]):
        if time.monotonic() > deadline:
            raise ConnectionError(f"Kafka {config.bootstrap} does not answer: {connect(config, config.servers[-1])}")
        time.sleep(_POLL_S)
    clients: list[KafkaNetClient] = []  # the admin client does not close its own when it fails to begin

    def client(**more: Any) -> KafkaNetClient:
        clients.append(KafkaNetClient(**more))
        clients[0].cluster.need_all_topic_metadata = True
        return clients[0]

    arguments = {**config.kafka_python(), "bootstrap_servers": servers, "kafka_client": client, **options}
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # the error says it once
    try:
        admin = KafkaAdminClient(**arguments, bootstrap_timeout_ms=max(1.0, deadline - time.monotonic()) * 1000)
    except KafkaError as error:
        clients[0].close()
        raise ConnectionError(f"Kafka {config.bootstrap} does not answer: {_reason(config) or error}") from error
    with admin:
        yield admin, clients[0].cluster


def topics_without_limit(admin: KafkaAdminClient, topics: Sequence[str]) -> list[str]:
    """Those of these topics, by their full names, that take records from more than `AHEAD_MS` in the future.

    Raises KafkaError.
    """
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
    found = admin.describe_configs(asked, config_filter="all")["topic"]

    def value(topic: str, name: str) -> str:
        return str(found[topic].get(name, {}).get("value") or "")

    return [
        topic
        for topic in topics
        if value(topic, "message.timestamp.type") != "LogAppendTime"
        and not 0 <= int(value(topic, AHEAD) or _NO_LIMIT) <= AHEAD_MS
    ]


def connect(config: KafkaConfig, server: str) -> OSError | None:
    """Opens a connection to `host:port`, with TLS where it is configured, and closes it; what went wrong, if anything.

    A client's certificate that TLS 1.3 misses is told only to the first request.
    """
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), _CONNECT_S) as connection:
            if config.tls:
                config.ssl_context().wrap_socket(connection, server_hostname=host).close()
    except OSError as error:
        return error
    return None


def _reason(config: KafkaConfig) -> str:
    """Why librdkafka cannot reach the brokers; empty when it can, or does not know."""
    reasons = Reasons()
    settings: dict[str, Any] = {**config.librdkafka(), "log_level": 0, "error_cb": reasons}
    try:
        client = AdminClient(settings)
        client.list_topics(timeout=_REASON_S)
    except KafkaException:
        client.poll(0.1)  # delivers the reasons
    return reasons.recent


def _create(admin: KafkaAdminClient, topics: Mapping[str, tuple[int, Mapping[str, str]]]) -> None:
    new = {topic: {"num_partitions": count, "configs": configs} for topic, (count, configs) in topics.items()}
    older: dict[str, tuple[int, Mapping[str, str]]] = {}
    for topic in admin.create_topics(new, timeout_ms=round(_TIMEOUT_S * 1000), raise_errors=False)["topics"]:
        name, code = topic["name"], topic["error_code"]
        count, configs = topics[name]
        if code == InvalidConfigurationError.errno and AHEAD in configs:  # a broker older than the setting
            older[name] = count, {key: value for key, value in configs.items() if key != AHEAD}
        elif code not in (0, TopicAlreadyExistsError.errno):  # another process may have been faster
            raise ValueError(f"Kafka refused to create {name}: {topic['error_message'] or for_code(code).__name__}")
    if older:
        log.warning("this Kafka knows no %s: a producer can write into the future; use Kafka 3.6 or later", AHEAD)
        _create(admin, older)


def _ready(admin: KafkaAdminClient, config: KafkaConfig, wanted: Mapping[str, int], deadline: float) -> dict[str, bool]:
    """Our topics that exist, and whether all partitions have leaders. Raises as `create_topics`."""
    ready = {}
    for topic in _described(admin, [config.topic(name) for name in wanted], deadline):
        if topic["error_code"]:
            continue
        name, found = config.name(topic["name"]), topic["partitions"]
        if len(found) != wanted[name]:
            raise ValueError(
                f"topic {topic['name']} has {counted(len(found), 'partition')}, not {wanted[name]}: set "
                "PERSEID_PARTITIONS to its count (with a new PERSEID_PREFIX), or delete it and create it anew"
            )
        ready[name] = all(partition["leader_id"] >= 0 for partition in found)
    return ready


def _described(admin: KafkaAdminClient, topics: list[str], deadline: float) -> list[dict[str, Any]]:
    while True:
        try:
            return list(admin.describe_topics(topics))
        except RetriableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
