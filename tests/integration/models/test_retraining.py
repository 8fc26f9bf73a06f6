"""A running `perseid up` whose model is retrained from its topics, staged and promoted, by the commands people use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.live import Live
from tests.integration.models.asking import small_model
from tests.support import commands
from tests.support.folders import START_S, item, write_folder

pytestmark = [pytest.mark.servers, pytest.mark.slow]

WORDS, USERS, ITEMS, STEPS = ("lamp", "chair", "kettle", "novel"), 60, 40, 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users with a favourite kind of thing, of which they see another one each time."""
    rows = [
        (f"u{user}", f"{WORDS[user % 4]}-{(3 * user + step) % ITEMS}", "view", START_S + step * 600 + user)
        for step in range(STEPS)
        for user in range(USERS)
    ]
    items = [item(f"{word}-{n}", title=f"{word} number {n}", category=[word]) for word in WORDS for n in range(ITEMS)]
    return write_folder(Path(tmp_path_factory.mktemp("data")) / "small", rows, items)


def perseid(*words: str, code: int = 0) -> str:
    done = commands.perseid(*words)
    assert done.status == code, done.out + done.err
    return done.out


def test_the_topics_of_a_running_deployment_end_as_a_model_that_is_served(folder: Path, tmp_path: Path) -> None:
    live = Live(tmp_path / "state", "--data", str(folder), "--speed", "1000")
    state = ["--state", str(live.state)]
    try:
        live.wait_ready(320)
        live.until(lambda: "timeline ended" in phases(live), 60, "all has been played")
        first = str(live.get("/v1/status")["models"]["champion"])
        plan = ["retrain", *state, "--stage", "--margin", "1", "--threads", "1", "--json"]
        found: dict[str, Any] = json.loads(perseid(*plan, "--least-new", "50"))
        assert (found["champion"], found["outcome"]) == (first, "staged")
        assert found["new_events"] == USERS * STEPS // 5 and found["questions"] == USERS * STEPS // 10
        assert "WAIT" not in perseid("models", "status", "--wait", *state)
        perseid("models", "promote", found["model"], *state)
        live.until(lambda: live.recommend("u1", count=5)["model"] == found["model"], 5, "the new model is served")
        assert len(live.recommend("u1", count=5)["items"]) == 5
        assert "nothing is retrained" in perseid(*plan[:-1], "--least-new", "400", code=4)
    finally:
        live.stop()


def phases(live: Live) -> set[Any]:
    return {role.get("phase") for role in live.get("/v1/status")["roles"].values()}


def test_a_schedule_beside_the_shop_survives_a_killed_run_and_ends_with_the_shop(folder: Path, tmp_path: Path) -> None:
    model = small_model(tmp_path, before_ms=(START_S + STEPS * 4 // 5 * 600) * 1000)
    shop = ["--data", str(folder), "--model", str(model)]
    live = Live(tmp_path / "state", *shop, "--speed", "1000", "--retrain-every", "5s")
    try:
        live.wait_ready(320)
        live.until(lambda: schedule(live).get("phase") == "retraining", 60, "a retraining runs")
        live.until(lambda: [run.nice() for run in retrainings(live)] == [19], 20, "it leaves the processor to others")
        retrainings(live)[0].kill()
        last = live.until(lambda: schedule(live).get("last"), 20, "what came of it is told")
        assert (last["outcome"], last["said"]) == ("failed", "was killed by signal 9")
        last = live.until(lambda: came(live, "nothing new"), 240, "another one runs to its end")
        assert last["said"] == f"nothing is retrained: {USERS * STEPS // 5} new events since the last time"
        live.until(lambda: "retraining: nothing new" in live.output(), 30, "the status line says so")
        assert "Retraining, failed: was killed by signal 9" in live.output()
        assert len(live.recommend("u1", count=5)["items"]) == 5
        live.until(lambda: retrainings(live), 60, "the next one runs")
        (still,) = retrainings(live)
    finally:
        live.stop()
    assert live.process.returncode == 0, live.output()
    assert not still.is_running()
    assert [path.name for path in (live.state / "retrain").iterdir()] == ["lock"]


def schedule(live: Live) -> dict[str, Any]:
    roles = live.get("/v1/status")["roles"].values()
    return next((role for role in roles if role["role"] == "retrain"), {})


def came(live: Live, outcome: str) -> dict[str, Any] | None:
    last: dict[str, Any] = schedule(live).get("last", {})
    return last if last.get("outcome") == outcome else None


def retrainings(live: Live) -> list[psutil.Process]:
    def is_one(child: psutil.Process) -> bool:
        try:
            return "retrain" in child.cmdline()
        except psutil.NoSuchProcess:  # it has just ended; a zombie is one, too
            return False

    return [child for child in psutil.Process(live.process.pid).children() if is_one(child)]
