"""A deployment of one size, measured: the cost of an event and a query, memory of a user and an item, start times.

Redis, an API process, a worker process and the engine are processes of their own, one after the other on the same live
state, which is synthetic (d=256, text vectors of 384) and written by `tests.bench.synthetic`. Costs are CPU time, which
other load on the machine disturbs less than wall time; start times are wall time. Users' windows have the lengths of
`tests.bench.ingest`. Memory of an item in a small catalogue is small beside what a process allocates anyway: a thousand
items say little. Assumes Linux; the broker is the embedded one and stays empty.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from deploy.local.role_commands import command, environment
from deploy.local.status_line import is_ok
from deploy.servers.mock_kafka import Broker, topic_partitions
from deploy.servers.ports import free_port
from deploy.servers.redis import RedisServer
from deploy.servers.supervisor import Role, StartError, Supervisor
from deploy.settings import load as load_settings
from index.state.keys import CONTEXT_TAG, ITEMS_TAG, RULES_TAG, Keys, partition_tag
from index.state.redis_store import RedisStore
from tests.bench.engine_cost import BATCH, TEXT_DIM, Point, Task, run_engine
from tests.bench.ingest import untrained, window_lengths
from tests.bench.process_usage import redis_bytes, resident_bytes
from tests.bench.query import HOST, PREFIX, asked, latency, start_api, start_beats, wait_for_graphs
from tests.bench.report import Row, result
from tests.bench.synthetic import Synthetic, Writer

FEW = 10  # items of the deployment whose API process tells what one takes without any
READY_S = 3600.0  # a million items are read, and their graph is built, at some hundred a second on a busy machine
_LOOK_S = 0.01  # between two looks at what a worker has confirmed
_HOUR_MS = 3_600_000
_QUERY = {"api_cpu": "cpu", "p50": "p50", "p99": "p99", "not_200": "not_200"}  # of `query.latency`


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured at each point; `snapshots`: whether a start from a snapshot is, which takes a minute."""

    events: int = 20_000
    encoded: int = 10_000
    queries: int = 500
    rate: float = 50.0  # queries a second
    cache_mb: int = 256
    snapshots: bool = True

    def __post_init__(self) -> None:
        if min(self.events, self.encoded) < 3 * BATCH:
            raise ValueError(f"{self.events} and {self.encoded} events: the first warm up, give at least {3 * BATCH}")


def measure(point: Point, effort: Effort) -> list[Row]:
    """All figures of one point, in a process of its own: what it leaves in memory ends with it."""
    # Not a Pool: its processes may have no children of their own.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, point, effort).result()


def _measure(point: Point, effort: Effort) -> list[Row]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perseid-bench-")))
        own = shutil.which("redis-server")
        redis = stack.enter_context(RedisServer(folder / "redis", executable=Path(own) if own else None))
        broker = stack.enter_context(Broker(topic_partitions(point.partitions), folder / "broker.log"))
        supervisor = stack.enter_context(Supervisor())
        model, version = untrained(folder / "model", TEXT_DIM)
        stage = Stage(point, effort, folder, redis, broker.address, supervisor, model, version)
        rows = stage.fill()
        rows += stage.api(floor_mb=rows[-1]["value"])
        rows += stage.engine(encode=False) + stage.engine(encode=True)
        return rows + stage.worker()


