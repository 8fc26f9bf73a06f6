"""Where faults happen: an embedded broker, a private Redis, traffic, and workers that can be killed, paused, resumed.

All processes die with this one. Progress is what Redis says is applied, so it does not depend on a worker's word.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import orjson
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from deploy.broker import Broker, topic_partitions
from deploy.redis_server import RedisServer
from index.keys import Keys
from index.redis_store import RedisStore
from streams.digest import read_state
from streams.engine import tag_of
from tests.faults.traffic import Sent, Traffic
from tests.faults.truth import LogReader, log_partitions
from tests.faults.vectors import waiting, wrong_vectors
from tests.faults.worker_process import WorkerOptions, run

PREFIX = "faults"
_POLL_S = 0.005
_WRITE_DELAY_S = 0.04  # of dragged workers; their batch size makes the pace
T = TypeVar("T")
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.faults.worker_process"])


class Worker:
    """One worker process."""

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self._process = _forks.Process(target=run, args=(options,), name=options.name, daemon=True)
        self._process.start()

    def status(self) -> dict[str, Any]:
        """What it last said: settled tags and counters; nothing before it has started."""
        try:
            return dict(orjson.loads(self.options.status.read_bytes()))
        except FileNotFoundError:
            return {"tags": [], "counts": {}}

    def count(self, name: str) -> int:
        return int(self.status()["counts"].get(name, 0))

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def exit_code(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.join()

    def terminate(self) -> None:
        """SIGTERM, and a clean end."""
        self._process.terminate()
        self._process.join(20)
        assert self.exit_code == 0, f"{self.options.name} ended with {self.exit_code}:\n{self.log_tail()}"

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def log_tail(self) -> str:
        return "\n".join(self.options.log.read_text(errors="replace").splitlines()[-40:])

    def _signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


class Stage:
    """One run of one case; use as a context manager.

    Args:
        session_s: the workers' group session, which bounds how fast a killed one is replaced.
        max_lag: how far the traffic runs ahead of the workers.
        drag_s: about how long one worker shall need for all records, 0 for as fast as it can.
        append_only: Redis keeps what it confirmed over a kill.
        encode: the workers have an encoder.
        mutation: the defect of every worker that is started without another one.
    """

    def __init__(
        self,
        records: list[Sent],
        seed: int,
        *,
        partitions: int = 8,
        session_s: float = 2.0,
        max_lag: int | None = None,
        drag_s: float = 0.0,
        append_only: bool = False,
        encode: bool = False,
        mutation: str = "",
    ) -> None:
        self.random, self.partitions, self.session_s = random.Random(seed), partitions, session_s
        self.records, self._drag_s, self.mutation = records, drag_s, mutation
        self.encode = encode
        self._max_lag = len(records) if max_lag is None else max_lag
        self._folder = tempfile.TemporaryDirectory(prefix="perseid-faults-")
        self.folder = Path(self._folder.name)
        self._broker = Broker(topic_partitions(partitions), self.folder / "broker.log")
        self.redis = RedisServer(self.folder / "redis", append_only=append_only)
        self.workers: list[Worker] = []
        self.recoveries_s: list[float] = []
        self._known_progress = 0

    def __enter__(self) -> Stage:
        try:
            bootstrap = self._broker.start()
            self.redis.start()
            self._client: Any = Redis.from_url(self.redis.url, socket_timeout=2.0, retry=Retry(NoBackoff(), 0))
            self.logs = LogReader(bootstrap)
            self.traffic = Traffic(bootstrap, self.records, self.progress, self._max_lag)
        except BaseException:
            self._stop_servers()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.kill()
        self.traffic.close()
        self.logs.close()
        self._client.close()
        self._stop_servers()
        self._folder.cleanup()

    def _stop_servers(self) -> None:
        self._broker.stop()
        self.redis.stop()

    def start(self, mutation: str | None = None) -> Worker:
        """Starts one more worker; by default with the stage's mutation."""
        options = WorkerOptions(
            name=f"worker-{len(self.workers)}",
            bootstrap=self._broker.address,
            redis_url=self.redis.url,
            prefix=PREFIX,
            partitions=self.partitions,
            session_s=self.session_s,
            folder=self.folder,
            mutation=self.mutation if mutation is None else mutation,
            encode=self.encode,
            max_batch=max(4, int(len(self.records) * _WRITE_DELAY_S / self._drag_s)) if self._drag_s else 512,
            write_delay_s=_WRITE_DELAY_S if self._drag_s else 0.0,
        )
        self.workers.append(Worker(options))
        return self.workers[-1]

    def hurry(self) -> None:
        """Ends the drag: what is left is applied as fast as the workers can."""
        (self.folder / "hurry").touch()

    def restart_redis(self) -> None:
        """Starts the killed Redis again and waits until it has loaded its data."""
        self.redis.start()
        self.wait(self._redis_answers, "Redis answers")

    def _redis_answers(self) -> bool:
        try:
            return bool(self._client.ping())
        except (RedisError, OSError):
            return False

    def signal_redis(self, number: signal.Signals) -> None:
        """SIGSTOP leaves it reachable and silent: what was sent to it is done after SIGCONT."""
        assert self.redis.pid is not None
        os.kill(self.redis.pid, number)

    def redis_setting(self, name: str, value: str) -> None:
        """CONFIG SET."""
        self._client.config_set(name, value)

    def save_redis(self) -> None:
        """Writes the snapshot that a restart without append-only file begins with."""
        self._client.save()

    def positions(self) -> dict[tuple[str, int], int]:
        """Next offset to apply of every consumed partition, as stored."""
        wanted, keys = log_partitions(self.partitions), Keys(PREFIX)
        pipe = self._client.pipeline(transaction=False)
        for topic, partition in wanted:
            pipe.hget(keys.owner(tag_of(topic, partition)), f"pos:{topic}")
        return {key: int(value or 0) for key, value in zip(wanted, pipe.execute(), strict=True)}

    def progress(self) -> int:
        """Records applied; the last known number while Redis is away."""
        try:
            self._known_progress = sum(self.positions().values())
        except (RedisError, OSError):
            pass
        return self._known_progress

    def wait(self, check: Callable[[], bool], what: str, timeout_s: float = 40.0) -> float:
        """Polls until `check` is true and returns the seconds it took.

        Raises:
            AssertionError: not within `timeout_s`, with the end of each worker's log.
        """
        start = time.monotonic()
        while not check():
            if time.monotonic() - start > timeout_s:
                logs = "\n".join(f"== {w.options.name} alive={w.alive}\n{w.log_tail()}" for w in self.workers)
                raise AssertionError(f"not within {timeout_s:g} s: {what}\n{logs}")
            time.sleep(_POLL_S)
        return time.monotonic() - start

    def wait_applied(self, more: int) -> None:
        """Waits until `more` further records are applied, or all there are."""
        goal = self.progress() + more
        self.wait(lambda: self.progress() >= goal or self.settled(), f"{more} more records are applied")

    def first_write(self) -> None:
        """Notes how long it takes from now until something is applied again."""
        before = self.progress()
        self.recoveries_s.append(self.wait(lambda: self.progress() > before or self.settled(), "a first write"))

    def settled(self) -> bool:
        """Whether all was sent and every position is at its log's end, forwarded records included."""
        if not self.traffic.finished:
            return False
        positions = self.positions()
        return positions == self.logs.ends(positions)

    def read_state(self) -> dict[str, Any]:
        """The live state as plain values."""

        return self._ask(lambda store: read_state(store, self.partitions))

    def wrong_vectors(self) -> list[str]:
        """Users whose stored vectors are not those of their whole window, once nobody waits for an item."""
        self.wait(lambda: not self._ask(lambda store: waiting(store, self.partitions)), "nobody waits for an item")
        return self._ask(lambda store: wrong_vectors(store, self.partitions))

    def _ask(self, question: Callable[[RedisStore], Coroutine[Any, Any, T]]) -> T:
        async def ask() -> T:
            store = RedisStore(self.redis.url, Keys(PREFIX))
            try:
                return await question(store)
            finally:
                await store.close()

        return asyncio.run(ask())
