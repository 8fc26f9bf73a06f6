"""One connection for everybody: addresses, pauses on either side, a server that talks nonsense, and who gives up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import uvloop
from redis.exceptions import AuthenticationError, BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from deploy.servers.redis import RedisServer
from index.state.redis_routing import Command, Nodes, OneServer, nodes

Loops = Callable[[Coroutine[Any, Any, Any]], Any]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HELLO = b"%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n"


@pytest.fixture(params=[None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loops(request: pytest.FixtureRequest) -> Loops:
    """`asyncio.run` on either kind of event loop."""

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(coroutine)

    return run


def connected(url: str, timeout_s: float = 5.0, retries: int = 0) -> Nodes:
    return nodes(url, cluster=False, timeout_s=timeout_s, retries=retries, pipelined=True)


def echo(word: str) -> list[Command]:
    return [Command("", ("ECHO", word))]


async def with_server(serve: Serve, use: Callable[[str], Awaitable[None]]) -> None:
    """Has `use` talk to a server of `serve`."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    try:
        await use(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    finally:
        server.close()
        await asyncio.sleep(0.01)  # connections are closed a turn later


def test_addresses_with_databases_passwords_and_sockets(tmp_path: Path, loops: Loops) -> None:
    password, path = "p@ss/w:rd?#", tmp_path / "redis.sock"
    options = (f"unixsocket {path}", "user shop on >" + password + " ~* +@all")
    with RedisServer(tmp_path / "data", options=options) as server:

        async def run() -> None:
            base = server.url.rpartition("@")[2].rpartition("/")[0]
            found = []
            for url in (
                f"redis://shop:{quote(password, safe='')}@{base}/3",
                f"unix://shop:{quote(password, safe='')}@{path}?db=3",
            ):
                redis = connected(url)
                found += await redis.run([Command("k", ("INCR", "k")), Command("", ("CLIENT", "LIST"))])
                await redis.close()
            assert found[0] == 1 and found[2] == 2, "both are the same database"
            assert "db=3" in str(found[1])
            wrong = connected(f"redis://shop:wrong@{base}/3")
            with pytest.raises(AuthenticationError, match="invalid"):
                await wrong.run(echo("x"))
            await wrong.close()

        loops(run())


def test_an_address_with_options_of_the_client_is_left_to_the_client() -> None:
    assert isinstance(connected("rediss://h:1?ssl_cert_reqs=none"), OneServer)


def test_a_pause_of_this_process_is_no_silence_of_the_server(redis_server: RedisServer, loops: Loops) -> None:
    async def run() -> None:
        redis = connected(redis_server.url, timeout_s=0.2)
        (before,) = await redis.run([Command("", ("CLIENT", "ID"))])
        for _ in range(3):
            asking = asyncio.ensure_future(redis.run(echo("x")))
            await asyncio.sleep(0)  # it is asked …
            await asyncio.sleep(0)  # … and on its way
            time.sleep(0.3)  # noqa: ASYNC251 the loop stands still for longer than the timeout
            assert await asking == [b"x"]
        assert await redis.run([Command("", ("CLIENT", "ID"))]) == [before]
        await redis.close()

    loops(run())


def test_who_asks_nothing_waits_for_nothing_and_takes_no_answer_of_others(
    redis_server: RedisServer, loops: Loops
) -> None:
    async def run() -> None:
        server = connected(redis_server.url, timeout_s=1.0)
        found = await asyncio.gather(*(server.run(words) for words in ([], echo("a"), [], echo("b"))))
        assert found == [[], [b"a"], [], [b"b"]]
        await server.close()

    loops(run())


def test_a_silent_server_ends_every_wait_in_time_and_the_next_call_connects_anew(loops: Loops) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        silent = connections == 1
        while data := await reader.read(4096):
            if b"HELLO" in data:
                writer.write(HELLO)
            elif not silent:
                writer.write(b"$1\r\nx\r\n" * data.count(b"ECHO"))

    async def use(url: str) -> None:
        redis, began = connected(url, timeout_s=0.1), time.monotonic()
        found = await asyncio.gather(*(redis.run(echo("x")) for _ in range(5)), return_exceptions=True)
        assert all(isinstance(error, RedisTimeoutError) for error in found) and time.monotonic() - began < 2.0
        assert await asyncio.gather(*(redis.run(echo("x")) for _ in range(5))) == [[b"x"]] * 5
        assert connections == 2
        await redis.close()

    loops(with_server(serve, use))


def test_a_call_is_repeated_on_a_new_connection(loops: Loops) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while data := await reader.read(4096):
            if b"HELLO" in data:
                writer.write(HELLO)
            elif connections < 2:
                return
            else:
                writer.write(b"$1\r\nx\r\n")

    async def use(url: str) -> None:
        redis = connected(url, retries=1)
        assert await redis.run(echo("x")) == [b"x"]
        await redis.close()

    loops(with_server(serve, use))


@pytest.mark.parametrize(
    "nonsense", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\xff\r\n", b"*-7\r\n$999999999999\r\n"]
)
def test_nonsense_is_an_error_of_the_connection(nonsense: bytes, loops: Loops) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(nonsense)
        await reader.read(4096)

    async def use(url: str) -> None:
        redis = connected(url, timeout_s=1.0)
        with pytest.raises((RedisConnectionError, RedisTimeoutError)):
            await redis.run(echo("x"))
        await redis.close()

    loops(with_server(serve, use))


def test_answers_cut_anywhere_are_read_whole_and_errors_keep_their_kind(loops: Loops) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers = {b"HELLO": HELLO, b"ECHO": b"*2\r\n$2\r\n\r\n\r\n_\r\n", b"PING": b"-LOADING in memory\r\n"}
        while data := await reader.read(4096):
            for name, answer in answers.items():
                for byte in answer * data.count(name):
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0)

    async def use(url: str) -> None:
        redis = connected(url)
        assert await redis.run([*echo("a"), *echo("b")]) == [[b"\r\n", None]] * 2
        with pytest.raises(BusyLoadingError):
            await redis.run([Command("", ("PING",))])
        await redis.close()

    loops(with_server(serve, use))


def test_one_who_gives_up_while_it_connects_takes_nobody_along(redis_server: RedisServer, loops: Loops) -> None:
    async def run() -> None:
        redis = connected(redis_server.url)
        asking = [asyncio.ensure_future(redis.run(echo(str(n)))) for n in range(3)]
        await asyncio.sleep(0)
        asking[0].cancel()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError) and found[1:] == [[b"1"], [b"2"]]
        await redis.close()

    loops(run())


def test_the_same_client_serves_one_event_loop_after_another(redis_server: RedisServer, loops: Loops) -> None:
    redis = connected(redis_server.url)

    async def run() -> list[bytes]:
        try:
            return await redis.run(echo("x"))
        finally:
            await redis.close()

    assert loops(run()) == loops(run()) == [b"x"]
