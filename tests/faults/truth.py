"""What must be true after a run: the logs read back from the broker, the oracle's state, and the differences.

Reads logs through librdkafka and bodies as plain JSON; of the pipeline it uses only the partitioner and the digest.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from encoder.text.item_text import canonical_text, text_hash
from index.state.keys import partition_of, partition_tag, showings_tag
from index.state.user_columns import event_hash
from streams.events import (
    CATALOG,
    CLICKSTREAM,
    CONTEXT,
    DEAD_LETTERS,
    EXPOSURES,
    ITEM_VECTORS,
    SCENARIO_RULES,
    USERS,
    Record,
)
from streams.kafka.config import KafkaConfig
from tests.faults.traffic import BURST_USER, POISON, Sent
from tests.support.oracle import Oracle, ShowingsOracle

Logs = dict[tuple[str, int], list[Record]]
_READ_TIMEOUT_S = 30.0  # without a single record
_ANSWER_S = 5.0
_ORIGIN = "forwarded-from"  # header of a forwarded record
_BY_HAND: Mapping[str, Any] = {"enable.auto.commit": False, "enable.partition.eof": False, "check.crcs": False}


DEAD = [(DEAD_LETTERS, 0)]


def log_partitions(partitions: int) -> list[tuple[str, int]]:
    """Every consumed partition."""
    by_user = [(topic, p) for topic in (CLICKSTREAM, USERS, EXPOSURES) for p in range(partitions)]
    return by_user + [(CATALOG, 0), (ITEM_VECTORS, 0), (CONTEXT, 0), (SCENARIO_RULES, 0)]


class LogReader:
    """Reads whole partitions of a run's topics."""

    def __init__(self, access: KafkaConfig) -> None:
        config, self._access = {**access.librdkafka(), "log_level": 2}, access
        self._config, self._admin = config, AdminClient(config)
        fetch = {"fetch.wait.max.ms": 5, "fetch.message.max.bytes": 8 << 20, "queued.max.messages.kbytes": 1 << 18}
        self._consumer = Consumer({**config, **fetch, "group.id": f"{access.topic_prefix}truth", **_BY_HAND})

    def ends(self, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """End offsets, asked in one go. ConnectionError when the broker does not answer."""
        return self._offsets(partitions, OffsetSpec.latest())  # type: ignore[no-untyped-call]

    def read(self, partitions: Iterable[tuple[str, int]]) -> Logs:
        """All records in offset order. AssertionError when a log does not begin at 0: the test needs all of it."""
        ends = self.ends(partitions)
        starts = self._offsets(ends, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        for (topic, partition), low in starts.items():
            assert low == 0, f"{topic}[{partition}] begins at {low}: the broker dropped what the test needs"
        logs: Logs = {key: [] for key in ends}
        self._consumer.assign([TopicPartition(self._access.topic(topic), partition, 0) for topic, partition in ends])
        missing, deadline = sum(ends.values()), time.monotonic() + _READ_TIMEOUT_S
        while missing > 0:
            for message in self._consumer.consume(10_000, timeout=0.05):  # it waits for all of them or the timeout
                record = self._record(message)
                logs[record.topic, record.partition].append(record)
                missing -= 1
                deadline = time.monotonic() + _READ_TIMEOUT_S
            assert time.monotonic() < deadline, f"nothing more to read, missing {_missing(logs, ends)}"
        self._consumer.unassign()
        return logs

    def close(self) -> None:
        self._consumer.close()

    def _offsets(self, partitions: Iterable[tuple[str, int]], spec: OffsetSpec) -> dict[tuple[str, int], int]:
        asked = {TopicPartition(self._access.topic(topic), partition): spec for topic, partition in partitions}
        try:
            found = self._admin.list_offsets(asked, request_timeout=_ANSWER_S)
            answers = {tp: future.result(_ANSWER_S).offset for tp, future in found.items()}
        except (KafkaException, FutureTimeout) as error:
            self._admin = AdminClient(self._config)  # the old one knows leaders from before the broker's restart
            raise ConnectionError(f"Kafka does not tell its offsets: {error}") from error
        return {(self._access.name(tp.topic), tp.partition): offset for tp, offset in answers.items()}

    def _record(self, message: Any) -> Record:
        assert message.error() is None, message.error()
        topic, (_, timestamp_ms) = self._access.name(message.topic()), message.timestamp()
        place = (topic, message.partition(), message.offset())
        return Record(*place, timestamp_ms, message.key(), message.value(), message.headers() or ())


def _missing(logs: Logs, ends: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
    return {key: end - len(logs[key]) for key, end in ends.items() if len(logs[key]) < end}


@dataclass(frozen=True, slots=True)
class Expected:
    """The oracle's state by part, as `streams.pipeline.digest.read_state` returns it, and how many clicks it applied.

    `unforwarded` counts misrouted clicks that have no copy at home with the same key, value and time, and their origin.
    """

    parts: dict[str, Any]
    applied: int
    misrouted: int
    unforwarded: int

    def catalogue(self, vectors: bool) -> dict[str, list[Any]]:
        """What every API process must hold: id → [record, tags, embedder, whether it has a retrieval vector]."""
        items = self.parts["items"]["items"]
        found = {
            item_id: [item["catalogue"], sorted(item["tags"]), item["embedder"], vectors and item["vector"]]
            for item_id, item in items.items()
        }
        return {item_id: fields for item_id, fields in found.items() if any(fields)}


def expect(logs: Logs, partitions: int, former: Logs | None = None, oracle: Oracle | None = None) -> Expected:
    """Applies whole logs in offset order; poison is left out.

    Args:
        former: what was applied of clickstream logs that do not exist any more, before those that do.
        oracle: a new one, which sees everything that happens.
    """
    oracle, former = oracle or Oracle(partitions), former or {}
    parts: dict[str, Any] = {}
    for partition in range(partitions):
        for record in logs[USERS, partition]:
            _profile(oracle, partition, partitions, record)
        for record in (*former.get((CLICKSTREAM, partition), ()), *logs[CLICKSTREAM, partition]):
            _click(oracle, partition, partitions, record)
        positions = {topic: len(logs[topic, partition]) for topic in (USERS, CLICKSTREAM)}
        parts[partition_tag(partition)] = oracle.part(partition, positions)
    parts |= _showings(logs, partitions)
    positions = {topic: len(logs[topic, 0]) for topic in (CATALOG, ITEM_VECTORS)}
    parts["items"] = {"items": _items(logs), "positions": positions}
    parts["contexts"] = {"contexts": _last(logs[CONTEXT, 0]), "positions": {CONTEXT: len(logs[CONTEXT, 0])}}
    if log := logs.get((SCENARIO_RULES, 0)):
        versions = {record.key.decode(): record.offset for record in log if record.key and not is_poison(record)}
        rules = {name: {**rule, "version": versions[name]} for name, rule in _last(log).items()}
        parts["rules"] = {"rules": rules, "positions": {SCENARIO_RULES: len(log)}}
    return Expected(parts, oracle.arrivals, *_forwarding(logs, partitions))


def harmed(logs: Logs, partitions: int, state: Mapping[str, Any]) -> int:
    """Users whose state is not what it would be if one producer's burst had never been sent."""
    others = {
        place: [record for record in log if not (record.key or b"").startswith(BURST_USER.encode())]
        for place, log in logs.items()
    }
    wrong = 0
    for tag, part in expect(others, partitions).parts.items():
        found = state[tag].get("users", {})
        expected = part.get("users", {})
        names = {name for name in (*found, *expected) if not name.startswith(BURST_USER)}
        wrong += sum(found.get(name) != expected.get(name) for name in names)
    return wrong


def is_poison(record: Record) -> bool:
    """Whether the harness sent this record as one that must not be accepted."""
    return any(name == POISON for name, _ in record.headers)


def _click(oracle: Oracle, partition: int, partitions: int, record: Record) -> None:
    if not is_poison(record):
        body = orjson.loads(record.value or b"")
        if partition_of(body["user_id"], partitions) == partition:
            oracle.click(partition, body, record.timestamp_ms)


def _profile(oracle: Oracle, partition: int, partitions: int, record: Record) -> None:
    if is_poison(record):
        return
    assert record.key is not None
    if record.value is None:
        oracle.profile(partition, record.key.decode(), None, record.timestamp_ms)
        return
    body = orjson.loads(record.value)
    numeric = {name: float(value) for name, value in body["numeric"].items()}
    content = {"numeric": numeric, "categorical": body["categorical"]}
    oracle.profile(partition, body["user_id"], content, body["ts_ms"])


def _showings(logs: Logs, partitions: int) -> dict[str, Any]:
    oracle, parts = ShowingsOracle(partitions), dict[str, Any]()
    for partition in range(partitions):
        log = logs.get((EXPOSURES, partition), [])
        for record in log:
            if not is_poison(record):
                oracle.shown(partition, orjson.loads(record.value or b""), record.timestamp_ms)
        if log:
            parts[showings_tag(partition)] = oracle.part(partition, len(log))
    return parts


def _forwarding(logs: Logs, partitions: int) -> tuple[int, int]:
    """How many clicks lie outside their home, and how many of these were not forwarded as they are."""
    clicks = [r for (topic, _), log in logs.items() if topic == CLICKSTREAM for r in log if not is_poison(r)]
    copies = {dict(record.headers)[_ORIGIN].decode(): _content(record) for record in clicks if record.headers}
    away = [
        (record, home)
        for record in clicks
        if (home := partition_of((record.key or b"").decode(), partitions)) != record.partition
    ]
    wrong = [
        record
        for record, home in away
        if copies.get(f"{CLICKSTREAM}[{record.partition}]@{record.offset}") != (home, *_content(record)[1:])
    ]
    return len(away), len(wrong)


def _content(record: Record) -> tuple[int, bytes | None, bytes | None, int]:
    return record.partition, record.key, record.value, record.timestamp_ms


def _last(log: Iterable[Record]) -> dict[str, Any]:
    """Last value by key; a null removes."""
    found: dict[str, Any] = {}
    for record in log:
        if not is_poison(record):
            assert record.key is not None
            found[record.key.decode()] = None if record.value is None else orjson.loads(record.value)
    return {key: body for key, body in found.items() if body is not None}


def _items(logs: Logs) -> dict[str, Any]:
    catalogue, vectors = _last(logs[CATALOG, 0]), _last(logs[ITEM_VECTORS, 0])
    good = [record for topic in (CATALOG, ITEM_VECTORS) for record in logs[topic, 0] if not is_poison(record)]
    items = {}
    for item in {(record.key or b"").decode() for record in good}:
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


def unlogged(sent: Iterable[Sent], logs: Logs, former: Logs | None = None) -> int:
    """Records that the broker acknowledged and does not have."""
    there = Counter(
        (topic, record.key, record.value)
        for part in (logs, former or {})
        for (topic, _), log in part.items()
        for record in log
    )
    asked = Counter((record.topic, record.key, record.value) for record in sent)
    return sum((asked - there).values())


def missing_dead_letters(logs: Logs, dead: Iterable[Record]) -> tuple[int, int]:
    """How many poison records have no dead letter with their origin, length and hash, and how many others have one."""
    wanted = {
        (topic, str(partition), str(record.offset)): (len(record.value or b""), sha256(record.value or b"").hexdigest())
        for (topic, partition), log in logs.items()
        for record in log
        if is_poison(record)
    }
    found = {}
    for letter in dead:
        headers = {name: value.decode() for name, value in letter.headers}
        origin = headers["topic"], headers["partition"], headers["offset"]
        found[origin] = (int(headers["length"]), headers["sha256"])
    return sum(found.get(origin) != content for origin, content in wanted.items()), len(found.keys() - wanted.keys())


@dataclass(frozen=True, slots=True)
class Difference:
    """Events or counted units that are missing from the state (`lost`) and that are there too often (`twice`)."""

    lost: int
    twice: int
    parts: tuple[str, ...]  # names of the parts that differ


def compare(state: Mapping[str, Any], expected: Mapping[str, Any]) -> Difference:
    """What the state lacks and what it has too much of, against the oracle's."""
    lost: Counter[str] = Counter()
    for name, part in expected.items():
        if "users" in part or "showings" in part:
            lost.update(_counted(part))
            lost.subtract(_counted(state[name]))
    differing = tuple(sorted(name for name in expected if state[name] != expected[name]))
    return Difference(sum((+lost).values()), sum((-lost).values()), differing)


def lost_clicks(logs: Logs, state: Mapping[str, Any], partitions: int) -> list[str]:
    """Where in the logs the clicks lie that windows lack, a line each: partition, offset, user."""
    expected = expect(logs, partitions, {})
    lines = []
    for (topic, partition), log in logs.items():
        name = partition_tag(partition)
        if topic != CLICKSTREAM or state[name] == expected.parts[name]:
            continue
        held = {(user, event[0]) for user, content in state[name]["users"].items() for event in content["window"]}
        wanted = {(u, e[0]) for u, content in expected.parts[name]["users"].items() for e in content["window"]}
        for offset, record in enumerate(log):
            body = {} if is_poison(record) else orjson.loads(record.value or b"{}")
            key = body.get("user_id", ""), str(event_hash(body.get("event_id", "")))
            if key in wanted - held:
                lines.append(f"{name} lacks {record.offset} ({offset}) of {key[0]}")
    return lines


def _counted(part: Mapping[str, Any]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for user, content in part.get("users", {}).items():
        counts.update(f"event {user} {event[0]}" for event in content["window"])
    for counted in ("popularity", "kinds", "showings"):
        for bucket, names in part.get(counted, {}).items():
            for name, count in names.items():
                counts[f"{counted} {bucket} {name}"] += count
    for bucket, pairs in part.get("pairs", {}).items():
        for name, (baskets, others) in pairs["items"].items():
            counts[f"baskets {bucket} {name}"] += baskets
            counts.update({f"pair {bucket} {name} {other}": count for other, count in others})
    return counts
