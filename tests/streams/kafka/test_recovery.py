"""The worker while a real Kafka, Redis or the network between is away: it waits within bounds and comes back by itself.

The broker is this module's own, because it is killed; clients reach it, and Redis, through proxies that can be cut.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from deploy.servers.kafka import KafkaServer
from deploy.servers.ports import free_port
from deploy.servers.redis import RedisServer
from deploy.servers.topics import create_topics
from index.state.keys import Keys, partition_of, partition_tag
from index.state.store import StoreUnavailableError
from streams.kafka.config import KafkaConfig
from streams.kafka.worker import StreamWorker
from tests.support.services import KEEP, open_folder
from tests.support.tcp_proxy import Proxy
from tests.support.worker_world import PARTITIONS, Shop

pytestmark = pytest.mark.servers

TAG = partition_tag(partition_of("anna", PARTITIONS))
MAX_PENDING = 40
BACK_S = 15.0  # what is promised after broker or Redis are back


@dataclass(frozen=True, slots=True)
class Servers:
    """A broker behind a proxy."""

    broker: KafkaServer
    network: Proxy


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    port = free_port()
    with open_folder("perseid-test-recovery-") as folder, Proxy(port, free_port()) as network:
        broker = KafkaServer(folder, port=port, advertised_port=network.port, properties=KEEP)
        try:
            broker.start()
        except ValueError as error:  # Java or Maven is missing
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no Kafka of our own: {error}")
        yield Servers(broker, network)
        broker.stop()


class Scene:
    """One worker, what it depends on, and anna's events."""

    def __init__(self, servers: Servers, redis: RedisServer, redis_network: Proxy, keys: Keys, prefix: str) -> None:
        self.broker, self.network = servers.broker, servers.network
        self.redis, self.redis_network = redis, redis_network
        access = KafkaConfig(f"127.0.0.1:{servers.network.port}", topic_prefix=prefix)
        create_topics(access, PARTITIONS)
        url = redis.url.replace(f":{redis.port}", f":{redis_network.port}")
        self.shop = Shop(access, url, keys, session_s=3.0)
        self.shop.settings = replace(self.shop.settings, max_pending=MAX_PENDING)
        self.sent: list[str] = []
        self.worker: StreamWorker

    async def send(self, count: int = 1) -> None:
        new = [f"e{len(self.sent) + n}" for n in range(count)]
        self.sent += new
        await asyncio.gather(*(self.shop.send("anna", event_id, event_id) for event_id in new))

    async def caught_up(self, timeout_s: float = BACK_S) -> float:
        """Waits until all that was sent is applied and confirmed; returns how many seconds it took."""
        started = time.monotonic()
        try:
            await asyncio.wait_for(self._caught_up(), timeout_s)
        except TimeoutError:
            raise AssertionError(f"not caught up within {timeout_s:g} s: {await self._where()}") from None
        return time.monotonic() - started

    async def _caught_up(self) -> None:
        while await self.shop.window("anna") != self.sent:
            await asyncio.sleep(0.02)
        before = (await self.shop.owner(TAG)).get("beat", 0)
        while (await self.shop.owner(TAG)).get("beat", 0) <= before:
            await asyncio.sleep(0.02)

    async def _where(self) -> str:
        """What there is of what was waited for, briefly: the summary of a run shows one line."""
        worker = self.worker
        lanes = [(len(lane.pending), len(lane.working)) for lane in worker.lanes]
        said = f"lanes {lanes}, unsettled {sorted(worker.claims.unsettled)}, {worker.engine.counts.as_dict()}"
        try:
            async with asyncio.timeout(5.0):
                applied, owner = len(await self.shop.window("anna")), await self.shop.owner(TAG)
        except (TimeoutError, StoreUnavailableError) as error:
            return f"Redis: {error or 'silent'}, {said}"
        return f"{applied} of {len(self.sent)} applied, {owner}, {said}"


Play = Callable[[Callable[[Scene, StreamWorker], Awaitable[None]]], None]


