"""Parses records, dead-letters malformed ones and forwards misrouted ones to their home partition.

When a call returns, everything that was not accepted is acknowledged by Kafka, so the position may pass it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from index.state.keys import partition_of
from streams.events import DEAD_LETTERS, Click, Event, Forget, MalformedError, Profile, Record, Rules
from streams.parsing import parse
from streams.pipeline.metrics import PipelineCounters
from streams.pipeline.user_state import UserEvent

MAX_DEAD_LETTER_BYTES = 512 * 1024
_MAX_TEXT_BYTES = 1024  # of a dead letter's key, reason and field: a producer chooses how long these are
_RETRY_S = 0.5  # between attempts to reach Kafka; the delivery timeout of the producer comes on top

log = logging.getLogger(__name__)


class DeadLetterSink(Protocol):
    """Where records go that are not applied here. Both calls return once Kafka has acknowledged."""

    async def dead_letter(self, record: Record, error: MalformedError) -> None:
        """Publishes the raw record to `dead-letters` with its reason."""

    async def forward(self, record: Record, partition: int, key: bytes) -> None:
        """Publishes the record to its home partition of the same topic, with its Kafka timestamp and origin."""


class Intake:
    """Accepts records by the rules of a deployment with so many user partitions.

    `counts` gets `malformed` with topics and fields, `misrouted` and `clamped`.
    """

    def __init__(self, rules: Rules, partitions: int, sink: DeadLetterSink, counts: PipelineCounters) -> None:
        self._rules, self._partitions, self._sink, self._counts = rules, partitions, sink, counts

    async def accept(self, records: Sequence[Record]) -> list[tuple[Record, Event]]:
        """The well-formed records with their events, in order."""
        good: list[tuple[Record, Event]] = []
        bad = []
        for record in records:
            try:
                good.append((record, parse(record, self._rules)))
            except MalformedError as error:
                bad.append((record, error))
                self._counts.add_malformed(record.topic, error.field)
        self._counts.add("malformed", len(bad))
        await asyncio.gather(*(self._sink.dead_letter(record, error) for record, error in bad))
        return good

    async def accept_users(self, records: Sequence[Record]) -> list[UserEvent]:
        """The events of users whose home partition is the records'; others are forwarded."""
        events, misrouted = [], []
        for record, event in await self.accept(records):
            assert isinstance(event, (Click, Forget, Profile))
            home = partition_of(event.user_id, self._partitions)
            if home != record.partition:
                misrouted.append(self._sink.forward(record, home, event.user_id.encode()))
                continue
            if isinstance(event, Click) and event.raw_ts_ms - event.ts_ms > 0:
                self._counts.add("clamped")
            events.append(event)
        self._counts.add("misrouted", len(misrouted))
        await asyncio.gather(*misrouted)
        return events


class Send(Protocol):
    """Sends a record; (partition, offset) once acknowledged. ConnectionError can be tried again, ValueError cannot."""

    async def __call__(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None = None,
        *,
        timestamp_ms: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> tuple[int, int]: ...


class KafkaDeadLetterSink:
    """`DeadLetterSink` that writes to Kafka."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def dead_letter(self, record: Record, error: MalformedError) -> None:
        value = record.value or b""
        headers = [
            ("reason", error.reason.encode()[:_MAX_TEXT_BYTES]),
            ("field", error.field.encode()[:_MAX_TEXT_BYTES]),
            ("topic", record.topic.encode()),
            ("partition", str(record.partition).encode()),
            ("offset", str(record.offset).encode()),
            ("length", str(len(value)).encode()),
            ("sha256", hashlib.sha256(value).hexdigest().encode()),
        ]
        key = None if record.key is None else record.key[:_MAX_TEXT_BYTES]
        cut = None if record.value is None else value[:MAX_DEAD_LETTER_BYTES]
        # Kafka's time stays unless a broker may refuse it or soon remove such a letter; then it is that of sending.
        kept = record.has_time and record.timestamp_ms <= time.time() * 1000
        send = partial(self._send, DEAD_LETTERS, timestamp_ms=record.timestamp_ms if kept else None, headers=headers)
        try:
            await _until_acknowledged(DEAD_LETTERS, partial(send, key, cut))
        except ValueError as refused:  # the topic takes less than Kafka's default: say where the record is
            log.error("%s takes no %d bytes, its value is left out: %s", DEAD_LETTERS, len(cut or b""), refused)
            await _until_acknowledged(DEAD_LETTERS, partial(send, None, None))

    async def forward(self, record: Record, partition: int, key: bytes) -> None:
        origin = f"{record.topic}[{record.partition}]@{record.offset}".encode()
        headers = [*record.headers, ("forwarded-from", origin)]
        send = partial(self._send, record.topic, key, record.value, partition, headers=headers)
        try:
            await _until_acknowledged(record.topic, partial(send, timestamp_ms=record.timestamp_ms))
        except ValueError as error:  # the broker took it once, but takes less from us, or bounds times by now
            await self.dead_letter(record, MalformedError("value", f"cannot be forwarded: {error}"))


async def _until_acknowledged(topic: str, send: Callable[[], Awaitable[object]]) -> None:
    while True:
        try:
            await send()
            return
        except ConnectionError as error:
            log.warning("%s did not acknowledge a record, trying again: %s", topic, error)
            await asyncio.sleep(_RETRY_S)
