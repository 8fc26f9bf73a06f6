"""A store that answers and takes no writes: status says so, the lag is Kafka's, and later all is applied."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from prometheus_client import CollectorRegistry

from deploy.runtime import process
from deploy.servers.mock_kafka import Broker, topic_partitions
from deploy.servers.redis import RedisServer
from index.api.app import create_app
from index.api.metrics import ApiMetrics
from index.api.settings import ApiSettings, KafkaSide
from index.state.keys import Keys, partition_of
from index.state.redis_store import RedisStore
from index.state.store import StoreUnavailableError
from streams.events import CONSUMED
from streams.kafka.config import KafkaConfig
from streams.kafka.log_identity import LogLookup
from tests.compatibility.world import validate
from tests.support.index_api_world import until
from tests.support.worker_world import PARTITIONS, Shop

pytestmark = pytest.mark.servers

Look = Callable[[], Awaitable[dict[str, Any]]]


@asynccontextmanager
async def status_of(store: RedisStore, access: KafkaConfig) -> Any:
    """An API process's `/v1/status`, with its heartbeat and its view of Kafka."""

    async def publish(*_: Any) -> tuple[int, int]:
        raise AssertionError("nothing is posted")

    ends = partial(LogLookup(access).log_ends, CONSUMED)
    kafka = KafkaSide(validate, publish, lambda *_: None, log_ends=ends)
    app = create_app(store, ApiSettings(poll_ms=20.0), kafka, ApiMetrics(CollectorRegistry()))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        process.running(store, "api", dict),
        httpx.AsyncClient(transport=transport, base_url="http://api") as client,
    ):

        async def look() -> dict[str, Any]:
            found: dict[str, Any] = (await client.get("/v1/status")).json()
            return found

        yield look


def test_lag_and_status_tell_of_a_store_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.api.loaded_model._LOG_ENDS_S", 0.05)
    monkeypatch.setattr("index.api.liveness._UNCONFIRMED_MS", 300.0)
    monkeypatch.setattr(process, "_BEAT_S", 0.05)

    async def scenario(shop: Shop, store: RedisStore, client: redis.Redis) -> None:
        async with status_of(store, shop.access) as look, shop.worker():
            await shop.send("anna", "e0", "i0")
            partition = partition_of("anna", PARTITIONS)

            async def lag() -> int:
                return int((await look())["topics"]["clickstream"]["partitions"][partition]["lag"])

            async def healthy() -> bool:
                status = await look()
                topics = status["topics"].values()
                return bool(
                    status["redis_writes"] == "accepted"
                    and await shop.window("anna") == ["i0"]
                    and all(topic["lag"] == 0 and topic["lag_ms"] is not None for topic in topics)
                )

            await until(healthy, "applied and confirmed")
            client.config_set("maxmemory", 1)
            for number in range(1, 8):
                await shop.send("anna", f"e{number}", f"i{number}")

            async def told() -> bool:
                return str((await look())["redis_writes"]).startswith("refused: ") and await lag() == 7

            await until(told, "the refusal and the lag are told")
            status = await look()
            assert status["redis_up"] and "maxmemory" in status["redis_writes"]
            assert status["topics"]["clickstream"]["lag"] == 7 and status["topics"]["catalog"]["lag"] == 0
            client.config_set("maxmemory", 0)

            async def mended() -> bool:
                status = await look()
                return bool(status["redis_writes"] == "accepted" and status["topics"]["clickstream"]["lag"] == 0)

            await until(mended, "all is applied", 30.0)
            assert await shop.window("anna") == [f"i{number}" for number in range(8)]

    async def main(broker: Broker, server: RedisServer) -> None:
        keys = Keys("full")
        shop, store = Shop(KafkaConfig(broker.address), server.url, keys), RedisStore(server.url, keys)
        await shop.store.ensure_cluster(PARTITIONS, ["view"])
        with redis.Redis.from_url(server.url) as client:
            await scenario(shop, store, client)
        await store.close()
        await shop.close()

    with Broker(topic_partitions(PARTITIONS), tmp_path / "broker.log") as broker, RedisServer(tmp_path) as server:
        asyncio.run(main(broker, server))


def test_a_refusal_is_kept_until_the_store_takes_a_write_and_reads_go_on(tmp_path: Path) -> None:
    async def scenario(server: RedisServer, client: redis.Redis) -> None:
        store = RedisStore(server.url, Keys("full"))
        seen = [store.refusal]
        await store.write("k", {"a": b"1"})
        assert [*seen, store.refusal] == [None, ""]
        for refuse, accept, said in (
            (lambda: client.config_set("maxmemory", 1), lambda: client.config_set("maxmemory", 0), "maxmemory"),
            (lambda: client.replicaof("127.0.0.1", "1"), lambda: client.replicaof("NO", "ONE"), "read only"),
        ):
            refuse()
            with pytest.raises(StoreUnavailableError):
                await store.write("k", {"a": b"2"})
            assert said in (store.refusal or "")
            assert await store.read([("k", ["a"])]) == [[b"1"]]
            accept()
            await store.write("k", {"a": b"1"})
            assert store.refusal == ""
        await store.close()

    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        asyncio.run(scenario(server, client))
