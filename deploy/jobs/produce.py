"""Sends events from a file of JSON lines into Kafka, each checked by the rules that the worker will apply.

A line is the record itself with its `topic`, or `{"topic", "key", "value"}` where a null value removes the key. What
the worker would refuse is named, not sent. Records have the time of a timeline that is replayed.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import orjson

from context.json_words import found_value, json_word
from deploy.runtime.process import ask_redis
from deploy.runtime.producer import Acknowledged, EventProducer, Extras, at_time
from deploy.settings import Settings
from index.state.redis_routing import Command
from index.state.store import StoreUnavailableError
from streams.events import CLICKSTREAM, CONSUMED, MalformedError, Record, Rules
from streams.parsing import encode_record, parse

_ONE_A_LINE = "; write one object per line, and no list around them"
_IN_FLIGHT = 2_000  # enough to fill batches; few enough that a broken pipe loses little


@dataclass(slots=True)
class Produced:
    """What became of the lines: first and last offset by topic and partition, and for people which were refused why."""

    sent: int = 0
    offsets: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)

    def note(self, topic: str, partition: int, offset: int) -> None:
        span = self.offsets.setdefault(topic, {}).setdefault(partition, [offset, offset])
        span[:] = min(span[0], offset), max(span[1], offset)
        self.sent += 1

    def summary(self) -> dict[str, Any]:
        """For one line of JSON."""
        return {"sent": self.sent, "rejected": len(self.rejected), "offsets": self.offsets}


class LineIds:
    """Event ids of lines that have none: a file that is sent again, with some lines corrected, has the same ones.

    An id is a hash of the line with the number of the line among equal ones.
    """

    def __init__(self) -> None:
        self._seen: Counter[bytes] = Counter()

    def id_of(self, line: bytes) -> str:
        """The id of the next line of the file."""
        digest = hashlib.blake2b(line.strip(), digest_size=16).digest()
        self._seen[digest] += 1
        return f"{digest.hex()}-{self._seen[digest]}"


Sendable = tuple[str, bytes, bytes | None]  # topic, key, value


def read_line(line: bytes, topic: str | None, rules: Rules, now_ms: int, stamp: LineIds | None = None) -> Sendable:
    """The record of one line. With `stamp`, a missing `ts_ms` becomes now and a missing `event_id` one of these.

    Raises MalformedError, which names the field and what is wrong with it.
    """
    try:
        body = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise MalformedError("value", f"not JSON: {error}{_ONE_A_LINE * _is_piece(line)}") from error
    if not isinstance(body, dict):
        raise MalformedError("value", f"expected an object, got {found_value(body)}{_ONE_A_LINE * _is_piece(line)}")
    name = body.pop("topic", topic)
    if name not in CONSUMED:
        found = "the line names none and --topic is not given" if name is None else f"{name!r:.60} is none"
        raise MalformedError("topic", f"{found}; known are {', '.join(CONSUMED)}")
    if "partition" in body:
        raise MalformedError("partition", "cannot be chosen, it follows from the id; leave it out")
    has_key, key = "key" in body, body.pop("key", None)
    if has_key and "value" in body:
        body = body["value"]
        if body is None:
            return name, _removal(name, key, rules, now_ms), None
    if stamp is not None and isinstance(body, dict):
        body.setdefault("ts_ms", now_ms)
        if name == CLICKSTREAM and "event_id" not in body:
            body["event_id"] = stamp.id_of(line)
    own, value = encode_record(name, body, now_ms, rules)
    if key is not None and key != own.decode():
        raise MalformedError("key", f"differs from the record's id {own.decode()!r:.60}, got {key!r:.60}; leave it out")
    return name, own, value


def _is_piece(line: bytes) -> bool:
    """Whether a line that holds no object looks like a part of a list, or of an object over several lines."""
    text = line.strip()
    return text[:1] in b"[]{}" or text[-1:] in b",:{[" or text.startswith(b'"')


def timeline_clock(settings: Settings) -> Callable[[], int | None]:
    """What time it is in the timeline that the deployment replays, from now on; None where it replays none."""
    key = settings.keys().cluster()
    try:
        (found,) = ask_redis(settings, [Command(key, ("HGET", key, "clock_ms"))])
    except StoreUnavailableError:
        found = None
    began_s = time.monotonic()
    return lambda: int(found) + int(1000 * (time.monotonic() - began_s)) if found else None


def _removal(topic: str, key: Any, rules: Rules, now_ms: int) -> bytes:
    if not isinstance(key, str):
        raise MalformedError("key", f"expected a string, got {json_word(key)}")
    parse(Record(topic, 0, 0, now_ms, key.encode(), None), rules)
    return key.encode()


def _numbered(lines: Iterable[bytes], result: Produced) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank; where a file breaks off is told like a bad line, since what came before is sent."""
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line
    except ValueError as error:
        result.rejected.append(f"line {number + 1}: file: {error}")


async def produce(
    lines: Iterable[bytes],
    producer: EventProducer,
    rules: Rules,
    *,
    topic: str | None = None,
    stamp: bool = False,
    clock_ms: Callable[[], int | None] = lambda: None,
    on_each: Callable[[int, str, Acknowledged], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    refused: BinaryIO | None = None,
) -> Produced:
    """Sends all good lines in order and waits for their acknowledgement.

    `clock_ms` is the time of the timeline that is replayed, None where none is. `on_each` gets the line number, topic
    and (partition, offset) of every record; `on_progress` how many lines were done since its last call; `refused` the
    lines that were not sent.

    Raises:
        DeliveryError: Kafka did not take a record; what came before it in the file was sent.
    """
    result, ids = Produced(), LineIds() if stamp else None

    def refuse(number: int, line: bytes, *errors: str) -> None:
        result.rejected.append(f"line {number}: {'; '.join(errors)}")
        if refused is not None:
            refused.write(line.removesuffix(b"\n") + b"\n")

    numbered = _numbered(lines, result)
    while batch := list(itertools.islice(numbered, _IN_FLIGHT)):
        sending: list[tuple[int, str, Future[Acknowledged]]] = []
        for number, line in batch:
            try:
                played_ms = clock_ms()
                now_ms = int(time.time() * 1000) if played_ms is None else played_ms
                name, key, value = read_line(line, topic, rules, now_ms, ids)
                # A removal is by the wall clock, and so newer than whatever the timeline says.
                extras: Extras = {} if played_ms is None or value is None else at_time(played_ms)
                future = producer.enqueue(name, key, value, **extras)
                while future is None:  # the queue holds far more than one batch, so this is rare and short
                    await asyncio.sleep(0.01)
                    future = producer.enqueue(name, key, value, **extras)
                sending.append((number, name, future))
            except MalformedError as error:
                refuse(number, line, *map(str, (error, *error.others)))
            except ValueError as error:
                refuse(number, line, f"value: {error}")
        for number, name, future in sending:
            acknowledged = await asyncio.wrap_future(future)
            result.note(name, *acknowledged)
            if on_each is not None:
                on_each(number, name, acknowledged)
        if on_progress is not None:
            on_progress(len(batch))
    return result
