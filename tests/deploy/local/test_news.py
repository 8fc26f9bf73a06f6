"""What `perseid up` says once: what was left out, that answers are useful, and that all texts are embedded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from deploy.local import news
from deploy.local.status_line import StatusLine, describe
from deploy.settings import load


def status(phase: str, done: int, **more: Any) -> dict[str, Any]:
    texts = {"done": done, "total": 1_000, "per_s": 50.0}
    role = {"role": "traffic", "phase": phase, "sent": 7, "left_out": ["left out: 12 x no user_id"], "texts": texts}
    return {"users": 20, "items": done, "roles": {"t": role}, **more}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[news.News, io.StringIO]:
    monkeypatch.setattr(news, "example_user", lambda settings: "u1")
    out = io.StringIO()
    return news.News(load({}, state=tmp_path), "http://api", StatusLine(out)), out


def test_ready_comes_before_everything_is_there_and_what_follows_is_said(said: tuple[news.News, io.StringIO]) -> None:
    subject, out = said
    subject.tell(status("loading items", 200))
    assert out.getvalue() == "left out: 12 x no user_id\n"
    subject.tell(status("loading histories", 200))
    lines = out.getvalue().splitlines()
    assert lines[1] == "Ready. Ask for a user:  curl 'http://api/v1/recommendations/u1?count=5&explain=true'"
    assert "--topic clickstream FILE" in lines[2]
    assert [line.split(" follow; ")[0] for line in lines[3:]] == [
        "Histories of more users",
        "Items whose texts are not embedded yet, popular ones first,",
    ]
    for done in (300, 1_000, 1_000):
        subject.tell(status("live", done))
    assert out.getvalue().splitlines()[5:] == [
        "All histories are loaded.",
        "All texts are embedded: 1,000 items can be recommended.",
    ]


def test_a_kept_state_is_ready_before_the_shop_is_open_again(said: tuple[news.News, io.StringIO]) -> None:
    subject, out = said
    subject.tell(status("opening the shop", 0, users=0))
    assert "Ready" not in out.getvalue()
    subject.tell(status("opening the shop", 1_000))
    assert "Ready" in out.getvalue() and "Histories" not in out.getvalue()


def test_nobody_to_ask_for_is_not_ready(said: tuple[news.News, io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    subject, out = said
    monkeypatch.setattr(news, "example_user", lambda settings: None)
    subject.tell(status("loading histories", 200))
    subject.tell(status("live", 200, users=0))
    assert out.getvalue() == "left out: 12 x no user_id\n"


def test_a_folder_without_a_backlog_says_no_more_than_ready(said: tuple[news.News, io.StringIO]) -> None:
    subject, out = said
    subject.tell(status("live", 1_000))
    subject.tell(status("live", 1_000))
    assert len(out.getvalue().splitlines()) == 3


def test_the_status_line_has_the_share_and_the_time_left() -> None:
    assert describe(status("live", 400)).endswith("texts embedded: 400 of 1,000 (40 %), 50/s, 0:12 left")
    assert "texts" not in describe(status("live", 1_000))
    loading = {
        "t": {"role": "traffic", "phase": "loading histories", "loading": {"done": 50, "total": 200, "per_s": 5.0}}
    }
    assert describe({"roles": loading}).startswith("loading histories: 50 of 200 (25 %), 5/s, 0:30 left · ")


def test_the_status_line_says_why_redis_takes_no_writes() -> None:
    why = "MISCONF Errors writing to the AOF file: No space left on device"
    assert f" · Redis refuses writes: {why} · " in describe(status("live", 1_000, redis_writes=f"refused: {why}"))
    assert "Redis" not in describe(status("live", 1_000, redis_writes="accepted"))


def test_what_came_of_each_retraining_is_said_once(said: tuple[news.News, io.StringIO]) -> None:
    subject, out = said

    def retrained(ended_ms: int, outcome: str, text: str) -> dict[str, Any]:
        last = {"outcome": outcome, "said": text, "began_ms": 0, "ended_ms": ended_ms}
        return {"roles": {"r": {"role": "retrain", "phase": "waiting", "next_ms": 9, "last": last}}}

    for found in ({"roles": {}}, *[retrained(1, "staged", "m-1 is staged")] * 2, retrained(2, "failed", "no Kafka")):
        subject.tell(found)
    assert out.getvalue().splitlines() == ["Retraining, staged: m-1 is staged", "Retraining, failed: no Kafka"]


def test_the_clock_that_counts_after_the_end_is_said_once(said: tuple[news.News, io.StringIO]) -> None:
    subject, out = said
    ended = status("timeline ended", 1_000)
    ended["roles"]["t"]["clock"] = "The timeline ended: from here on the wall clock counts."
    for found in (status("live", 1_000), ended, ended):
        subject.tell(found)
    assert out.getvalue().splitlines()[3:] == ["The timeline ended: from here on the wall clock counts."]


@pytest.mark.parametrize(
    ("clock", "ended", "shown"),
    [
        ("timeline", False, "now 2011-12-09 12:50 UTC (timeline)"),
        ("timeline", True, "now 2011-12-09 12:50 UTC (timeline)"),
        ("wall", True, "now 2011-12-09 12:50 UTC (wall)"),
        ("wall", False, None),
    ],
)
def test_the_status_line_shows_the_time_of_a_timeline(clock: str, ended: bool, shown: str | None) -> None:
    found = status("live", 1_000, now={"time": "2011-12-09T12:50:33Z", "ts_ms": 1_323_435_033_000, "clock": clock})
    if ended:
        found["roles"]["t"]["clock"] = "The timeline ended."
    parts = describe(found).split(" · ")
    assert parts[1] == (shown or "0 events/s")
