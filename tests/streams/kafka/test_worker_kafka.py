"""The worker on a real Kafka: what its logs do that an embedded broker's never do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import aiokafka
import orjson
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewPartitions

from deploy.servers.redis import RedisServer
from deploy.servers.topics import create_topics
from index.state.keys import ITEMS_TAG, Keys, partition_of, partition_tag
from index.state.store import LogIdentity
from streams.events import CATALOG, CLICKSTREAM, CONSUMED, USERS
from streams.kafka.claims import PositionBeyondLogError
from streams.kafka.config import KafkaConfig
from streams.kafka.log_identity import LogLookup
from streams.pipeline.digest import read_state
from tests.conftest import eventually
from tests.support.streams_world import click
from tests.support.worker_world import PARTITIONS, TIMEOUT_S, Shop

pytestmark = pytest.mark.servers

HOME = partition_of("anna", PARTITIONS)
TAG = partition_tag(HOME)


class Cluster:
    """A shop on a real broker, with an administrator."""

    def __init__(self, access: KafkaConfig, redis_url: str, keys: Keys) -> None:
        create_topics(access, PARTITIONS)
        self.access = access
        self.shop = Shop(access, redis_url, keys)
        self.admin = AdminClient({**access.librdkafka(), "log_level": 2})

    async def recreate(self, topic: str, *, again: bool = True) -> None:
        """Deletes a topic and, after that, creates it."""
        await asyncio.to_thread(self._delete, topic)
        if again:
            await asyncio.to_thread(create_topics, self.access, PARTITIONS)

    def _delete(self, topic: str) -> None:
        name = self.access.topic(topic)
        self.admin.delete_topics([name], operation_timeout=10.0)[name].result()
        eventually(lambda: name not in self.admin.list_topics(timeout=10.0).topics, 10.0, "the topic is gone")

    async def set_count(self, topic: str, count: int) -> None:
        name = self.access.topic(topic)
        await asyncio.to_thread(self.admin.create_partitions([NewPartitions(name, count)])[name].result)

    async def cut(self, topic: str, partition: int, offset: int) -> None:
        """Moves the start of a log, as retention does."""
        place = TopicPartition(self.access.topic(topic), partition, offset)
        await asyncio.to_thread(self.admin.delete_records([place])[place].result)

    async def compact_eagerly(self, topic: str) -> None:
        """Makes the broker's cleaner take outdated records soon after they were written."""
        wanted = {"min.compaction.lag.ms": "0", "min.cleanable.dirty.ratio": "0.001", "segment.ms": "100"}
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in wanted.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, self.access.topic(topic), incremental_configs=entries)
        await asyncio.to_thread(self.admin.incremental_alter_configs([resource])[resource].result)

    async def transaction(self, name: str, events: list[bytes], *, commit: bool) -> None:
        """Writes clicks of anna in one transaction."""

        def write() -> None:
            producer = Producer({**self.access.librdkafka(), "transactional.id": f"{self.access.topic_prefix}{name}"})
            producer.init_transactions(10.0)
            producer.begin_transaction()
            for body in events:
                producer.produce(self.access.topic(CLICKSTREAM), body, b"anna", HOME, timestamp=self.shop.now_ms)
            producer.flush(10.0)
            (producer.commit_transaction if commit else producer.abort_transaction)(10.0)

        await asyncio.to_thread(write)

    async def applied(self, event_ids: list[str]) -> None:
        """Waits until anna's window holds exactly these items, which are named like their events."""
        window: list[str] = []

        async def look() -> None:
            nonlocal window
            while (window := await self.shop.window("anna")) != event_ids:
                await asyncio.sleep(0.02)

        try:
            await asyncio.wait_for(look(), TIMEOUT_S)
        except TimeoutError:
            raise AssertionError(f"window is {window}, expected {event_ids}") from None

    async def send(self, *event_ids: str) -> None:
        for event_id in event_ids:
            await self.shop.send("anna", event_id, event_id)

    async def confirmed(self) -> None:
        """Waits until the worker confirms anew that anna's partition is caught up."""
        before = (await self.shop.owner(TAG)).get("beat", 0)

        async def look() -> None:
            while (await self.shop.owner(TAG)).get("beat", 0) <= before + 1:
                await asyncio.sleep(0.02)

        await asyncio.wait_for(look(), TIMEOUT_S)


Play = Callable[[Callable[[Cluster], Awaitable[None]]], None]


@pytest.fixture
def play(kafka_config: KafkaConfig, redis_server: RedisServer, keys: Keys) -> Play:
    """Runs a scenario on topics of its own."""

    def run(scenario: Callable[[Cluster], Awaitable[None]]) -> None:
        async def main() -> None:
            cluster = Cluster(kafka_config, redis_server.url, keys)
            try:
                await scenario(cluster)
            finally:
                await cluster.shop.close()

        asyncio.run(main())

    return run


