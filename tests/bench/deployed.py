"""What the benches on a whole deployment share: its start without traffic, clicks at a steady rate, and their options.

Assumes that the deployment's processes and the bench are on one machine. It measures nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil
from confluent_kafka import Producer

from deploy.local.up import HISTORY_DAYS
from index.state.keys import Keys, partition_tag
from index.state.redis_store import RedisStore
from index.state.store import LiveStore
from tests.integration.deployments import EMBEDDED, REAL, TWO_BY_TWO, deployment, prepared
from tests.integration.live import Live, click
from tests.support import services

WARM_UP_S = 3.0


class Load:
    """Sends clicks of random users at a `rate`, which may change, from a thread of its own, on schedule."""

    def __init__(self, live: Live, users: list[str], items: list[str], rate: float) -> None:
        self._producer = Producer({"bootstrap.servers": live.kafka, "partitioner": "murmur2_random", "linger.ms": 1})
        self._topic = live.topic("clickstream")
        self.users, self.items, self.rate = users, items, rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sent = 0
        self.late_s: list[float] = []  # of each look at the clock, how long after the one before: by so much at most

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._producer.flush(10)

    def event(self, rng: random.Random) -> dict[str, Any]:
        """The next click."""
        return click(rng.choice(self.users), rng.choice(self.items))

    def _run(self) -> None:
        rng, due, last = random.Random(1), 0.0, time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            self.late_s.append(now - last)
            due, last = due + (now - last) * self.rate, now
            while self.sent < int(due):
                event = self.event(rng)
                self._producer.produce(self._topic, orjson.dumps(event), event["user_id"].encode())
                self.sent += 1
            self._producer.poll(0)
            time.sleep(0.002)


async def known_users(store: LiveStore, partitions: int) -> list[str]:
    """All users of the live state, in order."""
    return sorted({user for p in range(partitions) for user in await store.scores(store.keys.users(partition_tag(p)))})


def all_users(live: Live) -> list[str]:
    """All users of a deployment, in order."""
    settings = live.settings()

    async def found() -> list[str]:
        store = RedisStore(settings["PERSEID_REDIS"], Keys(settings["PERSEID_PREFIX"]))
        try:
            return await known_users(store, int(settings["PERSEID_PARTITIONS"]))
        finally:
            await store.close()

    return asyncio.run(found())


@contextmanager
def started(
    on: str, state: Path | None, *, two: bool = False, variables: Mapping[str, str] | None = None
) -> Iterator[Live]:
    """A running deployment without traffic, on real Kafka and Redis or the embedded ones, which SIGTERM ends too.

    `two` workers and API processes are on real servers. `variables` are further settings.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perseid-bench-")))
        fixtures = {"kafka_server": stack.enter_context(services.kafka())} if on == "kafka" else {}
        name = EMBEDDED if on == "embedded" else TWO_BY_TWO if two else REAL
        source = prepared(state or folder / "prepared", HISTORY_DAYS, HISTORY_DAYS)
        live = deployment(name, source, folder / "live", fixtures.__getitem__, variables)
        yield stack.enter_context(live)


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """A process that does nothing for as long as the block lasts."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def parser(description: str) -> argparse.ArgumentParser:
    """Options of every bench on a whole deployment."""
    options = argparse.ArgumentParser(description=description.splitlines()[0])
    options.add_argument("--on", choices=("kafka", "embedded"), default="kafka")
    options.add_argument("--state", type=Path, help="folder to keep shop and model in between runs: saves the training")
    return options


def setting(on: str) -> str:
    """What a reader has to know about the figures."""
    return f"{'real Kafka and Redis' if on == 'kafka' else 'embedded broker and Redis'}, all roles and the generator"
