"""What a Redis Cluster costs against one server: guarded writes, one user's read, and a read of 500 users at once.

Three primaries against one server, all on this machine, so the nodes' own CPU time competes with the client's; the
sides take turns in rounds and medians are reported, wall time and the client's CPU time. A write is what one click
does: state, counts, the user's place in the index. It measures the store alone: no Kafka, no encoder.

    python -m tests.bench.cluster
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from deploy.servers.redis import RedisServer
from index.state.keys import Keys, partition_tag
from index.state.redis_store import RedisStore
from index.state.store import Commit, LogIdentity, Op
from tests.bench.report import result, show
from tests.support.redis_cluster import ClusterOfServers

PARTITIONS = 32
USERS = 500
STATE = bytes(2000)  # about a full window
ROUNDS, COMMITS, READS = 7, 1600, 40


class Side:
    """One deployment with its partitions claimed and `USERS` users written."""

    def __init__(self, url: str, *, cluster: bool) -> None:
        self.store = RedisStore(url, Keys("bench"), cluster=cluster)
        self._positions = [0] * PARTITIONS
        self._users = [(number % PARTITIONS, f"user-{number}") for number in range(USERS)]

    async def prepare(self) -> None:
        for partition in range(PARTITIONS):
            await self.store.claim(partition_tag(partition), "t", 1, {"clicks": LogIdentity("bench")})
        for partition, user in self._users:
            await self._write(partition, user)

    async def write(self, number: int) -> None:
        """`COMMITS` guarded writes, those of one partition one after the other as a worker makes them."""

        async def partition_writes(partition: int) -> None:
            for at in range(COMMITS // PARTITIONS):
                await self._write(partition, f"user-{partition + PARTITIONS * (at % (USERS // PARTITIONS))}")

        await asyncio.gather(*(partition_writes(partition) for partition in range(PARTITIONS)))

    async def read_one(self, number: int) -> None:
        await self._read(self._users[number % USERS : number % USERS + 1])

    async def read_all(self, number: int) -> None:
        await self._read(self._users)

    async def _read(self, users: list[tuple[int, str]]) -> None:
        requests = [(self.store.keys.user(partition_tag(partition), user), ["s"]) for partition, user in users]
        assert all(value == STATE for (value,) in await self.store.read(requests))

    async def _write(self, partition: int, user: str) -> None:
        tag, at = partition_tag(partition), self._positions[partition]
        keys = self.store.keys
        ops = (
            Op("hset", keys.user(tag, user), {"s": STATE}),
            Op("zadd", keys.users(tag), {user: at}),
            Op("hincr", keys.popularity(tag, 0), {"\x1fitem": 1}),
        )
        await self.store.commit([Commit(tag, "t", "clicks", at, at + 1, ops)])
        self._positions[partition] = at + 1


async def timed(call: Callable[[int], Awaitable[None]], times: int, per_call: int) -> tuple[float, float]:
    """Microseconds of wall time and of this process's CPU time for one of `times * per_call` operations."""
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(times):
        await call(number)
    count = times * per_call
    return (time.perf_counter() - wall) / count * 1e6, (time.process_time() - cpu) / count * 1e6


async def measure(sides: dict[str, Side]) -> list[dict[str, Any]]:
    for side in sides.values():
        await side.prepare()
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            for what, call, times, per_call in (
                ("guarded write", side.write, 1, COMMITS),
                ("read of one user", side.read_one, 10 * READS, 1),
                (f"read of {USERS} users", side.read_all, READS, 1),
            ):
                found.setdefault((what, name), []).append(await timed(call, times, per_call))
    for side in sides.values():
        await side.store.close()
    return [
        result(f"{what}, {name}, {side_of}", statistics.median(value[at] for value in values), "µs")
        for (what, name), values in sorted(found.items())
        for at, side_of in enumerate(("wall", "client CPU"))
    ]


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer(append_only=True) as server,
        ClusterOfServers(Path(folder), fsync="everysec") as cluster,
    ):
        sides = {"one server": Side(server.url, cluster=False), "cluster of 3": Side(cluster.url, cluster=True)}
        results = asyncio.run(measure(sides))
    for row in results:
        print(f"{row['name']:52} {row['value']:10.1f} {row['unit']}", file=sys.stderr)
    show("cluster", results, f"median of {ROUNDS} rounds")


if __name__ == "__main__":
    main()
