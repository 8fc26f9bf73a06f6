"""Events a second sustained through a whole worker: real Kafka → Faust → live state in a real Redis.

100,000 users of whom a few are busy (Zipf, exponent 1), with windows already in Redis, whose lengths are drawn like
those of public data (median 6, mean about 20, at most 200; `--data FOLDER` takes those of a data folder). The topic is
filled first; then the workers start, and their rate is that between the first and the last tenth of the backlog: one
and then two without an encoder, one with an untrained encoder (d=256, 4 layers), whose cache is so small that a part of
the users must be encoded anew. References in the same run: bare consumer loops that only decode, and an untuned Faust
agent. With `--second` there is only the worker with an encoder, and takes turns with one that writes a second model,
too, and with one that also gives all users that one's vectors beside the stream.

    python -m tests.bench.ingest [--users 100000] [--events 400000] [--encoded 30000] [--cache-mb 4096] [--data FOLDER]
        [--second] [--rounds 1] [--against [REF]]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiokafka
import numpy as np
import orjson
import torch
from confluent_kafka import Consumer, Producer, TopicPartition
from numpy.typing import NDArray

from deploy.local.role_commands import command, environment
from deploy.models.registry import Registry
from deploy.servers.redis import RedisServer
from deploy.servers.supervisor import Role, Supervisor
from deploy.servers.topics import create_topics
from deploy.settings import load as load_settings
from encoder.model.artefact import save_version
from encoder.model.config import preset
from encoder.model.encoder import StarsEncoder
from index.state.aliases import CHALLENGER
from index.state.keys import ITEMS_TAG, Keys, partition_tag
from index.state.records import MODELS
from index.state.redis_store import RedisStore
from streams.events import CLICKSTREAM, DEFAULT_KINDS
from streams.folder.reader import read_folder
from streams.kafka.config import KafkaConfig
from tests.bench import against
from tests.bench.process_usage import cpu_seconds
from tests.bench.report import Row, result, show
from tests.bench.synthetic import DIM, PARTITIONS, TEXT_DIM, Synthetic, Writer, clicks
from tests.faults import worker_process
from tests.faults.live import PREFIX, LiveState
from tests.faults.process_files import ProcessFiles
from tests.faults.worker_process import WorkerOptions
from tests.support import services
from tests.support.saved_models import varied

AGAINST = {"plain": 1 / 2.5, "plain_2_workers": None, "encoded": None}
GOAL_PLAIN, GOAL_ENCODED = 20_000.0, 1_500.0
ITEMS, WINDOW = 20_000, 200
_EDGE = 0.1  # of the backlog at both ends, where the worker starts and idles
_PATIENCE_S = 600.0
_STEP = 0.05  # between two looks


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=400_000)
    parser.add_argument("--encoded", type=int, default=30_000, help="events for the worker with an encoder")
    parser.add_argument("--cache-mb", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, help="data folder whose users' lengths are taken")
    parser.add_argument("--second", action="store_true", help="measure only what a second model costs")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each, with --second or --against")
    against.option(parser)
    given = parser.parse_args(arguments)
    if given.against:
        sizes = ("users", "events", "encoded", "cache_mb", "threads")
        options = [f"--{name.replace('_', '-')}={getattr(given, name)}" for name in sizes]
        against.compare_runs("ingest", given.against, given.rounds, AGAINST, lambda _: options, rates=AGAINST)
        return
    lengths = window_lengths(given.users, given.data)
    world = Synthetic(ITEMS, given.users)
    with services.kafka() as address, tempfile.TemporaryDirectory(prefix="perseid-bench-") as name:
        folder = Path(name)
        results: list[Row] = []
        if not given.second:
            with topic(address, world, given.events) as access:
                results += references(access, given.events)
                for workers in (1, 2):
                    results += plain(access, world, lengths, given.events, folder, workers)
        with topic(address, world, given.encoded) as access:
            results += (second_model if given.second else encoded)(access, world, lengths, given, folder)
    for row in results:
        print(f"{row['name']:32} {row['value']:12.4g} {row['unit']}", file=sys.stderr)
    show("ingest", results, "Kafka, Redis and the worker share these cores")


def window_lengths(users: int, data: Path | None) -> NDArray[np.int64]:
    """Events known of each user before the bench begins [users], at least one."""
    rng = np.random.default_rng(0)
    if data is None:
        drawn = rng.lognormal(np.log(6), 1.7, users)
    else:
        drawn = rng.choice(np.bincount(read_folder(data).events.users), users).astype(np.float64)
    return np.clip(drawn, 1, WINDOW).astype(np.int64)


@contextmanager
def topic(address: str, world: Synthetic, events: int) -> Iterator[KafkaConfig]:
    """Topics of the bench's own, with a backlog of clicks."""
    with services.own_topics(address, f"bench-{uuid.uuid4().hex[:8]}-") as access:
        create_topics(access, PARTITIONS)
        producer = Producer({**access.librdkafka(), "partitioner": "murmur2_random", "linger.ms": 20})
        name = access.topic(CLICKSTREAM)
        for user, body in clicks(world, events, int(time.time() * 1000)):
            while True:
                try:
                    producer.produce(name, body, user.encode())
                    break
                except BufferError:
                    producer.poll(0.1)
        assert producer.flush(60) == 0
        yield access


