"""Our topics on a real broker: creates what is missing, and refuses what has another partition count.

Assumes an admin may create topics; the replication factor is the broker's default. Compacted topics keep every record
for the replay horizon. An existing topic is never changed: a user's home is murmur2 modulo the count. The embedded
broker, which creates its topics itself, is not for this module.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from context.units import DAY_MS
from deploy.servers.mock_kafka import topic_partitions
from streams.kafka.config import KafkaConfig, Reasons

COMPACTED = frozenset({"catalog", "item-vectors", "context", "users"})
REPLAY_HORIZON_MS = 30 * DAY_MS  # compaction leaves younger records alone, so `replay` sees all of them
_TIMEOUT_S = 30.0  # a busy cluster may take seconds to elect leaders
_POLL_S = 0.05


def create_topics(access: KafkaConfig, partitions: int) -> list[str]:
    """Creates the topics that are missing and waits until they have leaders; returns their logical names.

    Args:
        access: the cluster; its topic prefix is applied.
        partitions: of the topics keyed by user.

    Raises:
        ValueError: a topic has another count, or the broker refuses one; says the remedy.
        ConnectionError: the broker does not answer.
    """
    reasons, wanted = Reasons(), topic_partitions(partitions)
    config: dict[str, Any] = {**access.librdkafka(), "log_level": 2, "error_cb": reasons}
    admin = AdminClient(config)
    missing = [name for name in wanted if name not in _checked(admin, reasons, access, wanted)]
    if missing:
        new = [NewTopic(access.topic(name), wanted[name], config=topic_config(name)) for name in missing]
        futures = admin.create_topics(new, operation_timeout=_TIMEOUT_S, request_timeout=_TIMEOUT_S)
        for topic, future in futures.items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another process was faster
                    raise ValueError(f"Kafka refused to create {topic}: {error.args[0].str()}") from error
    _wait(admin, reasons, access, wanted)
    return missing


def topic_config(name: str) -> dict[str, str]:
    """The configuration of a topic that differs from the broker's defaults."""
    if name not in COMPACTED:
        return {}
    return {"cleanup.policy": "compact", "min.compaction.lag.ms": str(REPLAY_HORIZON_MS)}


def _wait(admin: AdminClient, reasons: Reasons, access: KafkaConfig, wanted: Mapping[str, int]) -> None:
    """Until every topic is known and led; a producer that asks earlier gets an error."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not all(_checked(admin, reasons, access, wanted).get(name) for name in wanted):
        if time.monotonic() > deadline:
            raise ConnectionError(f"not all topics have a leader after {_TIMEOUT_S:g} s: look at the brokers' logs")
        time.sleep(_POLL_S)


def _checked(admin: AdminClient, reasons: Reasons, access: KafkaConfig, wanted: Mapping[str, int]) -> dict[str, bool]:
    """Our topics that exist, and whether all partitions have leaders. Raises as `create_topics`."""
    try:
        found = admin.list_topics(timeout=_TIMEOUT_S).topics
    except KafkaException as error:
        admin.poll(0)  # delivers the reasons
        what = f"Kafka {access.bootstrap} does not answer: {error.args[0].str()}"
        raise ConnectionError(reasons.explain(what)) from error
    ready = {}
    for name, count in wanted.items():
        topic = found.get(access.topic(name))
        if topic is None or topic.error is not None:
            continue
        if len(topic.partitions) != count:
            raise ValueError(
                f"topic {access.topic(name)} has {len(topic.partitions)} partitions, not {count}: set "
                "PERSEID_PARTITIONS to its count (with a new PERSEID_PREFIX), or delete it and create it anew"
            )
        ready[name] = all(partition.leader >= 0 for partition in topic.partitions.values())
    return ready
