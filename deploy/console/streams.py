"""Sends server-sent events, for as long as a visitor looks and for a bounded number of visitors at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

MOST_STREAMS = 100  # of all visitors: a page has one or two
EVERY_S = 0.25  # between two looks at what is new
_ALIVE = 40  # looks without news, after which a comment shows that the connection lives
_AGAIN_MS = 2_000  # after which a browser connects again

# What is new since the last look, as (name, data, number); None where nothing is. A browser that connects again tells
# the last number.
Look = Callable[[], "tuple[str, Any, int] | None"]


def begin_after(request: Request, newest: int) -> int:
    """The number after which a stream begins: where it broke off, or where the page was made, else the newest one."""
    said = request.headers.get("last-event-id") or request.query_params.get("after", "")
    return min(int(said), newest) if said.isdecimal() and len(said) < 18 else newest


class StreamSlots:
    """How many streams are open, and whether the process is about to end."""

    def __init__(self, most: int = MOST_STREAMS) -> None:
        self._most, self._open, self._ending = most, 0, asyncio.Event()

    def end(self) -> None:
        """Ends all streams, now and to come."""
        self._ending.set()

    def response(self, request: Request, look: Look) -> Response:
        """A stream of what `look` finds, or 503 where too many are open."""
        if self._open >= self._most:
            return PlainTextResponse("too many pages are open\n", 503, {"Retry-After": "5"})
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._events(request, look), media_type="text/event-stream", headers=headers)

    async def _events(self, request: Request, look: Look) -> AsyncIterator[bytes]:
        self._open += 1
        try:
            yield b"retry: %d\n\n" % _AGAIN_MS
            quiet = 0
            while not self._ending.is_set() and not await request.is_disconnected():
                quiet += 1
                if (found := look()) is not None:
                    name, data, number = found
                    yield b"id: %d\nevent: %s\ndata: %s\n\n" % (number, name.encode(), orjson.dumps(data))
                    quiet = 0
                elif quiet >= _ALIVE:
                    yield b": alive\n\n"
                    quiet = 0
                try:
                    await asyncio.wait_for(self._ending.wait(), EVERY_S)
                except TimeoutError:
                    pass
        finally:
            self._open -= 1
