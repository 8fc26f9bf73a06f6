"""The live state in Redis: one Lua script for guarded writes, pipelines for reads, a stream as item log.

Assumes Redis 6.2 or newer with `noeviction`; knows nothing about users or items beyond their keys. Retries belong to
the callers: a worker repeats a write for ever, the API gives up after one more try.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from index.keys import ITEMS_TAG, Keys
from index.store import (
    Claim,
    ClaimRefusedError,
    Commit,
    FencedError,
    LogIdentity,
    LogPage,
    StoreUnavailableError,
)

_UNAVAILABLE = (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OSError, TimeoutError)
_LOG_PAGE = 2000  # entries of the item log fetched at once: a few hundred KB of records at most
_FOLLOW_MARGIN_S = 5.0  # a blocking log read may take this much longer than asked before the connection counts as dead


def _encode(value: bytes | int | str) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


class RedisStore:
    """`LiveStore` on one Redis server.

    Args:
        url: `redis://[:password@]host:port/db` or `rediss://…`.
        keys: key builder with the deployment's prefix.
        timeout_s: of one read or write; a worker can wait longer than an API process.
        retries: how often the client repeats a call that failed by connection or timeout.
    """

    def __init__(self, url: str, keys: Keys, *, timeout_s: float = 5.0, retries: int = 0) -> None:
        def client(timeout: float, retries: int) -> aioredis.Redis:
            return aioredis.Redis.from_url(
                url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                retry=Retry(ConstantBackoff(0.01), retries),
            )

        self.keys = keys
        # Any: the client's stubs mix sync and async answers.
        self._redis: Any = client(timeout_s, retries)
        self._follow: Any = client(_FOLLOW_MARGIN_S, max(1, retries))
        self._source = resources.files("index").joinpath("store.lua").read_text()
        self._sha: str | None = None

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            yield
        except _UNAVAILABLE as error:
            raise StoreUnavailableError(f"{type(error).__name__}: {error}") from error
        except RedisError as error:
            # LOADING, MISCONF, OOM, CLUSTERDOWN …: the server is there and will not serve now.
            raise StoreUnavailableError(f"{type(error).__name__}: {error}") from error

    async def _script(self, keys: Sequence[str], args: Sequence[bytes | int | str]) -> list[bytes]:
        async with self._translated():
            if self._sha is None:
                self._sha = await self._redis.script_load(self._source)
            try:
                answer: Any = await self._redis.evalsha(self._sha, len(keys), *keys, *args)
            except NoScriptError:  # Redis was restarted since the script was loaded
                answer = await self._redis.eval(self._source, len(keys), *keys, *args)
            return list(answer)

    async def ensure_cluster(self, partitions: int, kinds: Sequence[str]) -> None:
        wanted = {"partitions": str(partitions), "kinds": "\n".join(kinds)}
        async with self._translated():
            for name, value in wanted.items():
                await self._redis.hsetnx(self.keys.cluster(), name, value)
            stored = await self._redis.hmget(self.keys.cluster(), list(wanted))
        check_cluster(partitions, kinds, int(stored[0]), stored[1].decode().split("\n"))
        async with self._translated():
            await self._redis.hset(self.keys.cluster(), "kinds", wanted["kinds"])

    async def claim(
        self, tag: str, token: str, generation: int, logs: Mapping[str, LogIdentity], group: str = ""
    ) -> Claim:
        run_id, keys = "", [self.keys.owner(tag)]
        if tag == ITEMS_TAG:
            async with self._translated():
                run_id = (await self._redis.info("server"))["run_id"]
            keys += [self.keys.item_log(), self.keys.item_index()]
        topics = list(logs)
        identities = [part for topic in topics for part in (topic, str(logs[topic]))]
        args: list[bytes | int | str] = [
            "claim",
            token,
            generation,
            group,
            run_id,
            uuid.uuid4().hex,
            len(topics),
            *identities,
        ]
        answer = await self._script(keys, args)
        if answer[0] == b"refused":
            raise ClaimRefusedError(f"claim of {tag} with generation {generation}: stored is {answer[1].decode()}")
        new_logs = tuple(answer[2].decode().split(",")) if answer[2] else ()
        positions = {topic: int(value) for topic, value in zip(topics, answer[3:], strict=True)}
        return Claim(tag, token, positions, answer[1].decode(), new_logs)

    async def commit(self, commits: Sequence[Commit]) -> None:
        for commit in commits:
            keys, args = _commit_arguments(self.keys, commit)
            answer = await self._script(keys, args)
            raise_if_refused(commit, answer[0].decode(), int(answer[1]) if len(answer) > 1 else 0)

    async def beat(self, tag: str, token: str, ends: Mapping[str, int], caught_up: bool) -> bool:
        pairs = [part for topic, end in ends.items() for part in (topic, end)]
        answer = await self._script([self.keys.owner(tag)], ["beat", token, int(caught_up), len(ends), *pairs])
        return answer[0] == b"ok"

    async def read(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[bytes | None]]:
        async with self._translated():
            pipe = self._redis.pipeline(transaction=False)
            for key, fields in requests:
                pipe.hmget(key, list(fields))
            return [list(values) for values in await pipe.execute()]

    async def read_all(self, key: str) -> dict[str, bytes]:
        async with self._translated():
            found: dict[bytes, bytes] = await self._redis.hgetall(key)
        return {name.decode(): value for name, value in found.items()}

    async def write(self, key: str, fields: Mapping[str, bytes]) -> None:
        async with self._translated():
            await self._redis.hset(key, mapping=dict(fields))

    async def scores(self, key: str) -> dict[str, int]:
        async with self._translated():
            found = await self._redis.zrange(key, 0, -1, withscores=True)
        return {member.decode(): int(score) for member, score in found}

    async def count(self, key: str) -> int:
        async with self._translated():
            return int(await self._redis.zcard(key))

    async def lowest(self, key: str, below_score: int, limit: int, from_score: int = -(2**53)) -> list[str]:
        async with self._translated():
            found = await self._redis.zrangebyscore(key, from_score, f"({below_score}", start=0, num=limit)
        return [member.decode() for member in found]

    async def members(self, key: str) -> set[str]:
        async with self._translated():
            found = await self._redis.smembers(key)
        return {member.decode() for member in found}

    async def read_log(self, generation: str, position: int, wait_ms: int) -> LogPage:
        async with self._translated():
            found: Any = await self._follow.xread(
                {self.keys.item_log(): f"{position}-0"}, count=_LOG_PAGE, block=wait_ms or None
            )
            owner = self.keys.owner(ITEMS_TAG)
            facts = await self._follow.hmget(owner, ["item_log", "item_position"])
        entries = found[0][1] if found else []
        log, end = (facts[0] or b"").decode(), int(facts[1] or 0)
        if log != generation:
            return LogPage(log, end, (), reload=True)
        positions = [int(entry.split(b"-")[0]) for entry, _ in entries]
        if positions and positions[0] != position + 1:  # the tail was trimmed beyond the reader
            return LogPage(log, end, (), reload=True)
        items = tuple(fields[b"i"].decode() for _, fields in entries if fields[b"i"])
        return LogPage(log, positions[-1] if positions else position, items, reload=False)

    async def close(self) -> None:
        await self._redis.aclose()
        await self._follow.aclose()


def _commit_arguments(keys: Keys, commit: Commit) -> tuple[list[str], list[bytes | int | str]]:
    touched = [keys.owner(commit.tag)]
    if commit.tag == ITEMS_TAG:
        touched += [keys.item_log(), keys.item_index()]
    index: dict[str, int] = {}
    args: list[bytes | int | str] = [
        "commit",
        commit.token,
        commit.topic,
        commit.expected,
        commit.position,
        len(commit.ops),
    ]
    for op in commit.ops:
        if op.key not in index:
            touched.append(op.key)
            index[op.key] = len(touched)
        values = [part for name, value in op.values.items() for part in (name, _encode(value))]
        args += [op.kind, index[op.key], len(values) + len(op.names), *values, *op.names]
    return touched, args


def raise_if_refused(commit: Commit, verdict: str, stored: int) -> None:
    """Turns a store's verdict on a commit into `FencedError`, unless the commit had been applied before."""
    if verdict == "token":
        raise FencedError(commit.tag, commit.topic, "token", stored)
    # Only the owner moves its position, so "already there" means that an answer to this very write was lost.
    if verdict == "position" and stored != commit.position:
        raise FencedError(commit.tag, commit.topic, "position", stored)


def check_cluster(partitions: int, kinds: Sequence[str], stored_partitions: int, stored_kinds: Sequence[str]) -> None:
    """Refuses another partition count or reordered kinds: both would silently misread the stored state."""
    if stored_partitions != partitions:
        raise ValueError(
            f"the live state was made with {stored_partitions} user partitions, settings say {partitions}: "
            "set partitions back, or use another key prefix and rebuild from Kafka"
        )
    if list(kinds[: len(stored_kinds)]) != list(stored_kinds):
        raise ValueError(
            f"event kinds {list(kinds)} do not begin with the stored ones {list(stored_kinds)}: "
            "new kinds may only be appended"
        )
