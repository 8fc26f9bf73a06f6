"""Where tests find real servers: addresses from the environment, containers, or processes of their own without Docker.

`TEST_KAFKA` (host:port) and `TEST_ELASTICSEARCH` (URL) name servers to use. Else testcontainers starts them where a
Docker daemon answers, else `deploy.servers` does with Java and Maven. On a machine with none of these a test is
skipped with the reason; with CI=true it fails. Each server is started once per run; tests share it by prefixes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from deploy.servers.artefacts import find_maven
from deploy.servers.elasticsearch import ElasticsearchServer
from deploy.servers.java import find_java
from deploy.servers.kafka import KafkaServer
from deploy.stack import docker as stack_docker
from streams.kafka.config import KafkaConfig
from tests.support import process_logs

KAFKA_IMAGE = "confluentinc/cp-kafka:7.9.0"
ELASTICSEARCH_IMAGE = "elasticsearch:9.2.0"
_DELETE_S = 20.0
KEEP = {"log.retention.ms": "-1"}  # tests' records are of another year: Kafka would soon delete what it has just taken


@contextmanager
def found(
    variable: str,
    container: Callable[[], AbstractContextManager[str]],
    process: Callable[[], AbstractContextManager[str]],
    environ: Mapping[str, str] = os.environ,
) -> Iterator[str]:
    """The address of a server in one of the three ways; skips, or fails in CI, when there is none."""
    if environ.get(variable):
        yield environ[variable]
        return
    start = container if stack_docker.daemon_answers(environ) else process
    if start is process:
        need_java(environ, f"no Docker daemon, {variable} is not set, and ")
    with start() as address:
        yield address


def need(name: str, environ: Mapping[str, str] = os.environ) -> None:
    """Skips, or fails in CI, where the server `name` can be had in no way."""
    variable = {"kafka": "TEST_KAFKA", "elasticsearch": "TEST_ELASTICSEARCH"}.get(name)
    if variable is None or not (environ.get(variable) or stack_docker.daemon_answers(environ)):
        need_java(environ)


def need_java(environ: Mapping[str, str] = os.environ, why: str = "") -> None:
    """Skips, or fails in CI, where servers cannot be started without Docker."""
    try:
        find_java(environ)
        find_maven(environ)
    except ValueError as error:
        if environ.get("CI") == "true":
            pytest.fail(f"CI needs real servers: {why}{error}")
        pytest.skip(f"{why}{error}")


def kafka() -> AbstractContextManager[str]:
    """`host:port` of a real Kafka."""
    return found("TEST_KAFKA", _kafka_container, kafka_process)


def elasticsearch() -> AbstractContextManager[str]:
    """URL of a real Elasticsearch."""
    return found("TEST_ELASTICSEARCH", _elasticsearch_container, elasticsearch_process)


@contextmanager
def kafka_process() -> Iterator[str]:
    """A broker without Docker, with empty topics."""
    with open_folder("perseid-test-kafka-") as folder, KafkaServer(folder, properties=KEEP) as server:
        yield server.address


@contextmanager
def elasticsearch_process() -> Iterator[str]:
    """A node without Docker, with no index."""
    with open_folder("perseid-test-elasticsearch-") as folder, ElasticsearchServer(folder) as server:
        yield server.url


@contextmanager
def open_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder that other ids may enter, unlike pytest's: Elasticsearch does not run as root."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o755)
    process_logs.watch(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def own_topics(bootstrap: str, prefix: str) -> Iterator[KafkaConfig]:
    """Access with a topic prefix of its own, whose topics are deleted in the end."""
    access = KafkaConfig(bootstrap, topic_prefix=prefix)
    yield access
    admin = AdminClient({**access.librdkafka(), "log_level": 2})
    topics = [topic for topic in admin.list_topics(timeout=_DELETE_S).topics if access.owns(topic)]
    if topics:
        for future in admin.delete_topics(topics, operation_timeout=_DELETE_S).values():
            future.result()


@contextmanager
def _kafka_container() -> Iterator[str]:
    from testcontainers.community.kafka import KafkaContainer

    container = KafkaContainer(KAFKA_IMAGE).with_kraft()
    for name, value in (
        ("KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS", "1000"),
        ("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false"),
        ("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1"),
        ("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1"),
        *((f"KAFKA_{name.upper().replace('.', '_')}", value) for name, value in KEEP.items()),
    ):
        container.with_env(name, value)
    with container as started:
        yield started.get_bootstrap_server()


@contextmanager
def _elasticsearch_container() -> Iterator[str]:
    from testcontainers.community.elasticsearch import ElasticSearchContainer

    container = ElasticSearchContainer(ELASTICSEARCH_IMAGE).with_env("ES_JAVA_OPTS", "-Xms512m -Xmx512m")
    with container as started:
        yield f"http://{started.get_container_host_ip()}:{started.get_exposed_port(started.port)}"
