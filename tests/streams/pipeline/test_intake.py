"""Dead letters and forwarded records: what they carry, what is cut, and waiting for Kafka's acknowledgement."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from streams.events import CLICKSTREAM, DEAD_LETTERS, MalformedError, Record
from streams.pipeline.intake import MAX_DEAD_LETTER_BYTES, KafkaDeadLetterSink
from tests.support.sent import Sending, SentRecord

TS_MS, FUTURE_MS = 1_760_000_000_000, 4_000_000_000_000
KAFKA_BYTES = 1_000_000  # what a producer and a broker accept by default


class Kafka(Sending):
    """Takes records up to Kafka's size, none of the future, after `failures` attempts without an acknowledgement."""

    def __init__(self, failures: int = 0, limit: int = KAFKA_BYTES) -> None:
        self.failures, self.attempts, self.limit = failures, 0, limit
        self.sent: list[SentRecord] = []

    def take(self, sent: SentRecord) -> tuple[int, int]:
        self.attempts += 1
        if sent.size > self.limit:
            raise ValueError(f"a record of {sent.size} bytes is too large")
        if (sent.timestamp_ms or 0) >= FUTURE_MS:
            raise ValueError("Broker: Invalid timestamp")
        if self.attempts <= self.failures:
            raise ConnectionError("no acknowledgement")
        self.sent.append(sent)
        return 0, len(self.sent) - 1


def record(key: bytes | None = b"u", value: bytes | None = b"x", timestamp_ms: int = TS_MS) -> Record:
    return Record(CLICKSTREAM, 3, 41, timestamp_ms, key, value, (("trace", b"1"),))


def bury(sent: Record, error: MalformedError, kafka: Kafka | None = None) -> SentRecord:
    kafka = kafka or Kafka()
    asyncio.run(KafkaDeadLetterSink(kafka).dead_letter(sent, error))
    return kafka.sent[0]


def test_a_dead_letter_carries_the_raw_bytes_and_says_where_they_were_and_why() -> None:
    topic, key, value, _, timestamp_ms, headers = bury(record(value=b"\xff{"), MalformedError("value", "not JSON"))
    assert (topic, key, value, timestamp_ms) == (DEAD_LETTERS, b"u", b"\xff{", TS_MS)
    assert dict(headers) == {
        "reason": b"not JSON",
        "field": b"value",
        "topic": b"clickstream",
        "partition": b"3",
        "offset": b"41",
        "length": b"2",
        "sha256": hashlib.sha256(b"\xff{").hexdigest().encode(),
    }


def test_a_long_value_is_cut_and_its_length_and_hash_are_those_of_the_whole() -> None:
    value = b"x" * (MAX_DEAD_LETTER_BYTES + 1)
    _, _, cut, _, _, headers = bury(record(value=value), MalformedError("value", "not JSON"))
    assert cut == value[:MAX_DEAD_LETTER_BYTES]
    assert dict(headers)["length"] == str(len(value)).encode()
    assert dict(headers)["sha256"] == hashlib.sha256(value).hexdigest().encode()


@pytest.mark.parametrize("key_bytes", [0, 1, 499_000, 999_000])
def test_whatever_a_broker_took_fits_into_a_dead_letter(key_bytes: int) -> None:
    sent = record(b"k" * key_bytes, b"v" * (999_900 - key_bytes))
    name = "numeric." + "n" * 900_000  # a field's name is the producer's choice too
    _, _, value, _, _, headers = bury(sent, MalformedError(name, name))  # a too large one would be refused
    assert value is not None and len(value) == min(999_900 - key_bytes, 512 * 1024)
    assert dict(headers)["length"] == str(999_900 - key_bytes).encode()


def test_a_topic_that_takes_less_than_kafka_still_learns_where_the_record_is() -> None:
    _, key, value, _, _, headers = bury(record(value=b"v" * 5000), MalformedError("value", "null"), Kafka(limit=2000))
    assert (key, value) == (None, None)
    assert dict(headers)["length"] == b"5000" and dict(headers)["offset"] == b"41"


@pytest.mark.parametrize("timestamp_ms", [-1, 0, TS_MS // 1000, TS_MS * 1000, FUTURE_MS])
def test_a_null_stays_a_null_and_a_time_that_a_broker_may_refuse_becomes_that_of_sending(timestamp_ms: int) -> None:
    _, key, value, _, sent_ms, headers = bury(record(None, None, timestamp_ms), MalformedError("value", "null"))
    assert (key, value, sent_ms) == (None, None, None)
    assert dict(headers)["length"] == b"0"


def test_a_record_whose_time_the_home_partition_refuses_becomes_a_dead_letter() -> None:
    kafka = Kafka()
    asyncio.run(KafkaDeadLetterSink(kafka).forward(record(timestamp_ms=FUTURE_MS), 7, b"u"))
    assert [(sent.topic, sent.timestamp_ms) for sent in kafka.sent] == [(DEAD_LETTERS, None)]


def test_a_forwarded_record_keeps_key_time_and_headers_and_names_its_origin() -> None:
    kafka = Kafka()
    asyncio.run(KafkaDeadLetterSink(kafka).forward(record(None), 7, b"u"))
    topic, key, value, partition, timestamp_ms, headers = kafka.sent[0]
    assert (topic, key, value, partition, timestamp_ms) == (CLICKSTREAM, b"u", b"x", 7, TS_MS)
    assert headers == [("trace", b"1"), ("forwarded-from", b"clickstream[3]@41")]


def test_a_record_too_large_for_forwarding_becomes_a_dead_letter() -> None:
    kafka = Kafka()
    asyncio.run(KafkaDeadLetterSink(kafka).forward(record(value=b"x" * 999_990), 7, b"u"))
    topic, _, value, _, _, headers = kafka.sent[0]
    assert topic == DEAD_LETTERS and value is not None and len(value) == MAX_DEAD_LETTER_BYTES
    assert b"cannot be forwarded" in dict(headers)["reason"]


def test_it_tries_until_kafka_acknowledges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.pipeline.intake._RETRY_S", 0.001)
    kafka = Kafka(failures=3)
    bury(record(), MalformedError("value", "not JSON"), kafka)
    assert kafka.attempts == 4 and len(kafka.sent) == 1
