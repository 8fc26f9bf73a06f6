"""A Redis that stands still under many requests: each gives up in time, connections stay few, and all come back."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from deploy.servers.redis import RedisServer
from index.state.keys import Keys
from index.state.redis_store import RedisStore
from index.state.store import StoreUnavailableError
from tests.support.redis_cluster import ClusterOfServers

pytestmark = pytest.mark.servers

REQUESTS, ROUNDS = 50, 6
TIMEOUT_S = 0.1  # as in an API process, with one retry


@pytest.mark.parametrize("kind", ["server", "cluster"])
def test_a_paused_redis_costs_few_connections_and_comes_back(
    kind: str, request: pytest.FixtureRequest, keys: Keys
) -> None:
    found: RedisServer | ClusterOfServers = request.getfixturevalue(f"redis_{kind}")
    servers = found.servers if isinstance(found, ClusterOfServers) else [found]
    users = [(keys.user(f"p{number}", "u"), ["s"]) for number in range(12)]

    async def scenario() -> None:
        store = RedisStore(found.url, keys, timeout_s=TIMEOUT_S, retries=1, cluster=kind == "cluster")
        while not await answered(store):
            pass  # a busy machine may need longer than the timeout for the first connection
        before = open_files()
        send(signal.SIGSTOP)
        for _ in range(ROUNDS):
            started = time.monotonic()
            answers = await asyncio.gather(*(answered(store) for _ in range(REQUESTS)))
            assert not any(answers)
            assert time.monotonic() - started < 5.0, "a request that waits keeps others waiting"
            assert open_files() <= before + REQUESTS * len(servers)
        send(signal.SIGCONT)
        deadline = time.monotonic() + 10.0
        while not all(await asyncio.gather(*(answered(store) for _ in range(5)))):
            assert time.monotonic() < deadline, "the store did not come back"
        await store.close()

    async def answered(store: RedisStore) -> bool:
        try:
            await store.read(users)
        except StoreUnavailableError:
            return False
        return True

    def send(number: int) -> None:
        for server in servers:
            assert server.pid is not None
            os.kill(server.pid, number)

    try:
        asyncio.run(scenario())
    finally:
        send(signal.SIGCONT)
        if isinstance(found, ClusterOfServers):
            found.wait_until_up()


def open_files() -> int:
    """Of this process, sockets included."""
    return len(os.listdir("/proc/self/fd"))
