"""The live part of a data folder: equal times are spread, what records say and their order stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson

from context.units import DAY_MS
from deploy.traffic.live_records import live_records, played_ms, usual_speed
from streams.folder.reader import Folder, read_folder
from tests.deploy.traffic.test_player import write_folder

DAY_0_S = 1_700_006_400  # midnight
DAYS, EVENTS = 5, 48


def folder_of(path: Path) -> Folder:
    """A data set that knows only days, with as many events on each; one item appears on the last."""
    rows = [f"u{n % 7},i{n % 4},view,{DAY_0_S + day * 86_400}" for day in range(DAYS) for n in range(EVENTS)]
    items = [{"item_id": f"i{n}", "title": f"thing {n}"} for n in range(4)]
    late = {"item_id": "late", "title": "late", "first_seen": DAY_0_S + (DAYS - 1) * 86_400 + 43_200}
    return read_folder(write_folder(path / "days", rows, [*items, late]))


def test_whole_days_are_played_over_their_day_and_say_what_they_said(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    split_ms = folder.split_ms(0.6)
    found = list(live_records(folder, split_ms))
    times = np.array([record.timestamp_ms for record in found])
    assert len(found) == 2 * EVENTS + 1
    assert (np.diff(times) >= 0).all() and np.diff(times).max() == DAY_MS // EVENTS
    assert times[-1] < (DAY_0_S * 1000) + DAYS * DAY_MS
    clicks = [orjson.loads(record.value or b"") for record in found if record.topic == "clickstream"]
    assert [click["event_id"] for click in clicks] == [f"days:{row}" for row in range(3 * EVENTS + 1, 5 * EVENTS + 1)]
    assert {click["ts_ms"] % DAY_MS for click in clicks} == {0}
    late = next(number for number, record in enumerate(found) if record.key == b"late")
    assert late == EVENTS + EVENTS // 2, "an item that appears at noon comes after the morning's events"


def test_a_restart_in_the_middle_of_a_day_goes_on_there(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    whole = list(live_records(folder, folder.split_ms(0.6)))
    assert list(live_records(folder, whole[30].timestamp_ms)) == whole[30:]
    assert list(live_records(folder, whole[-1].timestamp_ms + 1)) == []


def test_days_are_played_at_about_twenty_events_a_second(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    split_ms = folder.split_ms(0.6)
    seconds = (played_ms(folder.events)[-1] - split_ms) / 1000 / usual_speed(folder, split_ms)
    assert 15 < 2 * EVENTS / seconds < 25


def test_distinct_times_stay_as_they_are(tmp_path: Path) -> None:
    rows = [f"u,i,view,{DAY_0_S + second}" for second in (0, 1, 1, 1_000, 90_000)]
    folder = read_folder(write_folder(tmp_path / "seconds", rows, [{"item_id": "i", "title": "t"}]))
    assert (played_ms(folder.events) - DAY_0_S * 1000).tolist() == [0, 1_000, 1_500, 1_000_000, 90_000_000]
