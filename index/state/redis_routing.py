"""Sends each Redis command to the one server, or to the cluster node that owns the key's slot.

redis-py's asyncio cluster (8.1) sends ASKING over a pooled connection that the next command need not use, fails at an
importing node without slots (redis-py issue 4015), and closes busy connections after redirects. `ClusterNodes` can go
when tests/index/state/test_redis_cluster.py passes on `RedisCluster`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError

from index.state.address import host_of, hosts_of, node_name, with_host
from index.state.pipelined import RESP, PipelinedServer, can_pipeline

_REDIRECTS = 5  # a command is sent so often before its last refusal counts: a slot moves once or twice at most
_TRY_AGAIN_S = 0.01  # keys of a script are on two nodes while their slot moves, for milliseconds
_REFRESH_S = 0.25  # the slot map is read at most so often: a failover takes seconds, an error must not double the load
_SLOTS = 16384
_REFUSED = (AskError, TryAgainError)  # MovedError is an AskError
_FAILURES = (RedisError, OSError, TimeoutError)

Connect = Callable[[str], Any]  # URL → client. Any: the client's stubs mix sync and async answers.


class Command(NamedTuple):
    """One command: the key that decides where it runs, its words, and how the client is to read the answer."""

    key: str
    words: Sequence[str | bytes | int]
    reading: Mapping[str, Any] = MappingProxyType({})


class Nodes(Protocol):
    """Redis, on one server or on several."""

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """The answers in order. Raises the first error among them, or the connection's, as redis-py names it."""

    async def close(self) -> None:
        """Releases connections."""


class OneServer:
    """All commands go to one server."""

    def __init__(self, url: str, connect: Connect) -> None:
        self._client = connect(url)

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        return _of_one_server(await _send(self._client, commands))

    async def close(self) -> None:
        await self._client.aclose()


class Pipelined:
    """All commands go to one server, over one connection. Not for commands that block."""

    def __init__(self, url: str, **patience: Any) -> None:
        # The client itself never connects: it knows how answers are to be read.
        readings: Any = aioredis.Redis.from_url(url, protocol=RESP).response_callbacks
        self._server = PipelinedServer(url, readings, **patience)

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        return _of_one_server(await self._server.run(commands))

    async def close(self) -> None:
        await self._server.close()


