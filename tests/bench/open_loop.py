"""An open-loop HTTP load generator in a process of its own: requests leave on schedule, whatever the answers do.

Latency counts from the moment a request was due, so that a stalled server cannot hide behind requests that were not
sent (coordinated omission). Connections are kept alive; one that is busy is never waited for, another one is opened. It
speaks as little HTTP/1.1 as uvicorn needs, because its CPU time is taken from the server's machine; that time is
reported, so that it can be named.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import uvloop
from numpy.typing import NDArray

from tests.bench.process_usage import cpu_seconds

_GIVE_UP_S = 10.0  # after the last request was due


@dataclass(frozen=True, slots=True)
class Load:
    """`requests` (complete HTTP requests, taken in turn) at `rate` a second to the ports in turn, for `seconds`."""

    host: str
    ports: Sequence[int]
    requests: Sequence[bytes]
    rate: float
    seconds: float
    warm_up_s: float = 3.0  # at the same rate, not reported


@dataclass(slots=True)
class Report:
    """What came back. `latency_ms` [n] are those of answers with status 200, from when they were due."""

    latency_ms: NDArray[np.float64]
    statuses: Counter[int] = field(default_factory=Counter)  # 0: none in time, or the connection broke
    sent: int = 0
    late_ms: float = 0.0  # 99th percentile of how late the generator itself sent
    cpu_s: float = 0.0  # of the generator
    seconds: float = 0.0

    @property
    def accepted_per_s(self) -> float:
        return self.statuses[200] / self.seconds

    def percentile(self, share: float) -> float:
        """Milliseconds; NaN without an answer."""
        return float(np.percentile(self.latency_ms, share)) if len(self.latency_ms) else float("nan")


def run(load: Load) -> Report:
    """Runs the load in a process of its own and returns what it saw."""
    with generator() as begin:
        return begin(load)()


@contextmanager
def generator() -> Iterator[Callable[[Load], Callable[[], Report]]]:
    """A process for several loads, one after the other: begin one, and ask later for what it saw."""
    # Ctrl-C reaches the whole group; the process ends with the block, after its owner has said what it has.
    with multiprocessing.get_context("spawn").Pool(1, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield lambda load: pool.apply_async(_main, (load,)).get


def get_request(path: str, host: str = "127.0.0.1") -> bytes:
    """A GET as bytes."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def post_request(path: str, body: bytes, host: str = "127.0.0.1") -> bytes:
    """A POST of JSON as bytes."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _main(load: Load) -> Report:
    gc.collect()
    gc.disable()  # a collection of all that is on its way, 60 ms and more, would come out as the server's latency
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if load.warm_up_s:
            runner.run(_Generator(load, load.warm_up_s).run())
        return runner.run(_Generator(load, load.seconds).run())


class _Generator:
    """One run of a load."""

    def __init__(self, load: Load, seconds: float) -> None:
        self._load, self._count = load, int(load.rate * seconds)
        self._idle: dict[int, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {p: [] for p in load.ports}
        self._latency: list[float] = []
        self._late: list[float] = []
        self._statuses: Counter[int] = Counter()

    async def run(self) -> Report:
        cpu, began = cpu_seconds(), time.perf_counter()
        tasks = []
        for number in range(self._count):
            due = began + number / self._load.rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(self._one(number, due)))
        _, late = await asyncio.wait(tasks, timeout=_GIVE_UP_S)
        for task in late:
            task.cancel()
        self._statuses[0] += len(late)
        for connections in self._idle.values():
            for _, writer in connections:
                writer.close()
        return Report(
            np.asarray(self._latency) * 1e3,
            self._statuses,
            len(tasks),
            float(np.percentile(self._late, 99)) * 1e3 if self._late else 0.0,
            cpu_seconds() - cpu,
            self._count / self._load.rate,
        )

    async def _one(self, number: int, due: float) -> None:
        port = self._load.ports[number % len(self._load.ports)]
        request = self._load.requests[number % len(self._load.requests)]
        try:
            reader, writer = self._idle[port].pop() if self._idle[port] else await self._connect(port)
            self._late.append(time.perf_counter() - due)
            writer.write(request)
            status = await _answer(reader)
        except (OSError, asyncio.IncompleteReadError):
            self._statuses[0] += 1
            return
        self._statuses[status] += 1
        if status == 200:
            self._latency.append(time.perf_counter() - due)
        self._idle[port].append((reader, writer))

    async def _connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._load.host, port)


async def _answer(reader: asyncio.StreamReader) -> int:
    """Reads one answer to its end; its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    at = head.index(b"content-length:") + 15
    await reader.readexactly(int(head[at : head.index(b"\r\n", at)]))
    return int(head[9:12])
