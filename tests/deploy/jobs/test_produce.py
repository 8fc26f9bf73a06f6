"""What time records get that are sent while a deployment replays a timeline."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import orjson
import pytest

from deploy.jobs.produce import produce, timeline_clock
from deploy.settings import load
from index.state.store import StoreUnavailableError
from streams.events import Rules

TS_MS = 1_323_435_033_000


def test_records_are_sent_at_the_time_of_the_timeline_that_is_replayed() -> None:
    sent: list[tuple[bytes | None, dict[str, Any]]] = []

    class RecordingProducer:
        def enqueue(self, topic: str, key: bytes, value: bytes | None, **extras: Any) -> Future[tuple[int, int]]:
            sent.append((value, extras))
            future: Future[tuple[int, int]] = Future()
            future.set_result((0, len(sent)))
            return future

    event = {"user_id": "u1", "item_id": "i1", "kind": "view"}
    lines = [orjson.dumps(event), orjson.dumps({"topic": "catalog", "key": "i1", "value": None})]
    options: dict[str, Any] = {"topic": "clickstream", "stamp": True, "clock_ms": lambda: TS_MS}
    assert asyncio.run(produce(lines, RecordingProducer(), Rules(), **options)).sent == 2  # type: ignore[arg-type]
    (value, extras), removal = sent
    assert orjson.loads(value or b"")["ts_ms"] == TS_MS == extras["timestamp_ms"]
    assert removal == (None, {})


@pytest.mark.parametrize(("stored", "is_replayed"), [(b"1323435033000", True), (b"", False), (None, False)])
def test_what_time_it_is_in_a_timeline_is_asked_of_the_live_state(
    monkeypatch: pytest.MonkeyPatch, stored: bytes | None, is_replayed: bool
) -> None:
    monkeypatch.setattr("deploy.jobs.produce.ask_redis", lambda settings, commands: [stored])
    now_ms = timeline_clock(load({}))()
    assert (now_ms is not None and 0 <= now_ms - 1_323_435_033_000 < 10_000) == is_replayed


def test_without_the_live_state_the_wall_clock_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> list[Any]:
        raise StoreUnavailableError("away")

    monkeypatch.setattr("deploy.jobs.produce.ask_redis", away)
    assert timeline_clock(load({}))() is None