def plain(
    access: KafkaConfig, world: Synthetic, lengths: NDArray[np.int64], events: int, folder: Path, workers: int
) -> list[Row]:
    """Stream workers without an encoder, in one group."""
    name = "plain" if workers == 1 else f"plain_{workers}_workers"
    context, group = multiprocessing.get_context("spawn"), f"{access.topic_prefix}{name}"
    with redis(folder, name) as server:
        asyncio.run(fill(server.url, world, lengths, "m-00000000"))
        processes = []
        for number in range(workers):
            files = ProcessFiles(folder, f"{name}-{number}")
            options = WorkerOptions(files, access, group, server.url, PREFIX, PARTITIONS, 6.0)
            processes.append(context.Process(target=worker_process.run, args=(options,), daemon=True))
            processes[-1].start()
        pids = [process.pid for process in processes if process.pid is not None]
        rate, cores = measured(LiveState(server.url, folder, PARTITIONS), events, pids)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(20)
    goal = GOAL_PLAIN if workers == 1 else None
    return [result(name, rate, "events/s", goal), result(f"{name}_cpu", cores, "cores")]


def encoded(
    access: KafkaConfig, world: Synthetic, lengths: NDArray[np.int64], given: argparse.Namespace, folder: Path
) -> list[Row]:
    """The worker process as users run it, with an untrained model."""
    found = encoding(access, world, lengths, given, folder / "encoded", [untrained(folder / "model")])
    return [
        result("encoded", found.rate, "events/s", GOAL_ENCODED),
        result("encoded_worker_cpu", found.cores, "cores"),
        result("cache_hit_rate", found.hits, "share"),
        result("cache_miss_rate", 1 - found.hits, "share", 0.1),
        result("mean_window", float(lengths.mean()), "events"),
    ]


def second_model(
    access: KafkaConfig, world: Synthetic, lengths: NDArray[np.int64], given: argparse.Namespace, folder: Path
) -> list[Row]:
    """The same with one model, with two, and with two of which one is filled; medians, and what they are of one."""
    artefact, version = untrained(folder / "model")
    other = varied(artefact, folder / "model")
    one, two = [(artefact, version)], [(artefact, version), (other, other.name)]
    arms = {"one": (one, one), "two": (two, two), "two_filling": (two, one)}  # written, and those that all users have
    found: dict[str, list[Encoding]] = {arm: [] for arm in arms}
    for turn in range(given.rounds):
        for arm, (written, everywhere) in arms.items():
            place = folder / f"{arm}-{turn}"
            found[arm].append(encoding(access, world, lengths, given, place, written, len(everywhere)))
            print(f"{arm}: {found[arm][-1]}", file=sys.stderr)
    rows = []
    for arm, runs in found.items():
        rows += [
            result(f"encoded_{arm}", float(np.median([run.rate for run in runs])), "events/s"),
            result(f"encoded_{arm}_worker_cpu", float(np.median([run.cores for run in runs])), "cores"),
            result(f"encoded_{arm}_cpu", float(np.median([1e6 * run.cores / run.rate for run in runs])), "us/event"),
            result(f"encoded_{arm}_cache_hit_rate", float(np.median([run.hits for run in runs])), "share"),
        ]
        if arm != "one":
            ratios = [mine.rate / base.rate for mine, base in zip(runs, found["one"], strict=True)]
            rows.append(result(f"encoded_{arm}_of_one", float(np.median(ratios)), "times"))
    return rows


