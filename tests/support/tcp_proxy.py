"""A TCP proxy on 127.0.0.1 that a test can cut: silently, as a lost network does, or by closing every connection.

Runs in a thread of its own. What was on its way during a silent cut arrives after it, as retransmitted packets would.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any


class Proxy:
    """Forwards connections to `port` to another port of this machine.

    Args:
        target: port of the server.
        port: to listen on; 0 takes a free one.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        self._target, self.port = target, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._open = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._call(self._listen())
        self._loop.call_soon_threadsafe(self._open.set)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def silence(self) -> None:
        """Nothing passes any more; connections stay open, and new ones are accepted and not answered."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def reset(self) -> None:
        """Closes every connection and accepts no new one."""
        self._call(self._close())

    def heal(self) -> None:
        """Passes everything again."""
        if self._server is None:
            self._call(self._listen())
        self._loop.call_soon_threadsafe(self._open.set)

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10.0)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await close_server(server)
        # Also the connections that were just accepted: they have a task before they have a writer.
        while asyncio.all_tasks() - {asyncio.current_task()}:
            for writer in list(self._writers):
                writer.transport.abort()
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)  # sockets are closed by the turn after the abort

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        there: asyncio.StreamWriter | None = None
        pumps: list[asyncio.Future[None]] = []
        try:
            back, there = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(there)
            ways = (self._pump(reader, there), self._pump(back, writer))
            pumps = [asyncio.ensure_future(way) for way in ways]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # the server is away: so are we
        finally:
            for pump in pumps:
                pump.cancel()
            for end in filter(None, (writer, there)):
                end.transport.abort()
                self._writers.discard(end)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._open.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass  # one end was closed


async def close_server(server: asyncio.Server) -> None:
    """Closes a server after what it has accepted got its transport: asyncio leaks a connection that it meets closed."""
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening.fileno())
    await asyncio.sleep(0)
    server.close()
