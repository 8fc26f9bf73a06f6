"""Where the pipeline sends records it does not apply: `dead-letters`, and the home partition of misrouted ones.

Both wait for Kafka's acknowledgement and try again until they have it, so that a position never passes a record that
was lost on the way. Takes the process's producer as an argument; how it is configured is deploy's matter.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from typing import Protocol

from streams.events import DEAD_LETTERS, MalformedError, Record

MAX_DEAD_LETTER_BYTES = 512 * 1024
_MAX_TEXT_BYTES = 1024  # of a dead letter's key, reason and field: a producer chooses how long these are
_RETRY_S = 0.5  # between attempts to reach Kafka; the delivery timeout of the producer comes on top

log = logging.getLogger(__name__)


class Send(Protocol):
    """Sends one record and returns (partition, offset) once acknowledged.

    ConnectionError means that it can be tried again, ValueError that it cannot.
    """

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


class KafkaOutlet:
    """`Outlet` that writes to Kafka."""

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
        try:
            await self._until_acknowledged(DEAD_LETTERS, key, cut, None, record.timestamp_ms, headers)
        except ValueError as refused:  # the topic takes less than Kafka's default: say where the record is
            log.error("%s takes no %d bytes, its value is left out: %s", DEAD_LETTERS, len(cut or b""), refused)
            await self._until_acknowledged(DEAD_LETTERS, None, None, None, record.timestamp_ms, headers)

    async def forward(self, record: Record, partition: int, key: bytes) -> None:
        origin = f"{record.topic}[{record.partition}]@{record.offset}".encode()
        headers = [*record.headers, ("forwarded-from", origin)]
        try:
            await self._until_acknowledged(record.topic, key, record.value, partition, record.timestamp_ms, headers)
        except ValueError as error:  # the broker took it from its producer, but our own producer's limit is lower
            await self.dead_letter(record, MalformedError("value", f"cannot be forwarded: {error}"))

    async def _until_acknowledged(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp_ms: int,
        headers: Sequence[tuple[str, bytes]],
    ) -> None:
        while True:
            try:
                await self._send(topic, key, value, partition, timestamp_ms=max(0, timestamp_ms), headers=headers)
                return
            except ConnectionError as error:
                log.warning("%s did not acknowledge a record, trying again: %s", topic, error)
                await asyncio.sleep(_RETRY_S)
