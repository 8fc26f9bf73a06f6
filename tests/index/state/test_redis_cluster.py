"""The live state on a Redis Cluster: slots that move under writes, nodes that die, and a follower that moves along."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from deploy.servers.redis import RedisServer
from index.state.keys import ITEMS_TAG, Keys
from index.state.redis_store import RedisStore
from index.state.store import Commit, FencedError, LogIdentity, Op, StoreUnavailableError
from tests.support.redis_cluster import ClusterOfServers

pytestmark = pytest.mark.servers

T = TypeVar("T")
LOG = LogIdentity("cluster-a")
TAGS = [f"p{number}" for number in range(12)]


@asynccontextmanager
async def opened(cluster: ClusterOfServers, keys: Keys) -> AsyncIterator[RedisStore]:
    store = RedisStore(cluster.url, keys, cluster=True, timeout_s=2.0)
    try:
        yield store
    finally:
        await store.close()


async def persistent(call: Callable[[], Awaitable[T]], timeout_s: float = 30.0) -> T:
    """Repeats a call as a worker does until the store has answered."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await call()
        except StoreUnavailableError:
            assert time.monotonic() < deadline, "the store did not come back"
            await asyncio.sleep(0.01)


class Writer:
    """Writes clicks of one partition one after the other: each counts itself and creates a new user."""

    def __init__(self, store: RedisStore, tag: str) -> None:
        self.store, self.tag, self.written, self.refused = store, tag, 0, 0

    @property
    def counts(self) -> str:
        return self.store.keys.popularity(self.tag, 0)

    async def claim(self) -> None:
        await self.store.claim(self.tag, "t", 1, {"clicks": LOG})

    async def write(self) -> None:
        at, user = self.written, self.store.keys.user(self.tag, f"u{self.written}")
        ops = (Op("hincr", self.counts, {"all": 1, str(at): 1}), Op("hset", user, {"s": str(at).encode()}))

        async def once() -> None:
            try:
                await self.store.commit([Commit(self.tag, "t", "clicks", at, at + 1, ops)])
            except StoreUnavailableError:
                self.refused += 1
                raise

        await persistent(once)
        self.written += 1

    async def check(self) -> None:
        """Everything written is there, and only once."""
        counts = await self.store.read_all(self.counts)
        assert counts == {"all": str(self.written).encode()} | {str(at): b"1" for at in range(self.written)}
        users = [self.store.keys.user(self.tag, f"u{at}") for at in range(self.written)]
        assert await self.store.read([(user, ["s"]) for user in users]) == [[b"%d" % at] for at in range(self.written)]


def test_one_read_gathers_users_of_all_nodes(redis_cluster: ClusterOfServers, keys: Keys) -> None:
    async def scenario() -> None:
        async with opened(redis_cluster, keys) as store:
            tags = TAGS
            assert {redis_cluster.owner(keys.owner(tag)) for tag in tags} == {0, 1, 2}
            for tag in tags:
                await store.claim(tag, "t", 1, {"clicks": LOG})
                op = Op("hset", keys.user(tag, "u"), {"s": tag.encode()})
                await store.commit([Commit(tag, "t", "clicks", 0, 1, [op])])
            found = await store.read([(keys.user(tag, "u"), ["s", "p"]) for tag in tags])
            assert found == [[tag.encode(), None] for tag in tags]

    asyncio.run(scenario())


def test_a_slot_that_moves_under_writes_loses_nothing_and_repeats_nothing(
    redis_cluster: ClusterOfServers, keys: Keys
) -> None:
    async def scenario() -> None:
        async with opened(redis_cluster, keys) as store, opened(redis_cluster, keys) as another:
            writer, key = Writer(store, "p3"), keys.owner("p3")
            await writer.claim()
            moving = asyncio.Event()

            async def write() -> None:
                while not moving.is_set() or writer.written < 400:
                    await writer.write()

            writing = asyncio.create_task(write())
            for _ in range(4):
                before = writer.written
                while writer.written < before + 50:
                    await asyncio.sleep(0.001)
                await asyncio.to_thread(redis_cluster.move, key, (redis_cluster.owner(key) + 1) % 3)
            moving.set()
            await writing
            await writer.check()
            writer.store = another  # whose map of slots is another one
            await writer.check()

    asyncio.run(scenario())


def test_reads_follow_a_slot_that_is_half_moved(redis_cluster: ClusterOfServers, keys: Keys) -> None:
    async def scenario() -> None:
        async with opened(redis_cluster, keys) as store:
            writer, key = Writer(store, "p5"), keys.owner("p5")
            await writer.claim()
            for _ in range(20):
                await writer.write()
            target = (redis_cluster.owner(key) + 1) % 3
            await asyncio.to_thread(redis_cluster.open_move, key, target)
            await writer.check()
            await asyncio.to_thread(redis_cluster.carry, key, target)
            # Many at once: the permission to ask must reach the node over the connection that asks.
            await asyncio.gather(*(writer.check() for _ in range(20)))
            await asyncio.to_thread(redis_cluster.close_move, key, target)
            await writer.write()
            await writer.check()

    asyncio.run(scenario())


