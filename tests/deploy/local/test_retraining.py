"""A retraining beside `perseid up`: when it runs, that one runs at a time, and what is told of what came of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
import redis

from deploy.cli import run
from deploy.local.retraining import RetrainSchedule, ScheduledRetraining
from deploy.local.status_line import describe
from deploy.servers.redis import RedisServer
from deploy.settings import load

pytestmark = pytest.mark.servers

START_MS, EVERY_MS = 1_800_000_000_000, 1_000


@dataclass(frozen=True, slots=True)
class Script(RetrainSchedule):
    """A schedule of a script in place of a retraining."""

    code: str = ""

    @property
    def command(self) -> tuple[str, ...]:
        return (sys.executable, "-c", self.code)


class Beside:
    """A scheduled script whose clock is moved by hand; the live state is away unless it is named."""

    def __init__(self, state: Path, code: str = "", redis_url: str = "redis://127.0.0.1:1/0") -> None:
        self.now_ms = START_MS
        settings = load({}, state=state, redis=redis_url)
        self.subject = ScheduledRetraining(Script(EVERY_MS, code=code), settings, {}, lambda: self.now_ms)

    def until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not happened():
            assert time.monotonic() < deadline, self.subject.report()
            self.subject.look()
            time.sleep(0.01)

    @property
    def phase(self) -> str:
        return str(self.subject.report()["phase"])


def test_what_is_started_leaves_the_processor_to_the_shop() -> None:
    assert RetrainSchedule(1).command[1:] == (
        *("-m", "deploy.cli", "retrain"), "--stage", "--threads", "1", "--nice", "19",
    )  # fmt: skip
    assert RetrainSchedule(1, promote=True, threads=2).command[4:7] == ("--promote", "--threads", "2")


def test_it_runs_when_the_interval_is_over_and_never_twice_at_once(tmp_path: Path) -> None:
    runs, end = tmp_path / "runs", tmp_path / "end"
    code = f"""
import pathlib, time
with open({str(runs)!r}, "a") as file: file.write("x")
while not pathlib.Path({str(end)!r}).exists(): time.sleep(0.01)
raise SystemExit(4)
"""
    at = Beside(tmp_path / "state", code)
    at.now_ms += EVERY_MS - 1
    at.subject.look()
    assert at.subject.report() == {"phase": "waiting", "next_ms": START_MS + EVERY_MS}
    at.now_ms += 1
    at.until(runs.exists)
    at.now_ms += 5 * EVERY_MS + 10
    for _ in range(3):
        at.subject.look()
    since_ms = START_MS + EVERY_MS
    assert at.subject.report() == {"phase": "retraining", "next_ms": since_ms + EVERY_MS, "since_ms": since_ms}
    end.touch()
    at.until(lambda: at.phase == "waiting")
    assert runs.read_text() == "x"
    report = at.subject.report()
    assert report["next_ms"] == START_MS + 7 * EVERY_MS, "what passed meanwhile is left out"
    assert report["last"] == {"outcome": "nothing new", "said": "", "began_ms": since_ms, "ended_ms": at.now_ms}
    at.now_ms += EVERY_MS
    at.until(lambda: runs.read_text() == "xx")
    at.subject.stop()


@pytest.mark.parametrize(
    ("code", "outcome", "said"),
    [
        ("print('first'); print('m-1 is staged')", "staged", "m-1 is staged"),
        ("raise SystemExit('perseid: Kafka does not answer')", "failed", "Kafka does not answer"),
        ("print('reading', flush=True); import os; os.kill(os.getpid(), 9)", "failed", "was killed by signal 9"),
    ],
)
def test_what_came_of_it_is_told_and_a_failure_ends_nothing(tmp_path: Path, code: str, outcome: str, said: str) -> None:
    (tmp_path / "retrain").mkdir()
    (tmp_path / "retrain" / "state.json").write_bytes(orjson.dumps({"outcome": "staged"}))
    at = Beside(tmp_path, code)
    for _ in range(2):
        at.now_ms += EVERY_MS
        at.until(lambda: at.subject.report().get("last", {}).get("ended_ms") == at.now_ms)
        last = at.subject.report()["last"]
        assert (last["outcome"], last["said"]) == (outcome, said)


def test_a_process_that_cannot_be_started_is_a_failure_too(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    at = Beside(tmp_path)
    at.now_ms += EVERY_MS
    at.subject.look()
    assert at.subject.report()["last"]["outcome"] == "failed" and at.phase == "waiting"


def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    at = Beside(tmp_path, "import time; time.sleep(60)")
    at.now_ms += EVERY_MS
    at.subject.look()
    assert at.phase == "retraining"
    began_s = time.monotonic()
    at.subject.stop()
    at.subject.stop()
    assert at.phase == "waiting" and time.monotonic() - began_s < 10


def test_its_heartbeat_is_that_of_a_role(tmp_path: Path, redis_server: RedisServer) -> None:
    at = Beside(tmp_path, redis_url=redis_server.url)
    at.subject.look()
    with redis.Redis.from_url(redis_server.url) as client:
        beats = [orjson.loads(value) for value in client.hgetall("perseid:roles").values()]
    (beat,) = [beat for beat in beats if beat["role"] == "retrain"]
    assert (beat["beat_ms"], beat["phase"], beat["next_ms"]) == (START_MS, "waiting", START_MS + EVERY_MS)


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        ({"phase": "waiting"}, "retraining: next 08:05 UTC"),
        ({"phase": "retraining", "since_ms": START_MS}, "retraining: since 08:00 UTC"),
        (
            {"phase": "waiting", "last": {"outcome": "staged", "ended_ms": START_MS, "said": "m-1 is staged"}},
            "retraining: staged 08:00, next 08:05 UTC",
        ),
    ],
)
def test_the_status_line_shows_the_last_and_the_next(more: dict[str, object], shown: str) -> None:
    beat = {"role": "retrain", "next_ms": START_MS + 300_000, **more}
    assert describe({"roles": {"r": beat}}).endswith(shown)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--retrain-every", "daily"], "is no length of time"),
        (["--retrain-promote"], "--retrain-promote needs --retrain-every"),
        (["--fashion", "2", "--data", "."], "--days and --fashion are of the generated shop"),
        (["--days", "9", "--data", "."], "--days and --fashion are of the generated shop"),
        (["--days", "0"], "0 is not in the range 1<=x<=1000"),
    ],
)
def test_a_wrong_schedule_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", *words]) == 2
    assert message in capsys.readouterr().err
