"""Commands of one event-loop turn in one round trip: whose answer is whose, errors, cancellations, a server away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.exceptions import RedisError, ResponseError

from deploy.servers.redis import RedisServer
from index.state.redis_routing import Command, Nodes, nodes


def connected(server: RedisServer, timeout_s: float = 5.0) -> Nodes:
    return nodes(server.url, cluster=False, timeout_s=timeout_s, retries=0, pipelined=True)


def command(*words: str) -> Command:
    return Command(words[1] if len(words) > 1 else "", words)


async def trips(redis: Nodes) -> int:
    """Commands that Redis has read in pipelines or alone so far, as reads of its sockets."""
    (found,) = await redis.run([command("INFO", "stats")])
    return int(found["total_reads_processed"])


def test_what_is_asked_at_once_is_one_round_trip_and_everybody_gets_their_own(redis_server: RedisServer) -> None:
    async def run() -> None:
        redis = connected(redis_server)
        await asyncio.gather(*(redis.run([command("SET", f"n:{n}", str(n))]) for n in range(50)))
        before = await trips(redis)
        asked = [[command("GET", f"n:{n}"), command("STRLEN", f"n:{n}")] for n in range(50)]
        answers = await asyncio.gather(*map(redis.run, asked))
        assert await trips(redis) - before <= 3
        assert answers == [[str(n).encode(), len(str(n))] for n in range(50)]
        await redis.close()

    asyncio.run(run())


def test_an_error_is_that_of_the_command_it_answers(redis_server: RedisServer) -> None:
    async def run() -> None:
        redis = connected(redis_server)
        await redis.run([command("SET", "text", "x")])
        asked = [command("GET", "text"), command("HGET", "text", "f"), command("EVALSHA", "0" * 40, "0")]
        found = await asyncio.gather(*(redis.run([one]) for one in asked), return_exceptions=True)
        assert found[0] == [b"x"]
        assert isinstance(found[1], ResponseError) and "WRONGTYPE" in str(found[1])
        assert isinstance(found[2], ResponseError) and "script" in str(found[2]).lower()
        await redis.close()

    asyncio.run(run())


def test_one_who_gives_up_takes_nobody_along(redis_server: RedisServer) -> None:
    async def run() -> None:
        redis = connected(redis_server)
        asking = [asyncio.ensure_future(redis.run([command("ECHO", str(n))])) for n in range(3)]
        await asyncio.sleep(0)
        asking[1].cancel()
        found: list[Any] = await asyncio.gather(*asking, return_exceptions=True)
        assert found[0] == [b"0"] and isinstance(found[1], asyncio.CancelledError) and found[2] == [b"2"]
        assert await redis.run([command("ECHO", "later")]) == [b"later"]
        await redis.close()

    asyncio.run(run())


def test_a_server_that_is_away_is_everybodys_error_and_comes_back() -> None:
    async def run(server: RedisServer) -> None:
        redis = connected(server, timeout_s=0.5)

        async def turns() -> list[Any]:
            """Five trips at once, so on five connections."""
            asking = []
            for n in range(5):
                asking.append(asyncio.ensure_future(redis.run([command("ECHO", str(n))])))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            return list(await asyncio.gather(*asking))

        expected = [[str(n).encode()] for n in range(5)]
        assert await turns() == expected
        server.kill()
        found = await asyncio.gather(*(redis.run([command("PING")]) for _ in range(5)), return_exceptions=True)
        assert all(isinstance(error, RedisError | OSError) for error in found)
        server.start()
        assert await turns() == expected
        await redis.close()

    with RedisServer() as server:
        asyncio.run(run(server))


@pytest.mark.parametrize("tasks", [1, 40])
def test_a_loop_that_ends_leaves_nobody_waiting(redis_server: RedisServer, tasks: int) -> None:
    async def run() -> None:
        redis = connected(redis_server)
        asking = [asyncio.ensure_future(redis.run([command("GET", "nothing")])) for _ in range(tasks)]
        await asyncio.sleep(0)
        assert len(asking) == tasks  # and the loop cancels everything now

    asyncio.run(run())
