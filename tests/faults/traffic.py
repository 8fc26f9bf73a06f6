"""Seeded traffic for the kill harness: what a shop's producers send, and a thread that sends it while things break.

Clicks and profiles come from `tests.support.streams_world.fill` (resends, late, equal-time, misrouted, fast clocks,
forgets); items, contexts and poison are mixed in. The pace may follow the workers' lag: the embedded broker keeps only
megabytes. A record counts as sent when the broker has acknowledged it; one that it did not is sent again.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
from confluent_kafka import KafkaError, Message, Producer

from context.times import YEAR_2000_MS, YEAR_2100_MS
from index.state.keys import partition_of
from streams.events import (
    CATALOG,
    CLICKSTREAM,
    CONSUMED,
    CONTEXT,
    EXPOSURES,
    ITEM_VECTORS,
    PARTITIONED,
    SCENARIO_RULES,
    USERS,
)
from streams.kafka.config import KafkaConfig
from tests.faults.malformed import malformed
from tests.faults.vectors import ITEMS, item_vector
from tests.support.streams_world import NOW_MS, MemoryBroker, click, fill, show

BURST_USER = "burst-user-"
POISON = "poison"  # header of records that must not be accepted; nobody but the harness looks at it
_PACE_RECORDS = 100  # the lag is looked at once per so many records
_DELIVERY_MS = 120_000  # a broker that was killed is back before
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Sent:
    """A record as a producer sends it."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    poison: bool = False


@dataclass(frozen=True, slots=True)
class Mix:
    """What the traffic is made of, as shares of the clicks.

    `resends` come once more a little later. `shown` are lists, of which some come again. `shop` are records of items
    and contexts. `odd` clicks are, in equal parts, late by hours or days, at the very time of the click before, of a
    clock that is far ahead, and in another partition. With `steady` the items' vectors come first and never change,
    and nobody has a profile: what is left decides a user's vectors. `poison` is how many malformed records each topic
    gets. `burst` are clicks of one producer, all to partition 0, with any times that are accepted. `users` per
    partition.
    """

    resends: float = 0.05
    shown: float = 0.15
    shop: float = 0.02
    odd: float = 0.0
    poison: int = 0
    burst: int = 0
    steady: bool = False
    users: int = 40
    items: int = ITEMS


class _InOrder(MemoryBroker):
    """Remembers the order over all partitions."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Sent] = []

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes | None, timestamp_ms: int) -> None:
        self.sent.append(Sent(topic, partition, key, value, timestamp_ms))


def generate(seed: int, partitions: int, events: int, mix: Mix) -> list[Sent]:
    """About `events` records and what the mix adds to them, in sending order."""
    broker = _InOrder()
    fill(broker, partitions, seed, events, users=mix.users * partitions)
    rng = random.Random(seed)
    out: list[Sent] = [item_record(number) for number in range(mix.items)] if mix.steady else []
    clicks: list[Sent] = []
    for record in broker.sent:
        if mix.steady and record.topic == USERS:
            continue
        if record.topic == CLICKSTREAM:
            if rng.random() < mix.odd:
                record = _odd(rng, record, clicks[-1] if clicks else record, partitions)
            clicks.append(record)
        out.append(record)
        if record.topic == CLICKSTREAM and rng.random() < mix.resends:
            out.append(rng.choice(clicks[-50:]))
        if not mix.steady and rng.random() < mix.shop:
            out.append(_shop_record(rng, len(out), mix.items))
    at = rng.randrange(len(out))
    out[at:at] = burst(rng, mix.burst, partitions, 1 if seed % 2 else mix.burst)
    out = _mixed(rng, out, _lists(seed, partitions, int(mix.shown * events), mix.users))
    return _poisoned(rng, out, partitions, mix.poison, seed)


def _lists(seed: int, partitions: int, count: int, users: int) -> list[Sent]:
    """Lists as shown to users, in sending order."""
    broker = _InOrder()
    show(broker, partitions, seed, count, users=users * partitions)
    return broker.sent


def _mixed(rng: random.Random, records: list[Sent], others: list[Sent]) -> list[Sent]:
    """Both, each in its order, the others at random places."""
    places = sorted(rng.randrange(len(records)) for _ in others)
    out, at = [], 0
    for place, other in zip(places, others, strict=True):
        out += [*records[at:place], other]
        at = place
    return out + records[at:]


def burst(rng: random.Random, clicks: int, partitions: int, users: int) -> list[Sent]:
    """Clicks of one producer in partition 0, over so many users, with both their times anywhere in 2000 to 2100."""
    names = (f"{BURST_USER}{number}" for number in itertools.count())
    home = list(itertools.islice((name for name in names if partition_of(name, partitions) == 0), users))
    found = []
    for number in range(clicks):
        ts_ms, timestamp_ms = (rng.randrange(YEAR_2000_MS, YEAR_2100_MS + 1) for _ in range(2))
        body = click(rng.choice(home), f"item-{rng.randrange(ITEMS)}", ts_ms, f"burst-{number}")
        if rng.random() < 0.5:
            timestamp_ms = rng.choice((YEAR_2100_MS, ts_ms, NOW_MS))
        found.append(Sent(CLICKSTREAM, 0, body["user_id"].encode(), orjson.dumps(body), timestamp_ms))
    return found


def _odd(rng: random.Random, record: Sent, before: Sent, partitions: int) -> Sent:
    way = rng.randrange(4)
    if way == 0:
        return replace(record, partition=rng.randrange(partitions))
    body = orjson.loads(record.value or b"")
    if way == 1:
        body["ts_ms"] -= rng.choice((3_600_000, 7_200_000, _DAY_MS, 3 * _DAY_MS))
    elif way == 2:
        body["ts_ms"] = orjson.loads(before.value or b"")["ts_ms"]
    else:
        body["ts_ms"] += rng.choice((299_999, 300_001, 3_600_000, 30 * _DAY_MS))
    return replace(record, value=orjson.dumps(body))


def _poisoned(rng: random.Random, records: list[Sent], partitions: int, count: int, seed: int) -> list[Sent]:
    """Malformed records of every topic at random places."""
    poison = [
        Sent(topic, _place(rng, topic, partitions), key, value, NOW_MS, poison=True)
        for topic in (*CONSUMED, EXPOSURES)
        for key, value in (malformed(topic, count, seed, large=0) if count else ())
    ]
    rng.shuffle(poison)
    return _mixed(rng, records, poison)


def _place(rng: random.Random, topic: str, partitions: int) -> int:
    return rng.randrange(partitions) if topic in PARTITIONED else 0


def item_record(number: int) -> Sent:
    """The vector of an item; one that is new to the traffic where `number` is not below its mix's `items`."""
    body = {"item_id": f"item-{number}", "embedder": "toy", "vector": item_vector(number), "ts_ms": NOW_MS}
    return Sent(ITEM_VECTORS, 0, f"item-{number}".encode(), orjson.dumps(body), NOW_MS)


