"""What an event costs the worker's engine: clicks in batches as a worker takes them, without Kafka and Faust.

Assumes a synthetic live state (`tests.bench.synthetic`) in a real Redis, whose writer nobody needs any more: the engine
takes its claims over. A few users are busy (Zipf). Costs are CPU time, wall time stands beside them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from encoder.device import use_threads
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.artefact import load as load_artefact
from index.items.follower import ItemFollower
from index.state.keys import Keys, partition_of, partition_tag
from index.state.redis_store import RedisStore
from streams.events import CLICKSTREAM, USER_TOPICS, Record, Rules
from streams.kafka.lanes import USUAL_BATCH
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.encoders import Encoders
from streams.pipeline.engine import Engine
from tests.bench.process_usage import cpu_seconds
from tests.bench.query import PREFIX
from tests.bench.synthetic import LOG, Synthetic, clicks
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
    """Where the state is and what is applied to it; `model` None: without an encoder.

    The writer's `turn` was 1; each later one takes the claims over, and brings other events.
    """

    turn: int
    redis: str
    redis_pid: int
    point: Point
    events: int
    model: Path | None
    cache_mb: int = 256
    prefix: str = PREFIX


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one event: CPU time of the engine's process and of Redis, and time that passed; share of cache misses."""

    cpu_us: float
    redis_us: float
    wall_us: float
    misses: float


def run_engine(task: Task) -> Cost:
    """In a process of its own, on one thread."""
    use_threads(1)
    return asyncio.run(measure_engine(task))


async def measure_engine(task: Task) -> Cost:
    """Applies clicks in the worker's batches, after some that only warm up."""
    async with AsyncExitStack() as stack:
        store = RedisStore(task.redis, Keys(task.prefix), timeout_s=60.0)
        stack.push_async_callback(store.close)
        encoder = None if task.model is None else await _encoder(store, task.model, task.cache_mb)
        if encoder is not None:
            stack.callback(encoder.close)
        broker = MemoryBroker()
        encoders = Encoders(*([] if encoder is None else [encoder]))
        engine = Engine(store, Rules(embedders={"bench": TEXT_DIM}), task.point.partitions, broker, encoders)
        for partition in range(task.point.partitions):
            await engine.claim(partition_tag(partition), task.turn, dict.fromkeys(USER_TOPICS, LOG))
        records = list(_records(engine, task))
        batches = [records[at : at + BATCH] for at in range(0, task.events, BATCH)]
        warm = 1 + round(_WARM * len(batches))
        for batch in batches[:warm]:
            await engine.apply(batch)
        before, missed = _spent(task.redis_pid), _misses(encoder)
        for batch in batches[warm:]:
            await engine.apply(batch)
        cpu_s, redis_s, wall_s = (
            after - earlier for after, earlier in zip(_spent(task.redis_pid), before, strict=True)
        )
        assert engine.counts["applied"] == task.events and not broker.dead, engine.counts.as_dict()
        count = sum(map(len, batches[warm:]))
        per = 1e6 / count
        return Cost(cpu_s * per, redis_s * per, wall_s * per, (_misses(encoder) - missed) / count)


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


def _misses(encoder: EncoderThread | None) -> int:
    return 0 if encoder is None else encoder.encoder.stats.misses


def _records(engine: Engine, task: Task) -> Iterator[Record]:
    """Clicks as a consumer would have them, from the positions on."""
    point, now_ms = task.point, int(time.time() * 1000)
    at = {number: engine.leases[partition_tag(number)].positions[CLICKSTREAM] for number in range(point.partitions)}
    for user, body in clicks(Synthetic(point.items, point.users), task.events, now_ms, task.turn):
        partition = partition_of(user, point.partitions)
        yield Record(CLICKSTREAM, partition, at[partition], now_ms, user.encode(), body)
        at[partition] += 1
