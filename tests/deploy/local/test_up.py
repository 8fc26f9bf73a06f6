"""`perseid up`: what it refuses, what it keeps, and one real run on a small data folder, from outside."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

from deploy.cli import run
from deploy.local.status_line import StatusLine, describe, fetch, is_ok
from deploy.local.up import UpOptions, prepare
from deploy.settings import load
from deploy.traffic.plan import TrafficPlan
from encoder.model.artefact import save
from encoder.model.config import preset
from encoder.model.encoder import StarsEncoder
from tests.integration.live import Live, click
from tests.integration.models.asking import small_model
from tests.support.folders import START_S, item, write_folder

pytestmark = pytest.mark.servers

WORDS = ("lamp", "chair", "kettle", "novel")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty users, each with a favourite kind of thing; one item appears in the last fifth."""
    rows = [
        (f"u{user}", f"{WORDS[user % 4]}-{(user + step) % 5}", "view", START_S + step * 600 + user)
        for step in range(20)
        for user in range(20)
    ]
    rows[-1] = ("u19", "late-0", "view", rows[-1][3])
    items = [item(f"{word}-{n}", title=f"{word} number {n}", category=[word]) for word in WORDS for n in range(5)]
    path = Path(tmp_path_factory.mktemp("data")) / "small"
    return write_folder(path, sorted(rows, key=lambda row: row[3]), [*items, item("late-0", title="late lamp")])


@pytest.mark.slow
def test_a_data_folder_becomes_live_answers_and_everything_ends_with_the_command(folder: Path, tmp_path: Path) -> None:
    live = Live(tmp_path / "state", "--data", str(folder), "--speed", "1000")
    try:
        live.wait_ready()
        live.until(lambda: _indexed(live, "late-0"), 60, "an item that appears later is embedded")
        live.until(lambda: live.get("/v1/status")["users"] == 20, 60, "all users are counted")
        status = live.get("/v1/status")
        answer = live.get("/v1/recommendations/u1", count=5)
        assert answer["served_by"] in ("personal", "stale")
        assert len(answer["items"]) == 5
        with redis.Redis.from_url(live.settings()["PERSEID_REDIS"]) as client:
            clock_ms = int(str(client.hget("perseid:cluster", "clock_ms"), "ascii"))
        assert START_S * 1000 < clock_ms < (START_S + 100_000) * 1000, "the timeline's clock, not the wall's"
        pids = [role["pid"] for role in status["roles"].values()]
        assert len(pids) == 6
    finally:
        live.stop()
    assert live.process.returncode == 0, live.output()
    assert live.output().splitlines()[-2:] == ["Stopping …", "Stopped."]
    assert not any(_runs(pid) for pid in pids)
    assert not (live.state / "up.env").exists()


def _ended(live: Live) -> dict[str, Any] | None:
    """The status, once the timeline has ended and what follows is said."""
    status: dict[str, Any] = live.get("/v1/status")
    return status if any("clock" in role for role in status["roles"].values()) else None


def _post(live: Live, path: str, body: dict[str, Any]) -> None:
    (record,) = live.call("POST", path, body=body)["records"]
    assert record["offset"] >= 0


def _first_for(live: Live, user: str) -> str:
    return str(live.get(f"/v1/recommendations/{user}", count=1)["items"][0]["item_id"])


