"""The topics of a deployment as history to read again: which there are, and what is needed of them from the start.

Assumes settings that name a broker. It does not read records (`streams.kafka.topic_reader`).
"""

from __future__ import annotations

from collections.abc import Collection

from deploy.settings import Settings
from index.state.store import LogIdentity
from streams.events import CLICKSTREAM, CONSUMED, PARTITIONED
from streams.kafka.log_identity import LogLookup

# What clicks are applied to and answered from: needed from the start of its log whatever part of them is read.
STANDING_TOPICS = tuple(topic for topic in CONSUMED if topic != CLICKSTREAM)


async def history_logs(settings: Settings, optional: Collection[str] = ()) -> dict[str, LogIdentity]:
    """Identities of the consumed topics, and of those of `optional` that exist.

    Raises:
        ValueError: a consumed topic is missing or partitioned otherwise.
        ConnectionError: the broker does not answer.
    """
    lookup = LogLookup(settings.kafka_access())
    counts = await lookup.partition_counts()
    for topic in CONSUMED:
        if topic not in counts:
            raise ValueError(f"topic {topic!r} does not exist on this broker, which has {sorted(counts)}")
        if topic in PARTITIONED and counts[topic] != settings.partitions:
            raise ValueError(
                f"topic {topic!r} has {counts[topic]} partitions, PERSEID_PARTITIONS says {settings.partitions}: a "
                f"user's place follows from the count; set PERSEID_PARTITIONS={counts[topic]}"
            )
    return await lookup.identities([*CONSUMED, *(topic for topic in optional if topic in counts)])
