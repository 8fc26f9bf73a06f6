"""Produces to Kafka by librdkafka, with acknowledged sends to await and exposures that may be dropped.

Partitions are chosen as Kafka's Java client does (murmur2), so that a user's records go to the home partition. Queues
are bounded. `send` waits for room, `expose` drops and counts, so an answer never waits for Kafka.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, TypedDict, Unpack

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streams.events import SENT_MS
from streams.kafka.config import KafkaConfig, Reasons

QUEUE_RECORDS = 100_000
_QUEUE_KB = 65_536  # the queue's second bound: a few large records count as much as many small ones
EXPOSURE_LINGER_MS = 1000  # what a killed process may lose; nobody waits for them
_LINGER_MS = 1  # a lone record leaves almost at once; under load batches form while requests are in flight
_MAX_VALUE_BYTES = 1_000_000  # the broker's own default; larger values are refused before they are queued
_DELIVERY_TIMEOUT_MS = 10_000  # a caller of POST waits at most this long for Kafka
_POLL_S = 0.1  # only bounds how late the callback thread notices that it should end
_RETRY_S = 0.005  # a full queue drains thousands of records in this time

Acknowledged = tuple[int, int]  # partition, offset
# What a topic refuses for good: its limits may be lower than ours.
_REFUSED = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_TIMESTAMP)


class DeliveryError(ConnectionError):
    """Kafka did not acknowledge a record; it may or may not be in the log."""


class Extras(TypedDict, total=False):
    """What Kafka keeps beside key and value; without a `timestamp_ms` it takes the time of sending."""

    timestamp_ms: int | None
    headers: Sequence[tuple[str, bytes]]


def at_time(timestamp_ms: int) -> Extras:
    """For a record of another time than that of sending, which a header keeps: freshness is measured from there."""
    return {"timestamp_ms": timestamp_ms, "headers": [(SENT_MS, str(time.time_ns() // 1_000_000).encode())]}


class _Queue:
    """Records on their way to a cluster, and a thread that has their callbacks called."""

    def __init__(self, kafka: KafkaConfig, queue_records: int, delivery_timeout_ms: int, **options: Any) -> None:
        self._kafka, self._reasons = kafka, Reasons()
        self._producer = Producer(
            {
                **kafka.librdkafka(),
                "error_cb": self._reasons,
                "partitioner": "murmur2_random",  # librdkafka's own default is not Kafka's
                "acks": "all",
                "queue.buffering.max.messages": queue_records,
                "queue.buffering.max.kbytes": _QUEUE_KB,
                "message.max.bytes": _MAX_VALUE_BYTES,
                "delivery.timeout.ms": delivery_timeout_ms,
                "log_level": 2,  # an unreachable broker is reported by each failed send, not once a second on stderr
                **options,
            }
        )
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="producer", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> int:
        """Waits for what is queued and ends the thread; returns how many records were left unacknowledged."""
        left = int(self._producer.flush(timeout_s))
        self._closing.set()
        self._thread.join()
        return left

    def _produce(self, topic: str, key: bytes | None, value: bytes | None, acknowledged: Any, **options: Any) -> bool:
        """Whether there was room in the queue; of the client's own `options`, None stands for its default."""
        given = {name: option for name, option in options.items() if option is not None}
        try:
            self._producer.produce(self._kafka.topic(topic), value, key, on_delivery=acknowledged, **given)
        except BufferError:
            return False
        except KafkaException as error:
            if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                size = len(value or b"") + len(key or b"")
                what = f"a record of {size} bytes is too large, at most {_MAX_VALUE_BYTES}"
                raise ValueError(f"{topic}: {what}") from error
            raise ValueError(f"{topic}: {error.args[0].str()}") from error
        return True

    def _serve(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(_POLL_S)


class EventProducer(_Queue):
    """Sends records of any topic, from any thread; `close` it at the end.

    Args:
        kafka: the cluster. Topics are given by their logical names.
        queue_records: how many records may wait for acknowledgement.
        delivery_timeout_ms: after which an unacknowledged record counts as failed.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        *,
        queue_records: int = QUEUE_RECORDS,
        delivery_timeout_ms: int = _DELIVERY_TIMEOUT_MS,
    ) -> None:
        # Every client can read gzip, and the embedded broker keeps few bytes.
        options: dict[str, Any] = {"linger.ms": _LINGER_MS, "compression.type": "gzip"}
        super().__init__(kafka, queue_records, delivery_timeout_ms, **options)
        self.sent = 0

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, partition: int | None = None, **extras: Unpack[Extras]
    ) -> Acknowledged:
        """Sends one record and returns (partition, offset) once Kafka has acknowledged it.

        Raises:
            ValueError: the record is larger, or its time further ahead, than the topic takes; no repetition helps.
            DeliveryError: no acknowledgement within the delivery timeout.
        """
        deadline = time.monotonic() + _DELIVERY_TIMEOUT_MS / 1000
        while True:
            if (future := self.enqueue(topic, key, value, partition, **extras)) is not None:
                return await asyncio.wrap_future(future)
            if time.monotonic() > deadline:
                raise DeliveryError(f"the queue of records for Kafka was full for {_DELIVERY_TIMEOUT_MS} ms")
            await asyncio.sleep(_RETRY_S)

    def enqueue(
        self, topic: str, key: bytes | None, value: bytes | None, partition: int | None = None, **extras: Unpack[Extras]
    ) -> Future[Acknowledged] | None:
        """Queues one record without waiting; None when the queue is full. Raises ValueError for a too large one."""
        future: Future[Acknowledged] = Future()
        future.set_running_or_notify_cancel()  # a caller that gave up must not break the callback

        def acknowledged(error: KafkaError | None, message: Message) -> None:
            if error is None:
                self.sent += 1
                future.set_result((message.partition() or 0, message.offset() or 0))
            else:
                text = f"{topic}: {error.str()}"
                refused = error.code() in _REFUSED
                future.set_exception(ValueError(text) if refused else DeliveryError(self._reasons.explain(text)))

        headers = list(extras.get("headers", ()))
        options = {"partition": partition, "timestamp": extras.get("timestamp_ms"), "headers": headers}
        return future if self._produce(topic, key, value, acknowledged, **options) else None


class ExposureProducer(_Queue):
    """Sends records whose loss is bearable, from any thread; those of a second go together.

    A process that is killed takes those of its last second along; `close` sends them. Nobody is told of a success, and
    of a failure only `dropped`, which counts what found the queue full or was not acknowledged.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        *,
        queue_records: int = QUEUE_RECORDS,
        delivery_timeout_ms: int = _DELIVERY_TIMEOUT_MS,
    ) -> None:
        # In half the time of gzip, a record at a time and a report for each: 60 µs instead of 150.
        options: dict[str, Any] = {"linger.ms": EXPOSURE_LINGER_MS, "compression.type": "lz4"}
        super().__init__(kafka, queue_records, delivery_timeout_ms, **options, **{"delivery.report.only.error": True})
        self.dropped = 0

    def expose(self, topic: str, key: bytes, value: bytes, partition: int | None = None) -> None:
        """Queues a record; never waits and never raises."""
        try:
            queued = self._produce(topic, key, value, self._failed, partition=partition)
        except ValueError:
            queued = False
        if not queued:
            self.dropped += 1

    def _failed(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self.dropped += 1
