"""What an event costs the worker's engine: clicks in batches as a worker takes them, without Kafka and Faust.

Assumes a synthetic live state (`tests.bench.synthetic`) in a real Redis, whose writer nobody needs any more: the engine
takes its claims over. A few users are busy (Zipf). Costs are CPU time, wall time stands beside them. As a program it
measures what a second model costs (d=256, 4 layers, untrained; both share the cache), and what it costs that users
written anew lose the vectors of unknown models (`hkeep`): the arms take turns.

    python -m tests.bench.engine_cost [--users 10000] [--events 10000] [--rounds 5] [--cache-mb 256]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np

from deploy.servers.redis import RedisServer
from encoder.device import use_threads
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.artefact import load as load_artefact
from index.items.follower import ItemFollower
from index.state.keys import Keys, partition_of, partition_tag
from index.state.redis_store import RedisStore
from index.state.store import Commit
from streams.events import CLICKSTREAM, USER_TOPICS, Record, Rules
from streams.kafka.lanes import USUAL_BATCH
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.encoders import Encoders
from streams.pipeline.engine import Engine
from tests.bench.ingest import untrained, window_lengths
from tests.bench.process_usage import cpu_seconds
from tests.bench.query import PREFIX
from tests.bench.report import Row, result, show
from tests.bench.synthetic import LOG, Synthetic, Writer, clicks
from tests.support.saved_models import varied
from tests.support.streams_world import MemoryBroker

TEXT_DIM = 384  # of MiniLM, the default text model
BATCH = USUAL_BATCH
_WARM = 0.3  # of the batches, and one more, before the clock runs: busy users are cached by then


@dataclass(frozen=True, slots=True)
class Point:
    """Sizes of a deployment."""

    users: int
    items: int
    partitions: int


@dataclass(frozen=True, slots=True)
class Task:
    """Where the state is and what is applied to it; `model` None: without an encoder; `second`: a second one beside it.

    The writer's `turn` was 1; each later one takes the claims over, and brings other events. Without `keep` no vector
    of an unknown model is removed.
    """

    turn: int
    redis: str
    redis_pid: int
    point: Point
    events: int
    model: Path | None
    cache_mb: int = 256
    prefix: str = PREFIX
    second: Path | None = None
    keep: bool = True

    @property
    def models(self) -> list[Path]:
        return [model for model in (self.model, self.second) if model is not None]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one event: CPU time of the engine's process and of Redis, and time that passed; share of cache misses."""

    cpu_us: float
    redis_us: float
    wall_us: float
    misses: float


class UntidyStore(RedisStore):
    """A store that leaves vectors of unknown models where they are."""

    async def commit(self, commits: Sequence[Commit]) -> None:
        await super().commit([replace(one, ops=[op for op in one.ops if op.kind != "hkeep"]) for one in commits])


def run_engine(task: Task) -> Cost:
    """In a process of its own, on one thread."""
    use_threads(1)
    return asyncio.run(measure_engine(task))


