"""Reads the newest records of topics and what follows, for a reader that may miss some, and single places of a log.

Belongs to no consumer group and commits nothing. Where a log does not reach back so far, reading begins where it does.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streams.events import Record
from streams.kafka.config import KafkaConfig, Reasons, message_to_record

_TIMEOUT_S = 5.0  # of a look-up; a broker that is up answers in milliseconds
_POLL_S = 0.1
_TAIL_BASE = -2000  # librdkafka's logical offset "n before the end" is this less n
_TOGETHER = 64 * 1024  # bytes; under load a broker sends what came in `fetch.wait.max.ms`, not each record alone
_CONFIG = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "earliest",  # of what retention has removed meanwhile, or of a log made anew
    "isolation.level": "read_committed",
    "fetch.wait.max.ms": 50,  # what is new is to be seen within a tenth of a second
    "fetch.message.max.bytes": 256 * 1024,  # of one partition, at once; a larger record comes alone
    "queued.min.messages": 500,
    "queued.max.messages.kbytes": 8 * 1024,  # fetched ahead of all partitions together
    "log_level": 2,
}


class TopicTail:
    """The last `backs[topic]` records of each partition of some topics, and whatever is sent from then on.

    Topics that do not exist are left out; `topics` are those that do. Raises ConnectionError when the broker does not
    answer. Not for several threads.
    """

    def __init__(self, kafka: KafkaConfig, backs: Mapping[str, int]) -> None:
        self._consumer, self._reasons = _open(kafka, **{"fetch.min.bytes": _TOGETHER})
        self._kafka = kafka
        self._next: dict[tuple[str, int], int] = {}  # by physical topic and partition, of those that anything came of
        try:
            existing = self._consumer.list_topics(timeout=_TIMEOUT_S).topics
            self.topics = tuple(topic for topic in backs if kafka.topic(topic) in existing)
            self._places = [
                (kafka.topic(t), number) for t in self.topics for number in existing[kafka.topic(t)].partitions
            ]
            self._backs = {kafka.topic(topic): back for topic, back in backs.items()}
            self._consumer.assign([TopicPartition(t, n, _TAIL_BASE - self._backs[t]) for t, n in self._places])
        except KafkaException as error:
            self._consumer.close()
            raise ConnectionError(self._reasons.explain("Kafka does not answer")) from error

    @property
    def trouble(self) -> str:
        """Why the broker could not be reached in the last half minute; "" where it could."""
        return self._reasons.recent

    def poll(self, most: int, timeout_s: float) -> list[Record]:
        """Up to `most` records within `timeout_s` seconds, those of one partition in order."""
        found = []
        for message in self._consumer.consume(most, timeout_s):
            if message.error() is None:
                record = message_to_record(message, self._kafka.name(message.topic() or ""))
                self._next[message.topic() or "", record.partition] = record.offset + 1
                found.append(record)
        return found

    def skip(self) -> None:
        """Goes on at the last `backs[topic]` records of each partition where reading is further behind.

        What lies between is left out. As the ends are known, those of the last answer of the broker are taken.
        """
        places = []
        for topic, number in self._places:
            place, begin = TopicPartition(topic, number), _TAIL_BASE - self._backs[topic]
            if (next_offset := self._next.get((topic, number))) is not None:
                _, end = self._consumer.get_watermark_offsets(place, cached=True) or (0, -1)
                begin = self._next[topic, number] = max(next_offset, end - self._backs[topic])
            place.offset = begin
            places.append(place)
        self._consumer.assign(places)

    def close(self) -> None:
        """Leaves the broker."""
        self._consumer.close()


def records_between(
    kafka: KafkaConfig, topic: str, partition: int, *, start: int | None = None, most: int = 1, timeout_s: float = 5.0
) -> Sequence[Record]:
    """Up to `most` records of a partition from offset `start` on, or its last ones.

    Those that are there now; none where the log does not hold them any more. Raises ConnectionError when the broker
    does not answer within `timeout_s`.
    """
    consumer, reasons = _open(kafka, **{"enable.partition.eof": True})  # the last offsets may be markers
    try:
        place = TopicPartition(kafka.topic(topic), partition)
        first, end = consumer.get_watermark_offsets(place, timeout=timeout_s) or (0, 0)
        at = max(first, end - most) if start is None else start
        if not first <= at < end:
            return []
        place.offset = at
        consumer.assign([place])
        return _until_end(consumer, topic, most, min(end, at + most), timeout_s)
    except KafkaException as error:
        raise ConnectionError(reasons.explain(f"Kafka does not send {topic}[{partition}]")) from error
    finally:
        consumer.close()


def _until_end(consumer: Any, topic: str, most: int, end: int, timeout_s: float) -> list[Record]:
    found: list[Record] = []
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for message in consumer.consume(most, _POLL_S):
            if message.error() is not None:  # its end
                return found
            record = message_to_record(message, topic)
            if record.offset < end:
                found.append(record)
            if record.offset >= end - 1:
                return found
    raise ConnectionError(f"Kafka did not send all of {topic} within {timeout_s:g} s")


def _open(kafka: KafkaConfig, **more: Any) -> tuple[Any, Reasons]:
    """A consumer, which joins no group as long as partitions are assigned by hand: the name is only needed."""
    reasons = Reasons()
    config: dict[str, Any] = {**kafka.librdkafka(), **_CONFIG, **more, "group.id": f"perseid-tail-{uuid.uuid4().hex}"}
    return Consumer({**config, "error_cb": reasons}), reasons
