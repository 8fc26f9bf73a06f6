"""A deployment as a worker's test sees it: a producer, the live state, and workers that come and go in this process.

Works on any broker, embedded or real, and a real Redis. Nothing of the pipeline is replaced; there is no encoder.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import orjson

from deploy.runtime.producer import EventProducer
from index.state.keys import Keys, partition_of, partition_tag
from index.state.redis_store import RedisStore
from streams.events import CLICKSTREAM, Rules
from streams.kafka.config import KafkaConfig
from streams.kafka.worker import StreamWorker, WorkerSettings
from streams.pipeline.digest import read_state
from streams.pipeline.engine import Engine
from streams.pipeline.intake import KafkaDeadLetterSink
from tests.faults.malformed import TS_MS
from tests.support.streams_world import click

PARTITIONS = 4
RULES = Rules(embedders={"toy": 4})
TIMEOUT_S = 20.0


class Shop:
    """One deployment as a test sees it: a producer, the store, and workers that come and go."""

    def __init__(self, access: KafkaConfig, redis_url: str, keys: Keys, session_s: float = 3.0) -> None:
        self.access, self.store = access, RedisStore(redis_url, keys)
        self.producer = EventProducer(access)
        self.now_ms = TS_MS
        self.settings = WorkerSettings(access, f"{access.topic_prefix}perseid", session_s=session_s, beat_s=0.05)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[StreamWorker]:
        """A running worker that has claimed everything."""
        worker = self.new_worker()
        running = asyncio.create_task(worker.run())
        try:
            await self.until(lambda: worker.settled or running.done(), "the worker has claimed its partitions")
            if running.done():
                running.result()
            yield worker
        finally:
            worker.stop()
            await asyncio.wait([running], timeout=TIMEOUT_S)
            assert running.done(), f"the worker did not stop within {TIMEOUT_S:g} s"
            running.result()

    def new_worker(self) -> StreamWorker:
        engine = Engine(self.store, RULES, PARTITIONS, KafkaDeadLetterSink(self.producer.send))
        return StreamWorker(engine, self.settings)

    async def send(self, user: str, event_id: str, item: str = "i", partition: int | None = None) -> None:
        self.now_ms += 1
        body = orjson.dumps(click(user, item, self.now_ms, event_id))
        await self.producer.send(CLICKSTREAM, user.encode(), body, partition, timestamp_ms=self.now_ms)

    async def window(self, user: str) -> list[str]:
        """Items of a user's window."""
        state = await read_state(self.store, PARTITIONS)
        users = state[partition_tag(partition_of(user, PARTITIONS))]["users"]
        return [event[1] for event in users[user]["window"]] if user in users else []

    async def owner(self, tag: str) -> dict[str, int]:
        """Numeric fields of a tag's owner record."""
        fields = await self.store.read_all(self.store.keys.owner(tag))
        return {name: int(value) for name, value in fields.items() if value.isdigit()}

    @staticmethod
    async def until(check: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not check():
            assert time.monotonic() < deadline, f"not within {TIMEOUT_S:g} s: {what}"
            await asyncio.sleep(0.002)

    async def close(self) -> None:
        """The scenario's last step: what a worker left behind must not hang `asyncio.run`, which cancels only once."""
        self.producer.close()
        await self.store.close()
        left, deadline = asyncio.all_tasks() - {asyncio.current_task()}, time.monotonic() + TIMEOUT_S
        while left and time.monotonic() < deadline:
            for task in left:
                task.cancel()  # a call of mode's queues swallows it, and waits for the next one
            _, left = await asyncio.wait(left, timeout=0.1)
        assert not left, f"cannot be ended: {left}"
