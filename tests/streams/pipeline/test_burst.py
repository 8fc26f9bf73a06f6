"""One producer sends 10,000 clicks with any times: the other users are as if it had not.

By hand over more seeds: `python -m tests.streams.pipeline.test_burst SEEDS`.
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

import orjson
import pytest

from context.units import DAY_MS, MINUTE_MS
from index.state.keys import partition_tag
from index.state.memory_store import MemoryStore
from index.state.store import LogIdentity
from streams.events import CLICKSTREAM, USERS, Record, Rules, topics_of
from streams.pipeline.digest import read_state
from streams.pipeline.engine import Engine
from streams.pipeline.partition_clock import CLICKS_TO_FOLLOW
from tests.faults.traffic import BURST_USER, Sent, burst
from tests.support.oracle import Oracle
from tests.support.streams_world import NOW_MS, MemoryBroker, click

TAG = partition_tag(0)
BURST = 10_000
TRAFFIC = CLICKS_TO_FOLLOW + 12_000  # so that the clock goes, and many a user comes back after the burst
SLEEPERS = {f"sleeper-{days}": days for days in (100, 250, 350, 380, 450, 900)}  # last seen so many days before
GONE = {"sleeper-450", "sleeper-900"}  # idle for more than 400 days


def sent(user: str, ts_ms: int, number: int, item: str) -> Sent:
    body = click(user, item, ts_ms, f"e{number}")
    return Sent(CLICKSTREAM, 0, user.encode(), orjson.dumps(body), ts_ms)


def traffic(rng: random.Random) -> list[Sent]:
    """A click a minute by 400 users, and before them, and again at the end, those who have not been here for long."""
    ago = sorted(SLEEPERS.items(), key=lambda entry: -entry[1])
    early = [sent(user, NOW_MS - days * DAY_MS, n, "old") for n, (user, days) in enumerate(ago)]
    usual = [
        sent(f"user-{rng.randrange(400)}", NOW_MS + n * MINUTE_MS, 1000 + n, f"item-{rng.randrange(50)}")
        for n in range(TRAFFIC)
    ]
    end_ms = NOW_MS + TRAFFIC * MINUTE_MS
    late = [sent(user, NOW_MS - (days - 1) * DAY_MS, 10**6 + n, "late") for n, (user, days) in enumerate(ago)]
    back = [sent(user, end_ms, 10**7 + n, "new") for n, (user, _) in enumerate(ago) if n % 2]
    return early + usual + late + back


def oracle_of(clicks: list[Sent]) -> dict[str, Any]:
    oracle = Oracle(1)
    for one in clicks:
        oracle.click(0, orjson.loads(one.value or b""), one.timestamp_ms)
    return oracle.part(0, {USERS: 0, CLICKSTREAM: len(clicks)})


async def applied(clicks: list[Sent], rng: random.Random) -> tuple[dict[str, Any], Engine]:
    store = MemoryStore()
    engine = Engine(store, Rules(), 1, MemoryBroker())
    await engine.claim(TAG, 1, dict.fromkeys(topics_of(TAG), LogIdentity("c")))
    at = 0
    while at < len(clicks):
        size = rng.choice((1, 50, 1000))
        batch = [
            Record(CLICKSTREAM, 0, at + n, one.timestamp_ms, one.key, one.value)
            for n, one in enumerate(clicks[at : at + size])
        ]
        await engine.apply(batch)
        await engine.sweep_idle()
        at += size
    return (await read_state(store, 1))[TAG], engine


def check(seed: int) -> None:
    rng = random.Random(seed)
    usual = traffic(rng)
    at, share = rng.randrange(len(usual)), rng.choice((1.0, 0.6))
    clicks = usual[:at]
    rest = iter(usual[at:])
    for one in burst(rng, BURST, 1, 1 if seed % 2 else BURST):
        while rng.random() > share and (other := next(rest, None)):
            clicks.append(other)
        clicks.append(one)
    clicks += rest
    state, engine = asyncio.run(applied(clicks, rng))
    assert state == oracle_of(clicks), f"seed {seed}"
    without = oracle_of(usual)["users"]
    others = {user: found for user, found in state["users"].items() if not user.startswith(BURST_USER)}
    assert others == without, f"seed {seed}"
    came_back = {user for user in GONE if user in without}
    assert not any(found["window"][0][1] == "old" for user, found in without.items() if user in came_back)
    assert set(SLEEPERS) - GONE <= set(without) and engine.counts["late"] >= 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_ten_thousand_clicks_of_one_producer_harm_nobody_else(seed: int) -> None:
    check(seed)


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        check(number)
        print(f"seed {number}: the digest is the oracle's, and every other user is as without the burst", flush=True)