def test_positions_name_the_topic_and_a_new_worker_goes_on_from_them(play: Play) -> None:
    async def scenario(cluster: Cluster) -> None:
        async with cluster.shop.worker():
            await cluster.send("e1", "e2")
            await cluster.applied(["e1", "e2"])
        owner = await cluster.shop.store.read_all(cluster.shop.store.keys.owner(TAG))
        cluster_id, _, topic_id = owner["log:clickstream"].decode().partition("/")
        assert cluster_id and len(topic_id) > 10
        await cluster.send("e3")
        async with cluster.shop.worker() as worker:
            await cluster.applied(["e1", "e2", "e3"])
            counts = worker.engine.counts
            assert (counts["applied"], counts["redelivered"], counts["new_logs"]) == (1, 0, 0)

    play(scenario)


def test_a_topic_recreated_under_a_living_worker_starts_a_new_log_and_keeps_the_users(play: Play) -> None:
    async def scenario(cluster: Cluster) -> None:
        async with cluster.shop.worker() as worker:
            await cluster.send("e1", "e2")
            await cluster.applied(["e1", "e2"])
            await cluster.recreate(CLICKSTREAM)
            await cluster.send("e3", "e4", "e5", "e6")  # more than the old log held
            await cluster.applied([f"e{n}" for n in range(1, 7)])
            await cluster.shop.until(lambda: worker.engine.counts["new_logs"] >= PARTITIONS, "the new logs are noticed")
            await cluster.confirmed()
        assert (await cluster.shop.owner(TAG))["pos:clickstream"] == 4

    play(scenario)