def _shop_record(rng: random.Random, number: int, items: int) -> Sent:
    item, roll, ts_ms = f"item-{rng.randrange(items)}", rng.random(), NOW_MS + number
    body: dict[str, Any]
    if roll < 0.4:
        topic, key = CATALOG, item
        body = {"item_id": item, "title": f"title {number}", "description": "", "brand": rng.choice(("acme", ""))}
        body |= {"category": ["a", "b"], "subclass": "a/b", "price": number / 4, "tags": [], "regions": []}
        body |= {"available": rng.random() < 0.9, "starts_ms": None, "ends_ms": None, "ts_ms": ts_ms}
    elif roll < 0.8:
        topic, key = ITEM_VECTORS, item
        body = {"item_id": item, "embedder": "toy", "vector": [1, number, 0, 2], "tags": [str(number)], "ts_ms": ts_ms}
    elif roll < 0.9:
        topic, key = SCENARIO_RULES, rng.choice(("home", "basket", "mail"))
        body = {"scenario": key, "ts_ms": ts_ms, "exclude": [item], "caps": {"brand": 1 + number % 3}}
    else:
        topic, key = CONTEXT, rng.choice(("berlin", "paris", "oslo"))
        body = {"location": key, "ts_ms": ts_ms, "valid_until_ms": ts_ms + 1, "weather": {"t": number}}
        body |= {"events": [], "promotions": []}
    value = None if rng.random() < 0.05 else orjson.dumps(body)
    return Sent(topic, 0, key.encode(), value, ts_ms)


class Traffic:
    """Sends records from a thread of its own, at most `max_lag` ahead of what `progress` says is applied.

    Args:
        limit: it stops there until the limit is raised.
    """

    def __init__(
        self, access: KafkaConfig, records: Sequence[Sent], progress: Callable[[], int], max_lag: int, limit: int
    ) -> None:
        self.max_lag, self.limit, self.acknowledged = max_lag, limit, 0
        self._access, self._records, self._progress = access, records, progress
        self._again: list[Sent] = []
        self._added = 0
        self._producer = Producer(
            {
                **access.librdkafka(),
                "acks": "all",
                "linger.ms": 1,
                "compression.type": "gzip",  # the embedded broker keeps few bytes
                "compression.level": 1,
                "queue.buffering.max.messages": 20_000,
                "delivery.timeout.ms": _DELIVERY_MS,
                "log_level": 2,
            }
        )
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="traffic", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether everything up to the limit, and what was added, is acknowledged."""
        return self.acknowledged == min(self.limit, len(self._records)) + self._added

    def add(self, record: Sent) -> None:
        """One more record, sent at once."""
        self._added += 1
        self._again.append(record)

    def close(self) -> None:
        """Ends the thread, wherever it is."""
        self._abandoned.set()
        self._thread.join()

    def _send_all(self) -> None:
        number = 0
        while not self._abandoned.is_set():
            if self._again:
                self._send(self._again.pop())
            elif number < min(self.limit, len(self._records)) and not self._ahead(number):
                self._send(self._records[number])
                number += 1
            else:
                self._producer.poll(0.002)

    def _ahead(self, number: int) -> bool:
        return number % _PACE_RECORDS == 0 and number - self._progress() > self.max_lag

    def _send(self, record: Sent) -> None:
        def acknowledged(error: KafkaError | None, _: Message) -> None:
            if error is None:
                self.acknowledged += 1
            else:
                self._again.append(record)

        topic, headers = self._access.topic(record.topic), [(POISON, b"1")] if record.poison else []
        place: dict[str, Any] = {"partition": record.partition, "timestamp": record.timestamp_ms, "headers": headers}
        while not self._abandoned.is_set():
            try:
                self._producer.produce(topic, record.value, record.key, on_delivery=acknowledged, **place)
                self._producer.poll(0)
                return
            except BufferError:
                self._producer.poll(0.005)
