"""Where faults happen: a broker, a private Redis, traffic, workers and API processes, all of which can be broken.

Progress is what Redis says is applied. A run ends when every position is at its log's end.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from redis.exceptions import RedisError

from deploy.servers.redis import RedisServer
from streams.events import CLICKSTREAM
from tests.faults.api_process import ApiOptions
from tests.faults.children import Api, Child, Indexer, Worker
from tests.faults.elastic import ElasticHost, IndexerOptions
from tests.faults.live import PREFIX, LiveState
from tests.faults.main_thread import in_main_thread
from tests.faults.process_files import ProcessFiles
from tests.faults.servers import AnyBroker, RealBroker
from tests.faults.traffic import Sent, Traffic
from tests.faults.truth import LogReader, Logs, log_partitions
from tests.faults.vectors import waiting, wrong_vectors
from tests.faults.worker_process import WorkerOptions

_POLL_S = 0.01
_ENDS_S = 0.05  # between two looks at the logs' ends
_WRITE_DELAY_S = 0.1  # of dragged workers, most of whose time a write is then under way; their batches make the pace
_FULL_BATCHES = 4  # batches that fill the queue of a dragged worker, so that it is full when something breaks
_APIS = 2
_FILL_SHARE = 0.5  # on busy cores half a second of work takes seconds


@dataclass(frozen=True, slots=True)
class Servers:
    """What outlives a run; without an Elasticsearch the cases that need one cannot be run."""

    broker: AnyBroker
    elastic: ElasticHost | None = None

    def have(self, durable: bool, elastic: bool) -> bool:
        """Whether a case that needs these can be run."""
        return (self.broker.durable or not durable) and (self.elastic is not None or not elastic)


@dataclass(frozen=True, slots=True)
class StageOptions:
    """What a run needs.

    `session_s` is the workers' group session, which bounds how fast a killed one is replaced. `max_lag` is how far the
    traffic runs ahead of the workers. `drag_s` is about how long one worker shall need for all records, 0 for as fast
    as it can. `mutation` is the defect of every worker that is started without another one.
    """

    partitions: int = 8
    session_s: float = 2.0
    max_lag: int | None = None
    drag_s: float = 0.0
    limit: int | None = None  # records sent before the case says that there shall be more
    append_only: bool = False  # Redis keeps what it confirmed over a kill
    encode: bool = False  # the workers have an encoder
    attribution: bool = False  # they join clicks to lists, too
    models: bool = False  # they have those of the registry, and API processes are asked all the time
    mutation: str = ""
    snapshot_ms: float = 0.0  # of the API processes
    disk_kb: int = 0  # of the disk that their snapshots lie on
    patience_s: float = 60.0  # for whatever a case waits for


class Stage:
    """One run of one case; use as a context manager."""

    def __init__(self, servers: Servers, run: str, records: list[Sent], seed: int, options: StageOptions) -> None:
        self.random, self.records, self.options, self.run = random.Random(seed), records, options, run
        self._servers, self._broker = servers, servers.broker
        self._folder = tempfile.TemporaryDirectory(prefix="perseid-faults-")
        self.folder = Path(self._folder.name)
        own = shutil.which("redis-server")  # a server of this machine rather than the one of a Python wheel
        self.redis = RedisServer(
            self.folder / "redis", append_only=options.append_only, executable=Path(own) if own else None
        )
        self.workers: list[Worker] = []
        self.apis: list[Api] = []
        self.indexers: list[Indexer] = []
        self.recoveries_s: list[float] = []
        self.wrong: list[str] = []  # of what was looked at on the way
        self.answers = 0  # that were looked at
        self.former = Former()
        self._ended_s, self._ended = 0.0, False
        self._exits = ExitStack()

    def __enter__(self) -> Stage:
        try:
            self._open()
        except BaseException:
            self._exits.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    def _open(self) -> None:
        options, everything, exits = self.options, len(self.records), self._exits
        exits.callback(self._folder.cleanup)
        self.access = self._broker.open(self.run, options.partitions, self.folder)
        exits.callback(self._broker.close, self.access)
        in_main_thread(self.redis.start)
        exits.callback(self.redis.kill)
        self.live = LiveState(self.redis.url, self.folder / "redis", options.partitions)
        exits.callback(self.live.close)
        self.logs = LogReader(self.access)
        exits.callback(self.logs.close)
        lag = everything if options.max_lag is None else options.max_lag
        limit = everything if options.limit is None else options.limit
        self.traffic = Traffic(self.access, self.records, self.live.progress, lag, limit)
        exits.callback(self.traffic.close)
        exits.callback(self._kill_children)
        for _ in range(_APIS):
            self.start_api()

    def _kill_children(self) -> None:
        for child in self._children:
            child.kill()

    @property
    def _children(self) -> list[Child[Any]]:
        return [*self.workers, *self.apis, *self.indexers]

    @property
    def broker(self) -> RealBroker:
        """The broker, for faults of its own."""
        assert isinstance(self._broker, RealBroker), "this case needs a real Kafka"
        return self._broker

    def start(self, mutation: str | None = None) -> Worker:
        """Starts one more worker; by default with the stage's mutation."""
        options, drag_s = self.options, self.options.drag_s
        pace: dict[str, Any] = {}
        if drag_s:
            batch = max(4, int(len(self.records) * _WRITE_DELAY_S / drag_s))
            pace = {"max_batch": batch, "max_pending": _FULL_BATCHES * batch, "write_delay_s": _WRITE_DELAY_S}
        worker = WorkerOptions(
            files=ProcessFiles(self.folder, f"worker-{len(self.workers)}"),
            access=self.access,
            group=self.run,
            redis_url=self.redis.url,
            prefix=PREFIX,
            partitions=options.partitions,
            session_s=options.session_s,
            mutation=options.mutation if mutation is None else mutation,
            encode=options.encode,
            attribution=options.attribution,
            models=options.models,
            fill_share=_FILL_SHARE,
            **pace,
        )
        self.workers.append(Worker(worker))
        return self.workers[-1]

    @property
    def elastic(self) -> ElasticHost:
        """The Elasticsearch, for faults of its own."""
        assert self._servers.elastic is not None, "this case needs an Elasticsearch"
        return self._servers.elastic

    def start_indexer(self) -> Indexer:
        """Starts the process that fills Elasticsearch."""
        settings = self.elastic.settings(self.run)
        self._exits.callback(self.elastic.forget, settings)
        files = ProcessFiles(self.folder, f"indexer-{len(self.indexers)}")
        self.indexers.append(Indexer(IndexerOptions(files, self.redis.url, PREFIX, settings)))
        return self.indexers[-1]

    def start_api(self, name: str = "") -> Api:
        """Starts one more API process; one with the name of a former one finds its snapshots."""
        files = ProcessFiles(self.folder, name or f"api-{len(self.apis)}")
        files.status.unlink(missing_ok=True)
        options = ApiOptions(
            files,
            self.redis.url,
            PREFIX,
            self.options.snapshot_ms,
            self.options.disk_kb,
            self.options.models,
            self.options.mutation,
        )
        self.apis.append(Api(options))
        return self.apis[-1]

    def hurry(self) -> None:
        """Ends the drag: what is left is applied as fast as the workers can."""
        (self.folder / "hurry").touch()

    def restart_redis(self) -> None:
        """Starts the killed Redis again; returns once it has loaded its data."""
        in_main_thread(self.redis.start)

    def signal_redis(self, number: signal.Signals) -> None:
        """SIGSTOP leaves it reachable and silent: what was sent to it is done after SIGCONT."""
        assert self.redis.pid is not None
        os.kill(self.redis.pid, number)

    def wait(self, check: Callable[[], bool], what: str, timeout_s: float | None = None) -> float:
        """Polls until `check` is true and returns the seconds it took.

        Raises:
            AssertionError: not within `timeout_s`, with the end of each process's log.
        """
        start, timeout_s = time.monotonic(), timeout_s or self.options.patience_s
        while not check():
            if time.monotonic() - start > timeout_s:
                children = [child for child in self._children if child.alive or child.exit_code != -9]
                logs = "\n".join(f"== {c.files.name} alive={c.alive}\n{c.last_words()}" for c in children)
                raise AssertionError(f"not within {timeout_s:g} s: {what}\n{self._where()}\n{logs}")
            time.sleep(_POLL_S)
        return time.monotonic() - start

    def _where(self) -> str:
        try:
            positions = self.live.positions()
            left = {key: (positions[key], end) for key, end in self.logs.ends(positions).items()}
            behind: Any = {f"{key[0]}[{key[1]}]": pair for key, pair in left.items() if pair[0] != pair[1]}
        except (RedisError, OSError) as error:
            behind = error
        limit = min(self.traffic.limit, len(self.records))
        return f"acknowledged {self.traffic.acknowledged} of {limit}, (position, end): {behind}"

    def wait_applied(self, more: int) -> None:
        """Waits until `more` further records are applied, or all there are."""
        goal = self.live.progress() + more
        self.wait(lambda: self.live.progress() >= goal or self.settled(), f"{more} more records are applied")

    def first_write(self) -> None:
        """Notes how long it takes from now until something is applied again."""
        before = self.live.progress()
        self.recoveries_s.append(self.wait(lambda: self.live.progress() > before or self.settled(), "a first write"))

    def hold_back(self, shares: int, of: int) -> None:
        """Keeps so many shares of the records from being sent until they are released, so that there is work later."""
        self.traffic.limit = len(self.records) * (of - shares) // of

    def release(self, share: int) -> None:
        """Lets one of so many shares of the records be sent beside what is."""
        self.traffic.limit = min(len(self.records), self.traffic.limit + -(-len(self.records) // share))

    def must_have_work(self) -> None:
        """Raises AssertionError when all is applied: a fault would show nothing."""
        assert not self.settled(), "nothing was left to apply: the fault missed"

    def settled(self) -> bool:
        """Whether all was sent and every position is at its log's end, forwarded records included."""
        if not self.traffic.idle or time.monotonic() - self._ended_s < _ENDS_S:
            return False
        try:
            positions = self.live.positions()
            self._ended = positions == self.logs.ends(positions)
        except (RedisError, OSError):
            self._ended = False
        if not self._ended:
            self._ended_s = time.monotonic()
        return self._ended

    def read_logs(self) -> Logs:
        """Every consumed partition."""
        return self.logs.read(log_partitions(self.options.partitions))

    def keep_former_log(self) -> None:
        """Remembers what was applied of the present clickstream, and what was sent so far, before it is deleted."""
        positions, logs = self.live.positions(), self.read_logs()
        clicks = {key: log[: positions[key]] for key, log in logs.items() if key[0] == CLICKSTREAM}
        self.former = Former(clicks, {key: log for key, log in logs.items() if key[0] == CLICKSTREAM})

    def logs_of_workers(self) -> str:
        """All that the workers wrote and counted."""
        return "\n".join(f"== {w.files.name} {w.status()}\n{w.log()}" for w in self.workers)

    def wrong_vectors(self) -> list[str]:
        """Users whose stored vectors are not those of their whole window, once nobody waits for an item."""
        count = self.options.partitions
        self.wait(lambda: not self.live.ask(lambda store: waiting(store, count)), "nobody waits for an item")
        return self.live.ask(lambda store: wrong_vectors(store, count))


@dataclass(frozen=True, slots=True)
class Former:
    """Clickstream logs that were deleted: what was applied of them, and all they held."""

    applied: Logs = field(default_factory=dict)
    whole: Logs = field(default_factory=dict)
