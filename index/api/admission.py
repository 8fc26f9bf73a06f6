"""What stands before every call: time and status of each request, its size, how many are let in, and API keys.

One plain ASGI layer, because it must see bodies before they are read and answers after they are sent. It does not know
what the calls do: a path's kind decides about its budget.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from fastapi import Depends, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from index.api.errors import ProblemError, problem_response, unforeseen
from index.api.metrics import ApiMetrics
from index.api.turns import Turns

MAX_BODY_BYTES = 1 << 20
_OVERLOAD_RETRY_S = 1  # a full house of millisecond requests is empty within the second
_OVERLOAD = ProblemError(503, "this process has more requests than it can answer", retry_after_s=_OVERLOAD_RETRY_S)
_UNCOUNTED = ("/healthz", "/readyz", "/metrics", "/v1/status")  # must answer when nothing else does
_WRITES = ("/v1/events", "/v1/items", "/v1/context", "/v1/users")


class Guard:
    """ASGI layer around the whole application.

    Args:
        in_flight: requests of one kind (answers, writes) at a time; the next one gets 503. Writes wait for Kafka, and
            must not use up the answers' budget when it is slow.
        turns: answers in work, far fewer; others of those in flight wait for an event to become visible.
    """

    def __init__(self, app: ASGIApp, metrics: ApiMetrics, in_flight: int, turns: Turns) -> None:
        self._app = app
        self._metrics = metrics
        self._limit, self._turns = in_flight, turns
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
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


def _kind(scope: Scope) -> str | None:
    if scope["path"] in _UNCOUNTED:
        return None
    writes = scope["method"] not in ("GET", "HEAD") and scope["path"].startswith(_WRITES)
    return "write" if writes else "answer"


def _method(scope: Scope) -> str:
    """The method, or `other`: a client may send any word."""
    method: str = scope["method"]
    return method if method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH") else "other"


def require(scope: str, keys: Mapping[str, frozenset[str]], metrics: ApiMetrics) -> list[Any]:
    """Dependencies of a call that needs `scope`: none in an open deployment (no keys configured).

    The key comes in `X-API-Key`, or as a bearer token for clients that can send nothing else (Prometheus).
    """
    if not keys:
        return []

    async def check(request: Request) -> None:
        given = request.headers.get("x-api-key") or _bearer(request.headers.get("authorization", ""))
        granted = scopes_of(given, keys)
        if granted is None:
            metrics.refused("key")
            raise ProblemError(401, "this deployment needs an API key in the header X-API-Key")
        if scope not in granted:
            metrics.refused("key")
            raise ProblemError(403, f"this API key lacks the scope {scope!r}")

    return [Depends(check)]


def scopes_of(given: str, keys: Mapping[str, frozenset[str]]) -> frozenset[str] | None:
    """What the key `given` may do, None for an unknown one. Takes as long for any key, so timing tells nothing."""
    found = None
    for key, scopes in keys.items():
        if hmac.compare_digest(key.encode(), given.encode()):
            found = scopes
    return found


def _bearer(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
