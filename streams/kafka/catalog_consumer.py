"""Reads the catalogue for the embed role, in a consumer group of its own.

The committed offset is where a next process begins, so it is set explicitly: what is not done yet is not passed. A
rebalance is told, because records in hand may be somebody else's from then on.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from context.units import DAY_MS
from streams.events import CATALOG, Record
from streams.kafka.config import KafkaConfig, Reasons, message_to_record

log = logging.getLogger(__name__)

_IDLE_S = 0.25  # how long one look at the topic waits; also bounds how late a stop is noticed


class CatalogSource(Protocol):
    """Where catalogue records come from."""

    async def take(self, most: int) -> list[Record]:
        """The next records in order, at most `most`; empty when none came for a moment."""

    def rebalanced(self) -> bool:
        """Whether, since this was last asked, records taken before may have become another process's."""

    async def commit(self, offset: int) -> None:
        """Records below this offset need not come again."""

    async def close(self) -> None:
        """Leaves the group."""


class KafkaCatalog:
    """`CatalogSource` on Kafka, by librdkafka, whose calls block and so run on threads of their own."""

    def __init__(self, access: KafkaConfig, group: str) -> None:
        self._topic = access.topic(CATALOG)
        self._rebalanced = self._is_ours = False
        self._reasons = Reasons()
        self._consumer = Consumer(
            {
                **access.librdkafka(),
                "error_cb": self._complain,
                "group.id": group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "session.timeout.ms": 6_000,  # a killed embed process is replaced after this long
                "heartbeat.interval.ms": 2_000,
                "max.poll.interval.ms": DAY_MS,  # a day's tokens may be spent: nothing is read until the next one
                "isolation.level": "read_committed",
                "log_level": 2,  # see `_complain`
            }
        )
        self._consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked)

    async def take(self, most: int) -> list[Record]:
        return await asyncio.to_thread(self._take, most)

    def _take(self, most: int) -> list[Record]:
        found = self._consumer.consume(1, _IDLE_S)
        if found:  # a lone item does not wait for others, a backlog comes in batches
            found += self._consumer.consume(most - 1, 0.01) if most > 1 else []
        return [message_to_record(message, CATALOG) for message in found if message.error() is None]

    @property
    def is_ours(self) -> bool:
        """Whether the catalogue is this process's now, and no other's of the group."""
        return self._is_ours

    def rebalanced(self) -> bool:
        before, self._rebalanced = self._rebalanced, False
        return before

    async def commit(self, offset: int) -> None:
        places = [TopicPartition(self._topic, 0, offset)]
        try:
            await asyncio.to_thread(self._consumer.commit, offsets=places, asynchronous=False)
        except KafkaException as error:  # the partition went to another member, or Kafka is away: it is read again
            log.info("offset of %s not committed: %s", self._topic, error)

    async def close(self) -> None:
        await asyncio.to_thread(self._consumer.close)

    def _complain(self, error: KafkaError) -> None:
        """Logs an outage once, not each attempt to connect."""
        known = self._reasons.recent
        self._reasons(error)
        if not known and self._reasons.recent:
            log.warning("cannot read %s: %s", self._topic, self._reasons.recent)

    def _assigned(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._rebalanced, self._is_ours = True, bool(partitions)

    def _revoked(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        self._rebalanced, self._is_ours = True, False
