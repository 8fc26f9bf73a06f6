"""What the guard lets in: so many at a time, fewer answers in work; and how these take turns."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import httpx
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from index.api.admission import AdmissionController, AdmissionMiddleware
from index.api.metrics import ApiMetrics

ANSWERS, IN_FLIGHT = 4, 10


class Site:
    """A guarded application whose answers wait for a gate."""

    def __init__(self) -> None:
        self.gate, self.metrics = asyncio.Event(), ApiMetrics(CollectorRegistry())
        self.turns = AdmissionController(ANSWERS)
        self.app = AdmissionMiddleware(self.answer, self.metrics, IN_FLIGHT, self.turns)
        self.statuses: Counter[int] = Counter()
        self.headers: list[dict[bytes, bytes]] = []

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.turns.idle() if scope["path"].endswith("/later") else nullcontext():
            await self.gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(self, path: str = "/v1/recommendations/u1", method: str = "GET") -> None:
        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.statuses[message["status"]] += 1
                self.headers.append(dict(message["headers"]))

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        await self.app({"type": "http", "path": path, "method": method, "headers": []}, receive, send)

    async def ask_together(self, count: int, path: str = "/v1/recommendations/u1", method: str = "GET") -> Any:
        """Requests that came while the loop was busy."""
        return asyncio.gather(*(self.ask(path, method) for _ in range(count)))


def test_of_answers_only_so_many_are_let_in() -> None:
    async def scene() -> Site:
        site = Site()
        asked = await site.ask_together(9)
        await asyncio.sleep(0)
        assert site.statuses == {503: 9 - ANSWERS}  # refused at once, while the others still wait
        site.gate.set()
        await asked
        return site

    site = asyncio.run(scene())
    assert site.statuses == {503: 9 - ANSWERS, 200: ANSWERS}
    assert site.headers[0][b"retry-after"] == b"1"
    assert site.metrics.counters() == {"requests": 9, "refused": 9 - ANSWERS}


def test_a_queue_that_stands_is_shorter_than_one_that_comes_and_goes() -> None:
    now_s = 0.0
    turns = AdmissionController(ANSWERS, lambda: now_s)

    def room() -> int:
        with ExitStack() as answers:
            for count in range(ANSWERS + 1):
                if turns.full:
                    return count
                answers.enter_context(turns.begun())
        raise AssertionError("more than the limit are let in")

    with turns.begun():
        now_s = 0.09
        assert room() == ANSWERS - 1
        now_s = 0.11
        with turns.begun():
            pass
        assert room() == ANSWERS // 2 - 1  # there has always been one
    now_s = 0.5
    assert room() == ANSWERS // 2  # a moment without one is no end of an overload
    now_s = 1.2
    assert room() == ANSWERS
    with turns.begun(), turns.idle():
        assert room() == ANSWERS  # one that waits for an event is no work
    with turns.begun():
        with turns.idle():
            now_s = 5.0
        assert room() == ANSWERS - 1
    assert room() == ANSWERS  # nor has it made a queue


def test_answers_that_wait_for_an_event_leave_room_for_others_up_to_the_limit_at_a_time() -> None:
    async def scene() -> Site:
        site = Site()
        asked = [await site.ask_together(IN_FLIGHT - 1, "/v1/recommendations/later")]
        await asyncio.sleep(0)
        asked.append(await site.ask_together(3))
        await asyncio.sleep(0)
        site.gate.set()
        await asyncio.gather(*asked)
        assert not site.turns.full
        return site

    assert asyncio.run(scene()).statuses == {200: IN_FLIGHT, 503: 2}


def test_writes_and_probes_are_not_counted_as_answers() -> None:
    async def scene() -> Site:
        site = Site()
        asked = await site.ask_together(IN_FLIGHT, "/v1/events", "POST")
        probes = await site.ask_together(20, "/healthz")
        await asyncio.sleep(0)
        site.gate.set()
        await asyncio.gather(asked, probes)
        return site

    assert asyncio.run(scene()).statuses == {200: IN_FLIGHT + 20}


def test_a_server_that_was_busy_answers_some_of_what_came_meanwhile_and_refuses_the_rest() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.001)  # as for the live state
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guard = AdmissionMiddleware(app, ApiMetrics(CollectorRegistry()), IN_FLIGHT, AdmissionController(ANSWERS))

    async def scene() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://api") as client:
            one_by_one = [(await client.get("/v1/users/u")).status_code for _ in range(20)]
            together = await asyncio.gather(*(client.get("/v1/users/u") for _ in range(20)))
            assert one_by_one == [200] * 20
            return [response.status_code for response in together]

    statuses = Counter(asyncio.run(scene()))
    assert statuses[200] >= ANSWERS and statuses[503] > 0 and statuses[200] + statuses[503] == 20


def test_between_two_turns_the_loop_does_other_things() -> None:
    order: list[str] = []

    def rank(number: int) -> None:
        order.append(f"turn {number}")
        asyncio.get_running_loop().call_soon(order.append, f"came in turn {number}")

    async def scene() -> None:
        turns = AdmissionController(ANSWERS)
        await asyncio.gather(*(turns.take(partial(rank, number)) for number in range(3)))
        await asyncio.sleep(0)

    asyncio.run(scene())
    assert order == [f"{what} {number}" for number in range(3) for what in ("turn", "came in turn")]


def test_a_turn_that_fails_does_not_hold_up_the_next() -> None:
    def broken() -> None:
        raise RuntimeError("no list")

    async def scene() -> Any:
        turns = AdmissionController(ANSWERS)
        return await asyncio.gather(turns.take(broken), turns.take(lambda: "a list"), return_exceptions=True)

    failed, found = asyncio.run(scene())
    assert isinstance(failed, RuntimeError) and found == "a list"
