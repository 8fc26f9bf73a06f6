"""The API's way to Kafka: what is posted while a timeline is replayed belongs to that time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from deploy.roles.api import kafka_side
from deploy.settings import load
from streams.events import CLICKSTREAM, SENT_MS, USERS, Click, Record
from streams.parsing import parse
from tests.integration.live import click

CLOCK_MS = 1_323_435_033_000


class RecordingProducer:
    """Remembers what it was given."""

    dropped = 0

    def __init__(self) -> None:
        self.extras: list[dict[str, Any]] = []

    async def send(self, topic: str, key: bytes, value: bytes | None, partition: int | None, **extras: Any) -> Any:
        self.extras.append(extras)
        return partition, len(self.extras) - 1

    def expose(self, *_: object) -> None: ...


async def result(publishing: Awaitable[tuple[int, int]]) -> tuple[int, int]:
    return await publishing


@pytest.mark.parametrize("clock_ms", [CLOCK_MS, None])
def test_an_event_of_today_is_one_of_the_timelines_now(clock_ms: int | None) -> None:
    producer, settings = RecordingProducer(), load({})
    side = kafka_side(settings, producer, producer, lambda: clock_ms)  # type: ignore[arg-type]
    key, value = side.validate(CLICKSTREAM, click("u1", "i1"))
    assert asyncio.run(result(side.publish(CLICKSTREAM, key, value, 3))) == (3, 0)
    (extras,) = producer.extras
    if clock_ms is None:
        assert extras == {}, "Kafka's own time"
        return
    assert extras["timestamp_ms"] == CLOCK_MS
    ((name, sent),) = extras["headers"]
    assert name == SENT_MS and int(sent) > CLOCK_MS, "freshness is measured by the wall clock"
    event = parse(Record(CLICKSTREAM, 3, 0, CLOCK_MS, key, value), settings.rules())
    assert isinstance(event, Click) and event.ts_ms == CLOCK_MS < event.raw_ts_ms


def test_a_removal_is_newer_than_whatever_the_timeline_says() -> None:
    producer = RecordingProducer()
    side = kafka_side(load({}), producer, producer, lambda: CLOCK_MS)  # type: ignore[arg-type]
    asyncio.run(result(side.publish(USERS, b"u1", None, 3)))
    assert producer.extras == [{}]
