"""The active record of a location: latest first, expired ones gone, against a search by brute force."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context.timeline import ContextTimeline


def row(location: str, ts_ms: int, until_ms: int | None = None) -> dict[str, Any]:
    return {"location": location, "ts_ms": ts_ms, "valid_until_ms": until_ms}


def test_the_latest_record_of_the_own_location_is_active_until_it_expires() -> None:
    records = [row("oslo", 30, 35), row("oslo", 10, 99), row("rome", 20)]
    timeline = ContextTimeline(records)
    assert timeline.index(["oslo"] * 5, [9, 10, 29, 30, 35]).tolist() == [-1, 1, 1, 0, -1]
    assert timeline.index(["rome", "bern", None], [20, 20, 20]).tolist() == [2, -1, -1]
    assert timeline.active("oslo", 29) is records[1]
    assert timeline.active("oslo", 35) is None


def test_an_expired_record_does_not_give_way_to_an_older_one() -> None:
    assert ContextTimeline([row("oslo", 0), row("oslo", 10, 20)]).active("oslo", 25) is None


def test_of_equal_times_the_later_written_wins() -> None:
    assert ContextTimeline([row("oslo", 5), row("oslo", 5)]).index(["oslo"], [5]).tolist() == [1]


def test_a_record_without_place_or_time_is_refused() -> None:
    with pytest.raises(ValueError, match="location"):
        ContextTimeline([{"ts_ms": 1}])
    with pytest.raises(ValueError, match="ts_ms"):
        ContextTimeline([{"location": "oslo"}])
    with pytest.raises(ValueError, match="2 locations for 1"):
        ContextTimeline([]).index(["oslo", "oslo"], [1])


PLACES = st.sampled_from(["oslo", "rome"])
ROWS = st.lists(st.builds(row, PLACES, st.integers(0, 20), st.none() | st.integers(0, 25)), max_size=8)


@settings(max_examples=100, deadline=None)
@given(records=ROWS, asked=st.lists(st.tuples(PLACES, st.integers(-1, 26)), min_size=1, max_size=8))
def test_index_is_a_search_through_all_records(records: list[dict[str, Any]], asked: list[tuple[str, int]]) -> None:
    def search(location: str, ts_ms: int) -> int:
        past = [n for n, r in enumerate(records) if r["location"] == location and r["ts_ms"] <= ts_ms]
        last = max(past, key=lambda n: (records[n]["ts_ms"], n), default=-1)
        until = records[last]["valid_until_ms"] if last >= 0 else None
        return last if until is None or ts_ms < until else -1

    found = ContextTimeline(records).index([place for place, _ in asked], [ts_ms for _, ts_ms in asked])
    assert found.tolist() == [search(place, ts_ms) for place, ts_ms in asked]
