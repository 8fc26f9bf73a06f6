"""Another model for a running `perseid up`, by the commands that people use, while somebody asks all the time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.live import ROOT, Live, click
from tests.support.folders import START_S, item, write_folder
from tests.support.saved_models import varied

pytestmark = [pytest.mark.servers, pytest.mark.slow]

WORDS = ("lamp", "chair", "kettle", "novel")
COUNT = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty users, each with a favourite kind of thing."""
    rows = [
        (f"u{user}", f"{WORDS[user % 4]}-{(user + step) % 6}", "view", START_S + step * 600 + user)
        for step in range(12)
        for user in range(30)
    ]
    items = [item(f"{word}-{n}", title=f"{word} number {n}", category=[word]) for word in WORDS for n in range(6)]
    return write_folder(Path(tmp_path_factory.mktemp("data")) / "small", rows, items)


class Asking:
    """Somebody who asks for lists of all users, one after the other, until it is enough."""

    def __init__(self, live: Live) -> None:
        self._live, self._stop = live, threading.Event()
        self.answers: list[tuple[str, str, int]] = []  # model, service level, number of items
        self.errors: list[str] = []
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                answer = self._live.recommend(f"u{number % 30}", count=COUNT)
                self.answers.append((answer["model"], answer["served_by"], len(answer["items"])))
            except OSError as error:
                self.errors.append(repr(error))
            time.sleep(0.01)


def perseid(state: Path, *words: str, code: int | None = 0) -> str:
    """What `perseid models` prints; it has to end with `code`, unless that is None."""
    command = [sys.executable, "-m", "deploy.cli", "models", *words, "--state", str(state)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert code in (None, done.returncode), done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_to_b_to_a_and_again_without_an_empty_a_short_or_a_lost_list(folder: Path, tmp_path: Path) -> None:
    live = Live(tmp_path / "state", "--data", str(folder), "--speed", "1000", "--apis", "2")
    try:
        live.wait_ready(320)
        first = str(live.get("/v1/status")["models"]["champion"])
        served = next(Path(live.settings()["PERSEID_MODEL"]).parent.glob(f"{first}"))
        second = perseid(live.state, "add", str(varied(served, tmp_path / "made"))).strip()
        assert second != first and second in perseid(live.state, "list")
        with Asking(live) as asking:
            assert "is not staged" in perseid(live.state, "promote", second, code=1)
            perseid(live.state, "stage", second)
            assert "WAIT" not in perseid(live.state, "status", "--wait")
            with live.producer() as producer:  # events while two models are written
                for number in range(30):
                    body = json.dumps(click(f"u{number}", f"{WORDS[number % 4]}-1")).encode()
                    producer.send(live.topic("clickstream"), body, key=f"u{number}".encode())
                producer.flush()
            perseid(live.state, "promote", second)
            live.until(lambda: model_of(live) == second, 5, "both API processes serve the second model")
            assert live.get("/v1/status")["models"]["previous"] == first
            perseid(live.state, "rollback")
            live.until(lambda: model_of(live) == first, 5, "both API processes serve the first model again")
            perseid(live.state, "rollback")
            live.until(lambda: model_of(live) == second, 5, "and the second")
            perseid(live.state, "retire", first)
            time.sleep(1.0)
        assert not asking.errors, asking.errors[:3]
        assert {count for _, _, count in asking.answers} == {COUNT}
        assert {model for model, _, _ in asking.answers} == {first, second}
        assert "popular" not in {level for _, level, _ in asking.answers}, "everybody has vectors of whatever serves"
        live.until(lambda: live.get("/v1/status")["models"]["previous"] is None, 5, "the first has no alias")
    finally:
        live.stop()
    again = Live(live.state, "--data", str(folder), "--no-traffic")
    try:
        again.wait_ready()
        assert again.get("/v1/status")["models"]["champion"] == second, "a start changes nothing"
    finally:
        again.stop()


def model_of(live: Live) -> Any:
    return live.get("/v1/recommendations/u1", count=COUNT)["model"]
