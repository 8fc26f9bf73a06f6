"""The worker process while the live state takes no writes: it waits, says why, and starts when it can."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import orjson
import pytest
import redis

from deploy.local.role_commands import command, environment
from deploy.servers.mock_kafka import Broker, topic_partitions
from deploy.servers.redis import RedisServer
from deploy.servers.supervisor import Role, Supervisor
from deploy.settings import Settings, load
from encoder.model.artefact import save_version
from encoder.model.config import preset
from encoder.model.encoder import StarsEncoder

pytestmark = pytest.mark.servers

PARTITIONS = 2
_WAIT_S = 120.0  # torch alone takes ten seconds to load on a busy machine


@contextmanager
def role(supervisor: Supervisor, name: str, settings: Settings) -> Iterator[Path]:
    """A role process for the time of the block; its log."""
    log = settings.state / f"{name}.log"
    log.unlink(missing_ok=True)
    supervisor.start(Role(name, command(name), log, environment(settings, os.environ)))
    try:
        yield log
    finally:
        assert supervisor.stop_role(name, 30.0) == 0, log.read_text()


def until(supervisor: Supervisor, happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not happened():
        assert supervisor.crash() is None, str(supervisor.crash())
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def has_said(log: Path, refused: str) -> bool:
    said = log.read_text()
    return f"cannot {refused} yet, it is tried again: " in said and "maxmemory" in said


def beats(client: redis.Redis, settings: Settings) -> list[Mapping[str, object]]:
    found: Mapping[bytes, bytes] = client.hgetall(settings.keys().roles())  # type: ignore[assignment]
    return [orjson.loads(beat) for beat in found.values()]


@pytest.mark.slow
def test_a_worker_starts_when_redis_takes_writes_again(tmp_path: Path) -> None:
    """At first of an empty live state, then of one that has all that a worker writes when it starts."""
    model, _ = save_version(StarsEncoder(preset("nano", d_text=384)), tmp_path, {"context_features": []})
    with (
        Broker(topic_partitions(PARTITIONS), tmp_path / "broker.log") as broker,
        RedisServer(tmp_path / "redis") as server,
        redis.Redis.from_url(server.url) as client,
        Supervisor() as supervisor,
    ):
        settings = load({}, kafka=broker.address, redis=server.url, partitions=PARTITIONS, state=tmp_path, model=model)
        for refused in ("see which model is served", "publish the model"):
            client.delete(settings.keys().roles())
            client.config_set("maxmemory", 1)
            with role(supervisor, "worker", settings) as log:
                until(supervisor, partial(has_said, log, refused), f"cannot {refused}")
                assert beats(client, settings) == []
                client.config_set("maxmemory", 0)
                until(supervisor, lambda: any(beat["ready"] for beat in beats(client, settings)), "it is ready")
