"""What must be true after a run: the logs read back from the broker, the oracle's state, and the differences.

Reads logs through librdkafka and bodies as plain JSON; of the pipeline it uses only the partitioner and the digest.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from confluent_kafka import Consumer, TopicPartition

from encoder.text import canonical_text, text_hash
from index.keys import partition_of, partition_tag
from streams.events import CATALOG, CLICKSTREAM, CONTEXT, ITEM_VECTORS, USERS, Record
from tests.oracle import Oracle

Logs = dict[tuple[str, int], list[Record]]
_READ_TIMEOUT_S = 30.0


def log_partitions(partitions: int) -> list[tuple[str, int]]:
    """Every consumed partition."""
    by_user = [(topic, p) for topic in (CLICKSTREAM, USERS) for p in range(partitions)]
    return by_user + [(CATALOG, 0), (ITEM_VECTORS, 0), (CONTEXT, 0)]


class LogReader:
    """Reads whole partitions of the embedded broker."""

    def __init__(self, bootstrap: str) -> None:
        config = {"bootstrap.servers": bootstrap, "group.id": "truth", "fetch.wait.max.ms": 5, "log_level": 2}
        self._consumer = Consumer({**config, "enable.auto.commit": False, "enable.partition.eof": False})

    def ends(self, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """End offsets. AssertionError when a log no longer begins at 0: the broker dropped records silently."""
        found = {}
        for topic, partition in partitions:
            low, high = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=5.0)
            assert low == 0, f"{topic}[{partition}] begins at {low}: the broker dropped what the test needs"
            found[topic, partition] = high
        return found

    def read(self, partitions: Iterable[tuple[str, int]]) -> Logs:
        """All records in offset order."""
        ends = self.ends(partitions)
        logs: Logs = {key: [] for key in ends}
        self._consumer.assign([TopicPartition(topic, partition, 0) for topic, partition in ends])
        deadline = time.monotonic() + _READ_TIMEOUT_S
        while any(len(logs[key]) < end for key, end in ends.items()):
            assert time.monotonic() < deadline, f"nothing more to read, missing {_missing(logs, ends)}"
            for message in self._consumer.consume(2000, timeout=0.1):  # it waits for all of them or the timeout
                record = _record(message)
                logs[record.topic, record.partition].append(record)
        self._consumer.unassign()
        return logs

    def close(self) -> None:
        self._consumer.close()


def _missing(logs: Logs, ends: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
    return {key: end - len(logs[key]) for key, end in ends.items() if len(logs[key]) < end}


def _record(message: Any) -> Record:
    assert message.error() is None, message.error()
    position, (_, timestamp_ms) = (message.topic(), message.partition(), message.offset()), message.timestamp()
    return Record(*position, timestamp_ms, message.key(), message.value(), message.headers() or ())


@dataclass(frozen=True, slots=True)
class Expected:
    """The oracle's state by part, as `streams.digest.read_state` returns it, and how many clicks it applied."""

    parts: dict[str, Any]
    applied: int
    misrouted: int


def expect(logs: Logs, partitions: int) -> Expected:
    """Applies whole logs in offset order.

    Raises:
        AssertionError: a misrouted record was not forwarded to its home.
    """
    oracle, misrouted = Oracle(partitions), _check_forwarded(logs, partitions)
    parts: dict[str, Any] = {}
    for partition in range(partitions):
        for record in logs[USERS, partition]:
            _profile(oracle, partition, record)
        for record in logs[CLICKSTREAM, partition]:
            body = orjson.loads(record.value or b"")
            if partition_of(body["user_id"], partitions) == partition:
                oracle.click(partition, body, record.timestamp_ms)
        positions = {topic: len(logs[topic, partition]) for topic in (USERS, CLICKSTREAM)}
        parts[partition_tag(partition)] = oracle.part(partition, positions)
    positions = {topic: len(logs[topic, 0]) for topic in (CATALOG, ITEM_VECTORS)}
    parts["items"] = {"items": _items(logs), "positions": positions}
    parts["contexts"] = {"contexts": _last(logs[CONTEXT, 0]), "positions": {CONTEXT: len(logs[CONTEXT, 0])}}
    return Expected(parts, oracle.arrivals, misrouted)


