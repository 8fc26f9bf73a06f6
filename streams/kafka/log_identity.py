"""Asks the broker in which log a position counts, by its cluster id and, where it has them, topic ids.

The embedded broker has no topic ids; it is a new cluster at each start. librdkafka asks, because kafka-python would
have to know before that the broker is the embedded one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from index.state.store import LogIdentity
from streams.kafka.config import KafkaConfig, Reasons

_TIMEOUT_S = 5.0  # a broker that is up answers in milliseconds
EMBEDDED = "mockCluster"  # how librdkafka's in-process broker names its clusters; it never answers DescribeTopics


class LogLookup:
    """Looks up log identities and partition counts, by the topics' logical names."""

    def __init__(self, kafka: KafkaConfig) -> None:
        self._kafka = kafka
        self._reasons = Reasons()
        config: dict[str, Any] = {**kafka.librdkafka(), "log_level": 2, "error_cb": self._reasons}
        self._admin = AdminClient(config)

    async def identities(self, topics: Sequence[str]) -> dict[str, LogIdentity]:
        """Identity of each topic's log that exists. ConnectionError when the broker does not answer."""
        return await asyncio.to_thread(self._identities, topics)

    async def partition_counts(self) -> dict[str, int]:
        """Partition count of every topic of ours. ConnectionError when the broker does not answer."""
        metadata = await asyncio.to_thread(self._metadata)
        kafka, topics = self._kafka, metadata.topics.items()
        return {kafka.name(topic): len(found.partitions) for topic, found in topics if kafka.owns(topic)}

    async def log_ends(self, topics: Sequence[str]) -> dict[tuple[str, int], int]:
        """The next offset of every partition of those topics that exist. ConnectionError without an answer."""
        return await asyncio.to_thread(self._log_ends, topics)

    def _log_ends(self, topics: Sequence[str]) -> dict[tuple[str, int], int]:
        metadata, latest = self._metadata().topics, OffsetSpec.latest()  # type: ignore[no-untyped-call]
        physical = [name for name in map(self._kafka.topic, topics) if name in metadata]
        places = [TopicPartition(name, number) for name in physical for number in metadata[name].partitions]
        if not places:
            return {}
        try:
            asked = self._admin.list_offsets(dict.fromkeys(places, latest), request_timeout=_TIMEOUT_S)
            return {(self._kafka.name(tp.topic), tp.partition): found.result().offset for tp, found in asked.items()}
        except KafkaException as error:
            raise ConnectionError(self._explained("does not say where its logs end", error)) from error

    def _metadata(self) -> Any:
        try:
            return self._admin.list_topics(timeout=_TIMEOUT_S)
        except KafkaException as error:
            raise ConnectionError(self._explained("does not answer", error)) from error

    def _identities(self, topics: Sequence[str]) -> dict[str, LogIdentity]:
        cluster_id = self._metadata().cluster_id or ""
        if cluster_id.startswith(EMBEDDED):
            return {topic: LogIdentity(cluster_id) for topic in topics}
        try:
            asked = TopicCollection([self._kafka.topic(topic) for topic in topics])
            found = self._admin.describe_topics(asked, request_timeout=_TIMEOUT_S)
            ids = {self._kafka.name(topic): self._topic_id(future) for topic, future in found.items()}
            return {topic: LogIdentity(cluster_id, topic_id) for topic, topic_id in ids.items() if topic_id}
        except KafkaException as error:
            raise ConnectionError(self._explained("does not describe its topics", error)) from error

    @staticmethod
    def _topic_id(described: Any) -> str:
        """Empty for a topic that does not exist."""
        try:
            return str(described.result().topic_id)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return ""
            raise

    def _explained(self, what: str, error: KafkaException) -> str:
        self._admin.poll(0)  # delivers the reasons
        return self._reasons.explain(f"Kafka {what}: {error.args[0].str()}")


def is_embedded(logs: Mapping[str, LogIdentity]) -> bool:
    """Whether they are those of the embedded broker, which cannot look offsets up by time."""
    return any(identity.cluster_id.startswith(EMBEDDED) for identity in logs.values())
