"""A running `perseid up` as its users see it: an HTTP API and a Kafka address, nothing imported from the processes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from zlib import crc32

import orjson
from kafka import KafkaProducer

from deploy.servers.ports import HOST, free_port, is_free

ROOT = Path(__file__).resolve().parent.parent.parent
READY_S = 280.0  # generating, embedding 3,000 texts and training on two busy cores
_numbers = itertools.count()


class Live:
    """A deployment started by `perseid up`, with the calls the scenarios need.

    With several API processes each user has one of them, as behind a sticky load balancer; other calls take turns, and
    `until` asks each of them.
    """

    def __init__(self, state: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> None:
        self.state = state
        state.mkdir(parents=True, exist_ok=True)
        count = int(arguments[arguments.index("--apis") + 1]) if "--apis" in arguments else 1
        port = free_ports(count + 1)
        self.urls = [f"http://127.0.0.1:{port + n}" for n in range(count)]
        self.console_url = f"http://127.0.0.1:{port + count}"
        self._turn = itertools.count()
        self._pinned: str | None = None
        self._log = (state.parent / "up.log").open("ab")
        command = [sys.executable, "-m", "deploy.cli", "up", "--state", str(state)]
        ports = ["--api-port", str(port), "--console-port", str(port + count)]
        self.process = subprocess.Popen(
            [*command, *ports, *arguments],
            cwd=ROOT,
            env={**os.environ, **(variables or {})},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def url(self) -> str:
        """Of the API process whose turn it is."""
        return self._pinned or self.urls[next(self._turn) % len(self.urls)]

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
        elastic = status.get("elasticsearch")
        indexed = elastic is None or (elastic["up"] and elastic["position"] == status["index"]["position"])
        # A small folder played fast may have ended before anybody asked.
        return bool(phases & {"live", "no traffic", "timeline ended"}) and (lag == 0 or "live" in phases) and indexed

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

    def topic(self, name: str) -> str:
        """What a topic is called here."""
        return self.settings()["PERSEID_TOPIC_PREFIX"] + name

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
        with self._pin(self.urls[crc32(user.encode()) % len(self.urls)]):
            return self.get(f"/v1/recommendations/{user}", **query)

    def until(self, check: Any, timeout_s: float, what: str) -> Any:
        """Polls until `check()` is true for every API process and returns it."""
        deadline, found = time.monotonic() + timeout_s, None
        for url in self.urls:
            with self._pin(url):
                while not (found := check()):
                    assert time.monotonic() < deadline, f"{url}: not within {timeout_s} s: {what}\n{self.output()}"
                    time.sleep(0.02)
        return found

    @contextmanager
    def _pin(self, url: str) -> Iterator[None]:
        """All calls go to one API process, unless a surrounding block has chosen already."""
        before, self._pinned = self._pinned, self._pinned or url
        try:
            yield
        finally:
            self._pinned = before

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


def free_ports(count: int) -> int:
    """The first of some consecutive free ports, which no outgoing connection takes."""
    while True:
        first = free_port()
        if all(is_free(HOST, port) for port in range(first, first + count)):
            return first


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
