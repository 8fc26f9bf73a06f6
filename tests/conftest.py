"""Shared fixtures: one real Redis per test run, a key prefix per test, and a deadline-based wait."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.redis_server import RedisServer
from index.keys import Keys


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(Path(tmp_path_factory.mktemp("redis")))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def keys() -> Keys:
    return Keys(f"test-{uuid.uuid4().hex[:12]}")


def eventually(check: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Polls `check` until it is true.

    Raises:
        AssertionError: it was not true within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)