def _profile(oracle: Oracle, partition: int, record: Record) -> None:
    assert record.key is not None
    if record.value is None:
        oracle.profile(partition, record.key.decode(), None, record.timestamp_ms)
        return
    body = orjson.loads(record.value)
    numeric = {name: float(value) for name, value in body["numeric"].items()}
    content = {"numeric": numeric, "categorical": body["categorical"]}
    oracle.profile(partition, body["user_id"], content, body["ts_ms"])


def _check_forwarded(logs: Logs, partitions: int) -> int:
    """Every click outside its home has a copy there with the same key, value and time, and its origin."""
    home: dict[str, Record] = {}
    for (topic, _), log in logs.items():
        if topic == CLICKSTREAM:
            home |= {dict(r.headers)["forwarded-from"].decode(): r for r in log if r.headers}
    misrouted = 0
    for (topic, partition), log in logs.items():
        for record in log if topic == CLICKSTREAM else ():
            assert record.key is not None
            if partition_of(record.key.decode(), partitions) != partition:
                misrouted += 1
                copy = home.get(f"{topic}[{partition}]@{record.offset}")
                assert copy is not None, f"{topic}[{partition}]@{record.offset} was not forwarded"
                same = (copy.key, copy.value, copy.timestamp_ms) == (record.key, record.value, record.timestamp_ms)
                assert same and copy.partition == partition_of(record.key.decode(), partitions)
    return misrouted


def _last(log: Iterable[Record]) -> dict[str, Any]:
    """Last value by key; a null removes."""
    found: dict[str, Any] = {}
    for record in log:
        assert record.key is not None
        found[record.key.decode()] = None if record.value is None else orjson.loads(record.value)
    return {key: body for key, body in found.items() if body is not None}


def _items(logs: Logs) -> dict[str, Any]:
    catalogue, vectors = _last(logs[CATALOG, 0]), _last(logs[ITEM_VECTORS, 0])
    seen = {(record.key or b"").decode() for topic in (CATALOG, ITEM_VECTORS) for record in logs[topic, 0]}
    items = {}
    for item in seen:
        fields = catalogue.get(item)
        listed = None if fields is None else {name: value for name, value in fields.items() if name != "item_id"}
        vector = vectors.get(item)
        items[item] = {
            "catalogue": listed,
            "tags": [] if vector is None else vector.get("tags", []),
            "embedder": None if vector is None else vector["embedder"],
            "vector": vector is not None,
            "hashes": [None, None if listed is None else text_hash(canonical_text(listed))],
        }
    return items


@dataclass(frozen=True, slots=True)
class Difference:
    """Events or popularity units that are missing from the state (`lost`) and that are there too often (`twice`)."""

    lost: int
    twice: int
    parts: tuple[str, ...]  # names of the parts that differ


def compare(state: Mapping[str, Any], expected: Mapping[str, Any]) -> Difference:
    """What the state lacks and what it has too much of, against the oracle's."""
    lost: Counter[str] = Counter()
    for name, part in expected.items():
        if "users" in part:
            lost.update(_counted(part))
            lost.subtract(_counted(state[name]))
    differing = tuple(sorted(name for name in expected if state[name] != expected[name]))
    return Difference(sum((+lost).values()), sum((-lost).values()), differing)


def _counted(part: Mapping[str, Any]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for user, content in part["users"].items():
        counts.update(f"event {user} {event[0]}" for event in content["window"])
    for bucket, names in part["popularity"].items():
        for name, count in names.items():
            counts[f"popularity {bucket} {name}"] += count
    return counts
