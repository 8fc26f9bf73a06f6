"""A small broker in memory and seeded traffic for pipeline tests: logs, forwarding, dead letters.

The broker assigns offsets; `forward` and `dead_letter` append like Kafka would. Nothing is mocked of the pipeline.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import orjson

from index.state.keys import partition_of
from streams.events import CLICKSTREAM, EXPOSURES, USERS, MalformedError, Record

NOW_MS = 1_760_000_000_000


class MemoryBroker:
    """Logs by (topic, partition). Is a `DeadLetterSink`: what the engine forwards lands at the end of a log."""

    def __init__(self) -> None:
        self.logs: dict[tuple[str, int], list[Record]] = defaultdict(list)
        self.dead: list[tuple[Record, MalformedError]] = []

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes | None, timestamp_ms: int) -> None:
        log = self.logs[topic, partition]
        log.append(Record(topic, partition, len(log), timestamp_ms, key, value))

    async def dead_letter(self, record: Record, error: MalformedError) -> None:
        self.dead.append((record, error))

    async def forward(self, record: Record, partition: int, key: bytes) -> None:
        self.append(record.topic, partition, key, record.value, record.timestamp_ms)


def click(user: str, item: str, ts_ms: int, event_id: str, kind: str = "view", **more: Any) -> dict[str, Any]:
    body = {"event_id": event_id, "user_id": user, "item_id": item, "kind": kind, "ts_ms": ts_ms, **more}
    return {name: value for name, value in body.items() if value is not None}


def fill(broker: MemoryBroker, partitions: int, seed: int, events: int, users: int = 12) -> None:
    """Clicks, resends, late and equal-time events, fast clocks, forgets, profiles and misrouted records."""
    rng = random.Random(seed)
    sent: list[dict[str, Any]] = []
    now = NOW_MS
    for n in range(events):
        now += rng.choice((0, 0, 1, 500, 60_000))
        user = f"user-{int(rng.paretovariate(0.7)) % users}"
        roll = rng.random()
        if roll < 0.02:
            profile = {"numeric": {"age": rng.randrange(80)}, "categorical": {"location": rng.choice("abc")}}
            value = orjson.dumps({"user_id": user, "ts_ms": now - rng.choice((0, 0, 9_000_000)), **profile})
            home = partition_of(user, partitions)
            broker.append(USERS, home, user.encode(), None if roll < 0.002 else value, now)
            continue
        if sent and roll < 0.12:
            body = rng.choice(sent[-40:])
        elif roll < 0.125:
            body = click(user, "", now, f"e{n}", kind="forget")
            del body["item_id"]
        else:
            ts_ms = now - rng.choice((0, 0, 0, 0, 1000, 3_600_000)) + (400_000 if roll > 0.995 else 0)
            kind = rng.choice(("view", "view", "view", "cart", "purchase", "dislike"))
            body = click(user, f"item-{rng.randrange(50)}", ts_ms, f"e{n}", kind, location=rng.choice((None, "x")))
        sent.append(body)
        partition = partition_of(body["user_id"], partitions)
        if rng.random() < 0.1:
            partition = rng.randrange(partitions)
        broker.append(CLICKSTREAM, partition, body["user_id"].encode(), orjson.dumps(body), now)


def show(broker: MemoryBroker, partitions: int, seed: int, lists: int, users: int = 12, step_ms: int = 60_000) -> None:
    """Lists as shown: resends at once and later, late and fast clocks, long and empty ones, items named twice."""
    rng, now, sent = random.Random(seed), NOW_MS, list[dict[str, Any]]()
    for n in range(lists):
        now += rng.choice((0, 1, step_ms))
        roll = rng.random()
        if sent and roll < 0.1:
            body = sent[-1] if roll < 0.05 else rng.choice(sent)
        else:
            size = 150 if roll > 0.99 else rng.randrange(12)
            items = [{"item_id": f"item-{int(rng.paretovariate(0.6)) % 300}"} for _ in range(size)]
            ts_ms = now - rng.choice((*[0] * 30, 1000, 40 * 86_400_000)) + (400_000 if roll > 0.98 else 0)
            user = f"user-{int(rng.paretovariate(0.7)) % users}"
            body = {"recommendation_id": f"list-{seed}-{n}", "user_id": user, "items": items, "ts_ms": ts_ms}
            sent.append(body)
        partition = partition_of(body["user_id"], partitions)
        if roll > 0.95:
            partition = rng.randrange(partitions)
        broker.append(EXPOSURES, partition, body["user_id"].encode(), orjson.dumps(body), now)