@dataclass(frozen=True, slots=True)
class Encoding:
    """Events a second of a worker with encoders, cores that it used, and share of the users found in its caches."""

    rate: float
    cores: float
    hits: float


def encoding(
    access: KafkaConfig,
    world: Synthetic,
    lengths: NDArray[np.int64],
    given: argparse.Namespace,
    folder: Path,
    models: Sequence[tuple[Path, str]],
    everywhere: int = 1,
) -> Encoding:
    """A worker process that writes vectors of one or two models, of which all users have the first `everywhere`."""
    versions = [version for _, version in models]
    with redis(folder, "redis") as server, Supervisor() as supervisor:
        asyncio.run(fill(server.url, world, lengths, versions[0]))
        asyncio.run(stage(server.url, versions, versions[:everywhere]))
        for artefact, _ in models[1:]:
            Registry(folder / "registry").add(artefact)
        variables = {
            "PERSEID_KAFKA": access.bootstrap,
            "PERSEID_TOPIC_PREFIX": access.topic_prefix,
            "PERSEID_GROUP": f"{access.topic_prefix}{folder.name}",
            "PERSEID_REDIS": server.url,
            "PERSEID_PREFIX": PREFIX,
            "PERSEID_MODEL": str(models[0][0]),
            "PERSEID_MODELS": str(folder / "registry"),
            "PERSEID_EMBEDDERS": f"bench:{TEXT_DIM}",
            "PERSEID_CACHE_MB": str(given.cache_mb),
            "PERSEID_THREADS": str(given.threads),
            "PERSEID_STATE": str(folder / "state"),
        }
        env = environment(load_settings(variables), {**os.environ, "OMP_NUM_THREADS": str(given.threads)})
        pid = supervisor.start(Role("worker", command("worker"), folder / "encoding.log", env))
        live = LiveState(server.url, folder, PARTITIONS)
        rate, cores = measured(live, given.encoded, [pid])
        time.sleep(2.0)  # until the next heartbeat tells the counters
        counters = asyncio.run(_counters(server.url))
    hits, misses = counters.get("cache_hits", 0), counters.get("cache_misses", 0)
    return Encoding(rate, cores, hits / max(1, hits + misses))


async def stage(url: str, versions: Sequence[str], everywhere: Sequence[str]) -> None:
    """Names a second version, if there is one, as the challenger; all items and users are said to have `everywhere`."""
    store = RedisStore(url, Keys(PREFIX))
    if versions[1:]:
        await store.write(store.keys.cluster(), {CHALLENGER: versions[1].encode()})
    for tag in (ITEMS_TAG, *map(partition_tag, range(PARTITIONS))):
        await store.write(store.keys.owner(tag), {MODELS: " ".join(sorted(everywhere)).encode()})
    await store.close()


def untrained(folder: Path, text_dim: int = TEXT_DIM) -> tuple[Path, str]:
    """An artefact of the preset `base` (d=256, 4 layers) with random weights, and its version."""
    torch.manual_seed(0)
    kinds = tuple(kind.name for kind in DEFAULT_KINDS)
    config = preset("base", d_text=text_dim, d_reduced=min(text_dim, DIM), kinds=kinds)
    assert config.d_model == DIM
    return save_version(StarsEncoder(config), folder, {"embedder": "bench"})


@contextmanager
def redis(folder: Path, name: str) -> Iterator[RedisServer]:
    """A server as in production: append-only, the machine's own where there is one."""
    own = shutil.which("redis-server")
    with RedisServer(folder / name, append_only=True, executable=Path(own) if own else None) as server:
        yield server


