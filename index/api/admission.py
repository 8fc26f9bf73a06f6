"""Admits requests in one ASGI layer, which measures each, limits its body and refuses what would wait too long.

It sees bodies before they are read and answers after they are sent. A path's kind, answer or write, decides about its
budget; what the calls do is unknown here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from index.api.errors import ProblemError, problem_response, unforeseen
from index.api.metrics import ApiMetrics

MAX_BODY_BYTES = 1 << 20
_OVERLOAD_RETRY_S = 1  # a full house of millisecond requests is empty within the second
_OVERLOAD = ProblemError(503, "this process has more requests than it can answer", retry_after_s=_OVERLOAD_RETRY_S)
_STANDING_S = 0.1  # a queue that a pause of the loop made is gone by then, unless more comes than can be answered
_RECOVERY_S = 1.0  # after a queue that stood; a moment without one is no end of an overload
_UNCOUNTED = ("/", "/healthz", "/readyz", "/metrics", "/v1/status")  # must answer when nothing else does
_WRITES = ("/v1/events", "/v1/items", "/v1/context", "/v1/rules", "/v1/users")
_PREVIEW = "/v1/rules/preview"  # ranks lists and writes nothing
T = TypeVar("T")


class AdmissionMiddleware:
    """ASGI layer around the whole application.

    Of each kind, answers and writes, `in_flight` requests are let in at a time; the next one gets 503. Writes wait for
    Kafka, and must not use up the answers' budget when it is slow. `turns` has the answers in work, far fewer; others
    of those in flight wait for an event to become visible.
    """

    def __init__(self, app: ASGIApp, metrics: ApiMetrics, in_flight: int, turns: AdmissionController) -> None:
        self._app, self._metrics, self._limit, self._turns = app, metrics, in_flight, turns
        self._running = {"answer": 0, "write": 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._admit(scope, receive, sending)
        except Exception as error:  # the boundary: a client never sees a trace, and the connection stays usable
            if status:
                raise
            await unforeseen(error)(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path_format", "unknown")
            self._metrics.request(_method(scope), route, status, time.perf_counter() - started)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = _kind(scope)
        if kind is None:
            await self._app(scope, _limited(receive), send)
            return
        if _declared_length(scope) > MAX_BODY_BYTES:
            self._metrics.refused("too_large")
            await problem_response(_too_large())(scope, receive, send)
            return
        if self._running[kind] >= self._limit or (kind == "answer" and self._turns.full):
            self._metrics.refused("overload")
            await problem_response(_OVERLOAD)(scope, receive, send)
            return
        self._running[kind] += 1
        try:
            with self._turns.begun() if kind == "answer" else nullcontext():
                await self._app(scope, _limited(receive), send)
        finally:
            self._running[kind] -= 1


def _limited(receive: Receive) -> Receive:
    """Counts a body that came without a declared length."""
    size = 0

    async def counting() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MAX_BODY_BYTES:
            raise _too_large()
        return message

    return counting


def _too_large() -> ProblemError:
    return ProblemError(413, f"the body is larger than {MAX_BODY_BYTES} bytes; send it in parts")


def _declared_length(scope: Scope) -> int:
    value: bytes = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return int(value) if value.isdigit() else 0


def _kind(scope: Scope) -> str | None:
    if scope["path"] in _UNCOUNTED:
        return None
    path = scope["path"]
    writes = scope["method"] not in ("GET", "HEAD") and path.startswith(_WRITES) and path != _PREVIEW
    return "write" if writes else "answer"


def _method(scope: Scope) -> str:
    """The method, or `other`: a client may send any word."""
    method: str = scope["method"]
    return method if method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH") else "other"


class AdmissionController:
    """The answers in work, `limit` at most: the last of them waits for all the others.

    So many only for a moment. Where there has always been one for a tenth of a second, more comes than can be answered,
    and a long queue answers nothing more, only later: half of `limit` is let in. Good and bad queues are told apart as
    in Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 2012.
    """

    def __init__(self, limit: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._begun, self._turn = limit, 0, asyncio.Lock()
        self._clock_s, self._busy_since_s, self._short_until_s = clock_s, 0.0, 0.0

    @property
    def busy(self) -> bool:
        """Whether one is in work."""
        return self._begun > 0

    @property
    def full(self) -> bool:
        """Whether one more would wait too long."""
        short = self._clock_s() < self._short_until_s
        return self._begun >= (max(1, self._limit // 2) if short else self._limit)

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Counts an answer for the time of the block."""
        self._begin()
        try:
            yield
        finally:
            now_s = self._clock_s()
            if now_s - self._busy_since_s > _STANDING_S:
                self._short_until_s = now_s + _RECOVERY_S
            self._begun -= 1

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Does not count one that waits for an event for the time of the block."""
        self._begun -= 1
        try:
            yield
        finally:
            self._begin()

    def _begin(self) -> None:
        if not self._begun:
            self._busy_since_s = self._clock_s()
        self._begun += 1

    async def take(self, rank: Callable[[], T]) -> T:
        """What `rank` returns, when it is its turn."""
        async with self._turn:
            found = rank()
            await asyncio.sleep(0)
            return found