@pytest.fixture
def play(servers: Servers, keys: Keys, topic_prefix: str, tmp_path: Path) -> Iterator[Play]:
    """Runs a scenario with a worker that has applied something, and afterwards shows that it applies on."""
    with RedisServer(tmp_path, append_only=True) as redis, Proxy(redis.port) as redis_network:

        async def main(scenario: Callable[[Scene, StreamWorker], Awaitable[None]]) -> None:
            scene = Scene(servers, redis, redis_network, keys, topic_prefix)
            try:
                async with scene.shop.worker() as worker:
                    scene.worker = worker
                    await scene.send(2)
                    await scene.caught_up()
                    await scenario(scene, worker)
                    await scene.send()
                    await scene.caught_up()
                    counts = worker.engine.counts
                    assert counts["new_logs"] == counts["lost_to_retention"] == counts["defects"] == 0
            finally:
                await scene.shop.close()

        yield lambda scenario: asyncio.run(main(scenario))


async def _away(seconds: float) -> float:
    """Lets time pass, for what only passing time does (sessions end); returns the share of a CPU that we took."""
    cpu, started = time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    return (time.process_time() - cpu) / (time.monotonic() - started)


def test_a_broker_that_was_killed_keeps_its_logs_and_the_positions_in_them(play: Play) -> None:
    async def scenario(scene: Scene, worker: StreamWorker) -> None:
        scene.broker.kill()
        assert await _away(3.0) < 0.5
        scene.broker.start()
        await scene.send()
        await scene.caught_up()

    play(scenario)


@pytest.mark.parametrize("cut", [Proxy.reset, Proxy.silence])
def test_a_network_to_the_broker_that_was_cut_for_longer_than_a_session(
    cut: Callable[[Proxy], None], play: Play
) -> None:
    async def scenario(scene: Scene, worker: StreamWorker) -> None:
        beats = (await scene.shop.owner(TAG))["beat"]
        cut(scene.network)
        assert await _away(5.0) < 0.5
        assert (await scene.shop.owner(TAG))["beat"] <= beats + 2  # nobody claims to be caught up meanwhile
        scene.network.heal()
        await scene.send()
        await scene.caught_up()

    play(scenario)


def test_while_redis_is_away_waiting_records_are_bounded_and_nothing_spins(play: Play) -> None:
    async def scenario(scene: Scene, worker: StreamWorker) -> None:
        scene.redis_network.reset()
        await scene.send(200)
        assert await _away(2.0) < 0.5
        # One batch in work, a full lane, and the fetch that filled it.
        assert MAX_PENDING <= sum(len(lane.pending) + len(lane.working) for lane in worker.lanes) <= 3 * MAX_PENDING
        assert worker.engine.counts["store_retries"] > 0
        scene.redis_network.heal()
        await scene.caught_up()

    play(scenario)


def test_a_redis_that_does_not_answer_is_waited_for(play: Play) -> None:
    async def scenario(scene: Scene, worker: StreamWorker) -> None:
        scene.redis_network.silence()
        await scene.send(20)
        assert await _away(6.0) < 0.5  # beyond the client's patience of five seconds
        scene.redis_network.heal()
        await scene.caught_up()

    play(scenario)


def test_both_away_at_once(play: Play) -> None:
    async def scenario(scene: Scene, worker: StreamWorker) -> None:
        scene.redis_network.reset()
        scene.network.reset()
        await _away(4.0)
        scene.redis_network.heal()
        scene.network.heal()
        await scene.send()
        await scene.caught_up()

    play(scenario)


def test_a_worker_that_starts_while_kafka_is_away_says_so(play: Play) -> None:
    async def scenario(scene: Scene, worker: StreamWorker) -> None:
        scene.network.silence()
        with pytest.raises(ConnectionError, match="Kafka does not answer"):
            await scene.shop.new_worker().run()
        scene.network.heal()

    play(scenario)


def test_a_worker_stops_in_time_although_everything_is_away(play: Play) -> None:
    async def scenario(scene: Scene, worker: StreamWorker) -> None:
        other = scene.shop.new_worker()
        running = asyncio.create_task(other.run())
        await scene.shop.until(lambda: other.settled and worker.settled, "two workers share the partitions")
        scene.redis_network.silence()
        scene.network.silence()
        other.stop()
        await asyncio.wait_for(running, other.settings.stop_s + 2.0)
        scene.redis_network.heal()
        scene.network.heal()

    play(scenario)