def test_a_topic_recreated_while_it_is_claimed_is_not_taken_for_a_cut_one(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(cluster: Cluster) -> None:
        async with cluster.shop.worker():
            await cluster.send("e1", "e2")
            await cluster.applied(["e1", "e2"])
        lookup = LogLookup(cluster.access)
        old = await lookup.identities(list(CONSUMED))
        await cluster.recreate(CLICKSTREAM)
        await cluster.send("e3")  # the new log is shorter than the old one's position
        answers = [old]  # the first look comes just before the topic was recreated
        look = LogLookup.identities

        async def at_first_old(self: LogLookup, topics: Sequence[str]) -> dict[str, LogIdentity]:
            found = answers.pop() if answers else await look(self, topics)
            return {topic: found[topic] for topic in topics if topic in found}

        monkeypatch.setattr(LogLookup, "identities", at_first_old)
        async with cluster.shop.worker():
            await cluster.applied(["e1", "e2", "e3"])
        assert not answers

    play(scenario)


def test_a_topic_recreated_while_the_worker_is_down_starts_at_zero(play: Play) -> None:
    async def scenario(cluster: Cluster) -> None:
        async with cluster.shop.worker():
            await cluster.send("e1", "e2")
            await cluster.applied(["e1", "e2"])
        await cluster.recreate(CLICKSTREAM)
        await cluster.send("e3")
        async with cluster.shop.worker() as worker:
            await cluster.applied(["e1", "e2", "e3"])
            assert worker.engine.counts["new_logs"] == PARTITIONS

    play(scenario)


def test_a_topic_that_is_missing_for_a_while_ends_nothing(play: Play) -> None:
    async def scenario(cluster: Cluster) -> None:
        async with cluster.shop.worker():
            await cluster.send("e1")
            await cluster.applied(["e1"])
            await cluster.recreate(USERS, again=False)
            await cluster.send("e2")
            await asyncio.to_thread(create_topics, cluster.access, PARTITIONS)
            await cluster.send("e3")
            await cluster.applied(["e1", "e2", "e3"])
            await cluster.confirmed()

    play(scenario)


def test_another_partition_count_ends_a_living_worker_with_the_remedy(play: Play) -> None:
    async def scenario(cluster: Cluster) -> None:
        worker = cluster.shop.new_worker()
        running = asyncio.create_task(worker.run())
        await cluster.shop.until(lambda: worker.settled or running.done(), "the worker has claimed its partitions")
        await cluster.set_count(CLICKSTREAM, PARTITIONS + 1)
        with pytest.raises(ValueError, match="clickstream has 5 partitions, the live state needs 4: create it with"):
            await asyncio.wait_for(running, TIMEOUT_S)

    play(scenario)


def test_what_retention_took_is_reported_and_the_rest_is_applied(play: Play) -> None:
    async def scenario(cluster: Cluster) -> None:
        async with cluster.shop.worker():
            await cluster.send("e1")
            await cluster.applied(["e1"])
        await cluster.send("e2", "e3", "e4", "e5")
        await cluster.cut(CLICKSTREAM, HOME, 3)
        async with cluster.shop.worker() as worker:
            await cluster.applied(["e1", "e4", "e5"])
            assert worker.engine.counts["lost_to_retention"] == 2
            await cluster.confirmed()

    play(scenario)


def test_what_retention_took_under_a_waiting_worker_is_reported_too(play: Play) -> None:
    async def scenario(cluster: Cluster) -> None:
        async with cluster.shop.worker() as worker:
            await cluster.send("e1")
            await cluster.applied(["e1"])
            thread = worker.app.state_consumer._thread
            kafka, place = thread._ensure_consumer(), aiokafka.TopicPartition(cluster.access.topic(CLICKSTREAM), HOME)
            await thread.call_thread(kafka.pause, place)  # nothing is fetched ahead
            await cluster.send("e2", "e3")
            await cluster.cut(CLICKSTREAM, HOME, 2)
            await thread.call_thread(kafka.resume, place)
            await cluster.applied(["e1", "e3"])
            assert worker.engine.counts["lost_to_retention"] == 1

    play(scenario)


def test_a_cut_log_ends_a_worker_with_one_clear_error(play: Play) -> None:
    async def scenario(cluster: Cluster) -> None:
        async with cluster.shop.worker():
            await cluster.send("e1")
            await cluster.applied(["e1"])
        key = cluster.shop.store.keys.owner(TAG)
        await cluster.shop.store.write(key, {"pos:clickstream": b"99"})
        with pytest.raises(PositionBeyondLogError, match="stored position 99 is beyond the end 1 of the same log"):
            await asyncio.wait_for(cluster.shop.new_worker().run(), TIMEOUT_S)
        assert await cluster.shop.window("anna") == ["e1"]

    play(scenario)


def test_aborted_events_are_never_applied_and_markers_keep_nobody_behind(play: Play) -> None:
    async def scenario(cluster: Cluster) -> None:
        def body(event_id: str) -> bytes:
            cluster.shop.now_ms += 1
            return orjson.dumps(click("anna", event_id, cluster.shop.now_ms, event_id))

        async with cluster.shop.worker() as worker:
            await cluster.transaction("a", [body("e1"), body("e2")], commit=True)
            await cluster.applied(["e1", "e2"])
            await cluster.confirmed()  # although the log ends with a marker
            await cluster.transaction("b", [body("x1"), body("x2")], commit=False)
            await cluster.confirmed()
            await cluster.send("e3")
            await cluster.applied(["e1", "e2", "e3"])
            await cluster.confirmed()
            owner = await cluster.shop.owner(TAG)
            assert owner["pos:clickstream"] == owner["seen:clickstream"] == 7
            assert worker.engine.counts["lost_to_retention"] == worker.engine.counts["fenced"] == 0

    play(scenario)


def test_gaps_of_a_compacted_topic_are_accepted(play: Play) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.compact_eagerly(CATALOG)
        for n in range(200):
            item = orjson.dumps({"item_id": f"i{n % 2}", "title": f"tea {n}", "ts_ms": cluster.shop.now_ms})
            await cluster.shop.producer.send(CATALOG, f"i{n % 2}".encode(), item)
        async with cluster.shop.worker() as worker:
            positions = worker.engine.leases[ITEMS_TAG].positions
            await cluster.shop.until(lambda: positions[CATALOG] == 200, f"all are applied: {worker.engine.leases}")
        items = (await read_state(cluster.shop.store, PARTITIONS))["items"]["items"]
        assert {name: item["catalogue"]["title"] for name, item in items.items()} == {"i0": "tea 198", "i1": "tea 199"}

    play(scenario)


def test_two_workers_share_a_backlog_and_apply_it_once(play: Play) -> None:
    async def scenario(cluster: Cluster) -> None:
        users = [f"user-{n}" for n in range(40)]
        sends = [cluster.shop.send(user, f"{user}-{n}", f"i{n}") for n in range(50) for user in users]
        async with cluster.shop.worker() as first:
            await asyncio.gather(*sends)
            async with cluster.shop.worker() as second:
                await cluster.shop.until(lambda: first.settled and not first.app.rebalancing, "both have a share")
                await asyncio.gather(*(cluster.shop.send(user, f"{user}-x", "ix") for user in users))
                total = len(users) * 51

                def applied() -> int:
                    return first.engine.counts["applied"] + second.engine.counts["applied"]

                await cluster.shop.until(lambda: applied() >= total, "all is applied")
                assert second.engine.leases and first.engine.leases
                assert not set(second.engine.leases) & set(first.engine.leases)
        state = await read_state(cluster.shop.store, PARTITIONS)
        windows = {user: found["window"] for p in range(PARTITIONS) for user, found in state[f"p{p}"]["users"].items()}
        assert {user: len(window) for user, window in windows.items()} == dict.fromkeys(users, 51)

    play(scenario)
