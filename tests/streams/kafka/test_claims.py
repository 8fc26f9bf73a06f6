"""Claims while the assignment changes under them: nothing counts as settled that the consumer was not sent to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest
from faust.types import TP

from index.state.memory_store import MemoryStore
from index.state.store import LogIdentity
from streams.events import CLICKSTREAM, CONTEXT, USERS, Rules
from streams.kafka.claims import Claims
from streams.kafka.consumer import StateConsumer
from streams.kafka.log_identity import LogLookup
from streams.pipeline.engine import Engine
from tests.support.streams_world import MemoryBroker

pytestmark = pytest.mark.servers

BOTH = {TP(USERS, 0), TP(CLICKSTREAM, 0)}


class OneLog:
    """A lookup that knows one log of every topic."""

    async def identities(self, topics: Sequence[str]) -> dict[str, LogIdentity]:
        return dict.fromkeys(topics, LogIdentity("c1"))


class SoughtConsumer:
    """A consumer that remembers where it was sent."""

    generation = 1

    def __init__(self, assignment: set[TP]) -> None:
        self.reading, self.assignment, self.sought = asyncio.Lock(), assignment, dict[TP, int]()

    def assigned(self) -> set[TP]:
        return self.assignment

    async def log_starts(self, tps: set[TP]) -> dict[TP, int]:
        return dict.fromkeys(tps, 0)

    log_ends = log_starts

    async def move(self, positions: dict[TP, int]) -> None:
        self.sought |= positions


def _claims() -> Claims:
    engine = Engine(MemoryStore(), Rules(), 1, MemoryBroker())
    return Claims(engine, cast(LogLookup, OneLog()), "g", [])


async def _settled(claims: Claims) -> None:
    while claims.unsettled:
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def _keeping(claims: Claims, consumer: SoughtConsumer) -> AsyncIterator[asyncio.Task[None]]:
    keeping = asyncio.create_task(claims.run(cast(StateConsumer, cast(Any, consumer))))
    yield keeping
    keeping.cancel()


def test_a_tag_is_settled_when_all_of_its_topics_were_sought() -> None:
    async def scenario() -> None:
        consumer = SoughtConsumer({TP(USERS, 0)})  # the clickstream is being recreated
        claims = _claims()
        async with _keeping(claims, consumer):
            claims.on_assignment(consumer.assignment, 1)
            while not consumer.sought:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert claims.unsettled == {"p0"}
            consumer.assignment = BOTH
            claims.on_assignment(BOTH, 2)
            await asyncio.wait_for(_settled(claims), 0.2)  # at once: the pause before the next attempt is cut short
            assert set(consumer.sought) == BOTH

    asyncio.run(scenario())


def test_a_new_assignment_is_sought_although_the_former_one_was_settled_when_it_came() -> None:
    async def scenario() -> None:
        consumer = SoughtConsumer(BOTH)
        claims = _claims()
        move = consumer.move

        async def and_then_a_rebalance(positions: dict[TP, int]) -> None:
            await move(positions)
            if len(generations) == 1:
                claims.on_assignment(BOTH, 2)
                generations.append(2)
                consumer.sought.clear()  # by the rebalance

        generations = [1]
        consumer.move = and_then_a_rebalance  # type: ignore[method-assign]
        async with _keeping(claims, consumer):
            claims.on_assignment(BOTH, 1)
            await asyncio.wait_for(_settled(claims), 5.0)
            assert generations == [1, 2] and set(consumer.sought) == BOTH
            assert claims._engine.leases["p0"].generation == 2

    asyncio.run(scenario())


def test_what_is_refused_while_its_tag_is_claimed_is_claimed_once_more() -> None:
    async def scenario() -> None:
        consumer = SoughtConsumer(BOTH)
        claims, moves = _claims(), list[set[TP]]()
        move = consumer.move

        async def and_a_write_was_refused(positions: dict[TP, int]) -> None:
            await move(positions)
            moves.append(set(positions))
            if len(moves) == 1:  # it had begun before the claim, beside the stream, and knew the token of before
                claims._engine.leases["p0"].unsure = True
                claims.request_reclaim("p0", claim=True)

        consumer.move = and_a_write_was_refused  # type: ignore[method-assign]
        async with _keeping(claims, consumer):
            claims.on_assignment(BOTH, 1)
            await asyncio.wait_for(_settled(claims), 5.0)
            assert not claims._engine.leases["p0"].unsure, "without a record nobody else would ask"
            assert moves == [BOTH, BOTH]

    asyncio.run(scenario())


def test_a_partition_that_is_lost_while_it_is_sought_ends_nothing() -> None:
    async def scenario() -> None:
        consumer = SoughtConsumer(BOTH)
        claims = _claims()
        move = consumer.move

        async def lose(positions: dict[TP, int]) -> None:
            consumer.assignment, consumer.move = set(), move  # type: ignore[method-assign]
            raise ConnectionError("Kafka does not seek: no current assignment")

        consumer.move = lose  # type: ignore[method-assign]
        async with _keeping(claims, consumer) as keeping:
            claims.on_assignment(BOTH, 1)
            await asyncio.sleep(0.05)
            assert not keeping.done() and claims.unsettled == {"p0"}
            claims.on_assignment(set(), 2)
            await asyncio.wait_for(_settled(claims), 5.0)
            await asyncio.sleep(0.05)
            assert not claims._engine.leases and not keeping.done()

    asyncio.run(scenario())


def test_a_new_assignment_that_comes_while_a_lost_partition_is_released_is_claimed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        consumer = SoughtConsumer(BOTH)
        claims = _claims()
        context, release = {TP(CONTEXT, 0)}, Engine.release

        async def and_then_a_rebalance(engine: Engine, tag: str) -> None:
            await release(engine, tag)
            if tag == "p0" and consumer.assignment == context:
                consumer.assignment = BOTH
                claims.on_assignment(BOTH, 3)

        async with _keeping(claims, consumer):
            claims.on_assignment(BOTH, 1)
            await asyncio.wait_for(_settled(claims), 5.0)
            monkeypatch.setattr(Engine, "release", and_then_a_rebalance)
            consumer.assignment = context
            claims.on_assignment(context, 2)
            await asyncio.sleep(0.05)
            await asyncio.wait_for(_settled(claims), 5.0)
            assert {tag: lease.generation for tag, lease in claims._engine.leases.items()} == {"p0": 3}

    asyncio.run(scenario())
