"""`perseid up`: what it refuses, what it keeps, and one real run on a small data folder, from outside."""

from __future__ import annotations

import os
import socket
from pathlib import Path

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
from tests.integration.live import Live
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
        status = live.get("/v1/status")
        assert status["users"] == 20
        answer = live.get("/v1/recommendations/u1", count=5)
        assert answer["served_by"] in ("personal", "stale")
        assert len(answer["items"]) == 5
        with redis.Redis.from_url(live.settings()["PERSEID_REDIS"]) as client:
            clock_ms = int(str(client.hget("perseid:cluster", "clock_ms"), "ascii"))
        assert START_S * 1000 < clock_ms < (START_S + 100_000) * 1000, "the timeline's clock, not the wall's"
        pids = [role["pid"] for role in status["roles"].values()]
        assert len(pids) == 4
    finally:
        live.stop()
    assert live.process.returncode == 0, live.output()
    assert not any(_runs(pid) for pid in pids)
    assert not (live.state / "up.env").exists()


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