async def fill(url: str, world: Synthetic, lengths: NDArray[np.int64], version: str) -> None:
    """Items and users as they were before."""
    store = RedisStore(url, Keys(PREFIX), timeout_s=30.0)
    writer = Writer(store, model=version)
    await writer.open()
    await writer.put_items(world.records(world.item_vectors()))
    hour_ago_ms = int(time.time() * 1000) - 3_600_000
    await writer.put_users(world, range(world.users), hour_ago_ms, lengths.tolist())
    await store.close()


async def _counters(url: str) -> dict[str, int]:
    store = RedisStore(url, Keys(PREFIX))
    beats = [orjson.loads(value) for value in (await store.read_all(store.keys.roles())).values()]
    await store.close()
    return next((dict(beat["counters"]) for beat in beats if beat.get("role") == "worker"), {})


def measured(live: LiveState, events: int, pids: Sequence[int]) -> tuple[float, float]:
    """Events a second between the first and the last tenth of the backlog, and cores that the workers used then."""
    first = reached(live, int(_EDGE * events))
    cpu, began = sum(map(cpu_seconds, pids)), time.monotonic()
    last = reached(live, int((1 - _EDGE) * events))
    spent = time.monotonic() - began
    used = sum(map(cpu_seconds, pids)) - cpu
    reached(live, events)
    return (last - first) / spent, used / spent


def reached(live: LiveState, goal: int) -> int:
    """Waits until so many clicks are applied; how many are by then."""
    deadline = time.monotonic() + _PATIENCE_S
    while (applied := _applied(live)) < goal:
        assert time.monotonic() < deadline, f"{applied} of {goal} applied after {_PATIENCE_S:g} s"
        time.sleep(_STEP)
    return applied


def _applied(live: LiveState) -> int:
    return sum(position for (topic, _), position in live.positions().items() if topic == CLICKSTREAM)


def references(access: KafkaConfig, events: int) -> list[Row]:
    """Loops over the same backlog that only decode."""
    calls: dict[str, Callable[[], float]] = {
        "bare_aiokafka": lambda: asyncio.run(_aiokafka_rate(access, events)),
        "bare_confluent": lambda: _confluent_rate(access, events),
        "untuned_faust": lambda: _faust_rate(access, events),
    }
    return [result(name, call(), "events/s") for name, call in calls.items()]


async def _aiokafka_rate(access: KafkaConfig, events: int) -> float:
    name = access.topic(CLICKSTREAM)
    consumer = aiokafka.AIOKafkaConsumer(**access.aiokafka(), auto_offset_reset="earliest", enable_auto_commit=False)
    await consumer.start()
    consumer.assign([aiokafka.TopicPartition(name, number) for number in range(PARTITIONS)])
    count, began = 0, 0.0
    while count < events:
        for records in (await consumer.getmany(timeout_ms=200, max_records=4096)).values():
            began = began or time.monotonic()
            count += len([orjson.loads(record.value) for record in records])
    spent = time.monotonic() - began
    await consumer.stop()
    return events / spent


def _confluent_rate(access: KafkaConfig, events: int) -> float:
    consumer = Consumer(
        {**access.librdkafka(), "group.id": f"{access.topic_prefix}bare", "auto.offset.reset": "earliest"}
    )
    consumer.assign([TopicPartition(access.topic(CLICKSTREAM), number, 0) for number in range(PARTITIONS)])
    count, began = 0, 0.0
    while count < events:
        for record in consumer.consume(4096, 0.2):
            began = began or time.monotonic()
            value = record.value()
            assert value is not None, record.error()
            orjson.loads(value)
            count += 1
    spent = time.monotonic() - began
    consumer.close()
    return events / spent


def _faust_rate(access: KafkaConfig, events: int) -> float:
    """A process of its own, because an app wants the main thread; it prints its rate."""
    argv = [sys.executable, "-m", "tests.bench.ingest_faust", access.bootstrap, access.topic(CLICKSTREAM), str(events)]
    out = subprocess.run(argv, capture_output=True, text=True, timeout=_PATIENCE_S, check=True).stdout
    return float(out.split()[-1])


if __name__ == "__main__":
    main()
