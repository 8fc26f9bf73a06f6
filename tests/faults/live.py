"""What Redis says during a run: positions, the item log's end, the state as plain values, and its append-only file.

Asks Redis itself and never a worker, so progress does not depend on a worker's word.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from index.state.keys import ITEMS_TAG, Keys
from index.state.redis_store import RedisStore
from streams.events import tag_of
from streams.pipeline.digest import read_state
from tests.faults.truth import log_partitions

PREFIX = "faults"
T = TypeVar("T")


class LiveState:
    """The live state of one run."""

    def __init__(self, url: str, folder: Path, partitions: int) -> None:
        self._url, self._folder, self._partitions, self.keys = url, folder, partitions, Keys(PREFIX)
        self._client: Any = Redis.from_url(url, socket_timeout=2.0, retry=Retry(NoBackoff(), 0))
        self._known_progress = 0

    def close(self) -> None:
        self._client.close()

    def positions(self) -> dict[tuple[str, int], int]:
        """Next offset to apply of every consumed partition, as stored."""
        wanted = log_partitions(self._partitions)
        pipe = self._client.pipeline(transaction=False)
        for topic, partition in wanted:
            pipe.hget(self.keys.owner(tag_of(topic, partition)), f"pos:{topic}")
        return {key: int(value or 0) for key, value in zip(wanted, pipe.execute(), strict=True)}

    def fields(self, tags: Mapping[tuple[str, int], str]) -> dict[tuple[str, int], int]:
        """Next offset to apply of topics' partitions, as stored under these tags."""
        pipe = self._client.pipeline(transaction=False)
        for (topic, _), tag in tags.items():
            pipe.hget(self.keys.owner(tag), f"pos:{topic}")
        return {place: int(value or 0) for place, value in zip(tags, pipe.execute(), strict=True)}

    def progress(self) -> int:
        """Records applied; the last known number while Redis is away."""
        try:
            self._known_progress = sum(self.positions().values())
        except (RedisError, OSError):
            pass
        return self._known_progress

    def item_log(self) -> tuple[str, int]:
        """Generation and end of the item log."""
        log, position = self._client.hmget(self.keys.owner(ITEMS_TAG), ["item_log", "item_position"])
        return (log or b"").decode(), int(position or 0)

    def hashes(self) -> dict[str, list[str]]:
        """Names of the fields of every hash that there is."""
        names = sorted(self._client.scan_iter(match=f"{PREFIX}:*", count=1000, _type="HASH"))
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.hkeys(name)
        found = zip(names, pipe.execute(), strict=True)
        return {name.decode(): [field.decode() for field in fields] for name, fields in found}

    def setting(self, name: str, value: str) -> None:
        """CONFIG SET."""
        self._client.config_set(name, value)

    def flush(self) -> None:
        """FLUSHALL."""
        self._client.flushall()

    def written(self) -> int:
        """Bytes of the append-only file that are written now."""
        return self._append_only_file().stat().st_size

    def cut(self, size: int) -> bytes:
        """Takes everything behind `size` bytes from the append-only file of a Redis that does not run; what it took."""
        with self._append_only_file().open("r+b") as file:
            file.seek(size)
            lost = file.read()
            file.truncate(size)
        return lost

    def _append_only_file(self) -> Path:
        parts = sorted(self._folder.glob("appendonlydir/*.incr.aof"))
        assert len(parts) < 2, f"Redis has rewritten its append-only file meanwhile: {parts}"
        return parts[0] if parts else self._folder / "appendonly.aof"  # one file until Redis 6.2

    def read_state(self) -> dict[str, Any]:
        """The live state as plain values."""
        return self.ask(lambda store: read_state(store, self._partitions))

    def ask(self, question: Callable[[RedisStore], Coroutine[Any, Any, T]]) -> T:
        """Puts a question to a store of its own."""

        async def ask() -> T:
            store = RedisStore(self._url, Keys(PREFIX))
            try:
                return await question(store)
            finally:
                await store.close()

        return asyncio.run(ask())
