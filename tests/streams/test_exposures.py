"""Exposure records: what the API writes is understood, and anything else is refused with field and reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from streams.events import EXPOSURES, FAST_CLOCK_MS, Exposure, MalformedError, Record
from streams.parsing import parse_exposure
from tests.faults.malformed import WRONG_TIMESTAMPS

NOW_MS = 1_760_000_000_000
BODY = {
    "recommendation_id": "r1",
    "user_id": "u1",
    "items": [{"item_id": "a", "slot": "next", "score": 0.5}, {"item_id": "b", "slot": "general", "score": 0.4}],
    "ts_ms": NOW_MS,
    "page_id": "p1",
    "model": "m-1",
    "served_by": "personal",
    "location": None,
    "scenario": "home",
    "list": "trending",
    "ranker": "r-1",
    "rules": "ignored",
}


def record(body: Any, timestamp_ms: int = NOW_MS, key: bytes | None = b"u1") -> Record:
    return Record(EXPOSURES, 0, 0, timestamp_ms, key, body if isinstance(body, bytes | None) else orjson.dumps(body))


def test_what_the_api_writes_is_understood() -> None:
    plain = Exposure(
        "r1", "u1", NOW_MS, ("a", "b"), "p1", "", "m-1", "personal",
        scenario="home", list="trending", ranker="r-1", slots=("next", "general"),
    )  # fmt: skip
    assert parse_exposure(record(BODY)) == plain
    tried = replace(plain, experiment="x-1", arm="challenger")
    assert parse_exposure(record({**BODY, "experiment": "x-1", "arm": "challenger"})) == tried
    least = {name: BODY[name] for name in ("recommendation_id", "user_id", "items", "ts_ms")}
    assert parse_exposure(record(least, key=None)).page_id == ""
    assert parse_exposure(record({**BODY, "items": []})).shown == ()


def test_a_clock_that_runs_ahead_is_set_back() -> None:
    found = [parse_exposure(record(BODY, NOW_MS - FAST_CLOCK_MS - late)).ts_ms for late in (0, 1)]
    assert found == [NOW_MS, NOW_MS - FAST_CLOCK_MS - 1]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (None, "value"),
        (b"{", "value"),
        ([], "value"),
        ({**BODY, "user_id": "u2"}, "key"),
        ({**BODY, "user_id": 7}, "user_id"),
        ({**BODY, "recommendation_id": ""}, "recommendation_id"),
        ({**BODY, "recommendation_id": "a\nb"}, "recommendation_id"),
        ({**BODY, "items": None}, "items"),
        ({**BODY, "items": ["a"]}, "items[0].item_id"),
        ({**BODY, "items": [BODY["items"][0], {"item_id": "x" * 257}]}, "items[1].item_id"),  # type: ignore[index]
        ({**BODY, "page_id": 1}, "page_id"),
        ({**BODY, "arm": 1}, "arm"),
        ({**BODY, "experiment": ["x-1"]}, "experiment"),
        ({**BODY, "ts_ms": True}, "ts_ms"),
        ({**BODY, "ts_ms": 1_760_000_000}, "ts_ms"),
        ({**BODY, "ts_ms": NOW_MS * 1000}, "ts_ms"),
    ],
)
def test_what_is_wrong_is_named(body: Any, field: str) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_exposure(record(body))
    assert caught.value.field == field


@pytest.mark.parametrize("timestamp_ms", WRONG_TIMESTAMPS)
def test_a_record_without_a_usable_kafka_time_is_refused(timestamp_ms: int) -> None:
    with pytest.raises(MalformedError, match=r"^timestamp: .* expected milliseconds since the epoch$"):
        parse_exposure(record(BODY, timestamp_ms))


ODD: list[Any] = [None, "", "a", " ", "x y", "\u00a0", "é", "a\n", "i" * 256, "i" * 257, 0, 1, True, False, [], {}, 1.5]


@pytest.mark.parametrize("item_id", ODD)
@pytest.mark.parametrize("slot", ODD)
def test_what_is_plainly_right_is_taken_as_by_a_closer_look(
    item_id: Any, slot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list[tuple[Any, Any]]()
    for _ in range(2):
        try:
            exposure = parse_exposure(record({**BODY, "items": [{"item_id": item_id, "slot": slot}]}))
            found.append((exposure.shown, exposure.slots))
        except MalformedError as error:
            found.append((error.field, error.reason))
        monkeypatch.setattr("streams.parsing._plain_item", lambda entry: None)
    assert found[0] == found[1]