async def measure_engine(task: Task) -> Cost:
    """Applies clicks in the worker's batches, after some that only warm up."""
    async with AsyncExitStack() as stack:
        store = (RedisStore if task.keep else UntidyStore)(task.redis, Keys(task.prefix), timeout_s=60.0)
        stack.push_async_callback(store.close)
        threads = [await _encoder(store, model, task.cache_mb // len(task.models)) for model in task.models]
        for thread in threads:
            stack.callback(thread.close)
        broker, encoders = MemoryBroker(), Encoders(*threads)
        engine = Engine(store, Rules(embedders={"bench": TEXT_DIM}), task.point.partitions, broker, encoders)
        for partition in range(task.point.partitions):
            await engine.claim(partition_tag(partition), task.turn, dict.fromkeys(USER_TOPICS, LOG))
        records = list(_records(engine, task))
        batches = [records[at : at + BATCH] for at in range(0, task.events, BATCH)]
        warm = 1 + round(_WARM * len(batches))
        for batch in batches[:warm]:
            await engine.apply(batch)
        before, missed = _spent(task.redis_pid), _misses(threads)
        for batch in batches[warm:]:
            await engine.apply(batch)
        cpu_s, redis_s, wall_s = (
            after - earlier for after, earlier in zip(_spent(task.redis_pid), before, strict=True)
        )
        assert engine.counts["applied"] == task.events and not broker.dead, engine.counts.as_dict()
        count = sum(map(len, batches[warm:]))
        per = 1e6 / count
        misses = (_misses(threads) - missed) / count / max(1, len(threads))
        return Cost(cpu_s * per, redis_s * per, wall_s * per, misses)


async def _encoder(store: RedisStore, model: Path, cache_mb: int) -> EncoderThread:
    """As a worker opens it, with all items."""
    loaded, metadata = load_artefact(model)
    inner = IncrementalEncoder(loaded, cache_bytes=cache_mb << 20, device="cpu")
    encoder = EncoderThread(inner, metadata["version"], metadata["embedder"])
    await ItemFollower(store, metadata["version"], encoder, text_vectors=True).catch_up()
    return encoder


def _spent(redis_pid: int) -> tuple[float, float, float]:
    """CPU time of this process and of Redis, and the clock, in seconds."""
    return time.process_time(), cpu_seconds(redis_pid), time.monotonic()


def _misses(threads: Sequence[EncoderThread]) -> int:
    return sum(thread.encoder.stats.misses for thread in threads)


def _records(engine: Engine, task: Task) -> Iterator[Record]:
    """Clicks as a consumer would have them, from the positions on."""
    point, now_ms = task.point, int(time.time() * 1000)
    at = {number: engine.leases[partition_tag(number)].positions[CLICKSTREAM] for number in range(point.partitions)}
    for user, body in clicks(Synthetic(point.items, point.users), task.events, now_ms, task.turn):
        partition = partition_of(user, point.partitions)
        yield Record(CLICKSTREAM, partition, at[partition], now_ms, user.encode(), body)
        at[partition] += 1


def compared(point: Point, events: int, rounds: int, cache_mb: int) -> list[Row]:
    """Costs of an event with one model, with one and nothing removed, and with two; medians, and what they are of one.

    The arms take turns on one live state, each time in a process of its own.
    """
    own, found = shutil.which("redis-server"), dict[str, list[Cost]]()
    with (
        tempfile.TemporaryDirectory(prefix="perseid-bench-") as name,
        RedisServer(Path(name) / "redis", executable=Path(own) if own else None) as redis,
        multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
    ):
        model, version = untrained(Path(name) / "models", TEXT_DIM)
        second = varied(model, Path(name) / "models")
        asyncio.run(_fill(redis.url, point, version))
        one = Task(1, redis.url, redis.pid or 0, point, events, model, cache_mb)
        arms = {"one": one, "one_nothing_removed": replace(one, keep=False), "two": replace(one, second=second)}
        for turn in range(rounds * len(arms)):
            arm = list(arms)[turn % len(arms)]
            found.setdefault(arm, []).append(pool.apply(run_engine, (replace(arms[arm], turn=turn + 2),)))
            print(f"{turn + 1} of {rounds * len(arms)}: {arm} {found[arm][-1]}", file=sys.stderr)
    rows, medians = [], {arm: np.median([astuple(cost) for cost in costs], axis=0) for arm, costs in found.items()}
    for arm, values in medians.items():
        for at, field in enumerate(fields(Cost)):
            rows.append(result(f"{arm}_{field.name}", float(values[at]), "share" if field.name == "misses" else "us"))
            if arm != "one" and field.name != "misses":
                ratios = [
                    astuple(mine)[at] / astuple(base)[at] for mine, base in zip(found[arm], found["one"], strict=True)
                ]
                rows.append(result(f"{arm}_{field.name}_of_one", float(np.median(ratios)), "times"))
    return rows


async def _fill(url: str, point: Point, version: str) -> None:
    """Items and users as they were before."""
    world, store = Synthetic(point.items, point.users), RedisStore(url, Keys(PREFIX), timeout_s=60.0)
    writer = Writer(store, point.partitions, version, TEXT_DIM)
    await writer.open()
    await writer.put_items(world.records(world.item_vectors()))
    lengths = window_lengths(point.users, None).tolist()
    await writer.put_users(world, range(point.users), int(time.time() * 1000) - 3_600_000, lengths)
    await store.close()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=10_000, help="of each turn; the first third warms up")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache-mb", type=int, default=256)
    given = parser.parse_args(arguments)
    rows = compared(Point(given.users, given.items, 32), given.events, given.rounds, given.cache_mb)
    show("engine_cost", rows, "the engine on one thread, a real Redis beside it")


if __name__ == "__main__":
    main()
