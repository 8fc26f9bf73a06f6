"""Ten times the load for five seconds, beside `freshness`: how soon answers are as fresh as before, and nothing lost.

Assumes that nobody else sends clicks. It knows neither probes nor right answers: it is told how late an answer is.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from streams.pipeline.user_state import Outcome
from tests.bench.deployed import Load
from tests.bench.report import result
from tests.integration.live import Live

FACTOR, SECONDS = 10, 5.0
GOAL_S = 5.0
GIVE_UP_S = 60.0
_SETTLED_S = 2.0  # workers report their counters about once a second
_COUNTED_S = 30.0


def outcomes(live: Live) -> int:
    """Events that the workers have applied or left out for a reason, since they were started."""
    counters = live.get("/v1/status")["counters"]
    return sum(int(counters.get(outcome.value, 0)) for outcome in Outcome)


def settled(live: Live) -> int:
    """`outcomes` once they no longer change: nothing is sent now."""
    before, now = -1, outcomes(live)
    while now != before:
        time.sleep(_SETTLED_S)
        before, now = now, outcomes(live)
    return now


async def recovery_s(load: Load, normal_ms: float, ask: Callable[[], Awaitable[float]]) -> float:
    """Seconds from the end of a burst until an answer is as fresh as `normal_ms`; infinite if it never is."""
    rate = load.rate
    load.rate = rate * FACTOR
    await asyncio.sleep(SECONDS)
    load.rate = rate
    ended = time.monotonic()
    while time.monotonic() - ended < GIVE_UP_S:
        if await ask() <= normal_ms:
            return time.monotonic() - ended
    return math.inf


def figures(live: Live, rate: float, recovered_s: float, counted: int, sent: int) -> list[dict[str, Any]]:
    """How long it took, and how many of `sent` events the workers never came to; `counted` were done before them."""
    deadline = time.monotonic() + _COUNTED_S
    while (missing := counted + sent - outcomes(live)) > 0 and time.monotonic() < deadline:
        time.sleep(0.2)
    name = f"burst_{rate * FACTOR:.0f}_per_s"
    return [
        result(f"{name}_recovery", recovered_s, "s", GOAL_S, at_most=True),
        result(f"{name}_events", sent, "events"),
        result(f"{name}_lost", missing, "events", 0, at_most=True),
    ]