@dataclass(frozen=True, slots=True)
class Stage:
    """The servers of one point, and what is measured on them, in this order."""

    point: Point
    effort: Effort
    folder: Path
    redis: RedisServer
    kafka: str
    supervisor: Supervisor
    model: Path
    version: str

    def world(self) -> Synthetic:
        return Synthetic(self.point.items, self.point.users)

    def fill(self) -> list[Row]:
        """Writes items and users; Redis' memory for each, and that of an API process that has next to nothing."""
        return asyncio.run(self._fill())

    async def _fill(self) -> list[Row]:
        point, world, store = self.point, self.world(), RedisStore(self.redis.url, Keys(PREFIX), timeout_s=60.0)
        writer = Writer(store, point.partitions, self.version, TEXT_DIM)
        await writer.open()
        records, empty = world.records(world.item_vectors()), redis_bytes(self.redis.url)
        await writer.put_items(islice(records, FEW))
        with self._api(free_port()) as few:
            floor = resident_bytes(few.pid)
        await writer.put_items(records)
        with_items, lengths = redis_bytes(self.redis.url), window_lengths(point.users, None)
        await writer.put_users(world, range(point.users), int(time.time() * 1000) - _HOUR_MS, lengths.tolist())
        await store.close()
        return [
            result("redis_item", (with_items - empty) / point.items, "B"),
            result("redis_user", (redis_bytes(self.redis.url) - with_items) / point.users, "B"),
            result("mean_window", float(lengths.mean()), "events"),
            result("api_floor", floor / 1e6, "MB"),
        ]

    @contextmanager
    def _api(self, port: int) -> Iterator[Started]:
        """An API process that answers and has built its graph."""
        began = time.monotonic()
        pid = start_api(self.supervisor, self.folder, self.kafka, self.redis.url, port)
        self.supervisor.wait_ready(f"api-{port}", lambda: is_ok(f"http://{HOST}:{port}/readyz"), READY_S)
        took = time.monotonic() - began
        wait_for_graphs({port: pid})
        yield Started(pid, took)
        self.supervisor.stop_role(f"api-{port}")

    def api(self, floor_mb: float) -> list[Row]:
        """Start, memory, and what a query costs; then a start from the snapshot that the process has written."""
        start_beats(self.supervisor, self.folder, self.redis.url, self.point.partitions)
        effort, port = self.effort, free_port()
        with self._api(port) as api:
            resident = resident_bytes(api.pid) / 1e6
            requests, seconds = asked(self.world()), effort.queries / effort.rate
            found = latency({port: api.pid}, requests, effort.rate, seconds)
            if effort.snapshots:
                snapshots = self.folder / str(port)
                self.supervisor.wait_ready(f"api-{port}", lambda: any(snapshots.rglob("*.snapshot")), READY_S)
        values = {row["name"].partition("_per_s_")[2]: row for row in found}
        rows = [
            result("api_start", api.took_s, "s"),
            result("api_resident", resident, "MB"),
            result("api_item", (resident - floor_mb) * 1e6 / max(1, self.point.items - FEW), "B"),
            *(result(f"query_{to}", values[name]["value"], values[name]["unit"]) for name, to in _QUERY.items()),
        ]
        if effort.snapshots:
            with self._api(port) as again:
                rows.append(result("api_start_from_snapshot", again.took_s, "s"))
        self.supervisor.stop_role("beats")
        return rows

    def engine(self, encode: bool) -> list[Row]:
        """What an event costs the worker's engine, without Kafka, in a process that has nothing else in it."""
        events, model = (self.effort.encoded, self.model) if encode else (self.effort.events, None)
        turn = 3 if encode else 2
        task = Task(turn, self.redis.url, self.redis.pid or 0, self.point, events, model, self.effort.cache_mb)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            cost = pool.apply(run_engine, (task,))
        name = "event_encoded" if encode else "event"
        return [
            result(f"{name}_cpu", cost.cpu_us, "us"),
            result(f"{name}_redis_cpu", cost.redis_us, "us"),
            result(f"{name}_wall", cost.wall_us, "us"),
            *([result("cache_misses", cost.misses, "share")] if encode else []),
        ]

    def worker(self) -> list[Row]:
        """From the start of a worker process until it has confirmed every partition as its own and caught up."""
        return asyncio.run(self._worker())

    async def _worker(self) -> list[Row]:
        variables = {
            "PERSEID_KAFKA": self.kafka,
            "PERSEID_REDIS": self.redis.url,
            "PERSEID_PREFIX": PREFIX,
            "PERSEID_PARTITIONS": str(self.point.partitions),
            "PERSEID_MODEL": str(self.model),
            "PERSEID_EMBEDDERS": f"bench:{TEXT_DIM}",
            "PERSEID_CACHE_MB": str(self.effort.cache_mb),
            "PERSEID_STATE": str(self.folder / "state"),
        }
        store, env = RedisStore(self.redis.url, Keys(PREFIX)), environment(load_settings(variables), os.environ)
        tags = [*map(partition_tag, range(self.point.partitions)), ITEMS_TAG, CONTEXT_TAG, RULES_TAG]
        wanted = [(store.keys.owner(tag), ["token", "beat"]) for tag in tags]
        before = await store.read(wanted)
        began = time.monotonic()
        pid = self.supervisor.start(Role("worker", command("worker"), self.folder / "worker.log", env))
        while any(map(_same, await store.read(wanted), before)):
            if (crash := self.supervisor.crash()) is not None or time.monotonic() > began + READY_S:
                raise StartError(f"the worker is not ready after {time.monotonic() - began:.0f} s: {crash}")
            await asyncio.sleep(_LOOK_S)
        took, resident = time.monotonic() - began, resident_bytes(pid)
        self.supervisor.stop_role("worker")
        await store.close()
        return [result("worker_start", took, "s"), result("worker_resident", resident / 1e6, "MB")]


def _same(now: list[bytes | None], before: list[bytes | None]) -> bool:
    """Whether a tag has the owner that it had, or has not been confirmed since."""
    return now[0] == before[0] or now[1] == before[1]


@dataclass(frozen=True, slots=True)
class Started:
    """An API process and how long its start took."""

    pid: int
    took_s: float
