"""A producer's `send` that tests listen to: subclasses say what becomes of each record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class SentRecord(NamedTuple):
    """The arguments of one call, with the headers as a list."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None
    timestamp_ms: int | None
    headers: list[tuple[str, bytes]]

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        return len(self.key or b"") + len(self.value or b"") + sum(len(n) + len(text) for n, text in self.headers)


class Sending:
    """`streams.pipeline.intake.Send`."""

    async def __call__(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None = None,
        *,
        timestamp_ms: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> tuple[int, int]:
        return self.take(SentRecord(topic, key, value, partition, timestamp_ms, list(headers)))

    def take(self, sent: SentRecord) -> tuple[int, int]:
        """The partition and offset that the record got, or the error that its sender sees."""
        raise NotImplementedError