@pytest.mark.slow
def test_an_old_timeline_runs_on_after_its_end_and_what_a_visitor_does_now_counts(folder: Path, tmp_path: Path) -> None:
    """The folder is of 2020: by the wall clock it would have no popularity."""
    end_ms = (START_S + 19 * 600 + 19) * 1000
    model = small_model(tmp_path, before_ms=(START_S + 16 * 600) * 1000)
    live = Live(tmp_path / "state", "--data", str(folder), "--model", str(model), "--speed", "1000")
    try:
        live.wait_ready()
        before = live.until(lambda: _ended(live), 120, "the timeline has ended")
        assert before["now"]["clock"] == "timeline" and end_ms <= before["now"]["ts_ms"] < end_ms + 120_000
        live.until(lambda: live.get("/v1/status")["now"]["ts_ms"] > before["now"]["ts_ms"], 10, "its time runs on")
        live.until(lambda: _is_popular(live), 20, "the clicks of the folder count")

        # A visitor clicks, by HTTP and by file, with the time of today.
        stranger = click("visitor", "novel-3", "purchase")
        _post(live, "/v1/events", stranger)
        answer = live.until(lambda: _seen(live, "visitor", stranger["event_id"]), 20, "the event is in the answer")
        assert answer["served_by"] == "personal" and end_ms <= answer["as_of"]["ts_ms"] < end_ms + 600_000
        before_list = [entry["item_id"] for entry in live.get("/v1/recommendations/u1", count=5)["items"]]
        file = tmp_path / "clicks.jsonl"
        clicks = [{"user_id": "u1", "item_id": before_list[0], "kind": "view"} for _ in range(3)]
        file.write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in clicks))
        assert run(["produce", "--state", str(live.state), "--topic", "clickstream", "--stamp", str(file)]) == 0
        live.until(lambda: _first_for(live, "u1") != before_list[0], 20, "what was seen is not shown again")
        user = live.get("/v1/users/u1")
        assert all(event["ts_ms"] < end_ms + 600_000 for event in user["events"]), "all in the timeline"

        # What begins now begins by the time that the status shows.
        now_ms = live.get("/v1/status")["now"]["ts_ms"]
        sale = {"location": "oslo", "ts_ms": now_ms, "valid_until_ms": now_ms + 3_600_000}
        promotion = {"item": "kettle-4", "strength": 2.0, "starts_ms": now_ms, "ends_ms": now_ms + 3_600_000}
        _post(live, "/v1/context", {**sale, "promotions": [promotion]})
        live.until(lambda: _promoted(live, "kettle-4"), 20, "the promotion runs")
        live.until(lambda: "The timeline ended at 2020-09-13" in live.output(), 20, "the clock is told")
    finally:
        live.stop()
    assert live.process.returncode == 0, live.output()


@pytest.mark.slow
def test_a_recent_timeline_ends_at_the_wall_clock_and_its_future_is_left_out(tmp_path: Path) -> None:
    """The folder ends an hour ago, but for two rows, an item and a context that are dated a year ahead."""
    start_s, year_s = int(time.time()) - 20 * 600 - 3_600, 365 * 86_400
    rows = [
        (f"u{user}", f"{WORDS[user % 4]}-{(user + step) % 5}", "view", start_s + step * 600 + user)
        for step in range(20)
        for user in range(20)
    ]
    late = [("u1", "lamp-0", "view", start_s + year_s), ("u2", "lamp-1", "view", start_s + year_s + 1)]
    items = [item(f"{word}-{n}", title=f"{word} number {n}", category=[word]) for word in WORDS for n in range(5)]
    future = {"location": "oslo", "ts_ms": (start_s + year_s) * 1000, "valid_until_ms": (start_s + 2 * year_s) * 1000}
    path = write_folder(
        tmp_path / "small", [*rows, *late], [*items, item("next-0", first_seen=start_s + year_s)], context=[future]
    )
    live = Live(tmp_path / "state", "--data", str(path), "--speed", "1000")
    try:
        live.wait_ready()
        live.until(lambda: _ended(live), 120, "the timeline has ended")
        live.until(lambda: live.get("/v1/status")["now"]["clock"] == "wall", 10, "the wall clock counts")
        assert abs(live.get("/v1/status")["now"]["ts_ms"] - time.time() * 1000) < 10_000
        live.until(lambda: live.get("/v1/status")["users"] == 20, 20, "the users are counted")
        with redis.Redis.from_url(live.settings()["PERSEID_REDIS"]) as client:
            played_ms = int(str(client.hget("perseid:cluster", "played_ms"), "ascii"))
        assert played_ms == rows[-1][3] * 1000
        live.until(lambda: _is_popular(live), 20, "the clicks of the folder count")

        now_ms = int(time.time() * 1000)
        begins = {"item_id": "lamp-9", "title": "lamp number 9", "category": ["lamp"], "ts_ms": now_ms}
        _post(live, "/v1/items", {**begins, "starts_ms": now_ms})
        _post(live, "/v1/items", {**begins, "item_id": "lamp-8", "starts_ms": now_ms + 3_600_000})
        live.until(lambda: _indexed(live, "lamp-9") and _indexed(live, "lamp-8"), 60, "both are embedded")
        shown = {entry["item_id"] for entry in live.get("/v1/recommendations/nobody", count=50)["items"]}
        assert "lamp-9" in shown and "lamp-8" not in shown, "what begins now is there, what begins later is not"
        sale = {"location": "oslo", "ts_ms": now_ms, "valid_until_ms": now_ms + 3_600_000}
        promotion = {"item": "kettle-4", "strength": 2.0, "starts_ms": now_ms, "ends_ms": now_ms + 3_600_000}
        _post(live, "/v1/context", {**sale, "promotions": [promotion]})
        live.until(lambda: _promoted(live, "kettle-4"), 20, "the promotion runs")
        stranger = click("visitor", "novel-3", "purchase")
        _post(live, "/v1/events", stranger)
        answer = live.until(lambda: _seen(live, "visitor", stranger["event_id"]), 20, "the event is in the answer")
        assert answer["as_of"]["ts_ms"] == stranger["ts_ms"]
        live.until(lambda: "from here on the wall clock counts." in live.output(), 20, "the clock is told")
    finally:
        live.stop()
    said = live.output()
    assert live.process.returncode == 0, said
    first = f"row 401 ['u1', 'lamp-0', 'view', '{start_s + year_s}']"
    assert f"left out: 2 x events.csv.gz: timestamp is in the future (first: {first})" in said
    assert "left out: 1 x items.jsonl.gz: first_seen: is in the future (first: line 21, item_id 'next-0')" in said
    assert "left out: 1 x context.jsonl.gz: ts_ms: is in the future (first: line 1, location 'oslo')" in said
    assert "seconds for a small folder" in said


