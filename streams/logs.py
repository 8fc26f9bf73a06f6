"""Which log a position counts in: asks the broker for its cluster id and, where it has them, topic ids.

Knows nothing of positions. The embedded broker has no topic ids; it is a new cluster at each start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from index.store import LogIdentity

_TIMEOUT_S = 5.0  # a broker that is up answers in milliseconds
_EMBEDDED = "mockCluster"  # how librdkafka's in-process broker names its clusters; it never answers DescribeTopics


class LogLookup:
    """Looks up log identities and partition counts.

    Args:
        bootstrap: Kafka servers.
        config: further librdkafka settings (security).
    """

    def __init__(self, bootstrap: str, config: Mapping[str, str] | None = None) -> None:
        self._admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2, **(config or {})})

    async def identities(self, topics: Sequence[str]) -> dict[str, LogIdentity]:
        """Identity of each topic's log. ConnectionError when the broker does not answer."""
        return await asyncio.to_thread(self._identities, topics)

    async def partition_counts(self) -> dict[str, int]:
        """Partition count of every topic there is. ConnectionError when the broker does not answer."""
        metadata = await asyncio.to_thread(self._metadata)
        return {name: len(topic.partitions) for name, topic in metadata.topics.items()}

    def _metadata(self) -> Any:
        try:
            return self._admin.list_topics(timeout=_TIMEOUT_S)
        except KafkaException as error:
            raise ConnectionError(f"Kafka does not answer: {error.args[0].str()}") from error

    def _identities(self, topics: Sequence[str]) -> dict[str, LogIdentity]:
        cluster_id = self._metadata().cluster_id or ""
        if cluster_id.startswith(_EMBEDDED):
            return {topic: LogIdentity(cluster_id) for topic in topics}
        try:
            found = self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=_TIMEOUT_S)
            return {topic: LogIdentity(cluster_id, str(future.result().topic_id)) for topic, future in found.items()}
        except KafkaException as error:
            raise ConnectionError(f"Kafka does not describe its topics: {error.args[0].str()}") from error
