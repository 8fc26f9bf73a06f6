"""The least that Kafka takes, beside `freshness`: a record acknowledged → in the hands of a bare consumer.

Assumes a broker that this process may make a topic on. Both ends are librdkafka in this process and nothing else is
done with the record, so what a figure of ours is above this one is ours.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.bench.report import result

RECORDS = 200
REST_S = 0.01
_TIMEOUT_S = 20.0


def round_trips(bootstrap: str, prefix: str, records: int = RECORDS) -> list[float]:
    """Milliseconds of each record from its acknowledgement until it is consumed; the first few are left out."""
    topic = f"{prefix}bare-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(_TIMEOUT_S)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "fetch.wait.max.ms": 10})
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        return [_one(producer, consumer, topic) for _ in range(records + 10)][10:]
    finally:
        consumer.close()
        admin.delete_topics([topic])[topic].result(_TIMEOUT_S)


def _one(producer: Producer, consumer: Consumer, topic: str) -> float:
    acknowledged: list[float] = []
    time.sleep(REST_S)
    producer.produce(topic, b"", on_delivery=lambda *_: acknowledged.append(time.perf_counter()))
    deadline = time.monotonic() + _TIMEOUT_S
    consumed: float | None = None
    while not acknowledged or consumed is None:
        producer.poll(0)
        message = consumer.poll(0.0005)
        if message is not None and message.error() is None:
            consumed = time.perf_counter()
        if time.monotonic() > deadline:
            raise TimeoutError(f"a record of {topic} was not acknowledged and consumed within {_TIMEOUT_S} s")
    return max(0.0, (consumed - acknowledged[0]) * 1000)


def figures(bootstrap: str, prefix: str) -> list[dict[str, Any]]:
    """Percentiles, without a goal."""
    found = round_trips(bootstrap, prefix)
    return [
        result(f"bare_kafka_p{share}", float(np.percentile(found, share)), "ms", at_most=True) for share in (50, 95, 99)
    ]