def _seen(live: Live, user: str, event_id: str) -> dict[str, Any] | None:
    answer: dict[str, Any] = live.get(f"/v1/recommendations/{user}", after=event_id, count=5)
    return answer if answer["as_of"]["includes_after"] and answer["served_by"] == "personal" else None


def _is_popular(live: Live) -> bool:
    answer = live.get("/v1/recommendations/nobody", count=1, explain="true")
    return bool(answer["items"][0]["explain"]["popularity"] > 0)


def _promoted(live: Live, item_id: str) -> bool:
    answer = live.get("/v1/recommendations/nobody", location="oslo", count=1, explain="true")
    return bool(answer["items"][0]["item_id"] == item_id and answer["items"][0]["explain"].get("promotion", 0) > 0)


def _indexed(live: Live, item_id: str) -> bool:
    try:
        return bool(live.get(f"/v1/items/{item_id}")["indexed"])
    except OSError:  # 404 until it appears
        return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def artefact(out: Path, before_ms: int | None) -> None:
    model = StarsEncoder(preset("nano", d_text=384))
    save(model, out / "m-12345678", {"embedder": "minilm-l6-v2", "context_features": [], "before_ms": before_ms})


def test_a_kept_model_is_used_and_other_data_has_another_state(folder: Path, tmp_path: Path) -> None:
    settings, line = load({}, state=tmp_path), StatusLine()
    options = UpOptions(tmp_path, data=folder)
    with pytest.MonkeyPatch.context() as patch:
        trained: list[Path] = []

        def train(command: list[str], **_: object) -> object:
            trained.append(Path(command[command.index("--out") + 1]))
            artefact(trained[-1], 1_600_009_600_000)
            return type("Done", (), {"returncode": 0})()

        patch.setattr("deploy.local.up.subprocess.run", train)
        first = prepare(options, settings, {}, line)
        again = prepare(options, settings, {}, line)
        other = write_folder(tmp_path / "other", [("u", "i", "view", START_S)], [item("i")])
        second = prepare(UpOptions(tmp_path, data=other), settings, {}, line)
    assert first == again
    assert len(trained) == 2
    assert (first.kind, first.split_ms) == ("data", 1_600_009_600_000)
    assert first.key != second.key


