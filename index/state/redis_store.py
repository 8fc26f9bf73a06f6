"""Keeps the live state in Redis, with one Lua script for guarded writes and a stream as item log.

Assumes Redis 6.2 or newer with `noeviction`, one server or a cluster; what one script touches lies in one slot. Retries
belong to the callers, as a worker repeats for ever and the API gives up after one more try.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from redis.exceptions import NoScriptError, RedisError, ResponseError

from index.state.keys import ITEMS_TAG, Keys
from index.state.redis_routing import Command, nodes
from index.state.store import (
    Claim,
    ClaimRefusedError,
    Commit,
    Fields,
    LogPage,
    Logs,
    StoreUnavailableError,
    TagState,
    check_cluster,
    positions_of,
    raise_if_refused,
)

_SCAN_PAGE = 5000  # members of a sorted set asked for at once: some two milliseconds of the server
_LOG_PAGE = 2000  # entries of the item log fetched at once: a few hundred KB of records at most
_FOLLOW_MARGIN_S = 5.0  # a blocking log read may take this much longer than asked before the connection counts as dead

_LOG_FACTS = ("item_log", "item_position")
_LOG_TOPICS = ("pos:catalog", "pos:item-vectors")  # of an owner hash


class RedisStore:
    """`LiveStore` on one Redis server or a Redis Cluster; addresses and errors are those of `redis_routing.nodes`."""

    def __init__(
        self,
        url: str,
        keys: Keys,
        *,
        timeout_s: float = 5.0,  # of one read or write; a worker can wait longer than an API process
        retries: int = 0,  # how often the client repeats a call that failed by connection or timeout
        cluster: bool = False,  # whether the address names nodes of a Redis Cluster
        ca_file: str = "",  # PEM file of the authorities to trust with `rediss://`, instead of the system's
    ) -> None:
        self.keys = keys
        self.refusal: str | None = None
        access: dict[str, Any] = {"cluster": cluster, "ca_file": ca_file}
        self._nodes = nodes(url, timeout_s=timeout_s, retries=retries, pipelined=True, **access)
        self._follow = nodes(url, timeout_s=_FOLLOW_MARGIN_S, retries=max(1, retries), **access)
        self._source = resources.files("index.state").joinpath("store.lua").read_text()
        # How Redis names a script that it has seen.
        self._sha = hashlib.sha1(self._source.encode(), usedforsecurity=False).hexdigest()

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            yield
        except (RedisError, OSError, TimeoutError) as error:
            # Also LOADING, MISCONF, OOM, CLUSTERDOWN …: the server is there and will not serve now.
            raise StoreUnavailableError(f"{type(error).__name__}: {error}") from error

    async def _run(self, key: str, name: str, *words: bytes | int | str, **reading: Any) -> Any:
        """One command on one key."""
        async with self._translated():
            (answer,) = await self._nodes.run([Command(key, (name, key, *words), reading)])
        return answer

    async def _script(self, keys: Sequence[str], args: Sequence[bytes | int | str]) -> list[bytes]:
        rest = (len(keys), *keys, *args)
        async with self._translated():
            try:
                (answer,) = await self._nodes.run([Command(keys[0], ("EVALSHA", self._sha, *rest))])
            except NoScriptError:  # the node was restarted, or has just taken over the slot
                (answer,) = await self._nodes.run([Command(keys[0], ("EVAL", self._source, *rest))])
            return list(answer)

    async def ensure_cluster(self, partitions: int, kinds: Sequence[str]) -> None:
        wanted = {"partitions": str(partitions), "kinds": "\n".join(kinds)}
        for name, value in wanted.items():
            await self._run(self.keys.cluster(), "HSETNX", name, value)
        stored = await self._run(self.keys.cluster(), "HMGET", *wanted)
        check_cluster(partitions, kinds, int(stored[0]), stored[1].decode().split("\n"))
        await self._run(self.keys.cluster(), "HSET", "kinds", wanted["kinds"])

    async def claim(self, tag: str, token: str, generation: int, logs: Logs, group: str = "") -> Claim:
        keys = [self.keys.owner(tag)]
        if tag == ITEMS_TAG:
            keys += [self.keys.item_log(), self.keys.item_index()]
        topics = list(logs)
        identities = [part for topic in topics for part in (topic, str(logs[topic]))]
        log = uuid.uuid4().hex  # of the item log, should a new one begin
        answer = await self._script(keys, ["claim", token, generation, group, log, len(topics), *identities])
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
            return await self._nodes.run([Command(key, ("HMGET", key, *fields)) for key, fields in requests])

    async def read_all(self, key: str) -> dict[str, bytes]:
        found: dict[bytes, bytes] = await self._run(key, "HGETALL")
        return {name.decode(): value for name, value in found.items()}

    async def read_at(self, tag: str, requests: Sequence[tuple[str, Sequence[str] | None]]) -> TagState:
        keys = [self.keys.owner(tag), *(key for key, _ in requests)]
        asked: list[bytes | int | str] = ["read"]
        for _, fields in requests:
            asked += [-1] if fields is None else [len(fields), *fields]
        answer: Sequence[Any] = await self._script(keys, asked)
        owner, *hashes = map(_pairs, answer)
        return TagState(positions_of(owner), hashes)

    async def write(self, key: str, fields: Mapping[str, bytes]) -> None:
        try:
            await self._run(key, "HSET", *(part for field in fields.items() for part in field))
            self.refusal = ""
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, ResponseError):
                self.refusal = str(error.__cause__)
            raise

    async def remove(self, key: str, fields: Sequence[str]) -> None:
        await self._run(key, "HDEL", *fields)

    async def swap(self, key: str, expected: Fields, fields: Fields) -> bool:
        parts = [
            part
            for given in (expected, fields)
            for part in (len(given), *(word for field in given.items() for word in _optional(*field)))
        ]
        return (await self._script([key], ["swap", *parts]))[0] == b"ok"

    async def present(self, places: Sequence[tuple[str, str]]) -> list[bool]:
        async with self._translated():
            return list(
                map(bool, await self._nodes.run([Command(key, ("HEXISTS", key, name)) for key, name in places]))
            )

    async def highest(self, key: str, start: int, limit: int) -> list[tuple[str, int]]:
        found = await self._run(key, "ZREVRANGE", start, start + limit - 1, "WITHSCORES")
        return [(member.decode(), int(score)) for member, score in found]

    async def scores(self, key: str) -> dict[str, int]:
        # Not by one ZRANGE: over a million members it would take longer than a reader waits, and keep out all others.
        found, cursor = dict[str, int](), 0
        while True:
            cursor, page = await self._run(key, "ZSCAN", cursor, "COUNT", _SCAN_PAGE)
            found.update({member.decode(): int(score) for member, score in page})
            if not cursor:
                return found

    async def count(self, key: str) -> int:
        return int(await self._run(key, "ZCARD"))

    async def lowest(self, key: str, below_score: int, limit: int, from_score: int = -(2**53)) -> list[str]:
        found = await self._run(key, "ZRANGEBYSCORE", from_score, f"({below_score}", "LIMIT", 0, limit)
        return [member.decode() for member in found]

    async def members(self, key: str) -> set[str]:
        return {member.decode() for member in await self._run(key, "SMEMBERS")}

    async def read_log(self, generation: str, position: int, wait_ms: int) -> LogPage:
        log_key, owner = self.keys.item_log(), self.keys.owner(ITEMS_TAG)
        wait = ("BLOCK", wait_ms) if wait_ms else ()
        read = Command(log_key, ("XREAD", "COUNT", _LOG_PAGE, *wait, "STREAMS", log_key, f"{position}-0"))
        async with self._translated():
            (found,) = await self._follow.run([read])
            (facts,) = await self._follow.run([Command(owner, ("HMGET", owner, *_LOG_FACTS, *_LOG_TOPICS))])
        entries = found[0][1] if found else []
        log, end = (facts[0] or b"").decode(), int(facts[1] or 0)
        positions = [int(entry.split(b"-")[0]) for entry, _ in entries]
        is_trimmed = bool(positions) and positions[0] != position + 1  # the tail, beyond the reader
        if log != generation or is_trimmed:
            return LogPage(log, end, (), reload=True)
        items = tuple(fields[b"i"].decode() for _, fields in entries if fields[b"i"])
        reached, applied = positions[-1] if positions else position, zip(_LOG_TOPICS, facts[2:], strict=True)
        known = positions_of({name: value for name, value in applied if value is not None})
        return LogPage(log, reached, items, reload=False, positions=known if reached == end else None)

    async def close(self) -> None:
        await self._nodes.close()
        await self._follow.close()


def _pairs(flat: Sequence[bytes]) -> dict[str, bytes]:
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _optional(name: str, value: bytes | None) -> tuple[str, int, bytes]:
    return name, int(value is not None), value or b""


def _commit_arguments(keys: Keys, commit: Commit) -> tuple[list[str], list[bytes | int | str]]:
    touched = [keys.owner(commit.tag)]
    if commit.tag == ITEMS_TAG:
        touched += [keys.item_log(), keys.item_index()]
    index: dict[str, int] = {}
    beside = [part for topic, position in commit.beside.items() for part in (topic, position)]
    args: list[bytes | int | str] = ["commit", commit.token, commit.topic, commit.expected, commit.position]
    args += [len(commit.beside), *beside, len(commit.ops)]
    for op in commit.ops:
        if op.key not in index:
            touched.append(op.key)
            index[op.key] = len(touched)
        values = [part for name, value in op.values.items() for part in (name, value)]
        args += [op.kind, index[op.key], len(values) + len(op.names), *values, *op.names]
    return touched, args
