"""Memory per user in Redis, per item in an API process, and of each role process at rest.

A user: Redis' own `MEMORY USAGE` over the keys of a user (window at W + S/2, random UUIDv4 event ids, random item ids
of twelve bytes, vectors [2, 256] in fp16) and the user's share of the partition's index. An item: growth of a fresh
process's resident memory while its catalogue takes items without titles, with the search graph built, by their number.
A role: resident memory (RSS, which the goal is for) of its process in `perseid up --no-traffic`, on the embedded
servers and the generated shop, half a minute after everything was loaded; beside it PSS, where a page that several
processes share counts by its share, and USS, what the process has for itself alone.

    python -m tests.bench.memory [--users 10000] [--items 100000] [--state FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from redis.asyncio import Redis

from deploy.runtime.memory import REST_BEATS
from deploy.servers.redis import RedisServer
from index.items.catalogue import Catalogue
from index.items.hnsw import HnswIndex
from index.state.keys import Keys, partition_of, partition_tag
from index.state.redis_store import RedisStore
from tests.bench.deployed import started
from tests.bench.process_usage import memory_bytes, resident_bytes
from tests.bench.report import Row, result, show
from tests.bench.synthetic import DIM, MODEL, PARTITIONS, Synthetic, Writer, user_id

GOAL_USER, GOAL_ITEM = 6.0, 1.4  # KB
GOAL_ROLE = {"worker": 450, "embed": 500, "traffic": 200, "api": 120}  # MB
_TAKE = 500
_REST_S = REST_BEATS + 10  # all have come to rest by then


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--state", type=Path, help="folder to keep shop and model in between runs: saves the training")
    given = parser.parse_args(arguments)
    with RedisServer() as server:
        results = asyncio.run(users(server.url, given.users))
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process without anything else in it
        per_item, vector = pool.apply(items, (given.items,))
    results.append(result("item", per_item / 1000, "KB", GOAL_ITEM, at_most=True))
    results.append(result("item_without_vector", (per_item - vector) / 1000, "KB"))
    results += roles(given.state)
    for row in results:
        print(f"{row['name']:24} {row['value']:8.3f} {row['unit']}", file=sys.stderr)
    show("memory", results)


async def users(url: str, count: int) -> list[Row]:
    """Bytes of a user, mean over `count`."""
    world, keys, now_ms = Synthetic(items=5000, users=count), Keys("bench"), int(time.time() * 1000)
    store = RedisStore(url, keys)
    writer = Writer(store)
    await writer.open()
    await writer.put_users(world, range(count), now_ms)
    async with Redis.from_url(url) as redis:
        hashes = index = 0
        for number in range(count):
            tag = partition_tag(partition_of(user_id(number), PARTITIONS))
            hashes += await redis.memory_usage(keys.user(tag, user_id(number)), samples=0) or 0
        for partition in range(PARTITIONS):
            index += await redis.memory_usage(keys.users(partition_tag(partition)), samples=0) or 0
    await store.close()
    return [
        result("user", (hashes + index) / count / 1000, "KB", GOAL_USER, at_most=True),
        result("user_hash", hashes / count / 1000, "KB"),
        result("user_in_index", index / count / 1000, "KB"),
    ]


def items(count: int) -> tuple[float, int]:
    """Bytes of an item in this process, and of its vector alone."""
    world = Synthetic(items=count, users=0, titles=False)
    vectors = world.item_vectors()
    warm = Catalogue(MODEL, DIM)  # code and tables that the first item brings
    warm.apply(list(Synthetic(items=10, users=0).records(vectors[:10])))
    before = resident_bytes()
    search = HnswIndex(DIM, background=False)
    catalogue = Catalogue(MODEL, DIM, search)
    part = []
    for record in world.records(vectors):
        part.append(record)
        if len(part) == _TAKE:
            catalogue.apply(part)
            part = []
    catalogue.apply(part)
    search.maintain()
    return (resident_bytes() - before) / count, 2 * DIM


def roles(state: Path | None) -> list[Row]:
    """Megabytes of each role of an idle deployment."""
    with started("embedded", state) as live:
        time.sleep(_REST_S)
        found = {role["role"]: memory_bytes(role["pid"]) for role in live.get("/v1/status")["roles"].values()}
    return [
        result(f"{role}_{kind}", size / 1e6, "MB", goal if kind == "rss" else None, at_most=True)
        for role, goal in GOAL_ROLE.items()
        for kind, size in found[role].items()
    ]


if __name__ == "__main__":
    main()