class ClusterNodes:
    """Each command goes to the primary that owns its key's slot; `url` may name several nodes to begin with."""

    def __init__(self, url: str, connect: Connect) -> None:
        self._url, self._connect = url, connect
        self._clients: dict[str, Any] = {}  # by host:port, one that failed goes to the end
        self._seeds = [node_name(host, port) for host, port in hosts_of(url)]
        self._owners: list[str] = []  # [16384] host:port of each slot's primary; empty until the map was read
        self._stale, self._read_s = True, -_REFRESH_S
        self._reading = asyncio.Lock()

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        answers: list[Any] = [None] * len(commands)
        asked: dict[int, str] = {}  # which commands go where their slot is about to be, once
        pending = list(range(len(commands)))
        for _ in range(_REDIRECTS):
            await self._refresh()
            slots = {at: key_slot(commands[at].key.encode()) for at in pending}
            places = {at: asked.get(at) or self._owners[slots[at]] for at in pending}
            await self._round(commands, answers, places, asked)
            refused = [at for at in pending if isinstance(answers[at], _REFUSED)]
            if not refused:
                break
            asked = self._redirect({at: answers[at] for at in refused}, places)
            if any(isinstance(answers[at], TryAgainError) for at in refused):
                await asyncio.sleep(_TRY_AGAIN_S)
            pending = refused
        return _checked(answers)

    async def close(self) -> None:
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))

    async def _round(
        self, commands: Sequence[Command], answers: list[Any], places: Mapping[int, str], asked: Mapping[int, str]
    ) -> None:
        """Sends each command to its place and puts the answers, refusals among them, where they belong."""
        batches: dict[str, list[int]] = {}
        for at, name in places.items():
            batches.setdefault(name, []).append(at)
        sent = [
            self._send_to(name, [commands[at] for at in batch], [at in asked for at in batch])
            for name, batch in batches.items()
        ]
        # One batch needs no task of its own; of several all are awaited, so that none is left running.
        found = [await sent[0]] if len(sent) == 1 else await asyncio.gather(*sent, return_exceptions=True)
        for batch, answer in zip(batches.values(), found, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            for at, value in zip(batch, answer, strict=True):
                answers[at] = value

    async def _send_to(self, name: str, commands: Sequence[Command], asking: Sequence[bool]) -> list[Any]:
        try:
            answers = await _send(self._client(name), commands, asking)
        except _FAILURES:
            self._suspect(name)
            raise
        if any(isinstance(answer, ClusterDownError) for answer in answers):
            self._suspect(name)
        return answers

    def _redirect(self, refusals: Mapping[int, Exception], places: Mapping[int, str]) -> dict[int, str]:
        """Learns from refusals; returns where those are to be asked whose slot is moving right now."""
        asked = {}
        for at, error in refusals.items():
            if isinstance(error, AskError):  # an empty host means the one that answered
                name = node_name(error.host or host_of(places[at]), error.port)
                if isinstance(error, MovedError):
                    self._owners[error.slot_id], self._stale = name, True
                else:
                    asked[at] = name
        return asked

    def _client(self, name: str) -> Any:
        if name not in self._clients:
            self._clients[name] = self._connect(with_host(self._url, name))
        return self._clients[name]

    def _suspect(self, name: str) -> None:
        """Another node may own this one's slots by now, and is a better one to ask for the map."""
        self._stale = True
        if name in self._clients:
            self._clients[name] = self._clients.pop(name)

    async def _refresh(self) -> None:
        """Reads the slot map when it may have changed. A map that cannot be read leaves the last one in use."""
        if self._is_fresh() or (self._owners and self._reading.locked()):
            return
        async with self._reading:
            if self._is_fresh():  # somebody else has read it meanwhile
                return
            try:
                self._owners, self._stale = await self._slot_map(), False
                await self._forget_others()
            except _FAILURES as error:
                if not self._owners:
                    raise RedisConnectionError(f"no node says which slots it has: {error}") from error
            finally:
                self._read_s = time.monotonic()

    def _is_fresh(self) -> bool:
        """Whether the map is current, or was current a moment ago."""
        return bool(self._owners) and (not self._stale or time.monotonic() - self._read_s < _REFRESH_S)

    async def _slot_map(self) -> list[str]:
        """[16384] host:port, from the first node that answers. Raises the last one's error when none does."""
        *others, last = dict.fromkeys([*self._clients, *self._seeds])
        for name in others:
            with suppress(*_FAILURES):
                return await self._slot_map_of(name)
        return await self._slot_map_of(last)

    async def _slot_map_of(self, name: str) -> list[str]:
        return _owners(await self._client(name).execute_command("CLUSTER", "SLOTS"), name)

    async def _forget_others(self) -> None:
        """Nodes that own nothing any more lose their idle connections; those in use end with their command."""
        for name in set(self._clients) - set(self._owners) - set(self._seeds):
            await self._clients.pop(name).connection_pool.disconnect(inuse_connections=False)


def nodes(
    url: str, *, cluster: bool, timeout_s: float, retries: int, ca_file: str = "", pipelined: bool = False
) -> Nodes:
    """Redis behind `url`: `redis://[[user]:password@]host:port/db`, `rediss://…` or `unix://…`.

    With `cluster` several hosts may be named, `host:port,host:port`. `timeout_s` bounds connecting and each answer,
    `retries` repeats a call that failed by either. `ca_file` (PEM) replaces the system's authorities for `rediss://`.
    With `pipelined` all commands to one server share a connection, so none of them may block. Raises ValueError for an
    address that cannot be used; the message does not repeat it.
    """
    scheme = urlsplit(url).scheme
    if ca_file and scheme != "rediss":
        raise ValueError(f"a file of authorities is of use with rediss:// only, the Redis address begins with {scheme}")
    options: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    if ca_file:
        options["ssl_ca_certs"] = ca_file

    def connect(one_url: str) -> Any:
        return aioredis.Redis.from_url(one_url, retry=Retry(ConstantBackoff(0.01), retries), **options)

    if not cluster:
        if scheme != "unix" and len(hosts_of(url)) > 1:
            raise ValueError("several Redis hosts make sense for a cluster only: name one, or turn cluster on")
        if pipelined and can_pipeline(url):
            return Pipelined(url, timeout_s=timeout_s, retries=retries, ca_file=ca_file)
        return OneServer(url, connect)
    if scheme == "unix" or urlsplit(url).path.strip("/") not in ("", "0"):
        raise ValueError("a Redis Cluster is reached by redis:// or rediss:// and has database 0 only")
    return ClusterNodes(url, connect)


async def _send(client: Any, commands: Sequence[Command], asking: Sequence[bool] = ()) -> list[Any]:
    """One round trip; error answers are returned in their place. Raises what the connection raises."""
    if len(commands) == 1 and not any(asking):
        try:
            return [await client.execute_command(*commands[0].words, **commands[0].reading)]
        except ResponseError as error:
            return [error]
    pipe, kept = client.pipeline(transaction=False), []
    for at, command in enumerate(commands):
        if asking and asking[at]:
            pipe.execute_command("ASKING")  # holds for the next command of this connection
        kept.append(len(pipe))
        pipe.execute_command(*command.words, **command.reading)
    answers = await pipe.execute(raise_on_error=False)
    return [answers[at] for at in kept]


def _checked(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def _of_one_server(answers: list[Any]) -> list[Any]:
    try:
        return _checked(answers)
    except MovedError as error:
        raise RedisError(f"this server is a node of a Redis Cluster and sends us on: {error}") from error


def _owners(slots: Sequence[Any], answered: str) -> list[str]:
    """[16384] names from CLUSTER SLOTS; a node that does not know its own address has that of the one that answered."""
    found = [""] * _SLOTS
    for first, last, (host, port, *_), *_replicas in slots:
        known = bytes(host or b"").decode()
        name = node_name(known if known not in ("", "?") else host_of(answered), int(port))
        found[first : last + 1] = [name] * (last + 1 - first)
    if "" in found:
        raise ClusterDownError(f"slot {found.index('')} of the cluster belongs to no node")
    return found
