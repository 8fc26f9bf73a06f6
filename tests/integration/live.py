"""A running `perseid up` as its users see it: an HTTP API and a Kafka address, nothing imported from the processes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import orjson
from kafka import KafkaProducer

ROOT = Path(__file__).resolve().parent.parent.parent
READY_S = 280.0  # generating, embedding 3,000 texts and training on two busy cores
_numbers = itertools.count()


class Live:
    """A deployment started by `perseid up`, with the calls the scenarios need."""

    def __init__(self, state: Path, *arguments: str) -> None:
        self.state = state
        state.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = (state.parent / "up.log").open("ab")
        command = [sys.executable, "-m", "deploy.cli", "up", "--state", str(state), "--api-port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Waits until the histories are loaded and everything is applied."""
        self.until(self._quiet, timeout_s, "perseid up is ready")

    def _quiet(self) -> bool:
        assert self.process.poll() is None, self.output()
        try:
            status = self.get("/v1/status")
        except OSError:
            return False
        phases = {role.get("phase") for role in status["roles"].values()}
        lag = sum(topic["lag"] or 0 for topic in status["topics"].values())
        return bool(phases & {"live", "no traffic"}) and (lag == 0 or "live" in phases)

    def output(self) -> str:
        """What the command printed."""
        return (self.state.parent / "up.log").read_text(errors="replace")[-4000:]

    def settings(self) -> dict[str, str]:
        """Addresses as `up` wrote them for its user."""
        lines = (self.state / "up.env").read_text().splitlines()
        return {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}

    @property
    def kafka(self) -> str:
        return self.settings()["PERSEID_KAFKA"]

    def producer(self) -> KafkaProducer:
        """A kafka-python producer as a user would make one; the embedded broker needs `api_version`."""
        return KafkaProducer(bootstrap_servers=self.kafka, api_version=(2, 3), acks="all", linger_ms=0)

    def get(self, path: str, **query: Any) -> Any:
        return self.call("GET", path, query)

    def call(self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        """JSON answer of the API. Raises urllib.error.HTTPError for an error status."""
        given = {name: value for name, value in (query or {}).items() if value is not None}
        url = f"{self.url}{path}" + (f"?{urlencode(given)}" if given else "")
        data = None if body is None else orjson.dumps(body)
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(url, data=data, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def recommend(self, user: str, **query: Any) -> Any:
        """Recommendations of a user."""
        return self.get(f"/v1/recommendations/{user}", **query)

    def until(self, check: Any, timeout_s: float, what: str) -> Any:
        """Polls until `check()` is true and returns it."""
        deadline = time.monotonic() + timeout_s
        while not (found := check()):
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}\n{self.output()}"
            time.sleep(0.02)
        return found

    def stop(self) -> None:
        """Ctrl-C, as its user would."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(10)
        self._log.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def new_id(kind: str) -> str:
    """A fresh id that says what it is for."""
    return f"{kind}-{next(_numbers)}-{uuid.uuid4().hex[:8]}"


def click(user: str, item: str | None, kind: str = "view", ts_ms: int | None = None, **more: Any) -> dict[str, Any]:
    """A click event with a fresh id, now unless said otherwise."""
    body = {
        "event_id": new_id("event"),
        "user_id": user,
        "kind": kind,
        "ts_ms": int(time.time() * 1000) if ts_ms is None else ts_ms,
        **more,
    }
    return body if item is None else {**body, "item_id": item}
