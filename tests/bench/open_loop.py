"""An open-loop HTTP load generator in a process of its own: requests leave on schedule, whatever the answers do.

Latency counts from the moment a request was due, so that a stalled server cannot hide behind requests that were not
sent (coordinated omission). Connections are kept alive; one that is busy is never waited for, another one is opened. It
speaks as little HTTP/1.1 as uvicorn needs, because its CPU time is taken from the server's machine; that time is
reported, so that it can be named.
"""

from __future__ import annotations

import asyncio
import gc
import math
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, takewhile
from multiprocessing.synchronize import Event

import numpy as np
import uvloop
from numpy.typing import NDArray

from tests.bench.process_usage import cpu_seconds

_GIVE_UP_S = 10.0  # after the last request was due


@dataclass(frozen=True, slots=True)
class Load:
    """`requests` (complete HTTP requests, taken in turn) at `rate` a second to the ports in turn, for `seconds`.

    Without an end (infinite `seconds`) it goes on until its report is asked for. `keep`: the report has the answers.
    """

    host: str
    ports: Sequence[int]
    requests: Sequence[bytes]
    rate: float
    seconds: float
    warm_up_s: float = 3.0  # at the same rate, not reported
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """A request, by `time.perf_counter`, which is one clock for all processes of a machine, and what came back."""

    due_s: float
    sent_s: float
    done_s: float
    port: int
    status: int
    body: bytes

    @property
    def latency_ms(self) -> float:
        """From when it was due."""
        return (self.done_s - self.due_s) * 1e3


@dataclass(slots=True)
class Report:
    """What came back. `latency_ms` [n] are those of answers with status 200, from when they were due."""

    latency_ms: NDArray[np.float64]
    statuses: Counter[int] = field(default_factory=Counter)  # 0: none in time, or the connection broke
    sent: int = 0
    late_ms: float = 0.0  # 99th percentile of how late the generator itself sent
    cpu_s: float = 0.0  # of the generator
    seconds: float = 0.0
    answers: list[Answered] = field(default_factory=list)  # where they were to be kept

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
    context = multiprocessing.get_context("spawn")
    asked = context.Event()
    with context.Pool(1, _prepare, (asked,)) as pool:
        pool.apply(bool)  # it takes a second to start, so that no load does

        def begin(load: Load) -> Callable[[], Report]:
            asked.clear()
            running = pool.apply_async(_main, (load,))

            def report() -> Report:
                asked.set()
                return running.get()

            return report

        yield begin


def get_request(path: str, host: str = "127.0.0.1") -> bytes:
    """A GET as bytes."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def post_request(path: str, body: bytes, host: str = "127.0.0.1") -> bytes:
    """A POST of JSON as bytes."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


_asked: Event  # in the generator's process: whether a load without an end is to end now


def _prepare(asked: Event) -> None:
    global _asked
    _asked = asked
    # Ctrl-C reaches the whole group; the process ends with the block, after its owner has said what it has.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
        self._load, self._seconds = load, seconds
        self._idle: dict[int, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {p: [] for p in load.ports}
        self._latency: list[float] = []
        self._late: list[float] = []
        self._statuses: Counter[int] = Counter()
        self._answers: list[Answered] = []

    async def run(self) -> Report:
        cpu, began = cpu_seconds(), time.perf_counter()
        tasks = []
        for number in self._numbers():
            due = began + number / self._load.rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(self._one(number, due)))
        late = (await asyncio.wait(tasks, timeout=_GIVE_UP_S))[1] if tasks else []
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
            len(tasks) / self._load.rate,
            self._answers,
        )

    def _numbers(self) -> Iterator[int]:
        """Of the requests; without an end until the report is asked for."""
        if math.isfinite(self._seconds):
            return iter(range(int(self._load.rate * self._seconds)))
        return takewhile(lambda _: not _asked.is_set(), count())

    async def _one(self, number: int, due: float) -> None:
        port = self._load.ports[number % len(self._load.ports)]
        request = self._load.requests[number % len(self._load.requests)]
        try:
            reader, writer = await self._connection(port)
            sent = time.perf_counter()
            self._late.append(sent - due)
            writer.write(request)
            status, body = await _answer(reader)
        except (OSError, asyncio.IncompleteReadError):
            self._statuses[0] += 1
            return
        done = time.perf_counter()
        self._statuses[status] += 1
        if status == 200:
            self._latency.append(done - due)
        if self._load.keep:
            self._answers.append(Answered(due, sent, done, port, status, body))
        self._idle[port].append((reader, writer))

    async def _connection(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """An idle one, or a new one; servers close those that were idle for long."""
        while self._idle[port]:
            reader, writer = self._idle[port].pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._load.host, port)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Reads one answer to its end; its status and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    at = head.index(b"content-length:") + 15
    body = await reader.readexactly(int(head[at : head.index(b"\r\n", at)]))
    return int(head[9:12]), body