def test_a_follower_moves_along_with_the_item_log(redis_cluster: ClusterOfServers, keys: Keys) -> None:
    async def scenario() -> None:
        async with opened(redis_cluster, keys) as store:
            await store.claim(ITEMS_TAG, "t", 1, {"catalog": LOG})
            start = await store.read_log("", 0, 0)
            follower = asyncio.create_task(store.read_log(start.generation, start.position, 4000))
            source = redis_cluster.owner(keys.item_log())
            while not (await asyncio.to_thread(redis_cluster.info, source))["blocked_clients"]:
                assert not follower.done()
            await asyncio.to_thread(redis_cluster.move, keys.item_log(), (source + 1) % 3)
            op = Op("log", keys.item("a"), names=("a",))
            await persistent(lambda: store.commit([Commit(ITEMS_TAG, "t", "catalog", 0, 1, [op])]))
            page = await asyncio.wait_for(follower, 2.0)
            assert (page.items, page.reload, page.generation) == (("a",), False, start.generation)
            again = await store.claim(ITEMS_TAG, "t2", 1, {"catalog": LOG})
            assert again.positions == {"catalog": 1}
            assert (await store.read_log(start.generation, page.position, 0)).reload  # another node's run: a new log

    asyncio.run(scenario())


def test_a_dead_node_is_unavailable_until_it_is_back_and_the_others_serve(
    redis_cluster: ClusterOfServers, keys: Keys
) -> None:
    async def scenario() -> None:
        async with opened(redis_cluster, keys) as store:
            tags = {redis_cluster.owner(keys.owner(tag)): tag for tag in TAGS}
            writers = [Writer(store, tags[number]) for number in range(3)]
            for writer in writers:
                await writer.claim()
                await writer.write()
            redis_cluster.servers[1].kill()
            with pytest.raises(StoreUnavailableError):
                await store.read([(writers[1].counts, ["all"])])
            assert await store.read([(writers[0].counts, ["all"])]) == [[b"1"]]
            writing = asyncio.gather(*(writer.write() for writer in writers))
            redis_cluster.servers[1].start()
            await writing
            for writer in writers:
                assert writer.written == 2
                await writer.check()

    try:
        asyncio.run(scenario())
    finally:
        if redis_cluster.servers[1].pid is None:
            redis_cluster.servers[1].start()
        redis_cluster.wait_until_up()


def test_a_replica_that_takes_over_is_found_and_opens_a_new_item_log(tmp_path: Path, keys: Keys) -> None:
    with ClusterOfServers(tmp_path, replicas_of=(0, 1, 2)) as cluster:

        async def scenario() -> None:
            async with opened(cluster, keys) as store:
                writer = Writer(store, "p3")
                await writer.claim()
                await writer.write()
                await store.claim(ITEMS_TAG, "t", 1, {"catalog": LOG})
                start = await store.read_log("", 0, 0)
                killed = {cluster.owner(keys.owner("p3")), cluster.owner(keys.item_log())}
                await asyncio.to_thread(replicated, cluster, killed)
                cluster.servers[cluster.owner(keys.owner("p3"))].kill()
                started = time.monotonic()
                await writer.write()
                assert time.monotonic() - started < 15.0
                await writer.check()
                if len(killed) > 1:  # one at a time: two of three primaries make the majority that elects
                    await asyncio.to_thread(cluster.wait_until_up)
                    cluster.servers[cluster.owner(keys.item_log())].kill()

                await persistent(lambda: store.claim(ITEMS_TAG, "t2", 1, {"catalog": LOG}))
                page = await persistent(lambda: store.read_log(start.generation, start.position, 0))
                assert page.reload and page.generation != start.generation
                with pytest.raises(FencedError):
                    await store.commit([Commit(ITEMS_TAG, "t", "catalog", 0, 1)])

        asyncio.run(scenario())


def replicated(cluster: ClusterOfServers, primaries: set[int]) -> None:
    """Waits until a replica has what was written."""
    for number in primaries:
        assert cluster.call(number, "WAIT", 1, 5000) == 1


def test_without_the_setting_a_cluster_says_what_is_wrong(redis_cluster: ClusterOfServers, keys: Keys) -> None:
    async def scenario() -> None:
        store = RedisStore(redis_cluster.servers[0].url, keys)
        with pytest.raises(StoreUnavailableError, match="node of a Redis Cluster"):
            await store.read([(f"{{{number}}}", ["s"]) for number in range(50)])
        await store.close()

    asyncio.run(scenario())


def test_with_the_setting_a_single_server_says_what_is_wrong(redis_cluster: ClusterOfServers, keys: Keys) -> None:
    async def scenario(url: str) -> None:
        store = RedisStore(url, keys, cluster=True)
        with pytest.raises(StoreUnavailableError, match="cluster support disabled"):
            await store.read([("x", ["s"])])
        await store.close()

    with RedisServer() as server:
        asyncio.run(scenario(server.url))
