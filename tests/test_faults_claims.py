"""Claims while the assignment changes under them: nothing counts as settled that the consumer was not sent to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from faust.types import TP

from index.memory_store import MemoryStore
from index.store import LogIdentity
from streams.claims import Claims
from streams.engine import Engine
from streams.events import CLICKSTREAM, USERS, Rules
from streams.logs import LogLookup
from streams.transport import StateConsumer
from tests.streams_world import MemoryBroker

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


def _claims(consumer: SoughtConsumer) -> Claims:
    engine = Engine(MemoryStore(), Rules(), 1, MemoryBroker())
    claims = Claims(engine, cast(LogLookup, OneLog()), "g", lambda _: None, lambda _: None)
    claims.consumer = cast(StateConsumer, cast(Any, consumer))
    return claims


def test_a_tag_is_settled_when_all_of_its_topics_were_sought() -> None:
    async def scenario() -> None:
        consumer = SoughtConsumer({TP(USERS, 0)})  # the clickstream is being recreated
        claims = _claims(consumer)
        await claims.take(consumer.assignment, 1)
        assert claims.unsettled == {"p0"}
        consumer.assignment = BOTH
        await claims.take(BOTH, 2)
        assert not claims.unsettled and set(consumer.sought) == BOTH

    asyncio.run(scenario())


def test_a_new_assignment_is_sought_although_the_former_one_was_settled_while_it_waited() -> None:
    async def scenario() -> None:
        consumer = SoughtConsumer(BOTH)
        claims = _claims(consumer)
        async with consumer.reading:
            taking = asyncio.ensure_future(claims.take(BOTH, 2))
            await asyncio.sleep(0)
            await claims._settle(BOTH)  # as `keep` does with the lock
            consumer.sought.clear()  # by the rebalance
        await taking
        assert set(consumer.sought) == BOTH

    asyncio.run(scenario())
