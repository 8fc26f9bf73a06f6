"""The brokers that faults are tried on: a real Kafka that outlives runs, or an embedded broker for each run.

Every run has topics of its own, by prefix. Only a real broker keeps its logs over a kill and has topics that can be
deleted. How a real one is started is its owner's matter; here it can only be killed and started again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from deploy.servers.kafka import KafkaServer
from deploy.servers.mock_kafka import Broker, topic_partitions
from deploy.servers.topics import AHEAD
from streams.events import CONSUMED, DEAD_LETTERS, EXPOSURES
from streams.kafka.config import KafkaConfig
from tests.faults.main_thread import in_main_thread

_ANSWER_S = 30.0  # a Kafka that has just been restarted on busy cores may need as long
_POLL_S = 0.02
_TOPICS = (*CONSUMED, EXPOSURES, DEAD_LETTERS)


class RealBroker:
    """Kafka. Keeps everything; topics are created and deleted by each run."""

    durable = True

    def __init__(self, server: KafkaServer) -> None:
        self._server = server
        self._admin = AdminClient({"bootstrap.servers": server.address, "log_level": 2})

    def open(self, run: str, partitions: int, folder: Path) -> KafkaConfig:
        """Creates the topics of a run."""
        access = KafkaConfig(self._server.address, topic_prefix=f"{run}-")
        self._create(access, _TOPICS, partitions)
        return access

    def close(self, access: KafkaConfig) -> None:
        """Deletes them; the broker removes their files when it likes."""
        if self._server.pid is None:
            self.restart()
        self._delete(access, _TOPICS)

    def kill(self) -> None:
        self._server.kill()

    def restart(self) -> None:
        """Starts the killed broker on its data; returns once it tells about topics."""
        in_main_thread(self._server.start)
        deadline = time.monotonic() + _ANSWER_S
        while True:
            try:
                self._admin.list_topics(timeout=2.0)
                return
            except KafkaException:
                if time.monotonic() > deadline:
                    raise

    def delete(self, access: KafkaConfig, topic: str) -> None:
        """Deletes one topic with its log."""
        self._delete(access, [topic])

    def create(self, access: KafkaConfig, topic: str, partitions: int) -> None:
        """Creates it again: the same name, another log."""
        self._create(access, [topic], partitions)

    def _create(self, access: KafkaConfig, names: Sequence[str], partitions: int) -> None:
        counts = topic_partitions(partitions)
        wanted = {access.topic(name): counts[name] for name in names}
        # The traffic's times are of another year: without this Kafka would soon delete what it has just taken.
        # And what a burst sends from the future is to come in, as it does where a topic has no limit.
        keep = {"retention.ms": "-1", AHEAD: str(2**63 - 1)}
        _done(self._admin.create_topics([NewTopic(name, count, 1, config=keep) for name, count in wanted.items()]))
        self._until(lambda topics: all(_ready(topics.get(name), count) for name, count in wanted.items()))

    def _delete(self, access: KafkaConfig, names: Sequence[str]) -> None:
        gone = [access.topic(name) for name in names]
        _done(self._admin.delete_topics(gone))
        self._until(lambda topics: not set(gone) & set(topics))

    def _until(self, check: Any) -> None:
        deadline = time.monotonic() + _ANSWER_S
        while not check(self._admin.list_topics(timeout=_ANSWER_S).topics):
            assert time.monotonic() < deadline, f"the topics are not as asked for after {_ANSWER_S:g} s"
            time.sleep(_POLL_S)


def _done(futures: dict[str, Future[None]]) -> None:
    for future in futures.values():
        future.result(_ANSWER_S)


def _ready(topic: Any, partitions: int) -> bool:
    return (
        topic is not None
        and len(topic.partitions) == partitions
        and all(partition.leader >= 0 for partition in topic.partitions.values())
    )


class EmbeddedBroker:
    """librdkafka's broker, a new one for each run; it keeps megabytes and nothing over a kill."""

    durable = False

    def __init__(self) -> None:
        self._brokers: dict[str, Broker] = {}

    def open(self, run: str, partitions: int, folder: Path) -> KafkaConfig:
        """Starts it with the topics of a run."""
        broker = Broker(topic_partitions(partitions), folder / "broker.log")
        access = KafkaConfig(in_main_thread(broker.start))
        self._brokers[access.bootstrap] = broker
        return access

    def close(self, access: KafkaConfig) -> None:
        """Stops it."""
        self._brokers.pop(access.bootstrap).stop()


AnyBroker = RealBroker | EmbeddedBroker
