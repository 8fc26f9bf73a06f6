"""A whole small deployment in this process, asked over a real socket: API under uvicorn, worker, broker, Redis.

The model is the tiny one of `tests.compatibility`; what is posted goes through Kafka to the worker and into the live
state. It runs in a thread with an event loop of its own.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import orjson
import uvicorn
from prometheus_client import CollectorRegistry

from deploy.models.documents import write_document
from deploy.roles.api import checked_record
from deploy.runtime.process import now_ms, running
from deploy.runtime.producer import EventProducer, ExposureProducer
from deploy.servers.mock_kafka import Broker, topic_partitions
from deploy.servers.ports import free_port
from deploy.servers.redis import RedisServer
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.artefact import load
from index.api.app import create_app
from index.api.metrics import ApiMetrics
from index.api.settings import ApiSettings, KafkaSide
from index.items.follower import ItemFollower
from index.state.keys import Keys
from index.state.redis_store import RedisStore
from streams.events import CATALOG, CLICKSTREAM, CONSUMED, ITEM_VECTORS
from streams.kafka.config import KafkaConfig
from streams.kafka.log_identity import LogLookup
from streams.kafka.worker import StreamWorker, WorkerSettings
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.encoders import Encoders
from streams.pipeline.engine import Engine
from streams.pipeline.intake import KafkaDeadLetterSink
from tests.compatibility.world import MODEL, PARTITIONS, RULES, SIZES

ITEMS, USERS = 12, 3
PREFIX = "fuzzed"
_START_S = 60.0


@dataclass(frozen=True, slots=True)
class RunningDeployment:
    """Where the parts of a deployment are."""

    api: str
    kafka: str
    redis: str


@contextmanager
def running_api(folder: Path, keys: Mapping[str, frozenset[str]]) -> Iterator[str]:
    """The address of a ready deployment with items `i0` … and users `u0` …; `keys` as in `ApiSettings`."""
    with running_deployment(folder, keys) as found:
        yield found.api


@contextmanager
def running_deployment(folder: Path, keys: Mapping[str, frozenset[str]]) -> Iterator[RunningDeployment]:
    """The same, with the addresses of its servers; keys of its live state begin with `PREFIX`."""
    port, stop = free_port(), threading.Event()
    with Broker(topic_partitions(PARTITIONS), folder / "broker.log") as broker, RedisServer(folder) as redis:
        failed: list[BaseException] = []

        def serve() -> None:
            try:
                asyncio.run(_serve(KafkaConfig(broker.address), redis.url, keys, port, stop))
            except BaseException as error:  # shown by whoever waits
                failed.append(error)

        thread = threading.Thread(target=serve, name="deployment")
        thread.start()
        try:
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _START_S
            while not _is_ready(address):
                assert not failed, failed
                assert time.monotonic() < deadline, f"not ready within {_START_S:g} s"
                time.sleep(0.05)
            yield RunningDeployment(address, broker.address, redis.url)
        finally:
            stop.set()
            thread.join(_START_S)
        assert not failed and not thread.is_alive(), failed


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz").status_code == 200
    except httpx.TransportError:
        return False


async def _serve(
    access: KafkaConfig, redis_url: str, keys: Mapping[str, frozenset[str]], port: int, stop: threading.Event
) -> None:
    store, producer, exposures = RedisStore(redis_url, Keys(PREFIX)), EventProducer(access), ExposureProducer(access)
    await store.ensure_cluster(PARTITIONS, [kind.name for kind in RULES.kinds])
    version = await write_document(store, MODEL)
    await store.write(store.keys.cluster(), {"model": version.encode(), "bucket_ms": str(SIZES.bucket_ms).encode()})
    model, metadata = load(MODEL)
    encoder = EncoderThread(IncrementalEncoder(model, cache_bytes=1 << 22, device="cpu"), version, metadata["embedder"])
    engine = Engine(store, RULES, PARTITIONS, KafkaDeadLetterSink(producer.send), Encoders(encoder), SIZES)
    follower = ItemFollower(store, version, encoder, text_vectors=True)
    worker = StreamWorker(engine, WorkerSettings(access, session_s=3.0), follower.run)
    api_store = RedisStore(redis_url, Keys(PREFIX), timeout_s=1.0, retries=1)  # cores are shared with the tests
    ends = partial(LogLookup(access).log_ends, CONSUMED)
    side = KafkaSide(
        partial(checked_record, RULES, now_ms), producer.send, lambda *record: exposures.expose(*record), log_ends=ends
    )
    app = create_app(api_store, ApiSettings(keys=keys), side, ApiMetrics(CollectorRegistry()))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, access_log=False, server_header=False))
    await _fill(producer)
    tasks = [asyncio.create_task(worker.run()), asyncio.create_task(server._serve())]
    try:
        async with running(api_store, "api", dict):
            while not stop.is_set() and not any(task.done() for task in tasks):
                await asyncio.sleep(0.05)
    finally:
        worker.stop()
        server.should_exit = True
        await asyncio.wait(tasks, timeout=_START_S)
        encoder.close()
        producer.close()
        exposures.close()
        await store.close()
        await api_store.close()
    for task in tasks:
        task.result()


async def _fill(producer: EventProducer) -> None:
    """Items with vectors, and users with a click each."""
    ts_ms = now_ms()
    for number in range(ITEMS):
        item_id = f"i{number}"
        vector = np.eye(4, dtype="<f4")[number % 4] + np.float32(0.01 * number)
        regions = ["DE"] if number == 0 else []
        entry = {"item_id": item_id, "title": f"Item {number}", "category": ["c"], "price": 1.0, "regions": regions}
        found = {"item_id": item_id, "embedder": "toy", "vector": base64.b64encode(vector.tobytes()).decode()}
        await producer.send(ITEM_VECTORS, item_id.encode(), orjson.dumps({**found, "ts_ms": ts_ms}), 0)
        await producer.send(CATALOG, item_id.encode(), orjson.dumps({**entry, "ts_ms": ts_ms}), 0)
    for number in range(USERS):
        click = {"event_id": f"e{number}", "user_id": f"u{number}", "item_id": "i1", "kind": "view", "ts_ms": ts_ms}
        await producer.send(CLICKSTREAM, click["user_id"].encode(), orjson.dumps(click))  # type: ignore[attr-defined]
