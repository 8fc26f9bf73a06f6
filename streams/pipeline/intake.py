"""The door of the pipeline: parses records, sends bad ones to `dead-letters` and misrouted ones home.

When a call returns, everything that was not accepted is acknowledged by Kafka, so the position may pass it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from index.api.metrics import field_label
from index.state.keys import partition_of
from streams.events import Click, Event, Forget, MalformedError, Profile, Record, Rules, parse

_REASONS = 100  # told apart: a reason may quote a field's name, of which there are any number


def note_reason(reasons: Counter[str], topic: str, error: MalformedError) -> None:
    """Counts a malformed record by topic and reason."""
    reason = f"{topic}: {error}"
    reasons[reason if reason in reasons or len(reasons) < _REASONS else f"{topic}: other reasons"] += 1


class Outlet(Protocol):
    """Where records go that are not applied here. Both calls return once Kafka has acknowledged."""

    async def dead_letter(self, record: Record, error: MalformedError) -> None:
        """Publishes the raw record to `dead-letters` with its reason."""

    async def forward(self, record: Record, partition: int, key: bytes) -> None:
        """Publishes the record to its home partition of the same topic, with its Kafka timestamp and origin."""


class Intake:
    """Accepts records by the rules of a deployment.

    Args:
        partitions: number of user partitions.
        counts: gets `malformed`, `malformed:<topic>:<field>`, `misrouted` and `clamped`.
    """

    def __init__(self, rules: Rules, partitions: int, outlet: Outlet, counts: Counter[str]) -> None:
        self._rules, self._partitions, self._outlet, self._counts = rules, partitions, outlet, counts

    async def accept(self, records: Sequence[Record]) -> list[tuple[Record, Event]]:
        """The well-formed records with their events, in order."""
        good: list[tuple[Record, Event]] = []
        bad = []
        for record in records:
            try:
                good.append((record, parse(record, self._rules)))
            except MalformedError as error:
                bad.append((record, error))
                self._counts[f"malformed:{record.topic}:{field_label(error.field)}"] += 1
        self._counts["malformed"] += len(bad)
        await asyncio.gather(*(self._outlet.dead_letter(record, error) for record, error in bad))
        return good

    async def accept_at_home(self, records: Sequence[Record]) -> list[Click | Forget | Profile]:
        """The events of users who live in the records' partition; others are forwarded."""
        events, away = [], []
        for record, event in await self.accept(records):
            assert isinstance(event, (Click, Forget, Profile))
            home = partition_of(event.user_id, self._partitions)
            if home != record.partition:
                away.append(self._outlet.forward(record, home, event.user_id.encode()))
                continue
            if isinstance(event, Click) and event.raw_ts_ms - event.ts_ms > 0:
                self._counts["clamped"] += 1
            events.append(event)
        self._counts["misrouted"] += len(away)
        await asyncio.gather(*away)
        return events
