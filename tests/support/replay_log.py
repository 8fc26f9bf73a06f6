"""A large seeded history in a real Kafka: Zipf users, a changing catalogue, resends, late and misrouted records.

Records carry rising Kafka timestamps, `STEP_MS` apart, so that a time stands for a place in the history. Produced with
librdkafka, some hundred thousand records a second. It does not know who reads them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import orjson
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from index.state.keys import murmur2
from streams.events import CATALOG, CLICKSTREAM, CONTEXT, ITEM_VECTORS, PARTITIONED, TOPIC_ORDER, USERS
from streams.kafka.config import KafkaConfig

START_MS = 1_760_000_000_000
STEP_MS = 100
EMBEDDER, DIM = "toy", 4
_KINDS = ("view", "view", "view", "view", "cart", "purchase", "like", "dislike")
_CHUNK = 10_000  # records whose random numbers are drawn at once

Sent = tuple[str, int, str, bytes | None, int]  # topic, partition, key, value, timestamp_ms


def create_topics(access: KafkaConfig, partitions: int) -> None:
    """Makes the consumed topics, which keep everything: the history lies in the past."""
    admin, keep = AdminClient(access.librdkafka()), {"retention.ms": "-1"}
    topics = [
        NewTopic(access.topic(topic), partitions if topic in PARTITIONED else 1, 1, config=keep)
        for topic in TOPIC_ORDER
    ]
    for future in admin.create_topics(topics).values():
        future.result(30)


def history(events: int, partitions: int, seed: int = 0, items: int = 2_000, users: int = 20_000) -> Iterator[Sent]:
    """All items, then `events` clicks with what happens beside them."""
    rng = np.random.default_rng(seed)
    for number in range(items):
        yield from _item(rng, number, START_MS)
    homes: dict[int, int] = {}
    recent: list[tuple[str, int, bytes]] = []
    for start in range(0, events, _CHUNK):
        who = rng.zipf(1.2, _CHUNK) % users
        which, rolls = rng.zipf(1.3, _CHUNK) % items, rng.random(_CHUNK)
        for at in range(min(_CHUNK, events - start)):
            now_ms = START_MS + (start + at) * STEP_MS
            user, roll = int(who[at]), float(rolls[at])
            name = f"u{user}"
            if user not in homes:
                homes[user] = (murmur2(name.encode()) & 0x7FFFFFFF) % partitions
            partition = homes[user]
            if roll < 0.002:
                yield from _item(rng, int(which[at]), now_ms)
            elif roll < 0.004:
                profile = {"user_id": name, "ts_ms": now_ms, "numeric": {"age": user % 80}}
                yield USERS, partition, name, orjson.dumps(profile), now_ms
            elif roll < 0.0045:
                yield CONTEXT, 0, "oslo", orjson.dumps(_weather(now_ms, "rain" if at % 2 else "sun")), now_ms
            key, value = name, _click(name, f"i{which[at]}", now_ms, f"e{start + at}", roll)
            if 0.1 < roll < 0.12 and recent:
                key, partition, value = recent[int(roll * 1e6) % len(recent)]  # sent once more
            elif 0.12 < roll < 0.125:
                partition = (partition + 1) % partitions  # at the wrong place
            elif 0.125 < roll < 0.126:
                value = b"no json"
            recent = [*recent[-99:], (key, partition, value)]
            yield CLICKSTREAM, partition, key, value, now_ms


def fill(access: KafkaConfig, events: int, partitions: int, **more: int) -> int:
    """Makes the topics and sends a `history`; returns how many records it has. Raises AssertionError on a lost one."""
    create_topics(access, partitions)
    config = {"linger.ms": 20, "compression.type": "lz4", "queue.buffering.max.messages": 1_000_000}
    # Idempotent: a batch that is sent again, as to topics just created, must not come behind later ones.
    producer = Producer({**access.librdkafka(), **config, "enable.idempotence": True})
    sent = 0
    for topic, partition, key, value, timestamp_ms in history(events, partitions, **more):
        while True:
            try:
                producer.produce(access.topic(topic), value, key, partition, timestamp=timestamp_ms)
                break
            except BufferError:
                producer.poll(0.1)
        sent += 1
        if sent % 1_000 == 0:
            producer.poll(0)
    assert producer.flush(60) == 0
    return sent


def _click(user: str, item: str, now_ms: int, event_id: str, roll: float) -> bytes:
    body = {
        "event_id": event_id,
        "user_id": user,
        "item_id": item,
        "kind": _KINDS[int(roll * 1e5) % len(_KINDS)],
        "ts_ms": now_ms - (3_600_000 if 0.13 < roll < 0.14 else 0),
        "location": "oslo" if roll > 0.5 else "",
    }
    if 0.2 < roll < 0.2002:
        body = {"event_id": event_id, "user_id": user, "kind": "forget", "ts_ms": now_ms}
    return orjson.dumps(body)


def _item(rng: np.random.Generator, number: int, now_ms: int) -> list[Sent]:
    name = f"i{number}"
    fields = {"item_id": name, "title": f"item {number}", "category": [f"c{number % 20}"], "ts_ms": now_ms}
    vector = {"item_id": name, "embedder": EMBEDDER, "vector": rng.standard_normal(DIM).tolist(), "tags": []}
    return [
        (CATALOG, 0, name, orjson.dumps({**fields, "available": number % 50 != 7}), now_ms),
        (ITEM_VECTORS, 0, name, orjson.dumps({**vector, "ts_ms": now_ms}), now_ms),
    ]


def _weather(now_ms: int, sky: str) -> dict[str, object]:
    until_ms = now_ms + 3_600_000
    return {
        "location": "oslo", "ts_ms": now_ms, "valid_until_ms": until_ms, "weather": {"sky": sky}, "events": [],
        "promotions": [],
    }  # fmt: skip