def test_a_shop_with_fashion_is_another_one_and_its_end_is_played(tmp_path: Path) -> None:
    settings, line = load({}, state=tmp_path), StatusLine()
    made: list[tuple[str, str, bool]] = []

    def train(command: list[str], **_: object) -> object:
        made.append((Path(command[4]).name, command[command.index("--split") + 1], "--max-seconds" in command))
        artefact(Path(command[command.index("--out") + 1]), 1_600_009_600_000)
        return type("Done", (), {"returncode": 0})()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deploy.local.up.subprocess.run", train)
        usual = prepare(UpOptions(tmp_path, days=1), settings, {}, line)
        drifting = prepare(UpOptions(tmp_path, days=1, fashion=2.0), settings, {}, line)
    assert (usual.kind, drifting.kind, drifting.split_ms) == ("shop", "data", 1_600_009_600_000)
    assert Path(usual.folder).name != Path(drifting.folder).name and usual.key != drifting.key
    assert made == [(Path(usual.folder).name, "1.0", False), (Path(drifting.folder).name, "0.8", False)]


def test_a_model_that_is_there_is_taken_in_place_of_training(folder: Path, tmp_path: Path) -> None:
    settings, line = load({}, state=tmp_path), StatusLine()
    artefact(tmp_path, before_ms=1_600_009_600_000)
    model = tmp_path / "m-12345678"
    played = prepare(UpOptions(tmp_path, data=folder, model=model), settings, {}, line)
    assert (played.model, played.split_ms) == (str(model), 1_600_009_600_000)
    shop = prepare(UpOptions(tmp_path, days=1, model=model), settings, {}, line)
    assert (shop.model, shop.kind) == (str(model), "shop")
    assert not (tmp_path / "models").exists()
    artefact(tmp_path / "whole", before_ms=None)
    whole = prepare(UpOptions(tmp_path, data=folder, model=tmp_path / "whole" / "m-12345678"), settings, {}, line)
    assert whole.split_ms == (START_S + 19 * 600 + 19) * 1000 + 1, "all of the folder is history"
    with pytest.raises(ValueError, match="holds no model"):
        prepare(UpOptions(tmp_path, data=folder, model=folder), settings, {}, line)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = TrafficPlan("shop", "/f", 5, "k", "/m", "/t", seed=3, speed=2.0, live=False)
    plan.write(tmp_path / "plan.json")
    assert TrafficPlan.read(tmp_path / "plan.json") == plan
    (tmp_path / "plan.json").write_bytes(orjson.dumps({"kind": "shop"}))
    with pytest.raises(ValueError, match="is no traffic plan"):
        TrafficPlan.read(tmp_path / "plan.json")


def test_a_folder_without_events_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ["up", "--data", str(tmp_path / "empty"), "--state", str(tmp_path / "state"), "--api-port"]
    assert run([*arguments, str(_free_port())]) == 1
    assert "is no data folder: it has no events.csv.gz" in capsys.readouterr().err


def test_a_taken_port_is_refused_with_the_option_that_helps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert run(["up", "--state", str(tmp_path / "new"), "--api-port", str(taken.getsockname()[1])]) == 1
    assert "is taken; choose another by --api-port" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "nothing is left of a refused start"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("KAFKA_SECURITY", "ssl", "PERSEID_KAFKA_SECURITY needs PERSEID_KAFKA"),
        ("REDIS_CLUSTER", "true", "PERSEID_REDIS_CLUSTER needs PERSEID_REDIS"),
    ],
)
def test_what_embedded_servers_cannot_do_is_refused_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv(f"PERSEID_{name}", value)
    assert run(["up", "--state", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_two_of_them_do_not_share_a_state_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    with (tmp_path / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(["up", "--state", str(tmp_path), "--api-port", str(_free_port())]) == 1
    assert "another `perseid up` runs with" in capsys.readouterr().err


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_status_line_says_what_the_api_says() -> None:
    status = {
        "events_per_s": 19.6,
        "users": 2000,
        "items": 3001,
        "topics": {"clickstream": {"lag": 2}, "catalog": {"lag": 1}},
        "freshness_ms": {"p50": 4.04, "p99": 11.8},
        "roles": {"w": {"role": "worker"}, "t": {"role": "traffic", "phase": "live", "sent": 5}},
    }
    assert describe(status) == (
        "live · 20 events/s · users 2000 · items 3001 · lag 3 · event→visible p50 4.0 ms p99 11.8 ms"
    )
    assert describe({}).startswith("0 events/s · users 0")
    assert describe(None) == "waiting for the API"


def test_nobody_answering_is_no_error() -> None:
    url = f"http://127.0.0.1:{_free_port()}"
    assert fetch(url) is None
    assert not is_ok(url)
