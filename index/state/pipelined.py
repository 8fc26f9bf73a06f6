"""Sends all commands to one Redis server over one connection, without waiting for answers before the next one.

A client's own work for a command is several times Redis', so `hiredis` packs and reads, and one timer watches over all
that waits. Commands must not block, as all others would wait. redis-py says what addresses and answers mean.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import hiredis
from redis.asyncio.connection import DefaultParser, SSLConnection, parse_url
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

RESP = 3  # version of the protocol
_PORT = 6379
_NOTHING = object()  # complete has come
_PAUSE_S = 0.01  # before a call is repeated
_LOOK_S = 0.001  # for what came while this process stood still: that is no silence of the server's
# What an address may say; with more of the client's options it is left to the client.
_KNOWN = {"username", "password", "host", "port", "path", "db", "connection_class"}

Reading = Callable[..., Any]


def can_pipeline(url: str) -> bool:
    """Whether an address says nothing that only redis-py understands."""
    return set(parse_url(url)) <= _KNOWN


class _Waiting(NamedTuple):
    """Who waits for how many answers, and those that have come."""

    answers: asyncio.Future[list[Any]]
    found: list[Any]
    wanted: int


class _Connection(asyncio.Protocol):
    """One connection; answers come in the order of the commands. It is lost for all who wait, never for one."""

    def __init__(self, timeout_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[None] = self.loop.create_future()
        self.is_open = False
        self._timeout_s = timeout_s
        self._reader = hiredis.Reader(RedisConnectionError, DefaultParser.parse_error, notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []  # to be sent at the end of this turn of the loop
        self._waiting = deque[_Waiting]()
        self._heard_s = 0.0  # when something came last, or was first waited for
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, packed: bytes, count: int) -> asyncio.Future[list[Any]]:
        """The answers to `count` commands; what is asked in one turn of the loop is sent together."""
        answers: asyncio.Future[list[Any]] = self.loop.create_future()
        if not self._waiting:
            self._heard_s = self.loop.time()
        if not self._out:
            self.loop.call_soon(self._send)
        self._out.append(packed)
        self._waiting.append(_Waiting(answers, [], count))
        if self._timer is None:
            self._timer = self.loop.call_later(self._timeout_s, self._watch)
        return answers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.is_open = cast(asyncio.Transport, transport), True

    def data_received(self, data: bytes) -> None:
        self._heard_s = self.loop.time()
        try:
            self._reader.feed(data)
            while self._waiting and (answer := self._reader.gets()) is not _NOTHING:
                self._take(answer)
        except RedisConnectionError as error:  # what came is no answer
            self.lose(error)

    def _take(self, answer: Any) -> None:
        answers, found, wanted = self._waiting[0]
        found.append(answer)
        if len(found) == wanted:
            self._waiting.popleft()
            if not answers.done():  # else whoever asked has given up, and the commands have run
                answers.set_result(found)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lose(RedisConnectionError(f"the connection was closed: {exc or 'by the server'}"))
        if not self.gone.done():
            self.gone.set_result(None)

    def lose(self, error: Exception) -> None:
        """Ends the connection; whoever waits gets the error."""
        self.is_open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        for answers, _, _ in self._waiting:
            if not answers.done():
                answers.set_exception(error)
        self._waiting.clear()

    def _send(self) -> None:
        packed, self._out = b"".join(self._out), []
        if self._transport is not None and self.is_open:
            self._transport.write(packed)

    def _watch(self, suspected_s: float | None = None) -> None:
        """Ends a connection that has been silent for too long while somebody waits."""
        self._timer = None
        if not self._waiting:
            return
        due_s = self._heard_s + self._timeout_s
        if self.loop.time() < due_s:
            self._timer = self.loop.call_at(due_s, self._watch)
        elif suspected_s != self._heard_s:
            self._timer = self.loop.call_later(_LOOK_S, self._watch, self._heard_s)
        else:
            self.lose(RedisTimeoutError(f"no answer for {self._timeout_s:g} s"))


class PipelinedServer:
    """Redis on one server, by one connection, which is made when it is needed and again when it was lost.

    `timeout_s` bounds connecting and the time without a word while an answer is waited for; `retries` repeats a call
    that failed by either. `readings` say by name of a command how its answer is read.
    """

    def __init__(
        self, url: str, readings: Mapping[str, Reading], timeout_s: float, retries: int, ca_file: str = ""
    ) -> None:
        self._address, self._readings = parse_url(url), readings
        self._timeout_s, self._retries, self._ca_file = timeout_s, retries, ca_file
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None

    async def run(self, commands: Sequence[Any]) -> list[Any]:
        """The answers in order, errors among them. Raises ConnectionError or TimeoutError as redis-py names them."""
        if not commands:
            return []
        packed = b"".join([hiredis.pack_command(tuple(command.words)) for command in commands])
        for left in range(self._retries, -1, -1):
            try:
                connection = self._connection
                if connection is None or not connection.is_open or connection.loop.is_closed():
                    connection = await self._connected()
                answers = await connection.ask(packed, len(commands))
                break
            except (RedisConnectionError, RedisTimeoutError):
                if not left:
                    raise
            await asyncio.sleep(_PAUSE_S)
        return [self._read(command, answer) for command, answer in zip(commands, answers, strict=True)]

    async def close(self) -> None:
        """Ends the connection."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.loop.is_closed():
            connection.lose(RedisConnectionError("the connection was closed here"))
            await connection.gone

    def _read(self, command: Any, answer: Any) -> Any:
        reading = self._readings.get(str(command.words[0]))
        if reading is None or isinstance(answer, Exception):
            return answer
        return reading(answer, **command.reading)

    async def _connected(self) -> _Connection:
        """A new connection, the same for all who need one now."""
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.ensure_future(self._connect())
            self._connecting.add_done_callback(_noticed)
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._reach()
                try:
                    await self._introduce(connection)
                except BaseException:
                    connection.lose(RedisConnectionError("the server did not let us in"))
                    raise
        except TimeoutError as error:
            raise RedisTimeoutError(f"no connection within {self._timeout_s:g} s") from error
        except OSError as error:
            raise RedisConnectionError(f"no connection: {error}") from error
        self._connection = connection
        return connection

    async def _reach(self) -> _Connection:
        address, loop = self._address, asyncio.get_running_loop()

        def protocol() -> _Connection:
            return _Connection(self._timeout_s)

        if "path" in address:
            return (await loop.create_unix_connection(protocol, address["path"]))[1]
        secured = address.get("connection_class") is SSLConnection
        context = ssl.create_default_context(cafile=self._ca_file or None) if secured else None
        return (await loop.create_connection(protocol, address["host"], address.get("port", _PORT), ssl=context))[1]

    async def _introduce(self, connection: _Connection) -> None:
        """Protocol, password and database. Raises AuthenticationError and others of redis-py."""
        address = self._address
        user, password = address.get("username", "default"), address.get("password")
        words: list[tuple[Any, ...]] = [("HELLO", RESP, *(() if password is None else ("AUTH", user, password)))]
        if address.get("db"):
            words.append(("SELECT", address["db"]))
        for word in words:
            (answer,) = await connection.ask(hiredis.pack_command(word), 1)
            if isinstance(answer, Exception):
                raise answer


def _noticed(task: asyncio.Task[_Connection]) -> None:
    """Whoever needed the connection may be gone by the time that it fails."""
    if not task.cancelled():
        task.exception()
