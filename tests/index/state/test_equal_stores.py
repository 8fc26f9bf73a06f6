"""The same operations give the same content in Redis, in memory and in a loaded file."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from deploy.servers.redis import RedisServer
from index.state.keys import ITEMS_TAG, Keys
from index.state.memory_store import MemoryStore
from index.state.redis_store import RedisStore
from index.state.sqlite_store import SqliteStore
from index.state.store import Commit, LiveStore, LogIdentity
from tests.support.store_scenarios import random_op

LOGS = {"catalog": LogIdentity("c", "1")}
STEPS, OPS = 80, 6


async def content(store: LiveStore) -> dict[str, Any]:
    """Whatever random operations may have made."""
    items = [store.keys.item(f"{letter}{number}") for letter in "kn" for number in range(6)]
    hashes = {key: await store.read_all(key) for item in items for key in (item, f"{item}:h", f"{item}:hincr")}
    scores = {key: await store.scores(key) for key in (store.keys.item_index(), *(f"{item}:zadd" for item in items))}
    return {"hashes": hashes, "sorted": scores, "sets": {item: await store.members(f"{item}:s") for item in items}}


@pytest.mark.parametrize("seed", range(6))
def test_random_operations(redis_server: RedisServer, keys: Keys, tmp_path: Path, seed: int) -> None:
    async def scenario() -> None:
        rng, memory, file = random.Random(seed), MemoryStore(keys), SqliteStore(tmp_path / "state", keys)
        redis = RedisStore(redis_server.url, keys)
        stores: tuple[LiveStore, ...] = (redis, memory, file)
        try:
            for store in stores:
                await store.claim(ITEMS_TAG, "me", 1, LOGS)
            for step in range(STEPS):
                ops = [random_op(rng, keys) for _ in range(rng.randrange(1, OPS))]
                for store in stores:
                    await store.commit([Commit(ITEMS_TAG, "me", "catalog", step, step + 1, ops)])
                if rng.random() < 0.2:
                    file.checkpoint({})
                wanted = await content(redis)
                assert await content(memory) == wanted, f"seed {seed}, {ops}"
            file.checkpoint({})
            file.close_file()
            file = SqliteStore(tmp_path / "state", keys)
            assert await content(file) == wanted, f"seed {seed}"
        finally:
            file.close_file()
            await redis.close()

    asyncio.run(scenario())
