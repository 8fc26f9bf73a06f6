"""Seeded traffic for the kill harness: what a shop's producers send, and a thread that sends it while things break.

Clicks and profiles come from `tests.streams_world.fill` (resends, late, equal-time, misrouted, fast clocks, forgets);
items and contexts are mixed in. The pace follows the workers' lag, because the embedded broker keeps only megabytes.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from deploy.producer import EventProducer
from streams.events import CATALOG, CLICKSTREAM, CONTEXT, ITEM_VECTORS, USERS
from streams.kafka_access import KafkaAccess
from tests.faults.vectors import ITEMS, item_vector
from tests.streams_world import NOW_MS, MemoryBroker, fill

_PACE_RECORDS = 100  # the lag is looked at once per so many records


@dataclass(frozen=True, slots=True)
class Sent:
    """A record as a producer sends it."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int


class _InOrder(MemoryBroker):
    """Remembers the order over all partitions."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Sent] = []

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes | None, timestamp_ms: int) -> None:
        self.sent.append(Sent(topic, partition, key, value, timestamp_ms))


def generate(seed: int, partitions: int, events: int, resends: float = 0.0, steady: bool = False) -> list[Sent]:
    """About `events` records in sending order; a share `resends` of the clicks comes once more a little later.

    With `steady` the items' vectors come first and never change, and nobody has a profile: what is left decides a
    user's vectors.
    """
    broker = _InOrder()
    fill(broker, partitions, seed, events, users=40 * partitions)
    rng = random.Random(seed)
    out: list[Sent] = [_item_record(number) for number in range(ITEMS)] if steady else []
    clicks: list[Sent] = []
    for record in broker.sent:
        if steady and record.topic == USERS:
            continue
        out.append(record)
        if record.topic == CLICKSTREAM:
            clicks.append(record)
            if rng.random() < resends:
                out.append(rng.choice(clicks[-50:]))
        if not steady and rng.random() < 0.02:
            out.append(_shop_record(rng, len(out)))
    return out


def _item_record(number: int) -> Sent:
    body = {"item_id": f"item-{number}", "embedder": "toy", "vector": item_vector(number), "ts_ms": NOW_MS}
    return Sent(ITEM_VECTORS, 0, f"item-{number}".encode(), orjson.dumps(body), NOW_MS)


def _shop_record(rng: random.Random, number: int) -> Sent:
    item, roll, ts_ms = f"item-{rng.randrange(50)}", rng.random(), NOW_MS + number
    body: dict[str, Any] | None
    if roll < 0.4:
        topic, key = CATALOG, item
        body = {
            "item_id": item,
            "title": f"title {number}",
            "description": "",
            "brand": rng.choice(("acme", "")),
            "category": ["a", "b"],
            "subclass": "a/b",
            "price": number / 4,
            "tags": [],
            "available": rng.random() < 0.9,
            "regions": [],
            "starts_ms": None,
            "ends_ms": None,
            "ts_ms": ts_ms,
        }
    elif roll < 0.8:
        topic, key = ITEM_VECTORS, item
        body = {"item_id": item, "embedder": "toy", "vector": [1, number, 0, 2], "tags": [str(number)], "ts_ms": ts_ms}
    else:
        topic = CONTEXT
        key = rng.choice(("berlin", "paris", "oslo"))
        body = {"location": key, "ts_ms": ts_ms, "valid_until_ms": ts_ms + 1, "weather": {"t": number}}
        body |= {"events": [], "promotions": []}
    value = None if rng.random() < 0.05 else orjson.dumps(body)
    return Sent(topic, 0, key.encode(), value, ts_ms)


class Traffic:
    """Sends records from a thread of its own, at most `max_lag` ahead of what `progress` says is applied."""

    def __init__(self, bootstrap: str, records: list[Sent], progress: Callable[[], int], max_lag: int) -> None:
        self.max_lag, self.sent = max_lag, 0
        self._records, self._progress = records, progress
        self._producer = EventProducer(KafkaAccess(bootstrap))
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="traffic", daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        """Whether everything was sent and acknowledged."""
        return not self._thread.is_alive() and self._producer.sent == len(self._records)

    def close(self) -> None:
        """Ends the thread, wherever it is."""
        self._abandoned.set()
        self._thread.join()
        self._producer.close()

    def _send_all(self) -> None:
        for number, record in enumerate(self._records):
            while number % _PACE_RECORDS == 0 and number - self._progress() > self.max_lag:
                if self._abandoned.wait(0.005):
                    return
            while self._enqueue(record) is None:
                time.sleep(0.005)
            self.sent = number + 1

    def _enqueue(self, record: Sent) -> object:
        return self._producer.enqueue(
            record.topic, record.key, record.value, record.partition, timestamp_ms=record.timestamp_ms
        )
